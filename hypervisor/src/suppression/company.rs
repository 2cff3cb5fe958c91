//! Whether anybody else wants the VCPU that a target has.
//!
//! Nobody can be asked; but when the clock has gained a whole bound without the guest's scheduler giving
//! others more than a moment, the target is alone there, or of a class that goes first. A fast clock is
//! no use then. What it gains while the target is in the kernel counts once that has gone back to user mode, which is
//! where kernels switch: many do so nowhere else.
//!
//! That it is not alone any more is seen when others get more than a moment for a while. Where the
//! scheduler prefers the target they never do without a fast clock; so a turn of theirs is taken for a
//! sign as well, and the clock tried once more. But kernel threads have turns too. So each time that it was tried in
//! vain, the next sign of that kind has to wait for twice as long.

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

/// The record of those that share a VCPU with a target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Company {
    /// The gain of the clock while the target was in, in ticks.
    gained: u64,
    /// The gain since the target was last seen in user mode, in ticks.
    gained_in_kernel: u64,
    /// The time for which others ran on this VCPU since `since`, in ticks.
    others: u64,
    since: HostTicks,
    /// The time for which others ran since the target was last in, in ticks.
    last_turn: u64,
    alone: bool,
    /// The least time that is a turn of others, in ticks.
    least_turn: u64,
    /// The least time over which others are watched, in ticks.
    window: u64,
    /// The time from which on a turn is taken for a sign of others.
    turns_count_from: HostTicks,
    /// The time for which turns are not, once the target is found alone, in ticks.
    doubt: u64,
    least_doubt: u64,
}

impl Company {
    /// The length of a moment, as a divisor of the time: others are a moment if they have less.
    const MOMENT: u64 = 4;
    /// The longest doubt, as a multiple of the shortest.
    const MOST_DOUBT: u64 = 64;

    /// Makes the record of a VCPU whose target has others beside it, as far as is known.
    pub(super) const fn new(tsc: Hertz, now: HostTicks) -> Self {
        Self {
            gained: 0,
            gained_in_kernel: 0,
            others: 0,
            since: now,
            last_turn: 0,
            alone: false,
            least_turn: tsc.get() / 250,
            window: tsc.get() / 16,
            turns_count_from: now,
            doubt: tsc.get(),
            least_doubt: tsc.get(),
        }
    }

    /// Returns whether nobody else wants the VCPU.
    pub(super) const fn is_alone(&self) -> bool {
        self.alone
    }

    /// Takes note that the clock has gained `ticks` for the target, which was in the kernel if that is `in_kernel`.
    pub(super) const fn gained(&mut self, ticks: u64, in_kernel: bool) {
        self.gained_in_kernel = self.gained_in_kernel.saturating_add(ticks);
        if !in_kernel {
            self.gained = self.gained.saturating_add(self.gained_in_kernel);
            self.gained_in_kernel = 0;
        }
    }

    /// Takes note that others ran for `ticks`.
    pub(super) const fn others_ran(&mut self, ticks: u64) {
        self.others = self.others.saturating_add(ticks);
        self.last_turn = self.last_turn.saturating_add(ticks);
    }

    /// Takes note that the lead is gone: others had time enough.
    pub(super) const fn lead_is_gone(&mut self, now: HostTicks) {
        if !self.alone {
            if self.gained > 0 {
                self.doubt = self.least_doubt;
            }
            self.start_again(now);
        }
    }

    const fn start_again(&mut self, now: HostTicks) {
        self.gained = 0;
        self.others = 0;
        self.since = now;
    }

    /// Takes note that the lead is at its `bound`, in ticks, at `now`.
    pub(super) const fn at_bound(&mut self, bound: u64, now: HostTicks) {
        if self.gained < bound / 4 * 3 {
            return;
        }
        if self.others.saturating_mul(Self::MOMENT) < self.gained {
            self.alone = true;
            self.turns_count_from = now.saturating_add(self.doubt);
            let doubled = self.doubt.saturating_mul(2);
            let most = self.least_doubt.saturating_mul(Self::MOST_DOUBT);
            self.doubt = if doubled < most { doubled } else { most };
        }
        // Those that were there once may not be any more.
        self.start_again(now);
    }

