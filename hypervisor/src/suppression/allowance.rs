//! What may be had for nothing: a share of all time, and some of it in a row.

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

/// The share of all time that is free, as a divisor: one tick in so many.
const SHARE: u64 = 256;
/// The most that may be had in a row, as the time in which it is earned: a tenth of a second.
const BURSTS_PER_SECOND: u64 = 10;

/// An allowance of ticks.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    /// The ticks that are left, times [`SHARE`].
    credit: u64,
    most: u64,
    earned_at: HostTicks,
}

impl Allowance {
    /// Makes a full allowance on a machine whose TSC counts at `tsc`.
    #[must_use]
    pub(super) const fn new(tsc: Hertz, now: HostTicks) -> Self {
        let most = tsc.get() / BURSTS_PER_SECOND;
        Self {
            credit: most,
            most,
            earned_at: now,
        }
    }

    /// Takes `wanted` ticks, or what is left of them, and returns how many that are.
    pub(super) fn take(&mut self, wanted: u64, now: HostTicks) -> u64 {
        let earned = now.since(self.earned_at);
        self.earned_at = self.earned_at.max(now);
        self.credit = self.credit.saturating_add(earned).min(self.most);
        let taken = wanted.min(self.credit / SHARE);
        self.credit -= taken * SHARE;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);

    #[test]
    fn what_is_left_is_given_and_no_more() {
        let mut allowance = Allowance::new(TSC, HostTicks(0));
        let burst = TSC.get() / BURSTS_PER_SECOND / SHARE;
        assert_eq!(allowance.take(burst - 1, HostTicks(0)), burst - 1);
        assert_eq!(allowance.take(100, HostTicks(0)), 1);
        assert_eq!(allowance.take(100, HostTicks(0)), 0);
        assert_eq!(allowance.take(100, HostTicks(7 * SHARE)), 7);
    }

    proptest! {
        #[test]
        fn over_any_time_it_is_a_share_and_a_burst(
            steps in prop::collection::vec((0u64..1_000_000, 0u64..100_000), 1..200),
        ) {
            let mut allowance = Allowance::new(TSC, HostTicks(0));
            let (mut now, mut total) = (0, 0);
            for (pause, wanted) in steps {
                now += pause;
                total += allowance.take(wanted, HostTicks(now));
            }
            prop_assert!(total <= (now + TSC.get() / BURSTS_PER_SECOND) / SHARE);
        }
    }
}
