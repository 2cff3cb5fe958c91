//! The budget of a target: the CPU time that it may have, counted in real ticks.
//!
//! # The promise
//! Over any second, a target that is stopped as soon as [`Budget::left`] is zero gets at most the
//! second's allowance: `1/N` of one CPU, or what the operator says. A bucket alone does not promise
//! that: one that holds a second's allowance pays it out at once, and again what flows in
//! meanwhile. So use is also counted in a window that is never shorter than a second: slots of a
//! sixteenth, of which the oldest is forgotten only when it is over for a second.
//!
//! Where a target cannot be stopped at once, in the kernel, it runs into debt. The window
//! forgets a debt after a second; the bucket does not: it fills at the allowance, and nothing is
//! left before the debt is paid. So the long-run share holds whatever happens.

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

/// Slots that a second is divided into.
const SLOTS_PER_SECOND: u64 = 16;
/// Slots that are counted: a second's, and the current one.
const SLOTS: usize = SLOTS_PER_SECOND as usize + 1;

/// A share of one CPU in parts of a million: from 1, and above a million for more than one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Share(u32);

impl Share {
    /// All of one CPU.
    pub(crate) const ONE_CPU: Self = Self(1_000_000);

    /// Makes a share of `parts` of a million; `None` for zero.
    #[must_use]
    pub(crate) const fn from_millionths(parts: u32) -> Option<Self> {
        if parts == 0 { None } else { Some(Self(parts)) }
    }

    /// Makes a share of a `divisor`-th of one CPU.
    #[must_use]
    pub(crate) const fn of_one_cpu(divisor: u32) -> Self {
        let parts = Self::ONE_CPU.0 / if divisor == 0 { 1 } else { divisor };
        Self(if parts == 0 { 1 } else { parts })
    }

    /// Returns the parts of a million.
    #[must_use]
    pub(crate) const fn millionths(self) -> u32 {
        self.0
    }

    /// Returns this share of `ticks`.
    #[must_use]
    pub(crate) const fn of(self, ticks: u64) -> u64 {
        let share = ticks as u128 * self.0 as u128 / Self::ONE_CPU.0 as u128;
        if share > u64::MAX as u128 {
            u64::MAX
        } else {
            share as u64
        }
    }

    /// Returns the time, in ticks, of which `ticks` are this share.
    #[must_use]
    pub(super) const fn time_for(self, ticks: u64) -> u64 {
        let time = ticks as u128 * Self::ONE_CPU.0 as u128 / self.0 as u128;
        if time > u64::MAX as u128 {
            u64::MAX
        } else {
            time as u64
        }
    }
}

/// The use of a budget. The times are in ticks, and those of a second include up to a sixteenth before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetUse {
    /// The share of one CPU that may be used.
    pub share: Share,
    /// The time used in the last second.
    pub recent: u64,
    /// The most that was used in any second.
    pub highest: u64,
}

/// The CPU time that a target has used, and that it may still use.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    share: Share,
    /// The allowance of a second, in ticks.
    allowance: u64,
    /// A slot's length, in ticks.
    slot: u64,
    /// The ticks used in each of the last slots: slot `n` since time zero is at `n` modulo their
    /// number.
    used: [u64; SLOTS],
    /// The sum of `used`.
    in_window: u64,
    /// The largest that it has been.
    highest: u64,
    /// The number of the current slot.
    current: u64,
    /// The content of the bucket, in millionths of a tick: at most a second's allowance.
    bucket: i64,
    filled_at: HostTicks,
}

impl Budget {
    /// Makes a full budget of `share`, from `now` on, where the TSC counts at `tsc`.
    #[must_use]
    pub(crate) fn new(share: Share, tsc: Hertz, now: HostTicks) -> Self {
        let slot = (tsc.get() / SLOTS_PER_SECOND).max(1);
        let mut budget = Self {
            share,
            allowance: share.of(slot * SLOTS_PER_SECOND),
            slot,
            used: [0; SLOTS],
            in_window: 0,
            highest: 0,
            current: now.0 / slot,
            bucket: 0,
            filled_at: now,
        };
        budget.bucket = budget.depth();
        budget
    }

