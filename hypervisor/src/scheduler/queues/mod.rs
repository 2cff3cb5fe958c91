//! The queues of all CPUs, each behind a lock, and what goes from one to another.
//!
//! # Locks
//! A CPU that decides what it runs next, and whoever blocks or wakes a VCPU, has the lock of one CPU: that
//! is the VCPU's home. Two are taken in ascending order of the CPUs' numbers, by those who move a VCPU:
//! a CPU without work or with less than others (from one that says that it can give), who wakes a VCPU whose home
//! is busy while another CPU is idle, and who pins one. Nobody has three. With a CPU's lock held, but
//! one at a time, the small ones are taken: a VCPU's entry, a VM's budget.
//!
//! Where a VCPU is, is known only to who has the lock of its home: it is looked up without, and
//! looked at again with the lock.
//!
//! # Nobody who is woken waits where a CPU is idle
//! CPUs say without locks that they are idle, or have something to give ([`hints`]). Who becomes idle says so and then
//! looks for somebody who gives; who wakes a VCPU on a busy CPU says that this one gives and then looks
//! for an idle one, and kicks it. One of the two sees the other.
#![forbid(unsafe_code)]

mod hints;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};

use devices::time::HostTicks;

use super::latency::Latency;
use super::policy::{Budget, CpuQueue, Decision, Periods, PinError, Settings};
use super::queue::{CpuSet, RunState, VcpuSlot, VmShares};
use super::steps;
use super::table::Table;
use crate::ids::{VcpuId, VmId};
use crate::sync::atomic::{
    AtomicBool, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
    Ordering::SeqCst,
};
use crate::sync::{Mutex, MutexGuard};
use hints::SharedSet;

/// A CPU: its queue, and what others see of it without the lock. In cache lines of its own.
#[repr(align(128))]
struct Cpu {
    queue: Mutex<CpuQueue>,
    load: AtomicU32,
    members: AtomicU32,
    /// The place in the circle of CPUs from which it looks for work next.
    cursor: AtomicU32,
}

/// The scheduler's memory. See the [module documentation](self).
pub(crate) struct Queues {
    cpus: Box<[Cpu]>,
    vms: Table<Arc<VmShares>>,
    periods: Periods,
    /// The CPUs that have nothing to run.
    idle: SharedSet,
    /// The CPUs that others may take something from.
    givers: SharedSet,
}

/// A CPU's queue, locked. Tells others of it when it is unlocked.
struct Locked<'a> {
    queue: MutexGuard<'a, CpuQueue>,
    queues: &'a Queues,
}

impl Deref for Locked<'_> {
    type Target = CpuQueue;

    fn deref(&self) -> &CpuQueue {
        &self.queue
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut CpuQueue {
        &mut self.queue
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let number = self.queue.cpu;
        let cpu = &self.queues.cpus[number];
        // Seen by who sees below that this one gives.
        cpu.load.store(self.queue.load, Release);
        cpu.members.store(self.queue.members, Relaxed);
        self.queues.idle.set(number, self.queue.load == 0);
        self.queues.givers.set(number, self.queue.is_giver());
    }
}

impl Queues {
    /// Makes the queues of `cpus` CPUs, at least one, from `now` on.
    #[must_use]
    pub(crate) fn new(settings: Settings, cpus: u32, now: HostTicks) -> Self {
        debug_assert!(cpus > 0, "this code runs on one");
        let periods = Periods {
            start: now,
            length: settings.period,
        };
        let cpu = |number| Cpu {
            queue: Mutex::new(CpuQueue::new(settings, periods, number as usize, now)),
            load: AtomicU32::new(0),
            members: AtomicU32::new(0),
            cursor: AtomicU32::new(number),
        };
        Self {
            cpus: (0..cpus).map(cpu).collect(),
            vms: Table::default(),
            periods,
            idle: SharedSet::new(u64::MAX >> (u64::BITS - cpus.clamp(1, u64::BITS))),
            givers: SharedSet::new(0),
        }
    }

