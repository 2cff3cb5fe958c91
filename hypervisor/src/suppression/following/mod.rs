//! Who belongs to a target: its members are followed through forks and new programs, wherever they map
//! themselves, to their end.
//!
//! # The sign of a fork
//! See [`super::descent`].
//!
//! # The sign of a new program
//! `execve`, `vfork` and `execve`, and `posix_spawn` exchange the address space under a thread of the kernel's that goes on:
//! on its kernel stack. A switch to another process loads CR3 as well, on the stack of the process that is
//! left, but then it changes the stack, and does not take interrupts before. So when the kernel takes
//! interrupts with the new root for the first time, the stack tells: it is the one on which a
//! member's root was exchanged for this one ([`Exchange`]), or another. It counts where the member was
//! running, and the thread is one that came from user mode: kernels run threads of their own on the page
//! tables of whoever ran last, and these start programs, too.
//!
//! What could fool it: a kernel that switches to other processes on one and the same stack and takes
//! interrupts there. What is not seen: a program that is started by another process on request. That is
//! what rules are for.
//!
//! # How new roots are seen
//! While a member's root is loaded, loads of CR3 exit. Else the roots of others are sampled when a
//! timer interrupts them, which takes an exit anyway: often while a copy may be about, as a member may have
//! forked lately, and now and then otherwise, since a report costs others their time. When a member may have forked, or has come to its
//! end, loads exit for a little longer, with a bound on what that costs ([`Lookout`]): the child is seen before it
//! has run.

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

use super::address_space::Root;
use super::allowance::Allowance;
use super::descent::{Relation, Walks, relation};
use super::handler::Context;
use super::kernel_thread::Thread;
use super::member::{Member, Origin, Sign};
use super::notice::{Notice, Subject};
use super::target::{Departure, MAX_MEMBERS};
use super::vcpu::VcpuRecord;
use super::{Observation, Suppression};
use crate::guest_memory::GuestMemory;

/// The time for which a family is remembered of which nobody lives, in seconds: a child may sleep.
const REMEMBERED_FOR: u64 = 5;
/// The rate of looks at the pages of a member that runs on, as a divisor of a second.
const LOOKS_PER_SECOND: u64 = 4_000;
/// The number of looks for the first pages of a new member for each doubling of its age, about.
const LOOKS_EACH_AGE: u64 = 4;
/// The distance of stack pointers that belong to one stack at two points of one function, in bytes, and
/// do not belong to two stacks at the same point.
const SAME_PLACE: u64 = 2048;
/// The part of all time, as a divisor, that loads of CR3 by others may cost which exit after a sign of a fork.
const LOOKOUT_SHARE: u64 = 256;
/// The length of the time for which they exit, as a divisor of a second: some turns of others'. And the seconds that
/// earn what may be had in a row.
const LOOKOUTS_PER_SECOND: u64 = 16;
/// The part of all time, as a divisor, for which they may exit whatever that costs, and the length of such a time, as a
/// divisor of a second.
const TIMED_LOOKOUT_SHARE: u64 = 25;
const TIMED_LOOKOUTS_PER_SECOND: u64 = 40;
const LOOKOUT_EARNINGS: u64 = 4;
/// The time after a sign of a fork, or of an end, in which a copy may be about that has not been seen, in
/// seconds.
const COPIES_EXPECTED_FOR: u64 = 1;
/// The least CPU time that a fork takes, in ticks: page tables are made, and the table of files.
const LEAST_FORK: u64 = 4_000;
/// The least interval of looks at members that do not run, as a divisor of a second.
const SWEEPS_PER_SECOND: u64 = 4_000;
/// The rate at which sampled roots are judged otherwise, as a divisor of a second.
const JUDGMENTS_PER_SECOND: u64 = 50;

/// Returns whether stack pointer `then` is on the stack on which it was `before`, about where it was.
pub(super) const fn is_same_place(before: u64, then: u64) -> bool {
    then.abs_diff(before) <= SAME_PLACE
}

/// A member's root that was exchanged for another one, on a kernel stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    slot: usize,
    member: u32,
    /// The member's root.
    replaced: Root,
    /// The other root.
    pub(super) root: Root,
    /// The stack pointer at the exchange.
    pub(super) rsp: u64,
}

