//! Which VCPU a CPU runs, and for how long: pure decisions on numbers, without hardware.
//!
//! Each physical CPU has its own [`CpuQueue`]. A VCPU waits in the queue of its *home*: the CPU that
//! it is pinned to, or else one chosen when it wakes. A CPU without work takes some from
//! another queue, and so does one whose queue is shorter by two ([`queues`](super::queues)).
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
//! budget is taken off the next. A CPU finds out when it would run one of them, and puts the VM aside.
//!
//! **Cost.** The VMs that wait here are in a heap by their virtual times, and the VCPUs of each
//! likewise; so are those that wait for their timers. A decision takes a number of steps that
//! is logarithmic in the VMs that have VCPUs here and in the VCPUs of each. Besides, a VM is put aside
//! and comes back at most once in a period, and a timer that has been set is due once.
#![forbid(unsafe_code)]

mod caps;
mod fairness;
mod placement;
mod terms;
mod timers;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;

use devices::time::HostTicks;

use super::heap::IndexedHeap;
use super::queue::{RunState, VcpuEntry, VmShares};
use crate::ids::{VcpuId, VmId};

pub(super) use caps::{Budget, Periods};
pub(crate) use terms::{Decision, PinError, Settings};

/// A VM on one CPU.
#[derive(Debug)]
pub(super) struct VmQueue {
    shares: Arc<VmShares>,
    /// Virtual time on this CPU.
    time: u128,
    /// The virtual time within the VM up to which its VCPUs have been served here; never goes back.
    floor: u128,
    /// Whether the operator keeps it from running.
    off: bool,
    /// Whether it waits for the next period.
    throttled: bool,
    /// The number of its VCPUs whose home this is.
    members: u32,
    /// The number of those that are not blocked.
    busy: u32,
    /// The VCPUs that wait and cannot go elsewhere, by virtual time.
    fixed: IndexedHeap<u128>,
    /// The VCPUs that wait here or elsewhere, by virtual time.
    free: IndexedHeap<u128>,
    /// The blocked VCPUs that have timers.
    timers: IndexedHeap<HostTicks>,
}

impl VmQueue {
    const fn runs(&self) -> bool {
        !self.off && !self.throttled
    }

    /// Returns how many of its VCPUs run here or could.
    const fn load(&self) -> u32 {
        if self.runs() { self.busy } else { 0 }
    }
}

/// The VCPUs that one CPU has to run, and the one that it runs.
#[derive(Debug)]
pub(crate) struct CpuQueue {
    settings: Settings,
    periods: Periods,
    /// The number of this CPU.
    pub(super) cpu: usize,
    pub(super) running: Option<VcpuId>,
    /// The VCPU whose state is in the processor.
    pub(super) loaded: Option<VcpuId>,
    /// The time at which the running VCPU began its slice.
    slice_start: HostTicks,
    /// The time up to which the running VCPU's CPU time is accounted.
    accounted: HostTicks,
    /// The CPU time for which the running VCPU is not to be charged, in ticks.
    waived: u64,
    /// Whether a VCPU has woken that is to replace the running one.
    pub(super) preempt: bool,
    /// The time before which the running VCPU has nothing to do.
    not_before: HostTicks,
    /// The virtual time up to which VMs have been served; never goes back.
    floor: u128,
    /// The VMs, by [`VmId`].
    vms: Vec<Option<Box<VmQueue>>>,
    /// The VMs with VCPUs that wait and may run, by virtual time.
    waiting: IndexedHeap<u128>,
    /// Those of them with VCPUs that may go elsewhere.
    givers: IndexedHeap<u128>,
    /// The VMs with timers, by the first.
    timers: IndexedHeap<HostTicks>,
    /// The VMs that wait for the next period.
    throttled: Vec<VmId>,
    /// The time at which that begins.
    throttled_until: HostTicks,
    /// The number of VCPUs that run here or could.
    pub(super) load: u32,
    /// The number of VCPUs whose home this is.
    pub(super) members: u32,
}

