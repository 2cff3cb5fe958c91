//! The RTC as its data sheet and its users have it.

use chrono::{NaiveDate, TimeDelta};
use proptest::prelude::*;

use super::*;
use crate::time::{CounterTicks, TimerTicks};

/// A guest whose TSC is the crystal: a tick is a cycle.
fn at(cycle: u64) -> Now {
    Now {
        counter: CounterTicks(cycle),
        timer: TimerTicks(cycle),
    }
}

const fn seconds(n: u64) -> u64 {
    n << 15
}

fn no_irq(_: bool) {}

fn date(year: i32, month: u32, day: u32, hour: u32, minute: u32, second: u32) -> NaiveDateTime {
    NaiveDate::from_ymd_opt(year, month, day)
        .unwrap()
        .and_hms_opt(hour, minute, second)
        .unwrap()
}

fn rtc() -> Rtc {
    Rtc::new(date(2024, 2, 28, 23, 59, 50), FREQUENCY, at(0))
}

fn get(rtc: &mut Rtc, index: u8, now: Now) -> u8 {
    rtc.write(0, index, now, &mut no_irq);
    rtc.read(1, now, &mut no_irq)
}

fn put(rtc: &mut Rtc, index: u8, value: u8, now: Now) {
    rtc.write(0, index, now, &mut no_irq);
    rtc.write(1, value, now, &mut no_irq);
}

/// Hour, minute and second registers.
fn clock(rtc: &mut Rtc, now: Now) -> [u8; 3] {
    [HOURS, MINUTES, SECONDS].map(|index| get(rtc, index, now))
}

/// Sets hour, minute and second as an OS does.
fn set_clock(rtc: &mut Rtc, [hour, minute, second]: [u8; 3], now: Now) {
    let b = get(rtc, B, now);
    put(rtc, B, b | SET, now);
    put(rtc, HOURS, hour, now);
    put(rtc, MINUTES, minute, now);
    put(rtc, SECONDS, second, now);
    put(rtc, B, b, now);
}

/// Sleeps until the next deadline, and lets it expire there; the time and the level.
fn sleep(rtc: &mut Rtc) -> Option<(u64, bool)> {
    let due = rtc.next_deadline()?;
    let mut level = false;
    rtc.expire(at(due.0), &mut |asserted| level = asserted);
    Some((due.0, level))
}

#[test]
fn shows_the_date_it_was_given_and_goes_on_from_it() {
    let mut rtc = rtc();
    assert_eq!(clock(&mut rtc, at(0)), [0x23, 0x59, 0x50]);
    assert_eq!(clock(&mut rtc, at(seconds(10) - 1)), [0x23, 0x59, 0x59]);
    let now = at(seconds(10));
    assert_eq!(clock(&mut rtc, now), [0x00, 0x00, 0x00]);
    let day = [CENTURY, YEAR, MONTH, DAY, WEEKDAY].map(|index| get(&mut rtc, index, now));
    // Thursday, 29 February 2024.
    assert_eq!(day, [0x20, 0x24, 0x02, 0x29, 5]);
    assert_eq!(get(&mut rtc, D, now), 0x80);
}

#[test]
fn it_goes_on_while_the_guests_time_stands() {
    let mut rtc = rtc();
    let now = at(seconds(1) + 100);
    rtc.run_on(seconds(3 * 3_600 + 9), now, &mut no_irq);
    assert_eq!(clock(&mut rtc, now), [0x03, 0x00, 0x00]);
    assert_eq!(get(&mut rtc, DAY, now), 0x29);
    assert_eq!(clock(&mut rtc, at(seconds(2) - 1)), [0x03, 0x00, 0x00]);
    assert_eq!(clock(&mut rtc, at(seconds(2))), [0x03, 0x00, 0x01]);
    // A chain that is held in reset counts nothing.
    put(&mut rtc, A, 0x66, at(seconds(2)));
    rtc.run_on(seconds(100), at(seconds(2)), &mut no_irq);
    assert_eq!(clock(&mut rtc, at(seconds(2))), [0x03, 0x00, 0x01]);
}

#[test]
fn alarms_that_came_meanwhile_interrupt_once() {
    let mut rtc = rtc();
    for (index, value) in [(HOURS_ALARM, 0), (MINUTES_ALARM, 0), (SECONDS_ALARM, 5)] {
        put(&mut rtc, index, value, at(0));
    }
    put(&mut rtc, B, 0x02 | ALARM, at(0));
    let mut level = false;
    rtc.run_on(seconds(3 * 86_400), at(100), &mut |asserted| {
        level = asserted
    });
    assert!(level);
    assert_ne!(get(&mut rtc, C, at(100)) & (ALARM | IRQF), 0);
    assert_eq!(get(&mut rtc, C, at(100)), 0);
    // The next one is that of the day after: 23:59:50 to 00:00:05.
    assert_eq!(sleep(&mut rtc), Some((seconds(15), true)));
}