    /// Goes on with another share. What was the most in a second before does not count any more.
    pub(crate) fn set_share(&mut self, share: Share, now: HostTicks) {
        self.advance(now);
        self.share = share;
        self.allowance = share.of(self.slot * SLOTS_PER_SECOND);
        self.bucket = self.bucket.min(self.depth());
        self.highest = self.in_window;
    }

    /// Returns the share.
    #[must_use]
    pub(crate) const fn share(&self) -> Share {
        self.share
    }

    /// Returns the allowance of a second, in ticks.
    #[must_use]
    pub(crate) const fn allowance(&self) -> u64 {
        self.allowance
    }

    /// Returns what has been made of it up to `now`.
    pub(crate) fn usage(&mut self, now: HostTicks) -> BudgetUse {
        self.advance(now);
        BudgetUse {
            share: self.share,
            recent: self.in_window,
            highest: self.highest,
        }
    }

    /// Takes note that `ticks` were used up to `now`.
    pub(crate) fn charge(&mut self, ticks: u64, now: HostTicks) {
        self.advance(now);
        self.bucket = self.bucket.saturating_sub(millionths(ticks));
        // A stay in a CPU that is longer than a slot counts in the slot in which it ends: later
        // than it was, so no window is told less than it had.
        self.used[self.current as usize % SLOTS] += ticks;
        self.in_window += ticks;
        self.highest = self.highest.max(self.in_window);
    }

    /// Returns what may still be used at `now`, in ticks; negative for a debt.
    pub(crate) fn left(&mut self, now: HostTicks) -> i64 {
        self.advance(now);
        let bucket = self.bucket.div_euclid(Share::ONE_CPU.0.into());
        let allowance = i64::try_from(self.allowance).unwrap_or(i64::MAX);
        bucket.min(allowance.saturating_sub_unsigned(self.in_window))
    }

    /// Returns when `wanted` ticks (at most the allowance) will be left if nothing is used from
    /// `now` on.
    pub(crate) fn regained_at(&mut self, wanted: u64, now: HostTicks) -> HostTicks {
        self.advance(now);
        let now = now.max(self.filled_at);
        let missing = millionths(wanted).saturating_sub(self.bucket);
        let filling = missing.max(0).unsigned_abs().div_ceil(self.share.0.into());
        let by_bucket = now.saturating_add(filling);
        // Slots are forgotten one by one.
        let mut in_window = self.in_window;
        let mut forgotten = 0;
        let fits = |in_window: u64| in_window.saturating_add(wanted) <= self.allowance();
        while !fits(in_window) && forgotten < SLOTS as u64 {
            forgotten += 1;
            in_window -= self.used[((self.current + forgotten) % SLOTS as u64) as usize];
        }
        let by_window = match forgotten {
            0 => now,
            // The slot after the current one takes the place of the oldest.
            slots => HostTicks((self.current + slots).saturating_mul(self.slot)),
        };
        by_bucket.max(by_window)
    }

    /// Returns what the bucket can hold, in millionths of a tick.
    const fn depth(&self) -> i64 {
        millionths(self.allowance)
    }

    fn advance(&mut self, now: HostTicks) {
        let elapsed = now.since(self.filled_at);
        if elapsed == 0 {
            return;
        }
        self.filled_at = now;
        let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
        let filled = elapsed.saturating_mul(self.share.0.into());
        self.bucket = self.bucket.saturating_add(filled).min(self.depth());
        let slot = now.0 / self.slot;
        while self.current < slot {
            if slot - self.current > SLOTS as u64 {
                self.used = [0; SLOTS];
                self.in_window = 0;
                self.current = slot;
                break;
            }
            self.current += 1;
            let oldest = &mut self.used[self.current as usize % SLOTS];
            self.in_window -= *oldest;
            *oldest = 0;
        }
    }
}

