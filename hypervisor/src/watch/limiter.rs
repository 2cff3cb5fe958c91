//! What searching may cost: at most a hundredth of the time, of any ten seconds, and far less while all there is to
//! do is to search again.

use devices::time::{Hertz, HostTicks};

/// The share of all time that searching may use, in thousandths: what may be saved up comes on top.
pub(crate) const PERMILLE: u32 = 9;
/// The share of all time that searching again may use, of that: it never ends.
pub(crate) const PERMILLE_AGAIN: u32 = 2;
/// The time that may be saved up, as a divisor of a second: 8 ms. With that ten seconds cost 98 ms at
/// most, and a turn that takes a little longer than it may.
const SAVED_PER_SECOND: u64 = 125;

/// A limiter of time.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    /// The ticks that are left, times 1000; negative for a debt.
    credit: i64,
    most: i64,
    permille: i64,
    earned_at: HostTicks,
}

impl Limiter {
    /// Makes one to so many thousandths of all time, with all that may be saved up, where the TSC counts at `tsc`.
    #[must_use]
    pub(crate) const fn new(permille: u32, tsc: Hertz, now: HostTicks) -> Self {
        let most = (tsc.get() / SAVED_PER_SECOND) as i64 * 1000;
        Self {
            credit: most,
            most,
            permille: permille as i64,
            earned_at: now,
        }
    }

    /// Returns the ticks that may be used from `now` on; zero for none.
    #[must_use]
    pub(crate) fn left(&mut self, now: HostTicks) -> u64 {
        let passed = i64::try_from(now.since(self.earned_at)).unwrap_or(i64::MAX);
        self.earned_at = self.earned_at.max(now);
        let earned = passed.saturating_mul(self.permille);
        self.credit = self.credit.saturating_add(earned).min(self.most);
        self.credit.max(0).unsigned_abs() / 1000
    }

    /// Takes note that `ticks` have been used.
    pub(crate) fn charge(&mut self, ticks: u64) {
        let ticks = i64::try_from(ticks).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_sub(ticks.saturating_mul(1000));
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);
    const SECOND: u64 = TSC.get();
    const MS: u64 = SECOND / 1000;

    #[test]
    fn what_is_used_is_earned_again_at_nine_thousandths() {
        let mut limiter = Limiter::new(9, TSC, HostTicks(0));
        assert_eq!(limiter.left(HostTicks(0)), 8 * MS);
        limiter.charge(9 * MS);
        assert_eq!(limiter.left(HostTicks(0)), 0);
        assert_eq!(limiter.left(HostTicks(SECOND / 9)), 0);
        assert_eq!(limiter.left(HostTicks(SECOND)), 8 * MS);
        limiter.charge(8 * MS);
        assert_eq!(limiter.left(HostTicks(SECOND + SECOND / 9)), MS - 1);
        assert_eq!(limiter.left(HostTicks(u64::MAX)), 8 * MS);
    }

    #[test]
    fn searching_again_earns_less() {
        let mut limiter = Limiter::new(PERMILLE_AGAIN, TSC, HostTicks(0));
        limiter.charge(8 * MS);
        assert_eq!(limiter.left(HostTicks(SECOND)), 2 * MS);
    }

    proptest! {
        /// Turns of at most a millisecond, each as long as it may be or a little longer, at any time.
        #[test]
        fn no_ten_seconds_cost_more_than_a_hundredth(
            turns in prop::collection::vec((0u64..200_000_000, 1u64..1_000_000, 0u64..100_000), 1..800),
        ) {
            let mut limiter = Limiter::new(PERMILLE, TSC, HostTicks(0));
            let mut now = 0;
            let mut used: Vec<(u64, u64)> = Vec::new();
            for (pause, wanted, more) in turns {
                now += pause;
                let left = limiter.left(HostTicks(now));
                if left > 0 {
                    let ticks = left.min(wanted) + more;
                    limiter.charge(ticks);
                    now += ticks;
                    used.push((now, ticks));
                }
            }
            for (index, (end, _)) in used.iter().enumerate() {
                let since = end.saturating_sub(10 * SECOND);
                let within = used[..=index].iter().filter(|(at, _)| *at > since);
                let cost: u64 = within.map(|(_, ticks)| ticks).sum();
                prop_assert!(cost <= 10 * SECOND / 100, "{cost} of ten seconds");
            }
        }
    }
}
