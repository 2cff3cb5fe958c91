//! What is to be done: whether a VCPU runs its target, and at which rates the VM's clock goes on.
//!
//! Each VCPU with a target in has a *wish*: to run it or not, with a fast clock or not. The clock is
//! fast if any VCPU wants it to be, by the strongest wish; else it gives back what it has gained.

#![forbid(unsafe_code)]

use devices::clock::{Course, Rates};
use devices::time::HostTicks;

use super::give_back::{Haste, Observers, time_to_reach};
use super::lead::Booking;
use super::order::Policy;
use super::vcpu::Stop;
use super::wish::{LEAD_STEP, NEVER, SWITCH};
use super::{Directive, Stay, Suppression, Turn};

impl Suppression {
    /// Decides for `vcpu`, and for the VM's clock.
    pub(super) fn decide(&mut self, vcpu: usize, now: HostTicks) -> Directive {
        let wish = self.wish(vcpu, now);
        let record = &mut self.vcpus[vcpu];
        record.stop = wish.stop;
        record.fast = wish.fast;
        record.was_fast = false;
        // It is known not to have come to user mode unseen only if it was to report as soon as it can be interrupted.
        let is_seen = wish.look_when_interruptible || wish.stop != Stop::No;
        let goes_on = !is_seen && record.handler.is_none();
        let arrived = record
            .arrival
            .take_if(|_| record.context.user_mode || goes_on);
        if let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot)) {
            target.record.set_limit(wish.limit, now);
            // Who is not let run has had nothing of being switched in.
            if let Some(ticks) = arrived.filter(|_| wish.stop == Stop::No) {
                target.with_record(record.member, |known| known.charge(ticks, now));
            }
        }
        self.decide_clock(now);
        let lead = self.time.lead().most();
        let fastest = self.clock.rates.counter.max(self.clock.rates.timer);
        let record = &self.vcpus[vcpu];
        let stay = match record.stop {
            Stop::No => Stay::Run,
            Stop::Held => Stay::Hold,
            Stop::Parked(until) => Stay::Park(until),
            Stop::ParkedForLead(level) | Stop::ParkedBriefly(level) => {
                // By the line that gives back more slowly.
                let ticks = time_to_reach(lead, level, fastest);
                // In real time others have to change it first.
                let ticks = ticks.unwrap_or(self.tsc.get() / LEAD_STEP);
                Stay::Park(now.saturating_add(ticks.max(1)))
            }
        };
        let stop_at = wish
            .stop_lead
            .and_then(|level| time_to_reach(lead, level, fastest))
            .map_or(NEVER, |ticks| now.saturating_add(ticks));
        let lookout = self.lookout.at(now);
        let look_at = wish.look_at.min(stop_at).min(lookout.unwrap_or(NEVER));
        let record = &self.vcpus[vcpu];
        Directive {
            clock: self.clock,
            has_fast_clock: record.fast.is_some(),
            stay,
            look_at,
            stop_at,
            vm_look_at: self.vm_look_at,
            report_when_interruptible: record.awaits_interrupts
                || record.exchange.is_some()
                || wish.look_when_interruptible,
            report: self.is_active(),
            has_targets: !self.targets.is_empty(),
            loaded_member: record.root.and_then(|root| self.targets.member_of(root)),
            lookout,
            exchanged_at: record.exchange.map(|exchange| exchange.rsp),
            judged_until: self.judged_until(vcpu, now),
            judges_new_roots: self.expects_copies(now),
            target_in: record.target.is_some(),
            target_hidden: record.hides_target,
            stops_in_kernel: record.overrun_since.is_some(),
            thread_known_for: record
                .target
                .map_or(0, |_| SWITCH.saturating_sub(record.in_guest)),
            handler_runs: record.handler.is_some_and(|it| it.begin_was_seen),
            timers_from: if record.fast.is_some() {
                record.timers_from
            } else {
                HostTicks(0)
            },
        }
    }

    /// Decides on the course of the VM's clock.
    pub(super) fn decide_clock(&mut self, now: HostTicks) {
        let mut fast: Option<Rates> = None;
        let mut booking = Booking::Drift;
        let mut is_in = false;
        for record in &self.vcpus[..self.count] {
            is_in |= record.target.is_some();
            let Some(wanted) = record.fast else {
                continue;
            };
            let slot = record.target;
            if slot
                .and_then(|slot| self.targets.get(slot))
                .is_some_and(|target| target.order().policy == Policy::Bounded)
            {
                booking = Booking::Lead;
            }
            fast = Some(fast.map_or(wanted, |other| Rates {
                counter: wanted.counter.max(other.counter),
                timer: wanted.timer.max(other.timer),
            }));
        }
        self.note_turns(is_in, now);
        if let Some(rates) = fast {
            self.give_back.gaining();
            self.clock = Course::at(rates);
            self.booking = booking;
            self.vm_look_at = NEVER;
            return;
        }
        let haste = if self.targets.is_empty() {
            Haste::Released
        } else {
            Haste::Horizon
        };
        let lead = self.time.lead();
        let observers = self.observers();
        let (mut course, is_all_given_back) = self.give_back.course(lead, observers, haste, now);
        if is_all_given_back {
            for record in &mut self.vcpus[..self.count] {
                record.company.lead_is_gone(now);
            }
        }
        self.vm_look_at = NEVER;
        if observers == Observers::Run {
            // RDTSC does not see an end: a VCPU has to come out for it.
            self.vm_look_at = course.counter_until.min(course.timer_until);
            if is_all_given_back && let Some(until) = self.give_back.behind_until(now) {
                self.vm_look_at = until;
            }
            course = Course::at(course.rates);
        }
        let old = self.time.course();
        let is_the_same = self.booking == Booking::Lead
            && course.rates == old.rates
            && self.time.rates(now) == old.rates
            && (course.counter_until == NEVER) == (old.counter_until == NEVER)
            && (course.timer_until == NEVER) == (old.timer_until == NEVER);
        // The end of a course that has begun was computed when it began.
        self.clock = if is_the_same { old } else { course };
        self.booking = Booking::Lead;
    }

    /// Keeps book of the turns of targets, and of what others have between them.
    fn note_turns(&mut self, is_in: bool, now: HostTicks) {
        let (guest_now, lead) = (self.time.guest_time(), self.time.lead());
        match (self.turn, is_in) {
            (Turn::Unknown | Turn::Targets { .. }, false) => {
                let until = self.cpu_time(now);
                if let Turn::Targets { since, others } = self.turn {
                    self.give_back.turn_ended(lead, now);
                    self.counted_exits.turn_ended(until.since(since), others);
                }
                self.turn = Turn::Others {
                    guest: guest_now,
                    since: until,
                };
            }
            (Turn::Others { guest, since }, true) => {
                let guest = guest_now.saturating_sub(guest);
                self.give_back.turn_of_others(guest);
                self.give_back.turn_begins(lead);
                self.counted_exits.turn_begins(guest);
                let now = self.cpu_time(now);
                self.turn = Turn::Targets {
                    since: now,
                    others: now.since(since),
                };
            }
            (Turn::Unknown | Turn::Targets { .. }, true) | (Turn::Others { .. }, false) => {}
        }
    }

    fn observers(&self) -> Observers {
        let vcpus = &self.vcpus[..self.count];
        if vcpus.iter().any(|record| record.runs()) {
            Observers::Run
        } else if vcpus
            .iter()
            .any(|it| it.is_runnable() || it.is_parked_briefly())
        {
            Observers::Wait
        } else {
            Observers::None
        }
    }
}
