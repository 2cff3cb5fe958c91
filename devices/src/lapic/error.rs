//! The error status register (SDM vol. 3A, 11.5.3).

use arch::apic::{Register, esr};

use super::LocalApic;

/// Errors seen since the last write of the ESR, and whether the next one interrupts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errors {
    seen: u32,
    armed: bool,
}

impl Errors {
    pub(super) const fn new() -> Self {
        Self {
            seen: 0,
            armed: true,
        }
    }
}

impl LocalApic {
    /// Records an error and raises the error interrupt, once until the ESR is written.
    #[cold]
    pub(super) fn record_error(&mut self, error: u32) {
        self.errors.seen |= error;
        if self.errors.armed && self.lvt_unmasked(Register::LVT_ERROR).is_some() {
            // Before raising: if the entry's own vector is illegal, that is recorded, but
            // must not interrupt again.
            self.errors.armed = false;
            self.raise_lvt(Register::LVT_ERROR);
        }
    }

    pub(super) fn receive_illegal_vector(&mut self) {
        self.record_error(esr::RECEIVE_ILLEGAL_VECTOR);
    }

    /// Takes a write of the ESR: shows what has been seen since the last one.
    pub(super) fn write_esr(&mut self) {
        self.page().write(Register::ESR, self.errors.seen);
        self.errors = Errors::new();
    }
}
