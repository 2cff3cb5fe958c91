//! The HPET: its counter, comparators one-shot and periodic, legacy replacement.
//! IA-PC HPET specification, 2.3 and 2.4.

use core::sync::atomic::{AtomicU64, Ordering};

use kernels::hpet::{
    CAPABILITIES, CONFIGURATION, COUNTER, ENABLE, Hpet, LEGACY, STATUS, TIMER_32BIT,
    TIMER_CAN_BE_PERIODIC, TIMER_ENABLE, TIMER_LEVEL, TIMER_PERIODIC, TIMER_SET,
};
use kernels::interrupts::{Frame, clear_handler, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, ioapic, mmio, pit, platform, println, tsc};

use crate::arrivals::{self, Time};

const VECTOR: u8 = 0x62;

/// The address of the HPET's status register, for the handler.
static STATUS_ADDRESS: AtomicU64 = AtomicU64::new(0);

/// Handles a level-triggered interrupt of timer 0.
fn note_level(frame: &mut Frame) {
    // SAFETY: the HPET touches no memory.
    unsafe { mmio::write32(STATUS_ADDRESS.load(Ordering::Relaxed), 1) };
    arrivals::note_lapic(frame);
}

pub(crate) fn test(report: &mut Report, time: Time) {
    let Some(hpet) = Hpet::find() else {
        report.skip("HPET", "there is none");
        return;
    };
    STATUS_ADDRESS.store(hpet.address(STATUS), Ordering::Relaxed);
    let lapic = Lapic::enable(Mode::XApic);
    let to_me = u64::from(lapic.id()) << 56 | u64::from(VECTOR);
    let capabilities = hpet.read(CAPABILITIES);
    let hertz = hpet.hertz();
    println!("HPET: {hertz} Hz, capabilities {capabilities:#x}");
    report.within(
        "the period is at most 100 ns",
        hpet.period_fs(),
        1..=100_000_000,
    );
    report.holds("at least three timers", capabilities >> 8 & 0x1f >= 2);
    set_handler(VECTOR, arrivals::note_lapic);

    hpet.stop();
    let held = hpet.counter();
    tsc::wait(time.ticks(1, 1000));
    report.equal("stopped: the counter is held", hpet.counter(), held);
    hpet.write(COUNTER, 0xffff_ff00);
    report.equal(
        "stopped: the counter can be set",
        hpet.counter(),
        0xffff_ff00,
    );
    hpet.write(CONFIGURATION, ENABLE);
    time.expect_rate(report, "the counter counts", hertz, 20, || hpet.counter());
    report.holds(
        "the counter has more than 32 bits",
        hpet.counter() > u64::from(u32::MAX),
    );

    let millisecond = hertz / 1000;
    let routes = hpet.read(Hpet::timer(0)) >> 32;
    if let Some(pin) = (16..24).chain(0..16).find(|pin| routes & 1 << pin != 0) {
        let route = (pin as u64) << 9;
        ioapic::set_entry(pin, to_me);
        test_one_shot(report, time, hpet, route, millisecond);
        test_periodic(report, time, hpet, route, millisecond);
        test_level(report, time, hpet, (pin, route), to_me, millisecond);
        ioapic::set_entry(pin, ioapic::MASKED);
    } else {
        report.skip("comparators", "timer 0 reaches no pin");
    }
    test_legacy(report, time, hpet, to_me, millisecond);
    hpet.stop();
    hpet.write(CONFIGURATION, ENABLE);
    clear_handler(VECTOR);
}

fn test_one_shot(report: &mut Report, time: Time, hpet: Hpet, route: u64, millisecond: u64) {
    let arm = |configuration: u64, ticks: u64, mask: u64| {
        hpet.write(Hpet::timer(0), route | configuration);
        hpet.write(
            Hpet::comparator(0),
            hpet.counter().wrapping_add(ticks) & mask,
        );
        hpet.write(Hpet::timer(0), route | configuration | TIMER_ENABLE);
    };
    let period = (millisecond, hpet.hertz());
    time.expect(report, "one-shot", period, 1, || {
        arm(0, millisecond, u64::MAX)
    });
    time.expect_none(report, "one-shot: once", (3, 1000));
    time.expect(report, "one-shot with 32 bits", period, 1, || {
        arm(TIMER_32BIT, millisecond, u64::from(u32::MAX));
    });
    if platform::is_tcg() {
        report.skip(
            "one-shot across the end of 32 bits",
            "QEMU's comes at the end, too",
        );
    } else {
        // The comparator is beyond the end, the counter before it.
        hpet.write(CONFIGURATION, 0);
        hpet.write(COUNTER, u64::from(u32::MAX) - millisecond / 2);
        hpet.write(CONFIGURATION, ENABLE);
        time.expect(
            report,
            "one-shot across the end of 32 bits",
            period,
            1,
            || {
                arm(TIMER_32BIT, millisecond, u64::from(u32::MAX));
            },
        );
    }
    time.expect(report, "one-shot, far then near", period, 1, || {
        arm(0, 100 * millisecond, u64::MAX);
        arm(0, millisecond, u64::MAX);
    });
    arm(0, millisecond, u64::MAX);
    hpet.write(Hpet::timer(0), route);
    time.expect_none(report, "one-shot, disabled", (3, 1000));
    arm(0, millisecond, u64::MAX);
    hpet.write(CONFIGURATION, 0);
    let left = hpet.read(Hpet::comparator(0)).wrapping_sub(hpet.counter());
    report.within(
        "one-shot, the counter stopped: what is left",
        left,
        1..=millisecond,
    );
    time.expect_none(report, "one-shot, the counter stopped", (3, 1000));
    time.expect(
        report,
        "one-shot, the counter goes on",
        (left, hpet.hertz()),
        1,
        || {
            hpet.write(CONFIGURATION, ENABLE);
        },
    );
    hpet.write(Hpet::timer(0), route);
}

