//! Which VCPU a physical CPU runs, and what it does when there is none.
//!
//! [`policy`] decides, on numbers alone. [`Scheduler`] is where the CPUs meet: the policy behind
//! a lock, the VCPUs, and the interrupts that make a CPU look.
//!
//! # Locks
//! The scheduler's lock is the innermost of all: whoever holds it takes no other and waits for
//! nobody. It may be taken with a VM's board locked.
//!
//! # No wake-up is lost
//! Whoever has something for a VCPU makes a [request](crate::vm::requests) and then looks where
//! the VCPU runs. On a CPU: an interrupt makes it leave the guest, and it looks at its requests
//! before it enters again. On none: [`Scheduler::wake`]. A VCPU that has nothing to do leaves its
//! CPU, blocks, and *then* looks at its requests once more ([`Scheduler::block`]); so either it
//! sees the request, or the one who made it sees that it runs nowhere and finds it blocked, or
//! not blocked yet, in which case the VCPU sees the request.

mod cell;
#[cfg(test)]
pub(crate) mod idle_vcpu;
mod latency;
pub(crate) mod policy;
mod queue;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::time::HostTicks;
use spin::Mutex;

use crate::ids::{VcpuId, VmId};
use crate::machine::host_time::host_now;
use crate::vm::Vm;
use crate::vm::host::Waker;
use crate::vm::requests::Requests;
use queue::CpuSet;

pub(crate) use cell::{Runnable, VcpuCell};
pub(crate) use latency::Latency;
pub(crate) use policy::{Decision, PinError, Policy, Settings};

struct Queues {
    policy: Policy,
    /// The cells of all VCPUs, by VM and index.
    cells: Vec<Vec<Arc<VcpuCell>>>,
}

impl Queues {
    fn cell(&self, target: VcpuId) -> Option<&Arc<VcpuCell>> {
        self.cells.get(target.vm.0)?.get(target.index as usize)
    }
}

/// The part of the machine that a VCPU has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuUsage {
    /// The CPU whose queue it is in.
    pub cpu: u32,
    /// Whether it is pinned there.
    pub pinned: bool,
    /// CPU time, in host TSC ticks, up to the last decision.
    pub received: u64,
    /// The times that it has waited for a CPU when it was woken.
    pub latency: Latency,
}

/// The VCPUs that run on this machine. See the [module documentation](self).
pub(crate) struct Scheduler {
    queues: Mutex<Queues>,
    kick: fn(u32),
    insist: fn(u32),
}

impl Scheduler {
    /// Makes a scheduler for `cpus` CPUs, numbered from 0. `kick` makes a CPU leave its guest or
    /// its sleep, and does nothing on that CPU itself; `insist` does what [`Waker::insist`] says.
    #[must_use]
    pub(crate) fn new(settings: Settings, cpus: u32, kick: fn(u32), insist: fn(u32)) -> Self {
        Self {
            queues: Mutex::new(Queues {
                policy: Policy::new(settings, cpus, host_now()),
                cells: Vec::new(),
            }),
            kick,
            insist,
        }
    }

    /// Adds the VCPUs of `vm`, all of them, and lets them look for work. `pins` says for each
    /// the CPU that it is pinned to, if any.
    ///
    /// # Errors
    /// If a pin names a CPU that does not exist; then nothing is added.
    pub(crate) fn add_vm(
        &self,
        vm: &Arc<Vm>,
        vcpus: Vec<Box<dyn Runnable>>,
        weight: u32,
        cap: Option<u32>,
        pins: &[Option<u32>],
    ) -> Result<(), PinError> {
        let id = vm.id;
        let cells: Vec<_> = (0..)
            .zip(vcpus)
            .map(|(index, vcpu)| Arc::new(VcpuCell::new(vm.clone(), index, vcpu)))
            .collect();
        let count = cells.len() as u32;
        {
            let mut queues = self.queues.lock();
            queues.policy.add_vm(id, weight, cap, pins)?;
            if queues.cells.len() <= id.0 {
                queues.cells.resize_with(id.0 + 1, Vec::new);
            }
            queues.cells[id.0] = cells;
        }
        for index in 0..count {
            self.wake(VcpuId { vm: id, index });
        }
        Ok(())
    }