impl Exchange {
    /// Returns whether a VCPU in `context` goes on where the exchange was; `None` while that cannot
    /// be told.
    const fn goes_on(&self, context: Context, thread: Thread) -> Option<bool> {
        if context.user_mode {
            return Some(false);
        }
        if !context.interruptible {
            return None;
        }
        Some(is_same_place(self.rsp, context.rsp) && !matches!(thread, Thread::Kernel))
    }
}

/// Whether a VCPU has a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// One has it, or had it until now, since it was looked at last.
    UntilNow,
    /// This one has it since just now; whether another one has, too, is looked for.
    OnlyNow(usize),
    /// One may have it, which is looked for.
    Maybe,
}

/// The time for which loads of CR3 exit on all VCPUs, as a child may be about to run.
///
/// There is a bound on what that costs others. Where they take turns by milliseconds it costs next to nothing,
/// and a child may have to wait for some turns each time. Where they switch so often that it is used up, there is a bound
/// on how long it is besides.
#[derive(Clone, Debug)]
pub(super) struct Lookout {
    until: HostTicks,
    /// The lengths of one that is bounded by its cost, and of one that is bounded by its time.
    lengths: [u64; 2],
    /// The ticks that exits may take for it.
    cost: Allowance,
    /// The ticks for which it may go on whatever that costs.
    time: Allowance,
    /// Whether this one is bounded by its time.
    is_timed: bool,
    /// The number of times that it began.
    pub(super) generation: u32,
}

impl Lookout {
    pub(super) const fn new(tsc: Hertz, now: HostTicks) -> Self {
        let earnings = tsc.get().saturating_mul(LOOKOUT_EARNINGS);
        Self {
            until: HostTicks(0),
            lengths: [
                tsc.get() / LOOKOUTS_PER_SECOND,
                tsc.get() / TIMED_LOOKOUTS_PER_SECOND,
            ],
            cost: Allowance::new(LOOKOUT_SHARE, earnings, now),
            time: Allowance::new(TIMED_LOOKOUT_SHARE, earnings, now),
            is_timed: false,
            generation: 0,
        }
    }

    /// Returns until when it goes on, if it does at `now`.
    pub(super) fn at(&self, now: HostTicks) -> Option<HostTicks> {
        (now < self.until).then_some(self.until)
    }

