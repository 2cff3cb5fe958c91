//! Address spaces that differ in a page.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::SIZE_2M;
use kernels::memory::{self, PRESENT, UNMAPPED, WRITABLE};

/// The address at which each address space has a page of its own.
const PRIVATE: u64 = UNMAPPED;
/// The address at which all have the same page, by a table of its own.
const SHARED: u64 = UNMAPPED + SIZE_2M;
/// The content of the page that all have.
const SHARED_CONTENT: u64 = 0x5a5a;
/// Page-table entry: global.
const GLOBAL: u64 = arch::PageTableFlags::GLOBAL.bits();

/// The number of reads that did not find what the address space has there.
static WRONG: AtomicU64 = AtomicU64::new(0);

/// An address space with two roots, as of a process under page-table isolation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) root: u64,
    pub(crate) second_root: u64,
    /// The content of its page.
    content: u64,
}

impl Space {
    /// Makes some that have the page at [`SHARED`] in common.
    pub(crate) fn several<const N: usize>() -> [Self; N] {
        let shared = memory::allocate().cast::<u64>();
        // SAFETY: a fresh page.
        unsafe { shared.write(SHARED_CONTENT) };
        core::array::from_fn(|number| {
            let content = 0x1000 + number as u64;
            let page = memory::allocate().cast::<u64>();
            let root = memory::new_root();
            // SAFETY: the page is fresh; the addresses are beyond the one-to-one map.
            unsafe {
                page.write(content);
                memory::map(root, PRIVATE, page as u64, PRESENT | WRITABLE);
                memory::map(root, SHARED, shared as u64, PRESENT | WRITABLE | GLOBAL);
            }
            Self {
                root,
                second_root: memory::second_root(root),
                content,
            }
        })
    }

    /// Loads `cr3`, which holds one of its roots.
    #[inline(always)]
    pub(crate) fn load(cr3: u64) {
        // SAFETY: all address spaces have the one-to-one map.
        unsafe { memory::load_root(cr3) };
    }

    /// Reads its page. The address space is loaded.
    #[inline(always)]
    pub(crate) fn read(&self) {
        // SAFETY: it is mapped there, and the kernel has nothing there itself.
        if unsafe { read(PRIVATE) } != self.content {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Loads `cr3`, and reads its page.
    #[inline(always)]
    pub(crate) fn visit(&self, cr3: u64) {
        Self::load(cr3);
        self.read();
    }

    /// Reads the page that all have.
    #[inline(always)]
    pub(crate) fn read_shared(&self) {
        // SAFETY: as above.
        if unsafe { read(SHARED) } != SHARED_CONTENT {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Drops the translation of its page, in the address space that is loaded.
    pub(crate) fn invalidate_page() {
        // SAFETY: drops translations only.
        unsafe { asm!("invlpg [{}]", in(reg) PRIVATE, options(nostack, preserves_flags)) };
    }

    /// Executes INVPCID of this type for its page under `pcid`. SDM vol. 2A, "INVPCID".
    pub(crate) fn invalidate_pcid(kind: u64, pcid: u64) {
        // All but the first type want no address.
        let address = if kind == 0 { PRIVATE } else { 0 };
        let descriptor = [pcid, address];
        // SAFETY: drops translations only.
        unsafe {
            asm!("invpcid {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack));
        }
    }

    /// Writes to its root, in the kernel's half: nothing changes. The page is reached by the one-to-one
    /// map.
    pub(crate) fn write_root(&self) {
        const ENTRY: usize = 300;
        let entry = (self.root as *mut u64).wrapping_add(ENTRY);
        // SAFETY: an entry of a page table in the one-to-one map; it is not present and stays so.
        unsafe { entry.write_volatile(0) };
    }

    /// Reads from its root by the one-to-one map.
    pub(crate) fn read_root(&self) {
        // SAFETY: a page table in the one-to-one map.
        let _ = unsafe { (self.root as *const u64).read_volatile() };
    }
}

/// # Safety
/// `address` must be mapped, to something that may be read.
#[inline(always)]
unsafe fn read(address: u64) -> u64 {
    let value;
    // SAFETY: by the contract.
    unsafe {
        asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// How many reads of a page have not found what the address space has there.
pub(crate) fn wrong_reads() -> u64 {
    WRONG.load(Ordering::Relaxed)
}