impl CpuQueue {
    /// Makes the queue of `cpu`, from `now` on.
    #[must_use]
    pub(super) fn new(settings: Settings, periods: Periods, cpu: usize, now: HostTicks) -> Self {
        Self {
            settings,
            periods,
            cpu,
            running: None,
            loaded: None,
            slice_start: now,
            accounted: now,
            waived: 0,
            preempt: false,
            not_before: HostTicks::ZERO,
            floor: 0,
            vms: Vec::new(),
            waiting: IndexedHeap::new(0),
            givers: IndexedHeap::new(0),
            timers: IndexedHeap::new(0),
            throttled: Vec::new(),
            throttled_until: HostTicks::ZERO,
            load: 0,
            members: 0,
        }
    }

    /// Adds a VM, with all room that it will ever need here. Its VCPUs are blocked.
    pub(super) fn add_vm(&mut self, shares: &Arc<VmShares>) {
        let id = shares.id;
        if self.vms.len() <= id.0 {
            let bound = id.0 + 1;
            self.vms.resize_with(bound, || None);
            self.waiting.grow(bound);
            self.givers.grow(bound);
            self.timers.grow(bound);
            self.throttled.reserve(bound - self.throttled.len());
        }
        let here = shares.vcpus.iter().filter(|vcpu| vcpu.home() == self.cpu);
        let members = here.count() as u32;
        self.members += members;
        let count = shares.vcpus.len();
        debug_assert!(self.vms[id.0].is_none(), "{id:?} is here already");
        self.vms[id.0] = Some(Box::new(VmQueue {
            shares: shares.clone(),
            time: 0,
            floor: 0,
            off: shares.is_off(),
            throttled: false,
            members,
            busy: 0,
            fixed: IndexedHeap::new(count),
            free: IndexedHeap::new(count),
            timers: IndexedHeap::new(count),
        }));
    }

    /// Takes a VM out that is [off](VmShares::is_off). Returns what there was of it.
    pub(super) fn remove_vm(&mut self, shares: &Arc<VmShares>) -> Option<Box<VmQueue>> {
        if !self.has(shares) {
            return None;
        }
        let id = shares.id;
        self.set_off(id);
        self.timers.remove(id.0);
        self.throttled.retain(|other| *other != id);
        let vm = self.vms[id.0].take();
        self.members -= vm.as_ref().map_or(0, |vm| vm.members);
        vm
    }

    /// Takes over whether the operator keeps a VM from running.
    pub(super) fn set_off(&mut self, id: VmId) {
        self.change_vm(id, |vm| vm.off = vm.shares.is_off());
    }

    /// Returns whether this VM is here: not one that had its number before, or has it now.
    pub(super) fn has(&self, shares: &Arc<VmShares>) -> bool {
        self.vm(shares.id)
            .is_some_and(|vm| Arc::ptr_eq(&vm.shares, shares))
    }

    /// Returns whether a VM with this number is here.
    pub(super) fn has_vm(&self, id: VmId) -> bool {
        self.vm(id).is_some()
    }

    /// Returns whether VCPUs of a VM have their home here.
    pub(super) fn has_members(&self, id: VmId) -> bool {
        self.vm(id).is_some_and(|vm| vm.members != 0)
    }

    /// Puts a blocked VCPU into the queue, as of `woken_at`.
    pub(super) fn make_runnable(&mut self, target: VcpuId, woken_at: HostTicks) {
        self.catch_up(target);
        self.with_entry(target, |entry| {
            debug_assert!(matches!(entry.state, RunState::Blocked { .. }), "it sleeps");
            entry.state = RunState::Waiting;
            entry.woken_at = Some(woken_at);
        });
        self.change_vm(target.vm, |vm| {
            vm.busy += 1;
            vm.timers.remove(target.index as usize);
        });
        self.requeue(target);
        self.account(woken_at);
        if let Some(running) = self.running
            && self.is_eligible(target, woken_at)
            && (self.key(target) < self.key(running) || woken_at < self.not_before)
        {
            self.preempt = true;
        }
    }

    /// Tells that the running VCPU has nothing to do before `wake_at`.
    pub(super) fn block(&mut self, wake_at: HostTicks, now: HostTicks) {
        self.account(now);
        let Some(running) = self.stop_running(RunState::Blocked { wake_at }) else {
            debug_assert!(false, "CPU {} runs no VCPU", self.cpu);
            return;
        };
        self.change_vm(running.vm, |vm| {
            vm.busy -= 1;
            if wake_at.0 != u64::MAX {
                vm.timers.set(running.index as usize, wake_at);
            }
        });
    }

