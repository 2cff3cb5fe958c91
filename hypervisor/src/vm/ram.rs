//! A guest's RAM: host memory that is its own, at the guest-physical addresses that its
//! memory map shows.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use vmx::addr::{GuestPhysAddr, HostPhysAddr};

use crate::guest_boot::memory_map;
use crate::guest_memory::{GuestMemory, NotRam};
use crate::machine::memory::{Frames, OutOfMemory};
use crate::machine::paging::RamWindow;
use crate::vm::rom::Rom;

/// Host memory that backs one range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RamRange {
    /// The guest-physical address at which it begins.
    pub guest: GuestPhysAddr,
    /// The host-physical address at which it begins.
    pub host: HostPhysAddr,
    /// The address at which tarpit sees it.
    seen_at: u64,
    /// Its length in bytes, a multiple of 4 KiB.
    pub length: u64,
}

/// The RAM of one guest.
///
/// Guest memory changes at any time under our hands, so there is never a Rust reference to
/// it: bytes are copied in and out, and what came out once is what is worked on.
///
/// Clones are the same RAM, which is given back to the machine with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct GuestRam {
    /// The ranges, in the order of their guest-physical addresses; each lies in the window.
    ranges: Arc<[RamRange]>,
    _window: Arc<RamWindow>,
    /// The ROM beside it, which the guest's code and data may be in, too.
    rom: Option<Arc<Rom>>,
}

impl GuestRam {
    /// Makes RAM of `size` bytes, which lies in `pieces`, one after the other: the guest sees it
    /// where its [memory map](memory_map) says. What is beyond the pieces is no RAM.
    ///
    /// # Errors
    /// If there is no room for a window on it.
    pub(crate) fn new(size: u64, pieces: Vec<Frames>) -> Result<Self, OutOfMemory> {
        let window = RamWindow::new(pieces)?;
        let mut ranges = Vec::new();
        for guest in memory_map::ram_ranges(size) {
            let offset = memory_map::ram_offset(guest.start);
            let length = guest.end - guest.start;
            let mut piece_offset = 0;
            for (seen_at, piece) in window.pieces() {
                let piece = piece.range();
                let start = offset.max(piece_offset);
                let end = (offset + length).min(piece_offset + piece.size());
                if start < end {
                    ranges.push(RamRange {
                        guest: GuestPhysAddr(guest.start + (start - offset)),
                        host: HostPhysAddr(piece.start.0 + (start - piece_offset)),
                        seen_at: seen_at + (start - piece_offset),
                        length: end - start,
                    });
                }
                piece_offset += piece.size();
            }
        }
        Ok(Self {
            ranges: ranges.into(),
            _window: Arc::new(window),
            rom: None,
        })
    }

    /// Returns the same RAM with this ROM beside it.
    #[must_use]
    pub(crate) fn with_rom(self, rom: Arc<Rom>) -> Self {
        Self {
            rom: Some(rom),
            ..self
        }
    }

    /// Returns the ROM beside it, if there is one.
    pub(crate) fn rom(&self) -> Option<&Rom> {
        self.rom.as_deref()
    }

