//! Suppression: which process runs, and what its guest's clock and VCPUs do about it.
//!
//! One type, [`Suppression`], is told what happens in a VM ([`Event`]) and says what to do
//! ([`Directive`]): at which rates the VM's clock goes on, whether the VCPU runs on, is held or
//! parked, and when it is to be asked again. It touches nothing itself: VCPUs report what they see
//! and carry out what comes back, and a simulation on the host does the same.
//!
//! # What is promised
//! For a target of factor `N` under [`order::Policy::Bounded`], whatever it does and whatever else the
//! guest runs:
//! - it gets at most `1/N` of one CPU over any second, in user and kernel mode together;
//! - guest time minus real time, the *lead*, stays within a bound, does not drift, and never makes
//!   the guest's time go back;
//! - what it gives up goes to the others of its VM that want it, else to other VMs.
//!
//! # How
//! | while | the clock | the VCPU |
//! | --- | --- | --- |
//! | the target runs | is fast by `N`: the guest's scheduler takes the CPU away | runs |
//! | its budget is used up | is fast by `N`: others do not wait | is held: the target gets nothing |
//! | the lead is at its bound | gives back | is parked |
//! | the lead is 15 ms, others wait | all but stands still | is parked for a moment, while that is rare |
//! | nobody else wants its VCPU | gives back | runs until its budget is used up, then is parked |
//! | an interrupt is handled | gives back | runs |
//! | others run | gives back what was gained, until it is behind by half of a turn's gain; then is real | runs |
//!
//! "Held" and "parked" are the same to the guest, a VCPU that is interrupted in the middle of user
//! code: any interrupt that it can take wakes it at once. They differ in what the clock does
//! meanwhile. A target in the kernel may hold locks that others spin on: it is run on until it is
//! back in user mode, and its budget keeps something in reserve for that
//! ([`record`]); only when that is used up as well, it is parked there.
//!
//! # Parts
//! - [`address_space`]: what a CR3 value says about the process that runs; [`target`]: the address
//!   spaces that are suppressed; [`usage`]: those seen, and their shares of the CPU;
//! - [`order`]: what the operator wants; [`record`]: what a target has had; [`snapshot`]: what the
//!   operator sees;
//! - [`lead`]: how far the guest's time is ahead; [`give_back`]: the controller of that;
//! - [`budget`]: the CPU time of a target; [`handler`]: the guest's interrupt handlers;
//! - [`limiter`]: changes of rate cost others little; [`cpu_share`]: VCPUs that share a CPU;
//! - [`company`]: whether anybody else wants a target's VCPU;
//! - [`tracking`]: whose address space is loaded; [`wish`]: what a VCPU with a target wants; [`decide`]: what
//!   is to be done.

#![forbid(unsafe_code)]

pub(crate) mod address_space;
mod allowance;
pub(crate) mod budget;
mod company;
mod counted_exits;
mod cpu_share;
mod decide;
mod departures;
mod descent;
mod effect;
mod factors;
mod following;
mod give_back;
pub(crate) mod handler;
pub(crate) mod kernel_thread;
mod lead;
mod left_frames;
mod limiter;
pub(crate) mod member;
mod non_targets;
pub(crate) mod notice;
pub(crate) mod order;
pub(crate) mod pace;
mod pages;
mod private_pages;
mod record;
pub(crate) mod snapshot;
pub(crate) mod target;
mod tracking;
pub(crate) mod usage;
mod vcpu;
mod wish;

#[cfg(test)]
mod simulation;

use arch::addr::GuestPhysAddr;
use devices::clock::{Course, Rate};
use devices::time::{Hertz, HostTicks};

use crate::guest_memory::GuestMemory;
use crate::ids::MAX_VCPUS;
use address_space::{Root, RootFormat};
use allowance::Allowance;
use counted_exits::CountedExits;
use departures::{Departed, Departures};
use following::{Loaded, Lookout};
use give_back::GiveBack;
use handler::{Context, Lengths};
use kernel_thread::Thread;
use lead::{Account, Booking, Lead};
use limiter::Limiter;
use member::Sign;
use non_targets::NonTargets;
use notice::{Notice, Notices};
use order::{Defaults, Order};
use pace::Pace;
use record::Record;
use target::{Target, TargetError, Targets};
use vcpu::VcpuRecord;

pub(crate) use factors::{Factor, Factors};

