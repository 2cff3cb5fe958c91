//! A VM and its [`Suppression`]: carrying out what it decides for
//! the VM's clock, and telling VCPUs when to report.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use devices::clock::Rates;
use devices::time::{HostTicks, TimerTicks};

use super::Vm;
use super::requests::{Requests, VcpuRequests};
use crate::ids::MAX_VCPUS;
use crate::machine::host_time::host_now;
use crate::suppression::Suppression;
use crate::suppression::address_space::RootFormat;
use crate::suppression::notice::Notice;
use crate::suppression::target::{Target, Targets};
use crate::sync;
use crate::trace::Event;

/// The times at which the VM's VCPUs are to report.
#[derive(Debug)]
pub(crate) struct Look {
    /// The host time that [`Look::at`] returns.
    at: AtomicU64,
    /// The host time until which another VM is taken to want a CPU that this one has.
    contended_until: AtomicU64,
    /// The guest time at which the first timer of each VCPU that sleeps is due; `u64::MAX` for
    /// never.
    sleepers: [AtomicU64; MAX_VCPUS],
}

impl Default for Look {
    fn default() -> Self {
        Self {
            at: AtomicU64::new(u64::MAX),
            contended_until: AtomicU64::new(0),
            sleepers: [const { AtomicU64::new(u64::MAX) }; MAX_VCPUS],
        }
    }
}

impl Look {
    /// Returns the host time at which any VCPU that runs is to report: the clock is to change then.
    #[inline]
    #[must_use]
    pub(crate) fn at(&self) -> HostTicks {
        HostTicks(self.at.load(Ordering::Relaxed))
    }

    /// Sets what [`Look::at`] returns.
    pub(crate) fn set(&self, at: HostTicks) {
        self.at.store(at.0, Ordering::Relaxed);
    }

    /// Takes note that VCPU `index` sleeps until guest time `due`; `None` if it is awake.
    ///
    /// When that is in host time depends on the course of the clock, which those that are awake may
    /// change. So they keep time for the others.
    pub(crate) fn set_sleeper(&self, index: u32, due: Option<TimerTicks>) {
        if let Some(sleeper) = self.sleepers.get(index as usize) {
            let due = due.map_or(u64::MAX, |due| due.0);
            sleeper.store(due, Ordering::Relaxed);
        }
    }

    /// Returns the VCPUs that sleep, and the guest time until which they do.
    pub(crate) fn sleepers(&self) -> impl Iterator<Item = (u32, TimerTicks)> + '_ {
        let due = |sleeper: &AtomicU64| TimerTicks(sleeper.load(Ordering::Relaxed));
        (0..)
            .zip(self.sleepers.iter().map(due))
            .filter(|(_, due)| due.0 != u64::MAX)
    }

    /// Takes note that another VM wants a CPU that this one has, which counts until `until`.
    pub(crate) fn note_contention(&self, until: HostTicks) {
        self.contended_until.store(until.0, Ordering::Relaxed);
    }

    /// Returns whether another VM wants a CPU that this one has, or did a moment ago.
    #[must_use]
    pub(crate) fn is_contended(&self, now: HostTicks) -> bool {
        now.0 < self.contended_until.load(Ordering::Relaxed)
    }
}

impl Vm {
    /// Lets the VM's time go on by the course that its suppression has decided on last, for all
    /// VCPUs at one moment: see [`super::clock_gate`]. `own` is the VCPU that runs this code, which is
    /// out of the guest. The caller holds no lock.
    ///
    /// That moment is the last one up to which time is accounted for, a VCPU was in the guest, or its
    /// timers were looked at. It is not now: a clock that was fast is not while the change is prepared, and
    /// nobody can tell. One that becomes fast has been so for a moment at most ([`Suppression::fast_from`]).
    ///
    /// Of two VCPUs that bring decisions at once, each carries out the later one.
    ///
    /// Returns when the clock became fast, if it has.
    pub(crate) fn follow_suppression(&self, own: u32) -> Option<HostTicks> {
        if !self.suppression.lock().clock_is_to_change() {
            // Another VCPU was quicker.
            return None;
        }
        let called_at = host_now();
        let others = self.requests.iter().zip(0..);
        let running = others.filter(|(other, index)| *index != own && other.running_on().is_some());
        let running = running.count() as u64;
        self.change_clock(Some(own), || {
            // No other decision between the clock's change and the account of it.
            let mut suppression = self.suppression.lock();
            let course = suppression.clock();
            let mut board = self.board.lock();
            if self.trace.is_on() && course.rates != board.clock.rates() {
                self.trace
                    .record(None, Event::Rates(course.rates), host_now);
            }
            // Also from a rate at which it catches up.
            let gets_fast =
                course.rates.is_fast() && course.rates.is_faster_than(board.clock.rates());
            let used_at = self.requests.iter().map(VcpuRequests::clock_used_at);
            let used_at = used_at.fold(suppression.accounted_until(), HostTicks::max);
            let changes_at = if gets_fast {
                suppression.fast_from(host_now(), used_at)
            } else {
                used_at
            };
            board.clock.set_course(changes_at, course);
            drop(board);
            let lost = host_now().since(called_at) * running;
            suppression.clock_changed(changes_at, lost);
            drop(suppression);
            settle(changes_at, course.rates);
            gets_fast.then_some(changes_at)
        })
    }

