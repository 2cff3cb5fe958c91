//! The I/O APIC: from the interrupt wires of devices to messages for local APICs.
//!
//! Intel 82093AA datasheet for the registers and pins; the EOI register is that of the
//! version 0x20 in Intel's I/O controller hubs (ICH9 datasheet, 13.5).

use arch::ioapic::{ACTIVE_LOW, EOI, IOREGSEL, IOWIN, LEVEL, LOGICAL, MASKED, REMOTE_IRR};

use super::bus::{Access, Context, Device};
use crate::apic_message::{ApicMessage, Destination, DestinationMode, Trigger};

/// The number of interrupt pins.
pub const PINS: usize = 24;

/// Version 0x20, and the index of the last redirection entry.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;
/// The writable bits of the ID register; the arbitration register shows the same.
const ID: u32 = 0xf << 24;

/// One entry of the redirection table (82093AA datasheet, 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    /// The bits that software may write: not the delivery status, which is always idle since a
    /// message is sent at once, nor the remote IRR.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;
    const RESET: Self = Self(MASKED);

    const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Returns whether the pin is level-triggered. Only the delivery modes with a vector, fixed and
    /// lowest priority, have a level; NMI, INIT and ExtINT are sent once on an edge, whatever the
    /// trigger bit says.
    const fn is_level_triggered(self) -> bool {
        self.has(LEVEL) && self.0 & 0b110 << 8 == 0
    }

    /// Returns the message that the pin sends; `None` if the entry's delivery mode is reserved.
    const fn message(self) -> Option<ApicMessage> {
        let mode = if self.has(LOGICAL) {
            DestinationMode::Logical
        } else {
            DestinationMode::Physical
        };
        let trigger = if self.has(LEVEL) {
            Trigger::Level
        } else {
            Trigger::Edge
        };
        ApicMessage::from_device(
            Destination::from_xapic(mode, (self.0 >> 56) as u8),
            self.0 as u32,
            trigger,
        )
    }

    /// Returns the entry with the low or high half written by software.
    const fn written(self, high: bool, value: u32) -> Self {
        let (shift, half) = if high {
            (32, (u32::MAX as u64) << 32)
        } else {
            (0, u32::MAX as u64)
        };
        let writable = Self::WRITABLE & half;
        let mut bits = self.0 & !writable | (value as u64) << shift & writable;
        if bits & LEVEL == 0 {
            // An edge has no end, so that nothing would ever clear this. Operating systems
            // rely on the switch to edge and back to free a pin.
            bits &= !REMOTE_IRR;
        }
        Self(bits)
    }
}

/// An I/O APIC with [`PINS`] pins.
///
/// It sends messages into a `sink` that each operation is given; whether it can be heard is
/// not its concern, as on a real bus.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: [Entry; PINS],
    /// Bit `n`: the wire at pin `n` is high.
    high: u32,
    /// Bit `n`: the device at pin `n` asserts its interrupt by pulling the wire low.
    wired_low: u32,
}

impl IoApic {
    /// Makes an I/O APIC after reset, all pins masked. Bit `n` of `wired_low` says that the device
    /// at pin `n` drives its wire low to interrupt, as the tables that describe the board to the
    /// guest must say too: a redirection entry of the wrong polarity sees the opposite of what the
    /// device means.
    #[must_use]
    pub const fn new(wired_low: u32) -> Self {
        Self {
            id: 0,
            select: 0,
            entries: [Entry::RESET; PINS],
            high: wired_low,
            wired_low,
        }
    }

    /// Goes back to the state after reset. The wires keep their levels.
    pub const fn reset(&mut self) {
        self.id = 0;
        self.select = 0;
        self.entries = [Entry::RESET; PINS];
    }

    /// Asserts or deasserts the interrupt of the device at `pin`, in the device's own sense;
    /// there is nothing at a pin that does not exist.
    pub fn set_pin(&mut self, pin: usize, asserted: bool, sink: &mut impl FnMut(ApicMessage)) {
        if pin >= PINS {
            return;
        }
        let bit = 1u32 << pin;
        let high = asserted != (self.wired_low & bit != 0);
        if high == (self.high & bit != 0) {
            return;
        }
        self.high ^= bit;
        let entry = self.entries[pin];
        if entry.is_level_triggered() {
            self.serve_level(pin, sink);
        } else if self.is_active(pin) && !entry.has(MASKED) {
            // A masked edge is lost (82093AA datasheet, 3.2.4, interrupt mask).
            send(entry, sink);
        }
    }

