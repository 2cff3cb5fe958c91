//! What a VCPU sees of its address space: the process list, the trace, and switches to and from targets
//! of suppression. What follows from a switch is in [`super::suppress`].
//!
//! Without targets nothing here makes the guest exit: CR3 is sampled at timer exits and HLT,
//! which happen anyway, for the process list. With targets, the first page walk through a target's
//! root exits ([`super::root_guard`]), and while one is loaded, loads of CR3 do, except between the
//! roots of a target that runs. Where roots cannot be guarded, and while tracing, all loads exit.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use devices::time::HostTicks;

use super::backend::GuestCpu;
use super::{Activity, Vcpu};
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::kernel_thread::Thread;
use crate::suppression::{Directive, Event as Report, Observation, Stay};
use crate::trace::Event;
use crate::vm::requests::Requests;

/// CR3 values between which a running target may switch without an exit.
const EXEMPT: usize = 4;

/// The state that a VCPU keeps between observations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observer {
    /// The time at which the last sample for the process list was taken.
    pub(super) sampled_at: HostTicks,
    /// The root that ran then.
    sampled_root: Option<Root>,
    /// Whether a sample is due: the guest came out anyway.
    pub(super) sample_due: bool,
    /// CR3 at the last observation.
    cr3: u64,
    /// The state of the VM's targets at the last observation.
    generation: u32,
    /// Whether there is something to be observed: targets, a lead to be given back, or a trace.
    pub(super) watching: bool,
    /// Whether loads of CR3 exit, and how many of the exempt ones do not.
    cr3_exits: (bool, usize),
    /// The operands of MOV to CR3 with which a target came in, bit 63 and PCID included.
    exempt: [u64; EXEMPT],
    /// The slot and the number of that member: another one's loads of them are switches.
    exempt_member: Option<(usize, u32)>,
    exempt_count: usize,
    next_exempt: usize,
    /// The root that suppression was told of last.
    judged: Option<Root>,
    /// The operand of the MOV to CR3 that has just exited.
    pub(super) loaded_cr3: Option<u64>,
    /// Whether the VCPU was last seen halted.
    pub(super) halted: bool,
    /// Whether suppression believes that a physical CPU runs it.
    pub(super) on_cpu: bool,
    /// Whether it was last seen in user mode.
    user_mode: bool,
    /// The last directive from suppression.
    pub(super) directive: Directive,
    /// The time as of which that was given.
    pub(super) directed_at: HostTicks,
    /// The time of the last entry while there was something to be observed.
    pub(super) entered_at: HostTicks,
    /// The time as of which suppression was told something, if it was since the last exit.
    pub(super) reported_at: Option<HostTicks>,
    /// The time that the last report has taken, up to the entry or the departure from the CPU, in ticks,
    /// until suppression is told of it.
    pub(super) own_time: u64,
    /// The same of all reports, until the scheduler is told of it.
    pub(super) suppression_time: u64,
    /// Whether a timer of the guest's expired when the timers were last looked at.
    pub(super) timer_expired: bool,
    /// The root that the trace was last told of.
    traced_root: Option<Root>,
}

impl Observer {
    pub(super) const fn new(now: HostTicks) -> Self {
        Self {
            sampled_at: now,
            sampled_root: None,
            sample_due: false,
            cr3: 0,
            generation: 0,
            watching: false,
            cr3_exits: (false, 0),
            exempt: [0; EXEMPT],
            exempt_member: None,
            judged: None,
            exempt_count: 0,
            next_exempt: 0,
            loaded_cr3: None,
            halted: false,
            on_cpu: false,
            user_mode: false,
            directive: Directive::NONE,
            directed_at: now,
            entered_at: now,
            reported_at: None,
            own_time: 0,
            suppression_time: 0,
            timer_expired: false,
            traced_root: None,
        }
    }

    fn clear_exempt(&mut self) {
        self.exempt_count = 0;
        self.next_exempt = 0;
    }

    fn add_exempt(&mut self, operand: u64) {
        if self.exempt[..self.exempt_count].contains(&operand) {
            return;
        }
        self.exempt[self.next_exempt] = operand;
        self.next_exempt = (self.next_exempt + 1) % EXEMPT;
        self.exempt_count = (self.exempt_count + 1).min(EXEMPT);
    }
}

