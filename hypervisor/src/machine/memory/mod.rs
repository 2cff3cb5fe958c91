//! The machine's free physical memory, handed out in contiguous, aligned ranges of 4 KiB
//! frames.
#![cfg_attr(not(test), forbid(unsafe_code))]

use alloc::vec::Vec;
use core::fmt;

use spin::Mutex;
use vmx::addr::{HostPhysAddr, PAGE_SIZE};

use super::boot_info::{MemoryKind, MemoryRegion};

#[cfg(test)]
mod tests;

pub(crate) use arch::paging::{SIZE_1G, SIZE_2M};
/// The end of low memory, which holds real-mode structures of the firmware and, later, the page
/// where application processors wake up; none of it is handed out.
pub(crate) const LOW_MEMORY_END: u64 = 1 << 20;

/// A range of physical addresses; `end` is the first address after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PhysRange {
    /// The first address.
    pub start: HostPhysAddr,
    /// The first address after the range; not below `start`.
    pub end: HostPhysAddr,
}

impl PhysRange {
    /// The empty range at zero.
    pub(crate) const EMPTY: Self = Self::new(0, 0);

    /// Returns the range from `start` to `end`; empty at `start` if `end` is lower.
    #[must_use]
    pub(crate) const fn new(start: u64, end: u64) -> Self {
        Self {
            start: HostPhysAddr(start),
            end: HostPhysAddr(if end < start { start } else { end }),
        }
    }

    /// Returns its length in bytes.
    #[must_use]
    pub(crate) const fn size(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Returns whether it holds no byte.
    #[must_use]
    pub(crate) const fn is_empty(self) -> bool {
        self.size() == 0
    }

    /// Returns the whole 4 KiB frames that lie in it.
    #[must_use]
    const fn whole_frames(self) -> Self {
        let start = self.start.0.div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE);
        Self::new(start, self.end.0 & !(PAGE_SIZE - 1))
    }

    /// Returns the 4 KiB frames that it touches.
    #[must_use]
    pub(crate) const fn touched_frames(self) -> Self {
        let end = self.end.0.div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE);
        Self::new(self.start.0 & !(PAGE_SIZE - 1), end)
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

/// A lack of free ranges of this size and alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory {
    /// The bytes asked for.
    pub size: u64,
    /// The alignment asked for.
    pub alignment: u64,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no {} KiB of physical memory, aligned to {} KiB, are free",
            self.size / 1024,
            self.alignment / 1024
        )
    }
}

impl core::error::Error for OutOfMemory {}

/// Free ranges that the allocator can keep account of. Machines have a few dozen; a guest's
/// RAM adds at most two while it is allocated.
const CAPACITY: usize = 256;

/// The free ranges, sorted by address, never empty, never touching each other.
///
/// Works without a heap, as the heap grows out of it.
pub(crate) struct FrameAllocator {
    ranges: [PhysRange; CAPACITY],
    count: usize,
}

impl FrameAllocator {
    /// Makes an allocator with nothing to give.
    #[must_use]
    pub(crate) const fn empty() -> Self {
        Self {
            ranges: [PhysRange::EMPTY; CAPACITY],
            count: 0,
        }
    }

    /// Makes an allocator of the whole frames of `map` that are available, less all frames that a
    /// range of `reserved` touches and the first 1 MiB.
    ///
    /// Where regions of the map overlap, memory is available only if all say so.
    #[must_use]
    pub(crate) fn new(map: &[MemoryRegion], reserved: impl Iterator<Item = PhysRange>) -> Self {
        let mut allocator = Self::empty();
        for region in map.iter().filter(|r| r.kind == MemoryKind::Available) {
            // A region that does not fit in the account is lost, not an error.
            allocator.insert(region.range.whole_frames());
        }
        for region in map.iter().filter(|r| r.kind != MemoryKind::Available) {
            allocator.remove(region.range.touched_frames());
        }
        for range in reserved {
            allocator.remove(range.touched_frames());
        }
        allocator.remove(PhysRange::new(0, LOW_MEMORY_END));
        allocator
    }

    /// Returns the free ranges, lowest first.
    #[must_use]
    pub(crate) fn free_ranges(&self) -> &[PhysRange] {
        &self.ranges[..self.count]
    }

