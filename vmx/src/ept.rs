//! Extended page tables: the guest's physical memory (SDM vol. 3C, 29.3).

use alloc::boxed::Box;

use arch::paging::{ADDRESS, SIZE_1G, SIZE_2M};
use bitflags::bitflags;

use crate::addr::{GuestPhysAddr, HostPhysAddr, PAGE_SIZE};
use crate::capabilities::Translation;
use crate::page::Page;

bitflags! {
    /// The accesses to a page that a guest is allowed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u64 {
        /// Read.
        const READ = 1 << 0;
        /// Write.
        const WRITE = 1 << 1;
        /// Fetch instructions.
        const EXECUTE = 1 << 2;
    }
}

/// The bit of an entry of level 2 or 3 that says that it maps a page, and refers to no table.
const MAPS_PAGE: u64 = 1 << 7;
const WRITE_BACK: u64 = 6 << 3;
const PRESENT: u64 = 7;
/// A bit that the processor ignores: the guest may execute what a large page maps, once that is mapped in small pages.
const EXECUTES_IN_SMALL_PAGES: u64 = 1 << 52;

/// The size of what one EPT entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB
    Size4K,
    /// 2 MiB
    Size2M,
    /// 1 GiB
    Size1G,
}

impl PageSize {
    /// Returns the size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => PAGE_SIZE,
            Self::Size2M => SIZE_2M,
            Self::Size1G => SIZE_1G,
        }
    }

    /// Returns the level of the table that holds its entries: 1 for the page table.
    const fn level(self) -> u32 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }
}

/// An error in changing a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptError {
    /// No page for a table.
    OutOfMemory,
    /// An address that is not aligned, or above 2^48.
    BadAddress,
    /// An address that is not mapped.
    NotMapped,
}

impl core::fmt::Display for EptError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "out of memory for EPT tables",
            Self::BadAddress => "an address is not aligned or not below 2^48",
            Self::NotMapped => "the guest-physical address is not mapped",
        })
    }
}

impl core::error::Error for EptError {}

/// A four-level hierarchy of extended page tables, which it owns.
pub struct Ept {
    /// The table of level 4.
    root: Box<Page>,
    pages_1g: bool,
    pages_2m: bool,
    accessed_dirty: bool,
    executes_in_large_pages: bool,
}

const fn index(address: GuestPhysAddr, level: u32) -> usize {
    (address.0 >> (12 + 9 * (level - 1)) & 0x1ff) as usize
}

impl Ept {
    /// Makes an empty hierarchy.
    ///
    /// # Errors
    /// If there is no page for the root.
    pub fn new(capabilities: &Translation) -> Result<Self, EptError> {
        Ok(Self {
            root: Page::try_new().ok_or(EptError::OutOfMemory)?,
            pages_1g: capabilities.pages_1g,
            pages_2m: capabilities.pages_2m,
            accessed_dirty: capabilities.accessed_dirty,
            executes_in_large_pages: true,
        })
    }

    /// Maps no large page so that a guest may execute in it: [`Ept::execute`] makes small ones of it then. A guest that
    /// executes in a large page, and changes its own tables meanwhile, can stop some processors with a machine check
    /// ("iTLB multihit", CVE-2018-12207).
    #[must_use]
    pub fn without_execution_in_large_pages(mut self) -> Self {
        self.executes_in_large_pages = false;
        self
    }

    /// Returns the EPT pointer for the VMCS: write-back, four levels (SDM vol. 3C, table 25-9).
    #[must_use]
    pub fn pointer(&self) -> u64 {
        let accessed_dirty = if self.accessed_dirty { 1 << 6 } else { 0 };
        self.root.address().0 | accessed_dirty | (4 - 1) << 3 | 6
    }

    /// Returns the largest page that the CPU knows and that fits.
    fn page_size(&self, guest: GuestPhysAddr, host: HostPhysAddr, length: u64) -> PageSize {
        let fits = |size: PageSize| {
            guest.is_aligned(size.bytes())
                && host.is_aligned(size.bytes())
                && length >= size.bytes()
        };
        if self.pages_1g && fits(PageSize::Size1G) {
            PageSize::Size1G
        } else if self.pages_2m && fits(PageSize::Size2M) {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        }
    }

