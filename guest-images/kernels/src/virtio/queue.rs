//! A split queue (2.7), as a driver that keeps the rules has it.

use core::sync::atomic::{Ordering, fence};

use super::device::{Device, NO_VECTOR, Placement};
use crate::memory;

/// The number of descriptors.
pub const SIZE: u16 = 64;

/// Flags of descriptors (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// The flag of the available ring by which no interrupt is asked for (2.7.6), and that of the used ring by which no
/// notification is (2.7.8).
const QUIET: u16 = 1;

#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct Available {
    flags: u16,
    index: u16,
    ring: [u16; SIZE as usize],
}

#[repr(C)]
struct UsedElement {
    id: u32,
    length: u32,
}

#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [UsedElement; SIZE as usize],
}

#[repr(C, align(16))]
struct Rings {
    descriptors: [Descriptor; SIZE as usize],
    available: Available,
    used: Used,
}

const _: () = assert!(size_of::<Rings>() <= memory::PAGE);

/// Memory that a device is given.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Its address, physical and virtual.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub is_written: bool,
}

impl Buffer {
    /// Makes one that the device reads.
    #[must_use]
    pub const fn read(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            is_written: false,
        }
    }

    /// Makes one that the device writes.
    #[must_use]
    pub const fn written(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            is_written: true,
        }
    }
}

/// A queue of a device.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    index: u16,
    rings: *mut Rings,
    /// The number of requests that were made available, and of those that were taken back; both wrap around.
    added: u16,
    taken: u16,
}

// SAFETY, in all that follows: the rings are a page for this queue alone, aligned and zeroed at first; the device
// may write it at any time, so that each access is volatile and by pointer.
impl Queue {
    /// Sets the queue `index` of a device up, with the message `entry` or without interrupts.
    #[must_use]
    pub fn new(device: Device, index: u16, entry: Option<u16>) -> Self {
        let rings: *mut Rings = memory::allocate().cast();
        if entry.is_none() {
            // SAFETY: see above.
            unsafe { (&raw mut (*rings).available.flags).write_volatile(QUIET) };
        }
        let start = rings as u64;
        device.set_queue_vector(index, entry.unwrap_or(NO_VECTOR));
        device.enable_queue(
            index,
            Placement {
                size: SIZE,
                descriptors: start,
                available: start + core::mem::offset_of!(Rings, available) as u64,
                used: start + core::mem::offset_of!(Rings, used) as u64,
            },
        );
        Self {
            device,
            index,
            rings,
            added: 0,
            taken: 0,
        }
    }

    /// Makes `buffers` available as one request, whose descriptors are `first` and those behind it. They must not be
    /// those of a request that has not been taken back.
    ///
    /// # Panics
    /// When there are not so many descriptors.
    pub fn add(&mut self, first: u16, buffers: &[Buffer]) {
        for (n, buffer) in (first..).zip(buffers) {
            assert!(n < SIZE, "no descriptor {n}");
            let is_last = usize::from(n - first) + 1 == buffers.len();
            let next = if is_last { 0 } else { NEXT };
            let write = if buffer.is_written { WRITE } else { 0 };
            let descriptor = Descriptor {
                address: buffer.address,
                length: buffer.length,
                flags: next | write,
                next: n + 1,
            };
            // SAFETY: see above.
            unsafe {
                (&raw mut (*self.rings).descriptors[usize::from(n)]).write_volatile(descriptor);
            }
        }
        let slot = usize::from(self.added % SIZE);
        self.added = self.added.wrapping_add(1);
        // SAFETY: see above.
        unsafe {
            (&raw mut (*self.rings).available.ring[slot]).write_volatile(first);
            fence(Ordering::Release);
            (&raw mut (*self.rings).available.index).write_volatile(self.added);
        }
    }

    /// Tells the device, unless it does not want to be told.
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        // SAFETY: see above.
        if unsafe { (&raw const (*self.rings).used.flags).read_volatile() } & QUIET == 0 {
            self.device.notify(self.index);
        }
    }

    /// Returns whether there is a request to take back.
    #[must_use]
    pub fn has_used(&self) -> bool {
        // SAFETY: see above.
        unsafe { (&raw const (*self.rings).used.index).read_volatile() != self.taken }
    }

    /// Takes a request back that the device is done with: its first descriptor, and how much of it was written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = usize::from(self.taken % SIZE);
        self.taken = self.taken.wrapping_add(1);
        // SAFETY: see above.
        let UsedElement { id, length } =
            unsafe { (&raw const (*self.rings).used.ring[slot]).read_volatile() };
        Some((id as u16, length))
    }
}
