//! The local APIC's registers in xAPIC mode. Intel SDM vol. 3, 11.4.1 and 11.5.

use kernels::lapic::register::{
    CURRENT_COUNT, DFR, DIVIDE, ESR, ICR_HIGH, ICR_LOW, ID, INITIAL_COUNT, IRR, ISR, LDR,
    LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_PERFORMANCE, LVT_THERMAL, LVT_TIMER, PPR, SVR, TMR, TPR,
    VERSION,
};
use kernels::lapic::{
    self, APIC_BASE, DEFAULT_ADDRESS, GLOBAL_ENABLE, Lapic, MASKED, Mode, Register, SOFTWARE_ENABLE,
};
use kernels::{Report, mmio, platform, println};
use x86_64::registers::model_specific::Msr;

/// IA32_APIC_BASE: this is the bootstrap processor.
const BOOTSTRAP: u64 = 1 << 8;
/// ESR: an access to a register that is not there.
const ILLEGAL_REGISTER: u32 = 1 << 7;
/// ESR: an IPI with a vector below 16.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The local vector table, with the bits of each entry that can be written.
const LVT: [(&str, Register, u32); 6] = [
    ("LVT timer", LVT_TIMER, 0x0003_00ff),
    ("LVT LINT0", LVT_LINT0, 0x0001_a7ff),
    ("LVT LINT1", LVT_LINT1, 0x0001_a7ff),
    ("LVT error", LVT_ERROR, 0x0001_00ff),
    ("LVT performance", LVT_PERFORMANCE, 0x0001_07ff),
    ("LVT thermal", LVT_THERMAL, 0x0001_07ff),
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
    (lapic.read(VERSION) >> 16 & 0xff) + 1
}

/// The LVT's entries that this APIC has: the last two of [`LVT`] came later than the others.
fn lvt(lapic: Lapic) -> impl Iterator<Item = &'static (&'static str, Register, u32)> {
    LVT.iter().take(lvt_entries(lapic).clamp(4, 6) as usize)
}

/// Disabling the APIC and enabling it again resets it. Intel SDM vol. 3, 11.4.3.
fn test_reset_state(report: &mut Report) {
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(TPR, 0x20);
    lapic.write(LDR, 0x0100_0000);
    lapic.write(INITIAL_COUNT, 1_000_000);
    let id = lapic.read(ID);
    let base = lapic::base();
    lapic::set_base(base & !GLOBAL_ENABLE);
    let apic_in_cpuid = core::arch::x86_64::__cpuid(1).edx & 1 << 9;
    report.equal("CPUID hides an APIC that is disabled", apic_in_cpuid, 0);
    lapic::set_base(base);
    for (name, register, value) in [
        ("reset: SVR", SVR, 0xff),
        ("reset: TPR", TPR, 0),
        ("reset: LDR", LDR, 0),
        ("reset: DFR", DFR, u32::MAX),
        ("reset: initial count", INITIAL_COUNT, 0),
        ("reset: current count", CURRENT_COUNT, 0),
        ("reset: divide configuration", DIVIDE, 0),
        ("reset: ICR, low", ICR_LOW, 0),
        ("reset: ID", ID, id),
    ] {
        report.equal(name, lapic.read(register), value);
    }
    for (name, register, _) in lvt(lapic) {
        report.equal(name, lapic.read(*register), MASKED);
    }
    for block in [ISR, TMR, IRR] {
        let set = (0..8).fold(0, |set, index| set | lapic.read(block + 0x10 * index));
        report.equal("reset: ISR, TMR and IRR", set, 0);
    }
}

fn test_relocation(report: &mut Report) {
    /// A page where no device is.
    const ELSEWHERE: u64 = 0xfed9_2000;
    let lapic = Lapic::enable(Mode::XApic);
    let version = lapic.read(VERSION);
    lapic.write(TPR, 0x30);
    let base = lapic::base();
    lapic::set_base(base & !ADDRESS | ELSEWHERE);
    // SAFETY: the APIC's page is there now.
    let (moved, priority) = unsafe {
        let address = |register: Register| ELSEWHERE + u64::from(register);
        let found = (mmio::read32(address(VERSION)), mmio::read32(address(TPR)));
        mmio::write32(address(TPR), 0);
        found
    };
    lapic::set_base(base);
    report.equal("the APIC's page at another place", moved, version);
    report.equal("the APIC's state after the move", priority, 0x30);
    report.equal(
        "the APIC's page back",
        (lapic.read(VERSION), lapic.read(TPR)).0,
        version,
    );
    report.equal("a write at the other place", lapic.read(TPR), 0);
}

