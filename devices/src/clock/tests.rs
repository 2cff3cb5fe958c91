//! Properties of the virtual clock, against an exact reference in 128-bit integers.

extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// 100 years of a 4 GHz host.
const CENTURY: u64 = 100 * 366 * 86_400 * 4_000_000_000;

const SIXTEENTH: Rate = Rate(Rate::ONE.0 / 16);

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        Just(Rate::ONE),
        Just(Rate::MIN),
        Just(Rate::MAX),
        (1..=65_535u32).prop_map(|n| Rate::times(n).unwrap()),
        (Rate::MIN.0..=Rate::ONE.0).prop_map(Rate),
        (Rate::MIN.0..=Rate::MAX.0).prop_map(Rate),
    ]
}

fn rates() -> impl Strategy<Value = Rates> {
    (rate(), rate()).prop_map(|(counter, timer)| Rates { counter, timer })
}

/// Changes of rate, each so many host ticks after the one before.
fn changes() -> impl Strategy<Value = Vec<(u64, Rates)>> {
    let step = prop_oneof![0..4u64, 0..100_000u64, 0..4_000_000_000_000u64];
    prop::collection::vec((step, rates()), 0..40)
}

/// The definition: the sum of all pieces, in units of 2^-48 tick, nothing rounded.
struct Reference {
    host: u64,
    counter: u128,
    timer: u128,
    rates: Rates,
}

impl Reference {
    fn new(host: u64) -> Self {
        Self {
            host,
            counter: 0,
            timer: 0,
            rates: Rates::REAL_TIME,
        }
    }

    fn advance(&mut self, ticks: u64) {
        self.host += ticks;
        self.counter += u128::from(ticks) * u128::from(self.rates.counter.0);
        self.timer += u128::from(ticks) * u128::from(self.rates.timer.0);
    }

    fn now(&self) -> Now {
        Now {
            counter: CounterTicks(u64::try_from(self.counter >> 48).unwrap()),
            timer: TimerTicks(u64::try_from(self.timer >> 48).unwrap()),
        }
    }
}

fn run(start: u64, changes: &[(u64, Rates)]) -> (VirtualClock, Reference) {
    let mut clock = VirtualClock::new(HostTicks(start));
    let mut reference = Reference::new(start);
    for &(step, rates) in changes {
        reference.advance(step);
        clock.set_rates(HostTicks(reference.host), rates);
        reference.rates = rates;
    }
    (clock, reference)
}

