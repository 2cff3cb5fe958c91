//! Which VCPU runs where, and for how long: pure decisions on numbers, without hardware.
//!
//! Each physical CPU has its own queue. A VCPU waits in the queue of its *home*: the CPU that
//! it is pinned to, or else one chosen when it wakes. A CPU without work takes some from
//! another queue, and so does one whose queue is shorter by two.
//!
//! **Fairness.** On each CPU, each VM has a virtual time, which advances by the CPU time that
//! its VCPUs get there, divided by the VM's weight; the VM with the least goes next. So VMs
//! share a CPU by their weights, whatever they do and however many VCPUs they bring. Within
//! a VM the VCPU that has had the least goes next. Who wakes after a long sleep starts
//! at most [`Settings::slice`] / 2 behind the others: sleeping earns a head start, not a
//! monopoly.
//!
//! **Latency.** A woken VCPU that is behind the running one in virtual time replaces it as soon
//! as that has run for [`Settings::granularity`]; else it waits until those before it have
//! had a slice each.
//!
//! **Caps.** A VM with a cap has a budget of CPU time for each [`Settings::period`], all CPUs
//! together; when it is used up, its VCPUs wait for the next period. What is used beyond the
//! budget is taken off the next.
#![forbid(unsafe_code)]

mod caps;
mod fairness;
mod placement;
mod terms;
mod timers;

use alloc::vec::Vec;

use devices::time::HostTicks;

use super::latency::Latency;
use super::queue::{CpuSet, RunState, VcpuEntry, VmEntry};
use crate::ids::{VcpuId, VmId};

pub(crate) use terms::{Decision, PinError, Settings};

#[derive(Clone, Debug)]
struct CpuState {
    running: Option<VcpuId>,
    /// The VCPU whose state is in the processor.
    loaded: Option<VcpuId>,
    /// The time at which the running VCPU began its slice.
    slice_start: HostTicks,
    /// The time up to which the running VCPU's CPU time is accounted.
    accounted: HostTicks,
    /// Whether a VCPU has woken that is to replace the running one.
    preempt: bool,
    /// The time before which the running VCPU has nothing to do.
    not_before: HostTicks,
    /// The virtual time up to which VMs have been served; never goes back.
    floor: u128,
}

/// The scheduler's memory.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    settings: Settings,
    cpus: Vec<CpuState>,
    /// The entries of the VMs, by [`VmId`].
    vms: Vec<Option<VmEntry>>,
    period_end: HostTicks,
}

impl Policy {
    /// Makes a scheduler for `cpus` CPUs, at least one, from `now` on.
    #[must_use]
    pub(crate) fn new(settings: Settings, cpus: u32, now: HostTicks) -> Self {
        debug_assert!(cpus > 0, "this code runs on one");
        let cpu = CpuState {
            running: None,
            loaded: None,
            slice_start: now,
            accounted: now,
            preempt: false,
            not_before: HostTicks::ZERO,
            floor: 0,
        };
        Self {
            settings,
            cpus: alloc::vec![cpu; cpus as usize],
            vms: Vec::new(),
            period_end: now.saturating_add(settings.period),
        }
    }

