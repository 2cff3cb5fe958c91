//! The address spaces that are suppressed.
//!
//! A target lives as long as its process. A root is just a page, and when the process is gone
//! the page is used again, so each target remembers a few of the tables that its user half
//! refers to, its *witnesses*. When none of them is there any more, the process is gone. An
//! operating system clears the user half while the process still is the current one, so
//! looking at the witnesses when a target is switched out (and in) is often enough.

#![forbid(unsafe_code)]

use alloc::boxed::Box;

use super::address_space::{Root, RootFormat, referred_table, same_process, user_tables};
use super::order::Order;
use super::record::Record;
use crate::guest_memory::GuestMemory;

/// The most targets a VM can have.
pub(crate) const MAX_TARGETS: usize = 16;
/// The most roots that one process has.
const MAX_ROOTS: usize = 4;
const WITNESSES: usize = 4;

/// An entry of a root's user half, and the table it refers to. Table zero: none.
type Witness = (usize, u64);

/// A suppressed process.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    format: RootFormat,
    /// Its roots, the one that the operator named first.
    roots: [Option<Root>; MAX_ROOTS],
    witnesses: [Witness; WITNESSES],
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
        }
    }
}

impl core::error::Error for TargetError {}

fn witnesses(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
) -> Option<[Witness; WITNESSES]> {
    let mut witnesses = [(0, 0); WITNESSES];
    let mut tables = user_tables(memory, root, format);
    witnesses[0] = tables.next()?;
    for (witness, table) in witnesses[1..].iter_mut().zip(tables) {
        *witness = table;
    }
    Some(witnesses)
}

impl Target {
    /// Returns what its roots are.
    #[must_use]
    pub(crate) const fn format(&self) -> RootFormat {
        self.format
    }

    /// Returns the root that the operator named.
    #[must_use]
    pub(crate) fn root(&self) -> Root {
        // A target is made with its first root, and never loses it.
        self.roots[0].unwrap_or(Root::new(0, self.format))
    }

    /// Returns all its roots known so far.
    pub(crate) fn roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.roots.iter().flatten().copied()
    }

    /// Returns how it is suppressed.
    #[must_use]
    pub(crate) const fn order(&self) -> &Order {
        &self.order
    }

    fn has(&self, root: Root) -> bool {
        self.roots.contains(&Some(root))
    }

    /// Takes `root` in if it is another root of this process.
    fn adopt(&mut self, memory: &impl GuestMemory, root: Root) -> bool {
        if !same_process(memory, self.root(), root, self.format) {
            return false;
        }
        if let Some(free) = self.roots.iter_mut().find(|known| known.is_none()) {
            *free = Some(root);
        }
        true
    }

    /// Returns whether the process is still there; keeps the witnesses up to date.
    fn is_alive(&mut self, memory: &impl GuestMemory) -> bool {
        let (root, format) = (self.root(), self.format);
        let stands = |&(index, table): &Witness| {
            table != 0 && referred_table(memory, root, format, index) == table
        };
        let missing = self
            .witnesses
            .iter()
            .filter(|it| it.1 != 0 && !stands(it))
            .count();
        if missing == 0 {
            return true;
        }
        if !self.witnesses.iter().any(stands) {
            return false;
        }
        // The process has let go of a part of its address space: look for other witnesses.
        match witnesses(memory, root, format) {
            Some(current) => {
                self.witnesses = current;
                true
            }
            None => false,
        }
    }
}

