//! Which address space is searched next, a page at a time.
//!
//! A new address space comes first, the newest of all: its process may live for a moment only. The search
//! through the next new one begins at the address where that was: of a chain of processes that live for a
//! moment each is searched a little, and so all that they have in common is. Now and then it is the turn of
//! one that has waited for long, the oldest of those that have not been searched; and of one that is searched
//! again, some time later, as it has run since: memory changes and grows. That never ends, and so is done
//! only when it [may cost something](super::limiter).
//!
//! Most processes of a system have most of their memory in common. What has just been searched, and
//! cannot be written, is not searched again with the next one ([`super::clean_frames`]). And where a pattern is
//! found, the others are looked at that have the same memory at the same address: of a
//! process that has forked many all are found at once.
//!
//! A root's page is used again by another process soon after its own has ended. So an address space is
//! known by the first few tables that its root refers to besides, and by the address of its highest page: where
//! none of the tables is left, or nothing is mapped there, it is another process's. The tables may be used
//! again as well; where the highest page is, which is the stack's in most systems, is chosen at random.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Bound;

use devices::time::HostTicks;
use vmx::addr::GuestVirtAddr;

use super::clean_frames::CleanFrames;
use super::patterns::PatternSet;
use super::shared_pages::{SharedPage, SharedPages};
use crate::guest_memory::GuestMemory;
use crate::search::pages::{Reach, highest_page, region_at};
use crate::search::{Page, Walk};
use crate::suppression::address_space::{Root, RootFormat, referred_table, user_tables};

/// The most address spaces that are remembered.
const MOST: usize = 1024;
/// The tables by which an address space is known.
const TABLES: usize = 4;
/// The number of times that it is looked whether one is to be searched again, in the time after which
/// that is so.
const LOOKS_EACH: u64 = 16;
/// The turns of which one is for an address space that waits while a newer one is searched, and one for an address
/// space that is searched again.
const TURNS: usize = 4;
/// The most new address spaces of which it is still to be found out whether they have a page in which a pattern was
/// found.
const MOST_NEWCOMERS: usize = 256;
/// The address spaces that are looked at for one such page in one step.
const SPACES_AT_ONCE: usize = 8;

/// The guest that is searched.
#[derive(Debug)]
pub(crate) struct Guest<'a, M> {
    /// Its memory.
    pub memory: &'a M,
    /// The number of bytes of that.
    pub ram: u64,
    /// The format of its roots.
    pub format: RootFormat,
}

/// Some tables of an address space's user half: index and address; address zero for none.
type Tables = [(u16, u64); TABLES];

/// An address space.
#[derive(Clone, Debug)]
struct Space {
    tables: Tables,
    /// The address of its highest page.
    top: Option<u64>,
    first_seen: HostTicks,
    last_seen: HostTicks,
    /// The end of the last search through it.
    searched: Option<HostTicks>,
    /// Whether it is the second root of a process that is known by another, or maps nothing.
    passed_over: bool,
    /// The rules whose patterns it holds.
    matched: Vec<u32>,
}

/// A match that has not been found before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The number of the rule.
    pub rule: u32,
    /// The root of the process.
    pub root: Root,
    /// The virtual address of the pattern.
    pub address: u64,
}

/// A search under way: which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// The search through the newest address space.
    Newest,
    /// The search through the one that has waited for longest.
    Oldest,
    /// The search through one that has been searched before.
    Again,
}

impl Lane {
    const ALL: [Self; 3] = [Self::Newest, Self::Oldest, Self::Again];
    /// The order in which they are asked whether they can go on, in each turn.
    const ORDER: [[Self; 3]; TURNS] = [
        [Self::Oldest, Self::Newest, Self::Again],
        [Self::Newest, Self::Oldest, Self::Again],
        [Self::Again, Self::Newest, Self::Oldest],
        [Self::Newest, Self::Oldest, Self::Again],
    ];
}

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing to do for now.
    Idle,
    /// A piece of a first search.
    Piece,
    /// A piece of a search through an address space that has been searched before.
    Again,
    /// The end of the first search through an address space, which holds the patterns of these rules.
    First(Vec<u32>),
}

