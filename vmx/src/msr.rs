//! Model-specific registers: the numbers that VMX names (SDM vol. 4 and vol. 3D, app. A),
//! and reading and writing them.

/// IA32_FEATURE_CONTROL: firmware's lock on VMX (SDM vol. 3C, 24.7).
pub const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP.
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_VMX_BASIC.
pub const VMX_BASIC: u32 = 0x480;
/// IA32_VMX_PINBASED_CTLS; with [`VMX_TRUE_PINBASED_CTLS`] the others follow in order.
pub const VMX_PINBASED_CTLS: u32 = 0x481;
/// IA32_VMX_PROCBASED_CTLS.
pub const VMX_PROCBASED_CTLS: u32 = 0x482;
/// IA32_VMX_EXIT_CTLS.
pub const VMX_EXIT_CTLS: u32 = 0x483;
/// IA32_VMX_ENTRY_CTLS.
pub const VMX_ENTRY_CTLS: u32 = 0x484;
/// IA32_VMX_MISC.
pub const VMX_MISC: u32 = 0x485;
/// IA32_VMX_CR0_FIXED0.
pub const VMX_CR0_FIXED0: u32 = 0x486;
/// IA32_VMX_CR0_FIXED1.
pub const VMX_CR0_FIXED1: u32 = 0x487;
/// IA32_VMX_CR4_FIXED0.
pub const VMX_CR4_FIXED0: u32 = 0x488;
/// IA32_VMX_CR4_FIXED1.
pub const VMX_CR4_FIXED1: u32 = 0x489;
/// IA32_VMX_PROCBASED_CTLS2.
pub const VMX_PROCBASED_CTLS2: u32 = 0x48b;
/// IA32_VMX_EPT_VPID_CAP.
pub const VMX_EPT_VPID_CAP: u32 = 0x48c;
/// IA32_VMX_TRUE_PINBASED_CTLS.
pub const VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
/// IA32_VMX_TRUE_PROCBASED_CTLS.
pub const VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
/// IA32_VMX_TRUE_EXIT_CTLS.
pub const VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
/// IA32_VMX_TRUE_ENTRY_CTLS.
pub const VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// IA32_STAR: SYSCALL segment selectors.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR: SYSCALL target in 64-bit mode.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_CSTAR: SYSCALL target in compatibility mode (unused by Intel, but readable).
pub const CSTAR: u32 = 0xc000_0083;
/// IA32_FMASK: RFLAGS bits that SYSCALL clears.
pub const FMASK: u32 = 0xc000_0084;
/// IA32_FS_BASE.
pub const FS_BASE: u32 = 0xc000_0100;
/// IA32_GS_BASE.
pub const GS_BASE: u32 = 0xc000_0101;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;

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
