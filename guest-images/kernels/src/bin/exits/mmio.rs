//! Device memory by other ways: through other mappings, at odd places, with faults on the way.

use core::arch::asm;

use kernels::interrupts::{Fault, catch, last_fault, read_cr2};
use kernels::ioapic;
use kernels::memory::{self, PRESENT, UNMAPPED, WRITABLE};
use kernels::{Report, mmio, platform};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::FsBase;

/// Device memory's range, but no device.
const NOBODY: u64 = 0xfed9_0000;

pub(crate) fn test(report: &mut Report) {
    ioapic::mask_all();
    test_addresses(report);
    test_nobody(report);
    test_faults(report);
    test_code_across_pages(report);
}

fn set_index(value: u32) {
    // SAFETY: the I/O APIC's index register has no effect by itself.
    unsafe { mmio::write32(ioapic::SELECT, value) }
}

fn index() -> u32 {
    // SAFETY: as above.
    unsafe { mmio::read32(ioapic::SELECT) }
}

fn test_addresses(report: &mut Report) {
    const ALIAS: u64 = UNMAPPED + 0x2_0000;
    // SAFETY: an unused address is led to the I/O APIC.
    let through_alias = unsafe {
        memory::map(memory::root(), ALIAS, ioapic::ADDRESS, PRESENT | WRITABLE);
        mmio::write32(ALIAS, 0x2a);
        mmio::read32(ALIAS)
    };
    report.equal(
        "a device through another mapping: read",
        through_alias,
        0x2a,
    );
    report.equal("a device through another mapping: write", index(), 0x2a);

    set_index(0x15);
    let value: u32;
    // SAFETY: reads the index register.
    unsafe { asm!("movabs eax, dword ptr [{}]", const ioapic::SELECT, out("eax") value) };
    report.equal("a device by a 64-bit absolute address: read", value, 0x15);
    // SAFETY: writes the index register.
    unsafe { asm!("movabs dword ptr [{}], eax", const ioapic::SELECT, in("eax") 0x16) };
    report.equal(
        "a device by a 64-bit absolute address: write",
        index(),
        0x16,
    );
    FsBase::write(VirtAddr::new(ioapic::ADDRESS));
    let value: u32;
    // SAFETY: FS leads to the I/O APIC, and is put back.
    unsafe { asm!("xor {0:e}, {0:e}", "mov {0:e}, fs:[{0:r}]", out(reg) value) };
    FsBase::write(VirtAddr::zero());
    report.equal("a device by FS", value, 0x16);
    report.within("an I/O APIC has pins", u64::from(ioapic::pins()), 16..=240);
    for entry in [0x0000_0000_0001_0055, 0x0100_0000_0001_0066] {
        ioapic::set_entry(5, entry);
        report.equal("a redirection entry holds", ioapic::entry(5), entry);
    }
    ioapic::set_entry(5, ioapic::MASKED);
}

fn test_nobody(report: &mut Report) {
    if platform::is_tcg() {
        report.skip("device memory of nobody", "QEMU reads zeros there");
        return;
    }
    // SAFETY: nobody is there.
    unsafe {
        report.equal(
            "a byte of nobody",
            (NOBODY as *const u8).read_volatile(),
            u8::MAX,
        );
        report.equal(
            "a word of nobody",
            (NOBODY as *const u16).read_volatile(),
            u16::MAX,
        );
        report.equal("a long of nobody", mmio::read32(NOBODY), u32::MAX);
        report.equal("a quad of nobody", mmio::read64(NOBODY), u64::MAX);
        report.equal(
            "an odd quad of nobody",
            ((NOBODY + 3) as *const u64).read_unaligned(),
            u64::MAX,
        );
        report.equal(
            "a quad of nobody across pages",
            ((NOBODY + 0xffc) as *const u64).read_unaligned(),
            u64::MAX,
        );
        mmio::write64(NOBODY, 0);
        ((NOBODY + 0xffc) as *mut u64).write_unaligned(0);
        report.equal("nobody after a write", mmio::read64(NOBODY), u64::MAX);
    }
}

/// What faults on the way to or from a device does nothing, and faults as it does without one.
fn test_faults(report: &mut Report) {
    const MISSING: u64 = UNMAPPED + 0x3_0000;
    const READ_ONLY: u64 = UNMAPPED + 0x3_1000;
    let page = memory::allocate();
    // SAFETY: unused addresses.
    unsafe {
        memory::map(memory::root(), READ_ONLY, ioapic::ADDRESS, PRESENT);
        memory::map(memory::root(), READ_ONLY + 0x1000, page as u64, PRESENT);
    }
    set_index(0x11);
    // SAFETY: faults.
    let outcome = catch(|| unsafe { mmio::write32(READ_ONLY, 0x22) });
    report.same(
        "write of a device through a read-only page",
        outcome,
        Err(Fault::page_fault(3)),
    );
    report.equal("CR2 after it", read_cr2(), READ_ONLY);
    report.equal("the device after it", index(), 0x11);

    for (name, source, destination, error, cr2) in [
        (
            "MOVS from a device to a missing page",
            ioapic::SELECT,
            MISSING + 8,
            2,
            MISSING + 8,
        ),
        (
            "MOVS from a device to a read-only page",
            ioapic::SELECT,
            READ_ONLY + 0x1000,
            3,
            READ_ONLY + 0x1000,
        ),
        (
            "MOVS from a missing page to a device",
            MISSING + 4,
            ioapic::SELECT,
            0,
            MISSING + 4,
        ),
    ] {
        // SAFETY: faults.
        let outcome = catch(|| unsafe {
            asm!("movsd", inout("rsi") source => _, inout("rdi") destination => _);
        });
        report.same(name, outcome, Err(Fault::page_fault(error)));
        report.equal("CR2 after it", read_cr2(), cr2);
        let frame = last_fault();
        report.same(
            "RSI and RDI after it",
            (frame.rsi, frame.rdi),
            (source, destination),
        );
        report.equal("the device after it", index(), 0x11);
    }
}

/// An instruction that begins in one page and ends in another, which is elsewhere in memory.
fn test_code_across_pages(report: &mut Report) {
    const CODE: u64 = UNMAPPED + 0x4_0000;
    /// MOV EAX, [RDI + 0]; RET, the displacement in four bytes.
    const INSTRUCTIONS: [u8; 7] = [0x8b, 0x87, 0, 0, 0, 0, 0xc3];
    let (second, first) = (memory::allocate(), memory::allocate());
    set_index(0x2d);
    for in_first in 1..=5 {
        // SAFETY: fresh pages, mapped where nothing else is, hold the instructions.
        let value: u32 = unsafe {
            for (index, byte) in INSTRUCTIONS.into_iter().enumerate() {
                if index < in_first {
                    first.add(4096 - in_first + index).write(byte);
                } else {
                    second.add(index - in_first).write(byte);
                }
            }
            memory::map(memory::root(), CODE, first as u64, PRESENT);
            memory::map(memory::root(), CODE + 0x1000, second as u64, PRESENT);
            let value: u32;
            asm!("call {}", in(reg) CODE + 0x1000 - in_first as u64, in("rdi") ioapic::SELECT, out("eax") value);
            value
        };
        report.equal("a device read by code across two pages", value, 0x2d);
    }
}
