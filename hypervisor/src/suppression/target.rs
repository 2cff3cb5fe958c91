//! The address spaces that are suppressed.
//!
//! A target is a family: the process that the operator named, and those that have come of it. They
//! have one order and one budget: what is promised of a target holds of all of them together.
//!
//! A member lives as long as its process. A root is just a page, and when the process is gone
//! the page is used again, so each member remembers a few of the tables that its user half
//! refers to, its *witnesses*. When none of them is there any more, the process is gone. An
//! operating system clears the user half while the process still is the current one, so
//! looking at the witnesses when a target is switched out (and in) is often enough. While a processor has the
//! root, whatever it refers to is the process's: it may move to where it likes.
//!
//! A family whose last member is gone is remembered for a while: its descendants may not have been seen
//! yet.

#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use devices::time::HostTicks;

use super::address_space::{Root, RootFormat};
use super::left_frames::LeftFrames;
use super::member::{MAX_ROOTS, Member, Origin, Sign, witnesses};
use super::notice::End;
use super::order::{Follow, Order};
use super::pages::Mapper;
use super::private_pages::PrivatePage;
use super::record::Record;
use crate::guest_memory::GuestMemory;

/// The most targets a VM can have.
pub(crate) const MAX_TARGETS: usize = 16;
/// The most living members that a family can have.
pub(crate) const MAX_MEMBERS: usize = 64;
/// The members that are remembered, living and gone.
const REMEMBERED_MEMBERS: usize = MAX_MEMBERS + 16;
/// The places that numbers of members tell apart: a number is a member's place, and how many there were before it
/// times this.
const PLACES: u32 = REMEMBERED_MEMBERS.next_power_of_two() as u32;

/// A suppressed family of processes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    format: RootFormat,
    /// The first root of the process that the operator named.
    named: Root,
    /// The members: the one that the operator named first, then the others, in no order, each at the place that its
    /// number tells. For all there is room from the beginning.
    members: Vec<Member>,
    living: usize,
    /// The number of members that there have been.
    joined: u32,
    pub(super) left: LeftFrames,
    /// The time at which the last member ended, and how.
    gone: Option<(HostTicks, End)>,
    /// The member that is to be looked at next, though it does not run.
    pub(super) swept: usize,
    /// The time at which one was looked at last.
    pub(super) swept_at: HostTicks,
    /// Whether the operator was told that there are as many members as there may be.
    pub(super) told_full: bool,
    pub(super) told_budget: bool,
    pub(super) told_no_effect: bool,
    /// The time since which its effect is measured, and the CPU time that it had had then.
    pub(super) effect_since: (HostTicks, u64),
    order: Order,
    /// The record of what it has had, and of what limits it.
    pub(super) record: Record,
}

/// The reason why an address space cannot be made a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetError {
    /// A root whose user half is empty or not in RAM: it is no process.
    NoUserSpace(Root),
    /// A target too many: there are [`MAX_TARGETS`] already.
    TooMany,
    /// A member too many of the family of this name: there are [`MAX_MEMBERS`] already.
    FamilyFull(Root),
    /// A lack of memory for the target's record.
    NoMemory,
}

impl core::fmt::Display for TargetError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoUserSpace(root) => write!(
                f,
                "{root} has no user space: not the CR3 of a process (`ps` lists those seen)"
            ),
            Self::TooMany => write!(
                f,
                "there are {MAX_TARGETS} targets already: `release` one first"
            ),
            Self::FamilyFull(named) => write!(
                f,
                "the family of target {named} has {MAX_MEMBERS} members already"
            ),
            Self::NoMemory => {
                f.write_str("no memory for a target: a VM with less would leave some")
            }
        }
    }
}

impl core::error::Error for TargetError {}

/// A member that has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Departure {
    /// The slot of its family.
    pub(super) slot: usize,
    /// The number of the member.
    pub(super) member: u32,
    root: Root,
    roots: [Option<Root>; MAX_ROOTS],
    pub(super) end: End,
}

impl Departure {
    /// Returns its first root.
    pub(super) const fn root(&self) -> Root {
        self.root
    }

    /// Returns all its roots.
    pub(super) fn roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.roots.iter().flatten().copied()
    }
}