impl<C: GuestCpu> Vcpu<C> {
    /// Looks at the address space after the exit at `at` has been handled. That there is something to be
    /// observed at all is requested before.
    #[inline]
    pub(super) fn observe(&mut self, at: HostTicks) {
        if self.observer.watching {
            self.follow(at);
        } else if self.observer.sample_due {
            self.sample(at);
        }
    }

    /// Charges the guest time since the last sample to the address space that runs.
    fn sample(&mut self, at: HostTicks) {
        self.observer.sample_due = false;
        let root = self.root();
        self.note_root_format(root);
        self.charge(root.map(|(root, _)| root), at);
    }

    /// Lets the operator's commands know how the guest pages.
    fn note_root_format(&self, root: Option<(Root, RootFormat)>) {
        if let Some((_, format)) = root {
            self.vm.root_format.store(
                match format {
                    RootFormat::Long => 0,
                    RootFormat::Narrow => 1,
                    RootFormat::Pae => 2,
                },
                Ordering::Relaxed,
            );
        }
    }

    fn charge(&mut self, root: Option<Root>, at: HostTicks) {
        let ran = at.since(self.observer.sampled_at);
        self.observer.sampled_at = at;
        self.observer.sampled_root = root;
        if let Some(root) = root
            && let Some(usage) = self.vm.usages.get(self.index as usize)
        {
            usage.lock().record(root, ran, at);
        }
    }

    /// Notes the end of a halt: time that the VCPU spends halted is nobody's.
    pub(super) fn note_wake(&mut self, at: HostTicks) {
        self.observer.sampled_at = at;
        self.trace(Event::Wake);
        if self.observer.watching {
            // The idle loop still has CR3; whether a target runs is seen at the next exit.
            self.observer.halted = false;
            self.report(Report::Woke, at);
        }
    }

    fn root(&self) -> Option<(Root, RootFormat)> {
        let cpu = &self.cpu;
        let format = RootFormat::of(cpu.cr0(), cpu.cr4(), cpu.efer())?;
        Some((Root::new(cpu.cr3(), format), format))
    }

    /// Follows the address space while there is something to be observed.
    pub(super) fn follow(&mut self, at: HostTicks) {
        let generation = self.vm.suppression_generation.load(Ordering::Acquire);
        let restored = self.restore_root_guard(at);
        let loaded = self.observer.loaded_cr3.take();
        let walked = self.root_guard.walked.take();
        let halted = self.activity != Activity::Running;
        let cr3 = self.cpu.cr3();
        let user_mode = self.cpu.cpl() == 3;
        let is_to_be_judged = self.observer.sample_due && self.is_to_be_judged(at);
        let unchanged = !is_to_be_judged
            && generation == self.observer.generation
            // Behind the guard whatever is loaded is no target's.
            && (cr3 == self.observer.cr3 || self.root_guard.is_up())
            && loaded.is_none()
            && walked.is_none()
            && !restored
            && self.let_through_until().is_none()
            && halted == self.observer.halted
            && at < self.next_observation()
            && !self.is_of_interest(user_mode);
        if !core::mem::take(&mut self.observer.sample_due) && unchanged {
            return;
        }
        let root = self.root();
        self.note_root_format(root);
        // Where each switch is seen, each process is charged just what it used. Behind the guard it is
        // who runs at the moment, but for a target that comes in now.
        let comes_in = loaded.is_some() || walked.is_some();
        let ran = self
            .observer
            .sampled_root
            .filter(|_| comes_in || !self.root_guard.is_up());
        self.charge(ran.or(root.map(|(root, _)| root)), at);
        self.observer.sampled_root = root.map(|(root, _)| root);
        if unchanged {
            return;
        }
        let tracing = self.vm.trace.is_on();
        self.trace_switch(tracing, root.map(|(root, _)| root), halted);
        if generation != self.observer.generation {
            self.observer.clear_exempt();
        }
        self.stop_fast_clock(at);
        let directive = &self.observer.directive;
        let context = self.context();
        let asks_thread = directive.asks_thread(context, self.stay(at));
        let observation = Observation {
            root,
            loaded: loaded.is_some() || walked.is_some(),
            halted,
            context,
            thread: if asks_thread && !halted {
                self.kernel_thread()
            } else {
                Thread::Unknown
            },
            not_resumed: loaded.is_some() && self.is_not_resumed(),
        };
        self.report(Report::Seen(observation), at);
        self.observer.judged = root.map(|(root, _)| root);
        self.observer.generation = generation;
        self.observer.cr3 = cr3;
        self.observer.halted = halted;
        self.observer.user_mode = user_mode;
        let loaded_member = self.observer.directive.loaded_member;
        if loaded_member.is_some() && loaded_member != self.observer.exempt_member {
            self.observer.exempt_member = loaded_member;
            self.observer.clear_exempt();
        }
        if self.observer.directive.target_in
            && let Some(operand) = loaded
        {
            self.observer.add_exempt(operand);
        }
        let watching = tracing || self.observer.directive.report;
        if watching != self.observer.watching {
            self.observer.watching = watching;
            // Whoever watches keeps time for those that sleep.
            self.pending |= Requests::TIMERS;
        }
        let has_targets = self.observer.directive.has_targets;
        let lookout = self.observer.directive.lookout.is_some();
        let guard = has_targets
            && !tracing
            && !lookout
            && loaded_member.is_none()
            && self.vm.memory_map.is_guarding();
        self.set_root_guard(guard);
        if let Some(address) = walked {
            // If it is still up, the walk was no target's, and has to be let through.
            self.let_through_root_guard(address);
        }
        let behind_guard = guard && self.let_through_until().is_none();
        self.set_cr3_exits(!behind_guard && (tracing || has_targets || lookout));
    }