    /// Takes note that the target comes in at `now`.
    pub(super) fn target_in(&mut self, now: HostTicks) {
        self.gained_in_kernel = 0;
        let turn = core::mem::take(&mut self.last_turn);
        if !self.alone {
            return;
        }
        let watched = now.since(self.since);
        let is_more_than_a_moment = self.others.saturating_mul(Self::MOMENT) > watched;
        let is_a_turn = now >= self.turns_count_from && turn >= self.least_turn;
        if watched >= self.window && is_more_than_a_moment || is_a_turn {
            self.alone = false;
            self.start_again(now);
        } else if watched >= self.window {
            self.start_again(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const BOUND: u64 = 250 * MS;

    fn company() -> Company {
        Company::new(Hertz::new(1_000_000_000), HostTicks(0))
    }

    /// A target that has been found alone at time zero.
    fn alone() -> Company {
        let mut company = company();
        company.gained(BOUND, false);
        company.at_bound(BOUND, HostTicks(0));
        assert!(company.is_alone());
        company
    }

    #[test]
    fn who_has_a_whole_bound_to_itself_is_alone() {
        let mut company = company();
        company.gained(240 * MS, false);
        company.at_bound(BOUND, HostTicks(MS));
        assert!(company.is_alone());
    }

    #[test]
    fn who_is_in_the_kernel_is_alone_only_if_that_goes_back_without_a_switch() {
        let mut company = company();
        company.gained(BOUND, true);
        company.at_bound(BOUND, HostTicks(MS));
        assert!(!company.is_alone(), "it may switch yet");
        // It did, and another one has had a turn.
        company.target_in(HostTicks(2 * MS));
        company.gained(0, false);
        company.at_bound(BOUND, HostTicks(2 * MS));
        assert!(!company.is_alone());
        company.gained(BOUND, true);
        company.gained(0, false);
        company.at_bound(BOUND, HostTicks(3 * MS));
        assert!(company.is_alone());
    }

    #[test]
    fn who_lets_others_have_their_share_is_not() {
        let mut company = company();
        company.gained(BOUND, false);
        company.others_ran(100 * MS);
        company.at_bound(BOUND, HostTicks(MS));
        assert!(!company.is_alone());
    }

    #[test]
    fn who_had_company_once_is_seen_to_be_alone() {
        let mut company = company();
        company.others_ran(10 * BOUND);
        for n in 1..=100 {
            company.gained(BOUND / 50, false);
            company.others_ran(BOUND / 5_000);
            company.at_bound(BOUND, HostTicks(n * 10 * MS));
        }
        assert!(company.is_alone());
    }

    #[test]
    fn moments_of_others_are_no_company() {
        let mut company = alone();
        for n in 1..1_000 {
            company.others_ran(MS);
            company.target_in(HostTicks(n * 10 * MS));
            assert!(company.is_alone());
        }
    }

    #[test]
    fn others_with_a_share_are_seen_soon() {
        let mut company = alone();
        let seen = (1..).find(|n| {
            company.others_ran(4 * MS);
            company.target_in(HostTicks(n * 8 * MS));
            !company.is_alone()
        });
        assert!(seen.is_some_and(|n| n <= 10), "{seen:?}");
    }

    #[test]
    fn a_turn_of_others_is_tried_again_ever_less_often() {
        let mut company = alone();
        let mut tried = std::vec![];
        // Another process has 4 ms of each 200, and the clock is no help.
        for n in 1..1_000 {
            let now = HostTicks(n * 200 * MS);
            company.others_ran(4 * MS);
            company.target_in(now);
            if !company.is_alone() {
                tried.push(now.0 / MS);
                company.gained(BOUND, false);
                company.at_bound(BOUND, now);
                assert!(company.is_alone());
            }
        }
        assert_eq!(tried[0], 1_000);
        let waits = tried.windows(2).map(|pair| pair[1] - pair[0]);
        let waits: std::vec::Vec<_> = waits.collect();
        assert_eq!(waits[..3], [2_000, 4_000, 8_000]);
        assert!(waits.iter().all(|wait| *wait <= 64_000), "{waits:?}");
    }

    #[test]
    fn where_the_clock_helps_the_next_turn_counts_as_soon_as_the_first() {
        let mut company = alone();
        let mut now = 0;
        let mut try_again = |company: &mut Company| {
            let began = now;
            while company.is_alone() {
                now += 200 * MS;
                company.others_ran(4 * MS);
                company.target_in(HostTicks(now));
            }
            let waited = now - began;
            company.gained(BOUND, false);
            (waited, HostTicks(now))
        };
        let (first, at) = try_again(&mut company);
        company.others_ran(BOUND);
        company.lead_is_gone(at);
        company.gained(BOUND, false);
        company.at_bound(BOUND, at);
        assert!(company.is_alone(), "the others have gone");
        assert_eq!(try_again(&mut company).0, first);
    }
}
