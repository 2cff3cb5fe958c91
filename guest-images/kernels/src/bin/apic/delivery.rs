//! From an IPI to its handler and its end: request, priorities, service. SDM vol. 3A, 11.8.
//!
//! The same in both modes.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::apic::{Register, delivery_mode, icr, lvt, svr};
use kernels::interrupts::{DEBUG, NMI, clear_handler, let_in, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, multiboot, platform, tsc};

use crate::record::{ignore, let_in_and_take, listen, note, of, take};

const LOW: u8 = 0x41;
const MIDDLE: u8 = 0x51;
const SAME_CLASS: u8 = 0x5e;
const HIGH: u8 = 0x62;
const ALL: [u8; 4] = [LOW, MIDDLE, SAME_CLASS, HIGH];

pub(crate) fn test(report: &mut Report, lapic: Lapic) {
    listen(&ALL);
    let _ = take();
    test_registers(report, lapic);
    test_priorities(report, lapic);
    test_nesting(report, lapic);
    test_destinations(report, lapic);
    test_software_disable(report, lapic);
    if multiboot::has_word("no-nmi") {
        report.skip("NMIs", "the command line says `no-nmi`");
    } else {
        test_nmi(report, lapic);
        test_nmis_in_the_handler(report, lapic);
    }
    test_single_step_first(report, lapic);
    ignore(&ALL);
}

/// IRR while it waits, ISR while it is served, neither after its end.
fn test_registers(report: &mut Report, lapic: Lapic) {
    static IN_SERVICE: AtomicBool = AtomicBool::new(false);
    static REQUESTED: AtomicBool = AtomicBool::new(true);
    static PRIORITY: AtomicU32 = AtomicU32::new(0);
    lapic.send_self(HIGH);
    report.holds("IRR shows a request", lapic.bit(Register::IRR, HIGH));
    report.holds(
        "ISR does not show a request",
        !lapic.bit(Register::ISR, HIGH),
    );
    report.holds("TMR shows an edge", !lapic.bit(Register::TMR, HIGH));
    set_handler(HIGH, |_| {
        let lapic = Lapic::current();
        IN_SERVICE.store(lapic.bit(Register::ISR, HIGH), Ordering::Relaxed);
        REQUESTED.store(lapic.bit(Register::IRR, HIGH), Ordering::Relaxed);
        PRIORITY.store(lapic.read(Register::PPR), Ordering::Relaxed);
        note(HIGH);
        lapic.end();
    });
    report.same("the request is delivered", let_in_and_take(), of([HIGH]));
    report.holds(
        "ISR shows it in its handler",
        IN_SERVICE.load(Ordering::Relaxed),
    );
    report.holds("IRR does not any more", !REQUESTED.load(Ordering::Relaxed));
    report.equal(
        "PPR is its class in its handler",
        PRIORITY.load(Ordering::Relaxed),
        u32::from(HIGH & 0xf0),
    );
    report.holds(
        "ISR does not show it after its end",
        !lapic.bit(Register::ISR, HIGH),
    );
    report.equal("PPR is zero after its end", lapic.read(Register::PPR), 0);
    report.same("it is delivered once", let_in_and_take(), of([]));
    listen(&[HIGH]);
    lapic.write(Register::EOI, 0);
    report.equal(
        "an end with nothing in service does nothing",
        lapic.read(Register::PPR),
        0,
    );
    lapic.send_self(LOW);
    lapic.send_self(LOW);
    report.same(
        "two requests for a vector are one",
        let_in_and_take(),
        of([LOW]),
    );
}

fn test_priorities(report: &mut Report, lapic: Lapic) {
    for vector in [MIDDLE, LOW, HIGH, SAME_CLASS] {
        lapic.send_self(vector);
    }
    report.same(
        "the highest vector comes first",
        let_in_and_take(),
        of([HIGH, SAME_CLASS, MIDDLE, LOW]),
    );

    for vector in [LOW, MIDDLE, HIGH] {
        lapic.send_self(vector);
    }
    lapic.write(Register::TPR, 0x60);
    report.same("TPR 0x60 stops classes 4 to 6", let_in_and_take(), of([]));
    lapic.write(Register::TPR, 0x5f);
    report.same("TPR 0x5f lets class 6 in", let_in_and_take(), of([HIGH]));
    // SAFETY: the handlers keep all registers, and interrupts are off again after it.
    unsafe {
        core::arch::asm!("sti", "mov cr8, {}", "nop", "cli", in(reg) 4_u64);
    }
    report.same("CR8 = 4 lets class 5 in at once", take(), of([MIDDLE]));
    lapic.write(Register::TPR, 0);
    report.same("TPR 0 lets class 4 in", let_in_and_take(), of([LOW]));
    lapic.write(Register::TPR, 0x4e);
    lapic.send_self(LOW);
    report.equal(
        "PPR is the TPR with nothing in service",
        lapic.read(Register::PPR),
        0x4e,
    );
    report.same("TPR's sub-class does not matter", let_in_and_take(), of([]));
    lapic.write(Register::TPR, 0);
    report.same("the request has waited", let_in_and_take(), of([LOW]));
}