/// Starts timer 0 in 32-bit mode, by 32-bit writes as operating systems do it.
fn start_periodic(hpet: Hpet, configuration: u64, period: u64) {
    let set = TIMER_PERIODIC | TIMER_ENABLE | TIMER_SET | TIMER_32BIT;
    // SAFETY: the HPET touches no memory.
    unsafe {
        mmio::write32(hpet.address(Hpet::timer(0)), (configuration | set) as u32);
        let first = hpet.counter().wrapping_add(period) as u32;
        mmio::write32(hpet.address(Hpet::comparator(0)), first);
        mmio::write32(hpet.address(Hpet::comparator(0)), period as u32);
    }
}

/// Starts timer 0 in 64-bit mode, by 64-bit writes.
fn start_periodic_64(hpet: Hpet, configuration: u64, period: u64) {
    hpet.write(
        Hpet::timer(0),
        configuration | TIMER_PERIODIC | TIMER_ENABLE | TIMER_SET,
    );
    hpet.write(Hpet::comparator(0), hpet.counter() + period);
    hpet.write(Hpet::comparator(0), period);
}

fn test_periodic(report: &mut Report, time: Time, hpet: Hpet, route: u64, millisecond: u64) {
    if hpet.read(Hpet::timer(0)) & TIMER_CAN_BE_PERIODIC == 0 {
        report.skip("periodic", "timer 0 cannot");
        return;
    }
    let period = (millisecond, hpet.hertz());
    time.expect(report, "periodic", period, 20, || {
        start_periodic(hpet, route, millisecond)
    });
    let comparator = hpet.read(Hpet::comparator(0)) as u32;
    let ahead = comparator.wrapping_sub(hpet.counter() as u32);
    report.within(
        "periodic: the comparator is ahead",
        ahead.into(),
        1..=millisecond,
    );
    if platform::is_tcg() {
        report.skip(
            "periodic by 64-bit writes",
            "QEMU splits them, which ends the setting early",
        );
    } else {
        hpet.write(Hpet::timer(0), route);
        time.expect(report, "periodic by 64-bit writes", period, 20, || {
            start_periodic_64(hpet, route, millisecond);
        });
    }
    hpet.write(Hpet::timer(0), route);
    time.expect_none(report, "periodic, disabled", (3, 1000));
}

fn test_level(
    report: &mut Report,
    time: Time,
    hpet: Hpet,
    (pin, route): (u8, u64),
    to_me: u64,
    millisecond: u64,
) {
    ioapic::set_entry(pin, to_me | ioapic::LEVEL);
    set_handler(VECTOR, note_level);
    time.expect(
        report,
        "periodic, level-triggered",
        (millisecond, hpet.hertz()),
        10,
        || {
            start_periodic(hpet, route | TIMER_LEVEL, millisecond);
        },
    );
    hpet.write(Hpet::timer(0), route);
    // It ran on while results were printed.
    arrivals::drain();
    report.equal(
        "level: the status is clear after its handler",
        hpet.read(STATUS) & 1,
        0,
    );
    set_handler(VECTOR, arrivals::note_lapic);
    ioapic::set_entry(pin, to_me);
}

/// Legacy replacement: timer 0 takes the PIT's pin 2, timer 1 the RTC's pin 8.
fn test_legacy(report: &mut Report, time: Time, hpet: Hpet, to_me: u64, millisecond: u64) {
    if hpet.read(CAPABILITIES) & 1 << 15 == 0 {
        report.skip("legacy replacement", "not there");
        return;
    }
    let period = (millisecond, hpet.hertz());
    hpet.write(CONFIGURATION, ENABLE | LEGACY);
    ioapic::set_entry(2, to_me);
    time.expect(report, "legacy: timer 0 at pin 2", period, 10, || {
        start_periodic(hpet, 0, millisecond)
    });
    hpet.write(Hpet::timer(0), 0);
    pit::start(0, 2, 1193);
    time.expect_none(report, "legacy: the PIT is cut off", (3, 1000));
    pit::raise_line();
    ioapic::set_entry(2, ioapic::MASKED);
    ioapic::set_entry(8, to_me);
    time.expect(report, "legacy: timer 1 at pin 8", period, 1, || {
        hpet.write(Hpet::comparator(1), hpet.counter() + millisecond);
        hpet.write(Hpet::timer(1), TIMER_ENABLE);
    });
    hpet.write(Hpet::timer(1), 0);
    ioapic::set_entry(8, ioapic::MASKED);
    hpet.write(CONFIGURATION, ENABLE);
}