/// Returns those of `seen` that no member has, of which `by_root` are all.
fn strangers<'a>(
    by_root: &'a [(Root, MemberId)],
    seen: &'a [Root],
) -> impl Iterator<Item = Root> + 'a {
    let is_known = |root| {
        by_root
            .binary_search_by_key(root, |&(root, _)| root)
            .is_ok()
    };
    seen.iter().filter(move |root| !is_known(root)).copied()
}

/// Returns the place of the member of number `id` in its family.
const fn place_of(id: u32) -> usize {
    (id % PLACES) as usize
}

impl Target {
    /// Returns what its roots are.
    #[must_use]
    pub(crate) const fn format(&self) -> RootFormat {
        self.format
    }

    /// Returns the root that the operator named.
    #[must_use]
    pub(crate) const fn root(&self) -> Root {
        self.named
    }

    /// Returns the roots known so far of all members that live.
    pub(crate) fn roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.living().flat_map(Member::roots)
    }

    /// Returns the roots of the process that the operator named, that one first.
    pub(crate) fn named_roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.members.iter().take(1).flat_map(Member::roots)
    }

    /// Returns all members that are remembered, the one that the operator named first.
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the members that live.
    pub(super) fn living(&self) -> impl Iterator<Item = &Member> + '_ {
        self.members.iter().filter(|member| member.lives())
    }

    /// Returns how many they are.
    pub(super) const fn living_count(&self) -> usize {
        self.living
    }

    /// Returns the member of this number.
    pub(super) fn member(&self, id: u32) -> Option<&Member> {
        self.members
            .get(place_of(id))
            .filter(|member| member.id == id)
    }

    fn member_mut(&mut self, id: u32) -> Option<&mut Member> {
        self.members
            .get_mut(place_of(id))
            .filter(|member| member.id == id)
    }

    /// Returns the member of this number, to be changed, and the frames that members have left.
    pub(super) fn member_and_left(&mut self, id: u32) -> Option<(&mut Member, &mut LeftFrames)> {
        let member = self.members.get_mut(place_of(id))?;
        (member.id == id).then_some((member, &mut self.left))
    }

    /// Lets `change` change the record, and books the CPU time that it charges to member `id` as well.
    pub(super) fn with_record<R>(
        &mut self,
        id: Option<u32>,
        change: impl FnOnce(&mut Record) -> R,
    ) -> R {
        let before = self.record.used;
        let result = change(&mut self.record);
        let ticks = self.record.used.saturating_sub(before);
        if ticks > 0
            && let Some(id) = id
            && let Some(member) = self.member_mut(id)
        {
            member.used = member.used.saturating_add(ticks);
        }
        result
    }

    /// Returns whether there is anything by which a copy of one of its processes would be known.
    pub(super) fn has_signs(&self) -> bool {
        let mut living = self.living();
        self.left.iter().next().is_some() || living.any(|it| it.pages.iter().next().is_some())
    }

    /// Forgets the page at `address` as a sign: it is shared on purpose.
    pub(super) fn forget_page(&mut self, address: u64) {
        self.left.forget(address);
        for member in &mut self.members {
            member.pages.forget(address);
        }
    }

    /// Forgets the pages of member `id`, which it can write, that processes of `others` have as well. The roots of
    /// one process best follow each other.
    pub(super) fn forget_shared_pages(
        &mut self,
        memory: &impl GuestMemory,
        id: u32,
        others: impl Iterator<Item = Root>,
    ) {
        let format = self.format;
        let mut last_table = 0;
        for other in others {
            let Some(member) = self.member(id) else {
                return;
            };
            let table = member.corresponding_table(memory, other, format);
            if table != 0 && table == last_table {
                continue;
            }
            last_table = table;
            let mut there = Mapper::new(memory, other, format);
            let mut is_shared = |page: &PrivatePage| {
                let there = there.mapping(page.address).filter(|_| !page.is_frozen);
                there.is_some_and(|there| there.frame == page.frame)
            };
            while let Some(page) = self
                .member(id)
                .and_then(|member| member.pages.iter().find(&mut is_shared))
            {
                self.forget_page(page.address);
            }
        }
    }

    /// Returns how it is suppressed.
    #[must_use]
    pub(crate) const fn order(&self) -> &Order {
        &self.order
    }

    /// Takes `root` in if it is another root of one of its processes, and returns the number of that one.
    fn adopt(&mut self, memory: &impl GuestMemory, root: Root) -> Option<u32> {
        let format = self.format;
        let mut members = self.members.iter_mut();
        members.find_map(|it| it.adopt(memory, root, format).then_some(it.id))
    }

    /// Makes the process of `root` a member; `None` if it has no user space, or there are too many.
    fn join(&mut self, memory: &impl GuestMemory, root: Root, origin: Origin) -> Option<u32> {
        let witnesses = witnesses(memory, root, self.format)?;
        if self.living >= MAX_MEMBERS {
            return None;
        }
        let place = if self.members.len() < REMEMBERED_MEMBERS {
            self.members.len()
        } else {
            let gone = self.members.iter().skip(1).filter(|it| !it.lives());
            place_of(gone.map(|it| it.id).min()?)
        };
        let id = self.joined.wrapping_mul(PLACES) | place as u32;
        self.joined = self.joined.wrapping_add(1);
        let member = Member::new(id, root, witnesses, origin);
        match self.members.get_mut(place) {
            Some(gone) => *gone = member,
            None => self.members.push(member),
        }
        self.living += 1;
        self.gone = None;
        Some(id)
    }

    /// Gathers what there is to be known of member `id`, which is new: its other roots, among `strangers`, and some
    /// pages: where members of the same program have theirs, or else by a search. Returns whether there was one:
    /// what its relatives share on purpose is known.
    fn gather(
        &mut self,
        memory: &impl GuestMemory,
        id: u32,
        strangers: impl Iterator<Item = Root>,
    ) -> bool {
        let format = self.format;
        let follow = self.order.follow;
        let others = self.members.iter().filter(|it| it.id != id && it.lives());
        let relative = others.map(|it| &it.pages).find(|pages| !pages.is_empty());
        let relative = relative.copied();
        let Some((member, _)) = self.member_and_left(id) else {
            return false;
        };
        for other in strangers {
            member.adopt(memory, other, format);
        }
        if follow == Follow::None {
            return false;
        }
        let root = member.root(format);
        if let Some(pages) = relative {
            member.pages.inherit(&pages, memory, root, format);
        }
        let searches = member.pages.is_empty();
        if searches {
            member.pages.gather(memory, root, format);
        }
        searches
    }

    /// Takes note of the end of member `id`, which is found at `now`: its pages may be a descendant's.
    /// `is_loaded`: it had run until then.
    fn end(
        &mut self,
        memory: &impl GuestMemory,
        id: u32,
        end: End,
        is_loaded: bool,
        now: HostTicks,
    ) {
        let Some((member, left)) = self.member_and_left(id) else {
            return;
        };
        if !member.lives() {
            return;
        }
        member.ended = Some(end);
        for page in member.pages.iter() {
            if is_loaded && !page.is_frozen {
                left.add(memory, page, id, now);
            } else {
                left.add_late(page, id, now);
            }
        }
        self.living -= 1;
        if self.living == 0 {
            self.gone = Some((now, end));
        }
    }
}