    /// Maps `length` bytes of guest-physical memory at `guest` to `host`, write-back, with
    /// the largest pages that fit.
    ///
    /// # Errors
    /// If an address or the length is not a multiple of 4 KiB, or there is no memory for
    /// tables; then part of the range may be mapped.
    ///
    /// # Safety
    /// The host memory is the guest's to use as `access` says.
    pub unsafe fn map(
        &mut self,
        guest: GuestPhysAddr,
        host: HostPhysAddr,
        length: u64,
        access: Access,
    ) -> Result<(), EptError> {
        if !guest.is_aligned(PAGE_SIZE)
            || !host.is_aligned(PAGE_SIZE)
            || !length.is_multiple_of(PAGE_SIZE)
            || guest.0.checked_add(length).is_none_or(|end| end > 1 << 48)
            || host.0.checked_add(length).is_none()
        {
            return Err(EptError::BadAddress);
        }
        let mut done = 0;
        while done < length {
            let guest = GuestPhysAddr(guest.0 + done);
            let host = HostPhysAddr(host.0 + done);
            let size = self.page_size(guest, host, length - done);
            let is_large = size != PageSize::Size4K;
            let waits =
                is_large && !self.executes_in_large_pages && access.contains(Access::EXECUTE);
            let rights = if waits {
                (access - Access::EXECUTE).bits() | EXECUTES_IN_SMALL_PAGES
            } else {
                access.bits()
            };
            let kind = if is_large { MAPS_PAGE } else { 0 };
            // Where the table ends, larger ones may fit.
            let first = index(guest, size.level());
            let left = usize::try_from((length - done) / size.bytes()).unwrap_or(usize::MAX);
            let entries = self.table(guest, size.level())?.0[first..].iter_mut();
            for (entry, page) in entries.take(left).zip(0..) {
                debug_assert!(
                    !is_large || *entry & ADDRESS == 0 || *entry & MAPS_PAGE != 0,
                    "a table is in the place of a page"
                );
                *entry = (host.0 + page * size.bytes()) | kind | WRITE_BACK | rights;
                done += size.bytes();
            }
        }
        Ok(())
    }

    /// Lets the guest execute at `guest`, if it may, but not [in a large page](Self::without_execution_in_large_pages)
    /// as there is now. Returns whether it may.
    ///
    /// Nothing that a CPU has cached is to be invalidated: it may go on using the large page for data, and a fetch
    /// violates what it has cached, which drops that (SDM vol. 3C, 29.4.3.1).
    ///
    /// # Errors
    /// If there is no memory to split the page.
    pub fn execute(&mut self, guest: GuestPhysAddr) -> Result<bool, EptError> {
        let Some((entry, _)) = self.find(guest) else {
            return Ok(false);
        };
        if entry & EXECUTES_IN_SMALL_PAGES != 0 {
            self.entry(guest.page(), 1)?;
            return Ok(true);
        }
        // Another VCPU may have been here since.
        Ok(entry & Access::EXECUTE.bits() != 0)
    }

    /// Takes the mapping of the 4 KiB page at `guest` away, splitting a larger one.
    ///
    /// # Errors
    /// As [`Ept::map`].
    pub fn unmap_page(&mut self, guest: GuestPhysAddr) -> Result<(), EptError> {
        *self.entry(guest.page(), 1)? = 0;
        Ok(())
    }

    /// Sets what the guest may do with the 4 KiB page at `guest`, which is mapped, splitting
    /// a larger page. The caller invalidates what CPUs have cached.
    ///
    /// # Errors
    /// If the page is not mapped, or there is no memory to split a larger one.
    pub fn protect_page(&mut self, guest: GuestPhysAddr, access: Access) -> Result<(), EptError> {
        let entry = self.entry(guest.page(), 1)?;
        if *entry & ADDRESS == 0 {
            return Err(EptError::NotMapped);
        }
        *entry = *entry & !PRESENT | access.bits();
        Ok(())
    }

    /// Returns where `guest` is mapped to; `None` if it is not. Inaccessible pages count as mapped.
    #[must_use]
    pub fn translate(&self, guest: GuestPhysAddr) -> Option<HostPhysAddr> {
        let (entry, size) = self.find(guest)?;
        let offset = guest.0 & (size - 1);
        Some(HostPhysAddr((entry & ADDRESS & !(size - 1)) + offset))
    }

    /// Returns what the guest may do at `guest`; `None` if it is not mapped.
    #[must_use]
    pub fn access(&self, guest: GuestPhysAddr) -> Option<Access> {
        let (entry, _) = self.find(guest)?;
        Some(Access::from_bits_truncate(entry))
    }

    /// Returns the entry that maps `guest`, and the size of what it maps in bytes; `None` if it is not mapped.
    fn find(&self, guest: GuestPhysAddr) -> Option<(u64, u64)> {
        let mut table: *const Page = &raw const *self.root;
        for level in (1..=4).rev() {
            // SAFETY: tables live as long as this hierarchy, and are only changed through
            // `&mut self`.
            let entry = unsafe { (*table).0[index(guest, level)] };
            if entry & ADDRESS == 0 && entry & PRESENT == 0 {
                return None;
            }
            if level == 1 || entry & MAPS_PAGE != 0 {
                return Some((entry, 1 << (12 + 9 * (level - 1))));
            }
            table = (entry & ADDRESS) as *const Page;
        }
        None
    }

