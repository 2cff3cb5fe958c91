//! Instructions with registers of their own (x87, MMX, SSE, AVX), and others that do nothing but compute: the
//! memory operand is the emulator's to read and write, and the rest the [processor's](Cpu::compute).
//!
//! An instruction is encoded anew for that, with an operand where the processor can have it. What comes out
//! is decoded again, and taken only if it is the same instruction on the same registers.

use arch::{Cr0Flags, Cr4Flags, ExceptionVector, XCr0Flags};
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory,
    InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register,
};

use super::block::Bytes;
use super::context::Context;
use super::cpu::{Computation, Computed, Cpu, Fault, Mode, OPERAND_DISTANCE, RSP};
use super::operand::address_mask;
use super::vector::is_aligned_move;
use super::{Bus, Reason, Stop, flags};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// The registers that an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RegisterFile {
    General,
    X87,
    Mmx,
    Vector,
}

const NOT_IMPLEMENTED: Stop = Stop::Unsupported(Reason::NotImplemented);

const fn fault(vector: ExceptionVector) -> Stop {
    Stop::Fault(Fault {
        vector,
        error_code: None,
        cr2: None,
    })
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
        let kind = memory_operand(instruction).ok_or(NOT_IMPLEMENTED)?;
        let features = instruction.cpuid_features();
        if !features
            .iter()
            .all(|&feature| self.cpu.has_instruction_set(feature))
        {
            return Err(NOT_IMPLEMENTED);
        }
        let encoded = encode(instruction, bytes, self.mode).ok_or(NOT_IMPLEMENTED)?;
        let file = register_file(instruction, &encoded);
        self.check_enabled(instruction, file)?;

        let size = instruction.memory_size().size();
        if !matches!(size, 1 | 2 | 4 | 8 | 10 | 16 | 32) {
            return Err(NOT_IMPLEMENTED);
        }
        let (segment, offset) = self.effective_address(instruction, 0);
        let block = self.block(segment, offset, size, kind)?;
        if needs_alignment(instruction, size) && !block.is_aligned(size) {
            return Err(self.general_protection());
        }
        let mut operand = Bytes::default();
        if kind == AccessKind::Read {
            operand = self.read_block(bus, &block);
            if is_mxcsr_load(instruction) && operand[2..4] != [0, 0] {
                return Err(self.general_protection());
            }
        }

        let mut computation = Computation {
            code: encoded.as_slice(),
            gprs: core::array::from_fn(|register| self.cpu.gpr(register)),
            rflags: self.rflags & flags::STATUS,
            // Conversions to and from MMX registers raise SIMD exceptions, too.
            is_simd: matches!(file, RegisterFile::Vector | RegisterFile::Mmx)
                && !is_mxcsr_access(instruction),
            x87: (file == RegisterFile::X87).then(|| super::cpu::X87Pointers {
                opcode: encoded.x87_opcode(),
                instruction: self.cpu.rip(),
                operand: offset,
            }),
        };
        let before = computation.gprs;
        match self.cpu.compute(&mut computation, &mut operand) {
            Computed::Unavailable => return Err(NOT_IMPLEMENTED),
            Computed::SimdException => {
                let enabled = Cr4Flags::OSXMMEXCPT_ENABLE.bits();
                return Err(if self.cpu.cr4() & enabled == 0 {
                    fault(ExceptionVector::InvalidOpcode)
                } else {
                    fault(ExceptionVector::SimdFloatingPoint)
                });
            }
            // The exception comes with the next instruction; this one has stored nothing.
            Computed::X87Exception if kind == AccessKind::Write => {}
            Computed::Done | Computed::X87Exception => {
                if kind == AccessKind::Write {
                    self.write_block(bus, &block, &operand);
                }
            }
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

    /// Faults where the guest has not enabled what the instruction needs (SDM vol. 2A, 2.4 and 3.1.1.12 ff.;
    /// vol. 3A, table 2-2 and 13.1). The processor has checked it before the access that brought us here,
    /// but the bytes may not be those any more that it has executed.
    pub(super) fn check_vector_enabled(&self, is_vex: bool) -> Result<(), Stop> {
        const AVX_STATE: u64 = XCr0Flags::SSE.union(XCr0Flags::AVX).bits();
        let (cr0, cr4) = (self.cpu.cr0(), self.cpu.cr4());
        let enabled = if is_vex {
            self.has_descriptors()
                && cr4 & Cr4Flags::OSXSAVE.bits() != 0
                && self.cpu.xcr0() & AVX_STATE == AVX_STATE
        } else {
            cr0 & Cr0Flags::EMULATE_COPROCESSOR.bits() == 0 && cr4 & Cr4Flags::OSFXSR.bits() != 0
        };
        if !enabled {
            return Err(fault(ExceptionVector::InvalidOpcode));
        }
        self.check_task_switched()
    }

    fn check_task_switched(&self) -> Result<(), Stop> {
        if self.cpu.cr0() & Cr0Flags::TASK_SWITCHED.bits() == 0 {
            Ok(())
        } else {
            Err(fault(ExceptionVector::DeviceNotAvailable))
        }
    }

    fn check_enabled(&self, instruction: &Instruction, file: RegisterFile) -> Result<(), Stop> {
        let is_vex = instruction.encoding() == EncodingKind::VEX;
        let emulated = self.cpu.cr0() & Cr0Flags::EMULATE_COPROCESSOR.bits() != 0;
        match file {
            RegisterFile::General if is_vex && !self.has_descriptors() => {
                return Err(fault(ExceptionVector::InvalidOpcode));
            }
            RegisterFile::General => return Ok(()),
            RegisterFile::Vector => return self.check_vector_enabled(is_vex),
            RegisterFile::X87 if emulated => {
                return Err(fault(ExceptionVector::DeviceNotAvailable));
            }
            RegisterFile::Mmx if emulated => return Err(fault(ExceptionVector::InvalidOpcode)),
            RegisterFile::X87 | RegisterFile::Mmx => self.check_task_switched()?,
        }
        let waits = !matches!(instruction.mnemonic(), Mnemonic::Fnstcw | Mnemonic::Fnstsw);
        if waits && self.cpu.has_x87_error() {
            return Err(fault(ExceptionVector::X87FloatingPoint));
        }
        Ok(())
    }
}

/// Returns what an instruction does with its only memory operand; `None` if it has none or several, or does
/// not always access the whole of it.
fn memory_operand(instruction: &Instruction) -> Option<AccessKind> {
    let is_memory = |&index: &u32| instruction.op_kind(index) == OpKind::Memory;
    let mut operands = (0..instruction.op_count()).filter(is_memory);
    let index = operands.next()?;
    let touches_rsp = (0..instruction.op_count()).any(|index| {
        instruction.op_kind(index) == OpKind::Register
            && instruction.op_register(index).full_register() == Register::RSP
    });
    if operands.next().is_some()
        || touches_rsp
        || instruction.is_vsib()
        || instruction.is_stack_instruction()
        || instruction.is_privileged()
        || instruction.has_lock_prefix()
        || is_masked_move(instruction)
    {
        return None;
    }
    let options =
        InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
    let mut factory = InstructionInfoFactory::new();
    match factory.info_options(instruction, options).op_access(index) {
        OpAccess::Read => Some(AccessKind::Read),
        OpAccess::Write => Some(AccessKind::Write),
        _ => None,
    }
}

/// Returns whether an instruction accesses just those elements in memory that a mask says.
fn is_masked_move(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq
    )
}

