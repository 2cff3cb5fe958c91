//! Fair shares: the virtual times of VMs on each CPU, and of VCPUs within their VMs.

use devices::time::HostTicks;

use super::{CpuQueue, RunState};
use crate::ids::{VcpuId, VmId};
use crate::vm_config::DEFAULT_WEIGHT;

/// The part of a VCPU's CPU time, as a divisor, that is not charged at most: a guest that has the hypervisor do much for
/// it that it has not asked for is not to live on others.
const MOST_WAIVED: u64 = 32;

/// Returns the virtual time of `ticks` at `weight`: finer than a tick, so that nothing is lost to
/// rounding.
const fn virtual_time(ticks: u64, weight: u32) -> u128 {
    ((ticks as u128) << 20) / weight as u128
}

impl CpuQueue {
    /// Waives `ticks` of what the VCPU that runs here is charged for: the operator's measures have taken them. It has had the
    /// CPU for so long all the same, and a cap counts them.
    pub(in crate::scheduler) fn waive(&mut self, ticks: u64) {
        self.waived = self.waived.saturating_add(ticks);
    }

    /// Charges the time since the last call to the VCPU that runs here.
    pub(super) fn account(&mut self, now: HostTicks) {
        let ran = now.since(self.accounted);
        self.accounted = self.accounted.max(now);
        let Some(running) = self.running else {
            return;
        };
        if ran == 0 {
            return;
        }
        self.charge(running.vm, ran, now);
        let waived = self.waived.min(ran / MOST_WAIVED);
        self.waived -= waived;
        let charged = ran - waived;
        self.with_entry(running, |entry| {
            entry.time += virtual_time(charged, DEFAULT_WEIGHT);
            entry.received += ran;
        });
        self.change_vm(running.vm, |vm| {
            vm.time += virtual_time(charged, vm.shares.weight);
        });
    }

    /// Brings the virtual times of a VCPU that is not awake here yet, and of its VM if that had
    /// nothing to do on this CPU, in line with what those that were busy have reached.
    pub(super) fn catch_up(&mut self, target: VcpuId) {
        let credit = virtual_time(self.settings.slice / 2, DEFAULT_WEIGHT);
        let debit = virtual_time(self.settings.slice, DEFAULT_WEIGHT);
        let vm_floor = self.floor.saturating_sub(credit);
        let Some(vm) = self.vm_mut(target.vm) else {
            return;
        };
        // One that comes from another queue is no proof that its VM has had its share of this.
        if vm.busy == 0 {
            vm.time = vm.time.max(vm_floor);
        }
        let floor = vm.floor;
        // Nor is anyone kept waiting for what it had when nobody else wanted it.
        self.with_entry(target, |entry| {
            entry.time = entry
                .time
                .clamp(floor.saturating_sub(credit), floor + debit);
        });
    }

    /// Takes away what a VM could claim here for having been served less than others.
    pub(in crate::scheduler) fn forfeit(&mut self, id: VmId) {
        let floor = self.floor;
        self.change_vm(id, |vm| vm.time = vm.time.max(floor));
    }

    /// Returns the order of VCPUs: the least first.
    pub(super) fn key(&self, target: VcpuId) -> (u128, u128) {
        let vm = self.vm(target.vm);
        let time = self.with_entry(target, |entry| entry.time);
        (vm.map_or(0, |vm| vm.time), time.unwrap_or(0))
    }

    /// Returns who is to run next.
    pub(super) fn best(&mut self, now: HostTicks) -> Option<VcpuId> {
        loop {
            let id = VmId(self.waiting.first()?.1);
            if !self.may_run(id, now) {
                debug_assert!(!self.waiting.contains(id.0), "{id:?} waits and may not run");
                continue;
            }
            let vm = self.vm(id)?;
            let index = match (vm.fixed.first(), vm.free.first()) {
                (Some(fixed), Some(free)) => fixed.min(free).1,
                (fixed, free) => fixed.or(free)?.1,
            };
            let index = index as u32;
            return Some(VcpuId { vm: id, index });
        }
    }

    /// Returns the first of those that may go to another CPU.
    pub(in crate::scheduler) fn first_to_give(&mut self, now: HostTicks) -> Option<VcpuId> {
        loop {
            let id = VmId(self.givers.first()?.1);
            if self.may_run(id, now) {
                let index = self.vm(id)?.free.first()?.1 as u32;
                return Some(VcpuId { vm: id, index });
            }
            debug_assert!(!self.givers.contains(id.0), "{id:?} gives and may not run");
        }
    }

    /// Returns whether a VCPU of another VM than `id` waits for this CPU.
    pub(super) fn is_contended(&mut self, id: VmId, now: HostTicks) -> bool {
        while let Some(other) = self.waiting.first_but(id.0) {
            if self.may_run(VmId(other), now) {
                return true;
            }
        }
        false
    }

    /// Returns whether `target` waits here and can run at once.
    pub(in crate::scheduler) fn is_eligible(&mut self, target: VcpuId, now: HostTicks) -> bool {
        let index = target.index as usize;
        let waits = |vm: &super::VmQueue| vm.fixed.contains(index) || vm.free.contains(index);
        self.vm(target.vm).is_some_and(waits) && self.may_run(target.vm, now)
    }

    /// Puts a VCPU that waits where it belongs in the queue, or out of it.
    pub(super) fn requeue(&mut self, target: VcpuId) {
        let cpu = self.cpu;
        let state = self.with_entry(target, |entry| {
            let here = matches!(entry.state, RunState::Waiting)
                // One that is pinned elsewhere waits to be taken out of this processor.
                && entry.pin.is_none_or(|pin| pin as usize == cpu);
            (here, entry.pin.is_none() && !entry.loaded, entry.time)
        });
        let Some((here, is_free, time)) = state else {
            return;
        };
        let index = target.index as usize;
        self.change_vm(target.vm, |vm| {
            let (queue, other) = if is_free {
                (&mut vm.free, &mut vm.fixed)
            } else {
                (&mut vm.fixed, &mut vm.free)
            };
            other.remove(index);
            if here {
                queue.set(index, time);
            } else {
                queue.remove(index);
            }
        });
    }
}
