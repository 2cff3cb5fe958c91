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

    /// Returns when the first timer of a blocked VCPU of `cpu` is due.
    pub(super) fn next_timer(&self, cpu: usize) -> HostTicks {
        self.vms
            .iter()
            .flatten()
            .flat_map(|vm| &vm.vcpus)
            .filter(|vcpu| vcpu.home == cpu)
            .filter_map(|vcpu| match vcpu.state {
                RunState::Blocked { wake_at } => Some(wake_at),
                _ => None,
            })
            .min()
            .unwrap_or(HostTicks(u64::MAX))
    }

    /// Returns when an idle CPU has to look again: for a timer, or for a VM whose budget is
    /// renewed.
    pub(super) fn next_event(&self, cpu: u32) -> HostTicks {
        let cpu = cpu as usize;
        let throttled = self.vms.iter().flatten().any(|vm| {
            vm.is_throttled()
                && vm
                    .vcpus
                    .iter()
                    .any(|vcpu| vcpu.home == cpu && matches!(vcpu.state, RunState::Waiting))
        });
        let timer = self.next_timer(cpu);
        if throttled {
            timer.min(self.period_end)
        } else {
            timer
        }
    }
}
