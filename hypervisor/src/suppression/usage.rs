//! Which address spaces run, and how much: the process list that costs nothing, taken from
//! CR3 at VM exits that happen anyway.
//!
//! Each VCPU keeps a [`Usage`] of its own; [`SeenRoots`] puts them together for display, and
//! [`Grouping`] the roots of one process into one line. Both take small steps: there may be thousands of roots, and
//! whoever shares a CPU with the operator is not to wait for all of them.

use alloc::collections::btree_map::{self, BTreeMap};
use alloc::vec::{self, Vec};
use core::cmp::Reverse;

use devices::time::HostTicks;

use super::address_space::Root;

/// The address spaces that a VCPU remembers.
const CAPACITY: usize = 256;
/// The number of entries, from its place on, in which a root is looked for.
const PROBES: usize = 8;
/// The changes of roots that are remembered in their order.
const CHANGES: usize = 32;

/// One address space on one VCPU.
#[derive(Clone, Copy, Debug)]
struct Entry {
    root: Root,
    /// Guest-mode ticks ever.
    total: u64,
    /// Guest-mode ticks in the current window, and in the one before it.
    current: u64,
    previous: u64,
    /// The number of the current window.
    window: u64,
    last_seen: HostTicks,
}

impl Entry {
    /// Moves on to `window`: a window without a record is one of zero ticks.
    fn advance(&mut self, window: u64) {
        if self.window == window {
            return;
        }
        self.previous = if self.window + 1 == window {
            self.current
        } else {
            0
        };
        self.current = 0;
        self.window = window;
    }
}

/// The address spaces seen on one VCPU.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    entries: [Option<Entry>; CAPACITY],
    /// The index of the root that was recorded last: mostly it is also the next.
    latest: usize,
    /// The number of times that another root was recorded than before.
    changes: u64,
    /// The indices of the roots recorded at the latest of these.
    changed_to: [u16; CHANGES],
    window: u64,
    /// The last point of the current window.
    window_end: HostTicks,
    /// The length of the windows over which shares are taken, in host ticks.
    window_length: u64,
}

impl Usage {
    /// Makes an empty table at `now`. Shares will be over the last one to two windows of
    /// `window_length` host ticks (at least 1).
    #[must_use]
    pub(crate) const fn new(now: HostTicks, window_length: u64) -> Self {
        Self {
            entries: [None; CAPACITY],
            latest: 0,
            changes: 0,
            changed_to: [0; CHANGES],
            window: 0,
            window_end: now.saturating_add(window_length),
            window_length,
        }
    }

    /// Records that the guest has run for `ran` host ticks until `now`, and that CR3 then
    /// held `root`. Tells whether the root had not been known: a chance to learn aliases.
    pub(crate) fn record(&mut self, root: Root, ran: u64, now: HostTicks) -> bool {
        if now > self.window_end {
            self.next_window(now);
        }
        let window = self.window;
        if let Some(entry) = &mut self.entries[self.latest]
            && entry.root == root
        {
            entry.advance(window);
            entry.current += ran;
            entry.total += ran;
            entry.last_seen = now;
            return false;
        }
        self.record_other(root, ran, now)
    }

    fn record_other(&mut self, root: Root, ran: u64, now: HostTicks) -> bool {
        let start = place(root);
        let mut victim = start;
        let mut oldest = HostTicks(u64::MAX);
        for probe in 0..PROBES {
            let index = (start + probe) % CAPACITY;
            match &mut self.entries[index] {
                Some(entry) if entry.root == root => {
                    entry.advance(self.window);
                    entry.current += ran;
                    entry.total += ran;
                    entry.last_seen = now;
                    self.change_to(index);
                    return false;
                }
                Some(entry) if entry.last_seen < oldest => {
                    oldest = entry.last_seen;
                    victim = index;
                }
                Some(_) => {}
                None if oldest > HostTicks::ZERO => {
                    // A free place is better than any victim; the root may still be behind.
                    oldest = HostTicks::ZERO;
                    victim = index;
                }
                None => {}
            }
        }
        self.entries[victim] = Some(Entry {
            root,
            total: ran,
            current: ran,
            previous: 0,
            window: self.window,
            last_seen: now,
        });
        self.change_to(victim);
        true
    }