/// A handler that lets others in is interrupted by higher classes only.
fn test_nesting(report: &mut Report, _lapic: Lapic) {
    set_handler(MIDDLE, |_| {
        let lapic = Lapic::current();
        note(MIDDLE);
        lapic.send_self(LOW);
        lapic.send_self(SAME_CLASS);
        lapic.send_self(HIGH);
        let_in();
        note(1);
        lapic.end();
        let_in();
        note(2);
    });
    Lapic::current().send_self(MIDDLE);
    report.same(
        "a higher class interrupts, the same class waits for the end",
        let_in_and_take(),
        of([MIDDLE, HIGH, 1, SAME_CLASS, LOW, 2]),
    );
    listen(&[MIDDLE]);
}

fn test_destinations(report: &mut Report, lapic: Lapic) {
    let fixed = icr::ASSERT | u32::from(LOW);
    let id = lapic.id();
    let broadcast = if lapic.mode() == Mode::XApic {
        0xff
    } else {
        u32::MAX
    };
    let expect = |report: &mut Report, name, destination, command, arrives: bool| {
        lapic.send(destination, command);
        let expected = if arrives { of([LOW]) } else { of([]) };
        report.same(name, let_in_and_take(), expected);
    };
    expect(report, "physical: own ID", id, fixed, true);
    expect(report, "physical: another ID", id + 7, fixed, false);
    expect(report, "physical: broadcast", broadcast, fixed, true);
    expect(report, "shorthand: all", 0, fixed | icr::TO_ALL, true);
    expect(
        report,
        "shorthand: others",
        0,
        fixed | icr::TO_OTHERS,
        false,
    );
    expect(
        report,
        "physical: lowest priority",
        id,
        fixed | delivery_mode::LOWEST_PRIORITY,
        true,
    );
    if lapic.mode() == Mode::X2Apic {
        let logical = lapic.read(Register::LDR);
        expect(
            report,
            "logical: own bit",
            logical,
            fixed | icr::LOGICAL,
            true,
        );
        expect(
            report,
            "logical: two bits of the cluster",
            logical | 0x8000,
            fixed | icr::LOGICAL,
            true,
        );
        expect(
            report,
            "logical: another bit",
            logical & 0xffff_0000 | 0x8000,
            fixed | icr::LOGICAL,
            false,
        );
        expect(
            report,
            "logical: another cluster",
            logical ^ 0x0001_0000,
            fixed | icr::LOGICAL,
            false,
        );
        expect(
            report,
            "logical: broadcast",
            u32::MAX,
            fixed | icr::LOGICAL,
            true,
        );
        lapic.write(Register::SELF_IPI, u32::from(LOW));
        report.same("the self-IPI register", let_in_and_take(), of([LOW]));
        return;
    }
    lapic.write(Register::DFR, u32::MAX);
    lapic.write(Register::LDR, 0x0400_0000);
    expect(report, "flat: own bit", 0x04, fixed | icr::LOGICAL, true);
    expect(
        report,
        "flat: own bit and others",
        0x0e,
        fixed | icr::LOGICAL,
        true,
    );
    expect(
        report,
        "flat: another bit",
        0x02,
        fixed | icr::LOGICAL,
        false,
    );
    expect(report, "flat: broadcast", 0xff, fixed | icr::LOGICAL, true);
    expect(
        report,
        "flat: lowest priority",
        0x06,
        fixed | icr::LOGICAL | delivery_mode::LOWEST_PRIORITY,
        true,
    );
    lapic.write(Register::DFR, 0x0fff_ffff);
    lapic.write(Register::LDR, 0x3200_0000);
    expect(report, "cluster: own bit", 0x32, fixed | icr::LOGICAL, true);
    expect(
        report,
        "cluster: own bit and others",
        0x3f,
        fixed | icr::LOGICAL,
        true,
    );
    expect(
        report,
        "cluster: another bit",
        0x34,
        fixed | icr::LOGICAL,
        false,
    );
    expect(
        report,
        "cluster: another cluster",
        0x22,
        fixed | icr::LOGICAL,
        false,
    );
    if platform::is_tcg() {
        report.skip("cluster: broadcast", "QEMU does not know it");
    } else {
        expect(
            report,
            "cluster: broadcast",
            0xff,
            fixed | icr::LOGICAL,
            true,
        );
    }
    lapic.write(Register::DFR, u32::MAX);
    lapic.write(Register::LDR, 0);
}

