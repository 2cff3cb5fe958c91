//! The rates below one by which a VM's clock gives back what it has gained.
//!
//! # The controller
//! What is controlled is the lead, and the actuator is dear: each change of rate stops all VCPUs
//! of the VM for a moment. So one rate is chosen when the target is switched out, and stays until
//! the lead is zero or the target is back. It is chosen such that the lead is gone within the
//! half the guest time that others had between the target's last turns, its *horizon* `2 h`: a rate
//! `r` gives back `(1 / r - 1) * h` in guest time `h`, which is a lead `L` for `r = h / (h + L)`.
//! Half, because turns differ, and what one leaves over is added to the next lead; then it is part
//! of that, so errors of the horizon do not add up.
//!
//! A rate of at most [`GENTLE`] where that is more than enough: the guest's clock is to be right
//! soon, and nobody minds a clock that is slow by half for some milliseconds.
//!
//! While nobody runs who could read the clock it may all but stand still ([`Rate::MIN`]), and goes on
//! in real time by itself when the lead is gone. But timers of sleepers stand still with it: so a
//! large lead is given back gently then, too. VCPUs that wait for a physical CPU do not mind: what
//! the clock does not show of their waiting is not charged to whoever waits.
//!
//! Behind where it is to be, by an exit that came late, the clock catches up at [`CATCH_UP`].
//!
//! # Where the clock is to be
//! Where a target has one turn after the other it is not where real time is, but behind it by half of what a turn gains:
//! then it is ahead by as much after the turn, and never off by more than that half. Where no turn has come for a while it
//! is where real time is.

#![forbid(unsafe_code)]

use devices::clock::{Course, Rate, Rates};
use devices::time::{Hertz, HostTicks};

use super::lead::Lead;

/// The fastest rate below one.
const GENTLE: Rate = fraction(1, 2);
/// The part of a horizon, as a divisor, in which a lead is to be gone.
const HASTE: u64 = 2;
/// The most by which the clock is to be behind real time before a turn of a target, as a divisor of a second: half of
/// the lead that everybody takes for right.
const MOST_BEHIND: u64 = 132;
/// The time without a turn from which on it is to be right, as a divisor of a second.
const TURNS_EXPECTED: u64 = 4;
/// The lead of a clock that is right.
const RIGHT: Lead = Lead {
    counter: 0,
    timer: 0,
};
/// The rate of a clock that is behind.
const CATCH_UP: Rate = fraction(9, 8);

const fn fraction(numerator: u64, denominator: u64) -> Rate {
    match Rate::from_bits(Rate::ONE.bits() / denominator * numerator) {
        Some(rate) => rate,
        None => panic!("a rate between the slowest and the fastest"),
    }
}

/// The VCPUs that could see the VM's time pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observers {
    /// VCPUs that run.
    Run,
    /// VCPUs that wait for a physical CPU, while none runs.
    Wait,
    /// None: all are halted or parked.
    None,
}

/// The time in which a lead is to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// The others' guest time between two turns of the target.
    Horizon,
    /// A short time, as there is no target any more.
    Released,
}

/// The controller by which leads are given back.
#[derive(Clone, Debug)]
pub(super) struct GiveBack {
    /// The distance from real time, in ticks, below which the clock is right.
    tolerance: u64,
    /// The guest time that others had between turns of the target, about, in ticks.
    horizon: u64,
    shortest_horizon: u64,
    longest_horizon: u64,
    /// The most that the clock may stand still for while sleepers wait for their timers, in ticks.
    standstill: u64,
    /// The real time in which a lead is gone after the release, in ticks.
    release: u64,
    /// The rates of the two lines that are in force since the last turn of the target.
    chosen: Option<Rates>,
    haste: Haste,
    /// The lead at which the last turn of targets has begun.
    turn_began_at: Lead,
    /// The gain of a turn, about, of the longest of late; nothing where one does not follow the other.
    gain: Lead,
    most_behind: i64,
    /// The time until which another turn is expected, and how long that is after one, in ticks.
    turn_expected_until: HostTicks,
    turns_expected: u64,
}

impl GiveBack {
    /// Returns the controller on a machine whose TSC counts at `tsc`.
    #[must_use]
    pub(super) const fn new(tsc: Hertz) -> Self {
        let milliseconds = tsc.get() / 1000;
        Self {
            tolerance: milliseconds / 50,
            horizon: 4 * milliseconds,
            shortest_horizon: milliseconds / 100,
            longest_horizon: 100 * milliseconds,
            standstill: 8 * milliseconds,
            release: 800 * milliseconds,
            chosen: None,
            haste: Haste::Horizon,
            turn_began_at: RIGHT,
            gain: RIGHT,
            most_behind: (tsc.get() / MOST_BEHIND) as i64,
            turn_expected_until: HostTicks(0),
            turns_expected: tsc.get() / TURNS_EXPECTED,
        }
    }

