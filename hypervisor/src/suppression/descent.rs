//! Whether a process is a copy of a member of a family.
//!
//! # The sign of a fork
//! A member could write a page, and so it was its own, or shared on purpose. Later a root is seen that
//! refers to the same memory at the same address, and may not write it. That is what a fork leaves: both
//! have the page, neither may write, and who writes gets another. It counts where the member cannot
//! write the page either. It counts as well where the member does not have the page any more, as it has
//! got another in its place or has ended, if the page's contents are what they were: nobody can have
//! changed them as long as there is a copy, and memory that is freed is filled anew before somebody else
//! has it.
//!
//! Where the member can still write the page, and somebody else has it as well, it is shared on
//! purpose. Such a page never counts again.
//!
//! # What it relies on
//! On a kernel that copies on write, as all do that matter, with page tables that the processor walks.
//! Nothing is taken from a kernel's structures.
//!
//! # What could fool it
//! - A process whose pages are all shared on purpose, or that writes all remembered pages of its copy before
//!   that is seen, is not followed. While the parent runs its switches exit, and after its pages are frozen
//!   those of others do for a while, so a copy is mostly seen before it has run at all.
//! - Shared memory that becomes read-only in all who share it, such as a mapped file that is written
//!   back, looks like frozen memory. Where those who share it were seen before, it is known as shared.
//! - Memory that was freed and is given to the same program, at the same address and with the same contents,
//!   which then forks: all of that, and within the few seconds for which left memory counts. Memory
//!   of nothing but zeros never counts.
//! - Kernels that merge equal pages (KSM) make them read-only in several processes, at addresses that
//!   may be equal by chance. It takes a program that asks for it, in several processes of
//!   the same layout.

#![forbid(unsafe_code)]

use arch::paging::PAGE_SIZE;
use devices::time::HostTicks;

use super::address_space::Root;
use super::pages::{Mapper, Mapping, mapping};
use super::target::Target;
use crate::guest_memory::GuestMemory;

/// The walks through page tables that are made for one root at most, on the way of an exit.
const MOST_WALKS: u32 = 256;
/// The walks that are remembered for as long as a root is looked at.
const KNOWN_WALKS: usize = 32;

/// The relation of a process to a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// A copy of the member of this number.
    Child(u32),
    /// A process that shares a page with a member on purpose, at this address.
    Sharer(u64),
    /// None.
    Stranger,
}

/// The walks that may still be made.
pub(super) struct Walks(u32);

impl Walks {
    /// Returns those of one exit.
    pub(super) const fn of_one_exit() -> Self {
        Self(MOST_WALKS)
    }

    /// Takes one, if there are any left.
    const fn take(&mut self) -> bool {
        let is_left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        is_left
    }
}

/// A process that may be a copy: what it has at an address is walked to once. The members of a family
/// are known by the same few addresses.
struct Candidate<'a, M> {
    mapper: Mapper<'a, M>,
    known: [Option<(u64, Option<Mapping>)>; KNOWN_WALKS],
}

impl<M: GuestMemory> Candidate<'_, M> {
    /// Returns what it has at `address`, if it is not found out that it is nothing, and there are
    /// `walks` left.
    fn at(&mut self, address: u64, walks: &mut Walks) -> Option<Mapping> {
        let page = address / PAGE_SIZE;
        // Stacks and data begin at round addresses.
        let place = (page ^ page >> 9 ^ page >> 18) as usize % KNOWN_WALKS;
        match self.known[place] {
            Some((known, mapping)) if known == address => mapping,
            _ => {
                let mapping = walks.take().then(|| self.mapper.mapping(address))?;
                self.known[place] = Some((address, mapping));
                mapping
            }
        }
    }
}

/// Returns the relation of the process of `root` to the family `target`, as far as `walks` tell. Pages
/// that members do not have any more count for `most` ticks. `is_loaded` tells of the member of a number whether a
/// VCPU has its root.
pub(super) fn relation(
    memory: &impl GuestMemory,
    root: Root,
    target: &Target,
    is_loaded: impl Fn(u32) -> bool,
    most: u64,
    walks: &mut Walks,
    now: HostTicks,
) -> Relation {
    let format = target.format();
    let mut candidate = Candidate {
        mapper: Mapper::new(memory, root, format),
        known: [None; KNOWN_WALKS],
    };
    let mut parent = None;
    for member in target.living() {
        for page in member.pages.iter() {
            let there = candidate.at(page.address, walks);
            let Some(there) = there.filter(|it| it.frame == page.frame) else {
                continue;
            };
            if !walks.take() {
                continue;
            }
            let own = mapping(memory, member.root(format), format, page.address);
            let is_copy = match own.filter(|own| own.frame == page.frame) {
                Some(own) if own.writable => return Relation::Sharer(page.address),
                // It runs elsewhere at this moment, and has forked since it was looked at. One that does
                // not run does not fork: its root is somebody else's by now.
                Some(_) if !page.is_frozen => is_loaded(member.id),
                Some(_) => page.has_same_contents(memory),
                // The member has come to its end, unseen, or runs elsewhere at this moment. The memory may
                // be somebody else's by now.
                None => page.stands(memory),
            };
            if is_copy && !there.writable {
                // Of two that have it, the one that is looked at first is as good as the other.
                parent = parent.or(Some(member.id));
            }
        }
    }
    let mut has_left = || {
        let mut frames = target.left.iter();
        frames.find_map(|frame| {
            let there = candidate.at(frame.page.address, walks)?;
            let is_copy = there.frame == frame.page.frame
                && !there.writable
                && frame.stands(memory, most, now);
            is_copy.then_some(frame.member)
        })
    };
    match parent.or_else(&mut has_left) {
        Some(parent) => Relation::Child(parent),
        None => Relation::Stranger,
    }
}