#[test]
fn binary_and_twelve_hours_are_as_register_b_says() {
    let mut rtc = rtc();
    put(&mut rtc, B, 0x04, at(0));
    set_clock(&mut rtc, [0x80 | 11, 59, 58], at(0));
    for (index, value) in [(DAY, 30), (MONTH, 11), (YEAR, 24), (CENTURY, 20)] {
        put(&mut rtc, index, value, at(0));
    }
    assert_eq!(clock(&mut rtc, at(seconds(1))), [0x80 | 11, 59, 59]);
    assert_eq!(clock(&mut rtc, at(seconds(2))), [12, 0, 0]);
    let date = [DAY, MONTH, YEAR].map(|index| get(&mut rtc, index, at(seconds(2))));
    assert_eq!(date, [1, 12, 24]);
    assert_eq!(clock(&mut rtc, at(seconds(2 + 3_600))), [1, 0, 0]);
    assert_eq!(
        clock(&mut rtc, at(seconds(2 + 12 * 3_600))),
        [0x80 | 12, 0, 0]
    );
}

#[test]
fn set_stops_updates_and_clears_their_interrupt() {
    let mut rtc = rtc();
    put(&mut rtc, B, 0x02 | UIE, at(0));
    put(&mut rtc, B, 0x02 | UIE | SET, at(100));
    assert_eq!(get(&mut rtc, B, at(100)), 0x02 | SET);
    assert_eq!(rtc.next_deadline(), None);
    assert_eq!(clock(&mut rtc, at(seconds(100))), [0x23, 0x59, 0x50]);
    assert_eq!(get(&mut rtc, A, at(seconds(101) - 1)) & UIP, 0);
    // Bytes that are no time are kept as they were written.
    put(&mut rtc, SECONDS, 0xFE, at(seconds(100)));
    assert_eq!(get(&mut rtc, SECONDS, at(seconds(100))), 0xFE);
    put(&mut rtc, SECONDS, 0x30, at(seconds(100)));
    put(&mut rtc, B, 0x02, at(seconds(100) + 5));
    // The divider chain went on: the next second begins where it would have.
    assert_eq!(clock(&mut rtc, at(seconds(101) - 1))[2], 0x30);
    assert_eq!(clock(&mut rtc, at(seconds(101)))[2], 0x31);
}

#[test]
fn the_first_second_after_a_divider_reset_is_half_a_second() {
    let mut rtc = rtc();
    // As Linux sets the time: mc146818_set_time().
    let now = at(seconds(3) + 12_345);
    put(&mut rtc, B, 0x82, now);
    put(&mut rtc, A, 0x70 | 6, now);
    set_clock(&mut rtc, [0x12, 0x34, 0x56], now);
    put(&mut rtc, B, 0x02, now);
    put(&mut rtc, A, 0x26, at(now.counter.0 + 77));
    let released = now.counter.0 + 77;
    assert_eq!(clock(&mut rtc, at(released + 16_383))[2], 0x56);
    assert_eq!(clock(&mut rtc, at(released + 16_384))[2], 0x57);
    assert_eq!(clock(&mut rtc, at(released + 16_384 + seconds(1)))[2], 0x58);
}

#[test]
fn a_divider_in_reset_stops_time_and_interrupts() {
    let mut rtc = rtc();
    put(&mut rtc, A, 0x66, at(seconds(1)));
    put(&mut rtc, B, 0x02 | INTERRUPTS, at(seconds(1)));
    assert_eq!(rtc.next_deadline(), None);
    assert_eq!(clock(&mut rtc, at(seconds(1_000)))[2], 0x51);
    // What was before the reset.
    let c = get(&mut rtc, C, at(seconds(1_000)));
    assert_eq!(c, IRQF | PERIODIC | UPDATE);
    assert_eq!(get(&mut rtc, C, at(seconds(2_000))), 0);
}

#[test]
fn an_update_is_announced_2228_us_before() {
    let mut rtc = rtc();
    for second in 1..5 {
        let update = seconds(second);
        assert_eq!(get(&mut rtc, A, at(update - 74)), 0x26);
        assert_eq!(get(&mut rtc, A, at(update - 73)), 0xA6);
        assert_eq!(get(&mut rtc, A, at(update - 1)), 0xA6);
        assert_eq!(get(&mut rtc, A, at(update)), 0x26);
    }
}