proptest! {
    #[test]
    fn time_is_exact_after_any_changes_of_rate(
        start in 0..CENTURY,
        changes in changes(),
        then in 0..4_000_000_000_000u64,
    ) {
        let (clock, mut reference) = run(start, &changes);
        reference.advance(then);
        prop_assert_eq!(clock.now(HostTicks(reference.host)), reference.now());
    }

    #[test]
    fn time_is_continuous_and_monotonic_over_any_changes_of_rate(
        start in 0..CENTURY,
        changes in changes(),
    ) {
        let mut clock = VirtualClock::new(HostTicks(start));
        let mut host = start;
        let mut last = clock.now(HostTicks(host));
        for (step, rates) in changes {
            host += step;
            let before = clock.now(HostTicks(host));
            clock.set_rates(HostTicks(host), rates);
            let after = clock.now(HostTicks(host));
            prop_assert_eq!(before, after);
            prop_assert!(last.counter <= after.counter && last.timer <= after.timer);
            // A late reader, whose host time is from before the change, sees no earlier time.
            prop_assert_eq!(clock.now(HostTicks(host.saturating_sub(1_000))), after);
            last = after;
        }
    }

    #[test]
    fn host_deadline_is_the_first_host_tick_that_shows_the_deadline(
        start in 0..CENTURY,
        changes in changes(),
        distance in prop_oneof![1..100u64, 1..1_000_000_000_000_000_000u64],
    ) {
        let (clock, reference) = run(start, &changes);
        let now = clock.now(HostTicks(reference.host));
        let deadline = now.timer.saturating_add(distance);
        let due = clock.host_deadline(deadline);
        prop_assert!(due.0 > reference.host);
        if due.0 < u64::MAX {
            prop_assert!(clock.now(due).timer >= deadline);
        }
        prop_assert!(clock.now(HostTicks(due.0 - 1)).timer < deadline);
    }

    #[test]
    fn a_deadline_that_has_come_is_not_in_the_future(
        changes in changes(),
        ago in 0..1_000_000_000u64,
    ) {
        let (clock, reference) = run(0, &changes);
        let now = clock.now(HostTicks(reference.host));
        let due = clock.host_deadline(TimerTicks(now.timer.0.saturating_sub(ago)));
        prop_assert!(due.0 <= reference.host);
    }

    #[test]
    fn rdtsc_is_exact_at_integer_rates_and_at_most_one_tick_late_at_others(
        start in 0..CENTURY,
        changes in changes(),
        then in 0..4_000_000_000_000u64,
    ) {
        let (clock, reference) = run(start, &changes);
        let host = HostTicks(reference.host + then);
        let exact = clock.now(host).counter.0;
        let shown = clock.tsc_scaling().apply(host).0;
        // Modulo 2^64: the guest's very first tick may be seen a tick late, too.
        let late = exact.wrapping_sub(shown);
        if clock.rates().counter.0 % Rate::ONE.0 == 0 {
            prop_assert_eq!(late, 0);
        } else {
            prop_assert!(late <= 1, "late by {}", late as i64);
        }
    }

    #[test]
    fn rdtsc_does_not_go_back_over_a_change_of_rate(
        start in 0..CENTURY,
        changes in changes(),
        to in rates(),
        exit in 16..1_000u64,
    ) {
        let (mut clock, mut reference) = run(start, &changes);
        reference.advance(1_000);
        let before = clock.tsc_scaling().apply(HostTicks(reference.host));
        let exact_before = clock.now(HostTicks(reference.host));
        clock.set_rates(HostTicks(reference.host), to);
        let entry = HostTicks(reference.host + exit.max(to.settling_time()));
        let after = clock.tsc_scaling().apply(entry);
        prop_assert!(after.0.wrapping_sub(before.0) <= u64::MAX / 2);
        // Nor against what an emulated read has told the guest at the exit.
        prop_assert!(after >= exact_before.counter);
    }
}

/// A million changes, each to rates that `pick` makes of random numbers, and at most `longest`
/// host ticks apart.
fn a_million_changes_leave_no_drift(longest: u64, pick: impl Fn(&mut dyn FnMut() -> u64) -> Rate) {
    let mut clock = VirtualClock::new(HostTicks(0));
    let mut reference = Reference::new(0);
    // xorshift64: rates and steps with nothing in common with powers of two.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..1_000_000 {
        let rates = Rates {
            counter: pick(&mut random),
            timer: pick(&mut random),
        };
        clock.set_rates(HostTicks(reference.host), rates);
        reference.rates = rates;
        reference.advance(random() % longest);
        let now = clock.now(HostTicks(reference.host));
        assert_eq!(now, reference.now());
        assert_less_than_a_tick_late(now.counter.0, reference.counter);
        assert_less_than_a_tick_late(now.timer.0, reference.timer);
    }
}

#[test]
fn a_million_changes_of_rate_leave_no_drift() {
    a_million_changes_leave_no_drift(100_000_000, |random| {
        Rate(Rate::MIN.0 + random() % (Rate::MAX.0 - Rate::MIN.0 + 1))
    });
}

#[test]
fn a_million_changes_among_slow_and_fast_rates_leave_no_drift() {
    a_million_changes_leave_no_drift(100_000, |random| {
        // As many below one as above: every power of two is as likely.
        let power = 44 + random() % 20;
        let bits = 1u64 << power | random() & ((1 << power) - 1);
        Rate(bits.clamp(Rate::MIN.0, Rate::MAX.0))
    });
}