    /// Takes note that a turn of targets begins with `lead`.
    pub(super) const fn turn_begins(&mut self, lead: Lead) {
        self.turn_began_at = lead;
    }

    /// Takes note that a turn of targets has ended at `now` with `lead`.
    pub(super) fn turn_ended(&mut self, lead: Lead, now: HostTicks) {
        let before = self.turn_began_at;
        let longest = |known: i64, gained: i64| gained.max(known - known / 8);
        self.gain = if now < self.turn_expected_until {
            Lead {
                counter: longest(self.gain.counter, lead.counter - before.counter),
                timer: longest(self.gain.timer, lead.timer - before.timer),
            }
        } else {
            RIGHT
        };
        self.turn_expected_until = now.saturating_add(self.turns_expected);
    }

    /// Returns until when the clock is to be behind real time, if it is at `now`.
    pub(super) fn behind_until(&self, now: HostTicks) -> Option<HostTicks> {
        let is_expected = self.haste == Haste::Horizon && now < self.turn_expected_until;
        let is_behind = is_expected && self.gain != RIGHT;
        is_behind.then_some(self.turn_expected_until)
    }

    /// Returns how far `lead` is from where the clock is to be at `now`.
    #[must_use]
    pub(super) fn distance(&self, lead: Lead, now: HostTicks) -> Lead {
        if self.behind_until(now).is_none() {
            return lead;
        }
        let behind = |gain: i64| (gain / 2).clamp(0, self.most_behind);
        Lead {
            counter: lead.counter.saturating_add(behind(self.gain.counter)),
            timer: lead.timer.saturating_add(behind(self.gain.timer)),
        }
    }

    /// Takes note that the clock is fast: a rate chosen before is out of date.
    pub(super) const fn gaining(&mut self) {
        self.chosen = None;
    }

    /// Takes note that others had `guest` ticks of guest time between two turns of the target. A
    /// horizon that is too long lets the lead grow, one that is too short makes the clock slower
    /// than it has to be for a moment: so it shrinks at once, and grows slowly.
    pub(super) fn turn_of_others(&mut self, guest: u64) {
        let guest = guest.clamp(self.shortest_horizon, self.longest_horizon);
        self.horizon = if guest < self.horizon {
            self.horizon / 2 + guest / 2
        } else {
            self.horizon - self.horizon / 8 + guest / 8
        };
    }

    /// Returns the course of the clock from `now` on for `lead`, and whether everything has been given back.
    pub(super) fn course(
        &mut self,
        lead: Lead,
        observers: Observers,
        haste: Haste,
        now: HostTicks,
    ) -> (Course, bool) {
        if self.haste != haste {
            self.haste = haste;
            self.chosen = None;
        }
        let lead = self.distance(lead, now);
        let done = |lead: i64| lead.unsigned_abs() <= self.tolerance;
        if done(lead.counter) && done(lead.timer) {
            self.chosen = None;
            return (Course::REAL_TIME, true);
        }
        let (horizon, release) = (self.horizon, self.release);
        let chosen = *self.chosen.get_or_insert_with(|| {
            let (counter, timer) = of_both(lead.counter, lead.timer, |lead| {
                choose(lead, haste, horizon, release)
            });
            Rates { counter, timer }
        });
        let gentle = match haste {
            Haste::Horizon => GENTLE,
            Haste::Released => chosen.counter.min(chosen.timer),
        };
        let line = |lead: i64, chosen: Rate| match observers {
            _ if done(lead) => Rate::ONE,
            _ if lead < 0 => CATCH_UP,
            Observers::Wait => Rate::MIN,
            Observers::None if lead.unsigned_abs() <= self.standstill => Rate::MIN,
            Observers::None => gentle,
            Observers::Run if chosen < Rate::ONE => chosen,
            // The line was right when the rates were chosen.
            Observers::Run => GENTLE,
        };
        let rates = Rates {
            counter: line(lead.counter, chosen.counter),
            timer: line(lead.timer, chosen.timer),
        };
        let end = |(lead, rate): (i64, Rate)| {
            time_to_zero(lead, rate).map_or(HostTicks(u64::MAX), |ticks| now.saturating_add(ticks))
        };
        let (counter_until, timer_until) = of_both(
            (lead.counter, rates.counter),
            (lead.timer, rates.timer),
            end,
        );
        let course = Course {
            rates,
            counter_until,
            timer_until,
        };
        (course, false)
    }
}

