//! Whose address space is loaded: what VCPUs report goes in, targets in and out come of it.
//!
//! How a switch of address spaces is noticed is the VCPU's business; here is what it means. That a
//! target's root is loaded does not say that the target runs: an idle processor, and kernel threads,
//! keep the last process's. A VCPU that has halted, or that is seen in a kernel thread, is *dormant*
//! therefore: its root counts for nothing until it is loaded again, user code is seen to run, or a
//! thread that came from user mode.

#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::address_space::Root;
use super::handler::Context;
use super::kernel_thread::Thread;
use super::vcpu::Stop;
use super::{Event, Observation, Suppression};
use crate::guest_memory::GuestMemory;

/// The number of roots that are remembered as no target's.
const CAPACITY: usize = 64;

/// A cache of roots that have been looked at and are no target's: the next switch to one of them
/// costs one comparison. Good until the targets change: the roots of a process are made together.
#[derive(Clone, Debug)]
pub(super) struct NonTargets([Option<Root>; CAPACITY]);

/// The most that a target may save up of its ration in fast phases, as a divisor of a second.
const RATIONS_PER_SECOND: u64 = 2_000;

/// The evidence by which the end of a handler is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// A report of the VCPU, which has seen the interrupted code go on.
    Reported,
    /// An observation that the interrupted code had gone on.
    Found,
    /// A switch of the guest to something else.
    Switch,
}

impl NonTargets {
    pub(super) const fn new() -> Self {
        Self([None; CAPACITY])
    }

    const fn slot(root: Root) -> usize {
        (root.address().0 >> 12) as usize % CAPACITY
    }

    fn has(&self, root: Root) -> bool {
        self.0[Self::slot(root)] == Some(root)
    }

    fn add(&mut self, root: Root) {
        self.0[Self::slot(root)] = Some(root);
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(None);
    }
}

impl Suppression {
    /// Books the time since the last report of `vcpu`, by what it was known to do then.
    pub(super) fn account(&mut self, vcpu: usize, now: HostTicks) {
        self.time.advance(now);
        let gain = self.fast_gain(vcpu, now);
        let latency = self.latency;
        let rates = self.time.course().rates;
        let fastest = rates.counter.max(rates.timer).bits();
        let most_saved = self.tsc.get() / RATIONS_PER_SECOND;
        let record = &mut self.vcpus[vcpu];
        let elapsed = now.since(record.accounted);
        record.accounted = record.accounted.max(now);
        if let Stop::ParkedBriefly(_) = record.stop {
            self.brief_parking.charge(elapsed, now);
        }
        let own = core::mem::take(&mut record.own);
        record.hidden = if record.hides_target && record.runs() && !record.awaits_interrupts {
            elapsed
        } else {
            0
        };
        if let Some(slot) = record.target
            && let Some(target) = self.targets.get_mut(slot)
        {
            let lead = self.time.lead().most();
            let known = &mut target.record;
            known.highest_lead = known.highest_lead.max(lead);
            if record.fast.is_some() {
                record.company.gained(gain);
                let ran = record.stop == Stop::No;
                record.ration.pass(elapsed, fastest, ran, most_saved);
            }
            if record.stop != Stop::No {
                known.stopped = known.stopped.saturating_add(elapsed);
            } else if record.on_cpu
                && !record.halted
                && !record.handler.is_some_and(|handler| handler.free)
            {
                // An exit that a report takes is not the target's doing.
                known.charge_but_for(own, elapsed.saturating_sub(latency), now);
            }
        } else if record.runs() && !record.hides_target {
            record.company.others_ran(elapsed);
        }
        if record.runs() {
            record.share.ran(elapsed);
        } else if record.is_runnable() {
            record.share.waited(elapsed);
        }
    }

    /// Returns what the fast clock has gained since the last report of `vcpu`, in ticks.
    fn fast_gain(&self, vcpu: usize, now: HostTicks) -> u64 {
        let elapsed = now.since(self.vcpus[vcpu].accounted);
        let rates = self.time.course().rates;
        let fastest = rates.counter.max(rates.timer).bits();
        let excess = fastest.saturating_sub(devices::clock::Rate::ONE.bits());
        let gain = (u128::from(excess) * u128::from(elapsed)) >> 48;
        u64::try_from(gain).unwrap_or(u64::MAX)
    }

