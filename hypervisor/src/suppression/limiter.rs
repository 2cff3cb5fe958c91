//! Keeps changes of rate cheap for a VM's other VCPUs.
//!
//! Each change stops all VCPUs of the VM for a moment ([`crate::vm::clock_gate`]). A target that is
//! switched in and out every few microseconds would cost the others more than it gives up. So the
//! ticks that changes take from other VCPUs are counted, and may be a small share of all time
//! ([`Allowance`]);
//! beyond that the clock does not become fast, and the target runs in real time, held by its
//! budget alone. A change *back* is never refused: the lead would grow without bound.

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

use super::allowance::Allowance;

/// The account of ticks that other VCPUs may lose.
#[derive(Clone, Debug)]
pub(super) struct Limiter {
    lost: Allowance,
    /// The average cost of a change, in ticks.
    usual: u64,
}

impl Limiter {
    /// Makes a full account on a machine whose TSC counts at `tsc`.
    #[must_use]
    pub(super) const fn new(tsc: Hertz, now: HostTicks) -> Self {
        Self {
            lost: Allowance::few(tsc, now),
            usual: 0,
        }
    }

    /// Takes note of a change at `now` that took `lost` ticks from other VCPUs, all together.
    pub(super) fn note_change(&mut self, now: HostTicks, lost: u64) {
        self.usual = self.usual / 8 * 7 + lost / 8;
        self.lost.charge(lost, now);
    }

    /// Returns when the clock may become fast, and real again: `now`, if it may at once.
    pub(super) fn allowed_at(&mut self, now: HostTicks) -> HostTicks {
        self.lost.there_at(self.usual.saturating_mul(2), now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);

    #[test]
    fn changes_that_cost_others_nothing_are_not_limited() {
        let mut limiter = Limiter::new(TSC, HostTicks(0));
        for now in 0..100_000 {
            limiter.note_change(HostTicks(now), 0);
        }
        assert_eq!(limiter.allowed_at(HostTicks(100_000)), HostTicks(100_000));
    }

    proptest! {
        /// Whoever asks first and changes twice, there and back, takes less than 1 % from others
        /// over a second, and what may be lost in a row.
        #[test]
        fn others_lose_less_than_one_percent(
            cost in 1u64..50_000, pause in 0u64..100_000,
        ) {
            const SECONDS: u64 = 3;
            let mut limiter = Limiter::new(TSC, HostTicks(0));
            let (mut now, mut lost) = (0, 0);
            while now < SECONDS * TSC.get() {
                now = limiter.allowed_at(HostTicks(now)).0;
                for _ in 0..2 {
                    now += cost;
                    limiter.note_change(HostTicks(now), cost);
                    lost += cost;
                }
                now += pause;
            }
            prop_assert!(lost * 100 < now, "{lost} of {now}");
        }

        /// It is no refusal for ever.
        #[test]
        fn it_is_allowed_when_it_says(lost in 0u64..1 << 40, at in 0u64..1 << 40) {
            let mut limiter = Limiter::new(TSC, HostTicks(0));
            limiter.note_change(HostTicks(at), lost);
            let when = limiter.allowed_at(HostTicks(at));
            prop_assert_eq!(limiter.allowed_at(when), when);
        }
    }
}