fn register_file(instruction: &Instruction, encoded: &Encoded) -> RegisterFile {
    if encoded.is_x87 {
        return RegisterFile::X87;
    }
    let has = |is: fn(Register) -> bool| {
        (0..instruction.op_count()).any(|index| {
            instruction.op_kind(index) == OpKind::Register && is(instruction.op_register(index))
        })
    };
    if has(Register::is_mm)
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd
        )
    {
        RegisterFile::Mmx
    } else if has(Register::is_vector_register) || is_mxcsr_access(instruction) {
        RegisterFile::Vector
    } else {
        RegisterFile::General
    }
}

fn is_mxcsr_load(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr
    )
}

fn is_mxcsr_access(instruction: &Instruction) -> bool {
    is_mxcsr_load(instruction)
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr
        )
}

/// Returns whether the memory operand has to be on a boundary of its size: of SSE if it has 16 bytes, with few
/// exceptions (SDM vol. 2A, 2.4, types 1 to 4), and of AVX only in moves that say so.
fn needs_alignment(instruction: &Instruction, size: usize) -> bool {
    if instruction.encoding() == EncodingKind::VEX || size != 16 {
        return is_aligned_move(instruction.mnemonic());
    }
    !matches!(
        instruction.mnemonic(),
        Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    )
}

/// An instruction of 64-bit code, with its operand [`OPERAND_DISTANCE`] bytes behind its beginning.
struct Encoded {
    bytes: [u8; 16],
    length: usize,
    is_x87: bool,
    /// The offset of the ModRM byte.
    modrm: usize,
    /// The ModRM byte as the guest has it.
    guest_modrm: u8,
}

