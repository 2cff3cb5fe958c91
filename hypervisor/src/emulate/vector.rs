//! MOVs between XMM registers and memory, as compilers use them to copy more than a register's
//! worth: the one thing that SSE does with device memory.
//!
//! The CPU has checked CR0.EM, CR0.TS and CR4.OSFXSR before the access that brought us here.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::context::{Context, Span};
use super::cpu::{Cpu, Fault};
use super::{Bus, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// A memory operand of 4, 8 or 16 bytes, checked.
#[derive(Clone, Copy)]
struct VectorSpan {
    low: Span,
    /// The second half of 16 bytes.
    high: Option<Span>,
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Whether `instruction` is for [`Context::move_vector`].
    pub(super) fn is_vector_move(instruction: &Instruction) -> bool {
        let is_xmm = |index| {
            instruction.op_kind(index) == OpKind::Register
                && instruction.op_register(index).is_xmm()
        };
        let is_memory = |index| instruction.op_kind(index) == OpKind::Memory;
        let is_move = matches!(
            instruction.mnemonic(),
            Mnemonic::Movd
                | Mnemonic::Movq
                | Mnemonic::Movss
                | Mnemonic::Movsd
                | Mnemonic::Movups
                | Mnemonic::Movupd
                | Mnemonic::Movdqu
                | Mnemonic::Lddqu
        );
        (is_move || is_aligned_move(instruction.mnemonic()))
            && instruction.op_count() == 2
            && (is_xmm(0) && is_memory(1) || is_memory(0) && is_xmm(1))
    }

    /// Loads an XMM register, filling it up with zeros, or stores its low part.
    pub(super) fn move_vector(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        if instruction.op0_kind() == OpKind::Memory {
            let span = self.vector_span(instruction, AccessKind::Write)?;
            let value = self.cpu.xmm(instruction.op1_register().number());
            self.write(bus, span.low, value as u64);
            if let Some(high) = span.high {
                self.write(bus, high, (value >> 64) as u64);
            }
        } else {
            let span = self.vector_span(instruction, AccessKind::Read)?;
            let mut value = u128::from(self.read(bus, span.low));
            if let Some(high) = span.high {
                value |= u128::from(self.read(bus, high)) << 64;
            }
            self.cpu.set_xmm(instruction.op0_register().number(), value);
        }
        Ok(())
    }

    fn vector_span(&self, instruction: &Instruction, kind: AccessKind) -> Result<VectorSpan, Stop> {
        let (segment, offset) = self.effective_address(instruction, 0);
        let span = match instruction.memory_size().size() {
            4 => VectorSpan {
                low: self.span(segment, offset, Width::DOUBLEWORD, kind)?,
                high: None,
            },
            8 => VectorSpan {
                low: self.span(segment, offset, Width::QUADWORD, kind)?,
                high: None,
            },
            16 => VectorSpan {
                low: self.span(segment, offset, Width::QUADWORD, kind)?,
                high: Some(self.span(segment, offset.wrapping_add(8), Width::QUADWORD, kind)?),
            },
            _ => return Err(Stop::Unsupported(Reason::NotImplemented)),
        };
        if is_aligned_move(instruction.mnemonic()) && !span.low.is_aligned(16) {
            return Err(Stop::Fault(Fault::with_zero_code(
                Fault::GENERAL_PROTECTION,
                self.mode,
            )));
        }
        Ok(span)
    }
}

/// Whether the instruction wants its operand on a boundary of 16 bytes.
fn is_aligned_move(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Movaps
            | Mnemonic::Movapd
            | Mnemonic::Movdqa
            | Mnemonic::Movntps
            | Mnemonic::Movntpd
            | Mnemonic::Movntdq
            | Mnemonic::Movntdqa
    )
}