/// The state in which a VCPU is seen after a VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// The root of its address space; `None` without paging.
    pub root: Option<(Root, RootFormat)>,
    /// Whether the root has been loaded since the last observation, even if it was there before.
    pub loaded: bool,
    /// Whether it waits for an event.
    pub halted: bool,
    /// The context in which it executes.
    pub context: Context,
    /// The kind of kernel thread that it is in, if that was asked for.
    pub thread: Thread,
    /// Whether it has a handler that leaves the interrupted code to another time: that has not gone on.
    pub not_resumed: bool,
}

/// Something that has happened to a VCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An exit from the guest, with the state that is seen after it.
    Seen(Observation),
    /// The end of its halt, by an event.
    Woke,
    /// An interrupt that is about to be delivered to it in this context and thread.
    Interrupted(Context, Thread),
    /// The resumption of the code that was interrupted.
    Resumed(Context),
    /// The arrival on a physical CPU, in this context: it may have left the last one anywhere.
    OnCpu(Context),
    /// The departure from its physical CPU.
    OffCpu,
    /// The passage of time, and nothing else.
    Time,
}

/// The stay of a VCPU, in the guest or out of it, until it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Execution of the guest.
    Run,
    /// A short wait out of the guest, on its CPU.
    Hold,
    /// A wait out of the guest until then, with the CPU left to others.
    Park(HostTicks),
}

/// The instructions of suppression to a VCPU that has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directive {
    /// The course of the VM's clock.
    pub clock: Course,
    /// Whether the VM's clock is to be fast for a target of this VCPU.
    pub has_fast_clock: bool,
    /// The stay of the VCPU. An interrupt that it can take always lets it run.
    pub stay: Stay,
    /// The latest time at which the VCPU is to be asked again, whatever it does.
    pub look_at: HostTicks,
    /// The latest time at which its stay in the guest is to end, however short it is.
    pub stop_at: HostTicks,
    /// The time at which any VCPU of the VM that runs is to be asked again.
    pub vm_look_at: HostTicks,
    /// Whether the VCPU is to report as soon as it takes interrupts.
    pub report_when_interruptible: bool,
    /// Whether VCPUs are to report what they do: there are targets, or a lead is to be given back.
    pub report: bool,
    /// Whether there are targets, whose switches are to be seen.
    pub has_targets: bool,
    /// The slot of the target whose root is loaded, and the number of its member, whoever runs; `None` for no
    /// target's.
    pub loaded_member: Option<(usize, u32)>,
    /// The time until which loads of CR3 are to exit, whoever runs, as a child of a target's may be about to
    /// run; `None` if they need not.
    pub lookout: Option<HostTicks>,
    /// The stack pointer at which a target's root has just been exchanged for the one that is loaded, if it may
    /// be that of a new program of the same process.
    pub exchanged_at: Option<u64>,
    /// The time until which it is known whether the root that is loaded is a target's.
    pub judged_until: HostTicks,
    /// Whether another root that is sampled until then is to be judged at once: a member may have
    /// forked lately.
    pub judges_new_roots: bool,
    /// Whether a target runs: loads of other roots are of interest then, of its own not.
    pub target_in: bool,
    /// Whether a target's root is loaded, but somebody else runs: the target may at any time,
    /// without a load.
    pub target_hidden: bool,
    /// Whether a target is to be stopped in the kernel: what runs may be a thread of the kernel's.
    pub stops_in_kernel: bool,
    /// The time in the guest, in ticks, in which a kernel is not taken to get to a thread of its own: the target has just been
    /// switched to.
    pub thread_known_for: u64,
    /// Whether a handler runs that has interrupted the VCPU where it is: it is to report when that code
    /// goes on.
    pub handler_runs: bool,
    /// The time until which timers that are due before it are delayed.
    pub timers_from: HostTicks,
}

impl Directive {
    /// The directive to do nothing: no target is known of.
    pub(crate) const NONE: Self = Self {
        clock: Course::REAL_TIME,
        has_fast_clock: false,
        stay: Stay::Run,
        look_at: HostTicks(u64::MAX),
        stop_at: HostTicks(u64::MAX),
        vm_look_at: HostTicks(u64::MAX),
        report_when_interruptible: false,
        report: false,
        has_targets: false,
        loaded_member: None,
        lookout: None,
        exchanged_at: None,
        judged_until: HostTicks(u64::MAX),
        judges_new_roots: false,
        target_in: false,
        target_hidden: false,
        stops_in_kernel: false,
        thread_known_for: 0,
        handler_runs: false,
        timers_from: HostTicks(0),
    };