impl Encoded {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.length)? = byte;
        self.length += 1;
        Some(())
    }

    /// Returns the opcode of an x87 instruction as FOP has it (SDM vol. 1, 8.1.9).
    fn x87_opcode(&self) -> u16 {
        let opcode = self.modrm.checked_sub(1).and_then(|at| self.bytes.get(at));
        let opcode = opcode.copied().unwrap_or_default();
        u16::from(opcode & 7) << 8 | u16::from(self.guest_modrm)
    }
}

/// Encodes `instruction`, which is `bytes` in code of `mode`; `None` if that is not possible.
fn encode(instruction: &Instruction, bytes: &[u8], mode: Mode) -> Option<Encoded> {
    let bytes = bytes.get(..instruction.len())?;
    let mut new = Encoded {
        bytes: [0; 16],
        length: 0,
        is_x87: false,
        modrm: 0,
        guest_modrm: 0,
    };
    let mut rest = bytes.iter().copied();
    let mut next = rest.next()?;
    loop {
        match next {
            0x66 | 0xf2 | 0xf3 => new.push(next)?,
            // Address size and segments, which do not matter any more.
            0x67 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            _ => break,
        }
        next = rest.next()?;
    }
    let is_vex = instruction.encoding() == EncodingKind::VEX;
    match next {
        0xc5 if is_vex => {
            new.push(next)?;
            new.push(rest.next()?)?;
            new.push(rest.next()?)?;
        }
        0xc4 if is_vex => {
            new.push(next)?;
            // X and B, and vvvv, which has three bits outside 64-bit mode, are inverted.
            new.push(rest.next()? | 0x60)?;
            let unused = if mode == Mode::Long { 0 } else { 0x40 };
            new.push(rest.next()? | unused)?;
            new.push(rest.next()?)?;
        }
        _ => {
            if mode == Mode::Long && next & 0xf0 == 0x40 {
                // W and R stay; there is no register in the address.
                new.push(next & !3)?;
                next = rest.next()?;
            }
            new.push(next)?;
            new.is_x87 = next & 0xf8 == 0xd8;
            if next == 0x0f {
                next = rest.next()?;
                new.push(next)?;
                if matches!(next, 0x38 | 0x3a) {
                    new.push(rest.next()?)?;
                }
            }
        }
    }
    let modrm = rest.next()?;
    let mut displacement = 0;
    if address_mask(instruction) == 0xffff {
        displacement = match (modrm >> 6, modrm & 7) {
            (0, 6) | (2, _) => 2,
            (1, _) => 1,
            _ => 0,
        };
    } else {
        let mut base = modrm & 7;
        if base == 4 {
            base = rest.next()? & 7;
        }
        displacement += match (modrm >> 6, base) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        };
    }
    for _ in 0..displacement {
        rest.next()?;
    }
    new.modrm = new.length;
    new.guest_modrm = modrm;
    new.push(modrm & 0x38 | 5)?;
    let length = new.length + 4 + rest.len();
    let distance = OPERAND_DISTANCE.checked_sub(length as u32)?;
    for byte in distance.to_le_bytes() {
        new.push(byte)?;
    }
    for byte in rest {
        new.push(byte)?;
    }
    is_same(instruction, &new).then_some(new)
}

/// Returns whether `encoded` is `instruction` with another address.
fn is_same(instruction: &Instruction, encoded: &Encoded) -> bool {
    let mut decoder = Decoder::new(64, encoded.as_slice(), DecoderOptions::NONE);
    let decoded = decoder.decode();
    decoder.last_error() == DecoderError::None
        && decoded.code() != Code::INVALID
        && decoded.code() == instruction.code()
        && decoded.len() == encoded.length
        && decoded.len() <= 15
        && decoded.op_count() == instruction.op_count()
        && decoded.memory_base() == Register::RIP
        && decoded.memory_index() == Register::None
        && decoded.memory_displacement64() == u64::from(OPERAND_DISTANCE)
        && decoded.memory_size() == instruction.memory_size()
        && decoded.has_rep_prefix() == instruction.has_rep_prefix()
        && decoded.has_repne_prefix() == instruction.has_repne_prefix()
        && (0..decoded.op_count()).all(|index| {
            let kind = decoded.op_kind(index);
            kind == instruction.op_kind(index)
                && match kind {
                    OpKind::Register => {
                        decoded.op_register(index) == instruction.op_register(index)
                    }
                    OpKind::Memory => true,
                    _ => decoded.immediate(index) == instruction.immediate(index),
                }
        })
}