/// Returns `f` of what the two lines have, computed once where that is the same, as it mostly is.
fn of_both<T: PartialEq, R: Copy>(counter: T, timer: T, f: impl Fn(T) -> R) -> (R, R) {
    if counter == timer {
        let both = f(timer);
        return (both, both);
    }
    (f(counter), f(timer))
}

fn choose(lead: i64, haste: Haste, horizon: u64, release: u64) -> Rate {
    let one = u128::from(Rate::ONE.bits());
    let lead = u128::from(lead.max(0).unsigned_abs());
    let bits = match haste {
        Haste::Horizon => {
            let time = u128::from(horizon / HASTE);
            one * time / (time + lead).max(1)
        }
        Haste::Released => one - one * lead.min(release.into()) / u128::from(release.max(1)),
    };
    let bits = (bits as u64).clamp(Rate::MIN.bits(), GENTLE.bits());
    Rate::from_bits(bits).unwrap_or(GENTLE)
}

/// Returns the host ticks until a line that is ahead by `lead` is right at `rate`; `None` for
/// never.
pub(super) fn time_to_zero(lead: i64, rate: Rate) -> Option<u64> {
    time_to_reach(lead, 0, rate)
}

/// Returns the host ticks until a line that is ahead by `lead` is ahead by `wanted`, at `rate`;
/// `None` for never.
pub(super) fn time_to_reach(lead: i64, wanted: i64, rate: Rate) -> Option<u64> {
    let distance = (i128::from(wanted) - i128::from(lead)) << 48;
    let excess = i128::from(rate.bits()) - i128::from(Rate::ONE.bits());
    if excess == 0 || (distance < 0) != (excess < 0) {
        return None;
    }
    let ticks = distance.unsigned_abs().div_ceil(excess.unsigned_abs());
    Some(u64::try_from(ticks).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);
    const MS: i64 = 1_000_000;

    fn both(lead: i64) -> Lead {
        Lead {
            counter: lead,
            timer: lead,
        }
    }

    const NOW: HostTicks = HostTicks(1 << 40);

    /// The rate and the ticks for which it holds.
    fn answer(
        control: &mut GiveBack,
        lead: i64,
        observers: Observers,
        haste: Haste,
    ) -> (Rate, u64) {
        let (course, _) = control.course(both(lead), observers, haste, NOW);
        assert_eq!(course.rates.counter, course.rates.timer);
        assert_eq!(course.counter_until, course.timer_until);
        (course.rates.counter, course.counter_until.since(NOW))
    }

    fn running(control: &mut GiveBack, lead: i64) -> (Rate, u64) {
        answer(control, lead, Observers::Run, Haste::Horizon)
    }

    #[test]
    fn a_right_clock_runs_in_real_time() {
        let mut control = GiveBack::new(TSC);
        for lead in [0, 1000, -1000] {
            let (course, _) = control.course(both(lead), Observers::Run, Haste::Horizon, NOW);
            assert_eq!(course, Course::REAL_TIME);
        }
    }

    /// Has a target have a turn that gains `gain` ticks, from a lead of `lead`, up to `now`.
    fn turn(control: &mut GiveBack, lead: i64, gain: i64, now: HostTicks) {
        control.turn_begins(both(lead));
        control.gaining();
        control.turn_ended(both(lead + gain), now);
    }

    /// Returns the lead at which `control` leaves the clock at `now` for good.
    fn left_at(control: &mut GiveBack, haste: Haste, now: HostTicks) -> i64 {
        let is_left = |lead: &i64| control.course(both(*lead), Observers::Run, haste, now).1;
        (-20 * MS..20 * MS)
            .step_by(MS as usize / 100)
            .find(is_left)
            .unwrap()
    }

    #[test]
    fn between_turns_the_clock_is_behind_by_half_of_what_one_gains() {
        let mut control = GiveBack::new(TSC);
        let tolerance = MS / 10;
        let near =
            |lead: i64, expected: i64| assert!((lead - expected).abs() <= tolerance, "{lead}");
        turn(&mut control, 0, 12 * MS, NOW);
        near(left_at(&mut control, Haste::Horizon, NOW), 0);
        // Another one follows: from now on there are turns.
        let second = NOW.saturating_add(20 * MS as u64);
        turn(&mut control, 0, 12 * MS, second);
        near(left_at(&mut control, Haste::Horizon, second), -6 * MS);
        // A shorter one may be followed by a long one again.
        turn(&mut control, -6 * MS, 4 * MS, second);
        near(
            left_at(&mut control, Haste::Horizon, second),
            -6 * MS * 7 / 8,
        );
        // However long they are.
        turn(&mut control, -6 * MS, 300 * MS, second);
        near(left_at(&mut control, Haste::Horizon, second), -15 * MS / 2);
        let until = control.behind_until(second).unwrap();
        assert_eq!(until.since(second), TSC.get() / 4);
        near(left_at(&mut control, Haste::Horizon, until), 0);
        turn(&mut control, 0, 12 * MS, until);
        near(left_at(&mut control, Haste::Horizon, until), 0);
        // Nor when there are no more targets.
        turn(&mut control, 0, 12 * MS, until);
        near(left_at(&mut control, Haste::Released, until), 0);
    }

    #[test]
    fn the_lead_is_gone_within_the_time_that_others_have() {
        let mut control = GiveBack::new(TSC);
        for (lead, others) in [(4 * MS, 4 * MS), (350 * MS, 4 * MS), (950 * MS, 50 * MS)] {
            control.gaining();
            for _ in 0..80 {
                control.turn_of_others(others as u64);
            }
            let (rate, time) = running(&mut control, lead);
            let guest = ((u128::from(rate.bits()) * u128::from(time)) >> 48) as i64;
            assert!(guest <= others + MS / 100, "{guest} for {others}");
            assert!((lead - (time as i64 - guest)).abs() <= 1);
        }
    }

    #[test]
    fn one_rate_holds_until_the_lead_is_gone() {
        let mut control = GiveBack::new(TSC);
        let (first, _) = running(&mut control, 8 * MS);
        let (later, _) = running(&mut control, MS);
        assert_eq!(first, later);
        control.gaining();
        assert_eq!(running(&mut control, MS).0, GENTLE);
    }

    #[test]
    fn while_nobody_looks_the_clock_all_but_stands_still() {
        let mut control = GiveBack::new(TSC);
        let (rate, time) = answer(&mut control, MS, Observers::None, Haste::Horizon);
        assert_eq!(rate, Rate::MIN);
        assert!(time < 1_001_000);
        control.gaining();
        let (rate, _) = answer(&mut control, 100 * MS, Observers::Wait, Haste::Horizon);
        assert_eq!(rate, Rate::MIN);
    }

    #[test]
    fn sleepers_do_not_wait_long_for_their_timers() {
        let mut control = GiveBack::new(TSC);
        for _ in 0..80 {
            control.turn_of_others(1000 * MS as u64);
        }
        let (rate, _) = answer(&mut control, 100 * MS, Observers::None, Haste::Horizon);
        assert_eq!(rate, GENTLE);
    }

    #[test]
    fn after_the_release_even_a_large_lead_is_gone_within_a_second() {
        let mut control = GiveBack::new(TSC);
        for lead in [MS, 250 * MS, 500 * MS, 999 * MS] {
            let (_, time) = answer(&mut control, lead, Observers::Run, Haste::Released);
            assert!(time <= 1_000_000_000, "{lead}: {time:?}");
            control.gaining();
        }
    }

    #[test]
    fn a_clock_that_is_behind_catches_up() {
        let mut control = GiveBack::new(TSC);
        assert_eq!(running(&mut control, -MS), (CATCH_UP, 8_000_000));
    }

    #[test]
    fn each_line_gives_back_what_it_has_gained() {
        let mut control = GiveBack::new(TSC);
        let lead = Lead {
            counter: 2 * MS,
            timer: 0,
        };
        let (course, _) = control.course(lead, Observers::Run, Haste::Horizon, NOW);
        assert_eq!(course.rates.counter, GENTLE);
        assert_eq!(course.rates.timer, Rate::ONE);
        assert_eq!(course.timer_until, HostTicks(u64::MAX));
    }

    proptest! {
        #[test]
        fn the_rates_hold_for_as_long_as_they_say(
            lead in -1_000_000_000i64..2_000_000_000, horizon in 0u64..2_000_000_000,
        ) {
            let mut control = GiveBack::new(TSC);
            control.turn_of_others(horizon);
            let (rate, time) = running(&mut control, lead);
            if rate != Rate::ONE {
                let excess = i128::from(rate.bits()) - (1 << 48);
                let exact = (i128::from(lead) << 48) + excess * i128::from(time);
                // Past zero, and by no more than a tick.
                prop_assert!(exact.abs() < 1 << 48);
                prop_assert!(exact == 0 || (exact < 0) == (lead > 0));
            }
        }
    }
}