/// The targets of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    /// The slots of the targets: on the heap, as VMs are made on the stack.
    slots: [Option<Box<Target>>; MAX_TARGETS],
    /// The number of those with a living member.
    count: usize,
    /// The number of the others.
    remembered: usize,
    /// The members that live, by their roots. For all there is room from the time at which they were named.
    by_root: Vec<(Root, MemberId)>,
    /// A number that differs from what it was if roots have come or gone.
    generation: u32,
}

/// A member: the slot of its target, and its number there.
pub(super) type MemberId = (usize, u32);

impl Default for Targets {
    fn default() -> Self {
        Self::new()
    }
}

impl Targets {
    /// Makes a table without targets.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const { None }; MAX_TARGETS],
            count: 0,
            remembered: 0,
            by_root: Vec::new(),
            generation: 0,
        }
    }

    /// Returns whether none lives.
    #[must_use]
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns whether none lives, and none is remembered.
    #[must_use]
    pub(super) const fn are_forgotten(&self) -> bool {
        self.count == 0 && self.remembered == 0
    }

    /// Returns a number that differs from what it was if roots have come or gone.
    #[must_use]
    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the targets of which somebody lives, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Target> + '_ {
        let targets = self.slots.iter().flatten().map(Box::as_ref);
        targets.filter(|target| target.living > 0)
    }

    /// Takes note that targets have come or gone.
    fn changed(&mut self) {
        self.count_targets();
        self.by_root.clear();
        for (slot, target) in self.slots.iter().enumerate() {
            let members = target.iter().flat_map(|target| target.living());
            for member in members {
                let named = member.roots().map(|root| (root, (slot, member.id)));
                self.by_root.extend(named);
            }
        }
        self.by_root.sort_unstable();
    }

    /// Takes note that this member has come or gone, or has got another root.
    fn member_changed(&mut self, (slot, id): MemberId) {
        self.count_targets();
        self.by_root.retain(|&(_, member)| member != (slot, id));
        let member = self.slots[slot].as_ref().and_then(|it| it.member(id));
        for root in member
            .filter(|it| it.lives())
            .iter()
            .flat_map(|it| it.roots())
        {
            let entry = (root, (slot, id));
            let place = self.by_root.partition_point(|known| *known < entry);
            self.by_root.insert(place, entry);
        }
    }

    /// Takes note of how many there are, now that roots have come or gone.
    fn count_targets(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        let living = |slot: &&Option<Box<Target>>| slot.as_ref().is_some_and(|it| it.living > 0);
        self.count = self.slots.iter().filter(living).count();
        self.remembered = self.slots.iter().flatten().count() - self.count;
    }

    /// Makes the address space of `root` a target with a fresh `record`, or changes its order if it
    /// is one. `seen` are the roots seen so far, among which its aliases are looked for. Returns its
    /// slot.
    ///
    /// # Errors
    /// If it has no user space, if there are too many targets, or no memory. Then nothing has changed.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of its own")]
    pub(super) fn add(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        order: Order,
        record: Record,
        seen: &[Root],
        now: HostTicks,
    ) -> Result<usize, TargetError> {
        let known = self.named_slot(root);
        if known.is_none() && witnesses(memory, root, format).is_none() {
            return Err(TargetError::NoUserSpace(root));
        }
        if let Some(slot) = known {
            if let Some(target) = self.get_mut(slot) {
                target.order = order;
                target.told_budget = false;
                target.told_no_effect = false;
                target.effect_since = (now, target.record.used);
            }
            return Ok(slot);
        }
        // One of which nobody lives makes way.
        let is_free = |slot: &Option<Box<Target>>| slot.is_none();
        let is_gone = |slot: &Option<Box<Target>>| slot.as_ref().is_some_and(|it| it.living == 0);
        let slot = self.slots.iter().position(is_free);
        let slot = slot.or_else(|| self.slots.iter().position(is_gone));
        let slot = slot.ok_or(TargetError::TooMany)?;
        let mut members = Vec::new();
        members
            .try_reserve_exact(REMEMBERED_MEMBERS)
            .map_err(|_| TargetError::NoMemory)?;
        self.by_root
            .try_reserve((self.count + self.remembered + 1) * MAX_MEMBERS * MAX_ROOTS)
            .map_err(|_| TargetError::NoMemory)?;
        let target = self.slots[slot].insert(Box::new(Target {
            format,
            named: root,
            members,
            living: 0,
            joined: 0,
            left: LeftFrames::NONE,
            gone: None,
            swept: 0,
            swept_at: HostTicks(0),
            told_full: false,
            told_budget: false,
            told_no_effect: false,
            effect_since: (now, 0),
            order,
            record,
        }));
        let origin = Origin {
            sign: Sign::Named,
            parent: None,
            at: now,
        };
        let id = target.join(memory, root, origin);
        self.changed();
        if let Some(id) = id {
            self.gather(memory, (slot, id), seen);
        }
        Ok(slot)
    }

    /// Returns the slot of the target that was named by `root`, if any, be it one of which nobody lives.
    #[must_use]
    pub(crate) fn slot_named(&self, root: Root) -> Option<usize> {
        let is_named =
            |slot: &Option<Box<Target>>| slot.as_ref().is_some_and(|it| it.named == root);
        self.slots.iter().position(is_named)
    }

    /// Returns the target in `slot`.
    #[must_use]
    pub(crate) fn get(&self, slot: usize) -> Option<&Target> {
        self.slots.get(slot)?.as_deref()
    }

    /// Returns the target in `slot`, to be changed.
    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Target> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    /// Returns all targets, with those of which nobody lives, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Target> + '_ {
        self.slots.iter_mut().flatten().map(Box::as_mut)
    }

    /// Returns the slot of the target that has `root`, if any.
    #[must_use]
    pub(crate) fn slot_of(&self, root: Root) -> Option<usize> {
        self.member_of(root).map(|(slot, _)| slot)
    }

    /// Returns the member that has `root`, if any: for each switch of address spaces.
    #[must_use]
    pub(super) fn member_of(&self, root: Root) -> Option<MemberId> {
        let place = self.by_root.binary_search_by_key(&root, |&(root, _)| root);
        place.ok().map(|place| self.by_root[place].1)
    }

    /// Returns the slot of the target that the operator means by `root`: one that has it, or was named by
    /// it. The process that was named may be gone, and its descendants live, or are not known yet: who hops
    /// from process to process can be named at any time.
    fn named_slot(&self, root: Root) -> Option<usize> {
        let slot = self.slot_of(root);
        slot.or_else(|| self.slot_named(root))
    }

    /// Returns the target that the operator means by `root`, if any.
    #[must_use]
    pub(crate) fn named(&self, root: Root) -> Option<&Target> {
        self.get(self.named_slot(root)?)
    }

    /// Returns the target that has `root`, if any.
    #[must_use]
    pub(crate) fn of(&self, root: Root) -> Option<&Target> {
        self.get(self.slot_of(root)?)
    }

    /// Looks at a root seen for the first time: if it is an alias of a target, it becomes one
    /// of its roots. Tells whether it did.
    pub(crate) fn learn(&mut self, memory: &impl GuestMemory, root: Root) -> bool {
        if self.slot_of(root).is_some() {
            return true;
        }
        let mut slots = self.slots.iter_mut().enumerate();
        let member = slots.find_map(|(slot, target)| {
            let id = target.as_mut()?.adopt(memory, root)?;
            Some((slot, id))
        });
        if let Some(member) = member {
            self.member_changed(member);
        }
        member.is_some()
    }

    /// Makes the process of `root` a member of the target in `slot`, and returns its number; `None` if it
    /// has no user space, or the family has as many members as it may have.
    pub(super) fn join(
        &mut self,
        memory: &impl GuestMemory,
        slot: usize,
        root: Root,
        origin: Origin,
    ) -> Option<u32> {
        let id = self.get_mut(slot)?.join(memory, root, origin)?;
        self.member_changed((slot, id));
        Some(id)
    }

    /// Gathers what there is to be known of a new member: its other roots, among those that were `seen` up to now, and
    /// some of its pages, without those that other processes of `seen` have as well: they are shared on purpose.
    pub(super) fn gather(&mut self, memory: &impl GuestMemory, member: MemberId, seen: &[Root]) {
        let (slot, id) = member;
        let Some(target) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let searched = target.gather(memory, id, strangers(&self.by_root, seen));
        self.member_changed(member);
        if searched && let Some(target) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            target.forget_shared_pages(memory, id, strangers(&self.by_root, seen));
        }
    }

    /// Takes note that the member that has `root` is gone, if its process is, and returns it then.
    /// `is_loaded`: a processor has the root, or had until now.
    pub(super) fn drop_if_gone(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        is_loaded: bool,
        now: HostTicks,
    ) -> Option<Departure> {
        let (slot, member) = self.member_of(root)?;
        let target = self.get_mut(slot)?;
        let format = target.format;
        let (it, _) = target.member_and_left(member)?;
        let end = if is_loaded {
            it.look_while_loaded(memory, format)?
        } else {
            it.look_after_a_while(memory, format)?
        };
        let root = it.root(format);
        let mut roots = [None; MAX_ROOTS];
        for (place, root) in roots.iter_mut().zip(it.roots()) {
            *place = Some(root);
        }
        target.end(memory, member, end, is_loaded, now);
        // Who is gone becomes no new program: only a copy may still be found.
        if target.living == 0 && !target.order.follow.forks() {
            self.slots[slot] = None;
        }
        self.member_changed((slot, member));
        Some(Departure {
            slot,
            member,
            root,
            roots,
            end,
        })
    }

    /// Forgets a family of which nobody has lived for `most` ticks, and returns the root that the
    /// operator named, and how the last member ended.
    pub(super) fn forget_gone(&mut self, most: u64, now: HostTicks) -> Option<(Root, End)> {
        if self.remembered == 0 {
            return None;
        }
        let mut slots = self.slots.iter().enumerate();
        let (slot, gone) = slots.find_map(|(slot, target)| {
            let target = target.as_ref()?;
            let (since, end) = target.gone.filter(|_| target.living == 0)?;
            (now.since(since) > most).then_some((slot, (target.named, end)))
        })?;
        self.slots[slot] = None;
        self.changed();
        Some(gone)
    }

    /// Ends the suppression of the target that has `root`, or had it when it was named, and returns it.
    pub(crate) fn release(&mut self, root: Root) -> Option<Target> {
        let slot = self.named_slot(root)?;
        let target = self.slots[slot].take().map(|target| *target);
        self.changed();
        target
    }

    /// Ends all suppression, and returns how many targets there were.
    pub(crate) fn release_all(&mut self) -> usize {
        let count = self.count;
        *self = Self {
            generation: self.generation.wrapping_add(1),
            ..Self::new()
        };
        count
    }
}

