//! Pages that the processor reads by physical address.

use alloc::alloc::alloc_zeroed;
use alloc::boxed::Box;
use core::alloc::Layout;

use crate::addr::{HostPhysAddr, PAGE_SIZE};

/// One zeroed, aligned 4 KiB page, as VMXON regions, VMCSs, bitmaps and EPT tables are.
///
/// tarpit maps all memory one to one, so the page's address is its physical address.
#[repr(C, align(4096))]
pub struct Page(pub [u64; PAGE_SIZE as usize / 8]);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE as usize / 8]);

    /// Returns a page of zeros from the heap, which it goes back to when it is dropped; `None` if
    /// there is no memory.
    #[must_use]
    pub fn try_new() -> Option<Box<Self>> {
        // SAFETY: the layout's size is not zero.
        let page: *mut Self = unsafe { alloc_zeroed(Layout::new::<Self>()) }.cast();
        // SAFETY: fresh memory of this layout from the global allocator; zeros are a page.
        (!page.is_null()).then(|| unsafe { Box::from_raw(page) })
    }

    /// Returns the physical address of this page.
    #[must_use]
    pub fn address(&self) -> HostPhysAddr {
        HostPhysAddr(core::ptr::from_ref(self) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_page_is_aligned_and_zero() {
        let page = Page::try_new().unwrap();
        assert!(page.address().is_aligned(PAGE_SIZE));
        assert!(page.0.iter().all(|&word| word == 0));
    }
}
