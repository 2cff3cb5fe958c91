//! Control registers, debug registers and XCR0.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};

use arch::cpuid::Leaf1Ecx;
use arch::{Cr0Flags, Cr4Flags};
use kernels::interrupts::{Fault, catch};
use kernels::{Report, memory, platform};

macro_rules! accessors {
    ($read:ident, $write:ident, $register:literal) => {
        fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading the register has no effect.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nostack)) };
            value
        }

        fn $write(value: u64) -> Result<(), Fault> {
            // SAFETY: the tests write values that leave this kernel's mode and paging as they are,
            // or that fault.
            catch(|| unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value, options(nostack)) })
        }
    };
}

accessors!(read_cr0, write_cr0, "cr0");
accessors!(read_cr3, write_cr3, "cr3");
accessors!(read_cr4, write_cr4, "cr4");
accessors!(read_cr8, write_cr8, "cr8");
accessors!(read_dr0, write_dr0, "dr0");
accessors!(read_dr3, write_dr3, "dr3");
accessors!(read_dr6, write_dr6, "dr6");
accessors!(read_dr7, write_dr7, "dr7");

const GP: Result<(), Fault> = Err(Fault::GENERAL_PROTECTION);

const CR0_PE: u64 = Cr0Flags::PROTECTED_MODE_ENABLE.bits();
const CR0_MP: u64 = Cr0Flags::MONITOR_COPROCESSOR.bits();
const CR0_EM: u64 = Cr0Flags::EMULATE_COPROCESSOR.bits();
const CR0_TS: u64 = Cr0Flags::TASK_SWITCHED.bits();
const CR0_ET: u64 = Cr0Flags::EXTENSION_TYPE.bits();
const CR0_NE: u64 = Cr0Flags::NUMERIC_ERROR.bits();
const CR0_WP: u64 = Cr0Flags::WRITE_PROTECT.bits();
const CR0_AM: u64 = Cr0Flags::ALIGNMENT_MASK.bits();
const CR0_NW: u64 = Cr0Flags::NOT_WRITE_THROUGH.bits();
const CR0_CD: u64 = Cr0Flags::CACHE_DISABLE.bits();
const CR0_PG: u64 = Cr0Flags::PAGING.bits();

const CR4_TSD: u64 = Cr4Flags::TIMESTAMP_DISABLE.bits();
const CR4_DE: u64 = Cr4Flags::DEBUGGING_EXTENSIONS.bits();
const CR4_PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
const CR4_PGE: u64 = Cr4Flags::PAGE_GLOBAL.bits();
const CR4_PCE: u64 = Cr4Flags::PERFORMANCE_MONITOR_COUNTER.bits();
const CR4_VMXE: u64 = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
const CR4_OSXSAVE: u64 = Cr4Flags::OSXSAVE.bits();

pub(crate) fn test(report: &mut Report) {
    test_cr0(report);
    test_cr3(report);
    test_cr4(report);
    test_cr8(report);
    test_debug_registers(report);
    test_xcr0(report);
}