    /// Guards the roots of the VM's targets, and nothing else: their VCPUs see the first page walk
    /// through one then, without an exit before. Where that cannot be done none is, and loads of
    /// CR3 have to exit.
    pub(crate) fn guard_roots(&self) {
        let changed = self.memory_map.guard(|pages| {
            let suppression = self.suppression.lock();
            let targets = suppression.targets();
            self.guarded_targets
                .store(targets.generation(), Ordering::Release);
            // The processor reads all four entries of a PAE root when CR3 is loaded, not in a walk,
            // and several roots share a page.
            if targets.iter().any(|it| it.format() == RootFormat::Pae) {
                return Ok(());
            }
            for root in targets.iter().flat_map(Target::roots) {
                pages.try_reserve(1)?;
                pages.push(root.address().page());
            }
            Ok(())
        });
        if let Err(error) = &changed {
            log::warn!(
                "{}: targets are followed by loads of CR3: {error}",
                self.name
            );
        }
        if changed != Ok(false) {
            self.flush_memory_map();
        }
    }

    /// Returns whether roots of targets have come or gone since [`Vm::guard_roots`]; `targets` are the
    /// VM's.
    #[must_use]
    #[inline]
    pub(crate) fn roots_changed(&self, targets: &Targets) -> bool {
        targets.generation() != self.guarded_targets.load(Ordering::Acquire)
    }

    /// Returns whether loads of CR3 are to exit on all VCPUs for a while from now on, of which they are to be
    /// told.
    #[inline]
    pub(crate) fn lookout_begins(&self, suppression: &Suppression) -> bool {
        let generation = suppression.lookout_generation();
        self.lookout_generation.load(Ordering::Relaxed) != generation
            && self.lookout_generation.swap(generation, Ordering::Relaxed) != generation
    }

    /// Takes note that there is something to be told of the VM's targets, which VCPU `vcpu` has found, and
    /// tells the trace.
    #[cold]
    pub(crate) fn note_notices(&self, suppression: &mut Suppression, vcpu: Option<u32>) {
        for notice in suppression.untraced_notices() {
            if self.trace.is_on() {
                self.trace.record(vcpu, Event::Notice(notice), host_now);
            }
        }
        self.has_notices.store(true, Ordering::Release);
    }

    /// Takes what there is to be told of the VM's targets, in its order.
    #[must_use]
    pub(crate) fn take_notices(&self) -> Vec<Notice> {
        if !self.has_notices.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        self.suppression.lock().take_notices(host_now()).collect()
    }

    /// Has all VCPUs look at what is suppressed, or traced: it has changed.
    pub(crate) fn suppression_changed(&self) {
        self.guard_roots();
        self.suppression_generation.fetch_add(1, Ordering::AcqRel);
        for index in 0..self.vcpus() as u32 {
            self.request(index, Requests::SUPPRESSION);
        }
    }

    /// Waits until the VCPUs that run have looked at what has [changed](Vm::suppression_changed), for a moment
    /// at most: who has just been named may be another process soon. The caller holds no lock.
    pub(crate) fn await_suppression_change(&self) {
        await_look(&self.requests, Requests::SUPPRESSION);
    }

    /// Has the VCPUs that run take note of the roots that they have, and waits for that, for a moment at most.
    /// By themselves they do at the ticks of their timers, and a process may live for less. The caller holds no
    /// lock.
    pub(crate) fn sample_roots(&self) {
        for (index, requests) in (0..).zip(&self.requests) {
            // One that sleeps did so when it fell asleep, and is not to be woken for this.
            if requests.running_on().is_some() {
                self.request(index, Requests::ROOT);
            }
        }
        await_look(&self.requests, Requests::ROOT);
    }
}

/// Waits until those of `vcpus` that run have taken `requests`, for which they have been kicked, for a moment
/// at most.
fn await_look(vcpus: &[VcpuRequests], requests: Requests) {
    /// The longest time that this takes, in host ticks.
    const LONGEST: u64 = 100_000;
    let began = host_now();
    for vcpu in vcpus {
        while vcpu.running_on().is_some() && vcpu.has(requests) && host_now().since(began) < LONGEST
        {
            sync::spin_loop();
        }
    }
}

/// Waits until the TSC that `rates` show has advanced since the change at `changed_at`: only slow
/// rates take longer for that than the way into the guest.
fn settle(changed_at: HostTicks, rates: Rates) {
    let time = rates.settling_time();
    // A look at the TSC takes a tick or more.
    for _ in 0..time {
        if host_now().since(changed_at) >= time {
            break;
        }
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_change_is_waited_for_where_a_vcpu_runs_that_has_not_looked() {
        let vcpus: [VcpuRequests; 3] = Default::default();
        for vcpu in &vcpus {
            vcpu.make(Requests::SUPPRESSION);
        }
        // The first sleeps, the second has looked, and has something else to do.
        vcpus[1].set_running_on(Some(4));
        vcpus[1].take();
        vcpus[1].make(Requests::EVENT);
        vcpus[2].set_running_on(Some(5));
        thread::scope(|scope| {
            scope.spawn(|| {
                vcpus[2].take();
            });
            await_look(&vcpus, Requests::SUPPRESSION);
        });
        assert!(vcpus[0].has(Requests::SUPPRESSION));
    }

    #[test]
    fn a_vcpu_that_does_not_come_is_not_waited_for_for_long() {
        let vcpu = VcpuRequests::default();
        vcpu.make(Requests::SUPPRESSION);
        vcpu.set_running_on(Some(1));
        await_look(&[vcpu], Requests::SUPPRESSION);
    }
}
