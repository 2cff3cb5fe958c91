//! What an address space maps, to user mode or at all, by its page tables alone. Nothing is written: no
//! accessed flag is set.

use arch::PageTableFlags;
use arch::paging::ADDRESS;
use vmx::addr::{GuestPhysAddr, GuestVirtAddr};

use crate::guest_memory::GuestMemory;
use crate::suppression::address_space::{Root, RootFormat};

/// The part of an address space that is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The pages that user mode can read.
    User,
    /// All pages.
    All,
}

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const USER: u64 = PageTableFlags::USER_ACCESSIBLE.bits();
const WRITABLE: u64 = PageTableFlags::WRITABLE.bits();
const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();

/// A range of virtual addresses that one entry of a paging structure maps, or one or more that follow each
/// other do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Its first address.
    pub start: u64,
    /// The address behind it; the highest address of all if there is none behind.
    pub end: u64,
    /// The guest-physical address that it is mapped to, if it is mapped for whom it is asked for.
    pub frame: Option<GuestPhysAddr>,
    /// Whether the entries on the way to it give the right to write.
    pub writable: bool,
}

/// Returns the address behind the last one that is looked at. Of 64-bit address spaces it is the end
/// of the lower half, which user space begins with everywhere; 32-bit ones are divided in
/// different ways, and looked at wholly.
pub(super) const fn end(format: RootFormat) -> u64 {
    match format {
        RootFormat::Long => 1 << 47,
        RootFormat::Pae | RootFormat::Narrow => 1 << 32,
    }
}

/// Returns the region around `address`, mapped for `reach`. The right to execute does not matter;
/// reserved bits are not looked at, 4 MiB pages are taken to be switched on, and
/// 64-bit roots to have four levels, as all guests' do. A paging structure outside RAM maps
/// nothing.
pub(crate) fn region_at(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
    address: GuestVirtAddr,
    reach: Reach,
) -> Region {
    let address = address.0;
    let bits = if format == RootFormat::Narrow { 10 } else { 9 };
    let mut shift = match format {
        RootFormat::Long => 39,
        RootFormat::Pae => 30,
        RootFormat::Narrow => 22,
    };
    let mut table = root.address().0;
    let mut writable = true;
    loop {
        let index = address >> shift & ((1 << bits) - 1);
        let entry = format.table(table).entry(memory, index as usize);
        // PDPTEs of PAE paging have no rights and no size (SDM vol. 3A, table 4-8).
        let is_pdpte = format == RootFormat::Pae && shift == 30;
        let rights = if is_pdpte || reach == Reach::All {
            PRESENT
        } else {
            PRESENT | USER
        };
        let start = address >> shift << shift;
        let mut region = Region {
            start,
            end: start.saturating_add(1 << shift),
            frame: None,
            writable: false,
        };
        if entry & rights != rights {
            // Most tables are nearly empty, and looking them up from the root for each entry takes long.
            let count = if is_pdpte { 4 } else { 1 << bits };
            let behind = (index + 1) as usize..count;
            let found = format.table(table).first_with(memory, rights, behind);
            let next = found.map_or(count, |(next, _)| next);
            let length = (next as u64 - index) << shift;
            region.end = start.saturating_add(length);
            return region;
        }
        writable &= is_pdpte || entry & WRITABLE != 0;
        let is_large = entry & LARGE != 0 && shift <= 30 && !is_pdpte;
        if shift == 12 || is_large {
            let offset = (1 << shift) - 1;
            let frame = if format == RootFormat::Narrow && is_large {
                // PSE-36: bits 20:13 are bits 39:32 of the address (SDM vol. 3A, table 4-4).
                (entry >> 13 & 0xff) << 32 | (entry & 0xffc0_0000)
            } else {
                entry & ADDRESS & !offset
            };
            region.frame = Some(GuestPhysAddr(frame));
            region.writable = writable;
            return region;
        }
        table = entry & ADDRESS;
        shift -= bits;
    }
}

/// Returns the address of the highest page that user mode can read: in most systems the beginning of the stack,
/// which is at another address in each process, and stays there for as long as the program.
pub(crate) fn highest_page(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
) -> Option<u64> {
    let bits = if format == RootFormat::Narrow { 10 } else { 9 };
    let (mut shift, mut count) = match format {
        RootFormat::Long => (39, 256),
        RootFormat::Pae => (30, 4),
        RootFormat::Narrow => (22, 1 << bits),
    };
    let mut table = root.address().0;
    let mut address = 0;
    loop {
        let is_pdpt = format == RootFormat::Pae && shift == 30;
        let rights = if is_pdpt { PRESENT } else { PRESENT | USER };
        let (index, entry) = format.table(table).last_with(memory, rights, count)?;
        address |= (index as u64) << shift;
        let is_large = entry & LARGE != 0 && shift <= 30 && !is_pdpt;
        if shift == 12 || is_large {
            return Some(address + ((1 << shift) - (1 << 12)));
        }
        table = entry & ADDRESS;
        shift -= bits;
        count = 1 << bits;
    }
}