    /// Begins a decision: lets VCPUs wake whose time has come. Returns the decision if there is
    /// nothing to choose. Otherwise nothing runs any more.
    pub(super) fn begin(&mut self, now: HostTicks) -> Option<Decision> {
        self.account(now);
        self.renew_budgets(now);
        self.wake_due(now);
        if let Some(held) = self.loaded.or(self.running)
            && self.must_release(held)
        {
            self.put_back();
            return Some(Decision::Release(held));
        }
        if let Some(running) = self.running {
            let ran = now.since(self.slice_start);
            let replaced = self.preempt && ran >= self.settings.granularity;
            if ran < self.settings.slice && !replaced && self.may_run(running.vm, now) {
                if self.loaded != Some(running) {
                    // It was taken out for a moment, as the CPU had something else to do.
                    self.loaded = Some(running);
                    self.with_entry(running, |entry| entry.loaded = true);
                }
                return Some(self.run(running, now, HostTicks::ZERO));
            }
            self.put_back();
        }
        None
    }

    /// Chooses what to do, after [`CpuQueue::begin`]. If it is nothing, a VCPU is taken that sleeps
    /// `lead` ticks before its timer is due, so that it need not wait for the CPU to wake up and decide.
    pub(super) fn choose(&mut self, now: HostTicks, lead: u64) -> Decision {
        let mut best = self.best(now);
        let mut not_before = HostTicks::ZERO;
        if best.is_none()
            && let Some(due) = self.wake_first(now, lead)
        {
            not_before = due;
            best = self.best(now);
        }
        match best {
            Some(vcpu) => {
                self.start(vcpu, now);
                self.not_before = not_before;
                self.run(vcpu, now, not_before)
            }
            None => Decision::Idle {
                until: self.next_event(lead),
            },
        }
    }

    /// Returns the decision to let `vcpu` go on, which has nothing to do before `not_before`.
    fn run(&mut self, vcpu: VcpuId, now: HostTicks, not_before: HostTicks) -> Decision {
        let length = if self.preempt {
            self.settings.granularity
        } else {
            self.settings.slice
        };
        let mut until = self
            .slice_start
            .saturating_add(length)
            .min(self.next_timer());
        if let Some(left) = self.budget_left(vcpu.vm) {
            until = until.min(now.saturating_add(left));
        }
        Decision::Run {
            vcpu,
            until,
            contended: self.is_contended(vcpu.vm, now),
            not_before,
        }
    }

    fn start(&mut self, target: VcpuId, now: HostTicks) {
        let Some(time) = self.with_entry(target, |entry| {
            entry.state = RunState::Running;
            entry.loaded = true;
            if let Some(woken_at) = entry.woken_at.take() {
                entry.latency.record(now.since(woken_at));
            }
            entry.time
        }) else {
            debug_assert!(false, "no VCPU is {target:?}");
            return;
        };
        self.running = Some(target);
        self.loaded = Some(target);
        self.slice_start = now;
        self.accounted = now;
        self.waived = 0;
        self.preempt = false;
        self.requeue(target);
        if let Some(vm) = self.vm_mut(target.vm) {
            vm.floor = vm.floor.max(time);
            vm.shares.running.fetch_add(1, SeqCst);
            let time = vm.time;
            self.floor = self.floor.max(time);
        }
    }

    /// Puts the running VCPU back into the queue.
    fn put_back(&mut self) {
        if let Some(running) = self.stop_running(RunState::Waiting) {
            self.requeue(running);
        }
    }

    /// Lets the running VCPU be in `state`. Returns it.
    fn stop_running(&mut self, state: RunState) -> Option<VcpuId> {
        let running = self.running.take()?;
        self.with_entry(running, |entry| {
            debug_assert!(
                matches!(entry.state, RunState::Running),
                "{running:?} does not know that it runs"
            );
            entry.state = state;
        });
        if let Some(vm) = self.vm(running.vm) {
            vm.shares.running.fetch_sub(1, SeqCst);
        }
        Some(running)
    }

