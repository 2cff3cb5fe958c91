//! A split virtqueue, as the device sees it (virtio 1.2, 2.7).
//!
//! Everything in guest memory is the driver's, who may write anything there at any time. So each
//! word is read once, checked, and then used as it was read; a chain of descriptors is copied
//! out whole before anything is done with it; and every loop ends after as many steps as the
//! queue has entries, whatever the rings say. What is wrong is an error, after which the device
//! needs a reset.

use core::sync::atomic::{Ordering, fence};

use arch::addr::GuestPhysAddr;

use super::chain::{Chain, Segment};
use crate::guest_memory::{GuestMemory, NotRam};

/// The most entries that a queue of ours has: a power of two.
pub const MAX_SIZE: u16 = 256;

/// An offense of a driver's: what no driver may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring, a table or a buffer is not wholly in RAM.
    NotRam(NotRam),
    /// The available ring's index is more than the size of the queue ahead of what was taken.
    IndexAhead {
        /// The index that the driver has written.
        index: u16,
        /// The index up to which descriptors have been taken.
        taken: u16,
    },
    /// A descriptor's number is not below the number of descriptors in its table.
    NoSuchDescriptor(u16),
    /// A chain has more descriptors than the queue has entries: it goes round in a circle, or is
    /// longer than the driver may make it (2.7.5.3.1).
    ChainTooLong,
    /// An indirect table where the feature was not negotiated, within an indirect table, or with
    /// a descriptor to follow it (2.7.5.3.1).
    MisplacedIndirectTable,
    /// The length of an indirect table is no multiple of a descriptor's, or zero.
    BadIndirectLength(u32),
    /// A buffer that the device reads follows one that it writes (2.7.4.2).
    ReadableAfterWritable,
    /// The buffers of a chain have 4 GiB or more in all (2.7.5.2).
    TooManyBytes,
}

impl From<NotRam> for QueueError {
    fn from(error: NotRam) -> Self {
        Self::NotRam(error)
    }
}

impl core::fmt::Display for QueueError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotRam(error) => error.fmt(f),
            Self::IndexAhead { index, taken } => write!(
                f,
                "the available ring's index {index} is too far ahead of {taken}"
            ),
            Self::NoSuchDescriptor(number) => write!(f, "there is no descriptor {number}"),
            Self::ChainTooLong => f.write_str("a descriptor chain has no end"),
            Self::MisplacedIndirectTable => {
                f.write_str("an indirect descriptor table where none may be")
            }
            Self::BadIndirectLength(length) => {
                write!(f, "an indirect descriptor table of {length} bytes")
            }
            Self::ReadableAfterWritable => {
                f.write_str("a buffer to be read follows one to be written")
            }
            Self::TooManyBytes => f.write_str("a descriptor chain of 4 GiB or more"),
        }
    }
}

impl core::error::Error for QueueError {}

/// Flags of a descriptor (2.7.5).
mod flag {
    pub(super) const NEXT: u16 = 1 << 0;
    pub(super) const WRITE: u16 = 1 << 1;
    pub(super) const INDIRECT: u16 = 1 << 2;
}
/// The length of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Flag of the available ring: the driver wants no interrupts (2.7.6).
const NO_INTERRUPT: u16 = 1 << 0;
/// The offset of the index in either ring; the flags are before it.
const INDEX: u64 = 2;
/// The offset of the entries in either ring.
const ENTRIES: u64 = 4;

/// The features that driver and device have agreed on and that concern queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueFeatures {
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_index: bool,
}

/// The place where a driver has put a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The number of entries: a power of two, at most [`MAX_SIZE`].
    pub size: u16,
    /// The descriptor table.
    pub descriptors: GuestPhysAddr,
    /// The available ring, or driver area.
    pub available: GuestPhysAddr,
    /// The used ring, or device area.
    pub used: GuestPhysAddr,
}

/// A queue in operation.
#[derive(Clone, Debug)]
pub struct Queue {
    at: Placement,
    features: QueueFeatures,
    /// The number of entries of the available ring that have been taken, modulo 2^16.
    taken: u16,
    /// The number of entries of the used ring that have been written, modulo 2^16.
    returned: u16,
    /// [`Self::returned`] when it was last decided whether to interrupt.
    decided: u16,
}

/// Returns the address `offset` bytes behind `base`. One past the end of the address space is not RAM.
fn at(base: GuestPhysAddr, offset: u64) -> GuestPhysAddr {
    base.checked_add(offset).unwrap_or(GuestPhysAddr(u64::MAX))
}

