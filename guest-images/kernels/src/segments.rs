//! The GDT and the TSS.

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment, SegmentSelector};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::tss::TaskStateSegment;

/// 64-bit kernel code.
pub const KERNEL_CODE: u16 = 0x08;
/// Kernel data, flat.
pub const KERNEL_DATA: u16 = 0x10;
/// User data, flat, with its RPL.
pub const USER_DATA: u16 = 0x18 | 3;
/// 64-bit user code, with its RPL.
pub const USER_CODE: u16 = 0x20 | 3;
/// 32-bit kernel code, flat: compatibility mode, or protected mode.
pub const CODE_32: u16 = 0x28;
/// 16-bit kernel code at base 0.
pub const CODE_16: u16 = 0x30;
/// 16-bit data at base 0, with a limit of 64 KiB.
pub const DATA_16: u16 = 0x38;
/// The TSS.
pub const TASK_STATE: u16 = 0x40;

/// The tables, which the CPU reads and, for the TSS's busy bit, writes.
struct Tables {
    gdt: UnsafeCell<[u64; 10]>,
    tss: UnsafeCell<TaskStateSegment>,
}

// SAFETY: the test kernels run on one CPU, and no interrupt handler touches the tables.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables {
    gdt: UnsafeCell::new([
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x0000_9b00_0000_ffff,
        0x0000_9300_0000_ffff,
        0,
        0,
    ]),
    tss: UnsafeCell::new(TaskStateSegment::new()),
};

/// Loads the tables and all segment registers, also for code that has changed them.
pub fn init() {
    let base = TABLES.tss.get() as u64;
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let low = limit
        | (base & 0x00ff_ffff) << 16
        | 0x89 << 40 // present, available 64-bit TSS
        | (base >> 24 & 0xff) << 56;
    // SAFETY: single-threaded start-up; the descriptors above are flat segments like those in use.
    unsafe {
        let gdt = &mut *TABLES.gdt.get();
        gdt[8] = low;
        gdt[9] = base >> 32;
        load_gdt();
        CS::set_reg(SegmentSelector(KERNEL_CODE));
        SS::set_reg(SegmentSelector(KERNEL_DATA));
        DS::set_reg(SegmentSelector(KERNEL_DATA));
        ES::set_reg(SegmentSelector(KERNEL_DATA));
        load_tss(SegmentSelector(TASK_STATE));
    }
}

/// Loads GDTR, for code that has changed it.
pub fn load_gdt() {
    let pointer = DescriptorTablePointer {
        limit: size_of::<[u64; 10]>() as u16 - 1,
        base: VirtAddr::new(TABLES.gdt.get() as u64),
    };
    // SAFETY: the table is static and valid.
    unsafe { lgdt(&pointer) }
}

/// Sets the stack of gates that [`interrupts::use_fault_stack`](crate::interrupts::use_fault_stack) has made.
///
/// # Safety
/// `top` must be the end of a stack that is in no other use.
pub unsafe fn set_fault_stack(top: u64) {
    // SAFETY: no reference to the TSS is held anywhere.
    unsafe { (*TABLES.tss.get()).interrupt_stack_table[0] = VirtAddr::new(top) }
}

/// Sets the stack that an interrupt in user mode switches to.
///
/// # Safety
/// `top` must be the end of a stack that is in no other use.
pub unsafe fn set_kernel_stack(top: u64) {
    // SAFETY: no reference to the TSS is held anywhere.
    unsafe { (*TABLES.tss.get()).privilege_stack_table[0] = VirtAddr::new(top) }
}