    /// Returns the entry for `guest` in the table of `level`: see [`Ept::table`].
    fn entry(&mut self, guest: GuestPhysAddr, level: u32) -> Result<&mut u64, EptError> {
        Ok(&mut self.table(guest, level)?.0[index(guest, level)])
    }

    /// Returns the table of `level` for `guest`, with the tables above it made, and larger pages above it split.
    fn table(&mut self, guest: GuestPhysAddr, level: u32) -> Result<&mut Page, EptError> {
        let mut table: *mut Page = &raw mut *self.root;
        for above in (level + 1..=4).rev() {
            // SAFETY: tables live as long as this hierarchy, which alone refers to them, and is
            // borrowed mutably. The CPU's own page walks may set accessed and dirty flags, which
            // nothing here depends on.
            let entry = unsafe { &mut (*table).0[index(guest, above)] };
            if *entry & ADDRESS == 0 {
                let new = Page::try_new().ok_or(EptError::OutOfMemory)?;
                *entry = Box::into_raw(new) as u64 | PRESENT;
            } else if *entry & MAPS_PAGE != 0 {
                let mut new = Page::try_new().ok_or(EptError::OutOfMemory)?;
                let step = 1u64 << (12 + 9 * (above - 2));
                let template = if above == 2 {
                    let executes = if *entry & EXECUTES_IN_SMALL_PAGES == 0 {
                        0
                    } else {
                        Access::EXECUTE.bits()
                    };
                    *entry & !(MAPS_PAGE | EXECUTES_IN_SMALL_PAGES) | executes
                } else {
                    *entry
                };
                for (i, smaller) in (0u64..).zip(new.0.iter_mut()) {
                    *smaller = template + i * step;
                }
                *entry = Box::into_raw(new) as u64 | PRESENT;
            }
            table = (*entry & ADDRESS) as *mut Page;
        }
        // SAFETY: as above.
        Ok(unsafe { &mut *table })
    }
}

impl Drop for Ept {
    fn drop(&mut self) {
        free_tables(&self.root, 4);
    }
}

