//! What is to be done: whether a VCPU runs its target, and at which rates the VM's clock goes on.
//!
//! Each VCPU with a target in has a *wish*: to run it or not, with a fast clock or not. The clock is
//! fast if any VCPU wants it to be, by the strongest wish; else it gives back what it has gained.

#![forbid(unsafe_code)]

use devices::clock::{Course, Rate, Rates};
use devices::time::HostTicks;

use super::give_back::{Haste, Observers, time_to_reach};
use super::lead::Booking;
use super::order::{Order, Policy};
use super::record::Limit;
use super::vcpu::Stop;
use super::{Directive, Stay, Suppression};

/// The rate of looks at a VCPU whose target is in the kernel and is to be stopped as soon as it
/// leaves, as a divisor of a second: every 50 us.
const LOOKS_PER_SECOND: u64 = 20_000;
/// The least interval of these looks, as a multiple of what an exit takes: it counts where exits
/// are dear.
const LOOK_EXITS: u64 = 16;
/// The rate of looks at a VCPU that may run a hidden target, but mostly runs somebody else, as a
/// divisor of a second: at most one percent of its time is for that.
const HIDDEN_LOOKS_PER_SECOND: u64 = 4_000;
const HIDDEN_LOOK_EXITS: u64 = 128;
/// The least interval of looks for a hidden target, in ticks: a look takes some thousand.
const HIDDEN_LOOK_TICKS: u64 = 250_000;
/// The guest time that may pass while a VM exit is on its way, as a divisor of a second: a tick of
/// most guests. A clock that is faster than that allows would not be stopped in time.
const GUEST_TIME_OF_AN_EXIT: u64 = 250;
/// The number of ticks, about, from a change of the clock to the guest's next instruction, or from its
/// last one to the change, where other VCPUs have to be stopped for it.
const WAY_TO_THE_CLOCK: u64 = 2_000;
/// The same where there are no others.
const WAY_TO_THE_OWN_CLOCK: u64 = 300;
/// The part of a bound of the lead, as a divisor, that is kept for what cannot be foreseen.
const MARGIN: u64 = 64;
/// The number of interrupts after which a kernel is not given more time to get to a place where it
/// switches: each gives it four times what the one before did, so that is 6 ms where looks are 50 us apart.
const MOST_PATIENCE: u32 = 5;
/// The lead beyond which a target is parked for a moment though others of its VM wait, as a divisor of a
/// second: 15 ms.
const COMFORT: u64 = 66;
/// The part of all time, as a divisor, that such moments may take.
pub(super) const BRIEF_PARKING: u64 = 200;
/// The cost of an exit, in ticks, beyond which none is spent on waiting for a kernel to take interrupts
/// before the clock becomes fast.
const DEAR_EXIT: u64 = 4_000;
/// The slowest of fast clocks where exits are dear.
const LEAST_FAST: u64 = 16;
/// The time by which the lead of a parked VCPU falls before it runs again, as a divisor of a
/// second: a tick.
const LEAD_STEP: u64 = 250;

/// The wish of a VCPU with a target: to run it or not, and with which clock.
struct Wish {
    stop: Stop,
    fast: Option<Rates>,
    look_at: HostTicks,
    /// Whether it is to be looked at as soon as it takes interrupts.
    look_when_interruptible: bool,
    limit: Limit,
}

const NEVER: HostTicks = HostTicks(u64::MAX);