    /// Returns whether a VCPU that runs here, or whose state is in the processor, has to leave it.
    fn must_release(&self, held: VcpuId) -> bool {
        let pinned_elsewhere =
            |entry: &mut VcpuEntry| entry.pin.is_some_and(|pin| pin as usize != self.cpu);
        self.vm(held.vm)
            .is_none_or(|vm| vm.shares.stopping.load(SeqCst))
            || self.with_entry(held, pinned_elsewhere).unwrap_or(true)
    }

    fn vm(&self, id: VmId) -> Option<&VmQueue> {
        self.vms.get(id.0)?.as_deref()
    }

    fn vm_mut(&mut self, id: VmId) -> Option<&mut VmQueue> {
        self.vms.get_mut(id.0)?.as_deref_mut()
    }

    /// Changes a VM, and where it is in the queue.
    fn change_vm(&mut self, id: VmId, change: impl FnOnce(&mut VmQueue)) {
        let Some(vm) = self.vms.get_mut(id.0).and_then(Option::as_deref_mut) else {
            debug_assert!(false, "{id:?} is not on CPU {}", self.cpu);
            return;
        };
        let load = vm.load();
        change(vm);
        self.load = self.load - load + vm.load();
        let gives = vm.runs() && !vm.free.is_empty();
        let waits = gives || vm.runs() && !vm.fixed.is_empty();
        let due = vm.timers.first().map(|(due, _)| due);
        place(&mut self.waiting, id, waits.then_some(vm.time));
        place(&mut self.givers, id, gives.then_some(vm.time));
        place(&mut self.timers, id, due);
    }

    /// Checks that the VCPUs of a VM whose home this is are here as their states say, and no others.
    ///
    /// # Panics
    /// If that is not so.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self, shares: &VmShares) {
        let Some(vm) = self.vm(shares.id) else { return };
        let (mut members, mut busy) = (0, 0);
        for (index, vcpu) in shares.vcpus.iter().enumerate() {
            let entry = vcpu.entry.lock().clone();
            let is_home = vcpu.home() == self.cpu;
            let is_in_reach = entry.pin.is_none_or(|pin| pin as usize == self.cpu);
            let (runs, waits, has_timer) = match entry.state {
                _ if !is_home => (false, false, false),
                RunState::Running => (true, false, false),
                RunState::Waiting => (false, is_in_reach, false),
                RunState::Blocked { wake_at } => (false, false, wake_at.0 != u64::MAX),
            };
            let target = VcpuId {
                vm: shares.id,
                index: index as u32,
            };
            let place = (
                self.running == Some(target),
                u32::from(vm.fixed.contains(index)) + u32::from(vm.free.contains(index)),
                vm.timers.contains(index),
            );
            let cpu = self.cpu;
            let should_be = (runs, u32::from(waits), has_timer);
            assert_eq!(place, should_be, "{target:?} on CPU {cpu}: {entry:?}");
            if is_home {
                members += 1;
                busy += u32::from(!matches!(entry.state, RunState::Blocked { .. }));
            } else {
                assert_ne!(self.loaded, Some(target), "it is not at home in CPU {cpu}");
            }
        }
        assert_eq!((vm.members, vm.busy), (members, busy), "{:?}", shares.id);
    }

    /// Looks at a VCPU, or changes it, if its VM is here.
    pub(super) fn with_entry<R>(
        &self,
        target: VcpuId,
        change: impl FnOnce(&mut VcpuEntry) -> R,
    ) -> Option<R> {
        let vcpu = self.vm(target.vm)?.shares.vcpus.get(target.index as usize);
        debug_assert!(
            vcpu.is_some_and(|vcpu| vcpu.home() == self.cpu),
            "{target:?} is not on CPU {}",
            self.cpu
        );
        Some(change(&mut vcpu?.entry.lock()))
    }
}

/// Puts a VM where it belongs, or out of a queue.
fn place<K: Copy + Ord>(queue: &mut IndexedHeap<K>, id: VmId, key: Option<K>) {
    match key {
        Some(key) => queue.set(id.0, key),
        None => queue.remove(id.0),
    }
}
