//! The local APIC's registers in xAPIC mode. SDM vol. 3A, 11.4.1 and 11.5.

use arch::ApicBaseFlags;
use arch::apic::{DEFAULT_ADDRESS, Register, esr, lvt, svr};
use arch::cpuid::Leaf1Edx;
use arch::msr::IA32_APIC_BASE;
use arch::paging::ADDRESS;
use kernels::lapic::{self, GLOBAL_ENABLE, Lapic, Mode};
use kernels::{Report, mmio, platform, println};
use x86_64::registers::model_specific::Msr;

/// IA32_APIC_BASE: this is the bootstrap processor.
const BOOTSTRAP: u64 = ApicBaseFlags::BSP.bits();

/// The local vector table, with the bits of each entry that can be written.
const LVT: [(&str, Register, u32); 6] = [
    ("LVT timer", Register::LVT_TIMER, 0x0003_00ff),
    ("LVT LINT0", Register::LVT_LINT0, 0x0001_a7ff),
    ("LVT LINT1", Register::LVT_LINT1, 0x0001_a7ff),
    ("LVT error", Register::LVT_ERROR, 0x0001_00ff),
    ("LVT performance", Register::LVT_PERFORMANCE, 0x0001_07ff),
    ("LVT thermal", Register::LVT_THERMAL, 0x0001_07ff),
];

pub(crate) fn test(report: &mut Report) {
    let base = lapic::base();
    report.equal(
        "the APIC's page is at its place",
        base & ADDRESS,
        DEFAULT_ADDRESS,
    );
    report.equal(
        "this is the bootstrap processor",
        base & BOOTSTRAP,
        BOOTSTRAP,
    );
    if crate::can_disable() {
        test_reset_state(report);
    } else {
        report.skip(
            "reset state after disabling",
            "the APIC cannot be enabled again",
        );
    }
    if platform::is_tcg() {
        report.skip("another place for the APIC's page", "QEMU does not move it");
    } else {
        test_relocation(report);
    }
    let lapic = Lapic::enable(Mode::XApic);
    test_plain(report, lapic);
    test_lvt(report, lapic);
    test_errors(report, lapic);
}

/// How many entries the local vector table has.
fn lvt_entries(lapic: Lapic) -> u32 {
    (lapic.read(Register::VERSION) >> 16 & 0xff) + 1
}

/// The LVT's entries that this APIC has: the last two of [`LVT`] came later than the others.
fn lvt(lapic: Lapic) -> impl Iterator<Item = &'static (&'static str, Register, u32)> {
    LVT.iter().take(lvt_entries(lapic).clamp(4, 6) as usize)
}

/// Disabling the APIC and enabling it again resets it. SDM vol. 3A, 11.4.3.
fn test_reset_state(report: &mut Report) {
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(Register::TPR, 0x20);
    lapic.write(Register::LDR, 0x0100_0000);
    lapic.write(Register::INITIAL_COUNT, 1_000_000);
    let id = lapic.read(Register::ID);
    let base = lapic::base();
    lapic::set_base(base & !GLOBAL_ENABLE);
    let apic_in_cpuid = core::arch::x86_64::__cpuid(1).edx & Leaf1Edx::APIC.bits();
    report.equal("CPUID hides an APIC that is disabled", apic_in_cpuid, 0);
    lapic::set_base(base);
    for (name, register, value) in [
        ("reset: SVR", Register::SVR, 0xff),
        ("reset: TPR", Register::TPR, 0),
        ("reset: LDR", Register::LDR, 0),
        ("reset: DFR", Register::DFR, u32::MAX),
        ("reset: initial count", Register::INITIAL_COUNT, 0),
        ("reset: current count", Register::CURRENT_COUNT, 0),
        ("reset: divide configuration", Register::DIVIDE, 0),
        ("reset: ICR, low", Register::ICR_LOW, 0),
        ("reset: ID", Register::ID, id),
    ] {
        report.equal(name, lapic.read(register), value);
    }
    for (name, register, _) in lvt(lapic) {
        report.equal(name, lapic.read(*register), lvt::MASKED);
    }
    for block in [Register::ISR, Register::TMR, Register::IRR] {
        let set = (0..8).fold(0, |set, index| set | lapic.read(block.holding(32 * index)));
        report.equal("reset: ISR, TMR and IRR", set, 0);
    }
}

