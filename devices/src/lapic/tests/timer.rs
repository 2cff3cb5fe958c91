//! The APIC timer in its three modes.

use proptest::prelude::*;

use super::*;

const ONE_SHOT: u32 = 0x40;
const PERIODIC: u32 = 0x40 | 1 << 17;
const TSC_DEADLINE: u32 = 0x40 | 2 << 17;
const RESERVED: u32 = 0x40 | 3 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

/// A processor whose timer counts at `TIMER_HZ`, and has vector 0x40.
fn cpu(mode: u32) -> Cpu {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_TIMER, mode);
    cpu.write(Register::DIVIDE, DIVIDE_BY_1);
    cpu
}

#[test]
fn one_shot_counts_down_and_interrupts_once() {
    let mut cpu = cpu(ONE_SHOT);
    cpu.write(Register::INITIAL_COUNT, 1000);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 1000);
    cpu.wait(TICKS - 1);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 1000);
    cpu.wait(1);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 999);
    cpu.wait(999 * TICKS - 1);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 1);
    assert_eq!(cpu.apic.pending(), None);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(1000 * TICKS)));
    cpu.wait(1);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 0);
    assert_eq!(cpu.apic.next_deadline(), None);
    cpu.wait(5000 * TICKS);
    assert_eq!(cpu.handle(), None);
    assert_eq!(cpu.read(Register::INITIAL_COUNT), 1000);
}

#[test]
fn periodic_reloads_and_late_expiries_are_one() {
    let mut cpu = cpu(PERIODIC);
    cpu.write(Register::INITIAL_COUNT, 1000);
    for _ in 0..3 {
        cpu.wait(1000 * TICKS - 1);
        assert_eq!(cpu.handle(), None);
        cpu.wait(1);
        assert_eq!(cpu.read(Register::CURRENT_COUNT), 1000);
        assert_eq!(cpu.handle(), Some(0x40));
    }
    cpu.wait(3500 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.handle(), None);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 500);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(7000 * TICKS)));
}

#[test]
fn a_count_of_zero_stops() {
    let mut cpu = cpu(PERIODIC);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(10 * TICKS);
    cpu.write(Register::INITIAL_COUNT, 0);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 0);
    assert_eq!(cpu.apic.next_deadline(), None);
}

#[test]
fn writing_the_count_again_restarts() {
    let mut cpu = cpu(ONE_SHOT);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(600 * TICKS);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(999 * TICKS);
    assert_eq!(cpu.handle(), None);
    cpu.wait(TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
}

#[test]
fn divide_configurations() {
    for (configuration, divisor) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ] {
        let mut cpu = cpu(ONE_SHOT);
        cpu.write(Register::DIVIDE, configuration);
        cpu.write(Register::INITIAL_COUNT, 100);
        assert_eq!(
            cpu.apic.next_deadline(),
            Some(TimerTicks(100 * divisor * TICKS)),
            "{configuration:#b}"
        );
        cpu.wait(divisor * TICKS);
        assert_eq!(cpu.read(Register::CURRENT_COUNT), 99);
        assert_eq!(cpu.read(Register::DIVIDE), configuration);
    }
}

#[test]
fn after_reset_the_timer_divides_by_two() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_TIMER, ONE_SHOT);
    cpu.write(Register::INITIAL_COUNT, 100);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(200 * TICKS)));
    cpu.write(Register::DIVIDE, DIVIDE_BY_1);
    cpu.apic.init_reset();
    cpu.write(Register::SVR, 0x1ff);
    cpu.write(Register::LVT_TIMER, ONE_SHOT);
    cpu.write(Register::INITIAL_COUNT, 100);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(200 * TICKS)));
}

#[test]
fn a_new_divisor_goes_on_from_the_present_count() {
    let mut cpu = cpu(PERIODIC);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(400 * TICKS);
    cpu.write(Register::DIVIDE, 0b0000);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 600);
    cpu.wait(2 * TICKS);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 599);
    cpu.wait(1198 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 1000);
    cpu.wait(2000 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
}

