//! A guest's RAM: host memory that is its own, at the guest-physical addresses that its
//! memory map shows.

use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use vmx::addr::{GuestPhysAddr, HostPhysAddr};

use crate::guest_memory::{GuestMemory, NotRam};
use crate::machine::memory::{self, PhysRange};

/// Host memory that backs one range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Where the guest sees it.
    pub guest: GuestPhysAddr,
    /// Where it is.
    pub host: HostPhysAddr,
    /// Bytes, a multiple of 4 KiB.
    pub length: u64,
}

/// The most ranges that a guest's RAM has: below and above the video memory, and above the
/// device hole under 4 GiB.
pub const MAX_RANGES: usize = 3;

/// The RAM of one guest.
///
/// Guest memory changes at any time under our hands, so there is never a Rust reference to
/// it: bytes are copied in and out, and what came out once is what is worked on.
///
/// Clones are the same RAM, which is given back to the machine with the last of them.
#[derive(Clone, Debug)]
pub struct GuestRam {
    ranges: [RamRange; MAX_RANGES],
    _backing: Arc<Backing>,
}

/// Host memory that is given back to the machine when it is dropped; may be empty.
#[derive(Debug)]
struct Backing(PhysRange);

impl GuestRam {
    /// The RAM that consists of `ranges`, all of them in `backing`, which is given back to the
    /// machine when the last clone is dropped.
    ///
    /// # Safety
    /// The host memory is mapped one to one, is nobody else's, and stays so until the RAM is
    /// dropped; nothing that refers to the RAM lives longer.
    #[must_use]
    pub unsafe fn new(ranges: [RamRange; MAX_RANGES], backing: PhysRange) -> Self {
        Self {
            ranges,
            _backing: Arc::new(Backing(backing)),
        }
    }

    /// Its ranges that are not empty.
    pub fn ranges(&self) -> impl Iterator<Item = &RamRange> {
        self.ranges.iter().filter(|range| range.length != 0)
    }

    /// The host address of `length` bytes at `address`, which must lie in one range.
    #[inline]
    fn locate(&self, address: GuestPhysAddr, length: usize) -> Result<*mut u8, NotRam> {
        for range in &self.ranges {
            let offset = address.0.wrapping_sub(range.guest.0);
            if offset < range.length && range.length - offset >= length as u64 {
                return Ok((range.host.0 + offset) as *mut u8);
            }
        }
        Err(NotRam { address, length })
    }

    /// Fills all RAM with zeros: nothing of an earlier guest is seen by the next.
    pub fn clear(&self) {
        let mut offset = 0;
        while let Some(next) = self.clear_piece(offset, u64::MAX) {
            offset = next;
        }
    }

    /// Fills at most `length` bytes with zeros, from `offset` on, which counts through all
    /// ranges. Returns the offset to go on from; `None` at the end.
    pub fn clear_piece(&self, offset: u64, length: u64) -> Option<u64> {
        let mut begin = 0;
        for range in self.ranges() {
            let within = offset.saturating_sub(begin);
            if within < range.length {
                let length = length.min(range.length - within);
                let start = (range.host.0 + within) as *mut u8;
                // SAFETY: a part of the range, which is the guest's RAM, mapped one to one; no
                // reference to it exists.
                unsafe { ptr::write_bytes(start, 0, length as usize) };
                return Some(offset + length);
            }
            begin += range.length;
        }
        None
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            memory::free(self.0);
        }
    }
}

impl GuestMemory for GuestRam {
    #[inline]
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let source = self.locate(address, buffer.len())?;
        // SAFETY: the source is RAM of the guest, which is never referenced, so it does not
        // overlap the buffer. A guest that writes at the same time gives us torn bytes, and
        // no byte is invalid.
        unsafe { ptr::copy_nonoverlapping(source, buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    #[inline]
    fn read_u16(&self, address: GuestPhysAddr) -> Result<u16, NotRam> {
        let source = self.locate(address, 2)?.cast::<u16>();
        // SAFETY: as for `read`.
        Ok(unsafe { source.read_unaligned() })
    }

    #[inline]
    fn write_u16(&self, address: GuestPhysAddr, value: u16) -> Result<(), NotRam> {
        let target = self.locate(address, 2)?.cast::<u16>();
        // SAFETY: as for `read`; and the memory is the guest's to be written.
        unsafe { target.write_unaligned(value) };
        Ok(())
    }

    #[inline]
    fn read_u32(&self, address: GuestPhysAddr) -> Result<u32, NotRam> {
        let source = self.locate(address, 4)?.cast::<u32>();
        // SAFETY: as for `read`.
        Ok(unsafe { source.read_unaligned() })
    }

    #[inline]
    fn read_u64(&self, address: GuestPhysAddr) -> Result<u64, NotRam> {
        let source = self.locate(address, 8)?.cast::<u64>();
        // SAFETY: as for `read`.
        Ok(unsafe { source.read_unaligned() })
    }

    fn compare_exchange_u32(
        &self,
        address: GuestPhysAddr,
        current: u32,
        new: u32,
    ) -> Result<bool, NotRam> {
        let target = self.locate(address, 4)?.cast::<u32>();
        if !target.is_aligned() {
            return Err(NotRam { address, length: 4 });
        }
        // SAFETY: aligned RAM of the guest, which lives as long as `self`; other accesses to
        // it at the same time are the guest's own, or atomic as this one is.
        let target = unsafe { AtomicU32::from_ptr(target) };
        Ok(target
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let target = self.locate(address, data.len())?;
        // SAFETY: as for reading; and the memory is the guest's to be written.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn accesses_stay_inside_their_range() {
        let low = vec![0u8; 0x2000].leak();
        let high = vec![0u8; 0x1000].leak();
        let range = |guest, memory: &mut [u8]| RamRange {
            guest: GuestPhysAddr(guest),
            host: HostPhysAddr(memory.as_mut_ptr() as u64),
            length: memory.len() as u64,
        };
        // SAFETY: leaked memory is nobody else's.
        let ram = unsafe {
            GuestRam::new(
                [range(0, low), range(1 << 32, high), range(0, &mut [])],
                PhysRange::EMPTY,
            )
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
}