#[test]
fn a_thousand_switches_a_second_for_years_stay_exact() {
    // Suppression at N = 1000 for 1 ms of every 20 ms, over 3 years of a 3 GHz host, in
    // steps of an hour with 1,000 switches at the start of each.
    let fast = Rates {
        counter: Rate::times(1000).unwrap(),
        timer: Rate::times(1000).unwrap(),
    };
    let mut clock = VirtualClock::new(HostTicks(12_345));
    let mut reference = Reference::new(12_345);
    for _hour in 0..3 * 366 * 24 {
        for _ in 0..500 {
            for (rates, ticks) in [(fast, 3_000_000 / 1000), (Rates::REAL_TIME, 57_000_001)] {
                clock.set_rates(HostTicks(reference.host), rates);
                reference.rates = rates;
                reference.advance(ticks);
            }
        }
        reference.advance(3_000_000_000 * 3_600);
        assert_eq!(clock.now(HostTicks(reference.host)), reference.now());
    }
}

#[test]
fn tick_comes_every_5_ms_of_host_time_under_n_2() {
    let ms = 1_000_000;
    let mut clock = VirtualClock::new(HostTicks(0));
    let twice = Rate::times(2).unwrap();
    clock.set_rates(
        HostTicks(40 * ms),
        Rates {
            counter: twice,
            timer: twice,
        },
    );
    for tick in 1..=4 {
        let deadline = TimerTicks((40 + 10 * tick) * ms);
        let due = clock.host_deadline(deadline);
        assert_eq!(due, HostTicks((40 + 5 * tick) * ms));
        assert_eq!(clock.now(due).counter.0, deadline.0);
    }
}

#[test]
fn the_end_of_guest_time_is_a_standstill_without_deadlines() {
    let mut clock = VirtualClock::new(HostTicks(0));
    let rates = Rates {
        counter: Rate::MAX,
        timer: Rate::MAX,
    };
    clock.set_rates(HostTicks(0), rates);
    let end = Now {
        counter: CounterTicks(u64::MAX),
        timer: TimerTicks(u64::MAX),
    };
    assert_eq!(clock.now(HostTicks(u64::MAX / 65_535 + 1)), end);
    assert_eq!(clock.now(HostTicks(u64::MAX)), end);
    assert_eq!(
        clock.host_deadline(TimerTicks(u64::MAX)),
        HostTicks(u64::MAX)
    );
    clock.set_rates(HostTicks(u64::MAX), Rates::REAL_TIME);
    assert_eq!(clock.now(HostTicks(u64::MAX)), end);
    assert_eq!(
        clock.host_deadline(TimerTicks(u64::MAX)),
        HostTicks(u64::MAX)
    );
}

#[test]
fn rates_outside_their_range_do_not_exist() {
    assert_eq!(Rate::times(0), None);
    assert_eq!(Rate::times(65_536), None);
    assert_eq!(Rate::times(65_535), Some(Rate::MAX));
    assert_eq!(Rate::from_bits(Rate::MIN.0 - 1), None);
    assert_eq!(Rate::from_bits(Rate::MAX.0 + 1), None);
    assert_eq!(Rate::from_bits(Rate::ONE.0), Rate::times(1));
}

#[test]
fn time_stands_still_while_a_guest_is_paused() {
    let mut clock = VirtualClock::new(HostTicks(100));
    let before = clock.now(HostTicks(600));
    clock.skip(HostTicks(600), HostTicks(1_000_000));
    assert_eq!(clock.now(HostTicks(1_000_000)), before);
    assert_eq!(
        clock.now(HostTicks(1_000_007)).counter.0,
        before.counter.0 + 7
    );
}

/// The bound that the module's documentation gives for the error of [`VirtualClock::now`]:
/// what is shown is less than one tick behind the exact time, and never ahead of it.
fn assert_less_than_a_tick_late(shown: u64, exact: u128) {
    let late = exact
        .checked_sub(u128::from(shown) << 48)
        .expect("never ahead");
    assert!(late < 1 << 48, "{late} / 2^48 ticks late");
}

