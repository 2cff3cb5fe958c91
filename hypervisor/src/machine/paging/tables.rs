//! Four-level page tables (SDM vol. 3A, 4.5).

use arch::PageTableFlags;
use arch::paging::{ADDRESS, ENTRIES};
use vmx::addr::HostPhysAddr;

use super::super::memory::{OutOfMemory, PhysRange};

/// The content of a page, which says what may be done with it: never both write and execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Constants: read only.
    Constants,
    /// Data: read and write; MMIO, too.
    Data,
    /// Code: read and execute.
    Code,
}

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITABLE: u64 = PageTableFlags::WRITABLE.bits();
/// The bit of an entry of level 2 or 3 that is a page, not a table.
const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();
const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();

/// Returns the bytes that an entry of `level` covers: 4 KiB at level 1, 512 times more for each
/// above.
const fn span(level: u32) -> u64 {
    4096 << (9 * (level - 1))
}

/// A source of new tables: zeroed frames.
type NewTable<'a> = &'a mut dyn FnMut() -> Result<HostPhysAddr, OutOfMemory>;

/// A set of page tables. Tables are reached at their physical addresses; whose they are is the business of who gives
/// them.
#[derive(Debug)]
pub(crate) struct PageTables {
    root: HostPhysAddr,
    /// The highest level whose entries may be pages: 2 (2 MiB) or 3 (1 GiB).
    largest_page_level: u32,
    /// [`NO_EXECUTE`], or 0 if the CPU has no such bit.
    no_execute: u64,
}

impl PageTables {
    /// The end of what can be mapped: the lower half of the 48-bit address space.
    pub(crate) const REACH: u64 = 1 << 47;