#[cfg(test)]
mod tests {
    use devices::time::Hertz;
    use proptest::prelude::*;

    use super::super::order::Defaults;
    use super::super::{Factor, Factors};
    use super::*;
    use crate::test_ram::TestRam;

    const LONG: RootFormat = RootFormat::Long;
    const NOW: HostTicks = HostTicks(0);

    fn root(cr3: u64) -> Root {
        Root::new(cr3, LONG)
    }

    fn order(n: u32) -> Order {
        let factors = Factors::both(Factor::new(n).unwrap());
        Order::new(factors, Defaults::default())
    }

    fn record() -> Record {
        Record::new(&order(2), Hertz::new(1_000_000_000), HostTicks(0))
    }

    fn add(targets: &mut Targets, ram: &TestRam, root: Root, n: u32) -> Result<(), TargetError> {
        targets
            .add(ram, root, LONG, order(n), record(), &[], NOW)
            .map(|_| ())
    }

    /// A process whose root at `root` refers to these tables.
    fn process(ram: &TestRam, root: u64, tables: &[(u64, u64)]) {
        for index in 0..256 {
            ram.write_u64(root + index * 8, 0);
        }
        for (index, table) in tables {
            ram.write_u64(root + index * 8, table | 0x67);
        }
    }

    /// Targets with one, at 0x1000, that refers to 0xa000 and 0xb000.
    fn suppressed() -> (TestRam, Targets) {
        let ram = TestRam::new(0x10000);
        process(&ram, 0x1000, &[(0, 0xa000), (255, 0xb000)]);
        let mut targets = Targets::new();
        add(&mut targets, &ram, root(0x1000), 2).unwrap();
        (ram, targets)
    }

