//! Caps: a budget of CPU time for each period, and what a CPU does about VMs that have used theirs up.

use core::sync::atomic::Ordering::SeqCst;

use devices::time::HostTicks;

use super::CpuQueue;
use crate::ids::VmId;

/// The periods that caps are percentages of: the same for all VMs.
#[derive(Clone, Copy, Debug)]
pub(in crate::scheduler) struct Periods {
    /// The beginning of the first.
    pub(in crate::scheduler) start: HostTicks,
    /// The length of each.
    pub(in crate::scheduler) length: u64,
}

impl Periods {
    /// Returns the number of the period that `now` is in.
    const fn number(self, now: HostTicks) -> u64 {
        now.since(self.start) / if self.length == 0 { 1 } else { self.length }
    }

    /// Returns the end of the period that `now` is in.
    pub(super) const fn end(self, now: HostTicks) -> HostTicks {
        let periods = self.number(now).saturating_add(1);
        self.start
            .saturating_add(periods.saturating_mul(self.length))
    }
}

/// The CPU time that a VM may have in each period, all CPUs together.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Budget {
    periods: Periods,
    /// The time in a period.
    length: u64,
    /// The time that it has had and that counts for the present period.
    used: u64,
    /// The number of the present period.
    period: u64,
}

impl Budget {
    /// Makes the budget of a VM with a cap of `percent`.
    pub(in crate::scheduler) const fn new(periods: Periods, percent: u32) -> Self {
        Self {
            periods,
            length: periods.length / 100 * percent as u64,
            used: 0,
            period: 0,
        }
    }

    /// Begins the period that `now` is in, if that is another one.
    const fn renew(&mut self, now: HostTicks) {
        let number = self.periods.number(now);
        if number > self.period {
            let periods = number - self.period;
            self.period = number;
            self.used = self
                .used
                .saturating_sub(self.length.saturating_mul(periods));
        }
    }

    /// Returns whether nothing is left of it at `now`.
    pub(in crate::scheduler) const fn is_used_up(&mut self, now: HostTicks) -> bool {
        self.renew(now);
        self.used >= self.length
    }

    /// Takes `ran` off it, which ended at `now`. Returns whether nothing is left since now.
    const fn charge(&mut self, ran: u64, now: HostTicks) -> bool {
        // It was used before the next period began, as far as can be told.
        let was_used_up = self.used >= self.length;
        self.used = self.used.saturating_add(ran);
        let is_used_up = self.used >= self.length;
        self.renew(now);
        is_used_up && !was_used_up
    }
}

impl CpuQueue {
    /// Takes `ran` off the budget of a VM that has a cap.
    pub(super) fn charge(&self, id: VmId, ran: u64, now: HostTicks) {
        let Some(vm) = self.vm(id) else { return };
        let Some(budget) = &vm.shares.budget else {
            return;
        };
        let is_used_up = budget.lock().charge(ran, now);
        if is_used_up {
            vm.shares.forget_wakes();
        }
    }

    /// Returns how long a VCPU of a VM with a cap may run before the budget is looked at again.
    pub(super) fn budget_left(&self, id: VmId) -> Option<u64> {
        let shares = &self.vm(id)?.shares;
        let left = {
            let budget = shares.budget.as_ref()?.lock();
            budget.length.saturating_sub(budget.used)
        };
        let running = u64::from(shares.running.load(SeqCst).max(1));
        // Not too short a turn: what is too much is taken off the next period.
        Some((left / running).max(self.settings.granularity / 8))
    }

    /// Returns whether VCPUs of a VM may run here at `now`. One whose budget is found to be used up
    /// waits for the next period from now on.
    pub(super) fn may_run(&mut self, id: VmId, now: HostTicks) -> bool {
        let now = now.max(self.accounted);
        let Some(vm) = self.vm(id) else { return false };
        if !vm.runs() {
            return false;
        }
        if vm.shares.is_throttled(now) {
            self.change_vm(id, |vm| vm.throttled = true);
            self.throttled.push(id);
            self.throttled_until = self.periods.end(now);
            return false;
        }
        true
    }

    /// Lets VMs go on whose budgets have been renewed.
    pub(super) fn renew_budgets(&mut self, now: HostTicks) {
        if self.throttled.is_empty() || now < self.throttled_until {
            return;
        }
        self.throttled_until = self.periods.end(now);
        let mut place = 0;
        while let Some(&id) = self.throttled.get(place) {
            let waits = self.vm(id).is_some_and(|vm| vm.shares.is_throttled(now));
            if waits {
                place += 1;
                continue;
            }
            self.throttled.swap_remove(place);
            // Or it would take all of its budget in one piece.
            self.forfeit(id);
            self.change_vm(id, |vm| vm.throttled = false);
        }
    }
}
