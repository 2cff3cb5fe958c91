//! The private memory of a process, of which a few pages are remembered: by them its copies are known.
//!
//! A page that the process could write, when it was looked at, is its own, or shared on purpose. A fork
//! takes the right to write its own pages away from it, and gives the copy the same pages at the same
//! addresses, without that right too: whoever writes first gets a page of its own. Memory that is
//! shared on purpose stays writable, and is never taken for a sign ([`super::descent`]).

#![forbid(unsafe_code)]

use arch::paging::PAGE_SIZE;

use super::address_space::{Root, RootFormat};
use super::pages::{Mapper, Mapping, Search, digest, mapping, next_writable};
use crate::guest_memory::GuestMemory;

/// The pages of a process that are remembered.
const PAGES: usize = 8;
/// The pages of which it is remembered that they are shared on purpose.
const SHARED: usize = 8;
/// The pages of one region that are remembered at most, so that they are spread; the stack's not
/// counted.
const PAGES_OF_A_REGION: usize = 3;
const REGION: u64 = 2 << 20;
/// The lines of page tables, of eight entries each, that are looked at in the search for more pages, each time.
const SEARCH_LINES: u32 = 64;
/// The same for a process that has just been named, for which there is time.
const FIRST_SEARCH_LINES: u32 = 1024;
/// The least time between searches, in ticks: some hundred times what one takes.
const SEARCH_INTERVAL: u64 = 1_000_000;
/// The number of doublings of it, one for each search that found nothing: up to 64 times as long.
const MOST_IN_VAIN: u32 = 6;

/// A page that the process could write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrivatePage {
    /// Its address.
    pub address: u64,
    /// The guest-physical address of its memory.
    pub frame: u64,
    /// Whether it was seen to have lost the right to write it since.
    pub is_frozen: bool,
    /// The digest of its contents when that was seen; `None` if they tell nothing, or while it can
    /// write the page. Nobody can change them for as long as a copy has the page.
    pub digest: Option<u64>,
}

impl PrivatePage {
    /// Returns whether the page's memory has what it had when it was frozen, so that who has it now has had
    /// it since.
    pub(super) fn stands(&self, memory: &impl GuestMemory) -> bool {
        self.digest.is_some() && self.has_same_contents(memory)
    }

    /// Returns whether the page's memory has what it had when it was frozen, be that nothing but zeros.
    pub(super) fn has_same_contents(&self, memory: &impl GuestMemory) -> bool {
        digest(memory, self.frame) == self.digest
    }
}

/// The pages of a process that are remembered. The first is where its stack pointer was.
#[derive(Clone, Copy, Debug)]
pub(super) struct PrivatePages {
    pages: [Option<PrivatePage>; PAGES],
    /// The address at which the search for more goes on.
    cursor: u64,
    /// Whether anything has been found since it was at zero, and how often in a row nothing was when it came to the end.
    finds: bool,
    in_vain: u32,
    /// The addresses of pages that are shared on purpose, the latest ones.
    shared: [u64; SHARED],
    next_shared: usize,
}

/// The changes that a look has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Whether the process has lost the right to write some, or has got others in their place: it may
    /// have forked.
    pub may_have_forked: bool,
}

/// The numbers of pages of a process by what has become of them while it did not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// Those that are what they were.
    pub kept: usize,
    /// Those in whose place there are others.
    pub exchanged: usize,
    /// Those in whose place there is nothing.
    pub taken: usize,
}

impl PrivatePages {
    pub(super) const NONE: Self = Self {
        pages: [None; PAGES],
        cursor: 0,
        finds: false,
        in_vain: 0,
        shared: [u64::MAX; SHARED],
        next_shared: 0,
    };

