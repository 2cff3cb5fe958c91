//! Pages and page tables beyond the one-to-one map that the kernels start with.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::PageTableFlags;
use arch::paging::{ADDRESS, ENTRIES, PAGE_SIZE};
use x86_64::registers::control::Cr3;

/// Bytes in a page.
pub const PAGE: usize = PAGE_SIZE as usize;

/// Page-table entry: present.
pub const PRESENT: u64 = PageTableFlags::PRESENT.bits();
/// Page-table entry: writable.
pub const WRITABLE: u64 = PageTableFlags::WRITABLE.bits();
/// Page-table entry: accessible in user mode.
pub const USER: u64 = PageTableFlags::USER_ACCESSIBLE.bits();
/// Page-table entry, but the last level's: a page, not a table.
pub const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();
/// Page-table entry: no instruction fetches.
pub const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();

/// An address that no kernel maps at start: beyond the one-to-one map, in its PML4 entry's range.
pub const UNMAPPED: u64 = 0x10_0000_0000;

const POOL_PAGES: usize = 128;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE]>);

// SAFETY: each page is given out once.
unsafe impl Sync for Page {}

static POOL: [Page; POOL_PAGES] = [const { Page(UnsafeCell::new([0; PAGE])) }; POOL_PAGES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Returns a zeroed page, for good. Its address is both virtual and physical.
///
/// # Panics
/// When all are used up.
#[must_use]
pub fn allocate() -> *mut u8 {
    let page = POOL
        .get(NEXT.fetch_add(1, Ordering::Relaxed))
        .expect("enough pages for a test");
    page.0.get().cast()
}

/// Returns the root of the address space that is loaded.
#[must_use]
pub fn root() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// Loads `root` into CR3.
///
/// # Safety
/// The kernel's own code, data and stack must be mapped there as they are now.
pub unsafe fn load_root(root: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags));
    }
}

/// Returns a new address space with the same one-to-one map, and nothing else in common.
#[must_use]
pub fn new_root() -> u64 {
    let copy = |from: u64| {
        let to = allocate();
        // SAFETY: `from` is a page table in the one-to-one map, `to` a fresh page.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to, PAGE) };
        to as u64
    };
    let root = copy(root());
    let pml4 = root as *mut u64;
    // SAFETY: both are page tables in the one-to-one map. What the present address space has
    // beyond 4 GiB is not taken over.
    unsafe {
        let pdpt = copy(*pml4 & ADDRESS);
        *pml4 = pdpt | *pml4 & !ADDRESS;
        for entry in 4..512 {
            *(pdpt as *mut u64).add(entry) = 0;
        }
    }
    root
}

/// Returns another root of the address space `root`, which refers to the same tables: what one of the
/// two maps
/// later with tables of its own, the other does not.
#[must_use]
pub fn second_root(root: u64) -> u64 {
    let second = allocate();
    // SAFETY: `root` is a page table in the one-to-one map, `second` a fresh page.
    unsafe { core::ptr::copy_nonoverlapping(root as *const u8, second, PAGE) };
    second as u64
}

/// Makes the one-to-one map's pages global or not, in all address spaces. Takes effect for what is
/// cached only once it is flushed.
pub fn make_global(global: bool) {
    const GLOBAL: u64 = PageTableFlags::GLOBAL.bits();
    // The first entry of the PML4, and of four PDPTEs all large pages.
    // SAFETY: page tables are in the one-to-one map, and those of the kernels' start have this shape.
    unsafe {
        let directories = (*(root() as *const u64) & ADDRESS) as *const u64;
        for directory in 0..4 {
            let pages = (*directories.add(directory) & ADDRESS) as *mut u64;
            for page in 0..ENTRIES {
                let entry = pages.add(page);
                *entry = if global {
                    *entry | GLOBAL
                } else {
                    *entry & !GLOBAL
                };
            }
        }
    }
}

/// Maps the page at `virt` to `phys` in the address space `root`, with `flags` at the last level.
/// Takes effect for a page that was mapped before only once it is flushed.
///
/// # Safety
/// `root` must be an address space made here or at start, and `virt` not in the one-to-one map.
///
/// # Panics
/// If there are not enough pages for the tables.
pub unsafe fn map(root: u64, virt: u64, phys: u64, flags: u64) {
    let mut table = root as *mut u64;
    for level in [39, 30, 21] {
        let index = (virt >> level & 0x1ff) as usize;
        // SAFETY: page tables are in the one-to-one map, and an index has nine bits.
        unsafe {
            let entry = table.add(index);
            if *entry & PRESENT == 0 {
                *entry = allocate() as u64;
            }
            // Permissions are decided at the last level.
            *entry |= PRESENT | WRITABLE | USER;
            table = (*entry & ADDRESS) as *mut u64;
        }
    }
    // SAFETY: as above.
    unsafe { *table.add((virt >> 12 & 0x1ff) as usize) = phys & ADDRESS | flags };
}
