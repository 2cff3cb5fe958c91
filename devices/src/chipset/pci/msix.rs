//! MSI-X: a table of messages in a BAR, one for each interrupt of a function (PCI 3.0, 6.8.2).

use alloc::vec;
use alloc::vec::Vec;

use arch::apic::icr;

use crate::apic_message::{ApicMessage, Destination, DestinationMode, Trigger};

/// The capability's identifier.
pub const CAPABILITY: u8 = 0x11;
/// The bits of the message control register that software may write: enable and function mask.
pub const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// The length of an entry: address, upper address, data, control.
const ENTRY: u64 = 16;
/// Vector control: masked.
const MASKED: u32 = 1 << 0;

/// The offset of the pending bits, behind the table, in the BAR that holds nothing else.
const PENDING: u64 = 0x800;
/// The size of that BAR.
pub const BAR_SIZE: u32 = 0x1000;
/// The most entries that fit before the pending bits.
pub const MAX_VECTORS: usize = 64;

/// An interrupt message, as software writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    words: [u32; 4],
    pending: bool,
}

/// The table of a function, and its pending bits.
#[derive(Clone, Debug)]
pub struct MsixTable {
    entries: Vec<Entry>,
    control: u16,
}

impl MsixTable {
    /// Makes a table of `vectors` entries, at most [`MAX_VECTORS`], all masked.
    #[must_use]
    pub fn new(vectors: usize) -> Self {
        debug_assert!(vectors <= MAX_VECTORS);
        let entry = Entry {
            words: [0, 0, 0, MASKED],
            pending: false,
        };
        Self {
            entries: vec![entry; vectors.min(MAX_VECTORS)],
            control: 0,
        }
    }

    /// Returns the body of the capability for a table in BAR `bar`: message control, and where the
    /// table and the pending bits are.
    #[must_use]
    pub fn capability(&self, bar: u8) -> [u8; 10] {
        let mut body = [0; 10];
        let last = self.entries.len().saturating_sub(1) as u16;
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        let pending = PENDING as u32 | u32::from(bar);
        body[6..].copy_from_slice(&pending.to_le_bytes());
        body
    }

    /// Tells whether the function interrupts by messages.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Follows a write of the message control register. `send` gets the messages that waited.
    pub fn set_control(&mut self, control: u16, send: &mut dyn FnMut(ApicMessage)) {
        self.control = control & CONTROL_WRITABLE;
        for vector in 0..self.entries.len() {
            self.release(vector, send);
        }
    }

    /// Interrupts by the message of `vector`, or lets it wait if that is masked. There is nothing
    /// to do for a vector that does not exist, or while messages are off.
    pub fn interrupt(&mut self, vector: u16, send: &mut dyn FnMut(ApicMessage)) {
        if !self.is_enabled() {
            return;
        }
        if let Some(entry) = self.entries.get_mut(usize::from(vector)) {
            entry.pending = true;
            self.release(vector.into(), send);
        }
    }

    /// Sends a message that waits, if nothing masks it.
    fn release(&mut self, vector: usize, send: &mut dyn FnMut(ApicMessage)) {
        if self.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return;
        }
        let Some(entry) = self.entries.get_mut(vector) else {
            return;
        };
        if entry.pending && entry.words[3] & MASKED == 0 {
            entry.pending = false;
            if let Some(message) = decode(entry.words) {
                send(message);
            }
        }
    }

    /// Reads from the BAR. Accesses are of 4 or 8 aligned bytes (6.8.2); others read as zero.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        match size {
            4 if offset.is_multiple_of(4) => self.read_word(offset).into(),
            8 if offset.is_multiple_of(8) => {
                let high = self.read_word(offset + 4);
                u64::from(self.read_word(offset)) | u64::from(high) << 32
            }
            _ => 0,
        }
    }

    fn read_word(&self, offset: u64) -> u32 {
        if let Some(offset) = offset.checked_sub(PENDING) {
            let first = (offset * 8) as usize;
            return (0..32)
                .filter(|bit| {
                    let entry = self.entries.get(first + bit);
                    entry.is_some_and(|entry| entry.pending)
                })
                .fold(0, |word, bit| word | 1 << bit);
        }
        let entry = self.entries.get((offset / ENTRY) as usize);
        entry.map_or(0, |entry| entry.words[(offset % ENTRY / 4) as usize])
    }

    /// Writes to the BAR. `send` gets a message that waited and is not masked any more.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, send: &mut dyn FnMut(ApicMessage)) {
        match size {
            4 if offset.is_multiple_of(4) => self.write_word(offset, value as u32),
            8 if offset.is_multiple_of(8) => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            _ => return,
        }
        self.release((offset / ENTRY) as usize, send);
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let Some(entry) = self.entries.get_mut((offset / ENTRY) as usize) else {
            return;
        };
        let (word, writable) = match offset % ENTRY / 4 {
            // Messages are aligned.
            0 => (0, !3),
            1 => (1, u32::MAX),
            2 => (2, u32::MAX),
            _ => (3, MASKED),
        };
        entry.words[word] = value & writable;
    }

    /// Puts it back into the state after reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.entries.len());
    }
}

