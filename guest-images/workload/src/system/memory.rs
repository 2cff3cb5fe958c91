//! Memory from the kernel.

use linux_raw_sys::general::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use syscalls::{Sysno, syscall};

use super::Errno;
use crate::counters::Counters;

/// Bytes in a page.
pub const PAGE: usize = 4096;

fn map(length: usize, sharing: u32) -> Result<*mut u8, Errno> {
    let protection = PROT_READ | PROT_WRITE;
    let flags = sharing | MAP_ANONYMOUS;
    // SAFETY: a new mapping where the kernel likes it overlaps nothing.
    let address = unsafe { syscall!(Sysno::mmap, 0, length, protection, flags, usize::MAX, 0) }?;
    Ok(core::ptr::with_exposed_provenance_mut(address))
}

/// Returns memory of this process alone, zeroed, never given back.
///
/// # Errors
/// What `mmap(2)` says.
pub fn private(length: usize) -> Result<&'static mut [u8], Errno> {
    let start = map(length, MAP_PRIVATE)?;
    // SAFETY: the mapping is `length` zeroed bytes, is new, and is never unmapped.
    Ok(unsafe { core::slice::from_raw_parts_mut(start, length) })
}

/// Hands `user` zeroed memory of this process alone, and gives it back afterwards.
///
/// # Errors
/// What `mmap(2)` and `munmap(2)` say.
pub fn with_private<T>(length: usize, user: impl FnOnce(&mut [u8]) -> T) -> Result<T, Errno> {
    let start = map(length, MAP_PRIVATE)?;
    // SAFETY: the mapping is `length` zeroed bytes, is new, and is only used while it is there:
    // `user` cannot keep it.
    unsafe {
        let result = user(core::slice::from_raw_parts_mut(start, length));
        syscall!(Sysno::munmap, start, length)?;
        Ok(result)
    }
}

/// Returns the page that this process and all that it forks share.
///
/// # Errors
/// What `mmap(2)` says.
pub fn shared_counters() -> Result<&'static Counters, Errno> {
    let start = map(size_of::<Counters>(), MAP_SHARED)?;
    // SAFETY: the mapping is new, page-aligned, never unmapped, and zeroed, which is what a new
    // slot is; all of it is atomics, so sharing it is sound.
    Ok(unsafe { &*start.cast::<Counters>() })
}
