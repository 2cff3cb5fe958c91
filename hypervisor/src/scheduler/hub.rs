//! Where the CPUs meet: who runs what, and who wakes whom.
//!
//! # Locks
//! The hub's lock is the innermost of all: whoever holds it takes no other and waits for
//! nobody. It may be taken with a VM's board locked.
//!
//! # No wake-up is lost
//! Whoever has something for a VCPU rings its [`Bell`](crate::vm::bell::Bell) and then looks
//! where the VCPU is. On a CPU: an interrupt makes it leave the guest, and it looks at its
//! bell before it enters again. On none: [`Hub::wake`]. A VCPU that has nothing to do leaves
//! its place, blocks, and *then* looks at its bell once more ([`Hub::block`]); so either it
//! sees the ring, or the ringer sees that it is on no CPU and finds it blocked, or not
//! blocked yet, in which case the VCPU sees the ring.

use super::latency::Latency;
use super::policy::{Decision, PinError, Policy, Settings, VcpuRef};
use super::queue::CpuSet;
use crate::host_time::host_now;
use crate::machine::smp;
use crate::vcpu::Vcpu;
use crate::vm::bell::{Bell, YIELD};
use crate::vm::{Vm, VmId};
use alloc::sync::Arc;
use alloc::vec::Vec;
use devices::time::HostTicks;
use spin::{Mutex, Once};

/// A VCPU that any CPU may run, one at a time.
pub struct VcpuCell {
    vm: Arc<Vm>,
    index: u32,
    /// Locked while a CPU runs it.
    pub vcpu: Mutex<Vcpu>,
}

impl VcpuCell {
    /// A cell for `vcpu`.
    #[must_use]
    pub fn new(vcpu: Vcpu) -> Self {
        Self {
            vm: vcpu.vm().clone(),
            index: vcpu.index(),
            vcpu: Mutex::new(vcpu),
        }
    }

    /// Its VM.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Its number in the VM.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// What others ring.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        self.vm.bell(self.index)
    }
}

struct State {
    policy: Policy,
    /// By VM and index.
    cells: Vec<Vec<Arc<VcpuCell>>>,
}

impl State {
    fn cell(&self, target: VcpuRef) -> Option<&Arc<VcpuCell>> {
        self.cells.get(target.vm.0)?.get(target.index as usize)
    }

    /// Makes CPUs ask for a new decision.
    fn kick(&self, cpus: CpuSet) {
        for cpu in cpus.iter() {
            let running = self.policy.running_on(cpu);
            if let Some(cell) = running.and_then(|running| self.cell(running)) {
                cell.bell().set(YIELD);
            }
            smp::kick(cpu);
        }
    }
}

/// What a VCPU has had of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The CPU whose queue it is in.
    pub cpu: u32,
    /// Whether it is pinned there.
    pub pinned: bool,
    /// CPU time, in host TSC ticks, up to the last decision.
    pub received: u64,
    /// How long it has waited for a CPU when it was woken.
    pub latency: Latency,
}

/// The meeting place.
pub struct Hub {
    state: Mutex<State>,
    cpus: u32,
}

static HUB: Once<Hub> = Once::new();

/// Makes the hub of this machine. The first call counts.
pub fn init(settings: Settings, cpus: u32) -> &'static Hub {
    HUB.call_once(|| Hub {
        state: Mutex::new(State {
            policy: Policy::new(settings, cpus, host_now()),
            cells: Vec::new(),
        }),
        cpus,
    })
}

/// Wakes a VCPU, if there is a hub yet.
pub fn wake(target: VcpuRef) {
    if let Some(hub) = HUB.get() {
        hub.wake(target);
    }
}

impl Hub {
    /// How many CPUs there are.
    #[must_use]
    pub const fn cpu_count(&self) -> u32 {
        self.cpus
    }