/// The searches in a VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Searcher {
    spaces: BTreeMap<Root, Space>,
    /// Those that are not passed over, by their tables.
    by_tables: BTreeMap<Tables, Root>,
    /// Those that have not been searched and are not passed over, by when they were first seen.
    unsearched: BTreeSet<(HostTicks, Root)>,
    /// The root behind which those that have ended are looked for next.
    swept: Option<Root>,
    /// The time before which none is to be searched again, if nothing is new.
    nothing_before: HostTicks,
    /// The searches under way, by [`Lane`].
    walks: [Option<Walk>; Lane::ALL.len()],
    turn: usize,
    clean: CleanFrames,
    shared: SharedPages,
    /// The new address spaces that are still to be looked at for those pages.
    newcomers: VecDeque<Root>,
    /// The virtual address at which the search through the next new address space begins.
    begin: u64,
    /// Whether there may be a newer one than the newest that is searched.
    is_news: bool,
}

fn tables<M: GuestMemory>(guest: &Guest<'_, M>, root: Root) -> Tables {
    let mut tables = [(0, 0); TABLES];
    let found = user_tables(guest.memory, root, guest.format);
    for (place, (index, table)) in tables.iter_mut().zip(found) {
        *place = (index as u16, table);
    }
    tables
}

impl Space {
    /// Returns whether `root`, whose space it was, is still of the same process, as far as can be told.
    fn is_there<M: GuestMemory>(&self, guest: &Guest<'_, M>, root: Root) -> bool {
        let mut known = self.tables.iter().filter(|(_, table)| *table != 0);
        let is_table_left = known.any(|&(index, table)| {
            referred_table(guest.memory, root, guest.format, index.into()) == table
        });
        let is_mapped = |top: u64| {
            let at = GuestVirtAddr(top);
            let region = region_at(guest.memory, root, guest.format, at, Reach::User);
            region.frame.is_some()
        };
        is_table_left && self.top.is_none_or(is_mapped)
    }
}

impl Searcher {
    /// Takes note that `root` was loaded at `at`.
    pub(crate) fn see<M: GuestMemory>(&mut self, guest: &Guest<'_, M>, root: Root, at: HostTicks) {
        if let Some(space) = self.spaces.get_mut(&root)
            && space.is_there(guest, root)
        {
            space.last_seen = at;
            return;
        }
        self.forget(root);
        self.sweep(guest);
        let tables = tables(guest, root);
        let same = self.by_tables.get(&tables).copied();
        let is_alias = same.is_some_and(|other| self.is_there(guest, other));
        let passed_over = tables == [(0, 0); TABLES] || is_alias;
        if self.spaces.len() >= MOST {
            let oldest = self.spaces.iter().min_by_key(|(_, space)| space.last_seen);
            if let Some(oldest) = oldest.map(|(root, _)| *root) {
                self.forget(oldest);
            }
        }
        if !passed_over {
            self.is_news = true;
            if self.newcomers.len() < MOST_NEWCOMERS {
                self.newcomers.push_back(root);
            }
            self.by_tables.insert(tables, root);
            self.unsearched.insert((at, root));
        }
        self.spaces.insert(
            root,
            Space {
                tables,
                top: highest_page(guest.memory, root, guest.format),
                first_seen: at,
                last_seen: at,
                searched: None,
                passed_over,
                matched: Vec::new(),
            },
        );
    }

    /// Takes note that the process of `root` has come to its end: who has it next is another one.
    pub(crate) fn has_ended(&mut self, root: Root) {
        self.forget(root);
    }

    /// Takes note that some processes have come to their end, of which it is not known which: any of those
    /// that hold a pattern.
    pub(crate) fn some_have_ended(&mut self) {
        let holds = |(root, space): (&Root, &Space)| (!space.matched.is_empty()).then_some(*root);
        let holders: Vec<Root> = self.spaces.iter().filter_map(holds).collect();
        for root in holders {
            self.forget(root);
        }
    }