/// The targets of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    /// The slots of the targets: on the heap, as VMs are made on the stack.
    slots: [Option<Box<Target>>; MAX_TARGETS],
    count: usize,
    /// A number that differs from what it was if roots have come or gone.
    generation: u32,
}

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
            generation: 0,
        }
    }

    /// Returns whether there is none.
    #[must_use]
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns a number that differs from what it was if roots have come or gone.
    #[must_use]
    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the targets, in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Target> + '_ {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    /// Makes the address space of `root` a target with a fresh `record`, or changes its order if it
    /// is one. `seen` are the roots seen so far, among which its aliases are looked for. Returns its
    /// slot.
    ///
    /// # Errors
    /// If it has no user space, or if there are too many targets. Then nothing has changed.
    pub(super) fn add(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        order: Order,
        record: Record,
        seen: impl Iterator<Item = Root>,
    ) -> Result<usize, TargetError> {
        let witnesses = witnesses(memory, root, format).ok_or(TargetError::NoUserSpace(root))?;
        if let Some(slot) = self.slot_of(root) {
            if let Some(target) = self.get_mut(slot) {
                target.order = order;
            }
            return Ok(slot);
        }
        let (slot, free) = self
            .slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| slot.is_none())
            .ok_or(TargetError::TooMany)?;
        let mut roots = [None; MAX_ROOTS];
        roots[0] = Some(root);
        let target = free.insert(Box::new(Target {
            format,
            roots,
            witnesses,
            order,
            record,
        }));
        for other in seen {
            if !target.has(other) {
                target.adopt(memory, other);
            }
        }
        self.count += 1;
        self.generation = self.generation.wrapping_add(1);
        Ok(slot)
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

    /// Returns all targets, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Target> + '_ {
        self.slots.iter_mut().flatten().map(Box::as_mut)
    }

    /// Returns the slot of the target that has `root`, if any: for each switch of address spaces.
    #[must_use]
    pub(crate) fn slot_of(&self, root: Root) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        let has = |slot: &Option<Box<Target>>| slot.as_ref().is_some_and(|target| target.has(root));
        self.slots.iter().position(has)
    }

    /// Returns the target that has `root`, if any.
    #[must_use]
    pub(crate) fn of(&self, root: Root) -> Option<&Target> {
        self.get(self.slot_of(root)?)
    }

    /// Looks at a root seen for the first time: if it is an alias of a target, it becomes one
    /// of its roots. Tells whether it did.
    pub(crate) fn learn(&mut self, memory: &impl GuestMemory, root: Root) -> bool {
        let mut targets = self.slots.iter_mut().flatten();
        if targets.any(|target| target.has(root)) {
            return true;
        }
        let mut targets = self.slots.iter_mut().flatten();
        let is_new = targets.any(|target| target.adopt(memory, root));
        if is_new {
            self.generation = self.generation.wrapping_add(1);
        }
        is_new
    }

    /// Drops the target that has `root` if its process is gone, and returns it then. To be
    /// called when it is switched in and out.
    pub(crate) fn drop_if_gone(&mut self, memory: &impl GuestMemory, root: Root) -> Option<Target> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|target| target.has(root)))?;
        if slot.as_mut().is_none_or(|target| target.is_alive(memory)) {
            return None;
        }
        self.count -= 1;
        self.generation = self.generation.wrapping_add(1);
        slot.take().map(|target| *target)
    }

    /// Ends the suppression of the target that has `root`, and returns it.
    pub(crate) fn release(&mut self, root: Root) -> Option<Target> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|target| target.has(root)))?;
        self.count -= 1;
        self.generation = self.generation.wrapping_add(1);
        slot.take().map(|target| *target)
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
    use devices::time::{Hertz, HostTicks};

    use super::super::order::Defaults;
    use super::super::{Factor, Factors};
    use super::*;
    use crate::test_ram::TestRam;

    const LONG: RootFormat = RootFormat::Long;

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
        let seen = core::iter::empty();
        targets
            .add(ram, root, LONG, order(n), record(), seen)
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
            .add(
                &ram,
                root(0x2000),
                LONG,
                order(2),
                record(),
                seen.into_iter(),
            )
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
        assert!(targets.drop_if_gone(&ram, at).is_none());
        process(&ram, 0x1000, &[(100, 0xc000), (255, 0xb000)]);
        assert!(targets.drop_if_gone(&ram, at).is_none(), "one witness left");
        process(&ram, 0x1000, &[(100, 0xc000)]);
        assert!(
            targets.drop_if_gone(&ram, at).is_none(),
            "the new entry has become a witness"
        );
    }

    #[test]
    fn a_process_that_ends_takes_its_suppression_along() {
        let (ram, mut targets) = suppressed();
        process(&ram, 0x1000, &[]);
        let gone = targets.drop_if_gone(&ram, root(0x1000));
        assert_eq!(gone.map(|it| it.root()), Some(root(0x1000)));
        assert!(targets.is_empty());
    }

    #[test]
    fn a_recycled_page_is_another_process() {
        let (ram, mut targets) = suppressed();
        process(&ram, 0x1000, &[(0, 0xb000), (255, 0xa000)]);
        assert!(targets.drop_if_gone(&ram, root(0x1000)).is_some());
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
