//! Caps: a budget of CPU time for each period.

use devices::time::HostTicks;

use super::Policy;
use crate::ids::VmId;

impl Policy {
    /// Returns the CPU time in a period of a VM with a cap of `percent`.
    pub(super) const fn budget(&self, percent: u32) -> u64 {
        self.settings.period / 100 * percent as u64
    }

    /// Returns how long a VCPU of a VM with a cap may run before the budget is looked at again.
    pub(super) fn budget_left(&self, id: VmId) -> Option<u64> {
        let vm = self.vm(id)?;
        let running = vm.running().max(1) as u64;
        let left = vm.budget?.saturating_sub(vm.used) / running;
        // Not too short a turn: what is too much is taken off the next period.
        Some(left.max(self.settings.granularity / 8))
    }

    pub(super) fn start_period(&mut self, now: HostTicks) {
        if now < self.period_end {
            return;
        }
        let periods = 1 + now.since(self.period_end) / self.settings.period.max(1);
        self.period_end = self
            .period_end
            .saturating_add(periods.saturating_mul(self.settings.period));
        for number in 0..self.vms.len() {
            let Some(vm) = &mut self.vms[number] else {
                continue;
            };
            let was_throttled = vm.is_throttled();
            let budget = vm.budget.unwrap_or(u64::MAX);
            vm.used = vm.used.saturating_sub(budget.saturating_mul(periods));
            if was_throttled {
                // Or it would take all of its budget in one piece.
                self.forfeit(VmId(number));
            }
        }
    }
}