#[test]
fn below_rate_one_no_fraction_of_a_tick_is_lost_at_a_change() {
    // Sixteen host ticks at 1/16 are a tick, wherever they are taken from.
    let slow = Rates {
        counter: SIXTEENTH,
        timer: SIXTEENTH,
    };
    let mut clock = VirtualClock::new(HostTicks(0));
    for n in 1..=100_000u64 {
        let host = 1_001 * n;
        clock.set_rates(HostTicks(host - 1), slow);
        clock.set_rates(HostTicks(host), Rates::REAL_TIME);
        let now = clock.now(HostTicks(host));
        assert_eq!(now.counter.0, 1_000 * n + n / 16);
        assert_eq!(now.timer.0, now.counter.0);
    }
}

#[test]
fn below_rate_one_each_tick_lasts_its_time_and_none_is_left_out() {
    let third = Rate::from_bits(Rate::ONE.0 / 3).unwrap();
    let mut clock = VirtualClock::new(HostTicks(0));
    clock.set_rates(
        HostTicks(7),
        Rates {
            counter: SIXTEENTH,
            timer: third,
        },
    );
    let mut last = clock.now(HostTicks(7));
    for elapsed in 1..=100_000u64 {
        let host = HostTicks(7 + elapsed);
        let now = clock.now(host);
        assert_eq!(now.counter.0, 7 + elapsed / 16);
        // A third, rounded down to 48 bits, comes late by far less than a tick.
        assert_eq!(now.timer.0, 7 + (elapsed - 1) / 3);
        assert!(now.counter.0 - last.counter.0 <= 1 && now.timer.0 - last.timer.0 <= 1);
        if now.timer != last.timer {
            assert_eq!(clock.host_deadline(now.timer), host);
        }
        last = now;
    }
}

#[test]
fn after_the_settling_time_the_counter_has_advanced() {
    for rate in [
        Rate::MIN,
        SIXTEENTH,
        Rate(Rate::ONE.0 / 3),
        Rate::ONE,
        Rate::MAX,
    ] {
        let rates = Rates {
            counter: rate,
            timer: Rate::ONE,
        };
        let mut clock = VirtualClock::new(HostTicks(0));
        clock.set_rates(HostTicks(10), rates);
        let settled = clock.now(HostTicks(10 + rates.settling_time()));
        assert!(settled.counter > clock.now(HostTicks(10)).counter);
    }
}