#[test]
fn periodic_interrupts_have_the_rates_of_the_data_sheet() {
    let hertz = [
        256, 128, 8_192, 4_096, 2_048, 1_024, 512, 256, 128, 64, 32, 16, 8, 4, 2,
    ];
    for (rate, hertz) in (1..=15u8).zip(hertz) {
        let tsc = 2_494_138_337u64;
        let mut rtc = Rtc::new(date(2024, 1, 1, 0, 0, 0), Hertz::new(tsc), at(0));
        put(&mut rtc, A, 0x20 | rate, at(0));
        put(&mut rtc, B, 0x02 | PERIODIC, at(0));
        for k in 1..=3 * hertz {
            let (due, level) = sleep(&mut rtc).unwrap();
            assert_eq!(due, (k * tsc).div_ceil(hertz));
            assert!(level);
            assert_eq!(rtc.next_deadline(), None);
            // The third second's update sets its flag without being enabled.
            let c = get(&mut rtc, C, at(due));
            assert_eq!(c & !UPDATE & !ALARM, IRQF | PERIODIC);
        }
    }
}

#[test]
fn a_periodic_rate_of_zero_is_off() {
    let mut rtc = rtc();
    put(&mut rtc, A, 0x20, at(0));
    put(&mut rtc, B, 0x02 | PERIODIC, at(0));
    assert_eq!(rtc.next_deadline(), None);
    assert_eq!(get(&mut rtc, C, at(seconds(1) - 1)), 0);
}

#[test]
fn irq_8_stays_until_register_c_is_read() {
    let mut rtc = rtc();
    put(&mut rtc, B, 0x02 | UIE, at(10));
    assert_eq!(sleep(&mut rtc), Some((seconds(1), true)));
    // Updates that were missed are one, and nothing more happens to the line.
    assert_eq!(rtc.next_deadline(), None);
    let mut level = true;
    rtc.write(0, C, at(seconds(5)), &mut no_irq);
    let c = rtc.read(1, at(seconds(5) + 9), &mut |asserted| level = asserted);
    assert_eq!(c & (IRQF | UPDATE), IRQF | UPDATE);
    assert!(!level);
    assert_eq!(rtc.next_deadline(), Some(TimerTicks(seconds(6))));
    assert_eq!(rtc.read(1, at(seconds(5) + 10), &mut no_irq), 0);
}

#[test]
fn flags_are_set_without_being_enabled_and_interrupt_when_they_are() {
    let mut rtc = rtc();
    let now = at(seconds(2));
    let mut level = false;
    rtc.write(0, B, now, &mut no_irq);
    rtc.write(1, 0x02 | UIE, now, &mut |asserted| level = asserted);
    assert!(level);
    assert_eq!(get(&mut rtc, C, now), IRQF | UPDATE | PERIODIC);
}

#[test]
fn the_alarm_goes_off_at_its_time_of_day() {
    let mut rtc = rtc();
    put(&mut rtc, HOURS_ALARM, 0x00, at(0));
    put(&mut rtc, MINUTES_ALARM, 0x01, at(0));
    put(&mut rtc, SECONDS_ALARM, 0x30, at(0));
    put(&mut rtc, B, 0x02 | ALARM, at(0));
    for day in 0..3 {
        let due = seconds(10 + 90 + day * 86_400);
        assert_eq!(sleep(&mut rtc), Some((due, true)));
        assert_eq!(clock(&mut rtc, at(due)), [0x00, 0x01, 0x30]);
        assert_eq!(get(&mut rtc, C, at(due)) & ALARM, ALARM);
    }
}

#[test]
fn an_alarm_that_does_not_care_goes_off_each_second() {
    let mut rtc = rtc();
    for index in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM] {
        put(&mut rtc, index, 0xC0, at(0));
    }
    put(&mut rtc, B, 0x02 | ALARM, at(0));
    for second in 1..=5 {
        assert_eq!(sleep(&mut rtc), Some((seconds(second), true)));
        get(&mut rtc, C, at(seconds(second)));
    }
}

#[test]
fn an_alarm_follows_a_change_of_time() {
    let mut rtc = rtc();
    put(&mut rtc, HOURS_ALARM, 0x12, at(0));
    put(&mut rtc, B, 0x02 | ALARM, at(0));
    set_clock(&mut rtc, [0x11, 0x59, 0x55], at(seconds(1)));
    assert_eq!(rtc.next_deadline(), Some(TimerTicks(seconds(6))));
    set_clock(&mut rtc, [0x11, 0x59, 0xFF], at(seconds(2)));
    assert_eq!(rtc.next_deadline(), None);
}