#[test]
fn one_shot_made_periodic_goes_on_counting() {
    let mut cpu = cpu(ONE_SHOT);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(900 * TICKS);
    cpu.write(Register::LVT_TIMER, PERIODIC);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 100);
    cpu.wait(100 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 1000);
    cpu.wait(1000 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
}

#[test]
fn periodic_made_one_shot_stops_at_the_next_zero() {
    let mut cpu = cpu(PERIODIC);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(2900 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
    cpu.write(Register::LVT_TIMER, ONE_SHOT);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 100);
    cpu.wait(100 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
    cpu.wait(1000 * TICKS);
    assert_eq!(cpu.handle(), None);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 0);
    cpu.write(Register::LVT_TIMER, PERIODIC);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 0, "stopped is stopped");
    assert_eq!(cpu.apic.next_deadline(), None);
}

#[test]
fn a_masked_timer_counts_without_interrupting() {
    let mut cpu = cpu(PERIODIC | LVT_MASKED);
    cpu.write(Register::INITIAL_COUNT, 1000);
    cpu.wait(1500 * TICKS);
    assert_eq!(cpu.handle(), None);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 500);
    cpu.write(Register::LVT_TIMER, PERIODIC);
    assert_eq!(cpu.handle(), None, "what has passed has passed");
    cpu.wait(500 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
}

#[test]
fn what_is_due_is_raised_by_the_entry_of_its_time() {
    let mut cpu = cpu(ONE_SHOT);
    cpu.write(Register::INITIAL_COUNT, 1000);
    // Nobody calls `expire` in between.
    cpu.now = at(1000 * TICKS);
    cpu.write(Register::LVT_TIMER, 0x41);
    assert_eq!(cpu.handle(), Some(0x40));
}

#[test]
fn a_timer_with_an_illegal_vector_is_an_error() {
    let mut cpu = cpu(0x0f);
    cpu.write(Register::INITIAL_COUNT, 1);
    cpu.wait(TICKS);
    assert_eq!(cpu.handle(), None);
    assert_eq!(cpu.esr(), 0x40);
}

#[test]
fn a_deadline_fires_when_the_tsc_reaches_it() {
    let mut cpu = cpu(TSC_DEADLINE);
    cpu.apic.set_tsc_deadline(cpu.now, 5000);
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 5000);
    cpu.wait(4999);
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 5000);
    assert_eq!(cpu.handle(), None);
    cpu.wait(1);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
    assert_eq!(cpu.apic.next_deadline(), None);
}

#[test]
fn a_deadline_in_the_past_fires_at_once_and_zero_disarms() {
    let mut cpu = cpu(TSC_DEADLINE);
    cpu.wait(10_000);
    cpu.apic.set_tsc_deadline(cpu.now, 1);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
    cpu.apic.set_tsc_deadline(cpu.now, 10_000);
    assert_eq!(cpu.handle(), Some(0x40), "the present is past enough");
    cpu.apic.set_tsc_deadline(cpu.now, 20_000);
    cpu.apic.set_tsc_deadline(cpu.now, 0);
    assert_eq!(cpu.apic.next_deadline(), None);
    cpu.wait(20_000);
    assert_eq!(cpu.handle(), None);
}

#[test]
fn a_masked_deadline_passes_in_silence() {
    let mut cpu = cpu(TSC_DEADLINE | LVT_MASKED);
    cpu.apic.set_tsc_deadline(cpu.now, 100);
    cpu.wait(100);
    assert_eq!(cpu.handle(), None);
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
}

#[test]
fn deadlines_are_in_terms_of_the_guests_own_tsc() {
    let mut cpu = cpu(TSC_DEADLINE);
    cpu.wait(1000);
    // The guest writes its TSC to zero: a wrapping offset.
    cpu.apic.set_tsc_offset(cpu.now, 0u64.wrapping_sub(1000));
    cpu.apic.set_tsc_deadline(cpu.now, 500);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(1500)));
    // And moves it on while armed: closer, then beyond.
    cpu.apic.set_tsc_offset(cpu.now, 0u64.wrapping_sub(800));
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(1300)));
    assert_eq!(cpu.handle(), None);
    cpu.apic.set_tsc_offset(cpu.now, 0);
    assert_eq!(cpu.handle(), Some(0x40));
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
}

