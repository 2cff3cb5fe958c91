//! Whether a process is a copy of a member of a family.
//!
//! # The sign of a fork
//! A member could write a page, and so it was its own, or shared on purpose. Later a root is seen that
//! refers to the same memory at the same address, and may not write it. That is what a fork leaves: both
//! have the page, neither may write, and who writes gets another. It counts where the member cannot
//! write the page either, or has got another in its place since; then the page's contents are what they
//! were, which nobody can have changed as long as there is a copy. Memory that is freed is not: it is
//! filled anew before somebody else has it.
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
//! - Kernels that merge equal pages (KSM) make them read-only in several processes, at addresses that
//!   may be equal by chance. It takes a program that asks for it, in several processes of
//!   the same layout.

#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::address_space::{Root, RootFormat};
use super::left_frames::LeftFrames;
use super::member::Member;
use super::pages::mapping;
use crate::guest_memory::GuestMemory;

/// The pages that are looked at for one root at most, on the way of an exit.
const MOST_PAGES: usize = 160;

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

/// Returns the relation of the process of `root` to a family of these living `members`. `left` are
/// the pages that members do not have any more, which count for `most` ticks.
pub(super) fn relation<'a>(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
    members: impl Iterator<Item = &'a Member>,
    left: &LeftFrames,
    most: u64,
    now: HostTicks,
) -> Relation {
    let mut pages = 0;
    let mut parent = None;
    for member in members {
        for page in member.pages.iter() {
            if pages >= MOST_PAGES {
                break;
            }
            pages += 1;
            let Some(there) = mapping(memory, root, format, page.address) else {
                continue;
            };
            if there.frame != page.frame {
                continue;
            }
            match mapping(memory, member.root(format), format, page.address) {
                Some(own) if own.frame == page.frame && own.writable => {
                    return Relation::Sharer(page.address);
                }
                // Of two that have it, the one that is looked at first is as good as the other.
                Some(_) if !there.writable => parent = parent.or(Some(member.id)),
                _ => {}
            }
        }
    }
    let has_left = || {
        let mut frames = left.iter();
        frames.find_map(|frame| {
            let there = mapping(memory, root, format, frame.page.address)?;
            let is_copy = there.frame == frame.page.frame
                && !there.writable
                && frame.stands(memory, most, now);
            is_copy.then_some(frame.member)
        })
    };
    match parent.or_else(has_left) {
        Some(parent) => Relation::Child(parent),
        None => Relation::Stranger,
    }
}
