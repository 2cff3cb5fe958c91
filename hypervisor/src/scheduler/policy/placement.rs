//! VCPUs that come to a CPU's queue, and leave it.

use super::{CpuQueue, RunState};
use crate::ids::VcpuId;

impl CpuQueue {
    /// Returns whether a VCPU, whose home this is, may go to another CPU: it runs nowhere, is in no
    /// processor, and is not pinned.
    pub(in crate::scheduler) fn can_leave(&self, target: VcpuId) -> bool {
        self.with_entry(target, |entry| entry.pin.is_none() && !entry.is_held())
            .unwrap_or(false)
    }

    /// Tells that the state of a VCPU is out of this processor: one that is to run on goes in again.
    /// Returns where it goes now, if it is pinned elsewhere.
    pub(in crate::scheduler) fn unload(&mut self, target: VcpuId) -> Option<u32> {
        let pin = self.with_entry(target, |entry| {
            entry.loaded = false;
            entry.pin.filter(|_| !entry.is_held())
        });
        self.requeue(target);
        pin.flatten().filter(|pin| *pin as usize != self.cpu)
    }

    /// Pins a VCPU, whose home this is and stays for now.
    pub(in crate::scheduler) fn set_pin(&mut self, target: VcpuId, pin: Option<u32>) {
        self.with_entry(target, |entry| entry.pin = pin);
        self.requeue(target);
    }

    /// Moves a VCPU that does not run and is in no processor to the queue of `other`, where others'
    /// virtual times mean other things.
    pub(in crate::scheduler) fn give(&mut self, target: VcpuId, other: &mut Self) {
        let index = target.index as usize;
        let state = self.with_entry(target, |entry| {
            debug_assert!(!entry.is_held(), "a CPU has {target:?}");
            entry.state
        });
        let (Some(state), true) = (state, other.vm(target.vm).is_some()) else {
            debug_assert!(false, "{target:?} is not where it is moved");
            return;
        };
        let is_busy = u32::from(!matches!(state, RunState::Blocked { .. }));
        self.members -= 1;
        self.change_vm(target.vm, |vm| {
            vm.members -= 1;
            vm.busy -= is_busy;
            vm.fixed.remove(index);
            vm.free.remove(index);
            vm.timers.remove(index);
        });
        if let Some(vcpu) = self.vm(target.vm).and_then(|vm| vm.shares.vcpus.get(index)) {
            vcpu.set_home(other.cpu);
        }
        if let Some(floor) = other.vm(target.vm).map(|vm| vm.floor) {
            other.with_entry(target, |entry| entry.time = floor);
        }
        other.catch_up(target);
        other.members += 1;
        other.change_vm(target.vm, |vm| {
            vm.members += 1;
            vm.busy += is_busy;
            if let RunState::Blocked { wake_at } = state
                && wake_at.0 != u64::MAX
            {
                vm.timers.set(index, wake_at);
            }
        });
        other.requeue(target);
    }

    /// Returns whether another CPU may take something from here.
    pub(in crate::scheduler) fn is_giver(&self) -> bool {
        self.load >= 2 && !self.givers.is_empty()
    }
}