/// Returns the message that a write of `data` to `address` is to the local APICs (SDM vol. 3A, 11.11).
/// `None` for one that goes elsewhere, or that no device can send.
fn decode([low, high, data, _]: [u32; 4]) -> Option<ApicMessage> {
    const LOGICAL: u32 = 1 << 2;
    const LOCAL_APICS: u32 = 0xfee;
    if high != 0 || low >> 20 != LOCAL_APICS {
        return None;
    }
    // The manual has the mode count only beside the redirection hint (bit 3). Processors go by it
    // in any case, and Linux, which sets the mode and not the hint, relies on that.
    let mode = if low & LOGICAL != 0 {
        DestinationMode::Logical
    } else {
        DestinationMode::Physical
    };
    // The data have the layout of the interrupt command register's lower half.
    let trigger = if data & icr::LEVEL != 0 {
        Trigger::Level
    } else {
        Trigger::Edge
    };
    let destination = Destination::from_xapic(mode, (low >> 12) as u8);
    ApicMessage::from_device(destination, data, trigger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic_message::DeliveryMode;

    struct Function {
        table: MsixTable,
        sent: Vec<ApicMessage>,
    }

    impl Function {
        fn new() -> Self {
            Self {
                table: MsixTable::new(3),
                sent: Vec::new(),
            }
        }

        fn write(&mut self, offset: u64, value: u32) {
            let sent = &mut self.sent;
            self.table
                .write(offset, 4, value.into(), &mut |message| sent.push(message));
        }

        fn control(&mut self, value: u16) {
            let sent = &mut self.sent;
            self.table
                .set_control(value, &mut |message| sent.push(message));
        }

        fn interrupt(&mut self, vector: u16) -> Vec<u8> {
            let sent = &mut self.sent;
            self.table
                .interrupt(vector, &mut |message| sent.push(message));
            self.take()
        }

        fn take(&mut self) -> Vec<u8> {
            self.sent.drain(..).map(|message| message.vector).collect()
        }
    }

    #[test]
    fn a_vector_interrupts_by_its_message() {
        let mut function = Function::new();
        function.control(ENABLE);
        function.write(0x10, 0xfee0_300c);
        function.write(0x18, 0x4041);
        function.write(0x1c, 0);
        let mut sent = Vec::new();
        function
            .table
            .interrupt(1, &mut |message| sent.push(message));
        assert_eq!(
            sent,
            [ApicMessage {
                destination: Destination::Logical(3),
                delivery_mode: DeliveryMode::Fixed,
                vector: 0x41,
                trigger: Trigger::Edge,
            }]
        );
        assert_eq!(function.interrupt(3), [], "no such vector");
        assert_eq!(function.interrupt(u16::MAX), []);
        // To somewhere else.
        function.write(0x10, 0xfed0_0000);
        assert_eq!(function.interrupt(1), []);
    }

    #[test]
    fn a_masked_interrupt_waits_as_a_pending_bit() {
        let mut function = Function::new();
        for vector in 0..3 {
            function.write(16 * vector, 0xfee0_0000);
            function.write(16 * vector + 8, 0x50 + vector as u32);
        }
        assert_eq!(function.interrupt(2), [], "messages are off");
        function.control(ENABLE);
        assert_eq!(function.take(), [], "and nothing waits then");
        assert_eq!(function.interrupt(2), [], "masked since reset");
        assert_eq!(function.table.read(PENDING, 4), 0b100);
        assert_eq!(function.table.read(PENDING, 8), 0b100);
        assert_eq!(function.interrupt(2), []);
        function.write(0x2c, 0);
        assert_eq!(function.take(), [0x52], "twice pending is once");
        assert_eq!(function.table.read(PENDING, 4), 0);
        // The mask of the function.
        function.control(ENABLE | FUNCTION_MASK);
        function.write(0x0c, 0);
        assert_eq!(function.interrupt(0), []);
        assert_eq!(function.interrupt(2), []);
        function.control(ENABLE);
        assert_eq!(function.take(), [0x50, 0x52]);
    }

    #[test]
    fn the_table_reads_as_it_was_written_where_it_can_be() {
        let mut function = Function::new();
        for word in 0..4 {
            function.write(0x20 + 4 * word, u32::MAX);
        }
        assert_eq!(function.table.read(0x20, 4), 0xffff_fffc);
        assert_eq!(function.table.read(0x28, 8), 0x1_ffff_ffff);
        assert_eq!(function.table.read(0x2c, 4), 1);
        assert_eq!(function.table.read(0x21, 4), 0, "not aligned");
        assert_eq!(function.table.read(0x20, 1), 0);
        function.write(0x30, u32::MAX);
        assert_eq!(function.table.read(0x30, 4), 0, "behind the table");
    }
}
