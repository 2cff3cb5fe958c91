//! Pages that the processor reads by physical address.

use crate::addr::{HostPhysAddr, PAGE_SIZE};

/// One zeroed, aligned 4 KiB page, as VMXON regions, VMCSs, bitmaps and EPT tables are.
///
/// tarpit maps all memory one to one, so the page's address is its physical address.
#[repr(C, align(4096))]
pub struct Page(pub [u64; PAGE_SIZE as usize / 8]);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE as usize / 8]);

    /// The physical address of this page.
    #[must_use]
    pub fn address(&self) -> HostPhysAddr {
        HostPhysAddr(core::ptr::from_ref(self) as u64)
    }
}
