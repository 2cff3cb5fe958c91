//! Where everything is, and how much there is of it.

#![cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "the rest of it runs on bare metal only")
)]

/// The address at which the kernel has the first 16 MiB of memory, in each address space. Its segments begin there,
/// so that it has the addresses that it was linked for.
pub(crate) const KERNEL: u32 = 0x8000_0000;
/// Large pages of the kernel's, of 4 MiB.
pub(crate) const KERNEL_PAGES: usize = 4;

/// The pages of a process, one behind the other: the program, which all share and nobody writes; its data and its
/// stack, which are private; and the counters, which all share on purpose and write.
pub(crate) const CODE: u32 = 0x4000_0000;
pub(crate) const DATA: u32 = CODE + 0x1000;
pub(crate) const STACK: u32 = CODE + 0x2000;
pub(crate) const SHARED: u32 = CODE + 0x3000;

/// Frames for page directories, page tables and private pages.
pub(crate) const FRAMES: usize = 40;
/// The frames of a process that shares none of them: a page directory, a page table, data and stack.
pub(crate) const FRAMES_OF_A_PROCESS: usize = 4;
/// The most processes at a time.
pub(crate) const SLOTS: usize = 6;
/// The processes at the start: those that compute, and the hopper behind them.
pub(crate) const PROCESSES: usize = 3;
pub(crate) const HOPPER: usize = PROCESSES - 1;

pub(crate) const TICKS_PER_SECOND: u32 = 250;
pub(crate) const TICKS_PER_SLICE: u32 = 2;
pub(crate) const TICKS_PER_REPORT: u32 = 20;

/// Steps of a unit of work, of four instructions each.
pub(crate) const STEPS_PER_UNIT: u32 = 6250;
/// Units between two hops: 400,000 instructions.
pub(crate) const UNITS_PER_HOP: u32 = 16;

/// The computation of a step: `x * FACTOR + TERM`.
pub(crate) const FACTOR: u32 = 1_664_525;
pub(crate) const TERM: u32 = 1_013_904_223;

/// Selectors.
pub(crate) mod selector {
    pub(crate) const LONG_CODE: u16 = 0x08;
    pub(crate) const FLAT_DATA: u16 = 0x10;
    pub(crate) const FLAT_CODE: u16 = 0x18;
    pub(crate) const KERNEL_CODE: u16 = 0x20;
    pub(crate) const KERNEL_DATA: u16 = 0x28;
    pub(crate) const USER_CODE: u16 = 0x33;
    pub(crate) const USER_DATA: u16 = 0x3b;
    pub(crate) const TSS: u16 = 0x40;
}

/// Bits of page-table entries. SDM vol. 3A, table 4-6.
pub(crate) mod entry {
    use arch::PageTableFlags;

    pub(crate) const PRESENT: u32 = PageTableFlags::PRESENT.bits() as u32;
    pub(crate) const WRITABLE: u32 = PageTableFlags::WRITABLE.bits() as u32;
    pub(crate) const USER: u32 = PageTableFlags::USER_ACCESSIBLE.bits() as u32;
    pub(crate) const LARGE: u32 = PageTableFlags::HUGE_PAGE.bits() as u32;
    /// Ignored by the processor: a page that is to be copied when it is written.
    pub(crate) const COPY_ON_WRITE: u32 = 1 << 9;
}

/// Numbers of system calls, in EAX.
pub(crate) mod call {
    /// Makes a copy of the process. EAX is 0 in it, and 1 in the parent.
    pub(crate) const FORK: u32 = 1;
    /// Begins anew with fresh private pages.
    pub(crate) const EXEC: u32 = 2;
    /// Ends the process.
    pub(crate) const EXIT: u32 = 3;
}

/// Ways to hop, in [`Shared::way`].
pub(crate) mod way {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const FORK: u32 = 1;
    pub(crate) const EXEC: u32 = 2;
}

/// The contents of the page at [`SHARED`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    /// Units of work that each has done; the hopper's, whoever it was.
    pub(crate) units: [u32; PROCESSES],
    /// The number of times that registers or private memory were not as they should be.
    pub(crate) wrong: u32,
    pub(crate) hops: u32,
    /// The way to hop: one of [`way`].
    pub(crate) way: u32,
}

/// The bytes of the text that the hopper, and nobody else, has in its memory.
pub(crate) const TEXT: &[u8] = b"hops: it is me who hops.";
/// What the bytes of the text are XORed with in the program's image: the hopper puts the text together itself.
pub(crate) const KEY: u8 = 0x55;

/// The beginning of the page at [`DATA`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Data {
    /// The first value of a unit's computation, and the last.
    pub(crate) seed: u32,
    pub(crate) expected: u32,
    /// The address of the process's counter of units.
    pub(crate) counter: u32,
    /// The number of forks since the program has begun.
    pub(crate) generation: u32,
    /// Nonzero once the program is at its end: a new program must not see that.
    pub(crate) used: u32,
    pub(crate) scrambled: [u8; TEXT.len()],
    pub(crate) text: [u8; TEXT.len()],
}

/// Returns the result of a unit's computation that begins with `seed`.
pub(crate) const fn expected_result(seed: u32) -> u32 {
    let mut value = seed;
    let mut step = 0;
    while step < STEPS_PER_UNIT {
        value = value.wrapping_mul(FACTOR).wrapping_add(TERM);
        step += 1;
    }
    value
}
