//! What is known of a target: what it has had, what it may still have, and what limits it.

#![forbid(unsafe_code)]

use core::fmt;

use devices::time::{Hertz, HostTicks};

use super::allowance::Allowance;
use super::budget::{Budget, BudgetUse};
use super::order::Order;

/// The share of a budget that is kept for the kernel at least, as a divisor: a target in user mode
/// is stopped so much before its budget is used up.
const LEAST_RESERVE: u64 = 8;
/// The largest reserve, as a divisor.
const LARGEST_RESERVE: u64 = 2;
/// The part of its budget that a stopped target has to regain before it may run again, as a
/// divisor: else it would be let run for a few ticks at a time.
const TURN: u64 = 16;
/// The time that is kept for the kernel before more is known of what the target does, as a divisor of a second: 2 ms. A
/// call that unmaps memory, or copies some, takes that long, and cannot be stopped without others waiting for it.
const USUAL_CALLS_PER_SECOND: u64 = 500;
/// The most that is kept so of a budget, as a divisor.
const RESERVE_FOR_USUAL_CALLS: u64 = 4;
/// The part of all time, as a divisor, that reports of its VCPUs may take without being charged to a target.
const OWN_SHARE: u64 = 128;

/// The cause that limits a target's CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// No limit: it does not run, as it is asleep, or as others have the CPU.
    Idle,
    /// Its guest's scheduler, by the clock.
    Clock,
    /// Its budget of CPU time: the clock runs fast without it.
    Budget,
    /// The bound of its guest's lead.
    Lead,
    /// Its budget alone: nobody else on its VCPU wants the CPU.
    Alone,
    /// Its budget alone: fast phases would cost the other VCPUs too much.
    Changes,
}

impl Limit {
    /// Returns its name, for the operator.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Clock => "clock",
            Self::Budget => "budget",
            Self::Lead => "lead",
            Self::Alone => "alone",
            Self::Changes => "changes",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The record of a target.
#[derive(Clone, Debug)]
pub(super) struct Record {
    budget: Option<Budget>,
    /// The allowance that tarpit's own work at exits has before it is charged to the target.
    own: Allowance,
    /// The number of times that it was seen to come in.
    pub(super) switch_ins: u64,
    /// Real CPU time in its address space, in ticks.
    pub(super) used: u64,
    /// The time for which its VCPUs were kept from running it, in ticks.
    pub(super) stopped: u64,
    /// The time since which it is a target.
    pub(super) since: HostTicks,
    /// The largest lead of its guest's clock since then, in ticks.
    pub(super) highest_lead: i64,
    limit: Limit,
    limit_since: HostTicks,
    /// The longest time, lately, that it stayed in the kernel when it was to be stopped, in ticks.
    overrun: u64,
    /// The time that calls of the kernel may take on any system, in ticks.
    usual_call: u64,
    /// The end of the time for which it may go on in the kernel with nothing left, and when it may again.
    grace_until: HostTicks,
    grace_from: HostTicks,
}

impl Record {
    /// Returns the record of a target by `order` from `now` on, where the TSC counts at `tsc`.
    #[must_use]
    pub(super) fn new(order: &Order, tsc: Hertz, now: HostTicks) -> Self {
        Self {
            budget: order.share().map(|share| Budget::new(share, tsc, now)),
            own: Allowance::new(OWN_SHARE, tsc.get() / 10, now),
            switch_ins: 0,
            used: 0,
            stopped: 0,
            since: now,
            highest_lead: 0,
            limit: Limit::Idle,
            limit_since: now,
            overrun: 0,
            usual_call: tsc.get() / USUAL_CALLS_PER_SECOND,
            grace_until: now,
            grace_from: now,
        }
    }

    /// Goes on with another order.
    pub(super) fn set_order(&mut self, order: &Order, tsc: Hertz, now: HostTicks) {
        match (&mut self.budget, order.share()) {
            (Some(budget), Some(share)) => budget.set_share(share, now),
            (budget, share) => *budget = share.map(|share| Budget::new(share, tsc, now)),
        }
    }

    /// Charges `ticks` of CPU time up to `now`.
    pub(super) fn charge(&mut self, ticks: u64, now: HostTicks) {
        self.used = self.used.saturating_add(ticks);
        if let Some(budget) = &mut self.budget {
            budget.charge(ticks, now);
        }
    }

    /// Charges `ticks` of CPU time up to `now`, of which `own` went to reports of the VCPU. That is
    /// nothing that the target has, and free as long as it is little; a target that causes reports
    /// all the time pays for them.
    pub(super) fn charge_but_for(&mut self, own: u64, ticks: u64, now: HostTicks) {
        let free = self.own.take(own.min(ticks), now);
        self.charge(ticks - free, now);
    }