/// A software-disabled APIC keeps what was requested before, and takes no fixed interrupts.
fn test_software_disable(report: &mut Report, lapic: Lapic) {
    if platform::is_tcg() {
        report.skip("software disable", "QEMU delivers nothing then");
    } else {
        lapic.send_self(LOW);
        lapic.write(Register::SVR, 0xff);
        report.holds(
            "a request stays while software-disabled",
            lapic.bit(Register::IRR, LOW),
        );
        lapic.write(Register::SVR, svr::ENABLED | 0xff);
        report.same("it is delivered after it", let_in_and_take(), of([LOW]));
        lapic.write(Register::SVR, 0xff);
        lapic.send_self(LOW);
        report.holds(
            "no request is taken while software-disabled",
            !lapic.bit(Register::IRR, LOW),
        );
        lapic.write(Register::SVR, svr::ENABLED | 0xff);
        report.same("nor delivered after it", let_in_and_take(), of([]));
    }
    // A masked timer runs down without a request.
    lapic.write(Register::DIVIDE, 0xb);
    lapic.write(Register::LVT_TIMER, lvt::MASKED | u32::from(LOW));
    lapic.write(Register::INITIAL_COUNT, 1000);
    let ran_down = tsc::wait_until(1 << 32, || lapic.read(Register::CURRENT_COUNT) == 0);
    report.holds("a masked timer runs down", ran_down);
    report.holds(
        "a masked timer requests nothing",
        !lapic.bit(Register::IRR, LOW),
    );
    lapic.write(Register::LVT_TIMER, u32::from(LOW));
    report.same(
        "unmasking it later brings nothing",
        let_in_and_take(),
        of([]),
    );
    lapic.write(Register::LVT_TIMER, lvt::MASKED);
}

fn test_nmi(report: &mut Report, lapic: Lapic) {
    set_handler(NMI, |_| note(NMI));
    lapic.send(lapic.id(), delivery_mode::NMI | icr::ASSERT);
    // Interrupts are off all the while.
    tsc::wait(1_000_000);
    report.same("an NMI comes with interrupts off, once", take(), of([NMI]));
    lapic.send(lapic.id(), delivery_mode::NMI | icr::ASSERT);
    tsc::wait(1_000_000);
    report.same("and again after IRET", take(), of([NMI]));
    clear_handler(NMI);
}

/// While an NMI is handled, one more is latched, however many come; and it does not end HLT.
/// SDM vol. 3A, 6.7.1.
fn test_nmis_in_the_handler(report: &mut Report, _lapic: Lapic) {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    static LEFT: AtomicU32 = AtomicU32::new(u32::MAX);
    TAKEN.store(0, Ordering::Relaxed);
    LEFT.store(u32::MAX, Ordering::Relaxed);
    set_handler(NMI, |_| {
        if TAKEN.fetch_add(1, Ordering::Relaxed) != 0 {
            return;
        }
        let lapic = Lapic::current();
        for _ in 0..3 {
            lapic.send(lapic.id(), delivery_mode::NMI | icr::ASSERT);
            tsc::wait(10_000);
        }
        lapic.write(Register::DIVIDE, 0xb);
        lapic.write(Register::LVT_TIMER, u32::from(LOW));
        lapic.write(Register::INITIAL_COUNT, 100_000);
        // SAFETY: the timer's handler keeps all registers.
        unsafe { core::arch::asm!("sti", "hlt", "cli") };
        LEFT.store(lapic.read(Register::CURRENT_COUNT), Ordering::Relaxed);
    });
    let lapic = Lapic::current();
    lapic.send(lapic.id(), delivery_mode::NMI | icr::ASSERT);
    tsc::wait(1_000_000);
    report.equal(
        "NMIs in the handler of one are one",
        TAKEN.load(Ordering::Relaxed),
        2,
    );
    report.equal(
        "HLT in the handler waits for the timer",
        LEFT.load(Ordering::Relaxed),
        0,
    );
    lapic.write(Register::LVT_TIMER, lvt::MASKED);
    let _ = take();
    clear_handler(NMI);
}

/// The trap of a single step comes before an interrupt that the instruction has caused, and is not
/// lost by it. SDM vol. 3A, table 6-2.
fn test_single_step_first(report: &mut Report, lapic: Lapic) {
    static LAST_STEP: AtomicU64 = AtomicU64::new(0);
    static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
    static STEP_BEFORE: AtomicU64 = AtomicU64::new(0);
    set_handler(DEBUG, |frame| {
        LAST_STEP.store(frame.rip, Ordering::Relaxed);
    });
    set_handler(HIGH, |frame| {
        INTERRUPTED.store(frame.rip, Ordering::Relaxed);
        note(HIGH);
        STEP_BEFORE.store(LAST_STEP.load(Ordering::Relaxed), Ordering::Relaxed);
        Lapic::current().end();
    });
    // SAFETY: TF and IF are cleared again; the handlers keep all registers.
    unsafe {
        core::arch::asm!("pushfq", "or qword ptr [rsp], 0x300", "popfq");
        lapic.send_self(HIGH);
        core::arch::asm!("pushfq", "and qword ptr [rsp], ~0x300", "popfq");
    }
    report.same("an interrupt comes under single steps", take(), of([HIGH]));
    report.equal(
        "the step before an interrupt ended where that came",
        STEP_BEFORE.load(Ordering::Relaxed),
        INTERRUPTED.load(Ordering::Relaxed),
    );
    clear_handler(DEBUG);
    listen(&[HIGH]);
    // SAFETY: DR6 as after reset.
    unsafe { core::arch::asm!("mov dr6, {}", in(reg) 0xffff_0ff0_u64) };
}
