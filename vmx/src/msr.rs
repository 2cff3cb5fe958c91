//! Reading and writing model-specific registers.

/// Reads `msr`.
///
/// # Safety
/// The CPU must have this MSR (reading another one is a general-protection fault), and we
/// must be in ring 0.
#[must_use]
#[inline]
pub unsafe fn read(msr: u32) -> u64 {
    // SAFETY: the caller vouches that the MSR exists; reading an MSR has no effect on memory.
    unsafe { x86_64::registers::model_specific::Msr::new(msr).read() }
}

/// Writes `value` to `msr`.
///
/// # Safety
/// The CPU must have this MSR and accept this value, we must be in ring 0, and no Rust
/// invariant may depend on the MSR's old value.
#[inline]
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: the caller vouches for the MSR, the value and the effect.
    unsafe { x86_64::registers::model_specific::Msr::new(msr).write(value) }
}
