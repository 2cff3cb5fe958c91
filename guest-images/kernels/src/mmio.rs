//! Plain accesses to device memory.

/// Reads 32 bits at `address`.
///
/// # Safety
/// `address` must be mapped, and reading the device there must be harmless to memory.
#[must_use]
pub unsafe fn read32(address: u64) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes 32 bits at `address`.
///
/// # Safety
/// `address` must be mapped, and writing the device there must be harmless to memory.
pub unsafe fn write32(address: u64, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { (address as *mut u32).write_volatile(value) }
}

/// Reads 64 bits at `address`.
///
/// # Safety
/// As for [`read32`].
#[must_use]
pub unsafe fn read64(address: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes 64 bits at `address`.
///
/// # Safety
/// As for [`write32`].
pub unsafe fn write64(address: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { (address as *mut u64).write_volatile(value) }
}