    #[test]
    fn a_target_is_found_by_any_of_its_roots() {
        let (ram, mut targets) = suppressed();
        assert!(targets.of(root(0x1000)).is_some());
        assert!(targets.of(root(0x2000)).is_none());
        process(&ram, 0x2000, &[(0, 0xa000), (255, 0xb000)]);
        process(&ram, 0x3000, &[(0, 0xc000)]);
        assert!(targets.learn(&ram, root(0x2000)), "same user half");
        assert!(!targets.learn(&ram, root(0x3000)), "another process");
        assert_eq!(targets.of(root(0x2000)).unwrap().root(), root(0x1000));
        assert!(targets.release(root(0x2000)).is_some());
        assert!(targets.is_empty());
        assert!(targets.of(root(0x1000)).is_none());
    }

    #[test]
    fn aliases_are_found_among_the_roots_seen_before() {
        let ram = TestRam::new(0x10000);
        for at in [0x1000, 0x2000] {
            process(&ram, at, &[(0, 0xa000)]);
        }
        process(&ram, 0x3000, &[(0, 0xb000)]);
        let mut targets = Targets::new();
        let seen = [0x1000, 0x2000, 0x3000].map(root);
        targets
            .add(&ram, root(0x2000), LONG, order(2), record(), &seen, NOW)
            .unwrap();
        let roots: std::vec::Vec<_> = targets.iter().flat_map(Target::roots).collect();
        assert_eq!(roots, [root(0x2000), root(0x1000)]);
    }