fn test_relocation(report: &mut Report) {
    /// A page where no device is.
    const ELSEWHERE: u64 = 0xfed9_2000;
    let lapic = Lapic::enable(Mode::XApic);
    let version = lapic.read(Register::VERSION);
    lapic.write(Register::TPR, 0x30);
    let base = lapic::base();
    lapic::set_base(base & !ADDRESS | ELSEWHERE);
    // SAFETY: the APIC's page is there now.
    let (moved, priority) = unsafe {
        let address = |register: Register| ELSEWHERE + u64::from(register.offset());
        let found = (
            mmio::read32(address(Register::VERSION)),
            mmio::read32(address(Register::TPR)),
        );
        mmio::write32(address(Register::TPR), 0);
        found
    };
    lapic::set_base(base);
    report.equal("the APIC's page at another place", moved, version);
    report.equal("the APIC's state after the move", priority, 0x30);
    report.equal(
        "the APIC's page back",
        (lapic.read(Register::VERSION), lapic.read(Register::TPR)).0,
        version,
    );
    report.equal("a write at the other place", lapic.read(Register::TPR), 0);
}

fn test_plain(report: &mut Report, lapic: Lapic) {
    let version = lapic.read(Register::VERSION);
    println!("LAPIC version {version:#x}, ID {:#x}", lapic.id());
    report.within("version", u64::from(version & 0xff), 0x10..=0x15);
    report.within("LVT entries", u64::from(lvt_entries(lapic)), 4..=7);
    lapic.write(Register::VERSION, 0);
    report.equal(
        "the version cannot be written",
        lapic.read(Register::VERSION),
        version,
    );
    for value in [0xf0, 0x5a, 0] {
        lapic.write(Register::TPR, value);
        report.equal("TPR holds", lapic.read(Register::TPR), value);
        report.equal(
            "PPR is the TPR with nothing in service",
            lapic.read(Register::PPR),
            value,
        );
        let cr8: u64;
        // SAFETY: reading CR8 has no effect.
        unsafe { core::arch::asm!("mov {}, cr8", out(reg) cr8) };
        report.equal("CR8 is the TPR's class", cr8, u64::from(value >> 4));
    }
    // SAFETY: interrupts are off; CR8 is put back.
    unsafe { core::arch::asm!("mov cr8, {}", in(reg) 7_u64) };
    report.equal("the TPR is CR8", lapic.read(Register::TPR), 0x70);
    lapic.write(Register::TPR, 0);
    for (name, register, written, read) in [
        (
            "LDR holds its upper byte",
            Register::LDR,
            0x5a00_0000,
            0x5a00_0000,
        ),
        (
            "DFR holds its upper bits",
            Register::DFR,
            0x0fff_ffff,
            0x0fff_ffff,
        ),
        (
            "DFR's other bits are set",
            Register::DFR,
            0xf000_0000,
            u32::MAX,
        ),
        (
            "ICR high holds the destination",
            Register::ICR_HIGH,
            0x1200_0000,
            0x1200_0000,
        ),
        ("divide configuration", Register::DIVIDE, 0xb, 0xb),
        (
            "SVR",
            Register::SVR,
            svr::ENABLED | 0x3f,
            svr::ENABLED | 0x3f,
        ),
        (
            "SVR back",
            Register::SVR,
            svr::ENABLED | 0xff,
            svr::ENABLED | 0xff,
        ),
        (
            "initial count, masked",
            Register::INITIAL_COUNT,
            u32::MAX,
            u32::MAX,
        ),
        ("initial count, stopped", Register::INITIAL_COUNT, 0, 0),
    ] {
        lapic.write(register, written);
        report.equal(name, lapic.read(register), read);
    }
    lapic.write(Register::CURRENT_COUNT, 77);
    report.equal(
        "the current count cannot be written",
        lapic.read(Register::CURRENT_COUNT),
        0,
    );
    lapic.write(Register::LDR, 0);
}