    /// Begins all searches anew: what is looked for has changed. What has been found stays known.
    pub(crate) fn begin_anew(&mut self) {
        self.walks = Default::default();
        self.clean.clear();
        self.shared.clear();
        for (root, space) in &mut self.spaces {
            space.searched = None;
            if !space.passed_over {
                self.unsearched.insert((space.first_seen, *root));
            }
        }
    }

    /// Has the next new address space searched from `address` on: something was found there too late.
    pub(crate) const fn begin_at(&mut self, address: u64) {
        self.begin = address;
    }

    fn forget(&mut self, root: Root) {
        let Some(space) = self.spaces.remove(&root) else {
            return;
        };
        self.unsearched.remove(&(space.first_seen, root));
        if self.by_tables.get(&space.tables) == Some(&root) {
            self.by_tables.remove(&space.tables);
        }
        for lane in Lane::ALL {
            if let Some(walk) = self.walks[lane as usize].take_if(|walk| walk.root() == root)
                && lane == Lane::Newest
            {
                self.begin = walk.place();
            }
        }
    }

    /// Goes on by a page or so at `now`. An address space is searched again `again_after` ticks after it
    /// was, if it has run since, and where it `may_search_again` now. Calls `found` with matches.
    pub(crate) fn step<M: GuestMemory>(
        &mut self,
        guest: &Guest<'_, M>,
        patterns: &PatternSet,
        now: HostTicks,
        again_after: u64,
        may_search_again: bool,
        mut found: impl FnMut(Found),
    ) -> Step {
        if self.is_news
            && let Some(root) = self.root_in(Lane::Newest)
            && !self.is_there(guest, root)
        {
            self.forget(root);
        }
        if self.look_for_sharers(guest, patterns, &mut found) {
            return Step::Piece;
        }
        self.choose(guest, now, again_after);
        self.turn = (self.turn + 1) % TURNS;
        let walks = &self.walks;
        let goes_on = |lane: &Lane| {
            walks[*lane as usize].is_some() && (*lane != Lane::Again || may_search_again)
        };
        let Some(lane) = Lane::ORDER[self.turn].into_iter().find(goes_on) else {
            return Step::Idle;
        };
        let piece = match lane {
            Lane::Newest | Lane::Oldest => Step::Piece,
            Lane::Again => Step::Again,
        };
        let Some(walk) = &mut self.walks[lane as usize] else {
            return Step::Idle;
        };
        let root = walk.root();
        let Some(space) = self
            .spaces
            .get_mut(&root)
            .filter(|it| it.is_there(guest, root))
        else {
            // It has ended meanwhile: nothing is known of the rest.
            self.forget(root);
            return piece;
        };
        let clean = &self.clean;
        let shared = &mut self.shared;
        let skips = |page: Page| !page.writable && clean.has(page.frame, now);
        let mut clean_frame = None;
        let more = walk.step(guest.memory, patterns.overlap(), skips, |piece| {
            let mut is_clean = piece.is_whole && !piece.page.writable;
            patterns.find(piece.bytes, piece.known, |rule, at| {
                is_clean = false;
                if space.matched.contains(&rule) {
                    return;
                }
                space.matched.push(rule);
                let address = piece.start.wrapping_add(at as u64);
                if at >= piece.known {
                    let frame = piece.page.frame;
                    shared.add(SharedPage {
                        rule,
                        address,
                        frame,
                    });
                }
                found(Found {
                    rule,
                    root,
                    address,
                });
            });
            clean_frame = is_clean.then_some(piece.page.frame);
        });
        if let Some(frame) = clean_frame {
            self.clean.add(frame, now.saturating_add(again_after));
        }
        if more {
            return piece;
        }
        self.walks[lane as usize] = None;
        if lane == Lane::Newest {
            self.begin = 0;
        }
        space.searched = Some(now);
        match lane {
            Lane::Newest | Lane::Oldest => {
                self.unsearched.remove(&(space.first_seen, root));
                Step::First(space.matched.clone())
            }
            Lane::Again => piece,
        }
    }