    /// Returns how many CPUs there are.
    #[must_use]
    pub(crate) fn cpu_count(&self) -> u32 {
        self.cpus.len() as u32
    }

    fn lock(&self, cpu: usize) -> Locked<'_> {
        steps::count();
        Locked {
            queue: self.cpus[cpu].queue.lock(),
            queues: self,
        }
    }

    /// Locks the queues of two CPUs that are not the same, in ascending order.
    fn lock_two(&self, one: usize, other: usize) -> (Locked<'_>, Locked<'_>) {
        debug_assert!(one != other, "CPU {one} would wait for itself");
        if one < other {
            let first = self.lock(one);
            let second = self.lock(other);
            (first, second)
        } else {
            let first = self.lock(other);
            let second = self.lock(one);
            (second, first)
        }
    }

    /// Looks at the VCPU that runs on `cpu`, which goes on running there meanwhile. Nothing is to be
    /// locked that is held by others while they lock a CPU's queue.
    pub(crate) fn look_at_running<R>(&self, cpu: u32, look: impl FnOnce(VcpuId) -> R) -> Option<R> {
        let queue = self.cpus.get(cpu as usize)?.queue.lock();
        queue.running.map(look)
    }

    /// Adds a VM, whose VCPUs are all blocked. `pins` says for each VCPU the CPU that it is
    /// pinned to, if any.
    ///
    /// # Errors
    /// If a pin names a CPU that does not exist; then nothing is added.
    pub(crate) fn add_vm(
        &self,
        id: VmId,
        weight: u32,
        cap: Option<u32>,
        pins: &[Option<u32>],
    ) -> Result<(), PinError> {
        for &cpu in pins.iter().flatten() {
            self.check_cpu(cpu)?;
        }
        debug_assert!(weight > 0, "configurations have no such weight");
        let mut members: Box<[u32]> = self
            .cpus
            .iter()
            .map(|cpu| cpu.members.load(Relaxed))
            .collect();
        let vcpu = |&pin: &Option<u32>| {
            let emptiest = || (0..members.len()).min_by_key(|&cpu| members[cpu]);
            let home = pin.map_or_else(|| emptiest().unwrap_or(0), |cpu| cpu as usize);
            members[home] += 1;
            VcpuSlot::new(home, pin)
        };
        let shares = Arc::new(VmShares {
            id,
            weight,
            budget: cap.map(|percent| Mutex::new(Budget::new(self.periods, percent))),
            running: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            vcpus: pins.iter().map(vcpu).collect(),
        });
        for cpu in 0..self.cpus.len() {
            self.lock(cpu).add_vm(&shares);
        }
        let old = self.vms.replace(id, Some(shares));
        debug_assert!(old.is_none(), "{id:?} is there already");
        Ok(())
    }

    /// Forgets a VM, which must be [quiescent](Queues::is_quiescent) and stopped.
    pub(crate) fn remove_vm(&self, id: VmId) {
        debug_assert!(self.is_quiescent(id), "a CPU still has a VCPU of it");
        let Some(shares) = self.vms.replace(id, None) else {
            return;
        };
        shares.stopping.store(true, SeqCst);
        for cpu in 0..self.cpus.len() {
            let removed = self.lock(cpu).remove_vm(&shares);
            // Outside the lock.
            drop(removed);
        }
    }

    /// Stops a VM: from now on no VCPU of it runs, and all are taken out of their processors.
    /// Returns the CPUs to be kicked for that.
    pub(crate) fn stop_vm(&self, id: VmId) -> CpuSet {
        let Some(shares) = self.vms.get(id) else {
            return CpuSet::default();
        };
        shares.stopping.store(true, SeqCst);
        self.on_all(&shares, |queue| queue.set_off(id))
    }

    /// Pauses or resumes a VM. Returns the CPUs to be kicked for that.
    pub(crate) fn set_paused(&self, id: VmId, paused: bool) -> CpuSet {
        let Some(shares) = self.vms.get(id) else {
            return CpuSet::default();
        };
        shares.paused.store(paused, SeqCst);
        shares.forget_wakes();
        self.on_all(&shares, |queue| {
            queue.forfeit(id);
            queue.set_off(id);
        })
    }

    /// Does something to a VM on all CPUs, one after the other. Returns those that are the home of
    /// any of its VCPUs.
    fn on_all(&self, shares: &Arc<VmShares>, mut change: impl FnMut(&mut CpuQueue)) -> CpuSet {
        let mut homes = CpuSet::default();
        for cpu in 0..self.cpus.len() {
            let mut queue = self.lock(cpu);
            if queue.has(shares) {
                change(&mut queue);
                if queue.has_members(shares.id) {
                    homes.insert(cpu);
                }
            }
        }
        homes
    }

    /// Returns whether no VCPU of the VM runs or is in a processor.
    #[must_use]
    pub(crate) fn is_quiescent(&self, id: VmId) -> bool {
        self.vms.get(id).is_none_or(|shares| {
            let is_held = |vcpu: &VcpuSlot| vcpu.entry.lock().is_held();
            !shares.vcpus.iter().any(is_held)
        })
    }

    /// Tells that a blocked VCPU has something to do. Returns the CPUs to be kicked. Nothing
    /// happens if the VCPU is not blocked.
    pub(crate) fn wake(&self, target: VcpuId, now: HostTicks) -> CpuSet {
        let mut kicks = CpuSet::default();
        let Some(shares) = self.vms.get(target.vm) else {
            return kicks;
        };
        let Some(mut queue) = self.lock_sleeper(&shares, target) else {
            return kicks;
        };
        let home = queue.cpu;
        queue.make_runnable(target, now);
        if queue.is_eligible(target, now) {
            if queue.running.is_none() || queue.preempt {
                kicks.insert(home);
            }
        } else if queue.running.is_none()
            || queue.with_entry(target, |entry| entry.loaded) == Some(true)
        {
            // An idle CPU is to know when a period ends, and one that has the VCPU's state is to let
            // go of it before it can go on.
            kicks.insert(home);
        }
        let gives = queue.is_giver();
        drop(queue);
        if gives && let Some(idle) = self.idle.first_but(home) {
            // It has become so just now.
            kicks.insert(idle);
        }
        kicks
    }

    /// Moves a blocked VCPU to where it is to wake: home, unless that is busy and another CPU is not.
    /// One whose state is still in a processor stays there. Returns that CPU's queue; `None` if the
    /// VCPU is not blocked.
    fn lock_sleeper(&self, shares: &Arc<VmShares>, target: VcpuId) -> Option<Locked<'_>> {
        let vcpu = shares.vcpus.get(target.index as usize)?;
        let is_asleep = |queue: &CpuQueue| {
            let is_blocked = |state| matches!(state, RunState::Blocked { .. });
            queue.has(shares) && is_blocked(vcpu.entry.lock().state)
        };
        loop {
            let home = vcpu.home();
            let queue = self.lock(home);
            if vcpu.home() != home {
                continue;
            }
            if !is_asleep(&queue) {
                return None;
            }
            if queue.load == 0 || !queue.can_leave(target) {
                return Some(queue);
            }
            let Some(idle) = self.idle.first_but(home) else {
                return Some(queue);
            };
            drop(queue);
            let (mut queue, mut other) = self.lock_two(home, idle);
            if vcpu.home() != home {
                continue;
            }
            if !is_asleep(&queue) {
                return None;
            }
            if other.load != 0 || !other.has(shares) || !queue.can_leave(target) {
                return Some(queue);
            }
            queue.give(target, &mut other);
            drop(queue);
            return Some(other);
        }
    }

    /// Waives `ticks` of what the VCPU that runs on `cpu` is charged for.
    pub(crate) fn waive(&self, cpu: u32, ticks: u64) {
        self.lock(cpu as usize).waive(ticks);
    }

    /// Tells that the VCPU that runs on `cpu` has nothing to do before `wake_at`.
    pub(crate) fn block(&self, cpu: u32, wake_at: HostTicks, now: HostTicks) {
        self.lock(cpu as usize).block(wake_at, now);
    }

    /// Tells that the state of a VCPU has been taken out of `cpu`. Returns the CPUs to be
    /// kicked, as it may be wanted elsewhere.
    pub(crate) fn released(&self, cpu: u32, target: VcpuId) -> CpuSet {
        let mut kicks = CpuSet::default();
        let from = cpu as usize;
        let shares = self.vms.get(target.vm);
        let mut queue = self.lock(from);
        if queue.loaded == Some(target) {
            queue.loaded = None;
        }
        let Some(shares) = shares.filter(|shares| queue.has(shares)) else {
            return kicks;
        };
        let vcpu = shares.vcpus.get(target.index as usize);
        let Some(vcpu) = vcpu.filter(|vcpu| vcpu.home() == from) else {
            return kicks;
        };
        let pinned_to = queue.unload(target);
        let gives = queue.is_giver();
        drop(queue);
        if let Some(pin) = pinned_to {
            let to = pin as usize;
            let (mut queue, mut other) = self.lock_two(from, to);
            let goes = |queue: &CpuQueue| {
                let entry = vcpu.entry.lock();
                queue.has(&shares) && !entry.is_held() && entry.pin == Some(pin)
            };
            if vcpu.home() == from && other.has(&shares) && goes(&queue) {
                queue.give(target, &mut other);
                kicks.insert(to);
            }
        } else if gives && let Some(idle) = self.idle.first_but(from) {
            kicks.insert(idle);
        }
        kicks
    }

    /// Decides what `cpu` does from `now` on. If it is nothing, it gets a VCPU that sleeps `lead` ticks
    /// before its timer is due, so that it need not wait for the CPU to wake up and decide.
    pub(crate) fn next(&self, cpu: u32, now: HostTicks, lead: u64) -> Decision {
        let cpu = cpu as usize;
        let mut looks = 0;
        loop {
            let mut queue = self.lock(cpu);
            if let Some(decision) = queue.begin(now) {
                return decision;
            }
            // Others see that it is idle before it looks who gives.
            if let Some(fullest) = self.fullest(cpu, queue.load) {
                drop(queue);
                queue = self.take(cpu, fullest, now);
                // Things may have changed while the queue was not locked.
                if let Some(decision) = queue.begin(now) {
                    return decision;
                }
            }
            let decision = queue.choose(now, lead);
            drop(queue);
            looks += 1;
            // It has said that it is idle; who has come to give before may not have seen it.
            if !matches!(decision, Decision::Idle { .. })
                || looks == 2
                || self.fullest(cpu, 0).is_none()
            {
                return decision;
            }
        }
    }

    /// Returns the CPU with the fullest queue, if that is longer by two than that of `cpu`, of as many as
    /// a logarithm of all; the next time, of the next ones.
    fn fullest(&self, cpu: usize, load: u32) -> Option<usize> {
        let some = self.cpus.len().ilog2() as usize + 1;
        let cursor = &self.cpus[cpu].cursor;
        let mut fullest = None;
        for other in self.givers.others(cpu, cursor.load(Relaxed)).take(some) {
            steps::count();
            let other_load = self.cpus[other].load.load(Acquire);
            if other_load >= load + 2 && fullest.is_none_or(|(least, _)| other_load > least) {
                fullest = Some((other_load, other));
            }
            cursor.store(other as u32 + 1, Relaxed);
        }
        fullest.map(|(_, other)| other)
    }

    /// Takes a waiting VCPU from `other`, if the queue there is longer by two than that of `cpu`: then both
    /// have about the same. Returns the queue of `cpu`.
    fn take(&self, cpu: usize, other: usize, now: HostTicks) -> Locked<'_> {
        let (mut queue, mut other) = self.lock_two(cpu, other);
        if let Some(target) = other.first_to_give(now)
            && other.load >= queue.load + 2
            && queue.has_vm(target.vm)
        {
            other.give(target, &mut queue);
        }
        queue
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

    /// Pins a VCPU to a CPU, or with `None` lets it go anywhere. One whose state is in another CPU's
    /// processor goes when it has been taken out there. Returns the CPUs to be kicked.
    ///
    /// # Errors
    /// If there is no such VCPU or CPU; then nothing changes.
    pub(crate) fn pin(&self, target: VcpuId, cpu: Option<u32>) -> Result<CpuSet, PinError> {
        if let Some(cpu) = cpu {
            self.check_cpu(cpu)?;
        }
        let shares = self.vms.get(target.vm).ok_or(PinError::NoVcpu)?;
        let vcpu = shares.vcpus.get(target.index as usize);
        let vcpu = vcpu.ok_or(PinError::NoVcpu)?;
        loop {
            let mut kicks = CpuSet::default();
            let home = vcpu.home();
            let to = cpu.map_or(home, |cpu| cpu as usize);
            let (mut queue, other) = if to == home {
                (self.lock(home), None)
            } else {
                let (queue, other) = self.lock_two(home, to);
                (queue, Some(other))
            };
            if vcpu.home() != home {
                continue;
            }
            if !queue.has(&shares) {
                return Err(PinError::NoVcpu);
            }
            queue.set_pin(target, cpu);
            if let Some(mut other) = other {
                kicks.insert(home);
                kicks.insert(to);
                let is_held = vcpu.entry.lock().is_held();
                if !is_held && other.has(&shares) {
                    queue.give(target, &mut other);
                }
            }
            return Ok(kicks);
        }
    }

    fn with_vcpu<R>(&self, target: VcpuId, look: impl FnOnce(&VcpuSlot) -> R) -> Option<R> {
        let shares = self.vms.get(target.vm)?;
        shares.vcpus.get(target.index as usize).map(look)
    }

    /// Returns the CPU that a VCPU is pinned to, or whose queue it belongs to, and which of the two.
    #[must_use]
    pub(crate) fn place(&self, target: VcpuId) -> Option<(u32, bool)> {
        self.with_vcpu(target, |vcpu| {
            let pin = vcpu.entry.lock().pin;
            (pin.unwrap_or(vcpu.home() as u32), pin.is_some())
        })
    }

    /// Returns how long a VCPU has waited for a CPU when it was woken.
    #[must_use]
    pub(crate) fn latency(&self, target: VcpuId) -> Option<Latency> {
        self.with_vcpu(target, |vcpu| vcpu.entry.lock().latency)
    }

    /// Returns the CPU time that a VCPU has had, up to the last decision.
    #[must_use]
    pub(crate) fn received(&self, target: VcpuId) -> Option<u64> {
        self.with_vcpu(target, |vcpu| vcpu.entry.lock().received)
    }

    /// Returns the VCPU that runs on `cpu`.
    #[cfg(test)]
    fn running_on(&self, cpu: u32) -> Option<VcpuId> {
        self.look_at_running(cpu, |running| running)
    }

    /// Checks, with all queues locked, that each VCPU is in the queue of its home as its state says, and in
    /// no other.
    ///
    /// # Panics
    /// If one is not.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let queues: Box<[_]> = (0..self.cpus.len()).map(|cpu| self.lock(cpu)).collect();
        for shares in (0..).map_while(|id| self.vms.get(VmId(id))) {
            for queue in &queues {
                queue.assert_consistent(&shares);
            }
        }
    }

    /// Returns the VCPU whose state is in `cpu`.
    #[cfg(test)]
    fn loaded_on(&self, cpu: u32) -> Option<VcpuId> {
        self.lock(cpu as usize).loaded
    }
}

#[cfg(test)]
mod tests;
