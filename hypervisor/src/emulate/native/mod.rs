//! Instructions with registers of their own (x87, MMX, SSE, AVX), and others that do nothing but compute: the
//! memory operand is the emulator's to read and write, and the rest the [processor's](Cpu::compute).

mod encoding;
mod forms;
#[cfg(test)]
mod tests;

use arch::{Cr0Flags, Cr4Flags, ExceptionVector, XCr0Flags};
use iced_x86::{EncodingKind, Instruction, Mnemonic};

use super::block::Bytes;
use super::context::Context;
use super::cpu::{Cpu, Fault, RSP};
use super::vector::is_aligned_move;
use super::{Bus, Reason, Stop, flags};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;
use forms::{Form, RegisterFile};

pub use encoding::{Code, OPERAND_DISTANCE};

/// An instruction that computes.
#[derive(Debug)]
pub struct Computation<'a> {
    /// The instruction.
    pub code: &'a Code,
    /// The general-purpose registers, before it and after it. It has nothing to do with RSP.
    pub gprs: [u64; 16],
    /// The status flags, before it and after it.
    pub rflags: u64,
    /// The place that it leaves in the x87 FPU as its own, if it does.
    pub x87: Option<X87Pointers>,
}

/// The last instruction of the x87 FPU (SDM vol. 1, 8.1.8 and 8.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87Pointers {
    /// FOP.
    pub opcode: u16,
    /// FIP.
    pub instruction: u64,
    /// FDP.
    pub operand: u64,
}

/// The outcome of a [`Computation`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Computed {
    /// The usual end: all that the instruction does is done.
    Done,
    /// The x87 FPU has an exception, which is not masked, for the next instruction, and has not stored its
    /// result.
    StoredNothing,
    /// An exception of the instruction: nothing has changed but flags in MXCSR.
    Raised(ExceptionVector),
    /// The processor cannot be had for this: nothing has changed.
    Unavailable,
}

const NOT_IMPLEMENTED: Stop = Stop::Unsupported(Reason::NotImplemented);

