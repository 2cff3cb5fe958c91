//! IN and OUT in all widths, and their string forms.

use core::arch::asm;

use kernels::interrupts::{Fault, catch, last_fault, read_cr2};
use kernels::memory::{self, PRESENT, UNMAPPED, WRITABLE};
use kernels::{Report, acpi};
use x86_64::instructions::port::Port;

/// A port that no device has.
const NOBODY: u16 = 0x1234;
/// COM1's scratch register: holds a byte, and has no other effect.
const SCRATCH: u16 = 0x3ff;
/// RFLAGS.DF.
const DIRECTION: u64 = arch::RFlags::DIRECTION_FLAG.bits();

const COUNT: usize = 16;

fn scratch() -> u8 {
    // SAFETY: the scratch register has no effect.
    unsafe { Port::new(SCRATCH).read() }
}

fn set_scratch(value: u8) {
    // SAFETY: as above.
    unsafe { Port::new(SCRATCH).write(value) }
}

/// The values left in the registers of a string instruction.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    count: u64,
    address: u64,
}

macro_rules! string_input {
    ($instruction:literal, $port:expr, $address:expr, $count:expr) => {{
        let (mut count, mut address) = ($count as u64, $address as u64);
        // SAFETY: the destination is within a buffer of the caller's.
        unsafe {
            asm!($instruction, in("dx") $port, inout("rcx") count, inout("rdi") address);
        }
        Left { count, address }
    }};
}

macro_rules! string_output {
    ($instruction:literal, $port:expr, $address:expr, $count:expr) => {{
        let (mut count, mut address) = ($count as u64, $address as u64);
        // SAFETY: the source is within a buffer of the caller's.
        unsafe {
            asm!($instruction, in("dx") $port, inout("rcx") count, inout("rsi") address);
        }
        Left { count, address }
    }};
}

pub(crate) fn test(report: &mut Report) {
    test_single(report);
    test_input(report);
    test_output(report);
    test_faults(report);
}

fn test_single(report: &mut Report) {
    let input = |rax: u64| {
        let (byte, word, long): (u64, u64, u64);
        // SAFETY: nobody is there.
        unsafe {
            asm!("in al, dx", in("dx") NOBODY, inout("rax") rax => byte);
            asm!("in ax, dx", in("dx") NOBODY, inout("rax") rax => word);
            asm!("in eax, dx", in("dx") NOBODY, inout("rax") rax => long);
        }
        (byte, word, long)
    };
    let (byte, word, long) = input(0x1111_2222_3333_4444);
    report.equal(
        "IN AL of no device, and the rest of RAX kept",
        byte,
        0x1111_2222_3333_44ff,
    );
    report.equal(
        "IN AX of no device, and the rest of RAX kept",
        word,
        0x1111_2222_3333_ffff,
    );
    report.equal("IN EAX of no device, and RAX extended", long, 0xffff_ffff);
    // SAFETY: nobody is there.
    unsafe {
        Port::new(NOBODY).write(1_u8);
        Port::new(NOBODY).write(1_u16);
        Port::new(NOBODY).write(1_u32);
    }
    report.holds("OUT to no device does nothing", true);
    for value in [0x00, 0x5a, 0xff] {
        set_scratch(value);
        report.equal("OUT and IN of a register", scratch(), value);
    }
    let immediate: u8;
    // SAFETY: reads port 0x61, which has no effect.
    unsafe { asm!("in al, 0x61", out("al") immediate) };
    report.holds("IN with an immediate port", immediate != 0xff);
    if let Some((port, _)) = acpi::pm_timer() {
        let mut port = Port::<u32>::new(port);
        // SAFETY: the PM timer touches no memory.
        let (first, second) = unsafe { (port.read(), port.read()) };
        report.holds(
            "32-bit IN of the PM timer advances",
            second.wrapping_sub(first) & 0xff_ffff < 0x80_0000,
        );
    }
}

fn test_input(report: &mut Report) {
    let mut buffer = [0_u8; COUNT];
    let start = buffer.as_mut_ptr() as u64;
    set_scratch(0x5a);
    let left = string_input!("rep insb", SCRATCH, start, 5);
    report.same(
        "REP INSB: registers",
        left,
        Left {
            count: 0,
            address: start + 5,
        },
    );
    let mut expected = [0; COUNT];
    expected[..5].fill(0x5a);
    report.same("REP INSB: memory", buffer, expected);

    let left = string_input!("rep insw", NOBODY, start, 3);
    report.same(
        "REP INSW: registers",
        left,
        Left {
            count: 0,
            address: start + 6,
        },
    );
    expected[..6].fill(0xff);
    report.same("REP INSW: memory", buffer, expected);

    buffer.fill(0);
    let left = string_input!("rep insd", NOBODY, start + 1, 2);
    report.same(
        "REP INSD: registers",
        left,
        Left {
            count: 0,
            address: start + 9,
        },
    );
    expected = [0; COUNT];
    expected[1..9].fill(0xff);
    report.same("REP INSD unaligned: memory", buffer, expected);

    let left = string_input!("insb", SCRATCH, start, 7);
    report.same(
        "INSB: registers",
        left,
        Left {
            count: 7,
            address: start + 1,
        },
    );
    report.equal("INSB: memory", buffer[0], 0x5a);

    buffer.fill(0);
    let left = string_input!("rep insb", SCRATCH, start, 0);
    report.same(
        "REP INSB of nothing: registers",
        left,
        Left {
            count: 0,
            address: start,
        },
    );
    report.same("REP INSB of nothing: memory", buffer, [0; COUNT]);

    let left = string_input!("std\nrep insb\ncld", SCRATCH, start + 5, 3);
    report.same(
        "REP INSB downwards: registers",
        left,
        Left {
            count: 0,
            address: start + 2,
        },
    );
    expected = [0; COUNT];
    expected[3..6].fill(0x5a);
    report.same("REP INSB downwards: memory", buffer, expected);

    buffer.fill(0);
    // With a 32-bit address size, RDI's and RCX's upper halves do not count, and are cleared.
    let left = string_input!(
        "rep ins byte ptr es:[edi], dx",
        SCRATCH,
        start | 0xdead_0000_0000_0000,
        0xbeef_0000_0000_0002_u64
    );
    report.same(
        "REP INSB by EDI: registers",
        left,
        Left {
            count: 0,
            address: start + 2,
        },
    );
    report.same("REP INSB by EDI: memory", (buffer[1], buffer[2]), (0x5a, 0));
    core::hint::black_box(&mut buffer);
}

