//! Where tarpit's own image lies in memory.

use core::ops::Range;

/// The linker's view of the image: physical addresses, all but the guard multiples of 4 KiB
/// at the ends that matter for page protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayout {
    /// All of it, from the multiboot headers to the end of the BSS.
    pub image: Range<u64>,
    /// Code: read and execute.
    pub text: Range<u64>,
    /// Constants: read only.
    pub rodata: Range<u64>,
    /// The page under the boot CPU's stack that must fault when touched.
    pub boot_stack_guard: u64,
}