    /// Returns the pages.
    pub(super) fn iter(&self) -> impl Iterator<Item = PrivatePage> + '_ {
        self.pages.iter().flatten().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.iter().all(Option::is_none)
    }

    /// Forgets the page at `address`: it is shared on purpose.
    pub(super) fn forget(&mut self, address: u64) {
        for page in &mut self.pages {
            page.take_if(|page| page.address == address);
        }
        if !self.shared.contains(&address) {
            self.shared[self.next_shared] = address;
            self.next_shared = (self.next_shared + 1) % SHARED;
        }
    }

    /// Takes the addresses over from another process, of which this one is a copy, with what this one
    /// has there. They are remembered once it can write them.
    pub(super) fn inherit(
        &mut self,
        of: &Self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
    ) {
        *self = *of;
        self.in_vain = 0;
        for page in self.pages.iter_mut().flatten() {
            page.is_frozen = false;
            page.digest = None;
        }
        // What it has in their place by now is its own, and its parent's have not been left.
        self.look(memory, root, format, false, |_| ());
    }

    /// Returns the pages, each with what is in its place now.
    fn with_mappings<'a>(
        &'a self,
        memory: &'a impl GuestMemory,
        root: Root,
        format: RootFormat,
    ) -> impl Iterator<Item = (PrivatePage, Option<Mapping>)> + 'a {
        let mut mapper = Mapper::new(memory, root, format);
        self.iter()
            .map(move |page| (page, mapper.mapping(page.address)))
    }

    /// Returns whether any of the pages is what it was when the process was left.
    pub(super) fn keep_any(
        &self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
    ) -> bool {
        let mut pages = self.with_mappings(memory, root, format);
        pages.any(|(page, there)| there.is_some_and(|there| there.frame == page.frame))
    }

    /// Returns what has become of the pages since the process was left.
    pub(super) fn fate(&self, memory: &impl GuestMemory, root: Root, format: RootFormat) -> Fate {
        let mut fate = Fate::default();
        for (page, there) in self.with_mappings(memory, root, format) {
            match there {
                Some(there) if there.frame == page.frame => fate.kept += 1,
                Some(_) => fate.exchanged += 1,
                None => fate.taken += 1,
            }
        }
        fate
    }

    /// Looks for pages of a process that has just been named, for as long as that takes.
    pub(super) fn gather(&mut self, memory: &impl GuestMemory, root: Root, format: RootFormat) {
        self.search(memory, root, format, FIRST_SEARCH_LINES);
    }

    /// Looks at the pages of a process that has just run. `left` is told of each page that it does not have any
    /// more.
    ///
    /// A page that was frozen before may have been written, and frozen by another fork, meanwhile: whoever
    /// was left alone with it could write it. That is looked for if `reads_frozen` says so, which takes
    /// long: when the process is left, as it may not be there any more when a copy is seen, and has
    /// run for long enough for a fork.
    pub(super) fn look(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        reads_frozen: bool,
        mut left: impl FnMut(PrivatePage),
    ) -> Changes {
        let mut changes = Changes::default();
        let mut mapper = Mapper::new(memory, root, format);
        for place in &mut self.pages {
            let Some(page) = place else {
                continue;
            };
            match mapper.mapping(page.address) {
                Some(Mapping { frame, writable }) if frame == page.frame => {
                    if writable {
                        page.digest = None;
                    } else if reads_frozen || !page.is_frozen {
                        let contents = digest(memory, frame);
                        changes.may_have_forked |= !page.is_frozen || contents != page.digest;
                        page.digest = contents;
                    }
                    page.is_frozen = !writable;
                }
                Some(Mapping { frame, writable }) => {
                    changes.may_have_forked |= !page.is_frozen;
                    left(*page);
                    self.in_vain = 0;
                    *place = writable.then_some(PrivatePage {
                        frame,
                        is_frozen: false,
                        digest: None,
                        ..*page
                    });
                }
                None => {
                    *place = None;
                    self.in_vain = 0;
                }
            }
        }
        changes
    }

    /// Looks for some more pages. The process's stack pointer is `stack`, if it is known. `searches`: a search is to
    /// be made if any are missing, which takes long. Returns whether it was.
    pub(super) fn look_for_more(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        stack: Option<u64>,
        searches: bool,
    ) -> bool {
        if let Some(stack) = stack {
            self.note_stack(memory, root, format, stack);
        }
        let searches = searches && self.pages[1..].iter().any(Option::is_none);
        if searches {
            self.search(memory, root, format, SEARCH_LINES);
        }
        searches
    }

    /// Returns the least time between searches, in ticks: the longer, the more often there was nothing to be found,
    /// unless a process of its family has forked lately, and so `may_fork_again`.
    pub(super) fn search_interval(&self, may_fork_again: bool) -> u64 {
        if may_fork_again {
            SEARCH_INTERVAL
        } else {
            SEARCH_INTERVAL << self.in_vain.min(MOST_IN_VAIN)
        }
    }

    /// Returns whether the page at `address` is remembered already, or is not to be.
    fn has(&self, address: u64) -> bool {
        self.iter().any(|page| page.address == address) || self.shared.contains(&address)
    }

    fn note_stack(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        stack: u64,
    ) {
        let address = stack & !(PAGE_SIZE - 1);
        // A page that a fork has frozen is kept: the copy may be seen any moment.
        if self.has(address) || self.pages[0].is_some_and(|page| page.is_frozen) {
            return;
        }
        if let Some(page) = new_page(address, mapping(memory, root, format, address)) {
            self.pages[0] = Some(page);
        }
    }

    fn search(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        mut lines: u32,
    ) {
        while let Some(free) = self.pages[1..].iter().position(Option::is_none) {
            match next_writable(memory, root, format, self.cursor, &mut lines) {
                Search::Found(address, found) => {
                    self.cursor = address + PAGE_SIZE;
                    let region = address / REGION;
                    let of_region = self.pages[1..].iter().flatten();
                    let of_region = of_region.filter(|it| it.address / REGION == region).count();
                    if of_region >= PAGES_OF_A_REGION {
                        self.cursor = (region + 1) * REGION;
                    } else if !self.has(address) {
                        self.pages[1 + free] = new_page(address, Some(found));
                        self.finds = true;
                    }
                }
                Search::Unfinished(at) => {
                    self.cursor = at;
                    return;
                }
                Search::End => {
                    self.cursor = 0;
                    let finds = core::mem::take(&mut self.finds);
                    self.in_vain = if finds { 0 } else { self.in_vain + 1 };
                    return;
                }
            }
        }
    }
}

