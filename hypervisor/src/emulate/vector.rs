//! MOVs between vector registers and memory, as compilers use them to copy more than a register's
//! worth: what drivers do, if anything, that needs vector registers. It goes without the help of
//! [`super::native`].

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::block::{Block, MAX_SIZE};
use super::context::Context;
use super::cpu::Cpu;
use super::{Bus, Stop};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

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
        self.check_vector_enabled(instruction.encoding() == EncodingKind::VEX)?;
        let is_store = instruction.op0_kind() == OpKind::Memory;
        let block = self.vector_block(instruction, is_store)?;
        if is_store {
            let register = instruction.op1_register();
            let mut bytes = [0; MAX_SIZE];
            let (low, high) = bytes.split_at_mut(16);
            low.copy_from_slice(&self.cpu.xmm(register.number()).to_le_bytes());
            if register.is_ymm() {
                high.copy_from_slice(&self.cpu.ymm_high(register.number()).to_le_bytes());
            }
            self.write_block(bus, &block, &bytes);
        } else {
            let register = instruction.op0_register().number();
            let bytes = self.read_block(bus, &block);
            let (low, high) = bytes.split_at(16);
            let value = |half: &[u8]| half.try_into().map_or(0, u128::from_le_bytes);
            self.cpu.set_xmm(register, value(low));
            if instruction.encoding() == EncodingKind::VEX {
                self.cpu.set_ymm_high(register, value(high));
            }
        }
        Ok(())
    }

    fn vector_block(&self, instruction: &Instruction, is_store: bool) -> Result<Block, Stop> {
        let (segment, offset) = self.effective_address(instruction, 0);
        let size = instruction.memory_size().size();
        let kind = if is_store {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let block = self.block(segment, offset, size, kind)?;
        if is_aligned_move(instruction.mnemonic()) && !block.is_aligned(size) {
            return Err(self.general_protection());
        }
        Ok(block)
    }
}

fn is_vector_register(register: Register) -> bool {
    register.is_xmm() || register.is_ymm()
}

/// Returns whether the instruction wants its operand on a boundary of its size.
pub(super) fn is_aligned_move(mnemonic: Mnemonic) -> bool {
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
