//! A chain of descriptors that was copied out of a queue, and the guest's buffers behind it.

use alloc::vec::Vec;

use arch::addr::GuestPhysAddr;

use super::queue::MAX_SIZE;
use crate::guest_memory::{GuestMemory, NotRam};

/// A buffer in guest memory. Nothing says that it is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The address of its first byte.
    pub address: GuestPhysAddr,
    /// Its length in bytes; may be zero.
    pub length: u32,
}

/// A request: buffers that the device reads, followed by buffers that it writes.
///
/// One is used again and again, so that taking requests from a queue allocates nothing.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// The number of segments that the device reads.
    readable: usize,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl Chain {
    /// Makes a chain without buffers, and with room for all that a queue can have.
    #[must_use]
    pub fn new() -> Self {
        Self {
            head: 0,
            segments: Vec::with_capacity(MAX_SIZE.into()),
            readable: 0,
        }
    }

    /// Makes it a chain without buffers that begins with descriptor `head`.
    pub(super) fn begin(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
    }

    /// Adds a buffer. False if it is to be read and there is one to be written before it.
    pub(super) fn add(&mut self, segment: Segment, writable: bool) -> bool {
        if !writable {
            if self.readable != self.segments.len() {
                return false;
            }
            self.readable += 1;
        }
        self.segments.push(segment);
        true
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Returns the descriptor that it began with.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Returns the buffers that the device reads, as one.
    #[must_use]
    pub fn readable(&self) -> Buffers<'_> {
        Buffers(&self.segments[..self.readable])
    }

    /// Returns the buffers that the device writes, as one.
    #[must_use]
    pub fn writable(&self) -> Buffers<'_> {
        Buffers(&self.segments[self.readable..])
    }
}

/// Buffers one after the other, addressed as if they were one.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a>(&'a [Segment]);

/// An access that goes past the end of the buffers, or into something that is not RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferError {
    /// The buffers have fewer bytes.
    TooShort,
    /// A buffer is not in RAM.
    NotRam(NotRam),
}

impl From<NotRam> for BufferError {
    fn from(error: NotRam) -> Self {
        Self::NotRam(error)
    }
}

impl Buffers<'_> {
    /// Returns how many bytes there are: below 2^32.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.iter().map(|segment| segment.length).sum()
    }

    /// Tells whether there are no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes from `offset` on to `to`.
    ///
    /// # Errors
    /// If there are not so many, or one is not RAM; then `to` holds garbage.
    pub fn read(
        self,
        memory: &dyn GuestMemory,
        offset: u32,
        to: &mut [u8],
    ) -> Result<(), BufferError> {
        self.for_each_piece(offset, to.len(), |address, range| {
            memory.read(address, &mut to[range])
        })
    }

    /// Copies `from` to the bytes from `offset` on.
    ///
    /// # Errors
    /// If there are not so many, or one is not RAM; then a part may have been written.
    pub fn write(
        self,
        memory: &dyn GuestMemory,
        offset: u32,
        from: &[u8],
    ) -> Result<(), BufferError> {
        self.for_each_piece(offset, from.len(), |address, range| {
            memory.write(address, &from[range])
        })
    }

    /// Calls `copy` for each piece of the `length` bytes from `offset` on that lies in one
    /// buffer, with its address and its place among the bytes.
    fn for_each_piece(
        self,
        offset: u32,
        length: usize,
        mut copy: impl FnMut(GuestPhysAddr, core::ops::Range<usize>) -> Result<(), NotRam>,
    ) -> Result<(), BufferError> {
        let mut skip = offset;
        let mut done = 0;
        for segment in self.0 {
            if done == length {
                break;
            }
            if skip >= segment.length {
                skip -= segment.length;
                continue;
            }
            let piece = (length - done).min((segment.length - skip) as usize);
            let not_ram = NotRam {
                address: segment.address,
                length: segment.length as usize,
            };
            let address = segment.address.checked_add(skip.into()).ok_or(not_ram)?;
            copy(address, done..done + piece)?;
            done += piece;
            skip = 0;
        }
        if done == length {
            Ok(())
        } else {
            Err(BufferError::TooShort)
        }
    }
}