    /// Returns the sum of all free bytes.
    #[must_use]
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_ranges().iter().map(|range| range.size()).sum()
    }

    /// Returns the bytes that are free in pieces that begin and end at multiples of `alignment`, a
    /// power of two: those of the largest piece, and of all together.
    fn aligned_bytes(&self, alignment: u64) -> (u64, u64) {
        let sizes = self.free_ranges().iter().map(|range| {
            let start = range.start.0.checked_next_multiple_of(alignment);
            start.map_or(0, |start| {
                (range.end.0 & !(alignment - 1)).saturating_sub(start)
            })
        });
        sizes.fold((0, 0), |(largest, all), size| {
            (largest.max(size), all + size)
        })
    }

    /// Takes `size` contiguous bytes (rounded up to whole frames) at a multiple of
    /// `alignment`, a power of two (at least a frame is used). The content is left as it is.
    ///
    /// Small ranges come from the bottom of memory, those of 2 MiB and more from the top,
    /// so that page tables do not break up the memory that guests want in large pages.
    ///
    /// # Errors
    /// If no free range holds that much.
    pub(crate) fn allocate(&mut self, size: u64, alignment: u64) -> Result<PhysRange, OutOfMemory> {
        let error = OutOfMemory { size, alignment };
        let alignment = alignment.max(PAGE_SIZE);
        if size == 0 || !alignment.is_power_of_two() {
            return Err(error);
        }
        let size = size.checked_next_multiple_of(PAGE_SIZE).ok_or(error)?;
        let lowest_in = |free: &PhysRange| {
            let start = free.start.0.checked_next_multiple_of(alignment)?;
            let end = start.checked_add(size)?;
            (end <= free.end.0).then_some(PhysRange::new(start, end))
        };
        let highest_in = |free: &PhysRange| {
            let start = free.end.0.checked_sub(size)? & !(alignment - 1);
            (start >= free.start.0).then_some(PhysRange::new(start, start + size))
        };
        let found = if size < SIZE_2M {
            self.free_ranges().iter().find_map(lowest_in)
        } else {
            self.free_ranges().iter().rev().find_map(highest_in)
        };
        let range = found.ok_or(error)?;
        if self.remove(range) {
            Ok(range)
        } else {
            Err(error)
        }
    }

    /// Takes `size` bytes as [`FrameAllocator::allocate`] does, or the largest piece that begins
    /// and ends at multiples of `alignment` if there is none of that size.
    ///
    /// # Errors
    /// If there is nothing of this alignment.
    fn allocate_piece(&mut self, size: u64, alignment: u64) -> Result<PhysRange, OutOfMemory> {
        self.allocate(size, alignment).or_else(|error| {
            if !alignment.is_power_of_two() {
                return Err(error);
            }
            let (largest, _) = self.aligned_bytes(alignment.max(PAGE_SIZE));
            self.allocate(largest.min(size), alignment)
        })
    }

    /// Gives back what [`FrameAllocator::allocate`] gave.
    fn free(&mut self, range: PhysRange) {
        let overlaps = |free: &PhysRange| free.start < range.end && range.start < free.end;
        debug_assert!(
            !self.free_ranges().iter().any(overlaps),
            "{range:?} was freed twice"
        );
        self.insert(range);
    }

    /// Adds `range`, merging it with all free ranges that it overlaps or touches. If the
    /// account is full, the range stays out of it (leaks).
    fn insert(&mut self, range: PhysRange) {
        if range.is_empty() {
            return;
        }
        // The neighbors [first, last) merge with the new range.
        let free = self.free_ranges();
        let first = free.partition_point(|other| other.end < range.start);
        let last = free.partition_point(|other| other.start <= range.end);
        let mut merged = range;
        if first < last {
            merged.start = merged.start.min(free[first].start);
            merged.end = merged.end.max(free[last - 1].end);
        } else if self.count == CAPACITY {
            return;
        }
        self.replace(first, last, &[merged]);
    }

    /// Removes `range` from whatever is free of it. Returns whether all of it is out now;
    /// `false` (nothing done) only if the account has no room for the second half of a
    /// range cut in two.
    fn remove(&mut self, range: PhysRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let free = self.free_ranges();
        let first = free.partition_point(|other| other.end <= range.start);
        let last = free.partition_point(|other| other.start < range.end);
        if first >= last {
            return true;
        }
        let before = PhysRange::new(free[first].start.0, range.start.0);
        let after = PhysRange::new(range.end.0, free[last - 1].end.0);
        let has_before = free[first].start < range.start;
        let has_after = range.end < free[last - 1].end;
        match (has_before, has_after) {
            (false, false) => self.replace(first, last, &[]),
            (true, false) => self.replace(first, last, &[before]),
            (false, true) => self.replace(first, last, &[after]),
            (true, true) if last - first == 1 && self.count == CAPACITY => return false,
            (true, true) => self.replace(first, last, &[before, after]),
        }
        true
    }

    /// Replaces the entries `first..last` by `new`; the caller has checked that they fit.
    fn replace(&mut self, first: usize, last: usize, new: &[PhysRange]) {
        let new_count = self.count - (last - first) + new.len();
        self.ranges.copy_within(last..self.count, first + new.len());
        self.ranges[first..first + new.len()].copy_from_slice(new);
        self.count = new_count;
    }
}