    /// Puts off by `ticks` what is to be done in them: the clock has become fast that much later than the directive
    /// was given.
    pub(crate) const fn delay(&mut self, ticks: u64) {
        self.stop_at = self.stop_at.saturating_add(ticks);
        self.look_at = self.look_at.saturating_add(ticks);
    }

    /// Returns whether it is of interest whose thread a VCPU in `context` runs, which has been in the guest for `stay` ticks: to
    /// find that out takes long.
    #[must_use]
    pub(crate) const fn asks_thread(&self, context: Context, stay: u64) -> bool {
        let goes_on = match self.exchanged_at {
            Some(rsp) => context.interruptible && following::is_same_place(rsp, context.rsp),
            None => false,
        };
        let stops_in_kernel = self.stops_in_kernel && !self.knows_thread(stay);
        self.target_hidden || (stops_in_kernel || goes_on) && !context.user_mode
    }

    /// Returns whether the target that is in is taken to be what runs after a `stay` in the guest of so many ticks, without a
    /// look at whose thread that is.
    #[must_use]
    pub(crate) const fn knows_thread(&self, stay: u64) -> bool {
        stay < self.thread_known_for
    }
}

/// Those whose turn it is on the VCPUs of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Anybody's: there were no targets.
    Unknown,
    /// Others', as no target has been in since `since`, which was `guest` in guest time.
    Others { guest: u64, since: CpuTime },
    /// Targets', of which one has been in since `since`, after others had had `others` ticks.
    Targets { since: CpuTime, others: u64 },
}

/// A time, and what the VM's VCPUs had had of the CPUs until then, all together, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTime {
    at: HostTicks,
    had: u64,
}

impl CpuTime {
    /// Returns how much of the time from `earlier` to this one some VCPU had a CPU, about, in ticks.
    fn since(self, earlier: Self) -> u64 {
        let had = self.had.saturating_sub(earlier.had);
        self.at.since(earlier.at).min(had)
    }
}

/// The suppression in a VM.
#[derive(Clone, Debug)]
pub(crate) struct Suppression {
    tsc: Hertz,
    defaults: Defaults,
    targets: Targets,
    non_targets: NonTargets,
    lookout: Lookout,
    /// Whether copies of any target are followed.
    follows: bool,
    /// The time until which copies may be about that have not been seen.
    copies_until: HostTicks,
    notices: Notices,
    departures: Departures,
    vcpus: [VcpuRecord; MAX_VCPUS],
    /// The number of entries of `vcpus` that are in use.
    count: usize,
    time: Account,
    give_back: GiveBack,
    limiter: Limiter,
    /// The time for which VCPUs may be parked though others of their VM wait for them.
    brief_parking: Allowance,
    handlers: Lengths,
    /// The time that an exit takes that a timer causes, in ticks.
    latency: u64,
    /// The least time for which a VCPU is left alone, in ticks.
    least_run: u64,
    /// Whether another VM wants a CPU that this one has.
    contended: bool,
    /// The course that the clock is to take, and the account to which its gain is booked.
    clock: Course,
    booking: Booking,
    /// The time at which the clock is to change again, if a VCPU runs then.
    vm_look_at: HostTicks,
    turn: Turn,
    counted_exits: CountedExits,
}

impl Suppression {
    /// Makes the state without targets in a VM of `vcpus` VCPUs (of which [`MAX_VCPUS`] count), whose clock
    /// starts at `now` where the TSC counts at `tsc`.
    #[must_use]
    pub(crate) fn new(defaults: Defaults, vcpus: usize, tsc: Hertz, now: HostTicks) -> Self {
        let pace = Pace::new(tsc);
        Self {
            tsc,
            defaults,
            targets: Targets::new(),
            non_targets: NonTargets::new(tsc),
            lookout: Lookout::new(tsc, now),
            follows: false,
            copies_until: HostTicks(0),
            notices: Notices::new(tsc, now),
            departures: Departures::NONE,
            vcpus: [VcpuRecord::new(tsc, now); MAX_VCPUS],
            count: vcpus.min(MAX_VCPUS),
            time: Account::new(now),
            give_back: GiveBack::new(tsc),
            limiter: Limiter::new(tsc, now),
            brief_parking: Allowance::new(wish::BRIEF_PARKING, 4 * tsc.get(), now),
            handlers: Lengths::new(pace.longest_handler(), pace.least_run()),
            latency: 0,
            least_run: 0,
            contended: false,
            clock: Course::REAL_TIME,
            booking: Booking::Lead,
            vm_look_at: HostTicks(u64::MAX),
            turn: Turn::Unknown,
            counted_exits: CountedExits::new(tsc),
        }
    }