    /// Takes in what has happened to `vcpu`.
    pub(super) fn take(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        event: Event,
        now: HostTicks,
    ) {
        match event {
            Event::Seen(observation) => self.see(memory, vcpu, &observation, now),
            Event::Woke => {
                self.vcpus[vcpu].halted = false;
                self.find_target(memory, vcpu, false, now);
            }
            Event::Interrupted(context, thread) => {
                self.see_thread(memory, vcpu, context, thread, now);
                let record = &mut self.vcpus[vcpu];
                record.awaits_interrupts = record.hides_target;
                self.begin_handler(vcpu, context, now);
            }
            Event::Resumed(context) => {
                self.vcpus[vcpu].context = context;
                self.end_handler(vcpu, now, End::Reported);
            }
            Event::OnCpu => {
                let record = &mut self.vcpus[vcpu];
                record.on_cpu = true;
                if let Some(handler) = &mut record.handler {
                    handler.wait(now.since(record.off_cpu_since));
                }
            }
            Event::OffCpu => {
                let record = &mut self.vcpus[vcpu];
                record.on_cpu = false;
                record.off_cpu_since = now;
            }
            Event::Time => {}
        }
    }

    fn see(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        observation: &Observation,
        now: HostTicks,
    ) {
        let root = observation.root.map(|(root, _)| root);
        let record = &mut self.vcpus[vcpu];
        let before = record.root;
        let changed = root != before;
        record.root = root;
        record.halted = observation.halted;
        record.awaits_interrupts = false;
        record.context = observation.context;
        if let Some(handler) = &mut record.handler {
            handler.not_resumed = observation.not_resumed;
        }
        if observation.halted {
            record.dormant = true;
        } else if observation.loaded || changed || observation.context.user_mode {
            record.dormant = false;
        }
        if let Some(left) = before
            && changed
            && let Some(slot) = self.targets.slot_of(left)
            && self.targets.drop_if_gone(memory, left).is_some()
        {
            self.forget(slot);
        }
        if observation.loaded {
            // What ran before did not have the address space that runs now.
            self.vcpus[vcpu].hidden = 0;
        }
        let was_in = self.vcpus[vcpu].target;
        self.find_target(memory, vcpu, changed, now);
        if !observation.context.user_mode {
            self.see_thread(memory, vcpu, observation.context, observation.thread, now);
        }
        let record = &mut self.vcpus[vcpu];
        if observation.context.user_mode {
            self.vcpus[vcpu].kernel_interrupts = 0;
            self.end_overrun(vcpu, now);
        } else if was_in.is_none()
            && record.target.is_some()
            && !observation.loaded
            && observation.thread == Thread::Unknown
        {
            // It has become a target while the kernel works, maybe in the middle of a handler that
            // measures how long it takes.
            let frame = Context {
                user_mode: true,
                ..observation.context
            };
            self.vcpus[vcpu].handler = Some(self.handlers.begin(frame, now, true));
        }
        self.see_handler(vcpu, observation.context, now);
    }

    /// Takes note of the kind of thread that `vcpu` is in.
    fn see_thread(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        context: Context,
        thread: Thread,
        now: HostTicks,
    ) {
        let record = &mut self.vcpus[vcpu];
        record.context = context;
        // On the stack of a handler there is nothing to see.
        if record.halted || record.handler.is_some() {
            return;
        }
        let dormant = match thread {
            Thread::Unknown => return,
            Thread::User => false,
            Thread::Kernel => true,
        };
        if record.dormant == dormant {
            return;
        }
        record.dormant = dormant;
        self.find_target(memory, vcpu, false, now);
    }

