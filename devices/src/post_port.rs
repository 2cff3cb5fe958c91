//! The POST diagnostic port.
//!
//! Firmware writes its progress to it, and the rest of the world writes to it to let a
//! microsecond pass (`io_delay` in Linux).

/// The port at 0x80: a latch that a diagnostic card would show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PostPort {
    last: u8,
}

impl PostPort {
    /// Nothing written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: 0 }
    }

    /// The last code written. Chipsets let the port be read back.
    #[must_use]
    pub const fn read(self) -> u8 {
        self.last
    }

    /// Shows `code`.
    pub const fn write(&mut self, code: u8) {
        self.last = code;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_code_can_be_read() {
        let mut port = PostPort::new();
        port.write(0x12);
        port.write(0x34);
        assert_eq!(port.read(), 0x34);
    }
}