    /// Makes empty tables. `has_1g` and `has_nx`: the CPU knows 1 GiB pages, and pages that cannot
    /// be executed.
    ///
    /// # Errors
    /// If there is no memory for the root.
    pub(crate) fn new(
        new_table: NewTable<'_>,
        has_1g: bool,
        has_nx: bool,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self {
            root: new_table()?,
            largest_page_level: if has_1g { 3 } else { 2 },
            no_execute: if has_nx { NO_EXECUTE } else { 0 },
        })
    }

    /// Makes empty tables for the same CPU.
    ///
    /// # Errors
    /// If there is no memory for the root.
    pub(crate) fn new_like(&self, new_table: NewTable<'_>) -> Result<Self, OutOfMemory> {
        Ok(Self {
            root: new_table()?,
            ..*self
        })
    }

    /// Returns the root table's address, for CR3.
    #[must_use]
    pub(crate) const fn root(&self) -> HostPhysAddr {
        self.root
    }

    /// Returns an entry of the root table.
    #[must_use]
    pub(crate) fn root_entry(&self, index: usize) -> u64 {
        self.read(self.root, index)
    }

    /// Maps `range`, whole frames, from the address `at` on, which lies below [`PageTables::REACH`] and is a multiple of
    /// a page.
    ///
    /// # Errors
    /// As for [`PageTables::set`].
    pub(crate) fn map(
        &mut self,
        at: u64,
        range: PhysRange,
        protection: Protection,
        new_table: NewTable<'_>,
    ) -> Result<(), OutOfMemory> {
        let there = PhysRange::new(at, at + range.size());
        let flags = self.flags(Some(protection));
        let delta = range.start.0.wrapping_sub(at);
        self.set_in(self.root, 4, there, delta, flags, new_table)
    }

    const fn flags(&self, protection: Option<Protection>) -> u64 {
        match protection {
            None => 0,
            Some(Protection::Constants) => PRESENT | self.no_execute,
            Some(Protection::Data) => PRESENT | WRITABLE | self.no_execute,
            Some(Protection::Code) => PRESENT,
        }
    }

    /// Maps all 4 KiB pages that `range` touches, below [`PageTables::REACH`], to themselves with this protection;
    /// `None` unmaps them. Other pages stay as they are.
    ///
    /// # Errors
    /// If a table is needed and there is no memory for it; then the pages up to some
    /// address are set and the others are not.
    pub(crate) fn set(
        &mut self,
        range: PhysRange,
        protection: Option<Protection>,
        new_table: NewTable<'_>,
    ) -> Result<(), OutOfMemory> {
        let range = range.touched_frames();
        let range = PhysRange::new(range.start.0, range.end.0.min(Self::REACH));
        self.set_in(self.root, 4, range, 0, self.flags(protection), new_table)
    }

    /// Maps the pages of the addresses `range`, which lies in what the table covers, to what is `delta` further.
    fn set_in(
        &mut self,
        table: HostPhysAddr,
        level: u32,
        range: PhysRange,
        delta: u64,
        flags: u64,
        new_table: NewTable<'_>,
    ) -> Result<(), OutOfMemory> {
        let span = span(level);
        let mut start = range.start.0;
        while start < range.end.0 {
            let entry_start = start & !(span - 1);
            let end = (entry_start + span).min(range.end.0);
            let index = (start / span) as usize % ENTRIES;
            let entry = self.read(table, index);
            let page_start = entry_start.wrapping_add(delta);
            let whole = start == entry_start
                && end == entry_start + span
                && page_start.is_multiple_of(span);
            let is_page = is_page(entry, level);
            if whole && level <= self.largest_page_level && (entry == 0 || is_page) {
                self.write(table, index, page(page_start, level, flags));
            } else if entry != 0 || flags != 0 {
                let next = if entry == 0 || is_page {
                    self.split(table, index, level, entry, new_table)?
                } else {
                    HostPhysAddr(entry & ADDRESS)
                };
                self.set_in(
                    next,
                    level - 1,
                    PhysRange::new(start, end),
                    delta,
                    flags,
                    new_table,
                )?;
            }
            start = end;
        }
        Ok(())
    }

    /// Replaces a page, or nothing, by a table of smaller ones that means the same.
    fn split(
        &mut self,
        table: HostPhysAddr,
        index: usize,
        level: u32,
        entry: u64,
        new_table: NewTable<'_>,
    ) -> Result<HostPhysAddr, OutOfMemory> {
        let smaller = new_table()?;
        if entry != 0 {
            let flags = entry & !ADDRESS & !LARGE;
            for i in 0..ENTRIES {
                let start = (entry & ADDRESS) + i as u64 * span(level - 1);
                self.write(smaller, i, page(start, level - 1, flags));
            }
        }
        // Rights are restricted by the pages' own entries only.
        self.write(table, index, smaller.0 | PRESENT | WRITABLE);
        Ok(smaller)
    }

    /// Returns what may be done with the page that holds `address`; `None` if it is not mapped.
    #[must_use]
    pub(crate) fn protection(&self, address: u64) -> Option<Protection> {
        let (entry, _) = self.find(address)?;
        Some(if entry & WRITABLE != 0 {
            Protection::Data
        } else if entry & self.no_execute != 0 {
            Protection::Constants
        } else {
            Protection::Code
        })
    }

    /// Returns the physical address that `address` is mapped to.
    #[cfg(test)]
    pub(super) fn translate(&self, address: u64) -> Option<u64> {
        let (entry, level) = self.find(address)?;
        Some((entry & ADDRESS) + address % span(level))
    }

    /// Returns the entry of the page that holds `address`, and its level; `None` if it is not mapped.
    fn find(&self, address: u64) -> Option<(u64, u32)> {
        if address >= Self::REACH {
            return None;
        }
        let mut table = self.root;
        let mut level = 4;
        loop {
            let entry = self.read(table, (address / span(level)) as usize % ENTRIES);
            if entry == 0 {
                return None;
            }
            if is_page(entry, level) {
                return Some((entry, level));
            }
            table = HostPhysAddr(entry & ADDRESS);
            level -= 1;
        }
    }

    fn read(&self, table: HostPhysAddr, index: usize) -> u64 {
        // SAFETY: `table` is a table of ours, reachable at its physical address, and
        // `index` is below 512. Volatile, as the CPU sets bits in it too.
        unsafe { (table.0 as *const u64).add(index).read_volatile() }
    }

    fn write(&mut self, table: HostPhysAddr, index: usize, entry: u64) {
        // SAFETY: as for `read`; what the entry means is the business of `set`'s caller.
        unsafe { (table.0 as *mut u64).add(index).write_volatile(entry) }
    }
}

/// Returns whether a present entry is a page rather than a table.
const fn is_page(entry: u64, level: u32) -> bool {
    entry & PRESENT != 0 && (level == 1 || entry & LARGE != 0)
}

/// Returns the entry for a page of `level`; 0 if `flags` are.
const fn page(start: u64, level: u32, flags: u64) -> u64 {
    if flags == 0 {
        0
    } else if level == 1 {
        start | flags
    } else {
        start | flags | LARGE
    }
}
