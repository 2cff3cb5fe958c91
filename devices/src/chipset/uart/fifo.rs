//! The receive FIFO of the UART, or the single receiver buffer while the FIFOs are off.

/// An item that the receiver has got off the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Byte(u8),
    /// A break, which reads as a byte of zero.
    Break,
}

/// FCR bits.
const ENABLE: u8 = 1 << 0;
const CLEAR_RECEIVER: u8 = 1 << 1;
const TRIGGER_SHIFT: u32 = 6;

/// Bytes in the FIFO when the received-data interrupt comes, by FCR bits 7:6.
const TRIGGER_LEVELS: [u8; 4] = [1, 4, 8, 14];

#[derive(Clone, Debug)]
pub(super) struct Fifo {
    bytes: [u8; Self::SIZE],
    /// The places that hold a break: a bit for each.
    breaks: u16,
    head: u8,
    length: u8,
    enabled: bool,
    trigger: u8,
}

impl Fifo {
    const SIZE: usize = 16;

    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; Self::SIZE],
            breaks: 0,
            head: 0,
            length: 0,
            enabled: false,
            trigger: 1,
        }
    }

    pub(super) const fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) const fn is_full(&self) -> bool {
        self.length as usize >= if self.enabled { Self::SIZE } else { 1 }
    }

    pub(super) const fn at_trigger_level(&self) -> bool {
        self.length >= if self.enabled { self.trigger } else { 1 }
    }

    pub(super) const fn head_is_break(&self) -> bool {
        self.length != 0 && self.breaks & (1 << self.head) != 0
    }

    /// Settles that LSR has told of the error of the byte at the head: the byte stays, its error
    /// does not (data sheet, "line status register", bit 7).
    pub(super) const fn settle_head_error(&mut self) {
        self.breaks &= !(1 << self.head);
    }

    /// Returns whether an error is anywhere in the FIFO; without FIFOs, LSR does not tell.
    pub(super) const fn holds_error(&self) -> bool {
        self.enabled && self.breaks != 0
    }

    /// Writes FCR. Returns whether the receiver was cleared.
    pub(super) const fn control(&mut self, value: u8) -> bool {
        let enable = value & ENABLE != 0;
        let clear = enable != self.enabled || (enable && value & CLEAR_RECEIVER != 0);
        self.enabled = enable;
        // The other bits count only together with the enable bit.
        if enable {
            self.trigger = TRIGGER_LEVELS[(value >> TRIGGER_SHIFT) as usize];
        }
        if clear {
            self.breaks = 0;
            self.head = 0;
            self.length = 0;
        }
        clear
    }

    /// Returns whether there was room. A full FIFO keeps what it has; the single receiver
    /// buffer is overwritten.
    pub(super) const fn put(&mut self, received: Received) -> bool {
        let room = !self.is_full();
        if !room {
            if self.enabled {
                return false;
            }
            self.length = 0;
        }
        let place = (self.head as usize + self.length as usize) % Self::SIZE;
        self.bytes[place] = match received {
            Received::Byte(byte) => byte,
            Received::Break => 0,
        };
        if matches!(received, Received::Break) {
            self.breaks |= 1 << place;
        } else {
            self.breaks &= !(1 << place);
        }
        self.length += 1;
        room
    }

    /// Removes the head; of an empty FIFO, reads what was there last.
    pub(super) const fn take(&mut self) -> u8 {
        let byte = self.bytes[self.head as usize % Self::SIZE];
        if self.length != 0 {
            self.breaks &= !(1 << self.head);
            self.length -= 1;
            // Without FIFOs the one buffer stays where it is.
            if self.enabled {
                self.head = (self.head + 1) % Self::SIZE as u8;
            }
        }
        byte
    }
}