    /// Returns what may still be used in any mode, in ticks; negative for a debt.
    pub(super) fn left(&mut self, now: HostTicks) -> i64 {
        self.budget
            .as_mut()
            .map_or(i64::MAX, |budget| budget.left(now))
    }

    /// Returns what of the ticks that are [`left`](Record::left) is not to be used in user mode: it is
    /// kept for the kernel. `stopped`: it has been stopped, and is to have a whole turn when it goes on.
    pub(super) fn kept(&self, stopped: bool) -> u64 {
        let allowance = self.allowance();
        let most = allowance / LARGEST_RESERVE;
        let usual = self.usual_call.min(allowance / RESERVE_FOR_USUAL_CALLS);
        let reserve = self
            .overrun
            .clamp(usual.max(allowance / LEAST_RESERVE), most);
        if stopped {
            reserve + allowance / TURN
        } else {
            reserve
        }
    }

    /// Returns when a target that has been stopped may go on in user mode.
    pub(super) fn regained_at(&mut self, now: HostTicks) -> HostTicks {
        let kept = self.kept(true);
        self.budget
            .as_mut()
            .map_or(now, |budget| budget.regained_at(kept + 1, now))
    }

    /// Takes note that the target stayed in the kernel for `ticks` when it was to be stopped.
    pub(super) fn note_overrun(&mut self, ticks: u64) {
        self.overrun = ticks.max(self.overrun - self.overrun / 16);
    }

    fn allowance(&self) -> u64 {
        self.budget.as_ref().map_or(0, Budget::allowance)
    }

    /// Returns until when a target with nothing left may go on in the kernel, for `moment` ticks at a time.
    ///
    /// # Errors
    /// The time when it may again: its share holds in the kernel, too, and by that alone. However deep it
    /// is in debt, it is not stuck, where others may wait for a lock that it has, or for it to switch to them.
    pub(super) fn grace(&mut self, moment: u64, now: HostTicks) -> Result<HostTicks, HostTicks> {
        if now >= self.grace_from {
            let share = self.budget.as_ref().map(Budget::share);
            let pause = share.map_or(moment, |share| share.time_for(moment));
            self.grace_until = now.saturating_add(moment);
            self.grace_from = now.saturating_add(pause);
        }
        if now < self.grace_until {
            Ok(self.grace_until)
        } else {
            Err(self.grace_from)
        }
    }

    /// Takes note that `limit` limits it from `now` on.
    pub(super) fn set_limit(&mut self, limit: Limit, now: HostTicks) {
        if self.limit != limit {
            self.limit = limit;
            self.limit_since = now;
        }
    }

    /// Returns what limits it, and since when.
    #[must_use]
    pub(super) const fn limit(&self) -> (Limit, HostTicks) {
        (self.limit, self.limit_since)
    }

    /// Returns what it has made of its budget; `None` if it has none.
    pub(super) fn budget(&mut self, now: HostTicks) -> Option<BudgetUse> {
        Some(self.budget.as_mut()?.usage(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suppression::order::Defaults;
    use crate::suppression::{Factor, Factors};

    const TSC: Hertz = Hertz::new(1_000_000_000);

    fn record(n: u32) -> Record {
        let factors = Factors::both(Factor::new(n).unwrap());
        let order = Order::new(factors, Defaults::default());
        Record::new(&order, TSC, HostTicks(0))
    }

    #[test]
    fn time_for_a_call_of_the_kernel_is_kept_of_a_budget_but_no_more_than_half_of_it() {
        let usual = TSC.get() / 500;
        for (n, kept) in [
            (1000, TSC.get() / 4000),
            (100, usual),
            (20, TSC.get() / 160),
        ] {
            let mut record = record(n);
            assert_eq!(record.kept(false), kept, "{n}");
            let allowance = record.allowance();
            record.note_overrun(allowance / 3);
            assert_eq!(record.kept(false), kept.max(allowance / 3), "{n}");
            record.note_overrun(allowance * 5);
            assert_eq!(record.kept(false), allowance / 2, "{n}");
        }
    }

    #[test]
    fn a_kernel_in_debt_goes_on_at_its_share() {
        let mut record = record(1000);
        record.charge(TSC.get(), HostTicks(TSC.get()));
        let (mut now, mut ran, began) = (TSC.get(), 0, TSC.get());
        let mut longest_wait = 0;
        while now < began + 10 * TSC.get() {
            assert!(record.left(HostTicks(now)) < 0);
            match record.grace(6_000, HostTicks(now)) {
                Ok(until) => {
                    record.charge(until.0 - now, until);
                    ran += until.0 - now;
                    now = until.0;
                }
                Err(from) => {
                    longest_wait = longest_wait.max(from.0 - now);
                    now = from.0;
                }
            }
        }
        assert!((9_900_000..=10_100_000).contains(&ran), "{ran}");
        assert!(longest_wait <= 6_000_000, "{longest_wait}");
    }
}