fn test_cr0(report: &mut Report) {
    let cr0 = read_cr0();
    for (name, bit) in [
        ("CR0.MP", CR0_MP),
        ("CR0.EM", CR0_EM),
        ("CR0.TS", CR0_TS),
        ("CR0.WP", CR0_WP),
        ("CR0.AM", CR0_AM),
        ("CR0.NE", CR0_NE),
    ] {
        report.same(
            name,
            write_cr0(cr0 ^ bit).map(|()| read_cr0()),
            Ok(cr0 ^ bit),
        );
        report.same(name, write_cr0(cr0).map(|()| read_cr0()), Ok(cr0));
    }
    report.same(
        "CR0.ET is always set",
        write_cr0(cr0 & !CR0_ET).map(|()| read_cr0()),
        Ok(cr0 | CR0_ET),
    );
    report.same(
        "CR0.CD and NW can be set",
        write_cr0(cr0 | CR0_CD | CR0_NW).map(|()| read_cr0()),
        Ok(cr0 | CR0_CD | CR0_NW),
    );
    report.same("CR0 back", write_cr0(cr0), Ok(()));
    if platform::is_tcg() {
        report.skip("CR0 with illegal values", "TCG does not check");
    } else {
        for (name, value) in [
            ("CR0.PG without PE", cr0 & !CR0_PE),
            ("CR0.NW without CD", cr0 & !CR0_CD | CR0_NW),
            ("CR0 with upper bits", cr0 | 1 << 32),
        ] {
            report.same(name, write_cr0(value), GP);
        }
        report.equal("CR0 unharmed", read_cr0(), cr0);
    }
    let (machine_status, after_clts): (u64, u64);
    // SAFETY: TS is cleared again, and no code here uses the FPU. LMSW can set bits 0 to 3 only.
    unsafe {
        asm!("lmsw {0:x}", "mov {1}, cr0", in(reg) CR0_PE | CR0_TS, out(reg) machine_status);
        asm!("clts", "mov {}, cr0", out(reg) after_clts);
    }
    report.equal("LMSW sets TS", machine_status & 0xf, CR0_PE | CR0_TS);
    report.equal("CLTS clears TS", after_clts & 0xf, CR0_PE);
    let kept: u64;
    let word: u16;
    // SAFETY: as above; LMSW cannot clear PE.
    unsafe {
        asm!("lmsw {0:x}", "smsw {1:x}", "mov {2}, cr0", in(reg) 0_u64, out(reg) word, out(reg) kept);
    }
    report.equal("LMSW cannot clear PE", kept & CR0_PE, CR0_PE);
    report.equal("SMSW agrees with CR0", u64::from(word), kept & 0xffff);
    report.same(
        "CR0 back again",
        write_cr0(cr0).map(|()| read_cr0()),
        Ok(cr0),
    );
    // CR0.PG cannot be cleared in 64-bit mode.
    if !platform::is_tcg() {
        report.same(
            "CR0.PG cleared in 64-bit mode",
            write_cr0(cr0 & !CR0_PG),
            GP,
        );
    }
}

fn test_cr3(report: &mut Report) {
    let cr3 = read_cr3();
    let other = memory::new_root();
    report.same(
        "CR3 takes another root",
        write_cr3(other).map(|()| read_cr3()),
        Ok(other),
    );
    report.same(
        "CR3 keeps PCD and PWT",
        write_cr3(other | 0x18).map(|()| read_cr3()),
        Ok(other | 0x18),
    );
    report.same("CR3 back", write_cr3(cr3).map(|()| read_cr3()), Ok(cr3));
    let bits = __cpuid(0x8000_0008).eax & 0xff;
    if bits < 52 && !platform::is_tcg() {
        report.same(
            "CR3 beyond the physical address width",
            write_cr3(cr3 | 1 << bits),
            GP,
        );
        report.equal("CR3 unharmed", read_cr3(), cr3);
    }
    // A page's mapping changes, and INVLPG makes the change visible.
    let (first, second) = (memory::allocate(), memory::allocate());
    let place = memory::UNMAPPED as *const u64;
    // SAFETY: fresh pages, and an address that nothing else uses.
    let (before, after) = unsafe {
        first.cast::<u64>().write(1);
        second.cast::<u64>().write(2);
        memory::map(
            memory::root(),
            memory::UNMAPPED,
            first as u64,
            memory::PRESENT,
        );
        let before = place.read_volatile();
        memory::map(
            memory::root(),
            memory::UNMAPPED,
            second as u64,
            memory::PRESENT,
        );
        asm!("invlpg [{}]", in(reg) place);
        (before, place.read_volatile())
    };
    report.equal("INVLPG: before", before, 1);
    report.equal("INVLPG: after", after, 2);
    // SAFETY: as above; the address is unmapped again.
    let reloaded = unsafe {
        memory::map(
            memory::root(),
            memory::UNMAPPED,
            first as u64,
            memory::PRESENT,
        );
        memory::load_root(memory::root());
        let value = place.read_volatile();
        memory::map(memory::root(), memory::UNMAPPED, 0, 0);
        memory::load_root(memory::root());
        value
    };
    report.equal("loading CR3 flushes", reloaded, 1);
}

fn test_cr4(report: &mut Report) {
    let cr4 = read_cr4();
    for (name, bit) in [
        ("CR4.TSD", CR4_TSD),
        ("CR4.DE", CR4_DE),
        ("CR4.PGE", CR4_PGE),
        ("CR4.PCE", CR4_PCE),
    ] {
        report.same(
            name,
            write_cr4(cr4 ^ bit).map(|()| read_cr4()),
            Ok(cr4 ^ bit),
        );
        report.same(name, write_cr4(cr4).map(|()| read_cr4()), Ok(cr4));
    }
    for (name, value) in [
        ("CR4 with a reserved bit", cr4 | 1 << 31),
        ("CR4 with upper bits", cr4 | 1 << 40),
        ("CR4.VMXE without VMX", cr4 | CR4_VMXE),
        ("CR4.PAE cleared in long mode", cr4 & !CR4_PAE),
    ] {
        if platform::is_tcg() {
            report.skip(name, "TCG does not deliver the fault");
        } else {
            report.same(name, write_cr4(value), GP);
        }
    }
    report.equal("CR4 unharmed", read_cr4(), cr4);
    report.equal("CR4.VMXE reads as clear", cr4 & CR4_VMXE, 0);
}

