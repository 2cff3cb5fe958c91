//! What a behavior works with: its process's counters, and the computation.

use crate::computation::{closed_form, stepwise};
use crate::counters::Slot;
use crate::say;

/// A process's work.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    slot: &'static Slot,
    index: usize,
    unit: u64,
    number: Option<u32>,
}

impl Work {
    /// Returns the work of process `index`, which counts in `slot` and computes `unit` steps at a
    /// time.
    /// `number` is for the behavior.
    #[must_use]
    pub const fn new(slot: &'static Slot, index: usize, unit: u64, number: Option<u32>) -> Self {
        Self {
            slot,
            index,
            unit,
            number,
        }
    }

    /// Returns the same work with units of so many steps.
    #[must_use]
    pub const fn with_unit(self, unit: u64) -> Self {
        Self { unit, ..self }
    }

    /// Returns whether the process was not asked to end.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        !self.slot.is_asked_to_end()
    }

    /// Returns the number that the process was started with, if any.
    #[must_use]
    pub const fn number(&self) -> Option<u32> {
        self.number
    }

    /// Returns the index of the process.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Returns the steps of a unit.
    #[must_use]
    pub const fn unit(&self) -> u64 {
        self.unit
    }

    /// Returns the counters of the process.
    #[must_use]
    pub const fn slot(&self) -> &'static Slot {
        self.slot
    }

    /// Counts a unit.
    pub fn count(&self) {
        self.slot.count(true);
    }

    /// Returns the computation of a thread of this process.
    #[must_use]
    pub fn computation(&self, thread: u32) -> Computation {
        // Each process and thread has its own numbers, so that one that sees another's registers is
        // wrong.
        let seed = self.index as u64 + (u64::from(thread) << 32);
        Computation { work: *self, seed }
    }
}

/// A computation that goes on for as long as its process lives.
#[derive(Clone, Copy, Debug)]
pub struct Computation {
    work: Work,
    seed: u64,
}

impl Computation {
    /// Computes so many units, or as many as there are until the process is asked to end.
    pub fn do_units(&mut self, units: u32) {
        for _ in 0..units {
            if !self.work.goes_on() {
                break;
            }
            self.do_unit();
        }
    }

    /// Computes one unit, and counts it.
    pub fn do_unit(&mut self) {
        let Self {
            work: Work {
                slot, index, unit, ..
            },
            seed,
        } = *self;
        let result = stepwise(seed, unit);
        let right = result == closed_form(seed, unit);
        slot.count(right);
        if !right && slot.wrong() == 1 {
            say!("process {index} computed {result:#x} from {seed:#x}: WRONG");
        }
        self.seed = result;
    }
}
