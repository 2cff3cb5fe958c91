//! The PIT: channel 0 through the 8259s and through the I/O APIC, channel 2 through port 0x61.
//! 82C54 datasheet.

use arch::apic::{Register, delivery_mode, lvt};
use kernels::interrupts::{clear_handler, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::pit::{self, HERTZ};
use kernels::{Report, ioapic, pic, platform, tsc};

use crate::arrivals::{self, Time};

const VECTOR: u8 = 0x61;
const PIN: u8 = 2;
/// About 5 ms.
const LONG: u16 = 5966;
/// About 1 ms.
const COUNT: u16 = 1193;

pub(crate) fn test(report: &mut Report, time: Time) {
    let lapic = Lapic::enable(Mode::XApic);
    let period = (u64::from(COUNT), HERTZ);

    pic::init();
    set_handler(pic::BASE, arrivals::note_pic);
    lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    // A request that is withdrawn before it is acknowledged becomes the spurious IRQ 7.
    set_handler(pic::BASE + 7, |_| ());
    pic::unmask(0);
    // Mode 2 begins high: an edge, if the output was low before.
    pit::raise_line();
    time.expect(report, "mode 2 by the 8259", period, 20, || {
        pit::start(0, 2, COUNT)
    });
    time.expect(report, "mode 0 by the 8259", period, 1, || {
        pit::start(0, 0, COUNT)
    });
    time.expect_none(report, "mode 0: once", (3, 1000));
    // Mode 3 begins high: edges come once a period.
    time.expect(
        report,
        "mode 3 by the 8259",
        (u64::from(COUNT - 1), HERTZ),
        20,
        || {
            pit::start(0, 3, COUNT - 1);
        },
    );
    pit::raise_line();
    pic::mask_all();
    lapic.write(Register::LVT_LINT0, lvt::MASKED);
    clear_handler(pic::BASE);
    clear_handler(pic::BASE + 7);

    set_handler(VECTOR, arrivals::note_lapic);
    let entry = u64::from(lapic.id()) << 56 | u64::from(VECTOR);
    ioapic::set_entry(PIN, entry);
    time.expect(report, "mode 2 by the I/O APIC", period, 20, || {
        pit::start(0, 2, COUNT)
    });
    time.expect(
        report,
        "mode 2, the longest count",
        (65536, HERTZ),
        2,
        || pit::start(0, 2, 0),
    );
    ioapic::set_entry(PIN, ioapic::MASKED);
    clear_handler(VECTOR);

    test_reading(report, time);
    test_channel_2(report, time);
    pit::raise_line();
}

fn test_reading(report: &mut Report, time: Time) {
    pit::start(0, 2, 0);
    time.expect_rate(report, "channel 0 counts down", HERTZ, 50, || {
        u64::from(0_u16.wrapping_sub(pit::count(0)))
    });
    // A latch stays until it is read.
    pit::start(0, 2, 0);
    pit::control(0x00);
    tsc::wait(time.ticks(5, 1000));
    let latched = u16::from_le_bytes([pit::read_byte(0), pit::read_byte(0)]);
    report.within(
        "a latched count does not move",
        u64::from(0_u16.wrapping_sub(latched)),
        0..=200,
    );
    pit::start(0, 3, 0);
    report.equal(
        "the status shows mode and access",
        pit::status(0) & 0x3f,
        0x36,
    );
    pit::control(0x14);
    report.equal(
        "the status shows low-byte access",
        pit::status(0) & 0x3f,
        0x14,
    );
    if platform::is_tcg() {
        report.skip(
            "the status shows that no count is loaded",
            "QEMU's does not",
        );
    } else {
        report.equal(
            "the status shows that no count is loaded",
            pit::status(0) & 0x40,
            0x40,
        );
    }
    pit::write_byte(0, 200);
    tsc::wait(time.ticks(1, 1000));
    report.equal("and that it is", pit::status(0) & 0x40, 0);
    report.within(
        "low-byte access: the count",
        u64::from(pit::read_byte(0)),
        1..=200,
    );
}

fn test_channel_2(report: &mut Report, time: Time) {
    let due = time.ticks(LONG.into(), HERTZ);
    let grain = time.ticks(4, HERTZ) + due / 500 + time.slack();
    let ends = |start: u64| {
        let ended = tsc::wait_until(4 * due, pit::output2);
        (ended, tsc::now() - start)
    };
    pit::set_gate2(true);
    pit::start(2, 0, LONG);
    let start = tsc::now();
    report.holds("channel 2, mode 0: low at first", !pit::output2());
    let (ended, took) = ends(start);
    report.holds("channel 2, mode 0: high at last", ended);
    report.within(
        "channel 2, mode 0: in time",
        took,
        due.saturating_sub(grain)..=due + grain,
    );

    // Mode 3: half a period high, half low.
    pit::start(2, 3, LONG);
    let mut changes = 0;
    let mut last = pit::output2();
    let _ = tsc::wait_until(10 * due + due / 4, || {
        let output = pit::output2();
        changes += u64::from(output != last);
        last = output;
        false
    });
    report.within(
        "channel 2, mode 3: changes in ten periods",
        changes,
        19..=21,
    );

    pit::set_gate2(false);
    if platform::is_tcg() {
        report.skip(
            "channel 2's gate, and mode 1",
            "QEMU's gate does not hold, its mode 1 is inverted",
        );
    } else {
        test_gate(report, time);
    }
}

fn test_gate(report: &mut Report, time: Time) {
    let due = time.ticks(LONG.into(), HERTZ);
    let grain = time.ticks(4, HERTZ) + due / 500 + time.slack();
    let ends = |start: u64| {
        let _ = tsc::wait_until(4 * due, pit::output2);
        tsc::now() - start
    };
    pit::set_gate2(true);
    // The gate holds the count back.
    pit::start(2, 0, LONG);
    let start = tsc::now();
    pit::set_gate2(false);
    tsc::wait(2 * due);
    report.holds("channel 2, mode 0, gate closed: no end", !pit::output2());
    let held = pit::count(2);
    tsc::wait(due / 4);
    report.equal(
        "channel 2, mode 0, gate closed: the count is held",
        pit::count(2),
        held,
    );
    let closed = tsc::now() - start;
    pit::set_gate2(true);
    let took = ends(start);
    report.within(
        "channel 2, mode 0, gate opened: the rest",
        took - closed,
        due.saturating_sub(grain)..=due + grain,
    );

    // Mode 1: the gate's rise starts the shot.
    pit::set_gate2(false);
    pit::start(2, 1, LONG);
    report.holds("channel 2, mode 1: high before the gate", pit::output2());
    pit::set_gate2(true);
    let start = tsc::now();
    let fell = tsc::wait_until(due / 2, || !pit::output2());
    report.holds("channel 2, mode 1: low after the gate", fell);
    let took = ends(start);
    report.within(
        "channel 2, mode 1: in time",
        took,
        due.saturating_sub(grain)..=due + grain,
    );
    pit::set_gate2(false);
}