/// Returns the page at `address` with this mapping, if it can be written.
fn new_page(address: u64, mapping: Option<Mapping>) -> Option<PrivatePage> {
    let mapping = mapping.filter(|it| it.writable)?;
    Some(PrivatePage {
        address,
        frame: mapping.frame,
        is_frozen: false,
        digest: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::pages::tests::map;
    use super::*;
    use crate::test_ram::TestRam;

    const LONG: RootFormat = RootFormat::Long;

    #[test]
    fn searches_that_find_nothing_become_seldom_until_there_is_something_new() {
        let ram = TestRam::new(0x20000);
        let root = Root::new(0x1000, LONG);
        let mut tables = 0x10000;
        map(&ram, 0x1000, 0x40_0000, 0x7067, &mut tables);
        map(&ram, 0x1000, 0x40_1000, 0x8067, &mut tables);
        let mut pages = PrivatePages::NONE;
        pages.gather(&ram, root, LONG);
        assert_eq!(pages.iter().count(), 2);
        let search = |pages: &mut PrivatePages| {
            // Up to the end of the address space.
            assert!(pages.look_for_more(&ram, root, LONG, None, true));
            while pages.cursor != 0 {
                assert!(pages.look_for_more(&ram, root, LONG, None, true));
            }
            assert_eq!(pages.search_interval(true), SEARCH_INTERVAL);
            pages.search_interval(false)
        };
        let seldom: [u64; 8] = core::array::from_fn(|_| search(&mut pages));
        assert_eq!(
            seldom,
            [2, 4, 8, 16, 32, 64, 64, 64].map(|it| it * SEARCH_INTERVAL)
        );
        map(&ram, 0x1000, 0x80_0000, 0x9067, &mut tables);
        assert_eq!(search(&mut pages), SEARCH_INTERVAL);
        assert_eq!(search(&mut pages), 2 * SEARCH_INTERVAL);
        // One is unmapped.
        map(&ram, 0x1000, 0x40_1000, 0, &mut tables);
        pages.look(&ram, root, LONG, false, |_| ());
        assert_eq!(
            (pages.iter().count(), pages.search_interval(false)),
            (2, SEARCH_INTERVAL)
        );
    }
}
