//! The block device (5.2), over a [`Disk`].
//!
//! What the driver has written is on the disk when the request is answered, so that a flush has
//! nothing to do. A request of any length is worked on in pieces: see [`Budget`].

use alloc::string::String;

use super::chain::{BufferError, Chain};
use super::device::{Budget, DeviceError, HostFailure, Progress, VirtioDevice};
use super::disk::{Disk, DiskError, SECTOR, SharedDisk};
use super::queue::Queue;
use crate::guest_memory::GuestMemory;

/// Feature bits (5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Types of requests (5.2.6).
mod request {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The length of a request's header, and of a segment of a discard.
const HEADER: u32 = 16;
/// The length of a disk's name.
pub const ID_LENGTH: usize = 20;
/// The most sectors of a discard: so many that it takes no longer than copying what a device copies at a
/// time.
const DISCARD_SECTORS: u32 = 0x4000;
/// The number of bytes that are discarded in the time that it takes to copy one.
const DISCARD_SPEED: u64 = 32;
/// Flag of a discard's segment: unmap.
const UNMAP: u32 = 1 << 0;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug)]
enum Direction {
    /// A read of the disk, into the buffers of the present chain.
    FromDisk,
    /// A write, from there.
    ToDisk,
    /// A discard, without buffers.
    Discard,
}

/// A transfer between the disk and the buffers of the present chain.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    direction: Direction,
    /// The byte on the disk.
    offset: u64,
    /// The number of bytes that have been transferred, of [`Self::length`].
    done: u32,
    length: u32,
}

