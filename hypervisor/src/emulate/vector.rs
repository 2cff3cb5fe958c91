//! MOVs between vector registers and memory, as compilers use them to copy more than a register's
//! worth: the one thing that SSE and AVX do with device memory.
//!
//! The CPU has checked CR0.EM, CR0.TS, CR4.OSFXSR and XCR0 before the access that brought us here. But another VCPU may
//! have written another instruction there since, and the registers are the processor's own: to use one that
//! is not enabled would be our fault, not the guest's.

use arch::{Cr0Flags, Cr4Flags, ExceptionVector, XCr0Flags};
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::context::{Context, Span};
use super::cpu::{Cpu, Fault};
use super::{Bus, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// A memory operand of 4, 8, 16 or 32 bytes, checked, in pieces of 8 bytes or less.
#[derive(Clone, Copy)]
struct VectorSpan {
    pieces: [Option<Span>; 4],
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Returns whether `instruction` is for [`Context::move_vector`].
    pub(super) fn is_vector_move(instruction: &Instruction) -> bool {
        let is_vector = |index| {
            instruction.op_kind(index) == OpKind::Register
                && is_vector_register(instruction.op_register(index))
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
                | Mnemonic::Vmovd
                | Mnemonic::Vmovq
                | Mnemonic::Vmovss
                | Mnemonic::Vmovsd
                | Mnemonic::Vmovups
                | Mnemonic::Vmovupd
                | Mnemonic::Vmovdqu
                | Mnemonic::Vlddqu
        );
        (is_move || is_aligned_move(instruction.mnemonic()))
            && instruction.op_count() == 2
            && (is_vector(0) && is_memory(1) || is_memory(0) && is_vector(1))
    }

    /// Loads a vector register, filling it up with zeros, or stores its low part. An XMM register
    /// is filled up to its end by SSE, and to that of the whole vector register by AVX.
    pub(super) fn move_vector(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        self.check_vectors(instruction.encoding() == EncodingKind::VEX)?;
        if instruction.op0_kind() == OpKind::Memory {
            let span = self.vector_span(instruction, AccessKind::Write)?;
            let register = instruction.op1_register().number();
            let low = self.cpu.xmm(register);
            let high = if instruction.op1_register().is_ymm() {
                self.cpu.ymm_high(register)
            } else {
                0
            };
            let values = [low, low >> 64, high, high >> 64].map(|value| value as u64);
            for (piece, value) in span.pieces.into_iter().flatten().zip(values) {
                self.write(bus, piece, value);
            }
        } else {
            let span = self.vector_span(instruction, AccessKind::Read)?;
            let register = instruction.op0_register().number();
            let mut values = [0; 4];
            for (piece, value) in span.pieces.into_iter().flatten().zip(&mut values) {
                *value = u128::from(self.read(bus, piece));
            }
            let [a, b, c, d] = values;
            self.cpu.set_xmm(register, b << 64 | a);
            if instruction.encoding() == EncodingKind::VEX {
                self.cpu.set_ymm_high(register, d << 64 | c);
            }
        }
        Ok(())
    }

    /// Checks that the guest may use XMM registers, or YMM registers as well for an instruction that is encoded so
    /// (SDM vol. 2A, 2.4 and 2.5).
    fn check_vectors(&self, is_vex: bool) -> Result<(), Stop> {
        const YMM: XCr0Flags = XCr0Flags::SSE.union(XCr0Flags::AVX);
        let cr0 = Cr0Flags::from_bits_retain(self.cpu.cr0());
        let cr4 = Cr4Flags::from_bits_retain(self.cpu.cr4());
        let is_enabled = if is_vex {
            cr4.contains(Cr4Flags::OSXSAVE)
                && XCr0Flags::from_bits_retain(self.cpu.xcr0()).contains(YMM)
        } else {
            cr4.contains(Cr4Flags::OSFXSR) && !cr0.contains(Cr0Flags::EMULATE_COPROCESSOR)
        };
        let fault = |vector| Err(Stop::Fault(Fault::without_code(vector)));
        if !is_enabled {
            fault(ExceptionVector::InvalidOpcode)
        } else if cr0.contains(Cr0Flags::TASK_SWITCHED) {
            fault(ExceptionVector::DeviceNotAvailable)
        } else {
            Ok(())
        }
    }

    fn vector_span(&self, instruction: &Instruction, kind: AccessKind) -> Result<VectorSpan, Stop> {
        let (segment, offset) = self.effective_address(instruction, 0);
        let size = instruction.memory_size().size();
        let width = match size {
            4 => Width::DOUBLEWORD,
            8 | 16 | 32 => Width::QUADWORD,
            _ => return Err(Stop::Unsupported(Reason::NotImplemented)),
        };
        let mut pieces = [None; 4];
        for (index, piece) in pieces.iter_mut().take(size.div_ceil(8)).enumerate() {
            let offset = offset.wrapping_add(8 * index as u64);
            *piece = Some(self.span(segment, offset, width, kind)?);
        }
        let aligned = |span: Span| span.is_aligned(size as u64);
        if is_aligned_move(instruction.mnemonic()) && !pieces[0].is_some_and(aligned) {
            return Err(Stop::Fault(Fault::with_zero_code(
                ExceptionVector::GeneralProtection,
                self.mode,
            )));
        }
        Ok(VectorSpan { pieces })
    }
}

fn is_vector_register(register: Register) -> bool {
    register.is_xmm() || register.is_ymm()
}

/// Returns whether the instruction wants its operand on a boundary of its size.
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
            | Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntdqa
    )
}