fn test_lvt(report: &mut Report, lapic: Lapic) {
    for (name, register, bits) in lvt(lapic) {
        // Masked, fixed delivery: nothing comes of it.
        for value in [lvt::MASKED | 0xff & bits, lvt::MASKED | 0x31] {
            lapic.write(*register, value);
            report.equal(name, lapic.read(*register), value);
        }
    }
    if platform::is_tcg() {
        report.skip("the LVT's reserved bits", "QEMU holds some");
    } else {
        for (name, register, bits) in lvt(lapic) {
            // A timer mode of 3 and a delivery mode that is none are not written.
            let legal = *bits & !0x700;
            lapic.write(*register, !0x700);
            report.equal(name, lapic.read(*register) & !0x0004_0000, legal);
            lapic.write(*register, lvt::MASKED);
        }
    }
    if platform::is_tcg() {
        report.skip("a software-disabled APIC's LVT", "QEMU does not mask it");
    } else {
        test_software_disabled_lvt(report, lapic);
    }
    for (_, register, _) in lvt(lapic) {
        lapic.write(*register, lvt::MASKED);
    }
}

/// Software-disabled: all masked, and not to be unmasked. SDM vol. 3A, 11.4.7.2.
fn test_software_disabled_lvt(report: &mut Report, lapic: Lapic) {
    for (_, register, _) in lvt(lapic) {
        lapic.write(*register, 0x31);
    }
    lapic.write(Register::SVR, 0xff);
    for (name, register, _) in lvt(lapic) {
        report.equal(name, lapic.read(*register) & lvt::MASKED, lvt::MASKED);
        lapic.write(*register, 0x31);
        report.equal(name, lapic.read(*register) & lvt::MASKED, lvt::MASKED);
    }
    lapic.write(Register::SVR, svr::ENABLED | 0xff);
}

fn test_errors(report: &mut Report, lapic: Lapic) {
    let latch = || {
        lapic.write(Register::ESR, 0);
        lapic.read(Register::ESR)
    };
    let _ = latch();
    report.equal("no error", latch(), 0);
    let _ = lapic.read(Register::at(0x040));
    report.equal(
        "reading a register that is not there",
        latch() & esr::ILLEGAL_REGISTER,
        esr::ILLEGAL_REGISTER,
    );
    if platform::is_tcg() {
        report.skip(
            "errors are cleared, and illegal vectors found",
            "QEMU does not",
        );
        return;
    }
    report.equal("the error is gone after the second write", latch(), 0);
    lapic.write(Register::at(0x040), 1);
    report.equal(
        "writing a register that is not there",
        latch() & esr::ILLEGAL_REGISTER,
        esr::ILLEGAL_REGISTER,
    );
    let _ = latch();
    lapic.send_self(3);
    report.equal(
        "sending an illegal vector",
        latch() & esr::SEND_ILLEGAL_VECTOR,
        esr::SEND_ILLEGAL_VECTOR,
    );
    report.holds(
        "an illegal vector is not accepted",
        !lapic.bit(Register::IRR, 3),
    );
    let _ = latch();
    let reserved = kernels::interrupts::catch(|| {
        // SAFETY: the reserved bits are refused.
        unsafe { Msr::new(IA32_APIC_BASE).write(lapic::base() | 1 << 9) }
    });
    report.same(
        "IA32_APIC_BASE with a reserved bit",
        reserved,
        Err(kernels::interrupts::Fault::GENERAL_PROTECTION),
    );
}