    /// Returns what targets of the VM get unless the operator says otherwise.
    #[must_use]
    pub(crate) const fn defaults(&self) -> Defaults {
        self.defaults
    }

    /// Returns the targets.
    #[must_use]
    pub(crate) const fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Returns whether VCPUs are to report what they do: there are targets, or a lead is to be
    /// given back.
    #[must_use]
    pub(crate) fn is_active(&self) -> bool {
        !self.targets.are_forgotten() || self.clock != Course::REAL_TIME
    }

    /// Takes note that the guest has accessed the root at `address` up to `now`: it may be of use to somebody
    /// else now, and is no target's then.
    pub(crate) fn root_accessed(
        &mut self,
        memory: &impl GuestMemory,
        address: GuestPhysAddr,
        now: HostTicks,
    ) {
        let at = |root: Root| root.address().page() == address.page();
        let roots = self.targets.iter().flat_map(Target::roots);
        let Some(root) = roots.into_iter().find(|&root| at(root)) else {
            return;
        };
        self.end_if_gone(memory, root, Loaded::Maybe, now);
    }

    /// Returns a number that differs from what it was if loads of CR3 are to exit on all VCPUs for a while.
    #[must_use]
    pub(crate) const fn lookout_generation(&self) -> u32 {
        self.lookout.generation
    }