fn test_output(report: &mut Report) {
    let buffer: [u8; COUNT] = core::array::from_fn(|index| 0x30 + index as u8);
    let start = core::hint::black_box(&buffer).as_ptr() as u64;
    let left = string_output!("rep outsb", SCRATCH, start, COUNT);
    report.same(
        "REP OUTSB: registers",
        left,
        Left {
            count: 0,
            address: start + COUNT as u64,
        },
    );
    report.equal("REP OUTSB: the last byte stays", scratch(), 0x3f);
    let left = string_output!("outsb", SCRATCH, start + 3, 9);
    report.same(
        "OUTSB: registers",
        left,
        Left {
            count: 9,
            address: start + 4,
        },
    );
    report.equal("OUTSB: the byte", scratch(), 0x33);
    let left = string_output!("std\nrep outsb\ncld", SCRATCH, start + 9, 5);
    report.same(
        "REP OUTSB downwards: registers",
        left,
        Left {
            count: 0,
            address: start + 4,
        },
    );
    report.equal("REP OUTSB downwards: the last byte stays", scratch(), 0x35);
    let left = string_output!("rep outsw", NOBODY, start, 4);
    report.same(
        "REP OUTSW: registers",
        left,
        Left {
            count: 0,
            address: start + 8,
        },
    );
    let left = string_output!("rep outsd", NOBODY, start, 4);
    report.same(
        "REP OUTSD: registers",
        left,
        Left {
            count: 0,
            address: start + 16,
        },
    );

    // By a segment base: FS is ahead by 8.
    let base = x86_64::VirtAddr::new(8);
    x86_64::registers::model_specific::FsBase::write(base);
    let left = string_output!("outs dx, byte ptr fs:[rsi]", SCRATCH, start, 1);
    x86_64::registers::model_specific::FsBase::write(x86_64::VirtAddr::zero());
    report.same(
        "OUTSB by FS: registers",
        left,
        Left {
            count: 1,
            address: start + 1,
        },
    );
    report.equal("OUTSB by FS: the byte", scratch(), 0x38);
    report.equal(
        "the direction flag is clear",
        x86_64::registers::rflags::read_raw() & DIRECTION,
        0,
    );
}

/// A string instruction that runs into a page that is not there has done what comes before it.
fn test_faults(report: &mut Report) {
    const PAGE: u64 = UNMAPPED + 0x1_0000;
    const END: u64 = PAGE + 0x1000;
    let page = memory::allocate();
    // SAFETY: a fresh page where nothing else is.
    unsafe {
        memory::map(memory::root(), PAGE, page as u64, PRESENT | WRITABLE);
        page.add(0xffe).write(0x11);
        page.add(0xfff).write(0x22);
    }
    set_scratch(0);
    let outcome = catch(|| {
        string_output!("rep outsb", SCRATCH, END - 2, 5);
    });
    report.same(
        "REP OUTSB into a missing page",
        outcome,
        Err(Fault::page_fault(0)),
    );
    report.equal("CR2 after it", read_cr2(), END);
    let frame = last_fault();
    report.same(
        "registers after it",
        Left {
            count: frame.rcx,
            address: frame.rsi,
        },
        Left {
            count: 3,
            address: END,
        },
    );
    report.equal("output before it", scratch(), 0x22);

    set_scratch(0x77);
    let outcome = catch(|| {
        string_input!("rep insb", SCRATCH, END - 2, 5);
    });
    report.same(
        "REP INSB into a missing page",
        outcome,
        Err(Fault::page_fault(2)),
    );
    report.equal("CR2 after it", read_cr2(), END);
    let frame = last_fault();
    report.same(
        "registers after it",
        Left {
            count: frame.rcx,
            address: frame.rdi,
        },
        Left {
            count: 3,
            address: END,
        },
    );
    // SAFETY: the page from above.
    let written = unsafe { page.add(0xffe).cast::<u16>().read() };
    report.equal("input before it", written, 0x7777);

    // SAFETY: as above; the page is read-only from here on.
    unsafe {
        memory::map(memory::root(), PAGE, page as u64, PRESENT);
        memory::load_root(memory::root());
    }
    let outcome = catch(|| {
        string_input!("insb", SCRATCH, PAGE, 1);
    });
    report.same(
        "INSB into a read-only page",
        outcome,
        Err(Fault::page_fault(3)),
    );
    report.equal("CR2 after it", read_cr2(), PAGE);
}
