//! The pages in which patterns were found: others may have the same ones at the same addresses, as who
//! forks shares its memory with its children, and those with each other.

use alloc::collections::VecDeque;

use arch::paging::PAGE_SIZE;
use vmx::addr::{GuestPhysAddr, GuestVirtAddr};

use super::patterns::PatternSet;
use super::searcher::Guest;
use crate::guest_memory::GuestMemory;
use crate::search::pages::{Reach, region_at};
use crate::suppression::address_space::Root;

/// The pages that are remembered, the latest ones.
const PAGES: usize = 8;

/// A page that holds a pattern.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedPage {
    /// The number of the rule whose pattern it is.
    pub rule: u32,
    /// The virtual address of the pattern.
    pub address: u64,
    /// The guest-physical address of the page.
    pub frame: GuestPhysAddr,
}

impl SharedPage {
    /// Returns whether the process of `root` has the page where it was found, and the page still holds the
    /// pattern.
    pub(super) fn is_in<M: GuestMemory>(
        &self,
        guest: &Guest<'_, M>,
        patterns: &PatternSet,
        root: Root,
    ) -> bool {
        let at = GuestVirtAddr(self.address);
        let region = region_at(guest.memory, root, guest.format, at, Reach::User);
        let offset = (self.address - region.start) & !(PAGE_SIZE - 1);
        let frame = region
            .frame
            .map(|it| GuestPhysAddr(it.0.wrapping_add(offset)));
        frame == Some(self.frame) && self.holds_still(guest.memory, patterns)
    }

    /// Returns whether the page holds the pattern where it did: it may have been freed and filled anew.
    fn holds_still(&self, memory: &impl GuestMemory, patterns: &PatternSet) -> bool {
        let mut page = [0; PAGE_SIZE as usize];
        if memory.read(self.frame, &mut page).is_err() {
            return false;
        }
        let offset = (self.address % PAGE_SIZE) as usize;
        let mut holds = false;
        patterns.find(&page, 0, |rule, at| {
            holds |= rule == self.rule && at == offset
        });
        holds
    }
}

/// The pages, each with the root behind which those that were there already are looked at next; `None`
/// behind the last one.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedPages {
    pages: VecDeque<(SharedPage, Option<Option<Root>>)>,
}

impl SharedPages {
    /// Takes note of a page, and forgets the oldest one if there are many.
    pub(super) fn add(&mut self, page: SharedPage) {
        if self.pages.len() >= PAGES {
            self.pages.pop_front();
        }
        self.pages.push_back((page, Some(None)));
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.pages.clear();
    }

    /// Returns whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Returns the pages.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SharedPage> + '_ {
        self.pages.iter().map(|(page, _)| page)
    }

    /// Returns a page that not all have been looked at for that were there already, and the root behind which
    /// those are.
    pub(super) fn unfinished(&self) -> Option<(usize, SharedPage, Option<Root>)> {
        let mut pages = self.pages.iter().enumerate();
        pages.find_map(|(index, (page, behind))| Some((index, *page, (*behind)?)))
    }

    /// Takes note that those up to `last` have been looked at for page `index`; `None` if all have.
    pub(super) fn looked_up_to(&mut self, index: usize, last: Option<Root>) {
        if let Some((_, behind)) = self.pages.get_mut(index) {
            *behind = last.map(Some);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::pattern::Pattern;
    use crate::suppression::address_space::RootFormat;
    use crate::test_ram::TestRam;

    const PAGE: SharedPage = SharedPage {
        rule: 1,
        address: 0x5123,
        frame: GuestPhysAddr(0x9000),
    };

    #[test]
    fn who_has_the_page_has_the_pattern_unless_it_was_filled_anew() {
        let ram = TestRam::new(0x1_0000);
        for (slot, entry) in [(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0x4067)] {
            ram.write_u64(slot, entry);
        }
        ram.write_u64(0x4000 + 5 * 8, 0x9065);
        ram.write_u64(0x4000 + 6 * 8, 0xa065);
        ram.write(GuestPhysAddr(0x9123), b"EVIL").unwrap();
        let guest = Guest {
            memory: &ram,
            ram: 0x1_0000,
            format: RootFormat::Long,
        };
        let pattern = Pattern::parse("EVIL").unwrap();
        let patterns = PatternSet::new([(1, &pattern)].into_iter());
        let root = Root::new(0x1000, RootFormat::Long);
        assert!(PAGE.is_in(&guest, &patterns, root));
        let elsewhere = SharedPage {
            address: 0x6123,
            ..PAGE
        };
        assert!(!elsewhere.is_in(&guest, &patterns, root));
        ram.write(GuestPhysAddr(0x9123), b"free").unwrap();
        assert!(!PAGE.is_in(&guest, &patterns, root));
    }

    #[test]
    fn each_page_is_gone_through_once_and_the_oldest_makes_way() {
        let mut pages = SharedPages::default();
        let root = Root::new(0x1000, RootFormat::Long);
        pages.add(PAGE);
        assert!(matches!(pages.unfinished(), Some((0, _, None))));
        pages.looked_up_to(0, Some(root));
        assert!(matches!(pages.unfinished(), Some((0, _, Some(it))) if it == root));
        pages.looked_up_to(0, None);
        assert!(pages.unfinished().is_none());
        for rule in 2..12 {
            pages.add(SharedPage { rule, ..PAGE });
        }
        let rules: alloc::vec::Vec<u32> = pages.iter().map(|page| page.rule).collect();
        assert_eq!(rules, [4, 5, 6, 7, 8, 9, 10, 11]);
    }
}
