//! Memory that was searched a moment ago and holds none of the patterns: processes have most of theirs in
//! common, as they run the same programs.
//!
//! Only memory that the process at hand cannot write is remembered, and not for long: others may be able to
//! write it, and it may be freed and filled anew.

use alloc::vec;
use alloc::vec::Vec;

use arch::paging::PAGE_SIZE;
use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;

/// The pages that are remembered at most: those of some large programs.
const PLACES: usize = 4096;

/// The pages. Each has one place, and makes the one that was there before forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct CleanFrames {
    /// The addresses, and the times until which they are known; empty while nothing is.
    places: Vec<(GuestPhysAddr, HostTicks)>,
}

impl CleanFrames {
    /// Returns whether the page at `frame` is known not to hold any pattern.
    pub(super) fn has(&self, frame: GuestPhysAddr, now: HostTicks) -> bool {
        let place = self.places.get(place_of(frame));
        place.is_some_and(|&(known, until)| known == frame && now < until)
    }

    /// Takes note that the page at `frame` holds none, which is good until then.
    pub(super) fn add(&mut self, frame: GuestPhysAddr, until: HostTicks) {
        if self.places.is_empty() {
            self.places = vec![(GuestPhysAddr(0), HostTicks(0)); PLACES];
        }
        if let Some(place) = self.places.get_mut(place_of(frame)) {
            *place = (frame, until);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.places.clear();
    }
}

const fn place_of(frame: GuestPhysAddr) -> usize {
    (frame.0 / PAGE_SIZE) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_for_a_while() {
        let frame = GuestPhysAddr(0x12_3000);
        let mut frames = CleanFrames::default();
        assert!(!frames.has(frame, HostTicks(0)));
        frames.add(frame, HostTicks(100));
        assert!(frames.has(frame, HostTicks(99)));
        assert!(!frames.has(frame, HostTicks(100)));
        assert!(
            !frames.has(GuestPhysAddr(0), HostTicks(0)),
            "an empty place"
        );
        frames.clear();
        assert!(!frames.has(frame, HostTicks(0)));
    }

    #[test]
    fn the_latest_page_has_the_place() {
        let (one, other) = (
            GuestPhysAddr(0x1000),
            GuestPhysAddr(0x1000 + (PLACES as u64) * PAGE_SIZE),
        );
        let mut frames = CleanFrames::default();
        frames.add(one, HostTicks(100));
        frames.add(other, HostTicks(100));
        assert!(!frames.has(one, HostTicks(0)) && frames.has(other, HostTicks(0)));
    }
}
