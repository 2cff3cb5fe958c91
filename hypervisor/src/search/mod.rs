//! Looks for a pattern in the memory of a guest's processes, knowing nothing of the guest but
//! its page tables.
//!
//! A [`Search`] goes through one address space in small steps, for guests run on meanwhile:
//! between two steps nothing is remembered of the tables, so they may change at will. What is
//! moved just then may be missed.
#![forbid(unsafe_code)]

pub(crate) mod pages;
pub(crate) mod pattern;

#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;

use memchr::memmem::Finder;
use vmx::addr::{GuestPhysAddr, GuestVirtAddr};

use crate::guest_memory::GuestMemory;
use crate::suppression::address_space::{Root, RootFormat};
use pages::{Reach, Region};

/// The most bytes that a step looks at.
const CHUNK: usize = 4096;
/// The most steps through one address space that find nothing mapped. A process of 100 MiB
/// has a tenth of it; page tables made to keep a searcher busy have no end otherwise.
const MAX_HOLES: u32 = 1 << 20;

/// A piece of memory that a step of a [`Walk`] comes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    /// The bytes that are there.
    pub bytes: &'a [u8],
    /// The virtual address of the first byte.
    pub start: u64,
    /// The number of bytes that were in the piece before as well, at the beginning.
    pub known: usize,
    /// The page that the others are in.
    pub page: Page,
    /// Whether all of that page is there.
    pub is_whole: bool,
}

/// A page that user mode can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// The guest-physical address of its memory.
    pub frame: GuestPhysAddr,
    /// Whether the process can write it.
    pub writable: bool,
}

/// A way through all that user mode can reach in one address space.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    root: Root,
    format: RootFormat,
    /// The virtual address where the next step begins.
    next: u64,
    /// The virtual address where it ends: that where it began, once it has been at the end of all.
    end: u64,
    /// The virtual address where it began, while it has not been at the end of all.
    begin: u64,
    /// The bytes that the last step ended with, in front of those that the next one reads: a match
    /// may lie across.
    buffer: Vec<u8>,
    /// The length of that, if what comes next follows in virtual space.
    kept: usize,
    holes_left: u32,
    bytes_left: u64,
}

impl Walk {
    /// Begins a way through the address space of `root`, in a guest with `ram` bytes of memory.
    /// It ends early when it has looked at four times as much.
    #[must_use]
    pub(crate) fn new(root: Root, format: RootFormat, ram: u64) -> Self {
        Self {
            root,
            format,
            next: 0,
            end: pages::end(format),
            begin: 0,
            buffer: vec![0; CHUNK],
            kept: 0,
            holes_left: MAX_HOLES,
            bytes_left: ram.saturating_mul(4),
        }
    }

    /// Makes it begin at the page of `address`, and come to what is before that in the end.
    #[must_use]
    pub(crate) fn starting_at(mut self, address: u64) -> Self {
        let page = address - address % CHUNK as u64;
        if page < self.end {
            self.next = page;
            self.begin = page;
        }
        self
    }

    /// Returns the root of the address space.
    #[must_use]
    pub(crate) const fn root(&self) -> Root {
        self.root
    }

    /// Returns the virtual address where the next step begins.
    #[must_use]
    pub(crate) const fn place(&self) -> u64 {
        self.next
    }

    /// Returns whether it has been gone to the end.
    #[must_use]
    pub(crate) const fn is_complete(&self) -> bool {
        self.next >= self.end && self.begin == 0
    }

    /// Goes on through some ranges that are not mapped, if there are, to a page, which is returned if it is
    /// found.
    fn next_page(&mut self, memory: &impl GuestMemory) -> Option<(Region, GuestPhysAddr)> {
        /// The levels of tables, each of which may have one, and the one between two mappings.
        const HOLES_AT_ONCE: u32 = 5;
        for _ in 0..HOLES_AT_ONCE.min(self.holes_left) {
            if self.next >= self.end {
                return None;
            }
            let at = GuestVirtAddr(self.next);
            let region = pages::region_at(memory, self.root, self.format, at, Reach::User);
            if let Some(frame) = region.frame {
                return Some((region, frame));
            }
            self.holes_left -= 1;
            self.kept = 0;
            self.next = region.end;
        }
        None
    }