fn test_plain(report: &mut Report, lapic: Lapic) {
    let version = lapic.read(VERSION);
    println!("LAPIC version {version:#x}, ID {:#x}", lapic.id());
    report.within("version", u64::from(version & 0xff), 0x10..=0x15);
    report.within("LVT entries", u64::from(lvt_entries(lapic)), 4..=7);
    lapic.write(VERSION, 0);
    report.equal(
        "the version cannot be written",
        lapic.read(VERSION),
        version,
    );
    for value in [0xf0, 0x5a, 0] {
        lapic.write(TPR, value);
        report.equal("TPR holds", lapic.read(TPR), value);
        report.equal(
            "PPR is the TPR with nothing in service",
            lapic.read(PPR),
            value,
        );
        let cr8: u64;
        // SAFETY: reading CR8 has no effect.
        unsafe { core::arch::asm!("mov {}, cr8", out(reg) cr8) };
        report.equal("CR8 is the TPR's class", cr8, u64::from(value >> 4));
    }
    // SAFETY: interrupts are off; CR8 is put back.
    unsafe { core::arch::asm!("mov cr8, {}", in(reg) 7_u64) };
    report.equal("the TPR is CR8", lapic.read(TPR), 0x70);
    lapic.write(TPR, 0);
    for (name, register, written, read) in [
        ("LDR holds its upper byte", LDR, 0x5a00_0000, 0x5a00_0000),
        ("DFR holds its upper bits", DFR, 0x0fff_ffff, 0x0fff_ffff),
        ("DFR's other bits are set", DFR, 0xf000_0000, u32::MAX),
        (
            "ICR high holds the destination",
            ICR_HIGH,
            0x1200_0000,
            0x1200_0000,
        ),
        ("divide configuration", DIVIDE, 0xb, 0xb),
        ("SVR", SVR, SOFTWARE_ENABLE | 0x3f, SOFTWARE_ENABLE | 0x3f),
        (
            "SVR back",
            SVR,
            SOFTWARE_ENABLE | 0xff,
            SOFTWARE_ENABLE | 0xff,
        ),
        ("initial count, masked", INITIAL_COUNT, u32::MAX, u32::MAX),
        ("initial count, stopped", INITIAL_COUNT, 0, 0),
    ] {
        lapic.write(register, written);
        report.equal(name, lapic.read(register), read);
    }
    lapic.write(CURRENT_COUNT, 77);
    report.equal(
        "the current count cannot be written",
        lapic.read(CURRENT_COUNT),
        0,
    );
    lapic.write(LDR, 0);
}

fn test_lvt(report: &mut Report, lapic: Lapic) {
    for (name, register, bits) in lvt(lapic) {
        // Masked, fixed delivery: nothing comes of it.
        for value in [MASKED | 0xff & bits, MASKED | 0x31] {
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
            lapic.write(*register, MASKED);
        }
    }
    if platform::is_tcg() {
        report.skip("a software-disabled APIC's LVT", "QEMU does not mask it");
    } else {
        test_software_disabled_lvt(report, lapic);
    }
    for (_, register, _) in lvt(lapic) {
        lapic.write(*register, MASKED);
    }
}

/// Software-disabled: all masked, and not to be unmasked. Intel SDM vol. 3, 11.4.7.2.
fn test_software_disabled_lvt(report: &mut Report, lapic: Lapic) {
    for (_, register, _) in lvt(lapic) {
        lapic.write(*register, 0x31);
    }
    lapic.write(SVR, 0xff);
    for (name, register, _) in lvt(lapic) {
        report.equal(name, lapic.read(*register) & MASKED, MASKED);
        lapic.write(*register, 0x31);
        report.equal(name, lapic.read(*register) & MASKED, MASKED);
    }
    lapic.write(SVR, SOFTWARE_ENABLE | 0xff);
}

fn test_errors(report: &mut Report, lapic: Lapic) {
    let latch = || {
        lapic.write(ESR, 0);
        lapic.read(ESR)
    };
    let _ = latch();
    report.equal("no error", latch(), 0);
    let _ = lapic.read(0x040);
    report.equal(
        "reading a register that is not there",
        latch() & ILLEGAL_REGISTER,
        ILLEGAL_REGISTER,
    );
    if platform::is_tcg() {
        report.skip(
            "errors are cleared, and illegal vectors found",
            "QEMU does not",
        );
        return;
    }
    report.equal("the error is gone after the second write", latch(), 0);
    lapic.write(0x040, 1);
    report.equal(
        "writing a register that is not there",
        latch() & ILLEGAL_REGISTER,
        ILLEGAL_REGISTER,
    );
    let _ = latch();
    lapic.send_self(3);
    report.equal(
        "sending an illegal vector",
        latch() & SEND_ILLEGAL_VECTOR,
        SEND_ILLEGAL_VECTOR,
    );
    report.holds("an illegal vector is not accepted", !lapic.bit(IRR, 3));
    let _ = latch();
    let reserved = kernels::interrupts::catch(|| {
        // SAFETY: the reserved bits are refused.
        unsafe { Msr::new(APIC_BASE).write(lapic::base() | 1 << 9) }
    });
    report.same(
        "IA32_APIC_BASE with a reserved bit",
        reserved,
        Err(kernels::interrupts::Fault::GENERAL_PROTECTION),
    );
}