#[test]
fn the_periodic_interrupt_runs_with_the_timer_line_and_the_date_with_the_counters() {
    let mut rtc = rtc();
    put(&mut rtc, A, 0x2F, at(0));
    put(&mut rtc, B, 0x02 | PERIODIC, at(0));
    // From 1 s on, the timer line has run at three times the rate.
    let now = Now {
        counter: CounterTicks(seconds(2)),
        timer: TimerTicks(seconds(4) + 5),
    };
    rtc.expire(now, &mut no_irq);
    assert_eq!(get(&mut rtc, C, now) & PERIODIC, PERIODIC);
    assert_eq!(
        rtc.next_deadline(),
        Some(TimerTicks(seconds(4) + seconds(1) / 2))
    );
    assert_eq!(clock(&mut rtc, now), [0x23, 0x59, 0x52]);
}

#[test]
fn the_rest_of_the_cmos_is_memory() {
    let mut rtc = rtc();
    rtc.store(0x15, 0x80);
    rtc.store(A, 0xFF);
    rtc.store(0xFF, 0xFF);
    assert_eq!(get(&mut rtc, 0x15, at(0)), 0x80);
    assert_eq!(get(&mut rtc, A, at(0)), 0x26);
    // Bit 7 of the index is the NMI mask.
    put(&mut rtc, 0x80 | 0x0F, 0x0A, at(0));
    assert_eq!(get(&mut rtc, 0x0F, at(0)), 0x0A);
    assert_eq!(rtc.read(0, at(0), &mut no_irq), 0xFF);
    put(&mut rtc, D, 0, at(0));
    assert_eq!(get(&mut rtc, D, at(0)), VRT);
}

proptest! {
    #[test]
    fn shows_the_time_of_the_calendar(
        start in 0..8_000_000_000i64,
        tsc in 1_000_000..6_000_000_000u64,
        began in 0..1u64 << 50,
        steps in prop::collection::vec(0..200_000_000_000_000u64, 1..8),
    ) {
        let start = date(1970, 1, 1, 0, 0, 0) + TimeDelta::seconds(start);
        let mut rtc = Rtc::new(start, Hertz::new(tsc), at(began));
        let mut now = began;
        for step in steps {
            now += step;
            // By its own crystal's cycles.
            let cycles = |ticks: u64| u128::from(ticks) * 32_768 / u128::from(tsc);
            let passed = (cycles(now) - cycles(began)) >> 15;
            let expected = start + TimeDelta::seconds(passed as i64);
            let [hour, minute, second] = clock(&mut rtc, at(now));
            let [century, year, month, day, weekday] =
                [CENTURY, YEAR, MONTH, DAY, WEEKDAY].map(|index| get(&mut rtc, index, at(now)));
            let shown =
                TimeRegisters { second, minute, hour, weekday, day, month, year, century };
            prop_assert_eq!(Some(shown), TimeRegisters::encode(expected, Format::of(0x02)));
        }
    }

    #[test]
    fn a_sleeper_misses_no_flag_that_a_poller_sees(
        rate in 0..16u8,
        alarm in prop::array::uniform3(prop_oneof![Just(0xC0u8), 0x00..0x25u8]),
        steps in prop::collection::vec(1..100_000u64, 1..50),
    ) {
        // Two of the same: one wakes at its deadlines first, the other is only looked at.
        let [mut sleeper, mut polled] = [rtc(), rtc()];
        for rtc in [&mut sleeper, &mut polled] {
            put(rtc, A, 0x20 | rate, at(0));
            for (index, value) in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].into_iter().zip(alarm) {
                put(rtc, index, value, at(0));
            }
            put(rtc, B, 0x02 | INTERRUPTS, at(0));
        }
        let mut now = 0;
        for step in steps {
            now += step;
            let asserted = sleeper.next_deadline().filter(|due| due.0 <= now).is_some();
            if asserted {
                sleep(&mut sleeper);
            }
            let c = get(&mut polled, C, at(now));
            prop_assert_eq!(c & IRQF != 0, asserted);
            prop_assert_eq!(get(&mut sleeper, C, at(now)), c);
        }
    }

    #[test]
    fn nothing_that_a_guest_writes_panics(
        accesses in prop::collection::vec((any::<u16>(), 0..0x40u8, any::<u8>(), 0..1u64 << 40), 0..80),
        tsc in 1..1u64 << 40,
    ) {
        let mut rtc = Rtc::new(date(9999, 12, 31, 23, 59, 59), Hertz::new(tsc), Now::default());
        let mut now = Now::default();
        for (port, index, value, ticks) in accesses {
            now.counter = now.counter.saturating_add(ticks);
            now.timer = now.timer.saturating_add(ticks / 3);
            rtc.write(0, index, now, &mut no_irq);
            rtc.write(port, value, now, &mut no_irq);
            rtc.read(port, now, &mut no_irq);
            rtc.expire(now, &mut no_irq);
            if let Some(due) = rtc.next_deadline() {
                prop_assert!(due > now.timer);
            }
        }
    }
}
