//! The I/O APIC: entries, masks, edges from the PIT, levels from the RTC. 82093AA datasheet, 3.2.4.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::apic::Register;
use kernels::interrupts::{clear_handler, let_in, set_handler};
use kernels::ioapic::{self, ACTIVE_LOW, LEVEL, MASKED, REMOTE_IRR};
use kernels::lapic::{Lapic, Mode};
use kernels::pic::{self, Pic};
use kernels::{Report, pit, println, rtc, tsc};

use crate::record::{let_in_and_take, listen, of};

const VECTOR: u8 = 0x71;
/// The PIT's pin: firmware tables override IRQ 0.
const PIT_PIN: u8 = 2;
/// The RTC's pin.
const RTC_PIN: u8 = 8;
pub(crate) fn test(report: &mut Report) {
    let lapic = Lapic::enable(Mode::XApic);
    println!("I/O APIC version {:#x}", ioapic::read(ioapic::VERSION));
    test_registers(report);
    test_edge(report, lapic);
    test_level(report, lapic);
    ioapic::mask_all();
    clear_handler(VECTOR);
}

fn test_registers(report: &mut Report) {
    report.equal("24 pins", ioapic::pins(), 24);
    let id = ioapic::read(ioapic::ID);
    ioapic::write(ioapic::ID, 0x0500_0000);
    report.equal("ID holds", ioapic::read(ioapic::ID), 0x0500_0000);
    ioapic::write(ioapic::ID, id);
    let version = ioapic::read(ioapic::VERSION);
    ioapic::write(ioapic::VERSION, 0);
    report.equal(
        "the version cannot be written",
        ioapic::read(ioapic::VERSION),
        version,
    );
    for (name, value) in [
        ("an entry: vector and mask", MASKED | 0x55),
        (
            "an entry: delivery mode and logical destination",
            MASKED | 0x0fff_u64 & !0x600,
        ),
        (
            "an entry: polarity and trigger",
            MASKED | LEVEL | ACTIVE_LOW | 0x66,
        ),
        ("an entry: destination", MASKED | 0xa500_0000_0000_0000),
        ("an entry: plain", MASKED),
    ] {
        ioapic::set_entry(9, value);
        report.equal(name, ioapic::entry(9), value);
    }
    ioapic::set_entry(9, MASKED | REMOTE_IRR | 1 << 12);
    report.equal(
        "an entry: status bits cannot be written",
        ioapic::entry(9),
        MASKED,
    );
}

/// The PIT's channel 0 gives an edge every 1193 / 1.19 MHz = 1 ms.
fn test_edge(report: &mut Report, lapic: Lapic) {
    const COUNT: u16 = 1193;
    /// Enough for some periods at any plausible frequency.
    const LONG: u64 = 1 << 33;
    listen(&[VECTOR]);
    pit::start(0, 2, COUNT);
    let to_me = u64::from(lapic.id()) << 56;
    let requested = || lapic.bit(Register::IRR, VECTOR);
    ioapic::set_entry(PIT_PIN, to_me | u64::from(VECTOR));
    report.holds(
        "an edge requests an interrupt",
        tsc::wait_until(LONG, requested),
    );
    report.holds("TMR shows an edge", !lapic.bit(Register::TMR, VECTOR));
    report.equal(
        "an edge has no remote IRR",
        ioapic::entry(PIT_PIN) & REMOTE_IRR,
        0,
    );
    ioapic::set_entry(PIT_PIN, MASKED | to_me | u64::from(VECTOR));
    report.same("it is delivered", let_in_and_take(), of([VECTOR]));
    let period = tsc::measured_hertz() / 500;
    report.holds(
        "a masked pin requests nothing",
        !tsc::wait_until(2 * period, requested),
    );

    lapic.write(Register::DFR, u32::MAX);
    lapic.write(Register::LDR, 0x0200_0000);
    ioapic::set_entry(PIT_PIN, 2 << 56 | 1 << 11 | u64::from(VECTOR));
    report.holds(
        "an edge to a logical destination",
        tsc::wait_until(LONG, requested),
    );
    ioapic::set_entry(PIT_PIN, MASKED);
    let_in();
    ioapic::set_entry(PIT_PIN, 4 << 56 | 1 << 11 | u64::from(VECTOR));
    report.holds(
        "an edge to another logical destination",
        !tsc::wait_until(2 * period, requested),
    );
    ioapic::set_entry(PIT_PIN, MASKED);
    pit::start(0, 0, 0);
    let _ = let_in_and_take();
}

static TIMES: AtomicU32 = AtomicU32::new(0);
static REMOTE: AtomicU32 = AtomicU32::new(0);
static TRIGGER: AtomicU32 = AtomicU32::new(0);

/// The RTC's line, taken as a level: it stays until the handler turns it off.
fn test_level(report: &mut Report, lapic: Lapic) {
    const ENOUGH: u32 = 3;
    set_handler(VECTOR, |_| {
        let lapic = Lapic::current();
        REMOTE.fetch_add(
            u32::from(ioapic::entry(RTC_PIN) & REMOTE_IRR != 0),
            Ordering::Relaxed,
        );
        TRIGGER.fetch_add(
            u32::from(lapic.bit(Register::TMR, VECTOR)),
            Ordering::Relaxed,
        );
        if TIMES.fetch_add(1, Ordering::Relaxed) + 1 >= ENOUGH {
            rtc::drop_line();
        }
        lapic.end();
    });
    let entry = u64::from(lapic.id()) << 56 | LEVEL | u64::from(VECTOR);
    ioapic::set_entry(RTC_PIN, MASKED | entry);
    // The 8259s see the line, too, and latch its edge.
    pic::init();
    let risen = rtc::raise_line(|| Pic::Slave.requests() & 1 != 0);
    report.holds("the line rises", risen);
    report.holds(
        "a masked level requests nothing",
        !lapic.bit(Register::IRR, VECTOR),
    );
    ioapic::set_entry(RTC_PIN, entry);
    report.holds(
        "a level requests when it is unmasked",
        lapic.bit(Register::IRR, VECTOR),
    );
    report.equal(
        "remote IRR is set",
        ioapic::entry(RTC_PIN) & REMOTE_IRR,
        REMOTE_IRR,
    );
    for _ in 0..2 * ENOUGH {
        let_in();
    }
    report.equal(
        "a level comes again after each end",
        TIMES.load(Ordering::Relaxed),
        ENOUGH,
    );
    report.equal(
        "remote IRR was set in each handler",
        REMOTE.load(Ordering::Relaxed),
        ENOUGH,
    );
    report.equal(
        "TMR showed a level in each handler",
        TRIGGER.load(Ordering::Relaxed),
        ENOUGH,
    );
    report.equal(
        "remote IRR is clear after the last",
        ioapic::entry(RTC_PIN) & REMOTE_IRR,
        0,
    );
    report.holds(
        "the line rises",
        rtc::raise_line(|| lapic.bit(Register::IRR, VECTOR)),
    );
    rtc::drop_line();
    report.holds(
        "a level's request stays when it goes",
        lapic.bit(Register::IRR, VECTOR),
    );
    TIMES.store(0, Ordering::Relaxed);
    let_in();
    report.equal("it is delivered once", TIMES.load(Ordering::Relaxed), 1);
    report.equal(
        "remote IRR is clear after it",
        ioapic::entry(RTC_PIN) & REMOTE_IRR,
        0,
    );
    ioapic::set_entry(RTC_PIN, MASKED);
}
