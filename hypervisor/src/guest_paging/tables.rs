//! The entries of a guest's paging structures, read in pieces: one by one each would be looked up in RAM.
#![forbid(unsafe_code)]

use core::ops::Range;

use vmx::addr::GuestPhysAddr;

use crate::guest_memory::GuestMemory;

/// The entries of a piece.
const PIECE: usize = 64;

/// A paging structure: where it is, and the bytes of its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    address: u64,
    entry_size: usize,
}

impl Table {
    /// Returns the one at `address` whose entries have 4 bytes if it `is_narrow`, else 8.
    #[must_use]
    pub(crate) const fn new(address: u64, is_narrow: bool) -> Self {
        let entry_size = if is_narrow { 4 } else { 8 };
        Self {
            address,
            entry_size,
        }
    }

    /// Returns the entry at `index`; zero outside RAM.
    #[inline]
    pub(crate) fn entry(self, memory: &impl GuestMemory, index: usize) -> u64 {
        let slot = self.slot(index);
        let entry = if self.entry_size == 4 {
            memory.read_u32(slot).map(u64::from)
        } else {
            memory.read_u64(slot)
        };
        entry.unwrap_or(0)
    }

    /// Returns the first of the entries at `indices` that has all bits of `wanted`, and its index.
    pub(crate) fn first_with(
        self,
        memory: &impl GuestMemory,
        wanted: u64,
        indices: Range<usize>,
    ) -> Option<(usize, u64)> {
        let mut first = indices.start;
        while first < indices.end {
            let count = PIECE.min(indices.end - first);
            let piece = self.piece(memory, first, count);
            if let Some(at) = piece.position(wanted) {
                return Some((first + at, piece.entry(at)));
            }
            first += count;
        }
        None
    }

    /// Returns the last of the first `count` entries that has all bits of `wanted`, and its index.
    pub(crate) fn last_with(
        self,
        memory: &impl GuestMemory,
        wanted: u64,
        count: usize,
    ) -> Option<(usize, u64)> {
        let mut end = count;
        while end > 0 {
            let count = PIECE.min(end);
            let piece = self.piece(memory, end - count, count);
            if let Some(at) = piece.rposition(wanted) {
                return Some((end - count + at, piece.entry(at)));
            }
            end -= count;
        }
        None
    }

    /// Returns the entries at `indices`, with those. Outside RAM they are zero.
    pub(crate) fn entries(
        self,
        memory: &impl GuestMemory,
        indices: Range<usize>,
    ) -> impl Iterator<Item = (usize, u64)> {
        let end = indices.end;
        indices.step_by(PIECE).flat_map(move |first| {
            let count = PIECE.min(end - first);
            let piece = self.piece(memory, first, count);
            (0..count).map(move |at| (first + at, piece.entry(at)))
        })
    }

    fn slot(self, index: usize) -> GuestPhysAddr {
        GuestPhysAddr(self.address.wrapping_add((index * self.entry_size) as u64))
    }

    /// Returns `count` entries from `first` on; zeros outside RAM.
    fn piece(self, memory: &impl GuestMemory, first: usize, count: usize) -> Piece {
        let mut piece = Piece {
            bytes: [0; PIECE * 8],
            count,
            is_narrow: self.entry_size == 4,
        };
        // What cannot be read stays as it is.
        let _ = memory.read(
            self.slot(first),
            &mut piece.bytes[..count * self.entry_size],
        );
        piece
    }
}

/// A copy of some entries of a table that follow each other.
#[derive(Clone, Copy)]
struct Piece {
    bytes: [u8; PIECE * 8],
    count: usize,
    is_narrow: bool,
}

impl Piece {
    fn entry(&self, at: usize) -> u64 {
        if self.is_narrow {
            u32::from_le_bytes(self.bytes.as_chunks().0[at]).into()
        } else {
            u64::from_le_bytes(self.bytes.as_chunks().0[at])
        }
    }

    /// Returns where the first one with all bits of `wanted` is.
    fn position(&self, wanted: u64) -> Option<usize> {
        (0..self.count).find(|&at| self.entry(at) & wanted == wanted)
    }

    /// Returns where the last one with all bits of `wanted` is.
    fn rposition(&self, wanted: u64) -> Option<usize> {
        (0..self.count).rfind(|&at| self.entry(at) & wanted == wanted)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::test_ram::TestRam;

    #[test]
    fn entries_are_found_from_both_ends_in_any_piece() {
        let ram = TestRam::new(0x4000);
        for index in [3, 70, 130, 511] {
            ram.write_u64(0x1000 + index * 8, index << 12 | 7);
            ram.write_u32(0x2000 + index * 4, (index as u32) << 12 | 7);
        }
        ram.write_u64(0x1000 + 80 * 8, 80 << 12 | 1);
        ram.write_u32(0x2000 + 80 * 4, 80 << 12 | 1);
        for table in [Table::new(0x1000, false), Table::new(0x2000, true)] {
            let at = |index: usize| Some((index, (index as u64) << 12 | 7));
            assert_eq!(table.first_with(&ram, 7, 0..512), at(3));
            assert_eq!(table.first_with(&ram, 7, 4..512), at(70));
            assert_eq!(table.first_with(&ram, 7, 71..512), at(130));
            assert_eq!(table.first_with(&ram, 7, 131..511), None);
            assert_eq!(table.last_with(&ram, 7, 512), at(511));
            assert_eq!(table.last_with(&ram, 7, 511), at(130));
            assert_eq!(table.last_with(&ram, 7, 130), at(70));
            assert_eq!(table.last_with(&ram, 7, 3), None);
            assert_eq!(table.entry(&ram, 80), 80 << 12 | 1);
            let present = table.entries(&ram, 60..140).filter(|(_, it)| it & 1 != 0);
            let indices: Vec<usize> = present.map(|(index, _)| index).collect();
            assert_eq!(indices, [70, 80, 130]);
        }
    }

    #[test]
    fn a_table_outside_ram_has_no_entries() {
        let ram = TestRam::new(0x2000);
        for address in [0x2000, !0xfff] {
            let table = Table::new(address, false);
            assert_eq!(table.first_with(&ram, 0x1, 0..512), None);
            assert_eq!(table.last_with(&ram, 0x1, 512), None);
            assert_eq!(table.entry(&ram, 0), 0);
            assert!(table.entries(&ram, 0..512).all(|(_, entry)| entry == 0));
        }
    }
}
