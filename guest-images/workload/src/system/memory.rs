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

/// Returns `count` zeros in memory of this process alone, never given back.
///
/// # Errors
/// What `mmap(2)` says.
pub fn private_numbers(count: usize) -> Result<&'static mut [u32], Errno> {
    let length = count.checked_mul(size_of::<u32>()).ok_or(Errno::ENOMEM)?;
    let start = map(length, MAP_PRIVATE)?;
    // SAFETY: the mapping is `count` zeros, page-aligned, is new, and is never unmapped.
    Ok(unsafe { core::slice::from_raw_parts_mut(start.cast(), count) })
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

/// The descriptor of the file that the counters are in: a new program that a process becomes finds
/// them by it.
const COUNTERS_FILE: usize = 100;

/// Returns the page that this process shares with all that it forks, and with all programs that these
/// become.
///
/// # Errors
/// What `memfd_create(2)`, `ftruncate(2)`, `dup2(2)` and `mmap(2)` say.
pub fn shared_counters() -> Result<&'static Counters, Errno> {
    let length = size_of::<Counters>();
    // SAFETY: the name ends with a zero byte, and the descriptors are nobody's property.
    let file = unsafe {
        let file = syscall!(Sysno::memfd_create, c"counters".as_ptr(), 0)?;
        syscall!(Sysno::ftruncate, file, length)?;
        syscall!(Sysno::dup2, file, COUNTERS_FILE)?;
        file
    };
    map_counters(file)
}

/// Returns that page to a new program.
///
/// # Errors
/// What `mmap(2)` says, as it does where there are no counters.
pub fn inherited_counters() -> Result<&'static Counters, Errno> {
    map_counters(COUNTERS_FILE)
}

fn map_counters(file: usize) -> Result<&'static Counters, Errno> {
    let (length, protection) = (size_of::<Counters>(), PROT_READ | PROT_WRITE);
    // SAFETY: a new mapping where the kernel likes it overlaps nothing.
    let start = unsafe { syscall!(Sysno::mmap, 0, length, protection, MAP_SHARED, file, 0) }?;
    let start = core::ptr::with_exposed_provenance::<Counters>(start);
    // SAFETY: the mapping is new, page-aligned, never unmapped, and of a file of that length that holds
    // slots, or zeros, which are what new slots are; all of it is atomics, so sharing it is sound.
    Ok(unsafe { &*start })
}
