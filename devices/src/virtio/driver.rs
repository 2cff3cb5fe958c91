//! A driver for tests: it keeps a queue in memory as virtio 1.2, 2.7 asks of drivers, and does
//! nothing that no driver may.

extern crate std;

use core::cell::RefCell;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use arch::addr::GuestPhysAddr;

use super::queue::Placement;
use crate::guest_memory::{GuestMemory, NotRam};

/// RAM from address zero on.
pub(crate) struct Ram(RefCell<Vec<u8>>);

impl Ram {
    pub(crate) fn new(size: usize) -> Self {
        Self(RefCell::new(vec![0; size]))
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(GuestPhysAddr(address), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.write(GuestPhysAddr(address), bytes).unwrap();
    }

    fn u16(&self, address: u64) -> u16 {
        self.read_u16(GuestPhysAddr(address)).unwrap()
    }

    fn range(&self, address: GuestPhysAddr, length: usize) -> Result<usize, NotRam> {
        let size = self.0.borrow().len();
        usize::try_from(address.0)
            .ok()
            .filter(|start| start.checked_add(length).is_some_and(|end| end <= size))
            .ok_or(NotRam { address, length })
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let start = self.range(address, buffer.len())?;
        buffer.copy_from_slice(&self.0.borrow()[start..start + buffer.len()]);
        Ok(())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let start = self.range(address, data.len())?;
        self.0.borrow_mut()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// A buffer of a request: its address, its length, and whether the device is to write it.
pub(crate) type Buffer = (u64, u32, bool);

/// The kind of tables that a request's buffers are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A descriptor in the queue's table for each.
    Direct,
    /// A table of their own.
    Indirect,
    /// The first of them in the queue's table, the rest in a table of their own.
    Mixed,
}

/// The driver's side of a queue.
pub(crate) struct Driver<'a> {
    pub(crate) ram: &'a Ram,
    pub(crate) at: Placement,
    event_index: bool,
    /// Descriptors of the queue's table that are in no request.
    free: Vec<u16>,
    /// The descriptors of each request, by its first.
    in_flight: BTreeMap<u16, Vec<u16>>,
    added: u16,
    seen: u16,
    /// The address of the next indirect table.
    tables: u64,
}

/// Rings and tables are below this address.
pub(crate) const BUFFERS: u64 = 0x8_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
const TABLES: u64 = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

impl<'a> Driver<'a> {
    /// Sets a queue of `size` entries up.
    pub(crate) fn new(ram: &'a Ram, size: u16, event_index: bool) -> Self {
        Self {
            ram,
            at: Placement {
                size,
                descriptors: GuestPhysAddr(DESCRIPTORS),
                available: GuestPhysAddr(AVAILABLE),
                used: GuestPhysAddr(USED),
            },
            event_index,
            free: (0..size).rev().collect(),
            in_flight: BTreeMap::new(),
            added: 0,
            seen: 0,
            tables: TABLES,
        }
    }

    fn write_descriptor(
        &self,
        table: u64,
        n: u16,
        (address, length): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.put(table + 16 * u64::from(n), &bytes);
    }

    /// Makes a request available. `None` if there are not enough free descriptors; else its first
    /// descriptor, and whether the device is to be notified.
    pub(crate) fn add(&mut self, buffers: &[Buffer], layout: Layout) -> Option<(u16, bool)> {
        let direct = match layout {
            Layout::Direct => buffers.len(),
            Layout::Indirect => 0,
            Layout::Mixed => 1.min(buffers.len()),
        };
        let has_table = direct < buffers.len();
        let needed = direct + usize::from(has_table);
        if needed == 0 || needed > self.free.len() {
            return None;
        }
        let own = self.free.split_off(self.free.len() - needed);
        for (k, &n) in own.iter().enumerate() {
            let next = own.get(k + 1).copied();
            let chained = if next.is_some() { NEXT } else { 0 };
            if k < direct {
                let (address, length, writable) = buffers[k];
                let flags = chained | if writable { WRITE } else { 0 };
                // What the last one has as its next means nothing.
                self.write_descriptor(
                    DESCRIPTORS,
                    n,
                    (address, length),
                    flags,
                    next.unwrap_or(0xdead),
                );
            } else {
                let rest = &buffers[direct..];
                let table = self.tables;
                for (i, &(address, length, writable)) in (0..).zip(rest) {
                    let last = usize::from(i) + 1 == rest.len();
                    let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
                    self.write_descriptor(table, i, (address, length), flags, i + 1);
                }
                let length = 16 * rest.len() as u32;
                self.write_descriptor(DESCRIPTORS, n, (table, length), INDIRECT, 0xbeef);
                self.tables += u64::from(length);
                if self.tables > BUFFERS - 0x2000 {
                    self.tables = TABLES;
                }
            }
        }
        let head = own[0];
        self.in_flight.insert(head, own);
        let slot = u64::from(self.added % self.at.size);
        self.ram.put(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        let before = self.added;
        self.added = self.added.wrapping_add(1);
        self.ram.put(AVAILABLE + 2, &self.added.to_le_bytes());
        let notify = if self.event_index {
            let event = self.ram.u16(USED + 4 + 8 * u64::from(self.at.size));
            // vring_need_event() of the specification.
            self.added.wrapping_sub(event).wrapping_sub(1) < self.added.wrapping_sub(before)
        } else {
            self.ram.u16(USED) & 1 == 0
        };
        Some((head, notify))
    }

    /// Takes the next request that the device has given back: its first descriptor, and how many
    /// bytes were written. Then asks to be interrupted for the next one.
    pub(crate) fn take_back(&mut self) -> Option<(u16, u32)> {
        if self.ram.u16(USED + 2) == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.at.size);
        let entry = self.ram.bytes(USED + 4 + 8 * slot, 8);
        let head = u32::from_le_bytes(entry[..4].try_into().unwrap());
        let length = u32::from_le_bytes(entry[4..].try_into().unwrap());
        let head = u16::try_from(head).unwrap();
        let own = self.in_flight.remove(&head).expect("a request in flight");
        self.free.extend(own);
        self.seen = self.seen.wrapping_add(1);
        if self.event_index {
            let event = AVAILABLE + 4 + 2 * u64::from(self.at.size);
            self.ram.put(event, &self.seen.to_le_bytes());
        }
        Some((head, length))
    }

    /// Says whether the device is to interrupt, where the event index is not used.
    pub(crate) fn set_no_interrupt(&self, on: bool) {
        self.ram.put(AVAILABLE, &u16::from(on).to_le_bytes());
    }
}