const fn fault(vector: ExceptionVector) -> Stop {
    Stop::Fault(Fault::without_code(vector))
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Executes an instruction whose bytes are `bytes`, and which reads or writes one memory operand and
    /// computes.
    pub(super) fn compute(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<(), Stop> {
        let form = Form::of(instruction).ok_or(NOT_IMPLEMENTED)?;
        let code = Code::new(instruction, bytes, self.mode).ok_or(NOT_IMPLEMENTED)?;
        self.check_enabled(form.registers, instruction.encoding() == EncodingKind::VEX)?;

        let size = instruction.memory_size().size();
        let (segment, offset) = self.effective_address(instruction, 0);
        let block = self.block(segment, offset, size, form.access)?;
        if needs_alignment(instruction, size) && !block.is_aligned(size) {
            return Err(self.general_protection());
        }
        let mut operand = Bytes::default();
        if form.access == AccessKind::Read {
            operand = self.read_block(bus, &block);
        }
        let mut computation = Computation {
            code: &code,
            gprs: core::array::from_fn(|register| self.cpu.gpr(register)),
            rflags: self.rflags & flags::STATUS,
            x87: (form.registers == RegisterFile::X87).then(|| X87Pointers {
                opcode: code.x87_opcode(),
                instruction: self.cpu.rip(),
                operand: offset,
            }),
        };
        let before = computation.gprs;
        match self.cpu.compute(&mut computation, &mut operand) {
            Computed::Done if form.access == AccessKind::Write => {
                self.write_block(bus, &block, &operand);
            }
            Computed::Done | Computed::StoredNothing => {}
            Computed::Raised(vector) => return Err(self.raised(vector)),
            Computed::Unavailable => return Err(NOT_IMPLEMENTED),
        }
        for (register, (new, old)) in computation.gprs.into_iter().zip(before).enumerate() {
            if new != old && register != RSP {
                self.cpu.set_gpr(register, new);
            }
        }
        let rflags = self.rflags & !flags::STATUS | computation.rflags & flags::STATUS;
        if rflags != self.rflags {
            self.cpu.set_rflags(rflags);
        }
        Ok(())
    }

    /// Returns what the guest gets for an exception that an instruction has raised.
    #[cold]
    fn raised(&self, vector: ExceptionVector) -> Stop {
        let has_simd_exceptions = Cr4Flags::OSXMMEXCPT_ENABLE.bits();
        match vector {
            ExceptionVector::SimdFloatingPoint if self.cpu.cr4() & has_simd_exceptions == 0 => {
                fault(ExceptionVector::InvalidOpcode)
            }
            ExceptionVector::SimdFloatingPoint | ExceptionVector::X87FloatingPoint => fault(vector),
            // LDMXCSR of bits that are not there.
            ExceptionVector::GeneralProtection => self.general_protection(),
            _ => NOT_IMPLEMENTED,
        }
    }

    /// Faults where the guest has not enabled what the instruction needs (SDM vol. 2A, 2.4 and 3.1.1.12 ff.;
    /// vol. 3A, table 2-2 and 13.1). The processor has checked it before the access that brought us here,
    /// but another VCPU may have written another instruction there since, and the registers are the processor's
    /// own: to use one that is not enabled would be our fault, not the guest's.
    fn check_enabled(&self, registers: RegisterFile, is_vex: bool) -> Result<(), Stop> {
        let cr0 = Cr0Flags::from_bits_retain(self.cpu.cr0());
        let emulated = cr0.contains(Cr0Flags::EMULATE_COPROCESSOR);
        let undefined = Err(fault(ExceptionVector::InvalidOpcode));
        match registers {
            RegisterFile::General if is_vex && !self.has_descriptors() => return undefined,
            RegisterFile::General => return Ok(()),
            RegisterFile::Vector => return self.check_vector_enabled(is_vex),
            RegisterFile::Mmx if emulated => return undefined,
            RegisterFile::X87 | RegisterFile::X87Control if emulated => {
                return Err(fault(ExceptionVector::DeviceNotAvailable));
            }
            RegisterFile::X87 | RegisterFile::X87Control | RegisterFile::Mmx => {}
        }
        check_task_switched(cr0)
    }

    /// Does the same for XMM registers, and YMM registers as well for an instruction that is encoded by VEX.
    pub(super) fn check_vector_enabled(&self, is_vex: bool) -> Result<(), Stop> {
        const YMM: XCr0Flags = XCr0Flags::SSE.union(XCr0Flags::AVX);
        let cr0 = Cr0Flags::from_bits_retain(self.cpu.cr0());
        let cr4 = Cr4Flags::from_bits_retain(self.cpu.cr4());
        let is_enabled = if is_vex {
            self.has_descriptors()
                && cr4.contains(Cr4Flags::OSXSAVE)
                && XCr0Flags::from_bits_retain(self.cpu.xcr0()).contains(YMM)
        } else {
            cr4.contains(Cr4Flags::OSFXSR) && !cr0.contains(Cr0Flags::EMULATE_COPROCESSOR)
        };
        if !is_enabled {
            return Err(fault(ExceptionVector::InvalidOpcode));
        }
        check_task_switched(cr0)
    }
}

const fn check_task_switched(cr0: Cr0Flags) -> Result<(), Stop> {
    if cr0.contains(Cr0Flags::TASK_SWITCHED) {
        Err(fault(ExceptionVector::DeviceNotAvailable))
    } else {
        Ok(())
    }
}

/// Returns whether the memory operand has to be on a boundary of its size: of SSE if it has 16 bytes, with few
/// exceptions (SDM vol. 2A, 2.4, types 1 to 4), and of AVX only in moves that say so.
fn needs_alignment(instruction: &Instruction, size: usize) -> bool {
    if instruction.encoding() == EncodingKind::VEX || size != 16 {
        return is_aligned_move(instruction.mnemonic());
    }
    !matches!(
        instruction.mnemonic(),
        Mnemonic::Lddqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    )
}