#[test]
fn a_deadline_is_due_on_the_timer_line() {
    let mut cpu = cpu(TSC_DEADLINE);
    cpu.now = Now {
        counter: CounterTicks(1000),
        timer: TimerTicks(70),
    };
    cpu.apic.set_tsc_deadline(cpu.now, 1500);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(570)));
    cpu.apic.set_tsc_deadline(cpu.now, u64::MAX);
    assert_eq!(
        cpu.apic.next_deadline(),
        Some(TimerTicks(u64::MAX - 1000 + 70))
    );
}

#[test]
fn deadline_and_count_do_not_mix() {
    let mut cpu = cpu(TSC_DEADLINE);
    cpu.write(Register::INITIAL_COUNT, 1000);
    assert_eq!(cpu.apic.next_deadline(), None);
    assert_eq!(cpu.read(Register::INITIAL_COUNT), 0);
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 0);
    cpu.write(Register::LVT_TIMER, ONE_SHOT);
    cpu.apic.set_tsc_deadline(cpu.now, 1000);
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
    assert_eq!(cpu.apic.next_deadline(), None);
}

#[test]
fn changing_to_or_from_deadline_mode_disarms() {
    let mut cpu = cpu(TSC_DEADLINE);
    cpu.apic.set_tsc_deadline(cpu.now, 1000);
    cpu.write(Register::LVT_TIMER, TSC_DEADLINE | LVT_MASKED);
    assert_eq!(cpu.apic.tsc_deadline(cpu.now), 1000, "masking is no change");
    for mode in [ONE_SHOT, PERIODIC, RESERVED] {
        cpu.apic.set_tsc_deadline(cpu.now, 1000);
        cpu.write(Register::LVT_TIMER, mode);
        assert_eq!(cpu.apic.next_deadline(), None);
        assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
        cpu.write(Register::INITIAL_COUNT, 1000);
        cpu.write(Register::LVT_TIMER, TSC_DEADLINE);
        assert_eq!(cpu.apic.next_deadline(), None);
        assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
    }
}