    #[test]
    fn suppressing_again_changes_the_order() {
        let (ram, mut targets) = suppressed();
        add(&mut targets, &ram, root(0x1000), 9).unwrap();
        assert_eq!(targets.iter().count(), 1);
        assert_eq!(targets.of(root(0x1000)).unwrap().order(), &order(9));
    }

    #[test]
    fn a_living_process_may_change_its_address_space() {
        let (ram, mut targets) = suppressed();
        let at = root(0x1000);
        process(&ram, 0x1000, &[(0, 0xa000), (100, 0xc000), (255, 0xb000)]);
        assert!(targets.drop_if_gone(&ram, at, false, NOW).is_none());
        process(&ram, 0x1000, &[(100, 0xc000), (255, 0xb000)]);
        assert!(
            targets.drop_if_gone(&ram, at, false, NOW).is_none(),
            "one witness left"
        );
        process(&ram, 0x1000, &[(100, 0xc000)]);
        assert!(
            targets.drop_if_gone(&ram, at, false, NOW).is_none(),
            "the new entry has become a witness"
        );
    }

    #[test]
    fn a_process_that_ends_takes_its_suppression_along() {
        let (ram, mut targets) = suppressed();
        process(&ram, 0x1000, &[]);
        let gone = targets.drop_if_gone(&ram, root(0x1000), false, NOW);
        assert_eq!(gone.map(|it| it.root()), Some(root(0x1000)));
        assert!(targets.is_empty());
    }

