//! The POST diagnostic port.
//!
//! Firmware writes its progress to it, and the rest of the world writes to it to let a
//! microsecond pass (`io_delay` in Linux).

use super::bus::{Access, Context, Device};

/// The port at 0x80: a latch that a diagnostic card would show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PostPort {
    last: u8,
}

impl PostPort {
    /// Makes a port to which nothing has been written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: 0 }
    }

    /// Returns the last code written.
    #[must_use]
    pub const fn last(self) -> u8 {
        self.last
    }
}

impl Device for PostPort {
    /// Chipsets let the port be read back.
    fn read(&mut self, _: Access, _: &mut Context<'_>) -> u64 {
        self.last.into()
    }

    fn write(&mut self, _: Access, value: u64, _: &mut Context<'_>) {
        self.last = value as u8;
    }

    fn reset(&mut self, _: &mut Context<'_>) {
        *self = Self::new();
    }
}