    /// Goes on by a page, or by ranges that are not mapped. Calls `look` with what is there, and up to `overlap`
    /// bytes before it. Of a page that `skips` says is known, just what a match may be in that goes on from the
    /// page before is looked at. Returns whether there is more to do: if not, all has been gone through, or the
    /// bounds are reached.
    pub(crate) fn step(
        &mut self,
        memory: &impl GuestMemory,
        overlap: usize,
        skips: impl FnOnce(Page) -> bool,
        look: impl FnOnce(&Piece<'_>),
    ) -> bool {
        if self.next >= self.end && self.begin > 0 {
            // With the page where it began once more: a match may lie across.
            self.end = self.begin.saturating_add(CHUNK as u64).min(self.end);
            self.begin = 0;
            self.next = 0;
            self.kept = 0;
        }
        if self.is_complete() || self.bytes_left == 0 || self.holes_left == 0 {
            return false;
        }
        let Some((region, frame)) = self.next_page(memory) else {
            return true;
        };
        let at = self.next;
        let length = (region.end - at).min(CHUNK as u64) as usize;
        let page = Page {
            frame: GuestPhysAddr(frame.0.wrapping_add(at - region.start)),
            writable: region.writable,
        };
        self.next += length as u64;
        self.bytes_left = self.bytes_left.saturating_sub(length as u64);
        let is_skipped = length > overlap && skips(page);
        let wanted = if is_skipped { overlap } else { length };
        let end = self.kept + wanted;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let read = |from: u64, place: &mut [u8]| {
            let from = GuestPhysAddr(page.frame.0.wrapping_add(from));
            memory.read(from, place).is_ok()
        };
        if !read(0, &mut self.buffer[self.kept..end]) {
            // A device's, or nothing's.
            self.kept = 0;
            return true;
        }
        if !is_skipped || self.kept > 0 {
            look(&Piece {
                bytes: &self.buffer[..end],
                start: at.wrapping_sub(self.kept as u64),
                known: self.kept,
                page,
                is_whole: !is_skipped,
            });
        }
        if is_skipped {
            let rest = (length - overlap) as u64;
            let is_there = read(rest, &mut self.buffer[..overlap]);
            self.kept = if is_there { overlap } else { 0 };
        } else {
            let kept = overlap.min(end);
            self.buffer.copy_within(end - kept..end, 0);
            self.kept = kept;
        }
        true
    }
}

/// A search through one address space.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    walk: Walk,
    first: Option<GuestVirtAddr>,
    matches: u64,
}

impl Search {
    /// Begins a search, with the bounds of a [`Walk`].
    #[must_use]
    pub(crate) fn new(root: Root, format: RootFormat, ram: u64) -> Self {
        Self {
            walk: Walk::new(root, format, ram),
            first: None,
            matches: 0,
        }
    }

    /// Returns the virtual address of the first match so far.
    #[must_use]
    pub(crate) const fn first(&self) -> Option<GuestVirtAddr> {
        self.first
    }

    /// Returns the number of matches so far, overlapping ones included.
    #[must_use]
    pub(crate) const fn matches(&self) -> u64 {
        self.matches
    }

    /// Returns whether all of the address space has been searched.
    #[must_use]
    pub(crate) const fn is_complete(&self) -> bool {
        self.walk.is_complete()
    }

    /// Goes on by a page, or by a range that is not mapped. Returns whether there is more to
    /// do: if not, all has been searched, or the bounds are reached.
    pub(crate) fn step(&mut self, memory: &impl GuestMemory, pattern: &Finder<'_>) -> bool {
        // Too short for a match of its own: none is counted twice.
        let overlap = pattern.needle().len().saturating_sub(1);
        let Self {
            walk,
            first,
            matches,
        } = self;
        let look = |piece: &Piece<'_>| {
            let mut from = 0;
            while let Some(found) = piece.bytes.get(from..).and_then(|it| pattern.find(it)) {
                let place = GuestVirtAddr(piece.start.wrapping_add((from + found) as u64));
                first.get_or_insert(place);
                *matches += 1;
                from += found + 1;
            }
        };
        walk.step(memory, overlap, |_| false, look)
    }
}
