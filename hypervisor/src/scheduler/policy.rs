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

use super::latency::Latency;
use super::queue::{CpuSet, State, VcpuState, VmState};
use crate::vm::VmId;
use crate::vm_config::DEFAULT_WEIGHT;
use alloc::vec::Vec;
use devices::time::{Hertz, HostTicks};

/// A VCPU, by its VM and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuRef {
    /// Its VM.
    pub vm: VmId,
    /// Its number in the VM.
    pub index: u32,
}

/// The lengths of things, in host TSC ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The longest that a VCPU runs before another one is considered.
    pub slice: u64,
    /// The shortest that it runs before a woken one replaces it.
    pub granularity: u64,
    /// What caps are percentages of.
    pub period: u64,
}

impl Settings {
    /// Slices of 10 ms, a granularity of 1 ms, periods of 100 ms, for a TSC of `tsc`.
    #[must_use]
    pub const fn for_tsc(tsc: Hertz) -> Self {
        let millisecond = tsc.get() / 1000 + 1;
        Self {
            slice: 10 * millisecond,
            granularity: millisecond,
            period: 100 * millisecond,
        }
    }
}

/// What a CPU is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run this VCPU until then, unless kicked.
    Run {
        /// The VCPU.
        vcpu: VcpuRef,
        /// When to ask again.
        until: HostTicks,
    },
    /// Take the state of this VCPU out of the processor, say so with [`Policy::released`], and
    /// ask again.
    Release(VcpuRef),
    /// Sleep until then, unless kicked.
    Idle {
        /// When to ask again; the end of time for never.
        until: HostTicks,
    },
}

/// Why a VCPU cannot be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// No such CPU.
    #[error("there is no CPU {cpu}: this machine has {cpus}, numbered from 0")]
    NoCpu {
        /// The number given.
        cpu: u32,
        /// How many there are.
        cpus: u32,
    },
    /// No such VCPU.
    #[error("the VM has no such VCPU, or does not run")]
    NoVcpu,
}

#[derive(Clone, Debug)]
struct CpuState {
    running: Option<VcpuRef>,
    /// The VCPU whose state is in the processor.
    loaded: Option<VcpuRef>,
    /// When the running VCPU began its slice.
    slice_start: HostTicks,
    /// Up to when the running VCPU's time is accounted.
    accounted: HostTicks,
    /// Somebody has woken who is to replace the running VCPU.
    preempt: bool,
    /// The virtual time up to which VMs have been served; never goes back.
    floor: u128,
}

/// The scheduler's memory.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    cpus: Vec<CpuState>,
    /// By [`VmId`].
    vms: Vec<Option<VmState>>,
    period_end: HostTicks,
}

/// Virtual time of `ticks` at `weight`: finer than a tick, so that nothing is lost to rounding.
const fn virtual_time(ticks: u64, weight: u32) -> u128 {
    ((ticks as u128) << 20) / weight as u128
}

impl Policy {
    /// A scheduler for `cpus` CPUs, from `now` on.
    #[must_use]
    pub fn new(settings: Settings, cpus: u32, now: HostTicks) -> Self {
        let cpu = CpuState {
            running: None,
            loaded: None,
            slice_start: now,
            accounted: now,
            preempt: false,
            floor: 0,
        };
        Self {
            settings,
            cpus: alloc::vec![cpu; cpus.max(1) as usize],
            vms: Vec::new(),
            period_end: now.saturating_add(settings.period),
        }
    }

