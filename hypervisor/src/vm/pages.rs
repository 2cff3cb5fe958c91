//! The pages that the processor reads for a VM: EPT tables, VMCSs, bitmaps.

use crate::machine::memory::{self, PhysRange};
use alloc::vec::Vec;
use spin::Mutex;
use vmx::addr::PAGE_SIZE;
use vmx::page::Page;

/// The pages of one VM, given back when it goes.
///
/// A page is handed out as `&'static mut`, as `vmx` wants it, although it lives only as long
/// as the pool: whoever drops the pool makes sure that nothing uses its pages any more. A VM
/// owns its pool, and its VCPUs own the VM.
#[derive(Debug, Default)]
pub struct PagePool {
    pages: Mutex<Vec<PhysRange>>,
}

impl PagePool {
    /// A zeroed page; `None` if there is no memory.
    pub fn allocate(&self) -> Option<&'static mut Page> {
        let range = memory::allocate(PAGE_SIZE, PAGE_SIZE).ok()?;
        self.pages.lock().push(range);
        let page = range.start.0 as *mut Page;
        // SAFETY: a fresh, aligned, identity-mapped frame that is nobody else's; zeroed before
        // it is referred to.
        unsafe {
            page.write_bytes(0, 1);
            Some(&mut *page)
        }
    }
}

impl Drop for PagePool {
    fn drop(&mut self) {
        for range in self.pages.get_mut().drain(..) {
            memory::free(range);
        }
    }
}
