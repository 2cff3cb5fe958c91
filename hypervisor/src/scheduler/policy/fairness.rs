//! Fair shares: the virtual times of VMs on each CPU, and of VCPUs within their VMs.

use devices::time::HostTicks;

use super::{Policy, RunState, VcpuEntry};
use crate::ids::{VcpuId, VmId};
use crate::vm_config::DEFAULT_WEIGHT;

/// Returns the virtual time of `ticks` at `weight`: finer than a tick, so that nothing is lost to
/// rounding.
const fn virtual_time(ticks: u64, weight: u32) -> u128 {
    ((ticks as u128) << 20) / weight as u128
}

impl Policy {
    /// Charges the time since the last call to the VCPU that runs on `cpu`.
    pub(super) fn account(&mut self, cpu: usize, now: HostTicks) {
        let state = &mut self.cpus[cpu];
        let ran = now.since(state.accounted);
        state.accounted = state.accounted.max(now);
        let Some(running) = state.running else {
            return;
        };
        let Some(Some(vm)) = self.vms.get_mut(running.vm.0) else {
            debug_assert!(false, "{running:?} runs, of no VM");
            return;
        };
        let was_throttled = vm.is_throttled();
        vm.used = vm.used.saturating_add(ran);
        if vm.is_throttled() && !was_throttled {
            vm.forget_wakes();
        }
        vm.time[cpu] += virtual_time(ran, vm.weight);
        let vcpu = vm.vcpus.get_mut(running.index as usize);
        debug_assert!(vcpu.is_some(), "{running:?} runs, and is no VCPU");
        if let Some(vcpu) = vcpu {
            vcpu.time += virtual_time(ran, DEFAULT_WEIGHT);
            vcpu.received += ran;
        }
    }

    /// Brings the virtual times of a VCPU, and of its VM if that had nothing to do on this
    /// CPU, in line with what those that were busy have reached.
    pub(super) fn catch_up(&mut self, target: VcpuId) {
        let credit = virtual_time(self.settings.slice / 2, DEFAULT_WEIGHT);
        let debit = virtual_time(self.settings.slice, DEFAULT_WEIGHT);
        let Some(Some(vm)) = self.vms.get_mut(target.vm.0) else {
            debug_assert!(false, "no VM has {target:?}");
            return;
        };
        let Some(home) = vm.vcpus.get(target.index as usize).map(|vcpu| vcpu.home) else {
            debug_assert!(false, "no VCPU is {target:?}");
            return;
        };
        // One that comes from another queue is no proof that its VM has had its share of this.
        let is_busy = |(index, vcpu): (u32, &VcpuEntry)| {
            index != target.index
                && vcpu.home == home
                && !matches!(vcpu.state, RunState::Blocked { .. })
        };
        if !(0..).zip(&vm.vcpus).any(is_busy) {
            let floor = self.cpus[home].floor.saturating_sub(credit);
            vm.time[home] = vm.time[home].max(floor);
        }
        let floor = vm.floor[home];
        let vcpu = &mut vm.vcpus[target.index as usize];
        // Nor is anyone kept waiting for what it had when nobody else wanted it.
        vcpu.time = vcpu.time.clamp(floor.saturating_sub(credit), floor + debit);
    }

    /// Takes away what a VM could claim for having been served less than others.
    pub(super) fn forfeit(&mut self, id: VmId) {
        if let Some(Some(vm)) = self.vms.get_mut(id.0) {
            for (time, cpu) in vm.time.iter_mut().zip(&self.cpus) {
                *time = (*time).max(cpu.floor);
            }
        }
    }

    /// Returns the order of VCPUs on `cpu`: the least first.
    pub(super) fn key(&self, target: VcpuId, cpu: usize) -> (u128, u128) {
        let (vm, vcpu) = (self.vm(target.vm), self.vcpu(target));
        debug_assert!(vcpu.is_some(), "no VCPU is {target:?}");
        (
            vm.map_or(0, |vm| vm.time[cpu]),
            vcpu.map_or(0, |vcpu| vcpu.time),
        )
    }

    /// Returns who is to run next on `cpu`.
    pub(super) fn best(&self, cpu: usize) -> Option<VcpuId> {
        self.all()
            .map(|(target, _)| target)
            .filter(|&target| self.is_eligible(target, cpu))
            .min_by_key(|&target| self.key(target, cpu))
    }

    /// Returns whether `target` waits for `cpu` and can run there at once.
    pub(super) fn is_eligible(&self, target: VcpuId, cpu: usize) -> bool {
        self.may_run(target.vm)
            && self.vcpu(target).is_some_and(|vcpu| {
                vcpu.home == cpu
                    && matches!(vcpu.state, RunState::Waiting)
                    && vcpu.loaded_on.is_none_or(|loaded_on| loaded_on == cpu)
            })
    }
}