fn test_cr8(report: &mut Report) {
    for value in [15, 1, 0] {
        report.same(
            "CR8 holds",
            write_cr8(value).map(|()| read_cr8()),
            Ok(value),
        );
    }
    if !platform::is_tcg() {
        report.same("CR8 above 15", write_cr8(16), GP);
        report.equal("CR8 unharmed", read_cr8(), 0);
    }
}

fn test_debug_registers(report: &mut Report) {
    report.same(
        "DR0 holds",
        write_dr0(0x1234_5678_9abc).map(|()| read_dr0()),
        Ok(0x1234_5678_9abc),
    );
    report.same(
        "DR3 holds",
        write_dr3(u64::MAX).map(|()| read_dr3()),
        Ok(u64::MAX),
    );
    report.same("DR0 cleared", write_dr0(0).map(|()| read_dr0()), Ok(0));
    report.same(
        "DR7 has bit 10 set",
        write_dr7(0).map(|()| read_dr7()),
        Ok(0x400),
    );
    report.same(
        "DR6 has its fixed bits",
        write_dr6(0).map(|()| read_dr6() & 0xffff_0ff0),
        Ok(0xffff_0ff0),
    );
    if !platform::is_tcg() {
        report.same("DR7 with upper bits", write_dr7(1 << 32), GP);
        report.same("DR6 with upper bits", write_dr6(1 << 32), GP);
    }

    // A write watchpoint of four bytes on a variable.
    let mut watched = 0_u32;
    let address = &raw mut watched;
    report.same(
        "a watchpoint can be set",
        write_dr0(address as u64).and_then(|()| write_dr7(0xd_0402)),
        Ok(()),
    );
    // SAFETY: writes a variable.
    let outcome = catch(|| unsafe { address.write_volatile(7) });
    let status = read_dr6();
    report.same("a watchpoint turned off", write_dr7(0x400), Ok(()));
    report.same("a watchpoint traps", outcome, Err(Fault::DEBUG));
    report.equal("DR6 names the watchpoint", status & 0xf, 1);
    // SAFETY: reads the variable.
    report.equal(
        "the write before the trap is done",
        unsafe { address.read_volatile() },
        7,
    );
    report.same("DR6 back", write_dr6(0xffff_0ff0), Ok(()));
}

fn test_xcr0(report: &mut Report) {
    const FEATURES: [(&str, u64); 2] = [("x87 and SSE", 3), ("x87, SSE and AVX", 7)];
    const ILLEGAL: [(&str, u32, u64); 5] = [
        ("XSETBV: no x87", 0, 2),
        ("XSETBV: nothing", 0, 0),
        ("XSETBV: AVX without SSE", 0, 5),
        ("XSETBV: reserved bits", 0, 1 << 62 | 3),
        ("XSETBV: another XCR", 1, 3),
    ];
    if __cpuid(1).ecx & Leaf1Ecx::XSAVE.bits() == 0 {
        report.skip("XSETBV", "no XSAVE");
        return;
    }
    report.same(
        "XSETBV without CR4.OSXSAVE",
        write_cr4(read_cr4() & !CR4_OSXSAVE).and_then(|()| xsetbv(0, 3)),
        Err(Fault::INVALID_OPCODE),
    );
    report.same(
        "CR4.OSXSAVE can be set",
        write_cr4(read_cr4() | CR4_OSXSAVE),
        Ok(()),
    );
    let supported = __cpuid_count(0xd, 0);
    let supported = u64::from(supported.eax) | u64::from(supported.edx) << 32;
    for (name, value) in FEATURES {
        if value & !supported == 0 {
            report.same(name, xsetbv(0, value).map(|()| xgetbv()), Ok(value));
        }
    }
    let before = xgetbv();
    for (name, register, value) in ILLEGAL {
        report.same(name, xsetbv(register, value), GP);
    }
    report.equal("XCR0 unharmed", xgetbv(), before);
}

fn xsetbv(register: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: no code here uses extended state.
    catch(|| unsafe {
        asm!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32);
    })
}

fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set where this is called.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(low) | u64::from(high) << 32
}