    /// Returns the address space that is searched there, if there is one.
    fn root_in(&self, lane: Lane) -> Option<Root> {
        self.walks[lane as usize].as_ref().map(Walk::root)
    }

    /// Looks at some address spaces whether they have a page in which a pattern was found as well. Returns whether there
    /// was anything to do.
    fn look_for_sharers<M: GuestMemory>(
        &mut self,
        guest: &Guest<'_, M>,
        patterns: &PatternSet,
        found: &mut impl FnMut(Found),
    ) -> bool {
        let mut look = |root: Root, space: &mut Space, page: &SharedPage| {
            if !space.passed_over
                && !space.matched.contains(&page.rule)
                && page.is_in(guest, patterns, root)
                && space.is_there(guest, root)
            {
                space.matched.push(page.rule);
                found(Found {
                    rule: page.rule,
                    root,
                    address: page.address,
                });
            }
        };
        if let Some((index, page, behind)) = self.shared.unfinished() {
            let behind = behind.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.spaces.range_mut((behind, Bound::Unbounded));
            let mut last = None;
            let mut count = 0;
            for (&root, space) in next.take(SPACES_AT_ONCE) {
                look(root, space, &page);
                last = Some(root);
                count += 1;
            }
            let is_end = count < SPACES_AT_ONCE;
            self.shared.looked_up_to(index, last.filter(|_| !is_end));
            return true;
        }
        if self.newcomers.is_empty() || self.shared.is_empty() {
            self.newcomers.clear();
            return false;
        }
        let count = self.newcomers.len().min(SPACES_AT_ONCE);
        for root in self.newcomers.drain(..count) {
            if let Some(space) = self.spaces.get_mut(&root) {
                for page in self.shared.iter() {
                    look(root, space, page);
                }
            }
        }
        true
    }

    /// Returns whether the process that was seen to have `root` last still has it, as far as can be told.
    pub(crate) fn is_there<M: GuestMemory>(&self, guest: &Guest<'_, M>, root: Root) -> bool {
        self.spaces
            .get(&root)
            .is_some_and(|space| space.is_there(guest, root))
    }

    /// Forgets one or two that have ended, if the next ones have: more are not made meanwhile.
    fn sweep<M: GuestMemory>(&mut self, guest: &Guest<'_, M>) {
        const AT_ONCE: usize = 2;
        for _ in 0..AT_ONCE {
            let behind = self.swept.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.spaces.range((behind, Bound::Unbounded)).next();
            let next = next.map(|(root, space)| (*root, space.is_there(guest, *root)));
            self.swept = next.map(|(root, _)| root);
            if let Some((ended, false)) = next {
                self.forget(ended);
            }
        }
    }

    /// Chooses what is searched, if that is to change.
    fn choose<M: GuestMemory>(&mut self, guest: &Guest<'_, M>, now: HostTicks, again_after: u64) {
        let walk = |root: Root| Walk::new(root, guest.format, guest.ram);
        let is_news = core::mem::take(&mut self.is_news);
        let newest_before = self.root_in(Lane::Newest);
        if is_news || newest_before.is_none() {
            let oldest = self.root_in(Lane::Oldest);
            let mut unsearched = self.unsearched.iter().rev().map(|(_, root)| *root);
            let newest = unsearched.find(|root| Some(*root) != oldest);
            if newest.is_some() && newest != newest_before {
                let lane = &mut self.walks[Lane::Newest as usize];
                if let Some(before) = lane.take() {
                    self.begin = before.place();
                }
                *lane = newest.map(|root| walk(root).starting_at(self.begin));
            }
        }
        if self.root_in(Lane::Oldest).is_none() {
            let newest = self.root_in(Lane::Newest);
            let mut unsearched = self.unsearched.iter().map(|(_, root)| *root);
            let oldest = unsearched.find(|root| Some(*root) != newest);
            self.walks[Lane::Oldest as usize] = oldest.map(walk);
        }
        if self.root_in(Lane::Again).is_none() {
            let due = self.due_again(now, again_after);
            self.walks[Lane::Again as usize] = due.map(walk);
        }
    }