    /// Returns whether there is something to be told.
    #[must_use]
    pub(crate) const fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// Returns what there is to be told that was not returned before, for a trace.
    pub(crate) fn untraced_notices(&mut self) -> impl Iterator<Item = Notice> + '_ {
        self.notices.untraced()
    }

    /// Returns the roots of members that have come to their end since there were `count` departures.
    pub(crate) fn departed_since(&self, count: u64) -> Departed<impl Iterator<Item = Root> + '_> {
        self.departures.since(count)
    }

    /// Takes what there is to be told at `now`, in its order.
    pub(crate) fn take_notices(&mut self, now: HostTicks) -> impl Iterator<Item = Notice> + use<> {
        self.forget_gone(now);
        self.notices.take(now)
    }

    /// Makes the address space of `root` a target, or changes its order. `seen` are roots among
    /// which its aliases are looked for.
    ///
    /// # Errors
    /// If it is no process's, or there are too many targets; nothing has changed then.
    pub(crate) fn suppress(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        order: Order,
        seen: &[Root],
        now: HostTicks,
    ) -> Result<(), TargetError> {
        if self.targets.is_empty() {
            self.turn = Turn::Unknown;
            self.counted_exits = CountedExits::new(self.tsc);
        }
        let record = Record::new(&order, self.tsc, now);
        let slot = self
            .targets
            .add(memory, root, format, order, record, seen, now)?;
        if let Some(target) = self.targets.get_mut(slot) {
            target.record.set_order(&order, self.tsc, now);
        }
        self.note_named(now);
        Ok(())
    }

    /// Makes the process of `root`, which was found in the same way as another one, a member of that one's
    /// family: of the target that was named by `with`. `seen` are roots among which its aliases are looked for.
    /// Returns whether there is such a target.
    ///
    /// # Errors
    /// If it is no process's, or the family has as many members as it may have.
    pub(crate) fn suppress_with(
        &mut self,
        memory: &impl GuestMemory,
        with: Root,
        root: Root,
        seen: &[Root],
        now: HostTicks,
    ) -> Result<bool, TargetError> {
        let Some(slot) = self.targets.slot_named(with) else {
            return Ok(false);
        };
        let Some(id) = self.take_in(memory, slot, None, root, Sign::Rule, now) else {
            let target = self.targets.get(slot);
            let is_full = target.is_some_and(|it| it.living_count() >= target::MAX_MEMBERS);
            return Err(if is_full {
                TargetError::FamilyFull(with)
            } else {
                TargetError::NoUserSpace(root)
            });
        };
        self.targets.gather(memory, (slot, id), seen);
        self.note_named(now);
        Ok(true)
    }

    /// Takes note that a process has been named at `now`.
    fn note_named(&mut self, now: HostTicks) {
        self.non_targets.clear();
        self.note_what_is_followed();
        self.expect_copies(now);
    }

    /// Ends the suppression of the target that has `root`, and returns it.
    pub(crate) fn release(&mut self, root: Root) -> Option<Target> {
        let released = self.targets.release(root)?;
        self.note_released();
        Some(released)
    }

    /// Ends all suppression, and returns how many targets there were.
    pub(crate) fn release_all(&mut self) -> usize {
        let count = self.targets.release_all();
        self.note_released();
        count
    }

    /// Lets no VCPU run a target that is not there any more.
    fn note_released(&mut self) {
        for vcpu in &mut self.vcpus {
            if vcpu
                .target
                .is_some_and(|slot| self.targets.get(slot).is_none())
            {
                vcpu.target_out();
            }
            vcpu.exchange = None;
        }
        self.non_targets.clear();
        if self.targets.are_forgotten() {
            self.lookout.end(self.time.accounted_until());
        }
        self.note_what_is_followed();
    }

    /// Lets no VCPU run member `member` of the target in `slot` any more, as far as is known.
    fn forget_member(&mut self, slot: usize, member: u32) {
        for vcpu in &mut self.vcpus {
            if vcpu.target == Some(slot) && vcpu.member == Some(member) {
                vcpu.target_out();
            }
        }
    }

    fn note_what_is_followed(&mut self) {
        self.follows = self
            .targets
            .iter_mut()
            .any(|target| target.order().follow.forks());
    }

    /// Takes note of whether another VM wants a CPU that this one has.
    pub(crate) const fn set_contended(&mut self, contended: bool) {
        self.contended = contended;
    }

    /// Adapts to what exits take on this machine, as a VCPU has seen it.
    pub(crate) fn adapt(&mut self, pace: &Pace) {
        self.handlers
            .adapt(pace.longest_handler(), pace.least_run());
        self.latency = pace.exit_cost();
        self.least_run = pace.least_run();
    }

    /// Takes note that an exit takes about `ticks` on this machine.
    pub(crate) const fn set_exit_cost(&mut self, ticks: u64) {
        self.latency = ticks;
    }

    /// Takes note that `ticks` since the last report of `vcpu` went to that, from the exit to the next
    /// entry.
    pub(crate) fn note_own_time(&mut self, vcpu: usize, ticks: u64) {
        if let Some(record) = self.vcpus.get_mut(vcpu) {
            record.own = record.own.saturating_add(ticks);
        }
    }

    /// Takes note that `vcpu` has had `ticks` of CPU time since it was made.
    pub(crate) fn note_cpu_time(&mut self, vcpu: usize, ticks: u64) {
        if let Some(record) = self.vcpus.get_mut(vcpu) {
            record.cpu_time = ticks;
        }
    }

    /// Returns what the VCPUs have had of the CPUs until `now`, as far as they have told.
    fn cpu_time(&self, now: HostTicks) -> CpuTime {
        let vcpus = self.vcpus[..self.count].iter();
        CpuTime {
            at: now,
            had: vcpus.map(|record| record.cpu_time).sum(),
        }
    }

    /// Takes note of `event` at `vcpu`, and tells what is to be done from `now` on. Where the
    /// course is not that of the VM's clock, the caller changes that, and says so
    /// ([`Suppression::clock_changed`]).
    pub(crate) fn report(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        event: Event,
        now: HostTicks,
    ) -> Directive {
        if vcpu >= self.count {
            debug_assert!(false, "a VCPU that the VM does not have");
            return Directive {
                clock: self.clock,
                vm_look_at: self.vm_look_at,
                ..Directive::NONE
            };
        }
        self.account(vcpu, now);
        self.take(memory, vcpu, event, now);
        self.forget_gone(now);
        let directive = self.decide(vcpu, now);
        self.see_effect(vcpu, now);
        directive
    }

    /// Returns whether other VCPUs than `vcpu` run.
    #[must_use]
    pub(crate) fn others_run(&self, vcpu: usize) -> bool {
        let mut records = self.vcpus[..self.count].iter().enumerate();
        records.any(|(other, record)| other != vcpu && record.runs())
    }

    /// Decides that a clock is not fast any more for the target of `vcpu`, which has left the guest at `now`, until its
    /// next report. Returns whether the clock is to change.
    ///
    /// A report takes a while, and mostly it says that the target does not run on. Others' guests would see a fast clock
    /// go on meanwhile; and where it goes on to be fast, the target's own would find that several ticks have passed.
    pub(crate) fn stop_fast_clock(&mut self, vcpu: usize, now: HostTicks) -> bool {
        if self
            .vcpus
            .get(vcpu)
            .is_none_or(|record| record.fast.is_none())
        {
            return false;
        }
        self.account(vcpu, now);
        self.vcpus[vcpu].fast = None;
        self.vcpus[vcpu].was_fast = true;
        self.decide_clock(now);
        self.clock_is_to_change()
    }

    /// Returns the course on which the VM's clock is to run.
    #[must_use]
    pub(crate) const fn clock(&self) -> Course {
        self.clock
    }

    /// Returns whether the VM's clock does not run on the course that it is to run on.
    #[must_use]
    pub(crate) fn clock_is_to_change(&self) -> bool {
        self.clock != self.time.course()
    }

    /// Returns from when on the clock has been fast that becomes so at `now`: a moment before, but not before it was
    /// `used` last.
    ///
    /// What the exit took counts for the target's turn ([`counted_exits`]). It may have taken long, as when somebody has just
    /// been named: not all of that counts, or whoever runs would have had so much that it is not given the CPU again for long,
    /// and a handler would find that several ticks had passed. Nor does more than what everybody takes for right; but that is
    /// of no importance where the clock is far ahead, as the scheduler prefers the target, nor while members of a family may
    /// not be known yet: they are found when they run, and the turns of those that are known are in the way.
    #[must_use]
    pub(crate) fn fast_from(&mut self, now: HostTicks, used: HostTicks) -> HostTicks {
        /// The lead of a clock that is far ahead, as a divisor of a second.
        const FAR_AHEAD: u64 = 16;
        let lead = self.time.lead();
        let is_far_ahead = lead.most() > (self.tsc.get() / FAR_AHEAD) as i64;
        let room = if is_far_ahead || self.expects_copies(now) {
            None
        } else {
            // Also where the clock is behind before the turn: that is for what cannot be avoided.
            let gained = self.give_back.distance(lead, now).most();
            let room = (self.comfort() as i64).saturating_sub(gained).max(0);
            Some(room.unsigned_abs())
        };
        let rates = self.clock.rates;
        let factor = rates.counter.max(rates.timer).bits() / Rate::ONE.bits();
        let running = self.vcpus[..self.count].iter().filter(|it| it.runs());
        let counts = self.counted_exits.of_exit(running.count() > 1, room) / factor.max(1);
        let from = used.max(HostTicks(now.0.saturating_sub(counts)));
        let counted = now.since(from).saturating_mul(factor);
        self.counted_exits.take(counted);
        from
    }

    /// Returns the host time up to which the clock's gains are booked: it cannot be changed for a time
    /// before.
    #[must_use]
    pub(crate) const fn accounted_until(&self) -> HostTicks {
        self.time.accounted_until()
    }

    /// Takes note that the VM's clock runs on the decided course from `now` on, and that the change took
    /// `lost` ticks from other VCPUs, all together.
    pub(crate) fn clock_changed(&mut self, now: HostTicks, lost: u64) {
        self.time.change(now, self.clock, self.booking);
        self.limiter.note_change(now, lost);
    }

    /// Takes note that guest time stood still from `from` to `to` because the VM was paused.
    pub(crate) fn paused(&mut self, from: HostTicks, to: HostTicks) {
        self.time.pause(from, to);
    }

    /// Returns how far the guest's time is ahead of real time at `now`: what is to be given back.
    #[must_use]
    pub(crate) fn lead(&self, now: HostTicks) -> Lead {
        let mut time = self.time.clone();
        time.advance(now);
        time.lead()
    }

    /// Returns how far the guest's time is ahead of real time at `now` for good.
    #[must_use]
    pub(crate) fn drift(&self, now: HostTicks) -> Lead {
        let mut time = self.time.clone();
        time.advance(now);
        time.drift()
    }
}
