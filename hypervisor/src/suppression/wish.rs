//! What a VCPU with a target wants: to run it or not, and with which clock.
//!
//! Under [`Policy::Bounded`] the first of these applies:
//! 1. in user mode, with a lead that is not comfortable any more: parked for a moment, while that is rare;
//! 2. its budget is used up: [held](Stop::Held) while the clock gets the guest to switch, or parked;
//! 3. the lead is at its bound: parked, or in the kernel run on in real time;
//! 4. in the kernel, where the clock would be of no use yet: run on in real time, and looked at soon;
//! 5. run with a fast clock.

#![forbid(unsafe_code)]

use devices::clock::{Rate, Rates};
use devices::time::HostTicks;

use super::Suppression;
use super::order::{Order, Policy};
use super::record::Limit;
use super::vcpu::{Stop, VcpuRecord};

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
/// last one to the change, where other VCPUs have to be stopped for it; and what these need meanwhile to serve a
/// timer, whose handler looks at the clock.
const WAY_TO_THE_CLOCK: u64 = 2_500;
/// The same where there are no others.
const WAY_TO_THE_OWN_CLOCK: u64 = 300;
/// The part of a bound of the lead, as a divisor, that is kept for what cannot be foreseen.
const MARGIN: u64 = 64;
/// The number of interrupts after which a kernel is not given more time to get to a place where it
/// switches: each gives it four times what the one before did, so that is 6 ms where looks are 50 us apart.
const MOST_PATIENCE: u32 = 5;
/// The number of interrupts after which a kernel that has not switched is taken not to do so where it is: a fast
/// clock is of no use there.
const MOST_TRIES: u32 = 16;
/// The number of ticks, about, that a kernel takes to switch after an interrupt that asks it to.
pub(super) const SWITCH: u64 = 4_000;
/// The lead beyond which a target is parked for a moment though others of its VM wait, as a divisor of a
/// second: 15 ms.
const COMFORT: u64 = 66;
/// The same in a VM of several VCPUs, 13 ms: what comes in between takes longer there. (With one it would be in the way
/// of the turns that a target has beside equals, of 13 ms.)
const COMFORT_OF_SEVERAL: u64 = 77;
/// The part of all time, as a divisor, that such moments may take.
pub(super) const BRIEF_PARKING: u64 = 200;
/// The cost of an exit, in ticks, beyond which none is spent on waiting for a kernel to take interrupts
/// before the clock becomes fast.
const DEAR_EXIT: u64 = 4_000;
/// The slowest of fast clocks where exits are dear.
const LEAST_FAST: u64 = 16;
/// The time by which the lead of a parked VCPU falls before it runs again, as a divisor of a
/// second: a tick.
pub(super) const LEAD_STEP: u64 = 250;

/// The gain of the clock since a target has come in beyond which it is in a long turn, as a divisor of a second:
/// one tick and a half. A handler of another VCPU's complains that sees two more ticks go by.
const LONG_TURN: u64 = 167;
/// The fastest clock in a long turn, if other VCPUs run meanwhile. Their handlers measure how long they take: what a
/// tick's handler does, a few thousand instructions, is to be over before the next tick.
const FASTEST_IN_LONG_TURN: u64 = 64;

/// A time that does not come.
pub(super) const NEVER: HostTicks = HostTicks(u64::MAX);

/// The wish of a VCPU.
pub(super) struct Wish {
    pub(super) stop: Stop,
    /// The rates of the clock, if they are to be fast.
    pub(super) fast: Option<Rates>,
    /// The time at which it is to be looked at.
    pub(super) look_at: HostTicks,
    /// Whether it is to be looked at as soon as it takes interrupts.
    pub(super) look_when_interruptible: bool,
    /// The lead at which its stay in the guest is to end, in ticks.
    pub(super) stop_lead: Option<i64>,
    /// The cause that limits its target.
    pub(super) limit: Limit,
}

