//! Memory by slots of the top-level page table.

use core::ops::RangeInclusive;

use linux_raw_sys::general::{
    MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE,
};
use syscalls::{Sysno, syscall};

use super::Errno;
use super::memory::PAGE;

/// The binary logarithm of the bytes that a slot maps: 512 GiB.
pub const SHIFT: u32 = 39;

/// The slots that behaviors move between. In the first of the table is the program, in the last its stack and
/// what the kernel finds a place for; a program that the kernel finds a place for, as our tests, is in slot
/// 170 or above.
pub const SLOTS: RangeInclusive<usize> = 1..=128;

/// A page of this process alone, where a slot begins. It is given back when it is dropped.
#[derive(Debug)]
pub struct SlotPage {
    start: *mut u8,
}

impl SlotPage {
    /// Maps a zeroed page in `slot`, which must have none there.
    ///
    /// # Errors
    /// What `mmap(2)` says: `EEXIST` where it has.
    pub fn map(slot: usize) -> Result<Self, Errno> {
        Self::map_with(slot, PROT_READ | PROT_WRITE)
    }

    /// Maps a page as [`Self::map`] does, which can be executed, too.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn map_executable(slot: usize) -> Result<Self, Errno> {
        Self::map_with(slot, PROT_READ | PROT_WRITE | PROT_EXEC)
    }

    fn map_with(slot: usize, protection: u32) -> Result<Self, Errno> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        let start = slot << SHIFT;
        // SAFETY: the kernel refuses a mapping that overlaps another.
        let start =
            unsafe { syscall!(Sysno::mmap, start, PAGE, protection, flags, usize::MAX, 0) }?;
        let start = core::ptr::with_exposed_provenance_mut(start);
        Ok(Self { start })
    }

    /// Returns the page's bytes.
    pub fn bytes(&mut self) -> &mut [u8; PAGE] {
        // SAFETY: the page is mapped for as long as `self` lives, and nobody else knows it.
        unsafe { &mut *self.start.cast() }
    }
}

impl Drop for SlotPage {
    fn drop(&mut self) {
        // A page that cannot be given back stays until the process ends.
        // SAFETY: the page is this value's, and nobody's from now on.
        let _ = unsafe { syscall!(Sysno::munmap, self.start, PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_its_slot_for_as_long_as_it_is_kept() {
        let slot = 127;
        let mut page = SlotPage::map(slot).expect("a page");
        page.bytes()[PAGE - 1] = 1;
        assert_eq!(page.bytes().as_ptr() as usize, slot << SHIFT);
        assert_eq!(SlotPage::map(slot).err(), Some(Errno::EEXIST));
        drop(page);
        assert!(SlotPage::map(slot).is_ok_and(|mut page| page.bytes()[PAGE - 1] == 0));
    }
}