    /// Returns its ranges, in the order of their guest-physical addresses.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = &RamRange> {
        self.ranges.iter()
    }

    /// Returns the range that `address` is in, and where there.
    #[inline]
    fn find(&self, address: GuestPhysAddr) -> Option<(&RamRange, u64)> {
        self.ranges.iter().find_map(|range| {
            let offset = address.0.wrapping_sub(range.guest.0);
            (offset < range.length).then_some((range, offset))
        })
    }

    /// Returns the host address of `length` bytes at `address`, if they lie in one range.
    #[inline]
    fn locate(&self, address: GuestPhysAddr, length: usize) -> Option<*mut u8> {
        let (range, offset) = self.find(address)?;
        (range.length - offset >= length as u64).then_some((range.seen_at + offset) as *mut u8)
    }

    /// Calls `access` with the host address of each part of the `length` bytes at `address` that
    /// lies in one range, where in them it begins, and its length. What is whole to the guest may
    /// lie in several pieces.
    ///
    /// # Errors
    /// If any byte is not RAM; then nothing has been called.
    #[cold]
    fn in_parts(
        &self,
        address: GuestPhysAddr,
        length: usize,
        mut access: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), NotRam> {
        let error = NotRam { address, length };
        // First it is only looked whether all is there.
        for is_there in [false, true] {
            let mut done = 0;
            while done < length {
                let next = address.0.checked_add(done as u64).ok_or(error)?;
                let (range, offset) = self.find(GuestPhysAddr(next)).ok_or(error)?;
                let part = (range.length - offset).min((length - done) as u64) as usize;
                if is_there {
                    access((range.seen_at + offset) as *mut u8, done, part);
                }
                done += part;
            }
        }
        Ok(())
    }

    /// Reads a number that does not lie in one range.
    #[cold]
    fn read_in_parts<const N: usize>(&self, address: GuestPhysAddr) -> Result<[u8; N], NotRam> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills all RAM with zeros: nothing of an earlier guest is seen by the next.
    pub(crate) fn clear(&self) {
        let mut offset = 0;
        while let Some(next) = self.clear_piece(offset, u64::MAX) {
            offset = next;
        }
    }

    /// Fills at most `length` bytes with zeros, from `offset` on, which counts through all
    /// ranges. Returns the offset to go on from; `None` at the end.
    pub(crate) fn clear_piece(&self, offset: u64, length: u64) -> Option<u64> {
        let mut begin = 0;
        for range in self.ranges() {
            let within = offset.saturating_sub(begin);
            if within < range.length {
                let length = length.min(range.length - within);
                let start = (range.seen_at + within) as *mut u8;
                // SAFETY: a part of the range, which is the guest's RAM, seen in its window; no
                // reference to it exists.
                unsafe { ptr::write_bytes(start, 0, length as usize) };
                return Some(offset + length);
            }
            begin += range.length;
        }
        None
    }
}

