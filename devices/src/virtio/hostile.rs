//! A driver for tests that means harm: it puts anything into its rings and its buffers, and goes on
//! changing them while the device reads them, as from another processor.

extern crate std;

use core::cell::RefCell;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use arch::addr::GuestPhysAddr;

use super::device::{Progress, VirtioDevice};
use super::queue::{MAX_SIZE, Placement, Queue, QueueFeatures};
use crate::guest_memory::{GuestMemory, NotRam};

/// The size of the memory. The rings of up to two queues come first.
const SIZE: usize = 0x1_0000;
/// The distance between the rings of two queues, and their places within that.
const QUEUE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1800;
/// The place of the headers of requests, behind which there is data.
const HEADERS: u64 = 0x8000;
/// The most accesses to memory, and the most bytes in all, of a device before others come in.
const MOST_ACCESSES: usize = 12_000;
const MOST_BYTES: usize = 512 << 10;

/// A generator of numbers that are good enough for tests (xorshift64*), behind those that are given to it.
pub(crate) struct Random {
    state: u64,
    given: VecDeque<u32>,
}

impl Random {
    /// Makes a generator that begins with these numbers.
    pub(crate) fn beginning_with(given: &[u32]) -> Self {
        Self {
            state: 1 << 63,
            given: given.iter().copied().collect(),
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        if let Some(given) = self.given.pop_front() {
            return u64::from(given) << 32 | u64::from(given);
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 7
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A maker of headers as requests to the device have them, more or less.
pub(crate) type MakeHeader = fn(&mut Random) -> [u8; 16];

struct State {
    bytes: Vec<u8>,
    /// Whether the driver has let the device write a byte.
    open: Vec<bool>,
    queues: Vec<Placement>,
    random: Random,
    header: MakeHeader,
    accesses: usize,
    copied: usize,
}

impl State {
    fn range(&self, address: GuestPhysAddr, length: usize) -> Result<usize, NotRam> {
        let end = usize::try_from(address.0)
            .ok()
            .and_then(|start| start.checked_add(length));
        match end {
            Some(end) if end <= self.bytes.len() => Ok(end - length),
            _ => Err(NotRam { address, length }),
        }
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        if let Ok(start) = self.range(GuestPhysAddr(address), bytes.len()) {
            self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Sets so many queues up, one of them perhaps where no queue should be. Returns their size, and
    /// the device's side of them.
    fn set_up(&mut self, queues: usize) -> (u16, Vec<Queue>) {
        let features = QueueFeatures {
            indirect: self.random.below(2) == 0,
            event_index: self.random.below(2) == 0,
        };
        let size = self.random.pick(&[1, 2, 8, 64, MAX_SIZE]);
        self.open.fill(false);
        self.queues.clear();
        for queue in 0..queues {
            let base = QUEUE * queue as u64;
            // A new queue is empty.
            self.put(base + AVAILABLE, &[0; 4]);
            let elsewhere = GuestPhysAddr(self.address());
            let mut at = Placement {
                size,
                descriptors: GuestPhysAddr(base),
                available: GuestPhysAddr(base + AVAILABLE),
                used: GuestPhysAddr(base + USED),
            };
            match self.random.below(24) {
                0 => at.descriptors = elsewhere,
                1 => at.available = elsewhere,
                2 => at.used = elsewhere,
                _ => {}
            }
            // The flags and the index, the entries, and the event.
            self.open(at.used.0, 4 + 8 * u64::from(size) + 2);
            self.queues.push(at);
        }
        let queues = self.queues.iter();
        let queues = queues.filter_map(|&at| Queue::new(at, features));
        (size, queues.collect())
    }

    /// Lets the device write what is in memory of these bytes.
    fn open(&mut self, address: u64, length: u64) {
        let start = address.min(self.open.len() as u64);
        let end = address.saturating_add(length).min(self.open.len() as u64);
        self.open[start as usize..end as usize].fill(true);
    }

    /// Follows that the device may have read a descriptor.
    fn follow(&mut self, bytes: &[u8]) {
        const WRITE: u8 = 2;
        if let Ok(&[a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, flags, ..]) =
            <&[u8; 16]>::try_from(bytes)
            && flags & WRITE != 0
        {
            let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
            self.open(address, u32::from_le_bytes([l0, l1, l2, l3]).into());
        }
    }

    fn address(&mut self) -> u64 {
        match self.random.below(32) {
            0 => self.random.next(),
            1 => u64::MAX - self.random.below(64),
            2 => SIZE as u64 - self.random.below(64),
            3 => self.random.below(SIZE as u64),
            _ => HEADERS + 16 * self.random.below(0x700),
        }
    }

    fn put_descriptor(&mut self, table: u64, n: u64, flags: u16, next: u16) {
        const LENGTHS: [u32; 14] = [
            0,
            1,
            11,
            12,
            16,
            17,
            32,
            512,
            513,
            1024,
            1530,
            4096,
            0x8000,
            u32::MAX,
        ];
        let mut bytes = self.address().to_le_bytes().to_vec();
        bytes.extend(self.random.pick(&LENGTHS).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table.wrapping_add(16 * n), &bytes);
    }

    /// Makes a request available: a header, data and a status, of which none need be so.
    fn add(&mut self, queue: usize) {
        let at = self.queues[queue];
        let size = u64::from(at.size);
        let first = self.random.below(size);
        let place = (first + 1) % size;
        let last = (first + 2) % size;
        let data = self.random.pick(&[1, 1, 3, 3, 4]);
        let table = at.descriptors.0;
        for (n, next, flags) in [(first, place, 1), (place, last, data), (last, first, 2)] {
            let flags = self.random_flags(flags);
            self.put_descriptor(table, n, flags, next as u16);
        }
        let header = (self.header)(&mut self.random);
        let to = self.address();
        self.put(to, &header);
        if self.random.below(4) != 0 {
            // Where the first descriptor says that it is.
            self.put(table.wrapping_add(16 * first), &to.to_le_bytes());
            self.put(table.wrapping_add(16 * first + 8), &16_u32.to_le_bytes());
        }
        let index = self.index(at).wrapping_add(1);
        let slot = u64::from(index.wrapping_sub(1)) % size;
        self.put(
            at.available.0.wrapping_add(4 + 2 * slot),
            &(first as u16).to_le_bytes(),
        );
        self.put(at.available.0.wrapping_add(2), &index.to_le_bytes());
    }

    fn random_flags(&mut self, usual: u16) -> u16 {
        match self.random.below(24) {
            0 => self.random.next() as u16,
            1 => usual ^ 1,
            2 => usual ^ 2,
            _ => usual,
        }
    }

    fn index(&self, at: Placement) -> u16 {
        let place = GuestPhysAddr(at.available.0.wrapping_add(2));
        self.range(place, 2).map_or(0, |start| {
            u16::from_le_bytes([self.bytes[start], self.bytes[start + 1]])
        })
    }

    /// Changes something.
    fn meddle(&mut self) {
        let queue = self.random.below(self.queues.len() as u64) as usize;
        let at = self.queues[queue];
        let size = u64::from(at.size);
        match self.random.below(64) {
            0 => {
                let garbage = self.random.next().to_le_bytes();
                self.put(at.available.0, &garbage[..4]);
            }
            1..4 => {
                let to = self.random.below(size);
                let head = self.random.below(size + 1) as u16;
                self.put(at.available.0.wrapping_add(4 + 2 * to), &head.to_le_bytes());
            }
            4..8 => {
                let n = self.random.below(size);
                let next = self.random.below(size + 1) as u16;
                let flags = self.random.pick(&[0, 1, 1, 2, 3, 3, 4, 5, 7]);
                self.put_descriptor(at.descriptors.0, n, flags, next);
            }
            8..12 => {
                let (to, garbage) = (self.address(), self.random.next());
                self.put(to, &garbage.to_le_bytes());
            }
            12..20 => self.add(queue),
            _ => {}
        }
    }
}

/// The memory of the driver.
pub(crate) struct HostileMemory(RefCell<State>);

impl GuestMemory for HostileMemory {
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let state = &mut *self.0.borrow_mut();
        state.accesses += 1;
        let start = state.range(address, buffer.len())?;
        buffer.copy_from_slice(&state.bytes[start..start + buffer.len()]);
        state.copied += buffer.len();
        state.follow(buffer);
        state.meddle();
        Ok(())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let state = &mut *self.0.borrow_mut();
        state.accesses += 1;
        let start = state.range(address, data.len())?;
        let end = start + data.len();
        assert!(
            state.open[start..end].iter().all(|&open| open),
            "{start:#x} to {end:#x} was written, which is no buffer for that"
        );
        state.bytes[start..end].copy_from_slice(data);
        state.copied += data.len();
        Ok(())
    }
}

/// The behavior of a device with such a driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The number of times that it did all that there was to do.
    pub(crate) idle: u32,
    /// The number of times that it stopped to let others come in.
    pub(crate) busy: u32,
    /// The number of times that it needed a reset.
    pub(crate) resets: u32,
}

/// Lets a driver that means harm loose on `device`, and calls `between` each time before the device
/// works. Checks that the device comes to an end soon each time, and that it writes only where the
/// driver has let it.
pub(crate) fn torment(
    device: &mut dyn VirtioDevice,
    seed: u64,
    header: MakeHeader,
    between: &mut dyn FnMut(),
) -> Outcome {
    let random = Random {
        state: seed | 1 << 63,
        given: VecDeque::new(),
    };
    torment_by(device, random, header, between)
}

/// Does as [`torment`] does, with these numbers for chance.
pub(crate) fn torment_by(
    device: &mut dyn VirtioDevice,
    random: Random,
    header: MakeHeader,
    between: &mut dyn FnMut(),
) -> Outcome {
    let mut outcome = Outcome::default();
    let memory = HostileMemory(RefCell::new(State {
        bytes: vec![0; SIZE],
        open: vec![false; SIZE],
        queues: Vec::new(),
        random,
        header,
        accesses: 0,
        copied: 0,
    }));
    for _ in 0..8 {
        let (size, mut queues) = {
            let state = &mut *memory.0.borrow_mut();
            device.set_features(state.random.next());
            state.set_up(device.queues())
        };
        for _ in 0..12 {
            between();
            let index = {
                let state = &mut *memory.0.borrow_mut();
                let index = state.random.below(queues.len() as u64) as usize;
                for _ in 0..state.random.below(u64::from(size) + 1) {
                    state.add(index);
                }
                (state.accesses, state.copied) = (0, 0);
                index
            };
            let result = device.work(index, &mut queues[index], &memory);
            let interrupt = queues[index].wants_interrupt(&memory);
            let (accesses, copied) = {
                let state = memory.0.borrow();
                (state.accesses, state.copied)
            };
            assert!(
                accesses <= MOST_ACCESSES && copied <= MOST_BYTES,
                "{accesses} accesses, {copied} bytes at a time"
            );
            match result {
                Ok(Progress::Idle) => outcome.idle += 1,
                Ok(Progress::Busy | Progress::Until(_)) => outcome.busy += 1,
                Err(_) => outcome.resets += 1,
            }
            if result.is_err() || interrupt.is_err() {
                break;
            }
        }
        device.reset();
    }
    outcome
}