    /// Tells whether a rising edge at `pin` would change anything: not if the pin is masked, as a
    /// masked edge is lost.
    #[must_use]
    pub fn hears_edge(&self, pin: usize) -> bool {
        self.entries
            .get(pin)
            .is_some_and(|entry| !entry.has(MASKED))
    }

    /// Returns whether the wire at `pin` is at the level that its entry calls active.
    fn is_active(&self, pin: usize) -> bool {
        (self.high >> pin & 1 != 0) != self.entries[pin].has(ACTIVE_LOW)
    }

    /// Sends the message of a level-triggered pin if it is asserted, not masked, and its
    /// last message has been answered.
    fn serve_level(&mut self, pin: usize, sink: &mut impl FnMut(ApicMessage)) {
        let entry = self.entries[pin];
        if !entry.is_level_triggered() || entry.has(MASKED | REMOTE_IRR) || !self.is_active(pin) {
            return;
        }
        send(entry, sink);
        self.entries[pin] = Entry(entry.0 | REMOTE_IRR);
    }

    /// Takes the end of interrupt `vector` at a processor, or a write of the EOI register: pins
    /// that wait for it are free, and interrupt again if they are still asserted.
    pub fn end_of_interrupt(&mut self, vector: u8, sink: &mut impl FnMut(ApicMessage)) {
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if entry.has(REMOTE_IRR) && entry.0 as u8 == vector {
                self.entries[pin] = Entry(entry.0 & !REMOTE_IRR);
                self.serve_level(pin, sink);
            }
        }
    }

    /// Answers a read of `size` bytes (1, 2, 4 or 8) at `offset` of the memory-mapped page. What is
    /// no register reads as zero.
    #[must_use]
    pub fn mmio_read(&self, offset: u16, size: u8) -> u64 {
        let value = match offset & !3 {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_selected(),
            _ => 0,
        };
        let all = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        u64::from(value) >> (8 * u32::from(offset & 3)) & all
    }

    /// Takes a write of the low `size` bytes of `value` at `offset` of the memory-mapped page.
    ///
    /// IOREGSEL and the EOI register take bytes too, IOWIN only 32 bits; other writes change
    /// nothing.
    pub fn mmio_write(
        &mut self,
        offset: u16,
        size: u8,
        value: u64,
        sink: &mut impl FnMut(ApicMessage),
    ) {
        match (offset, size) {
            (IOREGSEL, 1 | 2 | 4) => self.select = value as u8,
            (IOWIN, 4) => self.write_selected(value as u32, sink),
            (EOI, 1 | 2 | 4) => self.end_of_interrupt(value as u8, sink),
            _ => {}
        }
    }

    /// Returns the pin and half of the redirection entry that IOREGSEL selects.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(0x10)?);
        (index < 2 * PINS).then_some((index / 2, index % 2 != 0))
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            0 | 2 => self.id,
            1 => VERSION,
            _ => match self.selected_entry() {
                Some((pin, false)) => self.entries[pin].0 as u32,
                Some((pin, true)) => (self.entries[pin].0 >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_selected(&mut self, value: u32, sink: &mut impl FnMut(ApicMessage)) {
        if self.select == 0 {
            self.id = value & ID;
        } else if let Some((pin, high)) = self.selected_entry() {
            self.entries[pin] = self.entries[pin].written(high, value);
            self.serve_level(pin, sink);
        }
    }
}

/// The registers of the chipset's I/O APIC on the bus. The I/O APIC itself is at the end of the
/// devices' wires.
#[derive(Clone, Copy, Debug)]
pub(super) struct IoApicWindow;

impl Device for IoApicWindow {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        cx.interrupts.read_ioapic(access.offset16(), access.size)
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let offset = access.offset16();
        cx.interrupts
            .write_ioapic(offset, access.size, value, cx.host);
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        cx.interrupts.reset_ioapic();
    }
}

/// Sends the message of `entry`, unless its delivery mode is reserved.
fn send(entry: Entry, sink: &mut impl FnMut(ApicMessage)) {
    if let Some(message) = entry.message() {
        sink(message);
    }
}

#[cfg(test)]
mod tests;
