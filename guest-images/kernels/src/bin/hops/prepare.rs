//! The tables and the first processes, made in long mode.

use core::mem::offset_of;
use core::ptr::{addr_of, addr_of_mut, write_bytes};

use arch::ExceptionVector;
use kernels::{memory, pic, println};

use crate::layout::{
    self, CODE, Data, FRAMES, HOPPER, KERNEL, KERNEL_PAGES, PROCESSES, STACK, Shared, entry,
    expected_result, selector,
};
use crate::program;
use crate::space::{self, Process};
use crate::trap::{self, Registers};
use crate::{journey, space::hops_frames};

const PAGE_FAULT: usize = ExceptionVector::Page as usize;
const EXCEPTIONS: usize = 32;
const SYSTEM_CALL: usize = 0x80;

/// EFLAGS of processes: interrupts are on. Bit 1 is always set.
const EFLAGS: u32 = 1 << 9 | 1 << 1;

/// An interrupt gate to `handler`, which ring 3 may call if `for_user`. SDM vol. 3A, 6.11.
fn gate(handler: unsafe extern "C" fn(), for_user: bool) -> u64 {
    let handler = handler as usize as u64;
    let access = if for_user { 0xee } else { 0x8e };
    handler & 0xffff | u64::from(selector::KERNEL_CODE) << 16 | access << 40 | (handler >> 16) << 48
}

fn fill_descriptor_tables() {
    const LIMIT: u64 = 0x000f_0000_0000_ffff;
    /// Present; 4 GiB in pages; 32 bits.
    const CODE_32: u64 = 0x00c0_9b00_0000_0000;
    const DATA_32: u64 = 0x00c0_9300_0000_0000;
    const LONG: u64 = 0x00a0_9b00_0000_0000;
    const FOR_USER: u64 = 0x6000_0000_0000;
    /// The base, of which nothing but the highest byte is not zero.
    const AT_KERNEL: u64 = (KERNEL as u64 >> 24) << 56;
    let tss = addr_of!(trap::hops_tss) as u64 + u64::from(KERNEL);
    let tss = 103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24) << 56;
    let gdt = [
        0,
        LIMIT | LONG,
        LIMIT | DATA_32,
        LIMIT | CODE_32,
        LIMIT | CODE_32 | AT_KERNEL,
        LIMIT | DATA_32 | AT_KERNEL,
        LIMIT | CODE_32 | FOR_USER,
        LIMIT | DATA_32 | FOR_USER,
        tss,
    ];
    let mut idt = [0; journey::IDT_ENTRIES];
    idt[..EXCEPTIONS].fill(gate(trap::hops_broken, false));
    idt[PAGE_FAULT] = gate(trap::hops_page_fault, false);
    idt[usize::from(pic::BASE)] = gate(trap::hops_tick, false);
    idt[SYSTEM_CALL] = gate(trap::hops_call, true);
    let mut tss = [0; 26];
    tss[0x08 / 4] = u32::from(selector::KERNEL_DATA);
    tss[0x64 / 4] = 104 << 16;
    // SAFETY: one CPU, and nobody looks at these before the journey.
    unsafe {
        addr_of_mut!(journey::hops_gdt).write(gdt);
        addr_of_mut!(journey::hops_idt).write(idt);
        addr_of_mut!(trap::hops_tss).write(tss);
    }
}

/// Makes a page directory of the kernel's, with all memory at its physical address as well if it is one for the `passage`.
fn kernel_directory(passage: bool) -> u32 {
    let directory = memory::allocate().cast::<u32>();
    for page in 0..KERNEL_PAGES {
        let flags = entry::PRESENT | entry::WRITABLE | entry::LARGE;
        let content = (page as u32) << 22 | flags;
        // SAFETY: a fresh page of 1024 entries.
        unsafe {
            directory.add((KERNEL >> 22) as usize + page).write(content);
            if passage {
                directory.add(page).write(content);
            }
        }
    }
    directory as u32
}

/// Copies the program to a page of its own.
fn program_page() -> u32 {
    let page = memory::allocate();
    let start = &raw const program::hops_program;
    let length = &raw const program::hops_program_end as usize - start as usize;
    // SAFETY: the program has far less than a page.
    unsafe { page.copy_from_nonoverlapping(start, length) };
    page as u32
}