proptest! {
    /// A course with ends is what setting the rates at its ends comes to.
    #[test]
    fn a_course_ends_when_it_says(
        start in 0..CENTURY,
        rates in rates(),
        ends in (0..4_000_000_000u64, 0..4_000_000_000u64),
        looks in prop::collection::vec(0..8_000_000_000u64, 1..20),
        ahead in 0..8_000_000_000u64,
        next in rates(),
    ) {
        let (counter_end, timer_end) = (start + 7 + ends.0, start + 7 + ends.1);
        let mut clock = VirtualClock::new(HostTicks(start));
        clock.set_course(HostTicks(start + 7), Course {
            rates,
            counter_until: HostTicks(counter_end),
            timer_until: HostTicks(timer_end),
        });
        // Each line by itself, since they do not know of each other.
        let line = |rate: Rate, end: u64| {
            let mut clock = VirtualClock::new(HostTicks(start));
            clock.set_rates(HostTicks(start + 7), Rates { counter: rate, timer: rate });
            let bent = {
                let mut clock = clock.clone();
                clock.set_rates(HostTicks(end), Rates::REAL_TIME);
                clock
            };
            (clock, bent, end)
        };
        let at = |(straight, bent, end): &(VirtualClock, VirtualClock, u64), host: u64| {
            if host < *end { straight.now(HostTicks(host)) } else { bent.now(HostTicks(host)) }
        };
        let (counter, timer) = (line(rates.counter, counter_end), line(rates.timer, timer_end));
        for look in looks {
            let host = start + 7 + look;
            let now = clock.now(HostTicks(host));
            prop_assert_eq!(now.counter, at(&counter, host).counter);
            prop_assert_eq!(now.timer, at(&timer, host).timer);
            // The next change goes on from there, fractions included.
            let mut changed = clock.clone();
            changed.set_rates(HostTicks(host), next);
            let mut expected = if host < counter_end { counter.0.clone() } else { counter.1.clone() };
            expected.set_rates(HostTicks(host), next);
            prop_assert_eq!(
                changed.now(HostTicks(host + ahead)).counter,
                expected.now(HostTicks(host + ahead)).counter
            );
        }
        // A deadline is the first host time at which the line has come to it.
        let deadline = clock.now(HostTicks(start + 7)).timer.saturating_add(ahead);
        let due = clock.host_deadline(deadline);
        prop_assert!(clock.now(due).timer >= deadline);
        if due.0 > start + 7 {
            prop_assert!(clock.now(HostTicks(due.0 - 1)).timer < deadline);
        }
    }

    #[test]
    fn a_century_in_one_rate_is_exact(
        start in 0..1u64 << 40,
        rates in rates(),
        // How much of the way to the end of the host's century, or of guest time.
        way in 0..=u64::from(u32::MAX),
    ) {
        let fastest = rates.counter.max(rates.timer);
        let end = (u128::from(u64::MAX - start) << 48) / u128::from(fastest.0);
        let host = u64::try_from(end).unwrap_or(CENTURY).min(CENTURY);
        let elapsed = ((u128::from(host) * u128::from(way)) >> 32) as u64;
        let mut clock = VirtualClock::new(HostTicks(0));
        let mut reference = Reference::new(0);
        reference.advance(start);
        clock.set_rates(HostTicks(start), rates);
        reference.rates = rates;
        reference.advance(elapsed);
        let now = clock.now(HostTicks(reference.host));
        assert_less_than_a_tick_late(now.counter.0, reference.counter);
        assert_less_than_a_tick_late(now.timer.0, reference.timer);
    }

    #[test]
    fn no_reader_sees_time_go_back_whenever_it_reads(
        start in 0..CENTURY,
        steps in prop::collection::vec((0..100u64, prop::option::of(rates())), 1..200),
    ) {
        let mut clock = VirtualClock::new(HostTicks(start));
        let mut host = start;
        let mut last = clock.now(HostTicks(host));
        for (step, change) in steps {
            host += step;
            let now = clock.now(HostTicks(host));
            prop_assert!(last.counter <= now.counter && last.timer <= now.timer);
            if let Some(rates) = change {
                clock.set_rates(HostTicks(host), rates);
                prop_assert_eq!(clock.now(HostTicks(host)), now);
                prop_assert_eq!(clock.rates(), rates);
            }
            last = now;
        }
    }

    #[test]
    fn the_lines_do_not_know_of_each_other(
        start in 0..CENTURY,
        changes in changes(),
        other in rate(),
        then in 0..4_000_000_000_000u64,
    ) {
        // The interval rate has no part in what the counters show, nor the clock rate in
        // when timers are due.
        let (clock, reference) = run(start, &changes);
        let keep = |counter: bool| -> VirtualClock {
            let changes: Vec<_> = changes
                .iter()
                .map(|&(step, rates)| {
                    let rates = if counter {
                        Rates { timer: other, ..rates }
                    } else {
                        Rates { counter: other, ..rates }
                    };
                    (step, rates)
                })
                .collect();
            run(start, &changes).0
        };
        let host = HostTicks(reference.host + then);
        prop_assert_eq!(keep(true).now(host).counter, clock.now(host).counter);
        prop_assert_eq!(keep(true).tsc_scaling(), clock.tsc_scaling());
        prop_assert_eq!(keep(false).now(host).timer, clock.now(host).timer);
        let deadline = clock.now(host).timer.saturating_add(1);
        prop_assert_eq!(keep(false).host_deadline(deadline), clock.host_deadline(deadline));
    }
}
