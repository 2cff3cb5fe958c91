//! What the processes have finished, in a page that they share.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::parameters::MAX_PROCESSES;

/// One process's place. A cache line of its own, so that counting does not slow the neighbors.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Slot {
    finished: AtomicU64,
    wrong: AtomicU64,
    asked_to_end: AtomicBool,
}

impl Slot {
    /// The offset of the units finished, for code that is not Rust's; a `u64`, as [`Self::WRONG`].
    pub const FINISHED: usize = core::mem::offset_of!(Self, finished);
    /// The offset of the units whose result was wrong.
    pub const WRONG: usize = core::mem::offset_of!(Self, wrong);
    /// The offset of a byte that is not 0 where the slot's process was asked to end.
    pub const ASKED_TO_END: usize = core::mem::offset_of!(Self, asked_to_end);

    /// Returns a place with nothing counted.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            finished: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            asked_to_end: AtomicBool::new(false),
        }
    }

    /// Units finished, whose result was right.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Units whose result was wrong.
    #[must_use]
    pub fn wrong(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    /// Counts a unit.
    pub fn count(&self, right: bool) {
        let counter = if right { &self.finished } else { &self.wrong };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes it a place with nothing counted, for a process to come.
    pub fn clear(&self) {
        self.finished.store(0, Ordering::Relaxed);
        self.wrong.store(0, Ordering::Relaxed);
        self.asked_to_end.store(false, Ordering::Relaxed);
    }

    /// Asks the slot's process to end after its present unit.
    pub fn ask_to_end(&self) {
        self.asked_to_end.store(true, Ordering::Relaxed);
    }

    /// Returns whether the slot's process was asked to end.
    #[must_use]
    pub fn is_asked_to_end(&self) -> bool {
        self.asked_to_end.load(Ordering::Relaxed)
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

/// The shared page: one slot for each process that ever was.
pub type Counters = [Slot; MAX_PROCESSES];

const _: () = assert!(size_of::<Counters>() == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_and_wrong_units_are_counted_apart() {
        let slot = Slot::new();
        slot.count(true);
        slot.count(true);
        slot.count(false);
        assert_eq!((slot.finished(), slot.wrong()), (2, 1));
    }

    #[test]
    fn a_place_can_be_used_again() {
        let slot = Slot::new();
        slot.count(true);
        slot.count(false);
        slot.ask_to_end();
        slot.clear();
        assert_eq!((slot.finished(), slot.wrong()), (0, 0));
        assert!(!slot.is_asked_to_end());
    }
}