    /// Returns the address space whose search is longest ago, if it is to be searched again.
    fn due_again(&mut self, now: HostTicks, again_after: u64) -> Option<Root> {
        if now < self.nothing_before {
            return None;
        }
        let is_due = |(_, space): &(&Root, &Space)| {
            space.searched.is_some_and(|searched| {
                space.last_seen > searched && now.since(searched) >= again_after
            })
        };
        let due = self.spaces.iter().filter(is_due);
        let longest = due.min_by_key(|(_, space)| space.searched);
        if longest.is_none() {
            self.nothing_before = now.saturating_add(again_after / LOOKS_EACH);
        }
        longest.map(|(root, _)| *root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::pattern::Pattern;
    use crate::test_ram::TestRam;

    const AGAIN: u64 = 1000;
    const RAM: u64 = 0x40_0000;

    /// A guest whose processes have a root, three tables, and code at the virtual address 0x1000.
    struct Bench {
        ram: TestRam,
        searcher: Searcher,
        patterns: PatternSet,
        now: u64,
        may_search_again: bool,
        found: Vec<(u32, u64)>,
        firsts: usize,
    }

    fn root(address: u64) -> Root {
        Root::new(address, RootFormat::Long)
    }

    fn guest(ram: &TestRam) -> Guest<'_, TestRam> {
        Guest {
            memory: ram,
            ram: RAM,
            format: RootFormat::Long,
        }
    }

    impl Bench {
        fn new(words: &[&str]) -> Self {
            let patterns: Vec<Pattern> =
                words.iter().map(|it| Pattern::parse(it).unwrap()).collect();
            Self {
                ram: TestRam::new(RAM as usize),
                searcher: Searcher::default(),
                patterns: PatternSet::new((1..).zip(&patterns)),
                now: 1,
                may_search_again: true,
                found: Vec::new(),
                firsts: 0,
            }
        }

        fn write(&mut self, at: u64, bytes: &[u8]) {
            self.ram
                .write(arch::addr::GuestPhysAddr(at), bytes)
                .unwrap();
        }

        /// A process with this root, tables from `page` on, and this in its memory.
        fn process(&mut self, root: u64, page: u64, content: &[u8]) {
            for (at, entry) in [
                (root, page),
                (page, page + 0x1000),
                (page + 0x1000, page + 0x2000),
                (page + 0x2008, page + 0x3000),
            ] {
                self.write(at, &(entry | 0x67).to_le_bytes());
            }
            self.write(page + 0x3100, content);
        }

        fn see(&mut self, at: u64) {
            self.now += 1;
            let guest = guest(&self.ram);
            self.searcher.see(&guest, root(at), HostTicks(self.now));
        }

        /// Steps until there is nothing to do, at most so many; returns how many were made.
        fn steps(&mut self, most: usize) -> usize {
            let guest = guest(&self.ram);
            for done in 0..most {
                self.now += 1;
                let found = &mut self.found;
                let now = HostTicks(self.now);
                let step = self.searcher.step(
                    &guest,
                    &self.patterns,
                    now,
                    AGAIN,
                    self.may_search_again,
                    |it| found.push((it.rule, it.root.address().0)),
                );
                match step {
                    Step::Idle => return done,
                    Step::Piece | Step::Again => {}
                    Step::First(_) => self.firsts += 1,
                }
            }
            most
        }
    }

    #[test]
    fn a_process_is_searched_once_it_is_seen_and_its_second_root_is_not() {
        let mut bench = Bench::new(&["EVIL", "VILE"]);
        bench.process(0x1000, 0x8000, b"an EVILE thing");
        bench.process(0x2000, 0x8000, b"an EVILE thing");
        bench.process(0x3000, 0x10_000, b"nothing");
        assert_eq!(bench.steps(9), 0);
        for root in [0x1000, 0x2000, 0x3000] {
            bench.see(root);
        }
        bench.steps(usize::MAX);
        assert_eq!(bench.found, [(1, 0x1000), (2, 0x1000)]);
        assert_eq!(bench.firsts, 2);
    }

    #[test]
    fn the_newest_comes_first_and_the_others_in_the_end() {
        let mut bench = Bench::new(&["EVIL"]);
        for number in 1..=50 {
            bench.process(number << 12, 0x10_0000 + (number << 14), b"");
            bench.see(number << 12);
        }
        bench.steps(10);
        bench.process(0x3f_000, 0x30_0000, b"EVIL");
        bench.see(0x3f_000);
        // The page is its second, and every fourth step goes to the one that was interrupted.
        bench.steps(4);
        assert_eq!(bench.found, [(1, 0x3f_000)]);
        bench.steps(usize::MAX);
        assert_eq!(bench.firsts, 51);
    }

    #[test]
    fn a_root_that_is_used_again_is_another_process() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"EVIL");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        bench.see(0x1000);
        assert_eq!(bench.steps(9), 0, "it is known");
        bench.process(0x1000, 0x10_000, b"EVIL");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        assert_eq!(bench.found, [(1, 0x1000), (1, 0x1000)]);
    }

    #[test]
    fn who_has_the_same_tables_and_its_stack_elsewhere_is_another_process() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"EVIL");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        // The one page of it is at another address.
        bench.write(0xa008, &[0; 8]);
        bench.write(0xa010, &(0xb000_u64 | 0x67).to_le_bytes());
        bench.see(0x1000);
        bench.steps(usize::MAX);
        assert_eq!(bench.found, [(1, 0x1000), (1, 0x1000)]);
    }

    #[test]
    fn who_has_the_same_tables_is_another_process_if_the_one_before_is_known_to_have_ended() {
        for is_known_which in [true, false] {
            let mut bench = Bench::new(&["EVIL"]);
            bench.process(0x1000, 0x8000, b"EVIL");
            bench.see(0x1000);
            bench.steps(usize::MAX);
            bench.see(0x1000);
            bench.steps(usize::MAX);
            assert_eq!(bench.found.len(), 1);
            if is_known_which {
                bench.searcher.has_ended(root(0x1000));
            } else {
                bench.searcher.some_have_ended();
            }
            bench.see(0x1000);
            bench.steps(usize::MAX);
            assert_eq!(bench.found, [(1, 0x1000), (1, 0x1000)]);
        }
    }

    #[test]
    fn who_runs_on_is_searched_again_and_found_once() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"unpacks");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        bench.write(0xb800, b"EVIL");
        bench.see(0x1000);
        assert_eq!(bench.steps(9), 0, "not so soon");
        bench.now += AGAIN;
        bench.steps(usize::MAX);
        assert_eq!(bench.found, [(1, 0x1000)]);
        bench.now += AGAIN;
        assert_eq!(bench.steps(9), 0, "it has not run since");
        bench.see(0x1000);
        bench.now += AGAIN;
        assert!(bench.steps(usize::MAX) > 0);
        assert_eq!(bench.found.len(), 1);
        assert_eq!(bench.firsts, 1);
    }

    #[test]
    fn what_was_searched_waits_until_it_may_cost_something_and_what_is_new_does_not() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.may_search_again = false;
        bench.process(0x1000, 0x8000, b"unpacks");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        bench.write(0xb800, b"EVIL");
        bench.now += AGAIN;
        bench.see(0x1000);
        assert_eq!(bench.steps(9), 0);
        for number in 0..20 {
            bench.process(0x10_0000 + (number << 12), 0x20_0000 + (number << 14), b"");
            bench.see(0x10_0000 + (number << 12));
        }
        bench.steps(usize::MAX);
        assert_eq!((bench.firsts, bench.found.len()), (21, 0));
        bench.may_search_again = true;
        bench.steps(usize::MAX);
        assert_eq!(bench.found, [(1, 0x1000)]);
    }

    #[test]
    fn who_ends_meanwhile_is_no_miss() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"");
        bench.see(0x1000);
        bench.steps(1);
        bench.write(0x1000, &[0; 8]);
        bench.steps(usize::MAX);
        assert_eq!(bench.firsts, 0);
    }

    /// A process with so many pages, of which one has this in it.
    fn large(bench: &mut Bench, root: u64, pages: u64, at: u64, content: &[u8]) {
        let page = 0x20_0000;
        for (slot, entry) in [
            (root, page),
            (page, page + 0x1000),
            (page + 0x1000, page + 0x2000),
        ] {
            bench.write(slot, &(entry | 0x67).to_le_bytes());
        }
        for number in 0..pages {
            let frame = 0x28_0000 + (number << 12);
            bench.write(page + 0x2000 + 8 * number, &(frame | 0x67).to_le_bytes());
        }
        bench.write(0x28_0000 + (at << 12) + 0x700, content);
    }

    #[test]
    fn a_chain_of_processes_that_live_for_a_moment_is_searched_one_after_the_other() {
        const LIVES: u64 = 60;
        let mut bench = Bench::new(&["EVIL"]);
        for life in 0..LIVES {
            let root = 0x1000 + ((life % 7) << 12);
            large(&mut bench, root, 100, 80, b"EVIL");
            bench.see(root);
            bench.steps(3);
            bench.write(root, &[0; 8]);
            if !bench.found.is_empty() {
                break;
            }
        }
        assert_eq!(bench.found.len(), 1);
        assert_eq!(bench.firsts, 0, "none was searched wholly");
    }

    #[test]
    fn what_was_found_too_late_is_looked_for_there_in_the_next_one() {
        let mut bench = Bench::new(&["EVIL"]);
        large(&mut bench, 0x1000, 100, 80, b"EVIL");
        bench.see(0x1000);
        bench.searcher.begin_at(80 << 12);
        bench.steps(1);
        assert_eq!(bench.found, [(1, 0x1000)]);
        bench.steps(usize::MAX);
        assert_eq!((bench.found.len(), bench.firsts), (1, 1), "and the rest");
    }

    #[test]
    fn who_has_been_there_for_long_is_found_whoever_comes_and_goes() {
        let mut bench = Bench::new(&["EVIL"]);
        large(&mut bench, 0x1000, 40, 30, b"EVIL");
        bench.see(0x1000);
        bench.steps(1);
        for life in 0..200 {
            let root = 0x2000 + ((life % 5) << 12);
            bench.process(root, 0x10_0000 + ((life % 7) << 14), b"");
            bench.see(root);
            bench.steps(2);
            bench.write(root, &[0; 8]);
        }
        assert_eq!(bench.found, [(1, 0x1000)]);
    }

    #[test]
    fn who_runs_on_is_searched_again_whoever_comes_and_goes() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"unpacks");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        bench.write(0xb800, b"EVIL");
        for life in 0..600 {
            let root = 0x2000 + ((life % 5) << 12);
            bench.process(root, 0x10_0000 + ((life % 7) << 14), b"");
            bench.see(root);
            bench.see(0x1000);
            bench.steps(2);
            bench.now += AGAIN / 100;
            bench.write(root, &[0; 8]);
        }
        assert_eq!(bench.found, [(1, 0x1000)]);
    }

    /// Takes the right to write from, or gives it to, the only page of a process of [`Bench::process`].
    fn set_writable(bench: &mut Bench, page: u64, writable: bool) {
        let entry = (page + 0x3000) | if writable { 0x67 } else { 0x65 };
        bench.write(page + 0x2008, &entry.to_le_bytes());
    }

    #[test]
    fn memory_that_was_just_searched_and_cannot_be_written_is_not_searched_again() {
        for writable in [false, true] {
            let mut bench = Bench::new(&["EVIL"]);
            bench.process(0x1000, 0x8000, b"a program");
            set_writable(&mut bench, 0x8000, writable);
            bench.see(0x1000);
            bench.steps(usize::MAX);
            // Another one that runs the same program; that the memory has been filled anew meanwhile
            // is seen a little later.
            bench.process(0x2000, 0x10_000, b"");
            bench.write(
                0x12_008,
                &(0xb000_u64 | if writable { 0x67 } else { 0x65 }).to_le_bytes(),
            );
            bench.write(0xb200, b"EVIL");
            bench.see(0x2000);
            bench.steps(9);
            let at_once: &[(u32, u64)] = if writable { &[(1, 0x2000)] } else { &[] };
            let at_once = at_once.to_vec();
            let found: Vec<_> = bench
                .found
                .iter()
                .filter(|it| it.1 == 0x2000)
                .copied()
                .collect();
            assert_eq!(found, at_once);
            bench.now += AGAIN;
            bench.see(0x2000);
            bench.now += AGAIN;
            bench.steps(usize::MAX);
            assert!(bench.found.contains(&(1, 0x2000)));
        }
    }

    #[test]
    fn of_a_process_that_has_forked_one_that_runs_for_the_first_time_is_found_at_once() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x10_0000, b"EVIL");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        // Many others have come before it.
        for number in 0..20 {
            bench.process(0x2000 + (number << 12), 0x20_0000 + (number << 14), b"");
            bench.see(0x2000 + (number << 12));
        }
        bench.process(0x3f_0000, 0x38_0000, b"");
        bench.write(0x38_2008, &(0x10_3000_u64 | 0x65).to_le_bytes());
        bench.see(0x3f_0000);
        bench.steps(4);
        assert_eq!(bench.found, [(1, 0x1000), (1, 0x3f_0000)]);
    }

    #[test]
    fn of_a_process_that_has_forked_many_all_are_found_with_the_first() {
        const COUNT: u64 = 30;
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x10_0000, 0x10_1000, b"");
        for number in 0..COUNT {
            // The page with the pattern is the same; each has another one behind it.
            let page = 0x20_0000 + (number << 14);
            let root = 0x1000 + (number << 12);
            bench.process(root, page, b"");
            bench.write(page + 0x2008, &(0x10_3000_u64 | 0x65).to_le_bytes());
            bench.write(page + 0x2010, &((page + 0x3000) | 0x67).to_le_bytes());
            bench.see(root);
        }
        bench.process(0x3f_0000, 0x3f_1000, b"somebody else");
        bench.see(0x3f_0000);
        bench.write(0x10_3100, b"EVIL");
        bench.steps(14);
        let mut found = bench.found.clone();
        found.sort_unstable();
        let all: Vec<_> = (0..COUNT)
            .map(|number| (1, 0x1000 + (number << 12)))
            .collect();
        assert_eq!(found, all);
        bench.steps(usize::MAX);
        assert_eq!(bench.found.len(), all.len(), "each once");
    }

    #[test]
    fn when_the_rules_change_all_are_searched_but_what_was_found_is_not_told_again() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"EVIL and WORSE");
        bench.see(0x1000);
        bench.steps(usize::MAX);
        let patterns = ["EVIL", "WORSE"].map(|it| Pattern::parse(it).unwrap());
        bench.patterns = PatternSet::new((1..).zip(&patterns));
        bench.searcher.begin_anew();
        bench.steps(usize::MAX);
        assert_eq!(bench.found, [(1, 0x1000), (2, 0x1000)]);
    }

    #[test]
    fn a_crowd_is_remembered_as_far_as_there_is_room() {
        let mut bench = Bench::new(&["EVIL"]);
        bench.process(0x1000, 0x8000, b"");
        for number in 0..3000 {
            // Different tables, all of them nonsense.
            let at = 0x10_0000 + ((number % 700) << 12);
            bench.write(at, &((number << 12) | 0x67).to_le_bytes());
            bench.see(at);
            bench.steps(2);
        }
        assert!(bench.searcher.spaces.len() <= MOST);
    }
}
