//! Where tarpit's own image lies in memory.
#![forbid(unsafe_code)]

use core::ops::Range;
use core::sync::atomic::AtomicU64;

/// The linker's view of the image: physical addresses, all but the guard multiples of 4 KiB
/// at the ends that matter for page protection.
#[derive(Clone, Debug)]
pub struct ImageLayout {
    /// The whole image, from the multiboot headers to the end of the BSS.
    pub image: Range<u64>,
    /// Code: read and execute.
    pub text: Range<u64>,
    /// Constants: read only.
    pub rodata: Range<u64>,
    /// The page under the boot CPU's stack that must fault when touched.
    pub boot_stack_guard: u64,
    /// The code where application processors wake up.
    pub trampoline: Trampoline,
}

/// Code that takes an application processor from real mode to
/// [`crate::machine::smp::start_application_processor`], to be copied to a page below 1 MiB.
#[derive(Clone, Debug)]
pub struct Trampoline {
    /// The code, less than a page, with its parameters in it.
    pub code: Range<u64>,
    /// The address in the code of four bytes for the root of the page tables.
    pub root: u64,
    /// The address in the code of four bytes for bits of EFER to be set besides LME.
    pub efer: u64,
    /// The variable in which the next processor to start finds the top of its stack.
    pub stack: &'static AtomicU64,
}
