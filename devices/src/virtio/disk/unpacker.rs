//! Unpacking of compressed clusters, a bit at a time, and the last ones that were unpacked.

use alloc::vec::Vec;
use core::fmt::{self, Debug};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::error::DiskError;
use crate::virtio::device::Budget;

/// The memory for clusters that are unpacked, in bytes, if that is not too little or too much by
/// [`SLOTS`].
const MEMORY: usize = 1 << 20;
/// The number of clusters that are kept: as a guest reads more than one file at a time, more than one.
const SLOTS: core::ops::RangeInclusive<usize> = 2..=16;

/// The most bytes that are unpacked in a step, and the most that they are unpacked from. A step also
/// ends with a block of deflate's, so that it has one table of codes to make at most: on a processor of 2 GHz
/// it takes some 50 µs.
const STEP: usize = 4 << 10;
/// The number of bytes that are copied in the time that it takes to unpack one: 7 to 11 ns, to 0.1 ns.
const BYTE: u64 = 64;
/// The number of bytes that are copied in the time that it takes to begin with a block, which is up to
/// 15 µs with two tables of codes.
const BLOCK: u64 = 128 << 10;
/// The least bytes that a block unpacks to on average. No compressor makes such small ones; blocks with
/// nothing in them would take hundreds of times what the others do.
const LEAST_BLOCK: usize = 64;

/// The memory of one cluster.
struct Slot {
    /// The bytes of the cluster that have been unpacked, with room for all of it: what is filled only as it
    /// is needed takes no time at the beginning.
    bytes: Vec<u8>,
    /// The cluster that is there, all of it.
    cluster: Option<u64>,
    /// The time at which it was last used.
    used: u64,
}

/// The cluster that is being unpacked.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    cluster: u64,
    slot: usize,
    /// The bytes that it was unpacked from.
    read: usize,
    /// The bytes that have been unpacked.
    written: usize,
    /// The blocks that have ended.
    blocks: usize,
}

/// A maker of clusters from what is compressed.
pub(super) struct Unpacker {
    cluster_size: usize,
    slots: Vec<Slot>,
    /// The time: the number of clusters that have been asked for.
    now: u64,
    /// The state of the decompressor; one, in memory that can be had without a panic.
    decompressor: Vec<DecompressorOxide>,
    unfinished: Option<Unfinished>,
}

impl Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker")
            .field("slots", &self.slots.len())
            .field("unfinished", &self.unfinished)
            .finish_non_exhaustive()
    }
}

impl Unpacker {
    /// Makes one for clusters of this size.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn new(cluster_size: usize) -> Result<Self, DiskError> {
        let count = (MEMORY / cluster_size).clamp(*SLOTS.start(), *SLOTS.end());
        let mut slots = Vec::new();
        let mut decompressor = Vec::new();
        slots
            .try_reserve_exact(count)
            .and_then(|()| decompressor.try_reserve_exact(1))
            .map_err(|_| DiskError::OutOfMemory)?;
        for _ in 0..count {
            let mut bytes = Vec::new();
            bytes
                .try_reserve_exact(cluster_size)
                .map_err(|_| DiskError::OutOfMemory)?;
            slots.push(Slot {
                bytes,
                cluster: None,
                used: 0,
            });
        }
        decompressor.push(DecompressorOxide::new());
        Ok(Self {
            cluster_size,
            slots,
            now: 0,
            decompressor,
            unfinished: None,
        })
    }

    /// Returns cluster `cluster`, which unpacks from `compressed`; `None` if that takes more than
    /// there is of `budget`, and is to be asked for again.
    ///
    /// # Errors
    /// [`DiskError::Damaged`] if it does not unpack to a whole cluster.
    pub(super) fn cluster(
        &mut self,
        cluster: u64,
        compressed: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<&[u8]>, DiskError> {
        self.now += 1;
        let mut slots = self.slots.iter();
        let found = slots.position(|slot| slot.cluster == Some(cluster));
        let slot = match found {
            Some(slot) => slot,
            None => match self.unpack(cluster, compressed, budget)? {
                Some(slot) => slot,
                None => return Ok(None),
            },
        };
        let slot = &mut self.slots[slot];
        slot.used = self.now;
        Ok(Some(&slot.bytes))
    }

    /// Goes on with a cluster, or begins with it, as far as `budget` goes. Returns the slot where it
    /// is when all of it is there.
    fn unpack(
        &mut self,
        cluster: u64,
        compressed: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<usize>, DiskError> {
        let unfinished = self.unfinished.take();
        let mut work = match unfinished.filter(|work| work.cluster == cluster) {
            Some(work) => work,
            None => self.begin(cluster),
        };
        while work.written < self.cluster_size {
            if budget.is_spent() {
                self.unfinished = Some(work);
                return Ok(None);
            }
            self.step(&mut work, compressed, budget)?;
        }
        self.slots[work.slot].cluster = Some(cluster);
        Ok(Some(work.slot))
    }

    /// Begins with a cluster, in the place of the one that was not used for longest.
    fn begin(&mut self, cluster: u64) -> Unfinished {
        let slots = self.slots.iter().enumerate();
        let oldest = slots.min_by_key(|(_, slot)| slot.used);
        let slot = oldest.map_or(0, |(index, _)| index);
        self.slots[slot].cluster = None;
        self.slots[slot].bytes.clear();
        self.decompressor[0].init();
        Unfinished {
            cluster,
            slot,
            read: 0,
            written: 0,
            blocks: 0,
        }
    }

    /// Unpacks a bit.
    fn step(
        &mut self,
        work: &mut Unfinished,
        compressed: &[u8],
        budget: &mut Budget,
    ) -> Result<(), DiskError> {
        let rest = compressed.get(work.read..).unwrap_or_default();
        let input = &rest[..rest.len().min(STEP)];
        let mut flags =
            TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        if input.len() < rest.len() {
            flags |= TINFL_FLAG_HAS_MORE_INPUT;
        }
        let output = &mut self.slots[work.slot].bytes;
        output.resize(self.cluster_size.min(work.written + STEP), 0);
        let (status, read, written) = decompress(
            &mut self.decompressor[0],
            input,
            output,
            work.written,
            flags,
        );
        work.read += read;
        work.written += written;
        budget.spend(written as u64 * BYTE);
        match status {
            TINFLStatus::BlockBoundary if work.blocks < self.cluster_size / LEAST_BLOCK => {
                work.blocks += 1;
                budget.spend(BLOCK);
            }
            // Whatever follows is not the cluster's.
            TINFLStatus::Done if work.written == self.cluster_size => {}
            TINFLStatus::HasMoreOutput | TINFLStatus::NeedsMoreInput => {}
            _ => return Err(DiskError::Damaged),
        }
        // Without either it would go on like this.
        if read == 0 && written == 0 {
            return Err(DiskError::Damaged);
        }
        Ok(())
    }
}
