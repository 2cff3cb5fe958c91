//! Which VCPU a physical CPU runs, and what it does when there is none.
//!
//! [`policy`] decides for one CPU, on numbers alone. [`queues`] has the CPUs' queues, each behind a lock, and
//! moves VCPUs between them. [`Scheduler`] is where the CPUs meet: the queues, the VCPUs, and the
//! interrupts that make a CPU look.
//!
//! # Locks
//! The scheduler's locks are the innermost of all: whoever holds one takes no others than here, and waits
//! for nobody but who holds such a one. They may be taken with a VM's board locked. In their order:
//!
//! 1. the queue of a CPU; of two CPUs, in ascending order of their numbers; of no more;
//! 2. one of these, and no other in it: a VCPU's entry, a VM's budget, a VM's place in a table.
//!
//! A decision, a VCPU that blocks, and one that is woken on its own CPU take the lock of that CPU, and no
//! lock is there for all. Memory is allocated when VMs are added, under a queue's lock too, but never by a
//! decision.
//!
//! # No wake-up is lost
//! Whoever has something for a VCPU makes a [request](crate::vm::requests) and then looks where
//! the VCPU runs. On a CPU: an interrupt makes it leave the guest, and it looks at its requests
//! before it enters again. On none: [`Scheduler::wake`]. A VCPU that has nothing to do leaves its
//! CPU, blocks, and *then* looks at its requests once more ([`Scheduler::block`]); so either it
//! sees the request, or the one who made it sees that it runs nowhere and finds it blocked, or
//! not blocked yet, in which case the VCPU sees the request.
//!
//! Whether a VCPU is blocked is changed and looked at with the queue of its home locked, and its home is looked
//! at again when that is locked, as it may have moved meanwhile.
//!
//! A request to leave a CPU is made with that CPU's queue locked, so that the VCPU runs: one made to a VCPU
//! that has just blocked would be pending without anybody to wake it, and hide those that come later.

mod cell;
mod heap;
#[cfg(test)]
pub(crate) mod idle_vcpu;
mod latency;
pub(crate) mod policy;
mod queue;
mod queues;
mod steps;
mod table;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::time::HostTicks;

use crate::ids::{VcpuId, VmId};
use crate::machine::host_time::host_now;
use crate::vm::Vm;
use crate::vm::host::Waker;
use crate::vm::requests::Requests;
use queue::CpuSet;
use queues::Queues;
use table::Table;

pub(crate) use cell::{Runnable, VcpuCell};
pub(crate) use latency::Latency;
pub(crate) use policy::{Decision, PinError, Settings};

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
    queues: Queues,
    /// The cells of each VM's VCPUs, by their numbers.
    cells: Table<Vec<Arc<VcpuCell>>>,
    kick: fn(u32),
}

impl Scheduler {
    /// Makes a scheduler for `cpus` CPUs, numbered from 0. `kick` makes a CPU leave its guest or
    /// its sleep, and does nothing on that CPU itself.
    #[must_use]
    pub(crate) fn new(settings: Settings, cpus: u32, kick: fn(u32)) -> Self {
        Self {
            queues: Queues::new(settings, cpus, host_now()),
            cells: Table::default(),
            kick,
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
        self.queues.add_vm(id, weight, cap, pins)?;
        self.cells.replace(id, Some(cells));
        for index in 0..count {
            self.wake(VcpuId { vm: id, index });
        }
        Ok(())
    }

    /// Stops a VM's VCPUs: soon the VM is quiescent.
    pub(crate) fn stop_vm(&self, id: VmId) {
        self.kick_all(self.queues.stop_vm(id));
    }

    /// Returns whether no CPU has anything of the VM any more.
    #[must_use]
    pub(crate) fn is_quiescent(&self, id: VmId) -> bool {
        self.queues.is_quiescent(id)
    }

    /// Forgets the VCPUs of a VM, which is quiescent.
    pub(crate) fn remove_vm(&self, id: VmId) {
        self.queues.remove_vm(id);
        // Outside the lock: the last one takes the VM along.
        drop(self.cells.replace(id, None));
    }

    /// Pauses a VM or lets it go on.
    pub(crate) fn set_paused(&self, id: VmId, paused: bool) {
        self.kick_all(self.queues.set_paused(id, paused));
    }

    /// Pins a VCPU to a CPU, or with `None` lets it go anywhere.
    ///
    /// # Errors
    /// If there is no such VCPU or CPU; then nothing changes.
    pub(crate) fn pin(&self, target: VcpuId, cpu: Option<u32>) -> Result<(), PinError> {
        self.kick_all(self.queues.pin(target, cpu)?);
        Ok(())
    }

    /// Decides what `cpu` is to do now; see [`Queues::next`].
    #[must_use]
    pub(crate) fn next(&self, cpu: u32, now: HostTicks, lead: u64) -> Decision {
        self.queues.next(cpu, now, lead)
    }

    /// Returns the VCPU that `target` names, unless its VM has been removed.
    #[must_use]
    pub(crate) fn cell(&self, target: VcpuId) -> Option<Arc<VcpuCell>> {
        self.cells
            .look(target.vm, |cells| cells.get(target.index as usize).cloned())
            .flatten()
    }

    /// Does not charge the VCPU that runs on `cpu` for `ticks` of what it has had, up to a small part of that: the operator's
    /// measures have taken them.
    pub(crate) fn waive(&self, cpu: u32, ticks: u64) {
        self.queues.waive(cpu, ticks);
    }

    /// Tells that `cell`, which ran on `cpu`, has nothing to do before `wake_at`.
    pub(crate) fn block(&self, cpu: u32, cell: &VcpuCell, wake_at: HostTicks) {
        self.queues.block(cpu, wake_at, host_now());
        if cell.requests().are_pending() {
            self.wake(cell.id());
        }
    }

    /// Tells that the state of a VCPU is out of `cpu`.
    pub(crate) fn released(&self, cpu: u32, target: VcpuId) {
        self.kick_all(self.queues.released(cpu, target));
    }

    /// Returns what a VCPU has had; `None` if it does not run on this machine now.
    #[must_use]
    pub(crate) fn usage(&self, target: VcpuId) -> Option<CpuUsage> {
        let (cpu, pinned) = self.queues.place(target)?;
        Some(CpuUsage {
            cpu,
            pinned,
            received: self.queues.received(target)?,
            latency: self.queues.latency(target)?,
        })
    }

    /// Makes CPUs ask for a new decision.
    fn kick_all(&self, cpus: CpuSet) {
        for cpu in cpus.iter() {
            self.queues.look_at_running(cpu, |running| {
                self.cells.look(running.vm, |cells| {
                    if let Some(cell) = cells.get(running.index as usize) {
                        cell.requests().make(Requests::YIELD);
                    }
                })
            });
            (self.kick)(cpu);
        }
    }
}

impl Waker for Scheduler {
    fn kick(&self, cpu: u32) {
        (self.kick)(cpu);
    }

    fn wake(&self, vcpu: VcpuId) {
        let kicks = self.queues.wake(vcpu, host_now());
        if !kicks.is_empty() {
            self.kick_all(kicks);
        }
    }
}

#[cfg(test)]
mod tests;
