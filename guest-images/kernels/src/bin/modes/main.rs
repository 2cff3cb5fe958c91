//! Every operating mode of the CPU, and interrupts in each: from long mode down to real mode and
//! back. SDM vol. 3A, 10.8 and 10.9.
//!
//! The journey itself is in [`journey`]; what it found on the way is checked here, in long mode.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod journey;

use arch::ExceptionVector;
use arch::apic::{Register, delivery_mode, lvt};
use kernels::interrupts::{clear_handler, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::memory::{self, LARGE, PRESENT, WRITABLE};
use kernels::{Report, pic, segments};

use journey::{Finding, MAGIC_PLACE, Stage};

/// #UD.
const INVALID_OPCODE: u8 = ExceptionVector::InvalidOpcode as u8;
/// The vector of the software interrupt.
const SOFTWARE: u8 = 0x30;

/// The page-directory entry of the window, where paging shows other memory than without: 1 GiB up.
const WINDOW_ENTRY_4M: usize = 256;

const FIRST_MAGIC: u32 = 0x600d_f00d;
const SECOND_MAGIC: u32 = 0x0ddb_a115;
/// The memory that the window leads to after the page-directory pointer has changed.
const SECOND_MEMORY: u64 = 0x20_0000;

/// A table of 32-bit interrupt gates. SDM vol. 3A, 6.11.
fn interrupt_table_32() -> u64 {
    let table = memory::allocate().cast::<u64>();
    for (vector, handler) in [
        (
            INVALID_OPCODE,
            journey::handler(journey::Handler::InvalidOpcode32),
        ),
        (pic::BASE, journey::handler(journey::Handler::Tick32)),
        (SOFTWARE, journey::handler(journey::Handler::Software32)),
    ] {
        let gate = u64::from(handler & 0xffff)
            | u64::from(segments::CODE_32) << 16
            | 0x8e00 << 32
            | u64::from(handler >> 16) << 48;
        // SAFETY: a fresh page has room for 256 gates and more.
        unsafe { table.add(vector.into()).write(gate) };
    }
    table as u64
}

/// The real-mode handlers, in the table at address 0.
fn fill_real_mode_vectors() {
    for (vector, handler) in [
        (
            INVALID_OPCODE,
            journey::handler(journey::Handler::InvalidOpcode16),
        ),
        (pic::BASE, journey::handler(journey::Handler::Tick16)),
        (SOFTWARE, journey::handler(journey::Handler::Software16)),
    ] {
        // SAFETY: the interrupt vector table of real mode, which nothing else uses any more. The
        // handlers are in segment 0, at offsets below 64 KiB.
        unsafe { ((usize::from(vector) * 4) as *mut u32).write_volatile(handler) };
    }
}

/// PAE page tables: 1 GiB one to one, and a window to the beginning of memory above it. Gives the
/// root, and the entry that leads the window to [`SECOND_MEMORY`] instead.
fn pae_tables() -> (u64, u64) {
    let [root, identity, first, second] = [(); 4].map(|()| memory::allocate().cast::<u64>());
    // SAFETY: fresh pages of 512 entries each.
    unsafe {
        for entry in 0..512 {
            identity
                .add(entry)
                .write((entry as u64) << 21 | LARGE | WRITABLE | PRESENT);
        }
        first.write(LARGE | WRITABLE | PRESENT);
        second.write(SECOND_MEMORY | LARGE | WRITABLE | PRESENT);
        root.write(identity as u64 | PRESENT);
        root.add(1).write(first as u64 | PRESENT);
    }
    (root as u64, second as u64 | PRESENT)
}

/// 32-bit page tables of 4 MiB pages, with the same window.
fn tables_32() -> u64 {
    let root = memory::allocate().cast::<u32>();
    // SAFETY: a fresh page of 1024 entries.
    unsafe {
        for entry in 0..256_usize {
            root.add(entry)
                .write((entry as u32) << 22 | (LARGE | WRITABLE | PRESENT) as u32);
        }
        root.add(WINDOW_ENTRY_4M)
            .write((LARGE | WRITABLE | PRESENT) as u32);
    }
    root as u64
}

fn run(report: &mut Report) {
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    pic::unmask(0);
    set_handler(pic::BASE, |_| {
        journey::count_tick();
        pic::end(0);
    });
    fill_real_mode_vectors();
    // SAFETY: memory that neither the kernel nor the journey uses otherwise.
    unsafe {
        (MAGIC_PLACE as *mut u32).write_volatile(FIRST_MAGIC);
        ((SECOND_MEMORY + MAGIC_PLACE) as *mut u32).write_volatile(SECOND_MAGIC);
    }
    for _ in 0..3 {
        let (pae_root, second_entry) = pae_tables();
        let findings = journey::make(&Stage {
            interrupt_table_32: interrupt_table_32(),
            pae_root,
            second_entry,
            root_32: tables_32(),
        });
        check(report, &findings, lapic.read(Register::VERSION));
    }
    lapic.write(Register::LVT_LINT0, lvt::MASKED);
    clear_handler(pic::BASE);
}

fn check(report: &mut Report, findings: &journey::Findings, version: u32) {
    let vendor = core::arch::x86_64::__cpuid(0).ebx;
    let expected: [(&str, Finding, u32); 24] = [
        (
            "compatibility mode: 32-bit code",
            Finding::CompatibilityDecrement,
            4,
        ),
        (
            "compatibility mode: an interrupt",
            Finding::CompatibilityTick,
            1,
        ),
        ("protected mode: long mode is off", Finding::Efer, 0),
        (
            "protected mode: 32-bit code",
            Finding::ProtectedDecrement,
            4,
        ),
        ("protected mode: an interrupt", Finding::ProtectedTick, 2),
        ("protected mode: #UD", Finding::ProtectedFault, 1),
        ("protected mode: INT n", Finding::ProtectedSoftware, 1),
        ("PAE: translation", Finding::PaeMemory, FIRST_MAGIC),
        ("PAE: an interrupt", Finding::PaeTick, 3),
        ("PAE: #UD", Finding::PaeFault, 2),
        (
            "PAE: translation by another pointer",
            Finding::PaeOtherMemory,
            SECOND_MAGIC,
        ),
        ("32-bit paging: translation", Finding::Memory32, FIRST_MAGIC),
        ("32-bit paging: an interrupt", Finding::Tick32, 4),
        (
            "16-bit protected mode: 16-bit code",
            Finding::Code16,
            0x1234,
        ),
        ("16-bit protected mode: an interrupt", Finding::Tick16, 5),
        ("real mode: CR0.PE", Finding::RealStatus, 0),
        ("real mode: a segment", Finding::RealSegment, FIRST_MAGIC),
        ("real mode: an interrupt", Finding::RealTick, 6),
        ("real mode: #UD", Finding::RealFault, 3),
        ("real mode: INT n", Finding::RealSoftware, 2),
        ("real mode: CPUID", Finding::RealCpuid, vendor),
        ("real mode: a far call", Finding::RealFarCall, 0xca11),
        (
            "real mode with a large segment: device memory",
            Finding::UnrealDevice,
            version,
        ),
        ("real mode: string input", Finding::RealInput, 0x5a5a),
    ];
    for (name, finding, value) in expected {
        report.equal(name, findings.get(finding), value);
    }
}

kernels::kernel!(run);