    /// Finds out whether `vcpu` runs a target.
    fn find_target(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        switched_in: bool,
        now: HostTicks,
    ) {
        let root = self.vcpus[vcpu].root;
        let slot = root.and_then(|root| self.target_of(memory, root, switched_in));
        let record = &mut self.vcpus[vcpu];
        record.hides_target = slot.is_some() && record.dormant && !record.halted;
        let slot = slot.filter(|_| !record.dormant);
        if slot == record.target {
            return;
        }
        if record.target.is_some() {
            self.end_overrun(vcpu, now);
            self.end_handler(vcpu, now, End::Switch);
        }
        let lead = self.time.lead().most();
        let record = &mut self.vcpus[vcpu];
        record.target_out();
        record.target = slot;
        record.target_since = now;
        record.lead_then = lead;
        if let Some(target) = slot.and_then(|slot| self.targets.get_mut(slot)) {
            record.company.target_in(now);
            target.record.switch_ins += 1;
            // It may have run since the VCPU was last looked at.
            target.record.charge(record.hidden, now);
            record.hidden = 0;
        }
    }

    /// Returns the slot of the target that `root` belongs to, if any.
    fn target_of(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        switched_in: bool,
    ) -> Option<usize> {
        if self.targets.is_empty() || self.non_targets.has(root) {
            return None;
        }
        let slot = match self.targets.slot_of(root) {
            Some(slot) if switched_in && self.targets.drop_if_gone(memory, root).is_some() => {
                self.forget(slot);
                None
            }
            Some(slot) => Some(slot),
            None if self.targets.learn(memory, root) => self.targets.slot_of(root),
            None => None,
        };
        if slot.is_none() {
            self.non_targets.add(root);
        }
        slot
    }

    fn begin_handler(&mut self, vcpu: usize, frame: Context, now: HostTicks) {
        /// Handlers that are free of charge in a second of guest time. No kernel ticks more often; whoever
        /// is interrupted more often has asked for it.
        const FREE_HANDLERS_PER_SECOND: u64 = 1000;
        /// Handlers that may be free in a row: timers of others come at any time.
        const FREE_IN_A_ROW: u64 = 4;
        let guest_now = self.time.guest_time();
        let gap = self.tsc.get() / FREE_HANDLERS_PER_SECOND;
        let record = &mut self.vcpus[vcpu];
        if record.target.is_none() || record.handler.is_some() {
            // The frame that counts is the outermost.
            return;
        }
        let free = guest_now.saturating_add((FREE_IN_A_ROW - 1) * gap) >= record.free_handler_from;
        if free {
            record.free_handler_from = record.free_handler_from.max(guest_now).saturating_add(gap);
        }
        record.handler = Some(self.handlers.begin(frame, now, free));
        record.stop = Stop::No;
    }

    fn see_handler(&mut self, vcpu: usize, context: Context, now: HostTicks) {
        if let Some(handler) = &mut self.vcpus[vcpu].handler
            && self.handlers.is_over(handler, context, now)
        {
            self.end_handler(vcpu, now, End::Found);
        }
    }

    /// Ends the handler, if there is one.
    fn end_handler(&mut self, vcpu: usize, now: HostTicks, end: End) {
        let record = &mut self.vcpus[vcpu];
        let Some(handler) = record.handler.take() else {
            return;
        };
        let length = now.since(handler.since());
        match end {
            End::Reported => self.handlers.ended(&handler, now, true),
            End::Found => self.handlers.ended(&handler, now, false),
            End::Switch => {}
        }
        if end != End::Reported
            && handler.free
            && !handler.not_resumed
            && let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot))
        {
            // The target has run on unseen, as long as that took longer than handlers do.
            let unseen = length.saturating_sub(self.handlers.usual());
            target.record.charge(unseen, now);
        }
        // Timers that the target has set by the microsecond would have the guest do nothing but
        // handle them: half of the time goes to the code that is interrupted.
        record.timers_from = now.saturating_add(length / 2);
        record.interrupted_at = now;
        record.kernel_interrupts = record.kernel_interrupts.saturating_add(1);
    }

    fn end_overrun(&mut self, vcpu: usize, now: HostTicks) {
        let record = &mut self.vcpus[vcpu];
        if let Some(since) = record.overrun_since.take()
            && let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot))
        {
            target.record.note_overrun(now.since(since));
        }
    }
}

#[cfg(test)]
mod tests;