impl Wish {
    /// Wishes that the VCPU be held until `until`, in the situation `it`, while the clock is fast.
    fn hold(&mut self, it: &Situation, until: HostTicks) {
        self.stop = Stop::Held;
        self.fast = Some(it.rates);
        self.stop_lead = it.lead.next_stop(it);
        self.look_at = until;
    }
}

/// The state of a VCPU with a target, as far as it bears on what it wants.
struct Situation {
    user_mode: bool,
    interruptible: bool,
    /// Whether nobody else wants the VCPU.
    alone: bool,
    /// The rates that the order asks for, and those that can be had of them.
    wanted: Rates,
    rates: Rates,
    lead: Levels,
    /// The CPU time that the target has left, and what of it is its in user mode, in ticks.
    left: i64,
    left_in_user_mode: i64,
    /// The time from which on the clock may change.
    change_at: HostTicks,
}

impl Situation {
    /// Returns whether a fast clock can have the guest switch to others.
    fn clock_is_of_use(&self, now: HostTicks) -> bool {
        self.rates != Rates::REAL_TIME
            && !self.alone
            && !self.lead.is_at_bound
            && self.change_at <= now
    }
}

/// The leads that matter to a VCPU, in ticks.
struct Levels {
    /// The lead as it is.
    now: i64,
    /// The lead at which a clock that is fast has to be stopped, to stay within the bound.
    last: i64,
    is_at_bound: bool,
    /// The same for what everybody takes for right.
    comfortable: i64,
    /// Whether the lead is beyond that: not where that is a long way, as there is no comfort any more.
    is_too_far: bool,
    /// The lead by which one that is parked is to be better off than one that is not.
    step: i64,
    /// Whether a VCPU may be parked now for a moment though others of the VM wait for it.
    may_park_briefly: bool,
}