/// Returns the data with which process `number` begins.
fn data_of(number: usize) -> Data {
    let seed = 0x1000 + number as u32;
    let is_hopper = number == HOPPER;
    Data {
        seed,
        expected: expected_result(seed),
        counter: layout::SHARED + (offset_of!(Shared, units) + 4 * number) as u32,
        generation: 0,
        used: 0,
        scrambled: core::array::from_fn(|at| {
            if is_hopper {
                layout::TEXT[at] ^ layout::KEY
            } else {
                0
            }
        }),
        text: [0; layout::TEXT.len()],
    }
}

/// Takes the frame of this number, which is zeroed.
fn take_frame(number: usize) -> *mut u32 {
    // SAFETY: nobody else has the frames, or looks at their owners, before the journey.
    unsafe {
        let frame = addr_of_mut!(hops_frames).cast::<[u8; 4096]>().add(number);
        write_bytes(frame, 0, 1);
        addr_of_mut!(space::hops_owners)
            .cast::<u8>()
            .add(number)
            .write(1);
        frame.cast()
    }
}

/// Makes process `number`, with the frames that are next.
fn make_process(number: usize, kernel: u32, code: u32, shared: u32) {
    let first = number * layout::FRAMES_OF_A_PROCESS;
    let [directory, table, data, stack] = core::array::from_fn(|at| take_frame(first + at));
    let writable = entry::PRESENT | entry::USER | entry::WRITABLE;
    let is_hopper = number == HOPPER;
    let entry_point = if is_hopper {
        0
    } else {
        &raw const program::hops_program_computes as u32 - &raw const program::hops_program as u32
    };
    let registers = Registers {
        eip: CODE + entry_point,
        cs: selector::USER_CODE.into(),
        eflags: EFLAGS,
        esp: STACK + 0x1000,
        ss: selector::USER_DATA.into(),
        ..Registers::default()
    };
    // SAFETY: fresh frames, of which the tables have 1024 entries each; and a kernel stack and a record of its own.
    unsafe {
        directory.copy_from_nonoverlapping(kernel as usize as *const u32, 1024);
        directory
            .add((CODE >> 22) as usize)
            .write(table as u32 | writable);
        let pages = [
            code | entry::PRESENT | entry::USER,
            data as u32 | writable,
            stack as u32 | writable,
            shared | writable,
        ];
        table.cast::<[u32; 4]>().write(pages);
        data.cast::<Data>().write(data_of(number));
        let stack_end = addr_of_mut!(space::hops_kernel_stacks)
            .cast::<[u8; 4096]>()
            .add(number + 1);
        let saved = stack_end.cast::<Registers>().sub(1);
        saved.write(registers);
        let record = addr_of_mut!(space::hops_processes).cast::<Process>();
        record.add(number).write(Process {
            directory: directory as u32,
            table: table as u32,
            esp: saved as u32,
            stack_end: stack_end as u32,
        });
    }
    let name = if is_hopper { "hopper" } else { "computes" };
    println!(
        "hops: process {number} {name} cr3={:#x}",
        directory as usize
    );
}

/// Prepares all for the journey, and returns where the shared page is.
pub(crate) fn processes() -> *const Shared {
    fill_descriptor_tables();
    let (kernel, passage) = (kernel_directory(false), kernel_directory(true));
    let code = program_page();
    let [shared, image] = [(); 2].map(|()| memory::allocate());
    for number in 0..PROCESSES {
        make_process(number, kernel, code, shared as u32);
    }
    // SAFETY: a fresh page, and what nobody looks at before the journey.
    unsafe {
        image.cast::<Data>().write(data_of(HOPPER));
        addr_of_mut!(space::hops_data_image).write(image as u32);
        addr_of_mut!(space::hops_shared).write(shared as u32);
        addr_of_mut!(space::hops_code).write(code);
        addr_of_mut!(space::hops_kernel_directory).write(kernel);
        addr_of_mut!(journey::hops_passage).write(passage);
        addr_of_mut!(trap::hops_until_report).write(layout::TICKS_PER_REPORT);
        let mut free_count = 0;
        for number in (PROCESSES * layout::FRAMES_OF_A_PROCESS..FRAMES).rev() {
            let frame = addr_of_mut!(hops_frames).cast::<[u8; 4096]>().add(number);
            let free = addr_of_mut!(space::hops_free).cast::<u32>();
            free.add(free_count).write(frame as u32);
            free_count += 1;
        }
        addr_of_mut!(space::hops_free_count).write(free_count as u32);
        let stacks = addr_of!(space::hops_kernel_stacks) as u32;
        let records = addr_of_mut!(space::hops_processes).cast::<Process>();
        for slot in PROCESSES..layout::SLOTS {
            (*records.add(slot)).stack_end = stacks + 4096 * (slot as u32 + 1);
        }
    }
    shared.cast()
}