    fn change_to(&mut self, index: usize) {
        self.latest = index;
        self.changed_to[self.changes as usize % CHANGES] = index as u16;
        self.changes += 1;
    }

    #[cold]
    fn next_window(&mut self, now: HostTicks) {
        let length = self.window_length.max(1);
        let windows = now.since(self.window_end).div_ceil(length);
        self.window += windows;
        self.window_end = self
            .window_end
            .saturating_add(windows.saturating_mul(length));
    }

    /// Returns the roots remembered.
    pub(crate) fn roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.entries.iter().flatten().map(|entry| entry.root)
    }

    /// Returns the roots that have been seen to run since there were `changes` changes of them, and when
    /// last; and how many changes there are now. If there were many, all that are remembered.
    pub(crate) fn seen_since(
        &self,
        changes: u64,
    ) -> (impl Iterator<Item = (Root, HostTicks)> + '_, u64) {
        let new = self.changes.saturating_sub(changes);
        let is_forgotten = new > CHANGES as u64;
        let all = self.entries.iter().filter(move |_| is_forgotten);
        // With the one that has run on.
        let from = self.changes.saturating_sub(new.max(1));
        let latest = (from..self.changes).filter(move |_| !is_forgotten);
        let latest =
            latest.map(|at| &self.entries[usize::from(self.changed_to[at as usize % CHANGES])]);
        let entries = all.chain(latest).flatten();
        let seen = entries.map(|entry| (entry.root, entry.last_seen));
        (seen, self.changes)
    }

    /// Returns a copy of the table as it is at `now`.
    pub(crate) fn at(&mut self, now: HostTicks) -> Table {
        if now > self.window_end {
            self.next_window(now);
        }
        let window_start = HostTicks(self.window_end.0.saturating_sub(self.window_length));
        let previous = if self.window == 0 {
            0
        } else {
            self.window_length
        };
        let mut entries = Vec::with_capacity(CAPACITY);
        entries.extend(self.entries.iter().flatten());
        Table {
            entries: entries.into_iter(),
            window: self.window,
            covered: now.since(window_start) + previous,
        }
    }
}

/// The address spaces in a copy of a [`Usage`], one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    entries: vec::IntoIter<Entry>,
    window: u64,
    /// The length of time that windows cover, in host ticks.
    covered: u64,
}

impl Iterator for Table {
    type Item = SeenRoot;

    fn next(&mut self) -> Option<SeenRoot> {
        let mut entry = self.entries.next()?;
        entry.advance(self.window);
        let recent = entry.current + entry.previous;
        let share = u128::from(recent) * 1000 / u128::from(self.covered.max(1));
        Some(SeenRoot {
            root: entry.root,
            recent,
            share: share.min(1000) as u32,
            total: entry.total,
            last_seen: entry.last_seen,
        })
    }
}

/// Returns where a root's entry is looked for first: roots are pages, their low bits say nothing.
const fn place(root: Root) -> usize {
    let page = root.address().0 >> 5;
    (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % CAPACITY
}

/// A process in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its roots, the one that has run most first.
    pub roots: Vec<Root>,
    /// Its recent share of one CPU, in thousandths. With several VCPUs it may be over 1000.
    pub share: u32,
    /// The guest-mode host ticks it has had since it was first seen.
    pub total: u64,
    /// The time at which it was last seen running.
    pub last_seen: HostTicks,
}

/// A root in the tables of a VM's VCPUs, all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeenRoot {
    /// The root.
    pub root: Root,
    recent: u64,
    share: u32,
    total: u64,
    last_seen: HostTicks,
}

/// The roots in the tables of a VM's VCPUs, each of them once.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenRoots(BTreeMap<Root, SeenRoot>);