    /// Adds the VCPUs of a VM, all of them, and lets them look for work.
    ///
    /// # Errors
    /// If a pin names a CPU that does not exist; then nothing is added.
    pub fn add_vm(
        &self,
        vcpus: Vec<Vcpu>,
        weight: u32,
        cap: Option<u32>,
        pins: &[Option<u32>],
    ) -> Result<(), PinError> {
        let cells: Vec<_> = vcpus
            .into_iter()
            .map(|vcpu| Arc::new(VcpuCell::new(vcpu)))
            .collect();
        let Some(id) = cells.first().map(|cell| cell.vm().id) else {
            return Ok(());
        };
        let count = cells.len() as u32;
        {
            let mut state = self.state.lock();
            state.policy.add_vm(id, weight, cap, pins)?;
            if state.cells.len() <= id.0 {
                state.cells.resize_with(id.0 + 1, Vec::new);
            }
            state.cells[id.0] = cells;
        }
        for index in 0..count {
            self.wake(VcpuRef { vm: id, index });
        }
        Ok(())
    }

    /// Stops a VM's VCPUs: soon the VM is quiescent.
    pub fn stop_vm(&self, id: VmId) {
        let mut state = self.state.lock();
        let kicks = state.policy.stop_vm(id);
        state.kick(kicks);
    }

    /// Whether no CPU has anything of the VM any more.
    #[must_use]
    pub fn is_quiescent(&self, id: VmId) -> bool {
        self.state.lock().policy.is_quiescent(id)
    }

    /// Forgets the VCPUs of a VM, which is quiescent.
    pub fn remove_vm(&self, id: VmId) {
        let cells = {
            let mut state = self.state.lock();
            state.policy.remove_vm(id);
            state.cells.get_mut(id.0).map(core::mem::take)
        };
        // Outside the lock: the last one takes the VM along.
        drop(cells);
    }

    /// Pauses a VM or lets it go on.
    pub fn set_paused(&self, id: VmId, paused: bool) {
        let mut state = self.state.lock();
        let kicks = state.policy.set_paused(id, paused);
        state.kick(kicks);
    }

    /// Pins a VCPU to a CPU, or with `None` lets it go anywhere.
    ///
    /// # Errors
    /// If there is no such VCPU or CPU; then nothing changes.
    pub fn pin(&self, target: VcpuRef, cpu: Option<u32>) -> Result<(), PinError> {
        let mut state = self.state.lock();
        let kicks = state.policy.pin(target, cpu)?;
        state.kick(kicks);
        Ok(())
    }

    /// Wakes a VCPU, if it is blocked.
    pub fn wake(&self, target: VcpuRef) {
        let mut state = self.state.lock();
        let kicks = state.policy.wake(target, host_now());
        if !kicks.is_empty() {
            state.kick(kicks);
        }
    }

    /// What `cpu` is to do now.
    #[must_use]
    pub fn next(&self, cpu: u32, now: HostTicks) -> Decision {
        self.state.lock().policy.next(cpu, now)
    }

    /// The VCPU that `target` names.
    #[must_use]
    pub fn cell(&self, target: VcpuRef) -> Option<Arc<VcpuCell>> {
        self.state.lock().cell(target).cloned()
    }

    /// Tells that `cell`, which ran on `cpu`, has nothing to do before `wake_at`.
    pub fn block(&self, cpu: u32, cell: &VcpuCell, wake_at: HostTicks) {
        self.state.lock().policy.block(cpu, wake_at, host_now());
        if cell.bell().is_rung() {
            self.wake(VcpuRef {
                vm: cell.vm().id,
                index: cell.index(),
            });
        }
    }

    /// Tells that the state of a VCPU is out of `cpu`.
    pub fn released(&self, cpu: u32, target: VcpuRef) {
        let mut state = self.state.lock();
        let kicks = state.policy.released(cpu, target);
        state.kick(kicks);
    }

    /// What a VCPU has had.
    #[must_use]
    pub fn share(&self, target: VcpuRef) -> Option<Share> {
        let policy = &self.state.lock().policy;
        let (cpu, pinned) = policy.place(target)?;
        Some(Share {
            cpu,
            pinned,
            received: policy.received(target)?,
            latency: policy.latency(target)?,
        })
    }

    /// Calls `look` with a VCPU, wherever it is: one that runs comes off its CPU for that.
    /// Not to be called by code that runs that VCPU.
    pub fn with_vcpu<R>(&self, target: VcpuRef, look: impl FnOnce(&mut Vcpu) -> R) -> Option<R> {
        let cell = self.cell(target)?;
        let mut vcpu = loop {
            if let Some(vcpu) = cell.vcpu.try_lock() {
                break vcpu;
            }
            cell.vm().interrupt(cell.index(), YIELD);
            core::hint::spin_loop();
        };
        Some(look(&mut vcpu))
    }
}