/// A descriptor as it was read.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: GuestPhysAddr,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &dyn GuestMemory, table: GuestPhysAddr, n: u16) -> Result<Self, NotRam> {
        let mut bytes = [0; DESCRIPTOR as usize];
        memory.read(at(table, u64::from(n) * DESCRIPTOR), &mut bytes)?;
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = bytes;
        Ok(Self {
            address: GuestPhysAddr(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7])),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    const fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Queue {
    /// Puts a queue into operation. `None` if its size is none that a queue can have.
    #[must_use]
    pub const fn new(at: Placement, features: QueueFeatures) -> Option<Self> {
        if !at.size.is_power_of_two() || at.size > MAX_SIZE {
            return None;
        }
        Some(Self {
            at,
            features,
            taken: 0,
            returned: 0,
            decided: 0,
        })
    }

    /// Tells whether the driver has made a chain available that was not taken. If not, the driver is
    /// asked to tell when there is one again.
    ///
    /// # Errors
    /// If the rings are not as they must be.
    pub fn has_next(&self, memory: &dyn GuestMemory) -> Result<bool, QueueError> {
        let is_there = self.has_available(memory)?;
        if is_there || !self.features.event_index {
            return Ok(is_there);
        }
        // The driver tells of the entry with this number, so of the next one.
        let event = at(self.at.used, ENTRIES + 8 * u64::from(self.at.size));
        memory.write_u16(event, self.taken)?;
        // It may have made one available just before it could read that (2.7.10).
        fence(Ordering::SeqCst);
        self.has_available(memory)
    }

    /// Takes the next chain that the driver has made available into `chain`. False if there is
    /// none; then the driver is asked to tell when there is one again.
    ///
    /// # Errors
    /// If the rings or the descriptors are not as they must be.
    pub fn take(
        &mut self,
        memory: &dyn GuestMemory,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        if !self.has_next(memory)? {
            return Ok(false);
        }
        let slot = u64::from(self.taken & (self.at.size - 1));
        let head = memory.read_u16(at(self.at.available, ENTRIES + 2 * slot))?;
        self.collect(memory, head, chain)?;
        self.taken = self.taken.wrapping_add(1);
        Ok(true)
    }

    /// Puts the last `count` chains that were taken and not given back into the available ring again: they are
    /// taken anew.
    pub const fn untake(&mut self, count: u16) {
        self.taken = self.taken.wrapping_sub(count);
    }

    /// Tells whether the driver has made something available that has not been taken.
    fn has_available(&self, memory: &dyn GuestMemory) -> Result<bool, QueueError> {
        let index = memory.read_u16(at(self.at.available, INDEX))?;
        // What the index tells of has been written before it.
        fence(Ordering::Acquire);
        match index.wrapping_sub(self.taken) {
            0 => Ok(false),
            ahead if ahead <= self.at.size => Ok(true),
            _ => Err(QueueError::IndexAhead {
                index,
                taken: self.taken,
            }),
        }
    }

    /// Reads the chain that begins with descriptor `head`.
    fn collect(
        &self,
        memory: &dyn GuestMemory,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        chain.begin(head);
        let mut table = self.at.descriptors;
        let mut count = self.at.size;
        let mut is_indirect = false;
        let mut number = head;
        let mut bytes = 0u64;
        // As many steps as the queue has entries, and one for the descriptor of a table.
        for _ in 0..=self.at.size {
            if number >= count {
                return Err(QueueError::NoSuchDescriptor(number));
            }
            let descriptor = Descriptor::read(memory, table, number)?;
            if descriptor.has(flag::INDIRECT) {
                if !self.features.indirect || is_indirect || descriptor.has(flag::NEXT) {
                    return Err(QueueError::MisplacedIndirectTable);
                }
                let length = descriptor.length;
                if length == 0 || !u64::from(length).is_multiple_of(DESCRIPTOR) {
                    return Err(QueueError::BadIndirectLength(length));
                }
                // Longer tables than the queue hold chains that are too long.
                count = u16::try_from(u64::from(length) / DESCRIPTOR).unwrap_or(u16::MAX);
                table = descriptor.address;
                number = 0;
                is_indirect = true;
                continue;
            }
            bytes += u64::from(descriptor.length);
            if bytes > u64::from(u32::MAX) {
                return Err(QueueError::TooManyBytes);
            }
            if chain.len() == usize::from(self.at.size) {
                return Err(QueueError::ChainTooLong);
            }
            let segment = Segment {
                address: descriptor.address,
                length: descriptor.length,
            };
            if !chain.add(segment, descriptor.has(flag::WRITE)) {
                return Err(QueueError::ReadableAfterWritable);
            }
            if !descriptor.has(flag::NEXT) {
                return Ok(());
            }
            number = descriptor.next;
        }
        Err(QueueError::ChainTooLong)
    }

    /// Returns the chain that began with descriptor `head` to the driver, with `written` bytes
    /// written to it from its first writable byte on.
    ///
    /// # Errors
    /// If the used ring is not in RAM.
    pub fn give_back(
        &mut self,
        memory: &dyn GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.give_back_together(memory, &[(head, written)])
    }

    /// Returns several chains as [`Queue::give_back`] does one, so that the driver sees all of them or none.
    ///
    /// # Errors
    /// If the used ring is not in RAM.
    pub fn give_back_together(
        &mut self,
        memory: &dyn GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        for &(head, written) in chains {
            let slot = u64::from(self.returned & (self.at.size - 1));
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            entry[4..].copy_from_slice(&written.to_le_bytes());
            memory.write(at(self.at.used, ENTRIES + 8 * slot), &entry)?;
            self.returned = self.returned.wrapping_add(1);
        }
        // The driver must not see the index before what it tells of.
        fence(Ordering::Release);
        memory.write_u16(at(self.at.used, INDEX), self.returned)?;
        Ok(())
    }

    /// Tells whether the driver wants an interrupt for what was given back since the last call.
    ///
    /// # Errors
    /// If the available ring is not in RAM.
    pub fn wants_interrupt(&mut self, memory: &dyn GuestMemory) -> Result<bool, QueueError> {
        if self.returned == self.decided {
            return Ok(false);
        }
        let before = core::mem::replace(&mut self.decided, self.returned);
        // The driver writes its wish and then looks at the index; here it is the other way round
        // (2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.features.event_index {
            let flags = memory.read_u16(self.at.available)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let event = at(self.at.available, ENTRIES + 2 * u64::from(self.at.size));
        let event = memory.read_u16(event)?;
        // Whether the entry that the driver waits for is among the new ones (2.7.10).
        let new = self.returned.wrapping_sub(before);
        Ok(self.returned.wrapping_sub(event).wrapping_sub(1) < new)
    }
}

#[cfg(test)]
mod tests;
