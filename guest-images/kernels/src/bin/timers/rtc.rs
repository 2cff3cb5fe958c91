//! The RTC's interrupts and time. MC146818A datasheet.

use kernels::interrupts::{Frame, clear_handler, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::rtc::{self, A, B, C, D, IRQ};
use kernels::{Report, ioapic, platform, tsc};

use crate::arrivals::{self, Time};

const VECTOR: u8 = 0x63;

/// Register B: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Register B: binary.
const BINARY: u8 = 1 << 2;
/// Register B: update-ended interrupts.
const UPDATE: u8 = 1 << 4;
/// Register B: alarm interrupts.
const ALARM: u8 = 1 << 5;
/// Register B: periodic interrupts.
const PERIODIC: u8 = 1 << 6;
/// Alarm registers: any value.
const ANY: u8 = 0xc0;

const SECONDS: u8 = 0;
const ALARMS: [u8; 3] = [1, 3, 5];

fn note(frame: &mut Frame) {
    let _ = rtc::read(C);
    arrivals::note_lapic(frame);
}

pub(crate) fn test(report: &mut Report, time: Time) {
    let lapic = Lapic::enable(Mode::XApic);
    set_handler(VECTOR, note);
    rtc::write(B, HOURS_24);
    rtc::write(A, 0x26);
    let _ = rtc::read(C);
    ioapic::set_entry(IRQ, u64::from(lapic.id()) << 56 | u64::from(VECTOR));
    report.equal("the battery is good", rtc::read(D) & 0x80, 0x80);
    report.equal("B holds", rtc::read(B), HOURS_24);
    test_periodic(report, time);
    test_update(report, time);
    rtc::write(B, HOURS_24);
    rtc::write(A, 0x26);
    let _ = rtc::read(C);
    ioapic::set_entry(IRQ, ioapic::MASKED);
    clear_handler(VECTOR);
}

fn test_periodic(report: &mut Report, time: Time) {
    for (name, rate, hertz, n) in [
        ("periodic at 1024 Hz", 6, 1024, 20),
        ("periodic at 8192 Hz", 3, 8192, 20),
        ("periodic at 64 Hz", 10, 64, 4),
    ] {
        // The divider runs on by itself: the first interrupt is the start.
        rtc::write(A, 0x20 | rate);
        let _ = rtc::read(C);
        rtc::write(B, HOURS_24 | PERIODIC);
        arrivals::forget();
        let _ = tsc::wait_until(time.ticks(3, hertz), || {
            kernels::interrupts::let_in();
            arrivals::count() > 0
        });
        time.expect(report, name, (1, hertz), n, || {});
    }
    rtc::write(B, HOURS_24);
    let _ = rtc::read(C);
    time.expect_none(report, "periodic, off", (3, 64));
    if platform::is_tcg() {
        report.skip(
            "the periodic flag without its interrupt",
            "QEMU's does not come",
        );
    } else {
        let came = tsc::wait_until(time.ticks(3, 64), || rtc::read(C) & 0x40 != 0);
        report.holds("the periodic flag without its interrupt", came);
    }
}

fn seconds() -> u8 {
    let bcd = rtc::read(SECONDS);
    (bcd >> 4) * 10 + (bcd & 0xf)
}

fn test_update(report: &mut Report, time: Time) {
    arrivals::forget();
    rtc::write(B, HOURS_24 | UPDATE);
    let first = tsc::wait_until(time.ticks(3, 2), || {
        kernels::interrupts::let_in();
        arrivals::count() > 0
    });
    report.holds("an update ends", first);
    let before = seconds();
    time.expect(report, "update-ended, each second", (1, 1), 1, || {});
    report.equal(
        "the seconds go on by one",
        (seconds() + 60 - before) % 60,
        1,
    );
    // An alarm at any time comes with each update.
    rtc::write(B, HOURS_24);
    for alarm in ALARMS {
        rtc::write(alarm, ANY);
    }
    let _ = rtc::read(C);
    rtc::write(B, HOURS_24 | ALARM);
    time.expect(
        report,
        "an alarm at any time, each second",
        (1, 1),
        1,
        || {},
    );
    let bcd = rtc::read(SECONDS);
    rtc::write(B, HOURS_24 | BINARY);
    report.equal("binary mode holds", rtc::read(B) & BINARY, BINARY);
    rtc::write(B, HOURS_24);
    report.holds("the seconds are BCD", bcd & 0xf < 10 && bcd >> 4 < 6);
    let in_progress = tsc::wait_until(time.ticks(3, 2), || rtc::read(A) & 0x80 != 0);
    report.holds("an update in progress shows", in_progress);
    let start = tsc::now();
    let _ = tsc::wait_until(time.ticks(1, 100), || rtc::read(A) & 0x80 == 0);
    report.within(
        "an update takes at most 2.3 ms",
        tsc::now() - start,
        0..=time.ticks(23, 10_000) + time.slack(),
    );
}