    /// How many CPUs there are.
    #[must_use]
    pub fn cpu_count(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// The VCPU that runs on `cpu`.
    #[must_use]
    pub fn running_on(&self, cpu: u32) -> Option<VcpuRef> {
        self.cpus.get(cpu as usize)?.running
    }

    /// Adds a VM, whose VCPUs are all blocked. `pins` says for each VCPU the CPU that it is
    /// pinned to, if any.
    ///
    /// # Errors
    /// If a pin names a CPU that does not exist; then nothing is added.
    pub fn add_vm(
        &mut self,
        id: VmId,
        weight: u32,
        cap: Option<u32>,
        pins: &[Option<u32>],
    ) -> Result<(), PinError> {
        for &cpu in pins.iter().flatten() {
            self.check_cpu(cpu)?;
        }
        let budget = cap.map(|percent| self.settings.period / 100 * u64::from(percent));
        let mut vm = VmState::new(weight.max(1), budget, self.cpus.len());
        for &pin in pins {
            let home = pin.map_or_else(|| self.emptiest(&vm), |cpu| cpu as usize);
            vm.vcpus.push(VcpuState::new(home, pin));
        }
        if self.vms.len() <= id.0 {
            self.vms.resize(id.0 + 1, None);
        }
        self.vms[id.0] = Some(vm);
        Ok(())
    }

    /// Forgets a VM, which must be [quiescent](Policy::is_quiescent).
    pub fn remove_vm(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(id.0) {
            *vm = None;
        }
    }

    /// From now on no VCPU of the VM runs, and all are taken out of their processors. Returns
    /// the CPUs to be kicked for that.
    pub fn stop_vm(&mut self, id: VmId) -> CpuSet {
        self.with_vm(id, |vm| vm.stopping = true)
    }

    /// Pauses or resumes a VM. Returns the CPUs to be kicked for that.
    pub fn set_paused(&mut self, id: VmId, paused: bool) -> CpuSet {
        self.forfeit(id);
        self.with_vm(id, |vm| {
            vm.paused = paused;
            vm.forget_wakes();
        })
    }

    /// Takes away what a VM could claim for having been served less than others.
    fn forfeit(&mut self, id: VmId) {
        if let Some(Some(vm)) = self.vms.get_mut(id.0) {
            for (time, cpu) in vm.time.iter_mut().zip(&self.cpus) {
                *time = (*time).max(cpu.floor);
            }
        }
    }

    fn with_vm(&mut self, id: VmId, change: impl FnOnce(&mut VmState)) -> CpuSet {
        let mut kicks = CpuSet::default();
        if let Some(vm) = self.vms.get_mut(id.0).and_then(Option::as_mut) {
            change(vm);
            for vcpu in &vm.vcpus {
                kicks.insert(vcpu.loaded_on.unwrap_or(vcpu.home));
            }
        }
        kicks
    }

    /// Whether no VCPU of the VM runs or is in a processor.
    #[must_use]
    pub fn is_quiescent(&self, id: VmId) -> bool {
        self.vm(id).is_none_or(|vm| {
            vm.vcpus
                .iter()
                .all(|vcpu| vcpu.loaded_on.is_none() && !matches!(vcpu.state, State::Running))
        })
    }

    /// Pins a VCPU to a CPU, or with `None` lets it go anywhere. Returns the CPUs to be kicked.
    ///
    /// # Errors
    /// If there is no such VCPU or CPU; then nothing changes.
    pub fn pin(&mut self, target: VcpuRef, cpu: Option<u32>) -> Result<CpuSet, PinError> {
        if let Some(cpu) = cpu {
            self.check_cpu(cpu)?;
        }
        let vcpu = self.vcpu_mut(target).ok_or(PinError::NoVcpu)?;
        vcpu.pin = cpu;
        let mut kicks = CpuSet::default();
        if let Some(cpu) = cpu
            && vcpu.home != cpu as usize
        {
            kicks.insert(vcpu.home);
            kicks.insert(cpu as usize);
            if let Some(old) = vcpu.loaded_on {
                kicks.insert(old);
            }
            self.move_home(target, cpu as usize);
        }
        Ok(kicks)
    }

    fn check_cpu(&self, cpu: u32) -> Result<(), PinError> {
        if (cpu as usize) < self.cpus.len() {
            Ok(())
        } else {
            Err(PinError::NoCpu {
                cpu,
                cpus: self.cpu_count(),
            })
        }
    }

    /// Tells that a blocked VCPU has something to do. Returns the CPUs to be kicked. Nothing
    /// happens if the VCPU is not blocked.
    pub fn wake(&mut self, target: VcpuRef, now: HostTicks) -> CpuSet {
        let mut kicks = CpuSet::default();
        let Some(vcpu) = self.vcpu(target) else {
            return kicks;
        };
        if !matches!(vcpu.state, State::Blocked { .. }) {
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
    fn make_runnable(&mut self, target: VcpuRef, home: usize, woken_at: HostTicks) {
        self.move_home(target, home);
        self.catch_up(target);
        let Some(vcpu) = self.vcpu_mut(target) else {
            return;
        };
        vcpu.state = State::Waiting;
        vcpu.woken_at = Some(woken_at);
        self.account(home, woken_at);
        if let Some(running) = self.cpus[home].running
            && self.is_eligible(target, home)
            && self.key(target, home) < self.key(running, home)
        {
            self.cpus[home].preempt = true;
        }
    }

    /// Brings the virtual times of a VCPU, and of its VM if that had nothing to do on this
    /// CPU, in line with what those that were busy have reached.
    fn catch_up(&mut self, target: VcpuRef) {
        let credit = virtual_time(self.settings.slice / 2, DEFAULT_WEIGHT);
        let debit = virtual_time(self.settings.slice, DEFAULT_WEIGHT);
        let Some(Some(vm)) = self.vms.get_mut(target.vm.0) else {
            return;
        };
        let Some(home) = vm.vcpus.get(target.index as usize).map(|vcpu| vcpu.home) else {
            return;
        };
        // One that comes from another queue is no proof that its VM has had its share of this.
        let is_busy = |(index, vcpu): (u32, &VcpuState)| {
            index != target.index
                && vcpu.home == home
                && !matches!(vcpu.state, State::Blocked { .. })
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

    /// Moves a VCPU to the queue of `home`, where others' virtual times mean other things.
    fn move_home(&mut self, target: VcpuRef, home: usize) {
        if let Some(Some(vm)) = self.vms.get_mut(target.vm.0)
            && let Some(vcpu) = vm.vcpus.get_mut(target.index as usize)
            && vcpu.home != home
        {
            vcpu.home = home;
            vcpu.time = vm.floor[home];
            self.catch_up(target);
        }
    }

    /// Where an unpinned VCPU that wakes goes: home, unless that is busy and another CPU is
    /// not. One whose state is still in a processor stays there.
    fn home_for(&self, vcpu: &VcpuState) -> usize {
        if let Some(cpu) = vcpu.pin {
            return cpu as usize;
        }
        if let Some(cpu) = vcpu.loaded_on {
            return cpu;
        }
        let is_idle = |cpu: usize| self.load(cpu) == 0;
        if is_idle(vcpu.home) {
            return vcpu.home;
        }
        (0..self.cpus.len())
            .find(|&cpu| is_idle(cpu))
            .unwrap_or(vcpu.home)
    }

    /// Tells that the VCPU that runs on `cpu` has nothing to do before `wake_at`.
    pub fn block(&mut self, cpu: u32, wake_at: HostTicks, now: HostTicks) {
        let cpu = cpu as usize;
        self.account(cpu, now);
        let running = self.cpus.get_mut(cpu).and_then(|cpu| cpu.running.take());
        if let Some(vcpu) = running.and_then(|running| self.vcpu_mut(running)) {
            vcpu.state = State::Blocked { wake_at };
        }
    }

    /// Tells that the state of a VCPU has been taken out of `cpu`. Returns the CPUs to be
    /// kicked, as it may be wanted elsewhere.
    pub fn released(&mut self, cpu: u32, target: VcpuRef) -> CpuSet {
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
        if matches!(vcpu.state, State::Waiting) {
            if home != from {
                kicks.insert(home);
            } else if movable && let Some(idle) = (0..self.cpus.len()).find(|&c| self.load(c) == 0)
            {
                kicks.insert(idle);
            }
        }
        kicks
    }

    /// Decides what `cpu` does from `now` on.
    pub fn next(&mut self, cpu: u32, now: HostTicks) -> Decision {
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
                return self.run(running, cpu, now);
            }
            self.put_back(cpu);
        }
        self.steal(cpu);
        match self.best(cpu) {
            Some(vcpu) => {
                self.start(vcpu, cpu, now);
                self.run(vcpu, cpu, now)
            }
            None => Decision::Idle {
                until: self.next_event(number),
            },
        }
    }

    /// The decision to let `vcpu` go on.
    fn run(&self, vcpu: VcpuRef, cpu: usize, now: HostTicks) -> Decision {
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
        if let Some(vm) = self.vm(vcpu.vm)
            && let Some(budget) = vm.budget
        {
            let running = vm.running().max(1) as u64;
            // Not too short a turn: what is too much is taken off the next period.
            let left =
                (budget.saturating_sub(vm.used) / running).max(self.settings.granularity / 8);
            until = until.min(now.saturating_add(left));
        }
        Decision::Run { vcpu, until }
    }

    fn start(&mut self, target: VcpuRef, cpu: usize, now: HostTicks) {
        let floor = self.vm(target.vm).map_or(0, |vm| vm.time[cpu]);
        let state = &mut self.cpus[cpu];
        state.running = Some(target);
        state.loaded = Some(target);
        state.slice_start = now;
        state.accounted = now;
        state.preempt = false;
        state.floor = state.floor.max(floor);
        if let Some(Some(vm)) = self.vms.get_mut(target.vm.0)
            && let Some(vcpu) = vm.vcpus.get_mut(target.index as usize)
        {
            vm.floor[cpu] = vm.floor[cpu].max(vcpu.time);
            vcpu.state = State::Running;
            vcpu.loaded_on = Some(cpu);
            if let Some(woken_at) = vcpu.woken_at.take() {
                vcpu.latency.record(now.since(woken_at));
            }
        }
    }

    /// Puts the running VCPU of `cpu` back into the queue.
    fn put_back(&mut self, cpu: usize) {
        if let Some(running) = self.cpus[cpu].running.take()
            && let Some(vcpu) = self.vcpu_mut(running)
            && matches!(vcpu.state, State::Running)
        {
            vcpu.state = State::Waiting;
        }
    }

    /// Whether the VCPU whose state is in `cpu` has to leave it.
    fn must_release(&self, loaded: VcpuRef, cpu: usize) -> bool {
        self.vm(loaded.vm).is_none_or(|vm| {
            vm.stopping
                || vm
                    .vcpus
                    .get(loaded.index as usize)
                    .is_none_or(|vcpu| vcpu.home != cpu)
        })
    }

    /// Charges the time since the last call to the VCPU that runs on `cpu`.
    fn account(&mut self, cpu: usize, now: HostTicks) {
        let state = &mut self.cpus[cpu];
        let ran = now.since(state.accounted);
        state.accounted = state.accounted.max(now);
        let Some(running) = state.running else {
            return;
        };
        if let Some(Some(vm)) = self.vms.get_mut(running.vm.0) {
            let was_throttled = vm.is_throttled();
            vm.used = vm.used.saturating_add(ran);
            if vm.is_throttled() && !was_throttled {
                vm.forget_wakes();
            }
            vm.time[cpu] += virtual_time(ran, vm.weight);
            if let Some(vcpu) = vm.vcpus.get_mut(running.index as usize) {
                vcpu.time += virtual_time(ran, DEFAULT_WEIGHT);
                vcpu.received += ran;
            }
        }
    }

    fn start_period(&mut self, now: HostTicks) {
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

    /// Wakes the VCPUs of `cpu` whose timers are due.
    fn wake_due(&mut self, cpu: usize, now: HostTicks) {
        for vm in 0..self.vms.len() {
            let count = self.vms[vm].as_ref().map_or(0, |vm| vm.vcpus.len());
            for index in 0..count {
                let target = VcpuRef {
                    vm: VmId(vm),
                    index: index as u32,
                };
                if let Some(vcpu) = self.vcpu(target)
                    && vcpu.home == cpu
                    && let State::Blocked { wake_at } = vcpu.state
                    && wake_at <= now
                {
                    self.make_runnable(target, cpu, wake_at);
                }
            }
        }
    }

    /// When the first timer of a blocked VCPU of `cpu` is due.
    fn next_timer(&self, cpu: usize) -> HostTicks {
        self.vms
            .iter()
            .flatten()
            .flat_map(|vm| &vm.vcpus)
            .filter(|vcpu| vcpu.home == cpu)
            .filter_map(|vcpu| match vcpu.state {
                State::Blocked { wake_at } => Some(wake_at),
                _ => None,
            })
            .min()
            .unwrap_or(HostTicks(u64::MAX))
    }

    /// When an idle CPU has to look again: for a timer, or for a VM whose budget is renewed.
    fn next_event(&self, cpu: u32) -> HostTicks {
        let cpu = cpu as usize;
        let throttled = self.vms.iter().flatten().any(|vm| {
            vm.is_throttled()
                && vm
                    .vcpus
                    .iter()
                    .any(|vcpu| vcpu.home == cpu && matches!(vcpu.state, State::Waiting))
        });
        let timer = self.next_timer(cpu);
        if throttled {
            timer.min(self.period_end)
        } else {
            timer
        }
    }

    fn may_run(&self, id: VmId) -> bool {
        self.vm(id)
            .is_some_and(|vm| !vm.stopping && !vm.paused && !vm.is_throttled())
    }

    /// Whether `target` waits for `cpu` and can run there at once.
    fn is_eligible(&self, target: VcpuRef, cpu: usize) -> bool {
        self.may_run(target.vm)
            && self.vcpu(target).is_some_and(|vcpu| {
                vcpu.home == cpu
                    && matches!(vcpu.state, State::Waiting)
                    && vcpu.loaded_on.is_none_or(|loaded_on| loaded_on == cpu)
            })
    }

    fn all(&self) -> impl Iterator<Item = (VcpuRef, &VcpuState)> {
        self.vms.iter().enumerate().flat_map(|(vm, state)| {
            let vcpus = state.as_ref().map_or(&[][..], |state| &state.vcpus);
            (0..).zip(vcpus).map(move |(index, vcpu)| {
                let vm = VmId(vm);
                (VcpuRef { vm, index }, vcpu)
            })
        })
    }

    /// The order of VCPUs on `cpu`: the least first.
    fn key(&self, target: VcpuRef, cpu: usize) -> (u128, u128) {
        let vm = self.vm(target.vm);
        (
            vm.map_or(0, |vm| vm.time[cpu]),
            self.vcpu(target).map_or(0, |vcpu| vcpu.time),
        )
    }

    /// Who is to run next on `cpu`.
    fn best(&self, cpu: usize) -> Option<VcpuRef> {
        self.all()
            .map(|(target, _)| target)
            .filter(|&target| self.is_eligible(target, cpu))
            .min_by_key(|&target| self.key(target, cpu))
    }

    /// VCPUs that run on `cpu` or could.
    fn load(&self, cpu: usize) -> usize {
        self.all()
            .filter(|(target, vcpu)| {
                vcpu.home == cpu
                    && !matches!(vcpu.state, State::Blocked { .. })
                    && self.may_run(target.vm)
            })
            .count()
    }

    /// Takes a waiting VCPU from the fullest queue, if that is longer by two than that of
    /// `cpu`: then both have about the same.
    fn steal(&mut self, cpu: usize) {
        if self.cpus.len() == 1 {
            return;
        }
        let own = self.load(cpu);
        let fullest = (0..self.cpus.len()).max_by_key(|&other| self.load(other));
        let Some(fullest) = fullest.filter(|&other| self.load(other) >= own + 2) else {
            return;
        };
        let movable = self
            .all()
            .filter(|(target, vcpu)| {
                vcpu.pin.is_none() && vcpu.loaded_on.is_none() && self.is_eligible(*target, fullest)
            })
            .map(|(target, _)| target)
            .min_by_key(|&target| self.key(target, fullest));
        if let Some(target) = movable {
            self.move_home(target, cpu);
        }
    }

    /// The CPU with the fewest VCPUs, those of `new` included.
    fn emptiest(&self, new: &VmState) -> usize {
        let vcpus = |cpu: usize| {
            let new = new.vcpus.iter().filter(|vcpu| vcpu.home == cpu).count();
            new + self.all().filter(|(_, vcpu)| vcpu.home == cpu).count()
        };
        (0..self.cpus.len())
            .min_by_key(|&cpu| vcpus(cpu))
            .unwrap_or(0)
    }

    fn vm(&self, id: VmId) -> Option<&VmState> {
        self.vms.get(id.0)?.as_ref()
    }

    fn vcpu(&self, target: VcpuRef) -> Option<&VcpuState> {
        self.vm(target.vm)?.vcpus.get(target.index as usize)
    }

    fn vcpu_mut(&mut self, target: VcpuRef) -> Option<&mut VcpuState> {
        self.vms
            .get_mut(target.vm.0)?
            .as_mut()?
            .vcpus
            .get_mut(target.index as usize)
    }

    /// How long woken VCPUs of a VM have waited for a CPU.
    #[must_use]
    pub fn latency(&self, target: VcpuRef) -> Option<Latency> {
        Some(self.vcpu(target)?.latency)
    }

    /// The CPU time that a VCPU has had, up to the last decision.
    #[must_use]
    pub fn received(&self, target: VcpuRef) -> Option<u64> {
        Some(self.vcpu(target)?.received)
    }

    /// The CPU whose queue a VCPU belongs to, and whether it is pinned there.
    #[must_use]
    pub fn place(&self, target: VcpuRef) -> Option<(u32, bool)> {
        let vcpu = self.vcpu(target)?;
        Some((vcpu.home as u32, vcpu.pin.is_some()))
    }
}

#[cfg(test)]
mod tests;