    /// Stops a VM's VCPUs: soon the VM is quiescent.
    pub(crate) fn stop_vm(&self, id: VmId) {
        let mut queues = self.queues.lock();
        let kicks = queues.policy.stop_vm(id);
        self.kick_all(&queues, kicks);
    }

    /// Returns whether no CPU has anything of the VM any more.
    #[must_use]
    pub(crate) fn is_quiescent(&self, id: VmId) -> bool {
        self.queues.lock().policy.is_quiescent(id)
    }

    /// Forgets the VCPUs of a VM, which is quiescent.
    pub(crate) fn remove_vm(&self, id: VmId) {
        let cells = {
            let mut queues = self.queues.lock();
            debug_assert!(queues.policy.is_quiescent(id));
            queues.policy.remove_vm(id);
            queues.cells.get_mut(id.0).map(core::mem::take)
        };
        // Outside the lock: the last one takes the VM along.
        drop(cells);
    }

    /// Pauses a VM or lets it go on.
    pub(crate) fn set_paused(&self, id: VmId, paused: bool) {
        let mut queues = self.queues.lock();
        let kicks = queues.policy.set_paused(id, paused);
        self.kick_all(&queues, kicks);
    }

    /// Pins a VCPU to a CPU, or with `None` lets it go anywhere.
    ///
    /// # Errors
    /// If there is no such VCPU or CPU; then nothing changes.
    pub(crate) fn pin(&self, target: VcpuId, cpu: Option<u32>) -> Result<(), PinError> {
        let mut queues = self.queues.lock();
        let kicks = queues.policy.pin(target, cpu)?;
        self.kick_all(&queues, kicks);
        Ok(())
    }

    /// Decides what `cpu` is to do now; see [`Policy::next`].
    #[must_use]
    pub(crate) fn next(&self, cpu: u32, now: HostTicks, lead: u64) -> Decision {
        self.queues.lock().policy.next(cpu, now, lead)
    }

    /// Returns the VCPU that `target` names, unless its VM has been removed.
    #[must_use]
    pub(crate) fn cell(&self, target: VcpuId) -> Option<Arc<VcpuCell>> {
        self.queues.lock().cell(target).cloned()
    }

    /// Tells that `cell`, which ran on `cpu`, has nothing to do before `wake_at`.
    pub(crate) fn block(&self, cpu: u32, cell: &VcpuCell, wake_at: HostTicks) {
        self.queues.lock().policy.block(cpu, wake_at, host_now());
        if cell.requests().are_pending() {
            self.wake(cell.id());
        }
    }

    /// Tells that the state of a VCPU is out of `cpu`.
    pub(crate) fn released(&self, cpu: u32, target: VcpuId) {
        let mut queues = self.queues.lock();
        let kicks = queues.policy.released(cpu, target);
        self.kick_all(&queues, kicks);
    }

    /// Returns what a VCPU has had; `None` if it does not run on this machine now.
    #[must_use]
    pub(crate) fn usage(&self, target: VcpuId) -> Option<CpuUsage> {
        let policy = &self.queues.lock().policy;
        let (cpu, pinned) = policy.place(target)?;
        Some(CpuUsage {
            cpu,
            pinned,
            received: policy.received(target)?,
            latency: policy.latency(target)?,
        })
    }

    /// Makes CPUs ask for a new decision.
    fn kick_all(&self, queues: &Queues, cpus: CpuSet) {
        for cpu in cpus.iter() {
            let running = queues.policy.running_on(cpu);
            if let Some(cell) = running.and_then(|running| queues.cell(running)) {
                cell.requests().make(Requests::YIELD);
            }
            (self.kick)(cpu);
        }
    }
}

impl Waker for Scheduler {
    fn kick(&self, cpu: u32) {
        (self.kick)(cpu);
    }

    fn insist(&self, cpu: u32) {
        (self.insist)(cpu);
    }

    fn wake(&self, vcpu: VcpuId) {
        let mut queues = self.queues.lock();
        let kicks = queues.policy.wake(vcpu, host_now());
        if !kicks.is_empty() {
            self.kick_all(&queues, kicks);
        }
    }
}
