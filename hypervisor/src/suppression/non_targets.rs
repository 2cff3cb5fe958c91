//! The roots that have been looked at and are no target's.
//!
//! A switch to one of them costs one comparison, for a moment. Then its page may be another process's: for a
//! while longer it is taken for the same one as long as it refers to the same tables.

#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec;

use arch::paging::PAGE_SIZE;
use devices::time::{Hertz, HostTicks};

use super::address_space::{Root, RootFormat, referred_table};
use super::member::{WITNESSES, witnesses};
use crate::guest_memory::GuestMemory;

/// The number of roots that are remembered.
const CAPACITY: usize = 64;
/// The time for which a root is taken to be that of the same process, as a divisor of a second.
pub(super) const GOOD_FOR: u64 = 500;
/// The time for which it is if it refers to the same tables, as a divisor of a second.
pub(super) const WITH_SAME_TABLES: u64 = 20;

/// A root that is no target's.
#[derive(Clone, Copy, Debug)]
struct NonTarget {
    root: Root,
    judged_at: HostTicks,
    /// The tables that it is known by: their indices, and the numbers of their pages; zero for none.
    tables: [(u16, u32); WITNESSES],
}

/// The cache of such roots.
#[derive(Clone, Debug)]
pub(super) struct NonTargets {
    tsc: Hertz,
    /// The format of the guest's roots, as it was seen last.
    pub(super) format: RootFormat,
    /// The entries: on the heap, as VMs are made on the stack.
    roots: Box<[Option<NonTarget>]>,
}

impl NonTargets {
    pub(super) fn new(tsc: Hertz) -> Self {
        Self {
            tsc,
            format: RootFormat::Long,
            roots: vec![None; CAPACITY].into(),
        }
    }

    const fn slot(root: Root) -> usize {
        (root.address().0 >> 12) as usize % CAPACITY
    }

    /// Returns whether `root` was found to be no target's just before `now`.
    pub(super) fn has(&self, root: Root, now: HostTicks) -> bool {
        let known = self.known(root);
        known.is_some_and(|known| now.since(known.judged_at) < self.tsc.get() / GOOD_FOR)
    }

    /// Returns whether `root` was found to be no target's just before `now`, or some time before and refers to the
    /// same tables.
    pub(super) fn has_with_tables(
        &self,
        memory: &impl GuestMemory,
        root: Root,
        now: HostTicks,
    ) -> bool {
        self.has(root, now) || self.same_tables(memory, root, now) > 0
    }

    /// Returns whether the process of `root` is known to have been there before, for sure: it is that
    /// of several tables. A process that has just been made has one, for its stack.
    pub(super) fn has_for_sure(
        &self,
        memory: &impl GuestMemory,
        root: Root,
        now: HostTicks,
    ) -> bool {
        self.same_tables(memory, root, now) > 1
    }

    fn known(&self, root: Root) -> Option<&NonTarget> {
        self.roots[Self::slot(root)]
            .as_ref()
            .filter(|known| known.root == root)
    }

    /// Returns by how many tables `root`, which was found to be no target's some time before `now`, is known, if it
    /// refers to all of them; else zero.
    fn same_tables(&self, memory: &impl GuestMemory, root: Root, now: HostTicks) -> usize {
        let is_good =
            |known: &&NonTarget| now.since(known.judged_at) < self.tsc.get() / WITH_SAME_TABLES;
        let known = self.known(root).filter(is_good);
        known.map_or(0, |known| self.standing_tables(memory, known))
    }

    /// Returns by how many tables `known` is known, if it refers to all of them; else zero.
    fn standing_tables(&self, memory: &impl GuestMemory, known: &NonTarget) -> usize {
        let root = known.root;
        let tables = known.tables.iter().filter(|(_, page)| *page != 0);
        let stands = |&(index, page): &(u16, u32)| {
            let table = referred_table(memory, root, self.format, index.into());
            table == u64::from(page) * PAGE_SIZE
        };
        if tables.clone().all(stands) {
            tables.count()
        } else {
            0
        }
    }

    /// Takes note that `root` is no target's at `now`.
    pub(super) fn add(&mut self, memory: &impl GuestMemory, root: Root, now: HostTicks) {
        // To go through all of a root takes long.
        let known = self.known(root);
        if known.is_some_and(|known| self.standing_tables(memory, known) > 1) {
            if let Some(known) = &mut self.roots[Self::slot(root)] {
                known.judged_at = now;
            }
            return;
        }
        let mut tables = [(0, 0); WITNESSES];
        let found = witnesses(memory, root, self.format).unwrap_or_default();
        for (place, (index, table)) in tables.iter_mut().zip(found) {
            // One that is further up is not known.
            let page = u32::try_from(table / PAGE_SIZE).unwrap_or(0);
            *place = (index as u16, page);
        }
        self.roots[Self::slot(root)] = Some(NonTarget {
            root,
            judged_at: now,
            tables,
        });
    }

    /// Has all roots looked at again: what is a target's has changed.
    pub(super) fn clear(&mut self) {
        self.roots.fill(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_ram::TestRam;

    const TSC: Hertz = Hertz::new(1_000_000);
    const ROOT: u64 = 0x1000;

    fn root() -> Root {
        Root::new(ROOT, RootFormat::Long)
    }

    #[test]
    fn a_root_with_the_same_tables_is_known_for_longer() {
        let ram = TestRam::new(0x1_0000);
        let refer = |index: u64, table: u64| ram.write_u64(ROOT + index * 8, table | 0x67);
        refer(0, 0x2000);
        let mut known = NonTargets::new(TSC);
        let has = |known: &NonTargets, now| known.has_with_tables(&ram, root(), HostTicks(now));
        let for_sure = |known: &NonTargets, now| known.has_for_sure(&ram, root(), HostTicks(now));
        assert!(!has(&known, 0));
        known.add(&ram, root(), HostTicks(0));
        assert!(has(&known, 49_999) && !has(&known, 50_000));
        assert!(known.has(root(), HostTicks(1999)) && !known.has(root(), HostTicks(2000)));
        assert!(!for_sure(&known, 0), "a new process has one table as well");
        refer(255, 0x3000);
        known.add(&ram, root(), HostTicks(0));
        assert!(for_sure(&known, 49_999) && !for_sure(&known, 50_000));
        refer(0, 0x4000);
        assert!(has(&known, 1999) && !has(&known, 2000), "another process");
        assert!(!for_sure(&known, 0));
        known.clear();
        assert!(!has(&known, 0));
    }
}