    #[test]
    fn a_recycled_page_is_another_process() {
        let (ram, mut targets) = suppressed();
        process(&ram, 0x1000, &[(0, 0xb000), (255, 0xa000)]);
        assert!(
            targets
                .drop_if_gone(&ram, root(0x1000), false, NOW)
                .is_some()
        );
    }

    /// What may become of a process, of which there are a few, each with two roots.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Named,
        Joins,
        OtherRootSeen,
        Ends,
        Released,
    }

    proptest! {
        #[test]
        fn whose_a_root_is_is_known_whatever_comes_and_goes(
            steps in prop::collection::vec((0..8_u64, prop::sample::select(std::vec![
                Step::Named, Step::Joins, Step::Joins, Step::OtherRootSeen, Step::Ends, Step::Released,
            ])), 1..60),
        ) {
            let ram = TestRam::new(0x20000);
            let roots = |number: u64| [2 * number, 2 * number + 1].map(|page| root(page * 0x1000));
            let begin = |number: u64, tables: &[(u64, u64)]| {
                for page in [2 * number, 2 * number + 1] {
                    process(&ram, page * 0x1000, tables);
                }
            };
            let mut targets = Targets::new();
            for (number, step) in steps {
                let [first, second] = roots(number);
                begin(number, &[(0, 0x100_0000 + number * 0x1000)]);
                match step {
                    Step::Named => add(&mut targets, &ram, first, 2).unwrap(),
                    Step::Joins => {
                        let family = (0..8).find_map(|other| targets.slot_of(roots(other)[0]));
                        if let Some(slot) = family && targets.slot_of(first).is_none() {
                            let origin = Origin { sign: Sign::Rule, parent: None, at: NOW };
                            let id = targets.join(&ram, slot, first, origin).unwrap();
                            targets.gather(&ram, (slot, id), &[first, second]);
                        }
                    }
                    Step::OtherRootSeen => {
                        targets.learn(&ram, second);
                    }
                    Step::Ends => {
                        begin(number, &[]);
                        targets.drop_if_gone(&ram, first, true, NOW);
                    }
                    Step::Released => {
                        targets.release(first);
                    }
                }
                let living = targets.slots.iter().flatten();
                let living: usize = living.map(|target| target.roots().count()).sum();
                prop_assert_eq!(targets.by_root.len(), living);
                for (slot, target) in targets.slots.iter().enumerate() {
                    for member in target.iter().flat_map(|it| it.living()) {
                        for root in member.roots() {
                            prop_assert_eq!(targets.member_of(root), Some((slot, member.id)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_process_is_refused() {
        let ram = TestRam::new(0x10000);
        let mut targets = Targets::new();
        for cr3 in [0x1000, 0xfee0_0000] {
            let result = add(&mut targets, &ram, root(cr3), 2);
            assert_eq!(result, Err(TargetError::NoUserSpace(root(cr3))));
        }
        assert!(targets.is_empty());
    }

    #[test]
    fn there_is_a_last_target() {
        let ram = TestRam::new(0x20000);
        let mut targets = Targets::new();
        for n in 0..=MAX_TARGETS as u64 {
            process(&ram, n * 0x1000, &[(0, 0x100_0000 + n * 0x1000)]);
            let result = add(&mut targets, &ram, root(n * 0x1000), 2);
            let expected = if n < MAX_TARGETS as u64 {
                Ok(())
            } else {
                Err(TargetError::TooMany)
            };
            assert_eq!(result, expected);
        }
        assert_eq!(targets.release_all(), MAX_TARGETS);
        assert!(targets.is_empty());
    }
}