impl Transfer {
    /// Transfers the next piece, which is `length` bytes long, if `budget` is enough for it.
    fn go_on(
        &self,
        length: usize,
        disk: &mut Disk,
        chain: &Chain,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Option<Result<(), BufferError>>, DiskError> {
        let at = self.offset + u64::from(self.done);
        Ok(match self.direction {
            Direction::FromDisk => disk
                .read(at, length, budget)?
                .map(|bytes| chain.writable().write(memory, self.done, bytes)),
            Direction::ToDisk => disk
                .write(at, length, budget)?
                .map(|bytes| chain.readable().read(memory, HEADER + self.done, bytes)),
            Direction::Discard => disk.discard(at, length, budget)?.map(Ok),
        })
    }

    /// Returns the length of the next piece, and what it takes of a budget, in bytes.
    fn piece(&self) -> (usize, u64) {
        let at = self.offset + u64::from(self.done);
        let left = u64::from(self.length - self.done);
        if let Direction::Discard = self.direction {
            let length = Disk::discarded_piece(at, left);
            (length, length as u64 / DISCARD_SPEED)
        } else {
            let length = Disk::piece(at, left);
            (length, length as u64)
        }
    }
}

/// The block device.
#[derive(Debug)]
pub struct Block {
    disk: SharedDisk,
    sectors: u64,
    is_read_only: bool,
    requests: Requests,
}

/// The requests for a disk.
#[derive(Debug)]
struct Requests {
    id: String,
    chain: Chain,
    /// The unfinished transfer of the present chain.
    transfer: Option<Transfer>,
    /// The cause of an error that is none of the driver's making.
    failure: Option<HostFailure>,
}

impl Block {
    /// Makes a device of `disk`, with a name for the guest of up to [`ID_LENGTH`] bytes. No other device works
    /// with the disk at the same time.
    #[must_use]
    pub fn new(disk: SharedDisk, id: String) -> Self {
        let (sectors, is_read_only) = {
            let disk = disk.lock();
            (disk.sectors(), disk.is_read_only())
        };
        Self {
            disk,
            sectors,
            is_read_only,
            requests: Requests {
                id,
                chain: Chain::new(),
                transfer: None,
                failure: None,
            },
        }
    }
}

impl Requests {
    /// Begins with the present chain: whatever is short is done; `None` if there is something to
    /// transfer.
    fn begin(
        &mut self,
        disk: &Disk,
        memory: &dyn GuestMemory,
    ) -> Result<Option<Status>, DeviceError> {
        let mut header = [0; HEADER as usize];
        self.chain.readable().read(memory, 0, &mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        // The last byte to be written is the status; without it there is no answer.
        let room = self.chain.writable().len().checked_sub(1);
        let room = room.ok_or(BufferError::TooShort)?;
        let data = self.chain.readable().len() - HEADER;
        Ok(match kind {
            request::IN => self.begin_transfer(disk, Direction::FromDisk, sector, room),
            request::OUT if disk.is_read_only() => Some(Status::IoError),
            request::OUT => self.begin_transfer(disk, Direction::ToDisk, sector, data),
            request::FLUSH => Some(Status::Ok),
            request::GET_ID => Some(self.tell_id(memory, room)?),
            request::DISCARD | request::WRITE_ZEROES => {
                self.begin_discard(disk, memory, kind, data)?
            }
            _ => Some(Status::Unsupported),
        })
    }

    fn begin_transfer(
        &mut self,
        disk: &Disk,
        direction: Direction,
        sector: u64,
        length: u32,
    ) -> Option<Status> {
        if !u64::from(length).is_multiple_of(SECTOR) {
            return Some(Status::IoError);
        }
        match disk.offset(sector, u64::from(length) / SECTOR) {
            Ok(offset) => {
                self.transfer = Some(Transfer {
                    direction,
                    offset,
                    done: 0,
                    length,
                });
                None
            }
            Err(error) => Some(self.refuse(error)),
        }
    }

    /// Returns what the driver is told of an error, and takes note of one that is none of its making.
    const fn refuse(&mut self, error: DiskError) -> Status {
        match error {
            DiskError::OutOfMemory => self.failure = Some(HostFailure::OutOfMemory),
            DiskError::Damaged => self.failure = Some(HostFailure::DamagedImage),
            DiskError::OutOfRange | DiskError::ReadOnly => {}
        }
        Status::IoError
    }

    fn tell_id(&self, memory: &dyn GuestMemory, room: u32) -> Result<Status, DeviceError> {
        if room < ID_LENGTH as u32 {
            return Ok(Status::IoError);
        }
        let mut id = [0; ID_LENGTH];
        for (to, from) in id.iter_mut().zip(self.id.bytes()) {
            *to = from;
        }
        self.chain.writable().write(memory, 0, &id)?;
        Ok(Status::Ok)
    }

    /// Begins to discard or to write zeros, in one segment as the configuration has it.
    fn begin_discard(
        &mut self,
        disk: &Disk,
        memory: &dyn GuestMemory,
        kind: u32,
        data: u32,
    ) -> Result<Option<Status>, DeviceError> {
        if data != HEADER {
            return Ok(Some(Status::IoError));
        }
        let mut segment = [0; HEADER as usize];
        self.chain.readable().read(memory, HEADER, &mut segment)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = segment;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let flags = u32::from_le_bytes(flags);
        let known = if kind == request::WRITE_ZEROES {
            UNMAP
        } else {
            0
        };
        if flags & !known != 0 {
            return Ok(Some(Status::Unsupported));
        }
        if count > DISCARD_SECTORS || disk.is_read_only() {
            return Ok(Some(Status::IoError));
        }
        Ok(self.begin_transfer(disk, Direction::Discard, sector, count * SECTOR as u32))
    }

    /// Goes on with a transfer, as far as `budget` goes. `None` if it is not finished.
    fn transfer(
        &mut self,
        disk: &mut Disk,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Option<Status>, DeviceError> {
        let Some(transfer) = &mut self.transfer else {
            return Ok(Some(Status::Ok));
        };
        while transfer.done < transfer.length {
            if budget.is_spent() {
                return Ok(None);
            }
            let (length, price) = transfer.piece();
            match transfer.go_on(length, disk, &self.chain, memory, budget) {
                Ok(Some(copied)) => copied?,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(self.refuse(error))),
            }
            transfer.done += length as u32;
            budget.spend(price);
        }
        Ok(Some(Status::Ok))
    }

    /// Answers the present chain.
    fn finish(
        &mut self,
        status: Status,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<(), DeviceError> {
        self.transfer = None;
        let buffers = self.chain.writable();
        let last = buffers.len() - 1;
        buffers.write(memory, last, &[status as u8])?;
        // Up to the status, if all before it was written; else nothing is promised.
        let written = if status == Status::Ok {
            buffers.len()
        } else {
            0
        };
        queue.give_back(memory, self.chain.head(), written)?;
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn id(&self) -> &str {
        &self.requests.id
    }

    fn device_type(&self) -> u16 {
        2
    }

    fn pci_class(&self) -> (u8, u8, u8) {
        // Mass storage of another kind.
        (0x01, 0x80, 0)
    }

    fn features(&self) -> u64 {
        let writable = if self.is_read_only {
            feature::RO
        } else {
            feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES
        };
        feature::SEG_MAX | feature::BLK_SIZE | writable
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self, offset: usize) -> u8 {
        /// All of a queue but the header and the status.
        const SEGMENTS: u32 = super::queue::MAX_SIZE as u32 - 2;
        let byte = |value: u32, first: usize| value.to_le_bytes()[offset - first];
        match offset {
            0..8 => self.sectors.to_le_bytes()[offset],
            12..16 => byte(SEGMENTS, 12),
            20..24 => byte(SECTOR as u32, 20),
            // Discard: the most sectors, the most segments, the alignment.
            36..40 => byte(DISCARD_SECTORS, 36),
            40..44 => byte(1, 40),
            44..48 => byte(8, 44),
            // Writing zeros: the same, and it may unmap.
            48..52 => byte(DISCARD_SECTORS, 48),
            52..56 => byte(1, 52),
            56 => 1,
            _ => 0,
        }
    }

    fn work(
        &mut self,
        _: usize,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        let mut disk = self.disk.lock();
        let requests = &mut self.requests;
        let mut budget = Budget::new();
        while !budget.is_spent() {
            let status = if requests.transfer.is_some() {
                None
            } else if queue.take(memory, &mut requests.chain)? {
                budget.spend_on_request(&requests.chain);
                requests.begin(&disk, memory)?
            } else {
                return Ok(Progress::Idle);
            };
            let status = match status {
                Some(status) => status,
                None => match requests.transfer(&mut disk, memory, &mut budget)? {
                    Some(status) => status,
                    None => return Ok(Progress::Busy),
                },
            };
            requests.finish(status, queue, memory)?;
        }
        Ok(Progress::Busy)
    }

    fn take_failure(&mut self) -> Option<HostFailure> {
        self.requests.failure.take()
    }

    /// Forgets what it was working on. What is on the disk stays there.
    fn reset(&mut self) {
        self.requests.transfer = None;
    }
}

#[cfg(test)]
mod tests;