impl GuestMemory for GuestRam {
    #[inline]
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let Some(source) = self.locate(address, buffer.len()) else {
            if let Some(rom) = &self.rom
                && rom.read(address, buffer)
            {
                return Ok(());
            }
            return self.in_parts(address, buffer.len(), |source, begin, length| {
                let part = &mut buffer[begin..begin + length];
                // SAFETY: as below.
                unsafe { ptr::copy_nonoverlapping(source, part.as_mut_ptr(), length) };
            });
        };
        // SAFETY: the source is RAM of the guest, which is never referenced, so it does not
        // overlap the buffer. A guest that writes at the same time gives us torn bytes, and
        // no byte is invalid.
        unsafe { ptr::copy_nonoverlapping(source, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let Some(target) = self.locate(address, data.len()) else {
            return self.in_parts(address, data.len(), |target, begin, length| {
                let part = &data[begin..begin + length];
                // SAFETY: as below.
                unsafe { ptr::copy_nonoverlapping(part.as_ptr(), target, length) };
            });
        };
        // SAFETY: as for reading; and the memory is the guest's to be written.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        Ok(())
    }

    #[inline]
    fn read_u16(&self, address: GuestPhysAddr) -> Result<u16, NotRam> {
        match self.locate(address, 2) {
            // SAFETY: as for `read`.
            Some(source) => Ok(unsafe { source.cast::<u16>().read_unaligned() }),
            None => self.read_in_parts(address).map(u16::from_le_bytes),
        }
    }

    #[inline]
    fn write_u16(&self, address: GuestPhysAddr, value: u16) -> Result<(), NotRam> {
        match self.locate(address, 2) {
            Some(target) => {
                // SAFETY: as for `write`.
                unsafe { target.cast::<u16>().write_unaligned(value) };
                Ok(())
            }
            None => self.write(address, &value.to_le_bytes()),
        }
    }

    #[inline]
    fn read_u32(&self, address: GuestPhysAddr) -> Result<u32, NotRam> {
        match self.locate(address, 4) {
            // SAFETY: as for `read`.
            Some(source) => Ok(unsafe { source.cast::<u32>().read_unaligned() }),
            None => self.read_in_parts(address).map(u32::from_le_bytes),
        }
    }

    #[inline]
    fn read_u64(&self, address: GuestPhysAddr) -> Result<u64, NotRam> {
        match self.locate(address, 8) {
            // SAFETY: as for `read`.
            Some(source) => Ok(unsafe { source.cast::<u64>().read_unaligned() }),
            None => self.read_in_parts(address).map(u64::from_le_bytes),
        }
    }

    fn compare_exchange_u32(
        &self,
        address: GuestPhysAddr,
        current: u32,
        new: u32,
    ) -> Result<bool, NotRam> {
        // What is aligned lies in one range.
        let target = self.locate(address, 4).map(<*mut u8>::cast::<u32>);
        let target = target
            .filter(|target| target.is_aligned())
            .ok_or(NotRam { address, length: 4 })?;
        // SAFETY: aligned RAM of the guest, which lives as long as `self`; other accesses to
        // it at the same time are the guest's own, or atomic as this one is.
        let target = unsafe { AtomicU32::from_ptr(target) };
        Ok(target
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accesses_stay_inside_their_range() {
        let frames = [0x2000, 0x1000].map(|size| Frames::allocate(size, 0x1000).unwrap());
        let range = |guest, frames: &Frames| RamRange {
            guest: GuestPhysAddr(guest),
            host: frames.range().start,
            seen_at: frames.range().start.0,
            length: frames.range().size(),
        };
        let ram = GuestRam {
            ranges: [range(0, &frames[0]), range(1 << 32, &frames[1])].into(),
            _window: Arc::new(RamWindow::new(frames.into()).unwrap()),
            rom: None,
        };
        ram.write(GuestPhysAddr(0x1ffe), &[1, 2]).unwrap();
        ram.write(GuestPhysAddr(1 << 32), &[3]).unwrap();
        let mut buffer = [0; 2];
        ram.read(GuestPhysAddr(0x1ffe), &mut buffer).unwrap();
        assert_eq!(buffer, [1, 2]);
        assert!(ram.read(GuestPhysAddr(0x1fff), &mut buffer).is_err());
        assert!(ram.write(GuestPhysAddr(0x2000), &[0]).is_err());
        assert!(ram.write(GuestPhysAddr(u64::MAX), &[0, 0]).is_err());
        ram.clear();
        ram.read(GuestPhysAddr(0x1ffe), &mut buffer).unwrap();
        assert_eq!(buffer, [0, 0]);
        for piece in [0, 0x1800, 0x2000] {
            ram.write(
                GuestPhysAddr(if piece < 0x2000 { piece } else { 1 << 32 }),
                &[7],
            )
            .unwrap();
        }
        assert_eq!(ram.clear_piece(0, 0x1800), Some(0x1800));
        assert_eq!(ram.read(GuestPhysAddr(0x1800), &mut buffer), Ok(()));
        assert_eq!(buffer, [7, 0], "not yet");
        assert_eq!(
            ram.clear_piece(0x1800, 0x1800),
            Some(0x2000),
            "to the range's end"
        );
        assert_eq!(ram.clear_piece(0x2000, 0x1800), Some(0x3000));
        assert_eq!(ram.clear_piece(0x3000, 0x1800), None);
        for address in [0, 0x1800, 1 << 32] {
            ram.read(GuestPhysAddr(address), &mut buffer).unwrap();
            assert_eq!(buffer, [0, 0]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn ram_in_pieces_is_whole_and_nothing_is_beyond_it(
            pages in prop::collection::vec(1u64..400, 1..5),
            missing in 0u64..100,
        ) {
            let total: u64 = pages.iter().map(|pages| pages * 4096).sum();
            let size = total.saturating_sub(missing * 4096).max(4096);
            let pieces = pages.iter().map(|pages| Frames::allocate(pages * 4096, 4096).unwrap());
            let pieces: Vec<_> = pieces.collect();
            let hosts: Vec<_> = pieces.iter().map(Frames::range).collect();
            let ram = GuestRam::new(size, pieces).unwrap();
            let seen: Vec<_> = ram.ranges().copied().collect();
            for pair in seen.windows(2) {
                prop_assert!(pair[0].guest.0 + pair[0].length <= pair[1].guest.0);
            }
            let length: u64 = seen.iter().map(|range| range.length).sum();
            let expected: u64 = memory_map::ram_ranges(size).map(|r| r.end - r.start).sum();
            prop_assert_eq!(length, expected);
            for range in &seen {
                let within = |host: &crate::machine::memory::PhysRange| {
                    host.start <= range.host && range.host.0 + range.length <= host.end.0
                };
                prop_assert!(hosts.iter().any(within));
            }
            // No two guest pages are one host page.
            for page in memory_map::ram_ranges(size).flat_map(|range| range.step_by(4096)) {
                ram.write(GuestPhysAddr(page), &page.to_le_bytes()).unwrap();
            }
            for page in memory_map::ram_ranges(size).flat_map(|range| range.step_by(4096)) {
                prop_assert_eq!(ram.read_u64(GuestPhysAddr(page)), Ok(page));
            }
            prop_assert!(ram.read_u64(GuestPhysAddr(size)).is_err());
            // Where two pieces meet, the guest sees no seam.
            for pair in seen.windows(2) {
                let seam = pair[0].guest.0 + pair[0].length;
                let at = GuestPhysAddr(seam - 3);
                let written = ram.write(at, &[1, 2, 3, 4, 5, 6, 7, 8]);
                if pair[1].guest.0 == seam {
                    prop_assert_eq!(written, Ok(()));
                    prop_assert_eq!(ram.read_u64(at), Ok(0x0807_0605_0403_0201));
                    prop_assert_eq!(ram.read_u32(at), Ok(0x0403_0201));
                    prop_assert_eq!(ram.read_u16(GuestPhysAddr(seam - 1)), Ok(0x0403));
                    ram.write_u16(GuestPhysAddr(seam - 1), 0xaabb).unwrap();
                    prop_assert_eq!(ram.read_u64(at), Ok(0x0807_0605_aabb_0201));
                } else {
                    prop_assert!(written.is_err() && ram.read_u64(at).is_err());
                    prop_assert_eq!(ram.read_u16(at), Ok(0), "nothing has been written");
                }
            }
        }
    }

    #[test]
    fn a_rom_beside_it_can_be_read_and_not_be_written() {
        let ram = GuestRam::new(0x2000, vec![Frames::allocate(0x2000, 0x1000).unwrap()]).unwrap();
        let rom = Rom::new(GuestPhysAddr(0xffff_f000), &[0x5a; 0x1000]).unwrap();
        let both = ram.clone().with_rom(Arc::new(rom));
        let vector = GuestPhysAddr(0xffff_fff0);
        assert!(ram.read_u64(vector).is_err() && ram.rom().is_none());
        assert_eq!(both.read_u64(vector), Ok(0x5a5a_5a5a_5a5a_5a5a));
        assert_eq!(both.read_u16(vector), Ok(0x5a5a));
        assert!(both.write(vector, &[0]).is_err());
        assert!(both.write_u16(vector, 0).is_err());
        assert!(both.compare_exchange_u32(vector, 0, 1).is_err());
        both.clear();
        assert_eq!(both.read_u32(vector), Ok(0x5a5a_5a5a));
        both.write(GuestPhysAddr(0), &[1]).unwrap();
        assert_eq!(ram.read_u16(GuestPhysAddr(0)), Ok(1), "the same RAM");
    }

    #[test]
    fn where_pieces_are_missing_there_is_no_ram() {
        let piece = Frames::allocate(0x2000, 0x1000).unwrap();
        let ram = GuestRam::new(0x4000, vec![piece]).unwrap();
        assert_eq!(ram.read_u64(GuestPhysAddr(0x1ff8)), Ok(0));
        assert!(ram.read_u64(GuestPhysAddr(0x2000)).is_err());
    }
}