    /// Returns whether suppression wants to know what the VCPU does now, in user mode or not,
    /// although it has the same address space as before.
    fn is_of_interest(&self, user_mode: bool) -> bool {
        let directive = &self.observer.directive;
        if directive.exchanged_at.is_some() {
            return user_mode || self.context().interruptible;
        }
        if !directive.target_in && !directive.target_hidden {
            return false;
        }
        user_mode != self.observer.user_mode
            || (directive.handler_runs || directive.report_when_interruptible)
                && self.context().interruptible
            || directive.stay != Stay::Run
    }

    /// Returns whether it is to be found out at `at` whose root the VCPU has: that was done a while ago, or for
    /// another one, while new ones may be a target's.
    fn is_to_be_judged(&self, at: HostTicks) -> bool {
        let directive = &self.observer.directive;
        let is_another = || self.root().map(|(root, _)| root) != self.observer.judged;
        at >= directive.judged_until || directive.judges_new_roots && is_another()
    }

    /// Has loads of CR3 exit, or not; those between the roots of a target that runs do not.
    fn set_cr3_exits(&mut self, exits: bool) {
        let count = if self.observer.directive.target_in {
            self.observer.exempt_count
        } else {
            0
        };
        let (exempt, wanted) = (self.observer.exempt, (exits, count));
        // More than zero: they may be others than before.
        if count > 0 || wanted != self.observer.cr3_exits {
            self.observer.cr3_exits = wanted;
            self.cpu.set_cr3_exits(exits, &exempt[..count]);
        }
    }

    /// Records `event`, if events are recorded.
    #[inline]
    pub(super) fn trace(&self, event: Event) {
        if self.vm.trace.is_on() {
            self.record(event);
        }
    }

    #[cold]
    fn record(&self, event: Event) {
        let now = crate::machine::host_time::host_now;
        self.vm.trace.record(Some(self.index), event, now);
    }

    /// Tells the trace what has changed since the last observation.
    fn trace_switch(&mut self, tracing: bool, root: Option<Root>, halted: bool) {
        if !tracing {
            self.observer.traced_root = None;
            return;
        }
        let before = self.observer.traced_root;
        if root != before {
            if let Some(left) = before {
                self.record(Event::SwitchOut(left));
            }
            if let Some(entered) = root {
                self.record(Event::SwitchIn(entered));
            }
            self.observer.traced_root = root;
        }
        if halted && !self.observer.halted {
            self.record(Event::Halt);
        }
    }
}

#[cfg(test)]
mod tests;