impl Suppression {
    /// Decides for `vcpu`, and for the VM's clock.
    pub(super) fn decide(&mut self, vcpu: usize, now: HostTicks) -> Directive {
        let wish = self.wish(vcpu, now);
        let record = &mut self.vcpus[vcpu];
        record.stop = wish.stop;
        record.fast = wish.fast;
        if let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot)) {
            target.record.set_limit(wish.limit, now);
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
        let (user_mode, alone) = (record.context.user_mode, record.company.is_alone());
        let mut stop_at = NEVER;
        if record.fast.is_some()
            && let Some(bound) = self.bound_of(vcpu)
        {
            let mut last = self.last_lead(bound, fastest);
            if !alone && (!user_mode || self.may_park_briefly(now)) {
                last = last.min(self.comfortable_lead(fastest));
            }
            // Who is there already, and goes on all the same, is not stopped over and over.
            if let Some(ticks) = time_to_reach(lead, last, fastest)
                && ticks > 0
            {
                stop_at = now.saturating_add(ticks);
            }
        }
        let look_at = wish.look_at.min(stop_at);
        let record = &self.vcpus[vcpu];
        Directive {
            clock: self.clock,
            stay,
            look_at,
            stop_at,
            vm_look_at: self.vm_look_at,
            report_when_interruptible: record.awaits_interrupts || wish.look_when_interruptible,
            report: self.is_active(),
            has_targets: !self.targets.is_empty(),
            loaded_target: record.root.and_then(|root| self.targets.slot_of(root)),
            target_in: record.target.is_some(),
            target_hidden: record.hides_target,
            handler_runs: record.handler.is_some(),
            timers_from: if record.fast.is_some() {
                record.timers_from
            } else {
                HostTicks(0)
            },
        }
    }

    fn wish(&mut self, vcpu: usize, now: HostTicks) -> Wish {
        let record = &self.vcpus[vcpu];
        let mut wish = Wish {
            stop: Stop::No,
            fast: None,
            look_at: NEVER,
            look_when_interruptible: false,
            limit: Limit::Idle,
        };
        if record.hides_target && record.on_cpu {
            wish.look_at = now.saturating_add(self.hidden_look_interval());
        }
        let Some(target) = record.target.and_then(|slot| self.targets.get(slot)) else {
            return wish;
        };
        let order = *target.order();
        wish.limit = target.record.limit().0;
        if !record.on_cpu || record.halted {
            // It is stopped by itself, and goes on as it was.
            wish.stop = record.stop;
            return wish;
        }
        if let Some(handler) = &record.handler {
            wish.look_at = handler.look_at();
            return wish;
        }
        match order.policy {
            Policy::Paper => {
                wish.fast = Some(order.factors.rates());
                wish.limit = Limit::Clock;
                wish
            }
            Policy::Bounded => self.bounded_wish(vcpu, &order, wish, now),
        }
    }

    fn bounded_wish(&mut self, vcpu: usize, order: &Order, mut wish: Wish, now: HostTicks) -> Wish {
        let wanted = self.wanted_rates(vcpu, order);
        let rates = self.in_time(wanted);
        let fastest = rates.counter.max(rates.timer).bits();
        let least_run = self.least_run;
        let is_faster = rates != Rates::REAL_TIME;
        let bound = order.bounds.ticks(self.contended, self.tsc);
        let last = self.last_lead(bound, rates.counter.max(rates.timer));
        let lead = self.time.lead().most();
        let is_fast = self.vcpus[..self.count]
            .iter()
            .any(|vcpu| vcpu.fast.is_some());
        let change_at = if is_fast {
            now
        } else {
            self.limiter.allowed_at(now)
        };
        let interval = self.look_interval();
        let sharers = self.sharers(vcpu);
        let step = (self.tsc.get() / LEAD_STEP).min(bound / 2) as i64;
        let comfortable = self.comfortable_lead(rates.counter.max(rates.timer));
        let may_park_briefly = self.may_park_briefly(now);
        let record = &mut self.vcpus[vcpu];
        let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot)) else {
            return wish;
        };
        let known = &mut target.record;
        let was_out_of_budget = matches!(record.stop, Stop::Held | Stop::Parked(_));
        let left = known.left(now);
        let left_in_user_mode = left.saturating_sub_unsigned(known.kept(was_out_of_budget));
        let user_mode = record.context.user_mode;
        let mut at_bound = lead >= last;
        if let Stop::ParkedForLead(level) = record.stop {
            at_bound = lead > level;
        } else if at_bound {
            record.company.at_bound(bound, now);
        }
        let alone = record.company.is_alone();
        // Where it is a long way there is no comfort any more.
        let far = |from: i64| !alone && (from..comfortable + 2 * step).contains(&lead);
        let is_too_far = match record.stop {
            Stop::ParkedBriefly(level) => lead > level,
            _ if user_mode => may_park_briefly && far(comfortable),
            // In the kernel it goes on in real time, and does so for a while.
            _ if record.fast.is_some() => far(comfortable),
            _ => far(comfortable - step),
        };
        // A kernel that has been interrupted often, and still has not switched, is in something longer. It
        // is given time for that as long as there is some.
        let patience = if left > 0 {
            2 * record
                .kernel_interrupts
                .saturating_sub(1)
                .min(MOST_PATIENCE)
        } else {
            0
        };
        let give_way = (interval / 8) << patience;
        let give_way_until = record.interrupted_at.saturating_add(give_way);
        // A kernel that takes no interrupts for longer than a switch has other things to do.
        let takes_interrupts_by = record.target_since.saturating_add(interval / 2);
        let share_of = |left: i64| now.saturating_add(left.max(0).unsigned_abs() / sharers);

        if user_mode && is_too_far {
            wish.limit = Limit::Lead;
            let level = match record.stop {
                Stop::ParkedBriefly(level) => level,
                _ => comfortable - step,
            };
            wish.stop = Stop::ParkedBriefly(level);
            return wish;
        }
        if left_in_user_mode <= 0 {
            if !user_mode {
                record.overrun_since.get_or_insert(now);
            }
            wish.limit = if alone { Limit::Alone } else { Limit::Budget };
            let use_clock = is_faster && !alone && !at_bound && change_at <= now;
            if user_mode && use_clock {
                wish.stop = Stop::Held;
                wish.fast = Some(rates);
                wish.look_at = known.regained_at(now);
                return wish;
            }
            if user_mode || record.context.interruptible && left <= 0 && !use_clock {
                let regained_at = known.regained_at(now);
                if alone {
                    wish.stop = Stop::Parked(regained_at);
                } else {
                    // Somebody else may be waiting for it to be switched out, and the clock can be used
                    // again soon.
                    let soon = if change_at > now {
                        change_at
                    } else {
                        now.saturating_add(step.unsigned_abs())
                    };
                    wish.stop = Stop::Parked(regained_at.min(soon));
                }
                return wish;
            }
            if use_clock && record.context.interruptible && now >= give_way_until {
                // In the kernel it is held until an interrupt: that may have the kernel switch, as soon
                // as it comes to where it looks.
                wish.stop = Stop::Held;
                wish.fast = Some(rates);
                return wish;
            }
        }
        let stop_at = share_of(if user_mode { left_in_user_mode } else { left });
        wish.look_at = stop_at;
        if alone {
            wish.limit = Limit::Alone;
        } else if at_bound {
            wish.limit = Limit::Lead;
            if user_mode {
                let level = match record.stop {
                    Stop::ParkedForLead(level) => level,
                    _ => last - step,
                };
                wish.stop = Stop::ParkedForLead(level);
                wish.look_at = NEVER;
                return wish;
            }
        } else if is_too_far {
            wish.limit = Limit::Lead;
        } else if change_at > now {
            wish.limit = Limit::Changes;
            wish.look_at = stop_at.min(change_at);
        } else if !user_mode && now < give_way_until {
            wish.limit = Limit::Clock;
            wish.look_at = stop_at.min(give_way_until);
        } else if !user_mode
            && !record.context.interruptible
            && record.fast.is_none()
            && now < takes_interrupts_by
            && self.latency < DEAR_EXIT
        {
            // A clock that is fast before an interrupt can come gains a lead for nothing.
            wish.limit = Limit::Clock;
            wish.look_at = stop_at.min(takes_interrupts_by);
            wish.look_when_interruptible = true;
        } else {
            wish.limit = Limit::Clock;
            wish.fast = is_faster.then_some(rates);
            record
                .ration
                .set_factor(wanted.counter.max(wanted.timer).bits());
            let was_held = record.stop == Stop::Held;
            if user_mode && let Some(wait) = record.ration.wait(fastest, was_held, least_run) {
                wish.stop = Stop::Held;
                wish.look_at = now.saturating_add(wait);
            }
            return wish;
        }
        // In real time nobody interrupts it soon, so whether it has left the kernel is looked for.
        if !user_mode {
            wish.look_at = wish.look_at.min(now.saturating_add(interval));
        }
        wish
    }

    /// Returns how many VCPUs run the target of `vcpu`, that one included.
    fn sharers(&self, vcpu: usize) -> u64 {
        let target = self.vcpus[vcpu].target;
        let runs = |other: &&super::vcpu::VcpuRecord| other.target == target && other.runs();
        self.vcpus[..self.count].iter().filter(runs).count().max(1) as u64
    }

    /// Returns the bound of the lead while `vcpu` has the clock fast, if there is one.
    fn bound_of(&self, vcpu: usize) -> Option<u64> {
        let slot = self.vcpus[vcpu].target?;
        let order = self.targets.get(slot)?.order();
        (order.policy == Policy::Bounded).then(|| order.bounds.ticks(self.contended, self.tsc))
    }

    /// Returns whether a VCPU may be parked now for a moment though others of the VM wait for it.
    fn may_park_briefly(&mut self, now: HostTicks) -> bool {
        let moment = self.tsc.get() / LEAD_STEP;
        self.brief_parking.there_at(moment, now) <= now
    }

    /// Returns the lead at which a clock that runs at `rate` has to be stopped, so that everybody takes it
    /// for right.
    fn comfortable_lead(&self, rate: Rate) -> i64 {
        self.last_lead(self.tsc.get() / COMFORT, rate)
    }

    /// Returns the lead at which a clock that runs at `rate` has to be stopped, so that it stays
    /// within `bound` while the exit for it is on its way.
    fn last_lead(&self, bound: u64, rate: Rate) -> i64 {
        let excess = rate.bits().saturating_sub(Rate::ONE.bits());
        let meanwhile = (u128::from(excess) * u128::from(self.exit_time())) >> 48;
        let meanwhile = u64::try_from(meanwhile).unwrap_or(u64::MAX);
        let margin = meanwhile.saturating_add(bound / MARGIN).min(bound / 2);
        i64::try_from(bound - margin).unwrap_or(i64::MAX)
    }

    fn exit_time(&self) -> u64 {
        let way = if self.count > 1 {
            WAY_TO_THE_CLOCK
        } else {
            WAY_TO_THE_OWN_CLOCK
        };
        self.latency.saturating_add(way)
    }

    fn look_interval(&self) -> u64 {
        let interval = self.tsc.get() / LOOKS_PER_SECOND;
        interval.max(LOOK_EXITS.saturating_mul(self.latency)).max(1)
    }

    fn hidden_look_interval(&self) -> u64 {
        let interval = self.tsc.get() / HIDDEN_LOOKS_PER_SECOND;
        interval
            .max(HIDDEN_LOOK_EXITS.saturating_mul(self.latency))
            .max(HIDDEN_LOOK_TICKS)
    }

    /// Returns the rates that the factors of `order` ask for while `vcpu` runs its target, with
    /// what waiting for a CPU adds.
    fn wanted_rates(&self, vcpu: usize, order: &Order) -> Rates {
        let wanted = order.factors.rates();
        let share = &self.vcpus[vcpu].share;
        let line = |rate: Rate| {
            if rate == Rate::ONE {
                return rate;
            }
            let bits = share.scale(rate.bits()).min(Rate::MAX.bits());
            Rate::from_bits(bits).unwrap_or(rate)
        };
        let counter = line(wanted.counter);
        Rates {
            counter,
            timer: if wanted.timer == wanted.counter {
                counter
            } else {
                line(wanted.timer)
            },
        }
    }

    /// Returns how fast a clock can be at most, as a multiple of real time, to be stopped in time on this
    /// machine.
    #[must_use]
    pub(crate) fn fastest(&self) -> u64 {
        let guest_time = self.tsc.get() / GUEST_TIME_OF_AN_EXIT;
        (guest_time / self.exit_time()).max(LEAST_FAST)
    }

    /// Returns `wanted`, but no faster than can be stopped in time.
    fn in_time(&self, wanted: Rates) -> Rates {
        let most = self.fastest();
        let most = Rate::from_bits(most.saturating_mul(Rate::ONE.bits())).unwrap_or(Rate::MAX);
        Rates {
            counter: wanted.counter.min(most),
            timer: wanted.timer.min(most),
        }
    }

    /// Decides on the course of the VM's clock.
    fn decide_clock(&mut self, now: HostTicks) {
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
        self.note_turns(is_in);
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
        let mut course = self.give_back.course(lead, observers, haste, now);
        if self.give_back.is_done(lead) {
            for record in &mut self.vcpus[..self.count] {
                record.company.lead_is_gone(now);
            }
        }
        self.vm_look_at = NEVER;
        if observers == Observers::Run {
            // RDTSC does not see an end: a VCPU has to come out for it.
            self.vm_look_at = course.counter_until.min(course.timer_until);
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

    /// Keeps book of the guest time that others have between turns of targets.
    fn note_turns(&mut self, is_in: bool) {
        match (self.others_since, is_in) {
            (None, false) => self.others_since = Some(self.time.guest_time()),
            (Some(since), true) => {
                let guest = self.time.guest_time().saturating_sub(since);
                self.give_back.turn_of_others(guest);
                self.others_since = None;
            }
            _ => {}
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
