//! The encoding of an instruction that the processor is given.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, EncodingKind, Instruction, OpKind, Register,
};
use vmx::addr::PAGE_SIZE;

use super::super::cpu::Mode;
use super::super::fetch::MAX_LENGTH;
use super::forms::Form;

/// The distance in bytes from the first byte of a [`Code`] to its memory operand.
pub const OPERAND_DISTANCE: u32 = PAGE_SIZE as u32;

/// An instruction of 64-bit code that computes, with one memory operand of at most 32 bytes, which is addressed by
/// RIP and lies [`OPERAND_DISTANCE`] bytes behind the instruction's beginning.
///
/// It is one of a [list](super::forms), and none of its bytes is a prefix that it does not need. It changes
/// its operand, general-purpose registers other than RSP, status flags, and registers of x87, MMX, SSE and AVX.
#[derive(Debug)]
pub struct Code {
    bytes: [u8; MAX_LENGTH as usize],
    length: usize,
    x87_opcode: u16,
}

impl Code {
    /// Encodes `instruction`, which is `bytes` in code of `mode`; `None` if it is not on the list, or has no such
    /// encoding.
    pub(super) fn new(instruction: &Instruction, bytes: &[u8], mode: Mode) -> Option<Self> {
        Form::of(instruction)?;
        let parts = Parts::of(instruction, bytes.get(..instruction.len())?, mode)?;
        // The first that says what the guest's says is the one without anything superfluous.
        [None, Some(0x66), Some(0xf3), Some(0xf2)]
            .into_iter()
            .flat_map(|prefix| [None, parts.rex].map(|rex| (prefix, rex)))
            .filter_map(|(prefix, rex)| parts.encode(prefix, rex))
            .find(|code| is_same(instruction, code))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Returns the opcode as the x87 FPU's FOP has it (SDM vol. 1, 8.1.9), if it is an instruction of that.
    pub(super) const fn x87_opcode(&self) -> u16 {
        self.x87_opcode
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.length + bytes.len();
        self.bytes.get_mut(self.length..end)?.copy_from_slice(bytes);
        self.length = end;
        Some(())
    }
}

/// The parts of the guest's encoding beside prefixes and the address.
struct Parts<'a> {
    /// REX with W and R; no register in the address needs the others.
    rex: Option<u8>,
    /// The opcode with its escapes, or with VEX before it.
    opcode: [u8; 4],
    opcode_length: usize,
    modrm: u8,
    /// The immediate byte, which may name a register.
    immediate: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(instruction: &Instruction, bytes: &'a [u8], mode: Mode) -> Option<Self> {
        let is_prefix = |byte: &u8| {
            matches!(
                byte,
                0x66 | 0x67 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65
            )
        };
        let start = bytes.iter().position(|byte| !is_prefix(byte))?;
        let mut rest = bytes.get(start..)?;
        let mut rex = None;
        if mode == Mode::Long && rest.first()? & 0xf0 == 0x40 {
            rex = Some(rest.first()? & !3);
            rest = rest.get(1..)?;
        }
        let is_vex = instruction.encoding() == EncodingKind::VEX;
        let opcode_length = match rest {
            [0xc4, ..] if is_vex => 4,
            [0xc5, ..] if is_vex => 3,
            [0x0f, 0x38 | 0x3a, ..] => 3,
            [0x0f, ..] => 2,
            _ => 1,
        };
        let mut opcode = [0; 4];
        opcode
            .get_mut(..opcode_length)?
            .copy_from_slice(rest.get(..opcode_length)?);
        if opcode_length == 4 {
            // X and B, and vvvv, which has three bits outside 64-bit mode, are inverted.
            opcode[1] |= 0x60;
            opcode[2] |= if mode == Mode::Long { 0 } else { 0x40 };
        }
        let names_fourth = instruction.op_count() == 4;
        let is_immediate = |index| instruction.op_kind(index) == OpKind::Immediate8;
        let has_immediate = names_fourth || (0..instruction.op_count()).any(is_immediate);
        Some(Self {
            rex,
            opcode,
            opcode_length,
            modrm: *rest.get(opcode_length)?,
            immediate: rest.get(rest.len() - usize::from(has_immediate)..)?,
        })
    }

    fn encode(&self, prefix: Option<u8>, rex: Option<u8>) -> Option<Code> {
        let mut code = Code {
            bytes: [0; MAX_LENGTH as usize],
            length: 0,
            x87_opcode: u16::from(self.opcode[0] & 7) << 8 | u16::from(self.modrm),
        };
        code.push(prefix.as_slice())?;
        code.push(rex.as_slice())?;
        code.push(self.opcode.get(..self.opcode_length)?)?;
        // No base, no index, and a displacement of 32 bits from the end.
        code.push(&[self.modrm & 0x38 | 5])?;
        let length = code.length + size_of::<u32>() + self.immediate.len();
        let displacement = OPERAND_DISTANCE.checked_sub(length as u32)?;
        code.push(&displacement.to_le_bytes())?;
        code.push(self.immediate)?;
        Some(code)
    }
}

/// Returns whether `code` is `instruction` with the address of [`Code`]s.
fn is_same(instruction: &Instruction, code: &Code) -> bool {
    let mut decoder = Decoder::new(64, code.as_slice(), DecoderOptions::NONE);
    let decoded = decoder.decode();
    decoder.last_error() == DecoderError::None
        && decoded.code() == instruction.code()
        && decoded.len() == code.length
        && decoded.op_count() == instruction.op_count()
        && decoded.memory_base() == Register::RIP
        && decoded.memory_index() == Register::None
        && decoded.memory_displacement64() == u64::from(OPERAND_DISTANCE)
        && decoded.memory_size() == instruction.memory_size()
        && Form::of(&decoded) == Form::of(instruction)
        && (0..decoded.op_count()).all(|index| {
            let kind = decoded.op_kind(index);
            kind == instruction.op_kind(index)
                && match kind {
                    OpKind::Register => {
                        decoded.op_register(index) == instruction.op_register(index)
                    }
                    OpKind::Immediate8 => decoded.immediate8() == instruction.immediate8(),
                    _ => true,
                }
        })
}
