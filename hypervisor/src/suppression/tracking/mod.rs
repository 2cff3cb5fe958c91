//! Whose address space is loaded: what VCPUs report goes in, targets in and out come of it.
//!
//! How a switch of address spaces is noticed is the VCPU's business; here is what it means. That a
//! target's root is loaded does not say that the target runs: an idle processor, and kernel threads,
//! keep the last process's. A VCPU that has halted, or that is seen in a kernel thread, is *dormant*
//! therefore: its root counts for nothing until it is loaded again, user code is seen to run, or a
//! thread that came from user mode.

#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::handler::Context;
use super::kernel_thread::Thread;
use super::vcpu::Stop;
use super::wish::SWITCH;
use super::{Event, Observation, Suppression};
use crate::guest_memory::GuestMemory;

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
        let own = core::mem::take(&mut record.own);
        record.out_since = if own < elapsed { now } else { record.accounted };
        record.in_guest = record.in_guest.saturating_add(elapsed.saturating_sub(own));
        record.accounted = record.accounted.max(now);
        if let Stop::ParkedBriefly(_) = record.stop {
            self.brief_parking.charge(elapsed, now);
        }
        if core::mem::take(&mut record.looked_out) {
            self.lookout.charge(own.saturating_add(latency), now);
        }
        record.hidden = if record.hides_target && record.runs() && !record.awaits_interrupts {
            elapsed
        } else {
            0
        };
        if let Some(slot) = record.target
            && let Some(target) = self.targets.get_mut(slot)
        {
            let lead = self.time.lead().most();
            target.record.highest_lead = target.record.highest_lead.max(lead);
            if record.fast.is_some() {
                let in_kernel = !record.context.user_mode;
                record.company.gained(gain, in_kernel);
                let ran = record.stop == Stop::No;
                record.ration.pass(elapsed, fastest, ran, most_saved);
            }
            if record.stop != Stop::No {
                target.record.stopped = target.record.stopped.saturating_add(elapsed);
            } else if record.on_cpu
                && !record.halted
                && !record.handler.is_some_and(|handler| handler.free)
            {
                // An exit that a report takes is not the target's doing.
                let ticks = elapsed.saturating_sub(latency);
                let arrived = record.arrival.take();
                let arrives = arrived.filter(|_| !record.context.user_mode);
                let arriving = arrives.map(|it| it + ticks.saturating_sub(own));
                record.arrival = arriving.filter(|it| *it <= SWITCH);
                if record.arrival.is_none() {
                    let ticks = ticks + arrived.unwrap_or(0);
                    target.with_record(record.member, |known| {
                        known.charge_but_for(own, ticks, now);
                    });
                }
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
                // One whose end was not to be seen may be over.
                self.see_handler(vcpu, context, now);
                self.begin_handler(vcpu, context, now);
            }
            Event::Resumed(context) => {
                self.vcpus[vcpu].context = context;
                self.end_handler(vcpu, now, End::Reported);
            }
            Event::OnCpu(context) => {
                let record = &mut self.vcpus[vcpu];
                record.on_cpu = true;
                record.context = context;
                let waited = now.since(record.off_cpu_since);
                if let Some(handler) = &mut record.handler {
                    handler.wait(waited);
                }
                // What a kernel is given time for it has not done meanwhile.
                record.interrupted_at = record.interrupted_at.saturating_add(waited);
                record.target_since = record.target_since.saturating_add(waited);
            }
            Event::OffCpu => {
                let record = &mut self.vcpus[vcpu];
                record.on_cpu = false;
                record.off_cpu_since = record.out_since;
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
        if let Some((_, format)) = observation.root {
            self.non_targets.format = format;
        }
        let record = &mut self.vcpus[vcpu];
        let before = record.root;
        let changed = root != before;
        // Loads exit anyway where a member's root is loaded.
        let is_others = record.target.is_none() && !record.hides_target;
        record.looked_out = observation.loaded && is_others && self.lookout.at(now).is_some();
        record.root = root;
        record.halted = observation.halted;
        record.awaits_interrupts = false;
        record.context = observation.context;
        if observation.context.user_mode {
            record.user_stack = Some(observation.context.rsp);
        }
        if let Some(handler) = &mut record.handler {
            handler.not_resumed = observation.not_resumed;
        }
        if observation.halted {
            record.dormant = true;
        } else if observation.loaded || changed || observation.context.user_mode {
            record.dormant = false;
        }
        let was_in = self.vcpus[vcpu].target;
        if let Some(left) = before.filter(|_| changed) {
            let stack = self.vcpus[vcpu].user_stack.take();
            self.see_replaced(memory, vcpu, now);
            self.look_at_member(memory, left, stack, true, now);
        }
        if observation.loaded {
            // What ran before did not have the address space that runs now.
            self.vcpus[vcpu].hidden = 0;
        }
        // Who was there before is no new program.
        let is_known = changed
            && was_in.is_some()
            && root.is_some_and(|root| self.non_targets.has_for_sure(memory, root, now));
        // Whose root it is, if it is not known to be a member's, may wait until the clock is not fast any more, which
        // has the VCPU report again: to find it out takes long, and the VCPU that runs the target could not stop the
        // clock meanwhile.
        let mut others = self.vcpus[..self.count].iter().enumerate();
        let waits = was_in.is_none()
            && !self.vcpus[vcpu].hides_target
            && root.is_none_or(|root| self.targets.member_of(root).is_none())
            && self.time.course().rates.is_fast()
            && others.any(|(other, record)| other != vcpu && record.fast.is_some());
        self.vcpus[vcpu].judgment_waits = waits;
        if !waits {
            self.find_target(memory, vcpu, changed, now);
        }
        if let Some(left) = before.filter(|_| changed) {
            let ran = was_in.filter(|_| !is_known);
            self.note_exchange(vcpu, left, ran, observation);
        }
        if self.see_exchange(memory, vcpu, observation, now) {
            self.find_target(memory, vcpu, false, now);
        }
        if let Some(slot) = self.vcpus[vcpu].target.or(was_in) {
            self.sweep(memory, vcpu, slot, now);
        }
        if let Some(root) = root.filter(|_| !changed && self.vcpus[vcpu].target.is_some()) {
            let stack = self.vcpus[vcpu].user_stack;
            self.look_at_member(memory, root, stack, false, now);
        }
        let record = &self.vcpus[vcpu];
        // Of others it is of no interest: it may be known for what has just been exchanged.
        if !observation.context.user_mode && (record.target.is_some() || record.hides_target) {
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
            let handler = self.handlers.begun_before(observation.context, now);
            self.vcpus[vcpu].handler = Some(handler);
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
        let known = root.and_then(|root| self.target_of(memory, vcpu, root, switched_in, now));
        let record = &mut self.vcpus[vcpu];
        record.hides_target = known.is_some() && record.dormant && !record.halted;
        let (slot, member) = known.filter(|_| !record.dormant).unzip();
        if slot == record.target && member == record.member {
            return;
        }
        if record.target.is_some() {
            self.end_overrun(vcpu, now);
            self.end_handler(vcpu, now, End::Switch);
        }
        let lead = self.time.lead().most();
        let record = &mut self.vcpus[vcpu];
        if let Some(ticks) = record.arrival.take()
            && let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot))
        {
            target.with_record(record.member, |known| known.charge(ticks, now));
        }
        record.target_out();
        record.target = slot;
        record.member = member;
        record.arrival = slot.map(|_| 0);
        record.target_since = now;
        record.lead_then = lead;
        record.in_guest = 0;
        if let Some(target) = slot.and_then(|slot| self.targets.get_mut(slot)) {
            record.company.target_in(now);
            target.record.switch_ins += 1;
            // It may have run since the VCPU was last looked at.
            let hidden = core::mem::take(&mut record.hidden);
            if hidden > 0 {
                target.with_record(member, |known| known.charge(hidden, now));
            }
        }
    }

    fn begin_handler(&mut self, vcpu: usize, frame: Context, now: HostTicks) {
        let guest_now = self.time.guest_time();
        let record = &mut self.vcpus[vcpu];
        if record.target.is_none() || record.handler.is_some() {
            // The frame that counts is the outermost.
            return;
        }
        let free = record.free_handlers.take(guest_now, now, self.tsc);
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
        let usual = self.handlers.usual();
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
            target.with_record(record.member, |known| known.charge(unseen, now));
        }
        // Timers that the target has set by the microsecond would have the guest do nothing but
        // handle them: half of the time goes to the code that is interrupted. Not more than of a usual
        // handler: one whose end is found late has not taken that long. And as the clock is fast meanwhile, a tick
        // that comes late gains a lead for nothing: the guest would have switched. Timers of those that interrupt no more
        // often than any kernel does may be others', who are not to wait.
        let half = if handler.free {
            0
        } else {
            (length / 2)
                .min(usual)
                .min(self.longest_delay_of_timers(vcpu))
        };
        let record = &mut self.vcpus[vcpu];
        record.timers_from = now.saturating_add(half);
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