impl SeenRoots {
    /// Adds what a table says of a root.
    pub(crate) fn add(&mut self, seen: SeenRoot) {
        match self.0.entry(seen.root) {
            btree_map::Entry::Vacant(place) => {
                place.insert(seen);
            }
            btree_map::Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.recent += seen.recent;
                known.share += seen.share;
                known.total += seen.total;
                known.last_seen = known.last_seen.max(seen.last_seen);
            }
        }
    }

    /// Takes one of them out.
    pub(crate) fn take_next(&mut self) -> Option<SeenRoot> {
        self.0.pop_first().map(|(_, seen)| seen)
    }
}

/// The place of a root among those of a process: who has run most comes first.
type Rank = (Reverse<(u64, u64)>, Root);

/// Roots that are put together to processes. Those with the same mark belong to the same process; one without a mark is
/// a process of its own. Each step takes time that grows with the logarithm of the number of roots only.
#[derive(Clone, Debug)]
pub(crate) struct Grouping<M> {
    /// The roots that are still to be put together: those of a process follow each other.
    roots: BTreeMap<(Option<M>, Rank), SeenRoot>,
    /// The process of which all that has come so far is known, with its mark and the rank of its first root.
    latest: Option<(Process, Option<M>, Rank)>,
    processes: BTreeMap<(Reverse<(u32, u64)>, Rank), Process>,
}

impl<M> Default for Grouping<M> {
    fn default() -> Self {
        Self {
            roots: BTreeMap::new(),
            latest: None,
            processes: BTreeMap::new(),
        }
    }
}

impl<M: Ord> Grouping<M> {
    /// Adds a root: all are to be added before the first [`Grouping::step`].
    pub(crate) fn add(&mut self, seen: SeenRoot, mark: Option<M>) {
        let rank = (Reverse((seen.recent, seen.total)), seen.root);
        self.roots.insert((mark, rank), seen);
    }

    /// Puts the next root where it belongs. Returns whether there was one.
    pub(crate) fn step(&mut self) -> bool {
        let Some(((mark, rank), seen)) = self.roots.pop_first() else {
            self.end_process();
            return false;
        };
        match &mut self.latest {
            Some((process, latest, _)) if mark.is_some() && mark == *latest => {
                process.roots.push(seen.root);
                process.share += seen.share;
                process.total += seen.total;
                process.last_seen = process.last_seen.max(seen.last_seen);
            }
            _ => {
                self.end_process();
                let process = Process {
                    roots: alloc::vec![seen.root],
                    share: seen.share,
                    total: seen.total,
                    last_seen: seen.last_seen,
                };
                self.latest = Some((process, mark, rank));
            }
        }
        true
    }

    /// Notes that there are no more roots of the latest process.
    fn end_process(&mut self) {
        if let Some((process, _, rank)) = self.latest.take() {
            let place = (Reverse((process.share, process.total)), rank);
            self.processes.insert(place, process);
        }
    }

    /// Returns the processes, by share of the CPU, once there is nothing to be done any more.
    #[must_use]
    pub(crate) fn into_processes(self) -> Processes {
        debug_assert!(self.roots.is_empty() && self.latest.is_none());
        Processes(self.processes.into_values())
    }
}

/// The processes of a VM, by share of the CPU.
#[derive(Debug)]
pub(crate) struct Processes(btree_map::IntoValues<(Reverse<(u32, u64)>, Rank), Process>);

impl Iterator for Processes {
    type Item = Process;

    fn next(&mut self) -> Option<Process> {
        self.0.next()
    }
}

/// Returns the process list of a VM from the tables of its VCPUs. `same_process` tells whether two roots belong
/// together.
#[cfg(test)]
pub(crate) fn report<'a>(
    usages: impl IntoIterator<Item = &'a mut Usage>,
    now: HostTicks,
    same_process: impl Fn(Root, Root) -> bool,
) -> Vec<Process> {
    let mut seen = SeenRoots::default();
    usages
        .into_iter()
        .for_each(|usage| usage.at(now).for_each(|root| seen.add(root)));
    let roots: Vec<_> = core::iter::from_fn(|| seen.take_next()).collect();
    let first_of = |root| {
        let mut all = roots.iter().map(|seen| seen.root);
        all.find(|&other| other == root || same_process(other, root))
    };
    let marked = roots.iter().map(|seen| (*seen, first_of(seen.root)));
    processes(marked)
}

