//! What a device is to the bus, and what the bus is to a device.
//!
//! A [`Device`] does not know where it is: it is told which of its [`Region`]s an access is to and
//! at which offset, and drives its outputs by number. Where its regions lie and where its outputs
//! are wired to is in the table of the chipset. It keeps no time and no reference to anything
//! either: all that it needs comes with each call, as a [`Context`].

use alloc::vec::Vec;
use core::cell::Cell;

use super::ChipsetHost;
use super::hpet::Route;
use super::wires::{Interrupts, Wire};
use crate::apic_message::ApicMessage;
use crate::line::Line;
use crate::time::{Now, TimerTicks};

/// An access of a processor to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The index of the device's region, counted from zero in the order of the table.
    pub region: usize,
    /// The offset in the region at which the access begins: less than the region's length. The
    /// access may end behind the region.
    pub offset: u64,
    /// The length in bytes: 1, 2 or 4, and for memory also 8.
    pub size: u8,
}

impl Access {
    /// Returns the offset as a number of 16 bits: that of a port, or within a small region.
    #[must_use]
    pub const fn offset16(self) -> u16 {
        self.offset as u16
    }
}

/// A device on the bus.
pub trait Device {
    /// Reads from the device. Bits beyond the size of the access mean nothing.
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64;

    /// Writes to the device. The bits of `value` beyond the size of the access are zero.
    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>);

    /// Returns when [`Device::expire`] is next needed: when something next happens by itself that
    /// others notice. It changes by calls to this device only, and by what is heard of its
    /// `outputs`.
    ///
    /// What nobody notices must not cost anything, however often it happens: a device whose
    /// outputs have edges in short periods asks whether [they are heard](Outputs::hear_edge).
    fn next_deadline(&self, outputs: &Outputs<'_>) -> Option<TimerTicks> {
        let _ = outputs;
        None
    }

    /// Does what has come to be due.
    fn expire(&mut self, _cx: &mut Context<'_>) {}

    /// Puts the device into the state that it has after power-up, with its outputs low. What a
    /// battery would keep stays.
    fn reset(&mut self, cx: &mut Context<'_>);

    /// Tells whether the device is there. One that is not answers nowhere, for as long as the
    /// machine exists.
    fn is_present(&self) -> bool {
        true
    }
}

/// A device that only some machines have.
impl<D: Device> Device for Option<D> {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        match self {
            Some(device) => device.read(access, cx),
            None => u64::MAX,
        }
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        if let Some(device) = self {
            device.write(access, value, cx);
        }
    }

    fn next_deadline(&self, outputs: &Outputs<'_>) -> Option<TimerTicks> {
        self.as_ref()
            .and_then(|device| device.next_deadline(outputs))
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        if let Some(device) = self {
            device.expire(cx);
        }
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        if let Some(device) = self {
            device.reset(cx);
        }
    }

    fn is_present(&self) -> bool {
        self.is_some()
    }
}

/// The surroundings of the chipset at the moment of a call.
pub struct Environment<'a> {
    /// The time.
    pub now: Now,
    /// The local APICs, the serial line, the power supply.
    pub host: &'a mut dyn ChipsetHost,
}

/// The resources that a device can reach during a call.
pub struct Context<'a> {
    /// The time.
    pub now: Now,
    /// The local APICs, the serial line, the power supply.
    pub host: &'a mut dyn ChipsetHost,
    pub(super) interrupts: &'a mut Interrupts,
    pub(super) wires: &'static [Wire],
}

impl Context<'_> {
    /// Drives the device's output `output`, counted from zero in the order of the table. One
    /// that the table does not wire goes nowhere.
    #[inline]
    pub fn set_output(&mut self, output: usize, level: bool) {
        if let Some(&wire) = self.wires.get(output) {
            self.interrupts.drive(wire, level, self.host);
        }
    }

    /// Returns the device's output `output` as a line to drive.
    #[inline]
    pub fn output(&mut self, output: usize) -> impl Line {
        move |level| self.set_output(output, level)
    }

    /// Sends a message-signaled interrupt.
    pub fn send_message(&mut self, message: ApicMessage) {
        self.host.interrupt_message(message);
    }
}

/// The wires of a device's outputs, with the interrupt controllers at their other ends.
pub struct Outputs<'a> {
    interrupts: &'a Interrupts,
    wires: &'static [Wire],
    /// Whether the device has asked.
    asked: Cell<bool>,
}

impl<'a> Outputs<'a> {
    pub(super) const fn new(interrupts: &'a Interrupts, wires: &'static [Wire]) -> Self {
        Self {
            interrupts,
            wires,
            asked: Cell::new(false),
        }
    }

    /// Tells whether a rising edge of output `output` would change anything now. It would not
    /// where all that it leads to are inputs that are masked, or that wait for an earlier edge to
    /// be answered.
    ///
    /// The device will be asked for its deadline again when the answer may have changed, and
    /// [expire](Device::expire) right before that: so edges that nobody heard are gone then.
    #[must_use]
    pub fn hear_edge(&self, output: usize) -> bool {
        self.asked.set(true);
        self.wires
            .get(output)
            .is_some_and(|&wire| self.interrupts.hear_edge(wire))
    }

