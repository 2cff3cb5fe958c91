//! What may be had for nothing: a share of all time, and some of it in a row.
//!
//! Ticks are [taken](Allowance::take) as far as they are there, or [charged](Allowance::charge) whether
//! they are there or not: then what is too much has to be earned before more is
//! [there](Allowance::there_at).

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

/// An allowance of ticks.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    /// The share of all time that is free, as a divisor: one tick in so many.
    share: u64,
    /// The ticks that are left, times `share`; negative for a debt.
    credit: i64,
    most: i64,
    earned_at: HostTicks,
}

impl Allowance {
    /// Makes a full allowance of one tick in `share`, of which what `time`, in ticks, earns may be had in
    /// a row.
    #[must_use]
    pub(super) const fn new(share: u64, time: u64, now: HostTicks) -> Self {
        let most = time as i64;
        Self {
            share,
            credit: most,
            most,
            earned_at: now,
        }
    }

    /// Makes a full allowance of one tick in 256, on a machine whose TSC counts at `tsc`: what a tenth
    /// of a second earns may be had in a row.
    #[must_use]
    pub(super) const fn few(tsc: Hertz, now: HostTicks) -> Self {
        Self::new(256, tsc.get() / 10, now)
    }

    /// Takes `wanted` ticks, or what is left of them, and returns how many that are.
    pub(super) fn take(&mut self, wanted: u64, now: HostTicks) -> u64 {
        self.earn(now);
        let taken = wanted.min(self.credit.max(0).unsigned_abs() / self.share);
        self.charge(taken, now);
        taken
    }

    /// Takes `ticks`, whether they are left or not.
    pub(super) fn charge(&mut self, ticks: u64, now: HostTicks) {
        self.earn(now);
        self.credit = self
            .credit
            .saturating_sub_unsigned(ticks.saturating_mul(self.share));
    }

    /// Gives back `ticks` that were charged, and were not used.
    pub(super) fn give_back(&mut self, ticks: u64) {
        let credit = ticks.saturating_mul(self.share);
        self.credit = self.credit.saturating_add_unsigned(credit).min(self.most);
    }

    /// Returns when `wanted` ticks, or a full allowance if that is less, are there if none are taken
    /// from `now` on: `now`, if they are.
    pub(super) fn there_at(&mut self, wanted: u64, now: HostTicks) -> HostTicks {
        self.earn(now);
        let needed = i64::try_from(wanted.saturating_mul(self.share)).unwrap_or(i64::MAX);
        let missing = needed.min(self.most).saturating_sub(self.credit);
        now.saturating_add(missing.max(0).unsigned_abs())
    }

    fn earn(&mut self, now: HostTicks) {
        let earned = now.since(self.earned_at);
        self.earned_at = self.earned_at.max(now);
        self.credit = self.credit.saturating_add_unsigned(earned).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);
    const SHARE: u64 = 256;
    const BURSTS_PER_SECOND: u64 = 10;

    #[test]
    fn what_is_left_is_given_and_no_more() {
        let mut allowance = Allowance::few(TSC, HostTicks(0));
        let burst = TSC.get() / BURSTS_PER_SECOND / SHARE;
        assert_eq!(allowance.take(burst - 1, HostTicks(0)), burst - 1);
        assert_eq!(allowance.take(100, HostTicks(0)), 1);
        assert_eq!(allowance.take(100, HostTicks(0)), 0);
        assert_eq!(allowance.take(100, HostTicks(7 * SHARE)), 7);
    }

    #[test]
    fn a_debt_is_earned_first() {
        let mut allowance = Allowance::few(TSC, HostTicks(0));
        let burst = TSC.get() / BURSTS_PER_SECOND / SHARE;
        allowance.charge(burst + 10, HostTicks(0));
        assert_eq!(allowance.take(1, HostTicks(10 * SHARE)), 0);
        assert_eq!(
            allowance.there_at(5, HostTicks(10 * SHARE)),
            HostTicks(15 * SHARE)
        );
        assert_eq!(allowance.take(9, HostTicks(15 * SHARE)), 5);
        allowance.charge(u64::MAX, HostTicks(15 * SHARE));
        assert_eq!(allowance.take(1, HostTicks(1 << 40)), 0);
    }

    proptest! {
        #[test]
        fn over_any_time_it_is_a_share_and_a_burst(
            steps in prop::collection::vec((0u64..1_000_000, 0u64..100_000), 1..200),
        ) {
            let mut allowance = Allowance::few(TSC, HostTicks(0));
            let (mut now, mut total) = (0, 0);
            for (pause, wanted) in steps {
                now += pause;
                total += allowance.take(wanted, HostTicks(now));
            }
            prop_assert!(total <= (now + TSC.get() / BURSTS_PER_SECOND) / SHARE);
        }
    }
}
