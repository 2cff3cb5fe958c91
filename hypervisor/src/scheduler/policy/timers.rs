//! VCPUs that wake by their timers, and when a CPU has to look at its queue again.

use devices::time::HostTicks;

use super::{Policy, RunState};
use crate::ids::{VcpuId, VmId};

impl Policy {
    /// Wakes the VCPUs of `cpu` whose timers are due.
    pub(super) fn wake_due(&mut self, cpu: usize, now: HostTicks) {
        for vm in 0..self.vms.len() {
            let count = self.vms[vm].as_ref().map_or(0, |vm| vm.vcpus.len());
            for index in 0..count {
                let target = VcpuId {
                    vm: VmId(vm),
                    index: index as u32,
                };
                if let Some(vcpu) = self.vcpu(target)
                    && vcpu.home == cpu
                    && let RunState::Blocked { wake_at } = vcpu.state
                    && wake_at <= now
                {
                    self.make_runnable(target, cpu, wake_at);
                }
            }
        }
    }

    /// Wakes the VCPU of `cpu` whose timer is due first, if that is in no more than `lead` ticks. Returns
    /// when.
    pub(super) fn wake_first(
        &mut self,
        cpu: usize,
        now: HostTicks,
        lead: u64,
    ) -> Option<HostTicks> {
        let (due, target) = self.timers(cpu).min_by_key(|&(due, _)| due)?;
        if due.since(now) > lead {
            return None;
        }
        self.make_runnable(target, cpu, due.min(now));
        Some(due)
    }

    /// Returns the blocked VCPUs of `cpu`, with the times at which their timers are due.
    fn timers(&self, cpu: usize) -> impl Iterator<Item = (HostTicks, VcpuId)> {
        self.all()
            .filter_map(move |(target, vcpu)| match vcpu.state {
                RunState::Blocked { wake_at } if vcpu.home == cpu => Some((wake_at, target)),
                _ => None,
            })
    }

    /// Returns when the first timer of a blocked VCPU of `cpu` is due.
    pub(super) fn next_timer(&self, cpu: usize) -> HostTicks {
        let first = self.timers(cpu).map(|(due, _)| due).min();
        first.unwrap_or(HostTicks(u64::MAX))
    }

    /// Returns when an idle CPU has to look again: `lead` ticks before a timer is due, or for a VM whose
    /// budget is renewed.
    pub(super) fn next_event(&self, cpu: u32, lead: u64) -> HostTicks {
        let cpu = cpu as usize;
        let throttled = self.vms.iter().flatten().any(|vm| {
            vm.is_throttled()
                && vm
                    .vcpus
                    .iter()
                    .any(|vcpu| vcpu.home == cpu && matches!(vcpu.state, RunState::Waiting))
        });
        let mut timer = self.next_timer(cpu);
        if timer.0 != u64::MAX {
            timer = HostTicks(timer.0.saturating_sub(lead));
        }
        if throttled {
            timer.min(self.period_end)
        } else {
            timer
        }
    }
}
