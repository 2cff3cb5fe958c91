//! The memory that members of a family do not have any more: they have got other pages in its place, or
//! have come to their end. A copy may still have it.
//!
//! Nobody can write what a fork has frozen, for as long as a copy has it. So its contents say whether it
//! is what it was: memory that is free is filled anew before anybody else gets it. The contents are those
//! of a time at which the member had it, or had it just before: later they may be somebody else's. One that has
//! ended may have left what was seen to be frozen long before, so for that they are those that it had when that was seen.

#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::pages::digest;
use super::private_pages::PrivatePage;
use crate::guest_memory::GuestMemory;

const CAPACITY: usize = 32;

/// A page that a member had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftFrame {
    /// The page, as the member had it.
    pub page: PrivatePage,
    /// The number of the member.
    pub member: u32,
    digest: u64,
    since: HostTicks,
}

impl LeftFrame {
    /// Returns whether the memory has what it had when it was left, not longer than `most` ticks ago.
    pub(super) fn stands(&self, memory: &impl GuestMemory, most: u64, now: HostTicks) -> bool {
        now.since(self.since) <= most && digest(memory, self.page.frame) == Some(self.digest)
    }
}

/// The latest pages that members had.
#[derive(Clone, Debug)]
pub(super) struct LeftFrames {
    frames: [Option<LeftFrame>; CAPACITY],
    next: usize,
}

impl LeftFrames {
    pub(super) const NONE: Self = Self {
        frames: [None; CAPACITY],
        next: 0,
    };

    /// Takes note that member `member`, which has run until `now`, does not have `page` any more.
    pub(super) fn add(
        &mut self,
        memory: &impl GuestMemory,
        page: PrivatePage,
        member: u32,
        now: HostTicks,
    ) {
        self.push(page, member, digest(memory, page.frame), now);
    }

    /// Takes note that member `member` does not have `page` any more, since some time before `now`: only
    /// if it was frozen then, it is known what it had.
    pub(super) fn add_late(&mut self, page: PrivatePage, member: u32, now: HostTicks) {
        self.push(page, member, page.digest, now);
    }

    fn push(&mut self, page: PrivatePage, member: u32, digest: Option<u64>, now: HostTicks) {
        let Some(digest) = digest else {
            return;
        };
        self.frames[self.next] = Some(LeftFrame {
            page,
            member,
            digest,
            since: now,
        });
        self.next = (self.next + 1) % CAPACITY;
    }

    /// Returns them, the latest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &LeftFrame> + '_ {
        let (newer, older) = self.frames.split_at(self.next);
        newer.iter().rev().chain(older.iter().rev()).flatten()
    }

    /// Forgets the page at `address`: it is shared on purpose.
    pub(super) fn forget(&mut self, address: u64) {
        for frame in &mut self.frames {
            frame.take_if(|frame| frame.page.address == address);
        }
    }
}