    /// Begins, or goes on for longer, as far as is allowed.
    fn begin(&mut self, now: HostTicks) {
        let was_on = self.at(now).is_some();
        if self.cost.there_at(1, now) <= now {
            self.end(now);
            self.until = now.saturating_add(self.lengths[0]);
        } else if !self.begin_timed(now) {
            return;
        }
        if !was_on {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Begins one that is bounded by its time, or goes on for longer, and returns whether that is allowed.
    fn begin_timed(&mut self, now: HostTicks) -> bool {
        let until = now.saturating_add(self.lengths[1]);
        let from = if self.is_timed {
            self.until.max(now)
        } else {
            now
        };
        let more = until.since(from);
        if self.time.there_at(more, now) > now {
            return false;
        }
        self.time.charge(more, now);
        self.is_timed = true;
        self.until = until;
        true
    }

    /// Takes note that a load of CR3 by others has exited for it, which took `ticks`.
    pub(super) fn charge(&mut self, ticks: u64, now: HostTicks) {
        if self.is_timed {
            return;
        }
        self.cost.charge(ticks, now);
        if self.cost.there_at(1, now) > now && !self.begin_timed(now) {
            self.end(now);
        }
    }

    /// Ends at `now`.
    pub(super) fn end(&mut self, now: HostTicks) {
        if core::mem::take(&mut self.is_timed) {
            self.time.give_back(self.until.since(now));
        }
        self.until = HostTicks(0);
    }
}

impl Suppression {
    /// Returns whether any target's descendants are followed: then roots that are seen by chance are of
    /// interest.
    pub(super) fn follows_forks(&self) -> bool {
        !self.targets.are_forgotten() && self.follows
    }

    /// Takes note that a copy may be about that has not been seen.
    pub(super) fn expect_copies(&mut self, now: HostTicks) {
        let length = self.tsc.get().saturating_mul(COPIES_EXPECTED_FOR);
        self.copies_until = self.copies_until.max(now.saturating_add(length));
    }

    /// Returns whether a copy may be about that has not been seen.
    pub(super) fn expects_copies(&self, now: HostTicks) -> bool {
        self.follows_forks() && now < self.copies_until
    }

    /// Returns until when the root that `vcpu` has, and that is sampled at `now`, need not be looked at again.
    pub(super) fn judged_until(&self, vcpu: usize, now: HostTicks) -> HostTicks {
        if !self.follows_forks() {
            return HostTicks(u64::MAX);
        }
        let rate = if self.vcpus[vcpu].judgment_waits {
            LOOKS_PER_SECOND
        } else if self.expects_copies(now) {
            super::non_targets::GOOD_FOR
        } else {
            JUDGMENTS_PER_SECOND
        };
        now.saturating_add(self.tsc.get() / rate)
    }

    /// Returns the target that the root of `vcpu` belongs to, if any: its slot and the number of the member.
    /// `switched_in`: it has come there just now.
    pub(super) fn target_of(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        root: Root,
        switched_in: bool,
        now: HostTicks,
    ) -> Option<(usize, u32)> {
        if self.targets.are_forgotten() {
            return None;
        }
        // A child may have got the root and the tables of somebody who has just ended.
        let is_known = if self.expects_copies(now) {
            self.non_targets.has(root, now)
        } else {
            self.non_targets.has_with_tables(memory, root, now)
        };
        if is_known {
            return None;
        }
        if let Some(known) = self.targets.member_of(root)
            && !(switched_in && self.end_if_gone(memory, root, Loaded::OnlyNow(vcpu), now))
        {
            return Some(known);
        }
        if self.targets.learn(memory, root) {
            return self.targets.member_of(root);
        }
        self.judge(memory, root, now)
    }

    /// Finds out whether the process of `root`, which is no member's, is a copy of one, and takes it in
    /// then.
    fn judge(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        now: HostTicks,
    ) -> Option<(usize, u32)> {
        if let Some((slot, parent)) = self.relation_of(memory, root, now)
            && let Some(member) = self.take_in(memory, slot, Some(parent), root, Sign::Fork, now)
        {
            return Some((slot, member));
        }
        self.non_targets.add(memory, root, now);
        None
    }

    /// Returns the slot of the target and the number of the member of which the process of `root` is a
    /// copy. Pages that it shares with members on purpose are no signs any more.
    fn relation_of(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        now: HostTicks,
    ) -> Option<(usize, u32)> {
        /// The pages that are found to be shared at one look.
        const MOST_SHARED: usize = 8;
        let most = self.tsc.get() * REMEMBERED_FOR;
        let mut walks = Walks::of_one_exit();
        let vcpus = &self.vcpus[..self.count];
        for slot in 0..super::target::MAX_TARGETS {
            for _ in 0..MOST_SHARED {
                let Some(target) = self.targets.get_mut(slot) else {
                    break;
                };
                if !target.order().follow.forks() {
                    break;
                }
                let has = |member: &Member, vcpu: &VcpuRecord| {
                    vcpu.root.is_some_and(|root| member.has(root))
                };
                let is_loaded = |id| {
                    target
                        .member(id)
                        .is_some_and(|it| vcpus.iter().any(|vcpu| has(it, vcpu)))
                };
                match relation(memory, root, target, is_loaded, most, &mut walks, now) {
                    Relation::Child(parent) => return Some((slot, parent)),
                    Relation::Sharer(address) => target.forget_page(address),
                    Relation::Stranger => break,
                }
            }
        }
        None
    }

    /// Makes the process of `root` a member, as a descendant of member `parent`, if it is one.
    pub(super) fn take_in(
        &mut self,
        memory: &impl GuestMemory,
        slot: usize,
        parent: Option<u32>,
        root: Root,
        sign: Sign,
        now: HostTicks,
    ) -> Option<u32> {
        let target = self.targets.get(slot)?;
        let (named, format) = (target.root(), target.format());
        let parent = parent.and_then(|parent| target.member(parent));
        let inherited = parent.map(|it| (it.root(format), it.pages));
        let origin = Origin {
            sign,
            parent: inherited.map(|(root, _)| root),
            at: now,
        };
        let takes_over = target.living_count() == 0;
        let is_full = target.living_count() >= MAX_MEMBERS;
        let Some(id) = self.targets.join(memory, slot, root, origin) else {
            if is_full && !core::mem::replace(&mut self.targets.get_mut(slot)?.told_full, true) {
                self.notify(
                    named,
                    Subject::Full {
                        root,
                        bound: MAX_MEMBERS,
                    },
                    now,
                );
            }
            return None;
        };
        if let (Sign::Fork, Some((_, pages))) = (sign, inherited)
            && let Some((member, _)) = self.targets.get_mut(slot)?.member_and_left(id)
        {
            member.pages.inherit(&pages, memory, root, format);
        }
        self.non_targets.clear();
        self.expect_copies(now);
        if takes_over {
            self.lookout.end(now);
        }
        let parent = origin.parent.unwrap_or(named);
        self.notify(
            named,
            Subject::Joined {
                member: root,
                parent,
                sign,
                takes_over,
            },
            now,
        );
        Some(id)
    }

    /// Returns whether a VCPU has a root of member `id` of the target in `slot`, `but` not counted.
    fn is_loaded(&self, slot: usize, id: u32, but: Option<usize>) -> bool {
        let vcpus = self.vcpus[..self.count].iter().enumerate();
        let mut others = vcpus.filter(|(vcpu, _)| Some(*vcpu) != but);
        others.any(|(_, vcpu)| {
            vcpu.root
                .is_some_and(|root| self.targets.member_of(root) == Some((slot, id)))
        })
    }

    /// Looks whether the process that has `root` is gone, and takes note of that. Returns whether it is.
    pub(super) fn end_if_gone(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        loaded: Loaded,
        now: HostTicks,
    ) -> bool {
        let Some((slot, id)) = self.targets.member_of(root) else {
            return false;
        };
        let named = self.targets.get(slot).map(super::target::Target::root);
        let is_loaded = match loaded {
            Loaded::UntilNow => true,
            Loaded::OnlyNow(vcpu) => self.is_loaded(slot, id, Some(vcpu)),
            Loaded::Maybe => self.is_loaded(slot, id, None),
        };
        let departure = self.targets.drop_if_gone(memory, root, is_loaded, now);
        let (Some(departure), Some(named)) = (departure, named) else {
            return false;
        };
        self.note_departure(&departure, named, now);
        true
    }

    fn note_departure(&mut self, departure: &Departure, named: Root, now: HostTicks) {
        self.forget_member(departure.slot, departure.member);
        for root in departure.roots() {
            self.departures.add(root);
        }
        self.non_targets.clear();
        self.expect_copies(now);
        let subject = match self.targets.get(departure.slot) {
            None => Subject::Ended(departure.end),
            Some(target) => {
                let living = target.living_count();
                // Without a page of it, no copy would be known.
                if target.order().follow.forks() && target.has_signs() {
                    self.lookout.begin(now);
                }
                Subject::MemberEnded {
                    member: departure.root(),
                    end: departure.end,
                    living,
                }
            }
        };
        if let Some(target) = self.targets.get_mut(departure.slot) {
            target.told_full = false;
        }
        self.notify(named, subject, now);
    }

    /// Looks at the member that has `root`, which a VCPU in `context` has, or had until now: where it
    /// is, and whether it may have forked.
    pub(super) fn look_at_member(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        stack: Option<u64>,
        is_left: bool,
        now: HostTicks,
    ) {
        if self.end_if_gone(memory, root, Loaded::UntilNow, now) {
            return;
        }
        let interval = self.tsc.get() / LOOKS_PER_SECOND;
        let may_fork_again = self.expects_copies(now);
        let Some((slot, id)) = self.targets.member_of(root) else {
            return;
        };
        let Some(target) = self.targets.get_mut(slot) else {
            return;
        };
        if !target.order().follow.forks() {
            return;
        }
        let format = target.format();
        let Some((member, left)) = target.member_and_left(id) else {
            return;
        };
        // A program that is new has no pages that are known of, and may fork before long.
        let has_pages = member.pages.iter().next().is_some();
        let interval = if has_pages {
            interval
        } else {
            interval.min(now.since(member.origin.at) / LOOKS_EACH_AGE)
        };
        let may_have_forked = |since: u64| member.used.saturating_sub(since) >= LEAST_FORK;
        // Pages change while it runs.
        let is_time = now.since(member.looked_at) >= interval
            && (!has_pages || may_have_forked(member.looked_at_use));
        let reads_frozen = is_left && member.read_at_use.is_none_or(may_have_forked);
        if !reads_frozen && !is_time {
            return;
        }
        let first = member.root(format);
        if reads_frozen {
            member.read_at_use = Some(member.used);
        }
        let changes = member
            .pages
            .look(memory, first, format, reads_frozen, |page| {
                left.add(memory, page, id, now);
            });
        if is_time {
            member.looked_at = now;
            member.looked_at_use = member.used;
            let pages = &mut member.pages;
            let interval = pages.search_interval(may_fork_again);
            let searches = !has_pages || now.since(member.searched_at) >= interval;
            if pages.look_for_more(memory, first, format, stack, searches) {
                member.searched_at = now;
            }
        }
        if changes.may_have_forked {
            // A child may have the page of a root that was looked at before.
            self.non_targets.clear();
            self.expect_copies(now);
            self.lookout.begin(now);
        }
    }

    /// Looks whether one of the members that `vcpu` does not run is gone, one after the other.
    pub(super) fn sweep(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        slot: usize,
        now: HostTicks,
    ) {
        let runs = self.vcpus[vcpu].member;
        let interval = self.tsc.get() / SWEEPS_PER_SECOND;
        let Some(target) = self.targets.get_mut(slot) else {
            return;
        };
        if now.since(target.swept_at) < interval {
            return;
        }
        target.swept_at = now;
        let members = target.members();
        let count = members.len();
        let mut following = (1..=count).map(|step| (target.swept + step) % count);
        let is_next = |&index: &usize| members[index].lives() && Some(members[index].id) != runs;
        let Some(next) = following.find(is_next) else {
            return;
        };
        let root = members[next].roots().next();
        target.swept = next;
        if let Some(root) = root {
            self.end_if_gone(memory, root, Loaded::Maybe, now);
        }
    }

    /// Takes note that `vcpu`, which ran the target in slot `ran` if any, had `before` and has another root
    /// now, which may be that of a new program of the process that ran.
    pub(super) fn note_exchange(
        &mut self,
        vcpu: usize,
        before: Root,
        ran: Option<usize>,
        observation: &Observation,
    ) {
        self.vcpus[vcpu].exchange = self.exchange_of(before, ran, observation);
    }

    fn exchange_of(
        &self,
        before: Root,
        ran: Option<usize>,
        observation: &Observation,
    ) -> Option<Exchange> {
        let (slot, member) = self.targets.member_of(before)?;
        let target = self.targets.get(slot)?;
        let is_it = target.order().follow.execs()
            && ran == Some(slot)
            && observation.loaded
            && !observation.context.user_mode
            // Who may be interrupted in the middle of a switch cannot be told from who goes on.
            && !observation.context.interruptible;
        let (root, _) = observation.root.filter(|_| is_it)?;
        if self.targets.slot_of(root).is_some() {
            return None;
        }
        Some(Exchange {
            slot,
            member,
            replaced: before,
            root,
            rsp: observation.context.rsp,
        })
    }

    /// Looks whether a root that `vcpu` has had since an exchange is that of a new program, and takes that
    /// in. Returns whether it did.
    pub(super) fn see_exchange(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        observation: &Observation,
        now: HostTicks,
    ) -> bool {
        let Some(exchange) = self.vcpus[vcpu].exchange else {
            return false;
        };
        let goes_on = if observation.halted {
            Some(false)
        } else {
            exchange.goes_on(observation.context, observation.thread)
        };
        let Some(goes_on) = goes_on else {
            return false;
        };
        self.vcpus[vcpu].exchange = None;
        // Another target may have its descendants as well: the first sign counts.
        let is_in = goes_on
            && self.targets.slot_of(exchange.root).is_none()
            && self
                .take_in(
                    memory,
                    exchange.slot,
                    Some(exchange.member),
                    exchange.root,
                    Sign::Exec,
                    now,
                )
                .is_some();
        if is_in {
            self.vcpus[vcpu].replaced = Some(exchange.replaced);
        }
        is_in
    }

    /// Looks whether the program is gone that became another one on `vcpu`, from which that one is being
    /// switched out. From then on its root may be somebody else's; a parent that has lent its address space out, by
    /// `vfork`, keeps it.
    pub(super) fn see_replaced(&mut self, memory: &impl GuestMemory, vcpu: usize, now: HostTicks) {
        if let Some(root) = self.vcpus[vcpu].replaced.take() {
            self.end_if_gone(memory, root, Loaded::Maybe, now);
        }
    }

    /// Forgets families of which nobody has lived for a while.
    pub(super) fn forget_gone(&mut self, now: HostTicks) {
        let most = self.tsc.get() * REMEMBERED_FOR;
        while let Some((named, end)) = self.targets.forget_gone(most, now) {
            self.notify(named, Subject::Ended(end), now);
        }
    }

    /// Has the operator told of something.
    pub(super) fn notify(&mut self, target: Root, subject: Subject, now: HostTicks) {
        self.notices.add(Notice {
            at: now,
            target,
            subject,
        });
    }
}

#[cfg(test)]
mod tests;