/// Frees the tables that `table`, one of `level`, refers to.
fn free_tables(table: &Page, level: u32) {
    if level == 1 {
        return;
    }
    for &entry in &table.0 {
        if entry & ADDRESS != 0 && entry & MAPS_PAGE == 0 {
            // SAFETY: an entry above the lowest level that is no large page is a table that
            // `Ept::entry` made, which nothing else refers to.
            let next = unsafe { Box::from_raw((entry & ADDRESS) as *mut Page) };
            free_tables(&next, level - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::alloc::{GlobalAlloc, Layout};
    use core::cell::Cell;
    use std::alloc::System;

    use super::*;

    std::thread_local! {
        /// Pages that this thread has allocated and not freed.
        static PAGES: Cell<isize> = const { Cell::new(0) };
    }

    struct CountingPages;

    // SAFETY: the system's allocator does the work.
    unsafe impl GlobalAlloc for CountingPages {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout == Layout::new::<Page>() {
                PAGES.set(PAGES.get() + 1);
            }
            // SAFETY: by the contract, which is the same.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            if layout == Layout::new::<Page>() {
                PAGES.set(PAGES.get() - 1);
            }
            // SAFETY: by the contract, which is the same.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: CountingPages = CountingPages;

    fn mapped(guest: u64, host: u64, length: u64) -> Ept {
        let mut ept = Ept::new(&Translation::ALL).unwrap();
        // SAFETY: no CPU uses these tables.
        unsafe {
            ept.map(
                GuestPhysAddr(guest),
                HostPhysAddr(host),
                length,
                Access::all(),
            )
            .unwrap();
        }
        ept
    }

    #[test]
    fn a_range_is_mapped_to_its_last_byte_and_no_further() {
        let ept = mapped(0x1000, 0x4000_1000, (1 << 30) + (2 << 20));
        let end = 0x1000 + (1 << 30) + (2 << 20);
        assert_eq!(ept.translate(GuestPhysAddr(0xfff)), None);
        for guest in [0x1000, 0x1fff, 0x20_0000, 0x3fff_ffff, 0x4000_0000, end - 1] {
            assert_eq!(
                ept.translate(GuestPhysAddr(guest)),
                Some(HostPhysAddr(guest + 0x4000_0000)),
                "{guest:#x}"
            );
        }
        assert_eq!(ept.translate(GuestPhysAddr(end)), None);
    }

    #[test]
    fn protecting_a_page_inside_a_large_one_leaves_the_others_as_they_were() {
        for size in [2u64 << 20, 1 << 30] {
            let mut ept = mapped(0, 1 << 32, size);
            let page = GuestPhysAddr(0x12_3000);
            ept.protect_page(page, Access::empty()).unwrap();
            assert_eq!(*ept.entry(page, 1).unwrap() & PRESENT, 0);
            for guest in [0, 0x12_2fff, 0x12_3000, 0x12_4000, size - 1] {
                assert_eq!(
                    ept.translate(GuestPhysAddr(guest)),
                    Some(HostPhysAddr(guest + (1 << 32)))
                );
            }
            ept.protect_page(page, Access::all()).unwrap();
            assert_eq!(*ept.entry(page, 1).unwrap() & PRESENT, PRESENT);
            ept.unmap_page(page).unwrap();
            assert_eq!(ept.translate(page), None);
        }
    }

    #[test]
    fn code_is_executed_in_small_pages_where_it_may_not_be_in_large_ones() {
        for size in [2u64 << 20, 1 << 30] {
            let mut ept = Ept::new(&Translation::ALL)
                .unwrap()
                .without_execution_in_large_pages();
            let apic = GuestPhysAddr(1 << 40);
            // SAFETY: no CPU uses these tables.
            unsafe {
                ept.map(GuestPhysAddr(0), HostPhysAddr(1 << 32), size, Access::all())
                    .unwrap();
                ept.map(apic, HostPhysAddr(1 << 33), 4096, Access::READ)
                    .unwrap();
            }
            let data = Access::READ | Access::WRITE;
            let code = GuestPhysAddr(size / 2 + 0x5123);
            assert_eq!(ept.access(code), Some(data));
            assert_eq!(ept.execute(code), Ok(true));
            for small in [code, GuestPhysAddr(code.0 & !0x1f_ffff)] {
                assert_eq!(ept.access(small), Some(Access::all()));
                assert_eq!(ept.find(small).unwrap().1, PAGE_SIZE);
            }
            // Only what the guest executes is split.
            let elsewhere = GuestPhysAddr((code.0 & !0x1f_ffff) ^ 0x20_0000);
            let expected = (elsewhere.0 < size).then_some((data, 2 << 20));
            let there = ept.find(elsewhere);
            let there = there.map(|(entry, size)| (Access::from_bits_truncate(entry), size));
            assert_eq!(there, expected);
            assert_eq!(ept.execute(code), Ok(true), "another VCPU comes as well");
            assert_eq!(ept.execute(apic), Ok(false), "data");
            assert_eq!(ept.execute(GuestPhysAddr(2 << 40)), Ok(false), "nothing");
            assert_eq!(
                ept.translate(code),
                Some(HostPhysAddr(code.0 + (1 << 32))),
                "the same memory"
            );
        }
    }

    #[test]
    fn a_page_that_is_taken_away_from_a_large_one_leaves_executable_ones() {
        let mut ept = Ept::new(&Translation::ALL)
            .unwrap()
            .without_execution_in_large_pages();
        // SAFETY: no CPU uses these tables.
        unsafe {
            ept.map(
                GuestPhysAddr(0),
                HostPhysAddr(1 << 32),
                2 << 20,
                Access::all(),
            )
            .unwrap();
        }
        let page = GuestPhysAddr(0x3000);
        ept.protect_page(page, Access::empty()).unwrap();
        assert_eq!(ept.execute(page), Ok(false));
        assert_eq!(ept.access(GuestPhysAddr(0x4000)), Some(Access::all()));
        ept.protect_page(page, Access::all()).unwrap();
        assert_eq!(ept.execute(page), Ok(true));
    }

    #[test]
    fn all_tables_are_freed_with_the_hierarchy() {
        let before = PAGES.get();
        let mut ept = mapped(0x1000, 0x4000_1000, (1 << 30) + (2 << 20));
        ept.protect_page(GuestPhysAddr(0x20_0000), Access::READ)
            .unwrap();
        assert!(PAGES.get() >= before + 5, "{} tables", PAGES.get());
        drop(ept);
        assert_eq!(PAGES.get(), before);
    }

    #[test]
    fn misaligned_and_overflowing_ranges_are_refused() {
        let mut ept = Ept::new(&Translation::ALL).unwrap();
        for (guest, host, length) in [(1, 0, 4096), (0, 1, 4096), (0, 0, 1), (1 << 48, 0, 4096)] {
            // SAFETY: no CPU uses these tables.
            let result = unsafe {
                ept.map(
                    GuestPhysAddr(guest),
                    HostPhysAddr(host),
                    length,
                    Access::all(),
                )
            };
            assert_eq!(result, Err(EptError::BadAddress));
        }
    }
}