proptest! {
    /// The count is what exact rational arithmetic says, at any frequencies, and the
    /// interrupt comes in the first tick in which the count is zero.
    #[test]
    fn counts_and_expiries_are_exact(
        tsc_hz in 1_000_000..10_000_000_000u64,
        timer_hz in 1_000..4_000_000_000u64,
        configuration in 0..8u32,
        count in 1..=u32::MAX,
        wait in 0..u64::MAX / 4,
    ) {
        let mut cpu = Cpu::powered_up(0);
        cpu.apic = LocalApic::new(ApicConfig {
            tsc_hz: Hertz::new(tsc_hz),
            timer_hz: Hertz::new(timer_hz),
            ..config(0)
        });
        cpu.write(Register::SVR, 0x1ff);
        cpu.write(Register::LVT_TIMER, ONE_SHOT);
        cpu.write(Register::DIVIDE, configuration & 3 | (configuration & 4) << 1);
        cpu.write(Register::INITIAL_COUNT, count);
        let divisor = 1u128 << ((configuration + 1) & 7);
        let elapsed = |ticks: u64| {
            u128::from(ticks) * u128::from(timer_hz) / (u128::from(tsc_hz) * divisor)
        };
        let due = cpu.apic.next_deadline().unwrap().0;
        prop_assert!(elapsed(due) >= u128::from(count));
        prop_assert!(elapsed(due - 1) < u128::from(count));
        cpu.wait(wait);
        let left = u128::from(count).saturating_sub(elapsed(wait));
        prop_assert_eq!(u128::from(cpu.read(Register::CURRENT_COUNT)), left);
        prop_assert_eq!(cpu.handle().is_some(), left == 0);
    }

    /// Whenever it is looked at, a periodic timer is where it would be if it had been looked
    /// at every tick: the k-th expiry is the first tick with k periods behind it.
    #[test]
    fn periodic_expiries_do_not_drift(
        tsc_hz in 1_000_000..10_000_000_000u64,
        timer_hz in 1_000_000..4_000_000_000u64,
        period in 100..1_000_000u32,
        waits in prop::collection::vec(0..1u64 << 40, 1..50),
    ) {
        let mut cpu = Cpu::powered_up(0);
        cpu.apic = LocalApic::new(ApicConfig {
            tsc_hz: Hertz::new(tsc_hz),
            timer_hz: Hertz::new(timer_hz),
            ..config(0)
        });
        cpu.write(Register::SVR, 0x1ff);
        cpu.write(Register::DIVIDE, DIVIDE_BY_1);
        cpu.write(Register::LVT_TIMER, PERIODIC);
        cpu.write(Register::INITIAL_COUNT, period);
        let mut periods_seen = 0;
        for wait in waits {
            cpu.wait(wait);
            let counts = u128::from(cpu.now.timer.0) * u128::from(timer_hz) / u128::from(tsc_hz);
            let periods = counts / u128::from(period);
            prop_assert_eq!(cpu.handle().is_some(), periods > periods_seen);
            periods_seen = periods;
            prop_assert_eq!(
                u128::from(cpu.read(Register::CURRENT_COUNT)),
                u128::from(period) - counts % u128::from(period)
            );
            let next = ((periods + 1) * u128::from(period) * u128::from(tsc_hz))
                .div_ceil(u128::from(timer_hz));
            prop_assert_eq!(cpu.apic.next_deadline().map(|due| u128::from(due.0)), Some(next));
        }
    }
}

#[test]
fn a_masked_timer_of_the_shortest_period_costs_nothing_and_counts_all_the_same() {
    let mut cpu = cpu(PERIODIC | 1 << 16);
    cpu.write(Register::INITIAL_COUNT, 3);
    assert_eq!(cpu.apic.next_deadline(), None, "nobody hears it");
    for round in 0..100 {
        for left in [3, 2, 1] {
            assert_eq!(cpu.read(Register::CURRENT_COUNT), left, "round {round}");
            cpu.now = at(cpu.now.timer.0 + TICKS);
        }
    }
    // What was due while it was masked is lost; the next expiry is not.
    cpu.now = at(cpu.now.timer.0 + TICKS);
    cpu.write(Register::LVT_TIMER, PERIODIC);
    assert_eq!(cpu.handle(), None);
    let next = TimerTicks(303 * TICKS);
    assert_eq!(cpu.apic.next_deadline(), Some(next));
    cpu.wait(2 * TICKS);
    assert_eq!(cpu.handle(), Some(0x40));
}

#[test]
fn a_masked_one_shot_timer_that_ran_out_does_not_interrupt_when_it_is_unmasked() {
    for mode in [ONE_SHOT, TSC_DEADLINE] {
        let mut cpu = cpu(mode | 1 << 16);
        if mode == ONE_SHOT {
            cpu.write(Register::INITIAL_COUNT, 10);
        } else {
            cpu.apic.set_tsc_deadline(cpu.now, 10 * TICKS);
        }
        assert_eq!(cpu.apic.next_deadline(), None);
        cpu.now = at(20 * TICKS);
        cpu.write(Register::LVT_TIMER, mode);
        assert_eq!(cpu.handle(), None);
        assert_eq!(cpu.apic.next_deadline(), None);
        assert_eq!(cpu.apic.tsc_deadline(cpu.now), 0);
    }
}

#[test]
fn disabling_the_apic_by_software_masks_its_timer() {
    let mut cpu = cpu(PERIODIC);
    cpu.write(Register::INITIAL_COUNT, 10);
    assert!(cpu.apic.next_deadline().is_some());
    cpu.write(Register::SVR, 0xff);
    assert_eq!(cpu.apic.next_deadline(), None);
}