/// Returns `ticks` in millionths; the most that there can be where that is less.
const fn millionths(ticks: u64) -> i64 {
    let exact = ticks.saturating_mul(Share::ONE_CPU.0 as u64);
    if exact > i64::MAX as u64 {
        i64::MAX
    } else {
        exact as i64
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const TSC: Hertz = Hertz::new(1_600_000_000);
    const SECOND: u64 = 1_600_000_000;

    #[test]
    fn a_second_has_its_share() {
        let mut budget = Budget::new(Share::of_one_cpu(1000), TSC, HostTicks(0));
        assert_eq!(budget.allowance(), SECOND / 1000);
        assert_eq!(budget.left(HostTicks(0)), (SECOND / 1000) as i64);
        budget.charge(1_000_000, HostTicks(1_000_000));
        assert_eq!(budget.left(HostTicks(1_000_000)), 600_000);
    }

    #[test]
    fn what_is_used_is_regained_after_a_second() {
        let mut budget = Budget::new(Share::of_one_cpu(1000), TSC, HostTicks(0));
        let allowance = budget.allowance();
        budget.charge(allowance, HostTicks(allowance));
        assert_eq!(budget.left(HostTicks(allowance)), 0);
        let again = budget.regained_at(1, HostTicks(allowance));
        assert!(
            again.0 >= SECOND && again.0 <= SECOND + SECOND / 16,
            "{again:?}"
        );
        assert!(budget.left(HostTicks(again.0 - 1)) < 1);
        assert!(budget.left(again) >= 1);
    }

    #[test]
    fn a_debt_is_paid_to_the_last_tick() {
        let mut budget = Budget::new(Share::of_one_cpu(100), TSC, HostTicks(0));
        let allowance = budget.allowance();
        // Five seconds' worth at once.
        budget.charge(5 * allowance, HostTicks(1));
        let clear = budget.regained_at(0, HostTicks(1));
        assert!(clear.0.abs_diff(4 * SECOND) <= 200, "{clear:?}");
        for second in 1..4 {
            assert!(budget.left(HostTicks(second * SECOND)) < 0, "{second}");
        }
        assert!(budget.left(clear) >= 0);
    }

    #[test]
    fn a_smaller_share_holds_at_once() {
        let mut budget = Budget::new(Share::ONE_CPU, TSC, HostTicks(0));
        budget.charge(SECOND, HostTicks(SECOND));
        let now = HostTicks(3 * SECOND);
        budget.set_share(Share::of_one_cpu(1000), now);
        assert_eq!(budget.left(now), (SECOND / 1000) as i64);
        assert_eq!(budget.usage(now).highest, 0);
    }

    proptest! {
        /// Who stops when nothing is left gets no more than the allowance in any second.
        #[test]
        fn no_second_has_more_than_its_allowance(
            divisor in 1u32..5000,
            steps in prop::collection::vec((0u64..SECOND / 3, 0u64..SECOND / 50), 1..300),
        ) {
            let mut budget = Budget::new(Share::of_one_cpu(divisor), TSC, HostTicks(0));
            let mut now = 0;
            let mut stays: Vec<(u64, u64)> = Vec::new();
            for (pause, wish) in steps {
                now += pause;
                let left = budget.left(HostTicks(now)).max(0) as u64;
                let used = wish.min(left);
                now += used;
                budget.charge(used, HostTicks(now));
                stays.push((now - used, now));
            }
            for &(_, end) in &stays {
                let start = end.saturating_sub(SECOND);
                let used: u64 = stays
                    .iter()
                    .map(|&(from, to)| to.min(end).saturating_sub(from.max(start)))
                    .sum();
                prop_assert!(used <= budget.allowance());
                prop_assert!(used <= budget.usage(HostTicks(now)).highest);
            }
        }

        /// What is promised to be left is.
        #[test]
        fn regained_when_it_says_and_not_before(
            divisor in 1u32..5000, used in 0u64..SECOND / 10, at in 0u64..4 * SECOND, part in 0u64..100,
        ) {
            let mut budget = Budget::new(Share::of_one_cpu(divisor), TSC, HostTicks(0));
            budget.charge(used, HostTicks(at));
            let wanted = budget.allowance() * part / 100;
            let when = budget.regained_at(wanted, HostTicks(at));
            let mut before = budget.clone();
            prop_assert!(budget.left(when) >= wanted as i64);
            if when > HostTicks(at) {
                prop_assert!(before.left(HostTicks(when.0 - 1)) < wanted as i64);
            }
        }
    }
}
