//! Stacks with a page under them that faults.

use vmx::addr::PAGE_SIZE;
use x86_64::VirtAddr;

use crate::machine::memory::{Frames, OutOfMemory, PhysRange};
use crate::machine::paging;

/// A stack in memory of its own. Never freed: its CPU may run on it as long as the machine does.
#[derive(Debug)]
pub(crate) struct GuardedStack {
    /// The guard page and, above it, the stack.
    range: PhysRange,
}

impl GuardedStack {
    /// Makes a stack of `size` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(size: u64) -> Result<Self, OutOfMemory> {
        let range = Frames::allocate(size.saturating_add(PAGE_SIZE), PAGE_SIZE)?.leak();
        let stack = Self { range };
        // SAFETY: the page was just allocated, and nothing but a stack overflow touches it.
        unsafe { paging::protect(stack.guard(), None)? };
        Ok(stack)
    }

    /// Returns where the stack pointer starts: the end of the stack, a multiple of 4 KiB.
    #[must_use]
    pub(crate) fn top(&self) -> VirtAddr {
        VirtAddr::new(self.range.end.0)
    }

    /// Returns the address of the guard page.
    #[must_use]
    pub(crate) const fn guard_address(&self) -> u64 {
        self.range.start.0
    }

    const fn guard(&self) -> PhysRange {
        PhysRange::new(self.range.start.0, self.range.start.0 + PAGE_SIZE)
    }

    /// Returns whether `address` is in the guard page.
    #[must_use]
    pub(crate) fn guards(&self, address: u64) -> bool {
        let guard = self.guard();
        (guard.start.0..guard.end.0).contains(&address)
    }
}
