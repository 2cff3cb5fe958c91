//! Memory operands of any size: far pointers, the images of table registers, vector registers.

use super::context::{Context, Span};
use super::cpu::{Cpu, SegmentRegister};
use super::{Bus, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// The size in bytes of the largest operand: a YMM register.
pub(super) const MAX_SIZE: usize = size_of::<Bytes>();
/// The number of pieces of the largest operand.
const MAX_PIECES: usize = MAX_SIZE / 8;

/// The bytes of a memory operand of any size: at most those of a YMM register.
pub type Bytes = [u8; 32];

/// A memory operand of up to [`MAX_SIZE`] bytes, located and checked, in pieces of 8 bytes or less.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pieces: [Option<(Span, Width)>; MAX_PIECES],
}

impl Block {
    /// Returns whether it begins on a boundary of `alignment` bytes, at most a page.
    pub(super) fn is_aligned(&self, alignment: usize) -> bool {
        self.pieces[0].is_some_and(|(span, _)| span.is_aligned(alignment as u64))
    }
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Locates `size` bytes at `segment:offset` and checks them for an access of `kind`.
    pub(super) fn block(
        &self,
        segment: SegmentRegister,
        offset: u64,
        size: usize,
        kind: AccessKind,
    ) -> Result<Block, Stop> {
        if size == 0 || size > MAX_SIZE {
            return Err(Stop::Unsupported(Reason::NotImplemented));
        }
        let mut block = Block {
            pieces: [None; MAX_PIECES],
        };
        let mut done = 0;
        for piece in &mut block.pieces {
            let width = match size - done {
                0 => break,
                1 => Width::BYTE,
                2 | 3 => Width::WORD,
                4..=7 => Width::DOUBLEWORD,
                _ => Width::QUADWORD,
            };
            let offset = offset.wrapping_add(done as u64);
            *piece = Some((self.span(segment, offset, width, kind)?, width));
            done += width.bytes();
        }
        if done < size {
            return Err(Stop::Unsupported(Reason::NotImplemented));
        }
        Ok(block)
    }

    /// Reads `block`, filled up with zeros.
    pub(super) fn read_block(&self, bus: &mut impl Bus, block: &Block) -> Bytes {
        let mut bytes = [0; MAX_SIZE];
        let mut rest = bytes.as_mut_slice();
        for (span, width) in block.pieces.iter().flatten() {
            let value = self.read(bus, *span).to_le_bytes();
            let (piece, behind) = rest.split_at_mut(width.bytes());
            piece.copy_from_slice(&value[..width.bytes()]);
            rest = behind;
        }
        bytes
    }

    /// Writes the first of `bytes`, as many as it has, to `block`.
    pub(super) fn write_block(&self, bus: &mut impl Bus, block: &Block, bytes: &Bytes) {
        let mut rest = bytes.as_slice();
        for (span, width) in block.pieces.iter().flatten() {
            let (piece, behind) = rest.split_at(width.bytes());
            let mut value = [0; 8];
            value[..width.bytes()].copy_from_slice(piece);
            self.write(bus, *span, u64::from_le_bytes(value));
            rest = behind;
        }
    }
}