/// The machine's free memory. Empty until [`init`].
static FRAMES: Mutex<FrameAllocator> = Mutex::new(FrameAllocator::empty());

/// Makes `allocator` the machine's.
pub(crate) fn init(allocator: FrameAllocator) {
    *FRAMES.lock() = allocator;
}

/// Physical memory that is its holder's alone: whole frames, contiguous, identity-mapped. They go
/// back to the machine when this is dropped.
#[derive(Debug)]
pub(crate) struct Frames {
    range: PhysRange,
    #[cfg(test)]
    layout: std::alloc::Layout,
}

impl Frames {
    /// Takes physical memory from the machine; see [`FrameAllocator::allocate`].
    ///
    /// # Errors
    /// If no free range holds that much.
    #[cfg(not(test))]
    pub(crate) fn allocate(size: u64, alignment: u64) -> Result<Self, OutOfMemory> {
        let range = FRAMES.lock().allocate(size, alignment)?;
        Ok(Self { range })
    }

    /// Takes memory from the test's heap, where addresses stand for physical ones.
    #[cfg(test)]
    pub(crate) fn allocate(size: u64, alignment: u64) -> Result<Self, OutOfMemory> {
        let error = OutOfMemory { size, alignment };
        let layout = std::alloc::Layout::from_size_align(
            size.next_multiple_of(PAGE_SIZE) as usize,
            alignment.max(PAGE_SIZE) as usize,
        );
        let layout = layout.ok().filter(|layout| layout.size() != 0);
        let layout = layout.ok_or(error)?;
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) } as u64;
        Ok(Self {
            range: PhysRange::new(start, start + layout.size() as u64),
            layout,
        })
    }

    /// Takes at most `size` bytes from the machine; see [`FrameAllocator::allocate_piece`].
    ///
    /// # Errors
    /// If there is nothing of this alignment.
    #[cfg(not(test))]
    fn allocate_piece(size: u64, alignment: u64) -> Result<Self, OutOfMemory> {
        let range = FRAMES.lock().allocate_piece(size, alignment)?;
        Ok(Self { range })
    }

    /// Takes `size` bytes from the test's heap.
    #[cfg(test)]
    fn allocate_piece(size: u64, alignment: u64) -> Result<Self, OutOfMemory> {
        Self::allocate(size, alignment)
    }

    /// Takes `size` bytes from the machine in as few pieces as it takes. Each begins at a multiple
    /// of `alignment`, and all but the last have a multiple of it as their size.
    ///
    /// # Errors
    /// If the machine does not have that much in such pieces.
    pub(crate) fn allocate_pieces(size: u64, alignment: u64) -> Result<Vec<Self>, OutOfMemory> {
        let mut pieces = Vec::new();
        let mut missing = size;
        while missing > 0 {
            let piece = Self::allocate_piece(missing, alignment)
                .map_err(|_| OutOfMemory { size, alignment })?;
            missing = missing.saturating_sub(piece.range.size());
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Returns where they are.
    #[must_use]
    pub(crate) const fn range(&self) -> PhysRange {
        self.range
    }

    /// Takes the frames out of the account for as long as the machine runs.
    #[must_use]
    pub(crate) const fn leak(self) -> PhysRange {
        let range = self.range;
        core::mem::forget(self);
        range
    }
}

impl Drop for Frames {
    #[cfg(not(test))]
    fn drop(&mut self) {
        FRAMES.lock().free(self.range);
    }

    #[cfg(test)]
    fn drop(&mut self) {
        // SAFETY: what `allocate` allocated.
        unsafe { std::alloc::dealloc(self.range.start.0 as *mut u8, self.layout) };
    }
}

/// Returns the bytes of physical memory that are free.
#[must_use]
pub(crate) fn free_bytes() -> u64 {
    FRAMES.lock().free_bytes()
}

/// Returns the bytes of physical memory that [`Frames::allocate_pieces`] can take.
#[must_use]
pub(crate) fn free_bytes_in_pieces(alignment: u64) -> u64 {
    let (_, all) = FRAMES.lock().aligned_bytes(alignment.max(PAGE_SIZE));
    all
}