impl Suppression {
    /// Returns what `vcpu` wants.
    pub(super) fn wish(&mut self, vcpu: usize, now: HostTicks) -> Wish {
        let record = &self.vcpus[vcpu];
        let mut wish = Wish {
            stop: Stop::No,
            fast: None,
            look_at: NEVER,
            look_when_interruptible: false,
            stop_lead: None,
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
            }
            Policy::Bounded => self.bounded_wish(vcpu, &order, &mut wish, now),
        }
        wish
    }

    fn bounded_wish(&mut self, vcpu: usize, order: &Order, wish: &mut Wish, now: HostTicks) {
        let it = self.situation(vcpu, order, now);
        if it.user_mode && it.lead.is_too_far {
            wish.limit = Limit::Lead;
            wish.stop = match self.vcpus[vcpu].stop {
                same @ Stop::ParkedBriefly(_) => same,
                _ => Stop::ParkedBriefly(it.lead.comfortable - it.lead.step),
            };
            return;
        }
        if it.left_in_user_mode <= 0 {
            if self.is_stopped_by_budget(vcpu, &it, wish, now) {
                return;
            }
            // It is stopped where it leaves the kernel, if it does not take interrupts before.
            wish.look_when_interruptible = !it.interruptible;
        }
        let left = if it.user_mode {
            it.left_in_user_mode
        } else {
            it.left
        };
        let time_left = left.max(0).unsigned_abs() / self.sharers(vcpu);
        wish.look_at = now.saturating_add(time_left);
        if it.user_mode && it.lead.is_at_bound && !it.alone {
            wish.limit = Limit::Lead;
            wish.stop = match self.vcpus[vcpu].stop {
                same @ Stop::ParkedForLead(_) => same,
                _ => Stop::ParkedForLead(it.lead.last - it.lead.step),
            };
            wish.look_at = NEVER;
            return;
        }
        if self.stays_in_real_time(vcpu, &it, wish, now) {
            if !it.user_mode {
                // Nobody interrupts it soon, so whether it has left the kernel is looked for.
                let look_at = now.saturating_add(self.look_interval());
                wish.look_at = wish.look_at.min(look_at);
            }
            return;
        }
        self.run_fast(vcpu, &it, wish, now);
    }

    /// Returns the state of `vcpu`, which has a target by `order`.
    fn situation(&mut self, vcpu: usize, order: &Order, now: HostTicks) -> Situation {
        let wanted = self.wanted_rates(vcpu, order);
        let is_long_turn = self.time.lead().most() >= self.long_turn_from(vcpu);
        let rates = self.in_time(wanted, is_long_turn);
        let is_fast = |record: &VcpuRecord| record.fast.is_some() || record.was_fast;
        let change_at = if self.vcpus[..self.count].iter().any(is_fast) {
            now
        } else {
            self.limiter.allowed_at(now)
        };
        let bound = order.bounds.ticks(self.contended, self.tsc);
        let mut lead = self.levels(rates, bound, now);
        let record = &mut self.vcpus[vcpu];
        let known = record.target.and_then(|slot| self.targets.get_mut(slot));
        let was_out_of_budget = matches!(record.stop, Stop::Held | Stop::Parked(_));
        let (left, left_in_user_mode) = known.map_or((0, 0), |target| {
            let left = target.record.left(now);
            let kept = target.record.kept(was_out_of_budget);
            (left, left.saturating_sub_unsigned(kept))
        });
        if let Stop::ParkedForLead(level) = record.stop {
            lead.is_at_bound = lead.now > level;
        } else if lead.is_at_bound {
            record.company.at_bound(bound, now);
        }
        let alone = record.company.is_alone();
        let user_mode = record.context.user_mode;
        let beyond = |from: i64| {
            let too_long_a_way = lead.comfortable + 2 * lead.step;
            !alone && (from..too_long_a_way).contains(&lead.now)
        };
        lead.is_too_far = match record.stop {
            Stop::ParkedBriefly(level) => lead.now > level,
            _ if user_mode => lead.may_park_briefly && beyond(lead.comfortable),
            // In the kernel it goes on in real time, and does so for a while.
            _ if is_fast(record) => beyond(lead.comfortable),
            _ => beyond(lead.comfortable - lead.step),
        };
        Situation {
            user_mode,
            interruptible: record.context.interruptible,
            alone,
            wanted,
            rates,
            lead,
            left,
            left_in_user_mode,
            change_at,
        }
    }

    /// Returns the leads that matter where the clock is to run at `rates` and the lead is to stay within
    /// `bound`.
    fn levels(&mut self, rates: Rates, bound: u64, now: HostTicks) -> Levels {
        let others = self.vcpus[..self.count].iter().filter_map(|it| it.fast);
        let fastest = others
            .chain([rates])
            .map(|rates| rates.counter.max(rates.timer))
            .fold(Rate::ONE, Rate::max);
        let last = self.last_lead(bound, fastest);
        let lead = self.time.lead().most();
        let moment = self.tsc.get() / LEAD_STEP;
        Levels {
            now: lead,
            last,
            is_at_bound: lead >= last,
            comfortable: self.last_lead(self.comfort(), fastest),
            is_too_far: false,
            step: moment.min(bound / 2) as i64,
            may_park_briefly: self.brief_parking.there_at(moment, now) <= now,
        }
    }

    /// Stops a target that has used up its budget, if that can be done where it is. Returns whether that
    /// decides what becomes of it.
    fn is_stopped_by_budget(
        &mut self,
        vcpu: usize,
        it: &Situation,
        wish: &mut Wish,
        now: HostTicks,
    ) -> bool {
        let give_way_until = self.gives_way_until(vcpu);
        let interval = self.look_interval();
        let record = &mut self.vcpus[vcpu];
        let Some(target) = record.target.and_then(|slot| self.targets.get_mut(slot)) else {
            return false;
        };
        wish.limit = if it.alone {
            Limit::Alone
        } else {
            Limit::Budget
        };
        let mut until = target.record.regained_at(now);
        if !it.user_mode {
            record.overrun_since.get_or_insert(now);
            if it.left > 0 {
                let goes_on = it.lead.is_too_far || now < give_way_until;
                let holds = it.clock_is_of_use(now) && it.interruptible && !goes_on;
                if holds {
                    // An interrupt may have the kernel switch, as soon as it comes to where it looks.
                    wish.hold(it, NEVER);
                }
                return holds;
            }
            if !it.interruptible {
                // A fast clock would be of no use before it takes interrupts.
                wish.look_at = now.saturating_add(interval);
                wish.look_when_interruptible = true;
                return true;
            }
            let leaves_until = record.interrupted_at.saturating_add(SWITCH);
            if record.context.is_near_stack_top() && now < leaves_until {
                wish.look_at = leaves_until;
                return true;
            }
            if until.since(now) > 2 * self.tsc.get() {
                // In debt for longer than two seconds it goes on a little at a time.
                match target.record.grace((interval / 8).max(SWITCH), now) {
                    Ok(grace_until) => {
                        wish.look_at = grace_until;
                        return true;
                    }
                    Err(grace_from) => until = grace_from,
                }
            }
        }
        let does_not_switch = !it.user_mode && record.kernel_interrupts > MOST_TRIES;
        if it.clock_is_of_use(now) && !does_not_switch {
            wish.hold(it, until);
            return true;
        }
        if !it.alone {
            // Somebody else may be waiting for it to be switched out, and the clock can be used again soon.
            let step = now.saturating_add(it.lead.step.unsigned_abs());
            let soon = Some(it.change_at).filter(|at| *at > now).unwrap_or(step);
            until = until.min(soon);
        }
        wish.stop = Stop::Parked(until);
        true
    }

    /// Decides whether a target that runs does so in real time, and until when.
    fn stays_in_real_time(
        &self,
        vcpu: usize,
        it: &Situation,
        wish: &mut Wish,
        now: HostTicks,
    ) -> bool {
        let record = &self.vcpus[vcpu];
        if it.alone {
            wish.limit = Limit::Alone;
            return true;
        }
        if it.lead.is_at_bound || it.lead.is_too_far {
            // In the kernel: in user mode it is parked.
            wish.limit = Limit::Lead;
            return true;
        }
        if it.change_at > now {
            wish.limit = Limit::Changes;
            wish.look_at = wish.look_at.min(it.change_at);
            return true;
        }
        wish.limit = Limit::Clock;
        if it.user_mode {
            return false;
        }
        // At least as long as it takes to switch, and to tell of the handler's end before: who comes next would see a clock
        // that becomes fast on the way. With several VCPUs turns are short and many, and there is no budget for that.
        let switch = if self.count > 1 {
            0
        } else {
            2 * SWITCH + self.latency
        };
        let switches_by = record.interrupted_at.saturating_add(switch);
        let give_way_until = self.gives_way_until(vcpu).max(switches_by);
        if now < give_way_until {
            wish.look_at = wish.look_at.min(give_way_until);
            return true;
        }
        // A clock that is fast before an interrupt can come gains a lead for nothing. But a kernel that
        // takes no interrupts for longer than a switch has other things to do.
        let takes_interrupts_by = record.target_since.saturating_add(self.look_interval() / 2);
        let waits_for_interrupts = !it.interruptible
            && record.fast.is_none()
            && !record.was_fast
            && now < takes_interrupts_by
            && self.latency < DEAR_EXIT;
        if waits_for_interrupts {
            wish.look_at = wish.look_at.min(takes_interrupts_by);
            wish.look_when_interruptible = true;
        }
        waits_for_interrupts
    }

    /// Runs a target with a fast clock, or holds it for a moment where that is not as fast as it should
    /// be.
    fn run_fast(&mut self, vcpu: usize, it: &Situation, wish: &mut Wish, now: HostTicks) {
        let fastest = it.rates.counter.max(it.rates.timer).bits();
        let wanted = it.wanted.counter.max(it.wanted.timer).bits();
        wish.fast = (it.rates != Rates::REAL_TIME).then_some(it.rates);
        wish.stop_lead = wish.fast.and_then(|_| it.lead.next_stop(it));
        let long_turn_from = self.long_turn_from(vcpu);
        if it.lead.now < long_turn_from && it.rates != self.in_time(it.rates, true) {
            wish.stop_lead = wish.stop_lead.map(|level| level.min(long_turn_from));
        }
        let least_run = self.least_run;
        let record = &mut self.vcpus[vcpu];
        record.ration.set_factor(wanted);
        let was_held = record.stop == Stop::Held;
        if it.user_mode
            && let Some(wait) = record.ration.wait(fastest, was_held, least_run)
        {
            wish.stop = Stop::Held;
            wish.look_at = now.saturating_add(wait);
        }
    }

    /// Returns until when a kernel has, after a handler, to get to where it switches.
    ///
    /// A kernel that has been interrupted often, and still has not switched, is in something longer, and is
    /// given time for that.
    fn gives_way_until(&self, vcpu: usize) -> HostTicks {
        let record = &self.vcpus[vcpu];
        let interrupts = record.kernel_interrupts.saturating_sub(1);
        let time = (self.look_interval() / 8) << (2 * interrupts.min(MOST_PATIENCE));
        record.interrupted_at.saturating_add(time)
    }

    /// Returns how many VCPUs run the target of `vcpu`, that one included.
    fn sharers(&self, vcpu: usize) -> u64 {
        let target = self.vcpus[vcpu].target;
        let runs = |other: &&VcpuRecord| other.target == target && other.runs();
        self.vcpus[..self.count].iter().filter(runs).count().max(1) as u64
    }

    /// Returns the lead that everybody takes for right, in ticks.
    pub(super) const fn comfort(&self) -> u64 {
        let comfort = if self.count > 1 {
            COMFORT_OF_SEVERAL
        } else {
            COMFORT
        };
        self.tsc.get() / comfort
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

    /// Returns how long timers may be delayed while the target of `vcpu` runs: while a tick of most guests passes.
    pub(super) fn longest_delay_of_timers(&self, vcpu: usize) -> u64 {
        let target = self.vcpus[vcpu].target;
        let Some(target) = target.and_then(|slot| self.targets.get(slot)) else {
            return 0;
        };
        let rates = self.in_time(self.wanted_rates(vcpu, target.order()), false);
        let tick = u128::from(self.tsc.get() / LEAD_STEP) << 48;
        u64::try_from(tick / u128::from(rates.timer.bits())).unwrap_or(u64::MAX)
    }

    /// Returns the lead from which on `vcpu` is in a long turn of its target, in ticks; that is of no
    /// importance while no other VCPU runs.
    fn long_turn_from(&self, vcpu: usize) -> i64 {
        if !self.others_run(vcpu) {
            return i64::MAX;
        }
        let length = (self.tsc.get() / LONG_TURN) as i64;
        self.vcpus[vcpu].lead_then.saturating_add(length)
    }

    /// Returns `wanted`, but no faster than can be stopped in time, or than others bear in a long turn of a
    /// target.
    fn in_time(&self, wanted: Rates, is_long_turn: bool) -> Rates {
        let mut most = self.fastest();
        if is_long_turn {
            most = most.min(FASTEST_IN_LONG_TURN);
        }
        let most = Rate::from_bits(most.saturating_mul(Rate::ONE.bits())).unwrap_or(Rate::MAX);
        Rates {
            counter: wanted.counter.min(most),
            timer: wanted.timer.min(most),
        }
    }
}

impl Levels {
    /// Returns the lead at which a stay in the guest is to end, in the situation `it`: who is beyond one
    /// already, and goes on all the same, is not stopped over and over.
    fn next_stop(&self, it: &Situation) -> Option<i64> {
        let parks = !it.alone && (!it.user_mode || self.may_park_briefly);
        let comfortable = Some(self.comfortable).filter(|_| parks);
        let levels = [comfortable, Some(self.last)].into_iter().flatten();
        levels.filter(|level| self.now < *level).min()
    }
}
