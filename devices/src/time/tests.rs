//! Properties of the conversions of time.

use proptest::prelude::*;

use super::*;

fn hertz() -> impl Strategy<Value = Hertz> {
    prop_oneof![
        Just(3_579_545),
        Just(1_193_182),
        Just(32_768),
        Just(100_000_000),
        1..10_000_000_000u64,
        1..1u64 << 63,
    ]
    .prop_map(Hertz::new)
}

/// Frequencies that machines and devices have, with margin.
fn plausible_hertz() -> impl Strategy<Value = Hertz> {
    prop_oneof![
        Just(3_579_545),
        Just(1_193_182),
        Just(100_000_000),
        1_000_000..10_000_000_000u64,
    ]
    .prop_map(Hertz::new)
}

fn ticks() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..1_000_000u64, Just(u64::MAX)]
}

proptest! {
    #[test]
    fn a_ratio_converts_as_division_does(of in hertz(), to in hertz(), ticks in ticks()) {
        let ratio = Ratio::new(of, to);
        prop_assert_eq!(ratio.floor(ticks), of.periods_in(ticks, to));
        prop_assert_eq!(ratio.ceil(ticks), to.ticks_for(ticks, of));
    }

    #[test]
    fn a_counter_shows_a_period_exactly_from_its_tick_on(
        counter in plausible_hertz(),
        tsc in plausible_hertz(),
        periods in 1..1u64 << 48,
    ) {
        let first = counter.ticks_for(periods, tsc);
        prop_assert!(counter.periods_in(first, tsc) >= periods);
        prop_assert!(counter.periods_in(first - 1, tsc) < periods);
    }

    #[test]
    fn a_cycle_is_due_at_the_first_tick_that_shows_it(
        frequency in prop_oneof![Just(Hertz::new(32_768)), plausible_hertz()],
        tsc in plausible_hertz(),
        ahead in 1..1u64 << 32,
        counter in 0..1u64 << 48,
        timer in 0..1u64 << 62,
    ) {
        let oscillator = Oscillator::new(frequency, tsc);
        let armed = Now { counter: CounterTicks(counter), timer: TimerTicks(timer) };
        let cycle = oscillator.cycle(armed) + ahead;
        let due = oscillator.deadline(cycle, armed.lead());
        let at = |timer| {
            let now = Now { timer: TimerTicks(timer), ..armed };
            oscillator.timer_cycle(now, armed.lead())
        };
        prop_assert!(due > armed.timer);
        prop_assert!(at(due.0) >= cycle);
        prop_assert!(at(due.0 - 1) < cycle);
    }

    #[test]
    fn a_lead_places_counter_points_as_now_does(
        counter in 0..1u64 << 62,
        timer in 0..1u64 << 62,
        ahead in 0..1u64 << 61,
    ) {
        let now = Now { counter: CounterTicks(counter), timer: TimerTicks(timer) };
        let when = CounterTicks(counter + ahead);
        prop_assert_eq!(now.lead().deadline(when), now.deadline_at(when));
        prop_assert_eq!(now.lead().counter(now.deadline_at(when)), when);
    }
}

#[test]
fn never_stays_never() {
    let now = Now {
        counter: CounterTicks(1_000),
        timer: TimerTicks(10),
    };
    assert_eq!(
        now.lead().deadline(CounterTicks(u64::MAX)),
        TimerTicks(u64::MAX)
    );
    let slow = Oscillator::new(Hertz::new(1), Hertz::new(1_000_000_000));
    assert_eq!(slow.deadline(u64::MAX, now.lead()), TimerTicks(u64::MAX));
}

#[test]
fn a_frequency_has_bounds() {
    assert_eq!(Hertz::try_new(0), None);
    assert_eq!(Hertz::try_new(1 << 63), None);
    assert_eq!(
        Hertz::try_new(2_500_000_000).map(Hertz::get),
        Some(2_500_000_000)
    );
}

#[test]
fn ticks_have_a_length_in_nanoseconds() {
    assert_eq!(
        Hertz::new(3_000_000_000).nanos(3_000_000_001),
        1_000_000_000
    );
    assert_eq!(Hertz::new(1).nanos(u64::MAX), u64::MAX);
}