    /// Returns how many CPUs there are.
    #[must_use]
    pub(crate) fn cpu_count(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// Returns the VCPU that runs on `cpu`.
    #[must_use]
    pub(crate) fn running_on(&self, cpu: u32) -> Option<VcpuId> {
        self.cpus.get(cpu as usize)?.running
    }

    /// Adds a VM, whose VCPUs are all blocked. `pins` says for each VCPU the CPU that it is
    /// pinned to, if any.
    ///
    /// # Errors
    /// If a pin names a CPU that does not exist; then nothing is added.
    pub(crate) fn add_vm(
        &mut self,
        id: VmId,
        weight: u32,
        cap: Option<u32>,
        pins: &[Option<u32>],
    ) -> Result<(), PinError> {
        for &cpu in pins.iter().flatten() {
            self.check_cpu(cpu)?;
        }
        debug_assert!(weight > 0, "configurations have no such weight");
        let budget = cap.map(|percent| self.budget(percent));
        let mut vm = VmEntry::new(weight, budget, self.cpus.len());
        for &pin in pins {
            let home = pin.map_or_else(|| self.emptiest(&vm), |cpu| cpu as usize);
            vm.vcpus.push(VcpuEntry::new(home, pin));
        }
        if self.vms.len() <= id.0 {
            self.vms.resize(id.0 + 1, None);
        }
        self.vms[id.0] = Some(vm);
        Ok(())
    }

    /// Forgets a VM, which must be [quiescent](Policy::is_quiescent).
    pub(crate) fn remove_vm(&mut self, id: VmId) {
        debug_assert!(self.is_quiescent(id), "a CPU still has a VCPU of it");
        if let Some(vm) = self.vms.get_mut(id.0) {
            *vm = None;
        }
    }

    /// Stops a VM: from now on no VCPU of it runs, and all are taken out of their processors.
    /// Returns the CPUs to be kicked for that.
    pub(crate) fn stop_vm(&mut self, id: VmId) -> CpuSet {
        self.with_vm(id, |vm| vm.stopping = true)
    }

    /// Pauses or resumes a VM. Returns the CPUs to be kicked for that.
    pub(crate) fn set_paused(&mut self, id: VmId, paused: bool) -> CpuSet {
        self.forfeit(id);
        self.with_vm(id, |vm| {
            vm.paused = paused;
            vm.forget_wakes();
        })
    }

    fn with_vm(&mut self, id: VmId, change: impl FnOnce(&mut VmEntry)) -> CpuSet {
        let mut kicks = CpuSet::default();
        if let Some(vm) = self.vms.get_mut(id.0).and_then(Option::as_mut) {
            change(vm);
            for vcpu in &vm.vcpus {
                kicks.insert(vcpu.loaded_on.unwrap_or(vcpu.home));
            }
        }
        kicks
    }

    /// Returns whether no VCPU of the VM runs or is in a processor.
    #[must_use]
    pub(crate) fn is_quiescent(&self, id: VmId) -> bool {
        self.vm(id).is_none_or(|vm| {
            vm.vcpus
                .iter()
                .all(|vcpu| vcpu.loaded_on.is_none() && !matches!(vcpu.state, RunState::Running))
        })
    }

    /// Tells that a blocked VCPU has something to do. Returns the CPUs to be kicked. Nothing
    /// happens if the VCPU is not blocked.
    pub(crate) fn wake(&mut self, target: VcpuId, now: HostTicks) -> CpuSet {
        let mut kicks = CpuSet::default();
        let Some(vcpu) = self.vcpu(target) else {
            return kicks;
        };
        if !matches!(vcpu.state, RunState::Blocked { .. }) {
            return kicks;
        }
        let home = self.home_for(vcpu);
        self.make_runnable(target, home, now);
        if self.is_eligible(target, home) {
            if self.cpus[home].running.is_none() || self.cpus[home].preempt {
                kicks.insert(home);
            }
        } else if let Some(vcpu) = self.vcpu(target)
            && let Some(loaded_on) = vcpu.loaded_on
        {
            // It cannot go on before that CPU has let go of it.
            kicks.insert(loaded_on);
        }
        kicks
    }

    /// Puts a blocked VCPU into the queue of `home`, as of `woken_at`.
    fn make_runnable(&mut self, target: VcpuId, home: usize, woken_at: HostTicks) {
        self.move_home(target, home);
        self.catch_up(target);
        let Some(vcpu) = self.vcpu_mut(target) else {
            debug_assert!(false, "no VCPU is {target:?}");
            return;
        };
        vcpu.state = RunState::Waiting;
        vcpu.woken_at = Some(woken_at);
        self.account(home, woken_at);
        if let Some(running) = self.cpus[home].running
            && self.is_eligible(target, home)
            && (self.key(target, home) < self.key(running, home)
                || woken_at < self.cpus[home].not_before)
        {
            self.cpus[home].preempt = true;
        }
    }

    /// Tells that the VCPU that runs on `cpu` has nothing to do before `wake_at`.
    pub(crate) fn block(&mut self, cpu: u32, wake_at: HostTicks, now: HostTicks) {
        let cpu = cpu as usize;
        self.account(cpu, now);
        let running = self.cpus[cpu].running.take();
        let vcpu = running.and_then(|running| self.vcpu_mut(running));
        debug_assert!(vcpu.is_some(), "CPU {cpu} runs no VCPU");
        if let Some(vcpu) = vcpu {
            vcpu.state = RunState::Blocked { wake_at };
        }
    }

    /// Tells that the state of a VCPU has been taken out of `cpu`. Returns the CPUs to be
    /// kicked, as it may be wanted elsewhere.
    pub(crate) fn released(&mut self, cpu: u32, target: VcpuId) -> CpuSet {
        let mut kicks = CpuSet::default();
        let from = cpu as usize;
        if let Some(state) = self.cpus.get_mut(from)
            && state.loaded == Some(target)
        {
            state.loaded = None;
        }
        let Some(vcpu) = self.vcpu_mut(target) else {
            return kicks;
        };
        if vcpu.loaded_on == Some(from) {
            vcpu.loaded_on = None;
        }
        let (home, movable) = (vcpu.home, vcpu.pin.is_none());
        if matches!(vcpu.state, RunState::Waiting) {
            if home != from {
                kicks.insert(home);
            } else if movable && let Some(idle) = (0..self.cpus.len()).find(|&c| self.load(c) == 0)
            {
                kicks.insert(idle);
            }
        }
        kicks
    }

    /// Decides what `cpu` does from `now` on. If it is nothing, it gets a VCPU that sleeps `lead` ticks
    /// before its timer is due, so that it need not wait for the CPU to wake up and decide.
    pub(crate) fn next(&mut self, cpu: u32, now: HostTicks, lead: u64) -> Decision {
        let number = cpu;
        let cpu = cpu as usize;
        self.account(cpu, now);
        self.start_period(now);
        self.wake_due(cpu, now);
        if let Some(loaded) = self.cpus[cpu].loaded
            && self.must_release(loaded, cpu)
        {
            self.put_back(cpu);
            return Decision::Release(loaded);
        }
        if let Some(running) = self.cpus[cpu].running {
            let ran = now.since(self.cpus[cpu].slice_start);
            let replaced = self.cpus[cpu].preempt && ran >= self.settings.granularity;
            if ran < self.settings.slice && !replaced && self.may_run(running.vm) {
                return self.run(running, cpu, now, HostTicks::ZERO);
            }
            self.put_back(cpu);
        }
        self.steal(cpu);
        let mut not_before = HostTicks::ZERO;
        if self.best(cpu).is_none()
            && let Some(due) = self.wake_first(cpu, now, lead)
        {
            not_before = due;
        }
        match self.best(cpu) {
            Some(vcpu) => {
                self.start(vcpu, cpu, now);
                self.cpus[cpu].not_before = not_before;
                self.run(vcpu, cpu, now, not_before)
            }
            None => Decision::Idle {
                until: self.next_event(number, lead),
            },
        }
    }

    /// Returns the decision to let `vcpu` go on, which has nothing to do before `not_before`.
    fn run(&self, vcpu: VcpuId, cpu: usize, now: HostTicks, not_before: HostTicks) -> Decision {
        let state = &self.cpus[cpu];
        let length = if state.preempt {
            self.settings.granularity
        } else {
            self.settings.slice
        };
        let mut until = state
            .slice_start
            .saturating_add(length)
            .min(self.next_timer(cpu));
        if let Some(left) = self.budget_left(vcpu.vm) {
            until = until.min(now.saturating_add(left));
        }
        Decision::Run {
            vcpu,
            until,
            contended: self.is_contended(vcpu.vm, cpu),
            not_before,
        }
    }

    /// Returns whether a VCPU of another VM than `id` waits for `cpu`.
    fn is_contended(&self, id: VmId, cpu: usize) -> bool {
        self.all()
            .any(|(target, _)| target.vm != id && self.is_eligible(target, cpu))
    }

    fn start(&mut self, target: VcpuId, cpu: usize, now: HostTicks) {
        let Some(Some(vm)) = self.vms.get_mut(target.vm.0) else {
            debug_assert!(false, "no VM has {target:?}");
            return;
        };
        let Some(vcpu) = vm.vcpus.get_mut(target.index as usize) else {
            debug_assert!(false, "no VCPU is {target:?}");
            return;
        };
        let state = &mut self.cpus[cpu];
        state.running = Some(target);
        state.loaded = Some(target);
        state.slice_start = now;
        state.accounted = now;
        state.preempt = false;
        state.floor = state.floor.max(vm.time[cpu]);
        vm.floor[cpu] = vm.floor[cpu].max(vcpu.time);
        vcpu.state = RunState::Running;
        vcpu.loaded_on = Some(cpu);
        if let Some(woken_at) = vcpu.woken_at.take() {
            vcpu.latency.record(now.since(woken_at));
        }
    }

    /// Puts the running VCPU of `cpu` back into the queue.
    fn put_back(&mut self, cpu: usize) {
        let Some(running) = self.cpus[cpu].running.take() else {
            return;
        };
        let vcpu = self.vcpu_mut(running);
        debug_assert!(
            vcpu.as_ref()
                .is_some_and(|vcpu| matches!(vcpu.state, RunState::Running)),
            "CPU {cpu} runs {running:?}, which does not know"
        );
        if let Some(vcpu) = vcpu {
            vcpu.state = RunState::Waiting;
        }
    }

    /// Returns whether the VCPU whose state is in `cpu` has to leave it.
    fn must_release(&self, loaded: VcpuId, cpu: usize) -> bool {
        self.vm(loaded.vm).is_none_or(|vm| {
            vm.stopping
                || vm
                    .vcpus
                    .get(loaded.index as usize)
                    .is_none_or(|vcpu| vcpu.home != cpu)
        })
    }

    fn may_run(&self, id: VmId) -> bool {
        self.vm(id)
            .is_some_and(|vm| !vm.stopping && !vm.paused && !vm.is_throttled())
    }

    fn all(&self) -> impl Iterator<Item = (VcpuId, &VcpuEntry)> {
        self.vms.iter().enumerate().flat_map(|(vm, state)| {
            let vcpus = state.as_ref().map_or(&[][..], |state| &state.vcpus);
            (0..).zip(vcpus).map(move |(index, vcpu)| {
                let vm = VmId(vm);
                (VcpuId { vm, index }, vcpu)
            })
        })
    }

    fn vm(&self, id: VmId) -> Option<&VmEntry> {
        self.vms.get(id.0)?.as_ref()
    }

    fn vcpu(&self, target: VcpuId) -> Option<&VcpuEntry> {
        self.vm(target.vm)?.vcpus.get(target.index as usize)
    }

    fn vcpu_mut(&mut self, target: VcpuId) -> Option<&mut VcpuEntry> {
        self.vms
            .get_mut(target.vm.0)?
            .as_mut()?
            .vcpus
            .get_mut(target.index as usize)
    }

    /// Returns how long woken VCPUs of a VM have waited for a CPU.
    #[must_use]
    pub(crate) fn latency(&self, target: VcpuId) -> Option<Latency> {
        Some(self.vcpu(target)?.latency)
    }

    /// Returns the CPU time that a VCPU has had, up to the last decision.
    #[must_use]
    pub(crate) fn received(&self, target: VcpuId) -> Option<u64> {
        Some(self.vcpu(target)?.received)
    }
}

#[cfg(test)]
mod tests;