    /// Does what [`Outputs::hear_edge`] does, for a timer of the HPET.
    pub(super) fn hear_hpet_edge(&self, route: Option<Route>) -> bool {
        self.asked.set(true);
        route.is_some_and(|route| self.interrupts.hear_hpet_edge(route))
    }

    /// Returns whether the device's deadline depends on what is heard of it.
    pub(super) const fn asked(self) -> bool {
        self.asked.into_inner()
    }
}

/// The two address spaces of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Ports,
    Memory,
}

/// Sizes of accesses: a set of 1, 2, 4 and 8, which are bits of it themselves.
type Sizes = u8;

/// A range of addresses at which a device answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) space: Space,
    base: u64,
    length: u64,
    /// The sizes of accesses that the device takes whole. The bus makes byte accesses of all
    /// others.
    whole: Sizes,
}

/// Ports of a device that is a byte wide.
pub(super) const fn byte_ports(base: u16, count: u16) -> Region {
    Region {
        space: Space::Ports,
        base: base as u64,
        length: count as u64,
        whole: 1,
    }
}

/// Ports of a device that takes accesses of any size.
pub(super) const fn wide_ports(base: u16, count: u16) -> Region {
    Region {
        whole: 1 | 2 | 4,
        ..byte_ports(base, count)
    }
}

/// Returns a port that is there for accesses of `size` bytes only.
pub(super) const fn port_of_size(base: u16, size: u8) -> Region {
    Region {
        whole: size,
        ..byte_ports(base, 1)
    }
}

/// Makes a region of guest-physical addresses; accesses of any size are the device's.
pub(super) const fn memory(base: u64, length: u64) -> Region {
    Region {
        space: Space::Memory,
        base,
        length,
        whole: 1 | 2 | 4 | 8,
    }
}

/// The address decoder of one of the address spaces: the devices' ranges, in a table sorted by
/// address.
#[derive(Clone, Debug)]
pub(super) struct Decoder<T> {
    entries: Vec<Entry<T>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    base: u64,
    length: u64,
    whole: Sizes,
    region: u8,
    device: T,
}

impl<T: Copy> Decoder<T> {
    pub(super) const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// Adds the region with the number `number` of `device`.
    pub(super) fn add(&mut self, region: Region, number: usize, device: T) {
        let at = self.entries.partition_point(|e| e.base < region.base);
        let entry = Entry {
            base: region.base,
            length: region.length,
            whole: region.whole,
            region: number as u8,
            device,
        };
        debug_assert!(
            at == 0 || self.entries[at - 1].base + self.entries[at - 1].length <= region.base,
            "two devices at {:#x}",
            region.base
        );
        debug_assert!(
            self.entries
                .get(at)
                .is_none_or(|next| region.base + region.length <= next.base),
            "two devices in the {:#x} bytes from {:#x}",
            region.length,
            region.base
        );
        self.entries.insert(at, entry);
    }

    /// Finds the device that takes an access of `size` bytes at `address` whole, and what the
    /// access is to it.
    #[inline]
    pub(super) fn find(&self, address: u64, size: u8) -> Option<(T, Access)> {
        let behind = self.entries.partition_point(|e| e.base <= address);
        let entry = self.entries.get(behind.checked_sub(1)?)?;
        let offset = address - entry.base;
        if offset >= entry.length || entry.whole & size == 0 {
            return None;
        }
        let access = Access {
            region: entry.region.into(),
            offset,
            size,
        };
        Some((entry.device, access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_finds_the_region_that_it_begins_in_and_that_takes_its_size() {
        let mut ports = Decoder::new();
        ports.add(byte_ports(0x40, 4), 0, 'a');
        ports.add(port_of_size(0xcf8, 4), 1, 'c');
        ports.add(wide_ports(0x44, 2), 0, 'b');
        ports.add(byte_ports(0xcf9, 1), 0, 'd');
        let find = |address, size| {
            ports
                .find(address, size)
                .map(|(device, access)| (device, access.region, access.offset))
        };
        assert_eq!(find(0x3f, 1), None);
        assert_eq!(find(0x40, 1), Some(('a', 0, 0)));
        assert_eq!(find(0x43, 1), Some(('a', 0, 3)));
        assert_eq!(find(0x43, 2), None, "a byte wide");
        assert_eq!(find(0x44, 4), Some(('b', 0, 0)), "ends behind the region");
        assert_eq!(find(0x46, 1), None);
        assert_eq!(find(0xcf8, 4), Some(('c', 1, 0)));
        assert_eq!(find(0xcf8, 1), None);
        assert_eq!(find(0xcf9, 1), Some(('d', 0, 0)));
        assert_eq!(find(0xcfa, 1), None);
        assert_eq!(find(u64::MAX, 1), None);
    }

    #[test]
    #[should_panic(expected = "two devices")]
    fn regions_do_not_overlap() {
        let mut decoder = Decoder::new();
        decoder.add(memory(0x1000, 0x1000), 0, ());
        decoder.add(memory(0x0800, 0x0801), 0, ());
    }
}