/// Puts marked roots together.
#[cfg(test)]
fn processes<M: Ord>(roots: impl IntoIterator<Item = (SeenRoot, Option<M>)>) -> Vec<Process> {
    let mut grouping = Grouping::default();
    for (seen, mark) in roots {
        grouping.add(seen, mark);
    }
    while grouping.step() {}
    grouping.into_processes().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::address_space::RootFormat;
    use super::*;

    fn root(number: u64) -> Root {
        Root::new(number << 12, RootFormat::Long)
    }

    fn strangers(_: Root, _: Root) -> bool {
        false
    }

    /// Roots 1, 2 and 3 take turns of 50, 30 and 20 ticks, from time zero to `end`.
    fn three_processes(end: u64) -> Usage {
        let mut usage = Usage::new(HostTicks(0), 1000);
        let mut now = 0;
        while now < end {
            for (number, ticks) in [(1, 50), (2, 30), (3, 20)] {
                now += ticks;
                usage.record(root(number), ticks, HostTicks(now));
            }
        }
        usage
    }

    #[test]
    fn shares_are_what_each_has_had_lately() {
        let mut usage = three_processes(2500);
        let list = report([&mut usage], HostTicks(2500), strangers);
        let shares: Vec<_> = list.iter().map(|it| (it.roots[0], it.share)).collect();
        assert_eq!(shares, [(root(1), 500), (root(2), 300), (root(3), 200)]);
        assert_eq!(list[0].total, 1250);
    }

    #[test]
    fn who_sleeps_loses_its_share_but_not_its_total() {
        let mut usage = three_processes(2500);
        usage.record(root(9), 2000, HostTicks(5500));
        let list = report([&mut usage], HostTicks(5500), strangers);
        assert_eq!(list[0].roots, [root(9)]);
        assert_eq!((list[1].share, list[1].total), (0, 1250));
    }

    #[test]
    fn halted_time_is_nobodys() {
        let mut usage = Usage::new(HostTicks(0), 1000);
        usage.record(root(1), 250, HostTicks(1000));
        usage.record(root(1), 250, HostTicks(1999));
        let list = report([&mut usage], HostTicks(2000), strangers);
        assert_eq!(list[0].share, 250);
    }

    #[test]
    fn the_roots_of_a_process_share_a_line() {
        let mut usage = three_processes(2500);
        let pair = |a: Root, b: Root| a.max(b) == root(3) && a.min(b) == root(1);
        let list = report([&mut usage], HostTicks(2500), pair);
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].roots, [root(1), root(3)]);
        assert_eq!(list[0].share, 700);
    }

    #[test]
    fn thousands_of_roots_are_put_together_in_few_steps() {
        use core::cell::Cell;
        use core::cmp::Ordering;

        /// A number that counts its comparisons.
        #[derive(Clone, Copy)]
        struct Mark<'a>(u64, &'a Cell<u64>);

        impl PartialEq for Mark<'_> {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other).is_eq()
            }
        }
        impl Eq for Mark<'_> {}
        impl PartialOrd for Mark<'_> {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for Mark<'_> {
            fn cmp(&self, other: &Self) -> Ordering {
                self.1.set(self.1.get() + 1);
                self.0.cmp(&other.0)
            }
        }

        const ROOTS: u64 = 2048;
        let mut seen = SeenRoots::default();
        for vcpu in 0..8 {
            let mut usage = Usage::new(HostTicks(0), 1_000_000);
            for number in 0..256 {
                // All probes of the table lead to different places.
                let root = root(vcpu * 256 + number);
                usage.entries[number as usize] = Some(Entry {
                    root,
                    total: number,
                    current: number,
                    previous: 0,
                    window: 0,
                    last_seen: HostTicks(number),
                });
            }
            usage.at(HostTicks(1000)).for_each(|root| seen.add(root));
        }
        let compared = Cell::new(0);
        let roots: Vec<_> = core::iter::from_fn(|| seen.take_next()).collect();
        assert_eq!(roots.len() as u64, ROOTS);
        let marked = roots
            .iter()
            .map(|seen| (*seen, Some(Mark(seen.root.address().0 / 0x2000, &compared))));
        let list = processes(marked);
        assert_eq!(list.len() as u64, ROOTS / 2);
        assert!(list.iter().all(|process| process.roots.len() == 2));
        assert!(list.is_sorted_by_key(|process| Reverse((process.share, process.total))));
        // All pairs would be two million.
        assert!(compared.get() < ROOTS * 40, "{}", compared.get());
    }

    #[test]
    fn the_vcpus_of_a_vm_add_up() {
        let (mut one, mut two) = (three_processes(2500), three_processes(2500));
        let list = report([&mut one, &mut two], HostTicks(2500), strangers);
        assert_eq!(list[0].share, 1000);
        assert_eq!(list.len(), 3);
    }

    #[test]
    fn who_has_run_since_is_told_once_and_who_runs_on_each_time() {
        let mut usage = Usage::new(HostTicks(0), 1000);
        let mut changes = 0;
        let mut seen = |usage: &Usage| -> Vec<Root> {
            let (seen, now) = usage.seen_since(changes);
            changes = now;
            let mut seen: Vec<_> = seen.map(|(root, _)| root).collect();
            seen.dedup();
            seen
        };
        assert_eq!(seen(&usage), []);
        for (number, now) in [(1, 10), (2, 20), (3, 30)] {
            usage.record(root(number), 10, HostTicks(now));
        }
        assert_eq!(seen(&usage), [1, 2, 3].map(root));
        assert_eq!(seen(&usage), [root(3)]);
        usage.record(root(3), 10, HostTicks(40));
        usage.record(root(1), 10, HostTicks(50));
        assert_eq!(seen(&usage), [root(1)]);
        // More than are remembered in their order: none of them is left out.
        for number in 0..CHANGES as u64 + 1 {
            usage.record(root(number + 100), 1, HostTicks(60 + number));
        }
        let seen = seen(&usage);
        assert!((100..=100 + CHANGES as u64).all(|it| seen.contains(&root(it))));
    }

    #[test]
    fn a_root_is_new_once() {
        let mut usage = Usage::new(HostTicks(0), 1000);
        assert!(usage.record(root(1), 1, HostTicks(1)));
        assert!(usage.record(root(2), 1, HostTicks(2)));
        assert!(!usage.record(root(1), 1, HostTicks(3)));
    }

    #[test]
    fn too_many_address_spaces_push_out_the_ones_not_seen_for_long() {
        let mut usage = Usage::new(HostTicks(0), 1_000_000);
        for number in 0..10_000 {
            usage.record(root(number), 1, HostTicks(number));
            usage.record(root(77), 1, HostTicks(number));
        }
        let list = report([&mut usage], HostTicks(10_000), strangers);
        assert!(list.len() <= CAPACITY);
        assert_eq!(list[0].roots, [root(77)]);
        // The busy one keeps all it has had (and had one turn of its own).
        assert_eq!(list[0].total, 10_001);
    }

    proptest! {
        #[test]
        fn no_tick_is_lost_or_made(records in prop::collection::vec((0u64..20, 0u64..500), 1..200)) {
            let mut usage = Usage::new(HostTicks(0), 700);
            let mut now = 0;
            for (number, ran) in &records {
                now += ran + 3;
                usage.record(root(*number), *ran, HostTicks(now));
            }
            let list = report([&mut usage], HostTicks(now), strangers);
            let total: u64 = list.iter().map(|it| it.total).sum();
            prop_assert_eq!(total, records.iter().map(|it| it.1).sum::<u64>());
        }
    }
}
