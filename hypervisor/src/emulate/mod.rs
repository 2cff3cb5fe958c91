//! Emulation of instructions that touch memory-mapped devices, and of string port I/O.
//!
//! An EPT violation at an address that is not RAM says where the guest went, not what it
//! did there. [`emulate`] finds out: it fetches the instruction through the guest's page
//! tables, decodes it, and executes it with each memory operand where it lies, in RAM or on
//! the [`Bus`]. [`emulate_string_io`] does the memory half of INS and OUTS.
//!
//! An instruction is emulated as a whole or not at all: all its operands are translated and
//! checked before the first of them is read, and registers change last. Repeated string
//! instructions are the exception, as on hardware: they stop between two elements, with
//! their progress in RCX, RSI and RDI.
//!
//! The forms of MOV that nearly all drivers use take a short cut ([`fast_move`]); everything
//! else goes through a full decoder, [`iced_x86`]. What works on registers of x87, MMX, SSE and AVX
//! is not written out here: the emulator does its memory operand, and the processor itself [the
//! rest](Cpu::compute).
//!
//! What the emulator does not do is #UD for the guest.
//!
//! # What hardware does and this does not
//! - A LOCKed instruction is atomic towards devices, as every exit handler is; one with its
//!   memory operand in RAM is refused.
//! - Far branches through memory go to code of the same privilege. Call gates, task gates and TSSs are
//!   refused, and so are far returns and IRET from a stack on a device.
//! - Of instructions on registers of x87, MMX, SSE and AVX, those of a [list](native) are done. Memory images
//!   of these registers (FSAVE, FSTENV, FXSAVE, XSAVE and their counterparts), gathers, moves under a mask, AES,
//!   SHA, FMA, AVX-512 and what has RSP as an operand are refused.
//! - An x87 instruction leaves no selectors in FCS and FDS.
//! - Data breakpoints do not match.
#![cfg_attr(not(test), forbid(unsafe_code))]

mod arithmetic;
mod block;
mod context;
mod cpu;
pub(crate) mod descriptor;
mod execute;
mod fast_move;
mod fetch;
pub mod flags;
mod native;
mod operand;
mod segments;
mod stack;
mod string;
mod system;
mod vector;
mod width;

#[cfg(test)]
mod tests;

use arch::ExceptionVector;
use vmx::addr::GuestPhysAddr;

use crate::guest_memory::{GuestMemory, NotRam};
use crate::guest_paging::WalkError;

pub use block::Bytes;
pub use cpu::{
    AccessRights, Cpu, DescriptorTable, Fault, Mode, RAX, RCX, RDI, RDX, RSI, RSP, Segment,
    SegmentRegister,
};
pub use native::{Code, Computation, Computed, OPERAND_DISTANCE, X87Pointers};
pub use string::{Direction, StringIo, emulate_string_io};
pub use width::Width;

/// Device memory: what is at guest-physical addresses that are not RAM.
pub trait Bus {
    /// Reads `width` at `address`. The access need not be aligned, and never crosses a
    /// 4 KiB page. Bits above `width` are ignored.
    fn read(&mut self, address: GuestPhysAddr, width: Width) -> u64;
    /// Writes the low `width` of `value` at `address`; bits above it are zero.
    fn write(&mut self, address: GuestPhysAddr, width: Width, value: u64);
}

/// The I/O ports.
pub trait Ports {
    /// Reads `width` (at most 32 bits) from `port`.
    fn read_port(&mut self, port: u16, width: Width) -> u32;
    /// Writes `width` (at most 32 bits) to `port`.
    fn write_port(&mut self, port: u16, width: Width, value: u32);
}

/// The EPT violation that asks for emulation: a data access of an instruction, to a
/// translated linear address (exit qualification bits 7 and 8 both set).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The guest-physical address. Not RAM.
    pub address: GuestPhysAddr,
    /// Whether the access was a write: exit qualification bit 1.
    pub write: bool,
}

/// The outcome of an emulation without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// The instruction is done, and RIP is behind it.
    Retired,
    /// A repeated string instruction has elements left. RIP is still on it: let pending
    /// events in, the trap of a single step among them, and the guest will come back.
    Interrupted,
}

/// The reason why an instruction was not emulated. Registers, memory and devices are as before it;
/// for a repeated string instruction, as before the element that failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmulationError {
    /// The instruction faults: inject this.
    Fault(Fault),
    /// The emulator does not do this instruction.
    Unsupported(Unsupported),
}

impl From<Fault> for EmulationError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// An instruction that the emulator does not do, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The reason why the emulator does not do it.
    pub reason: Reason,
    /// The instruction; just its first bytes in the guest if it could not be decoded.
    pub bytes: InstructionBytes,
    /// The kind of instruction, as far as it is known.
    pub code: iced_x86::Code,
}

impl core::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "cannot emulate {:?} (bytes{}): {}",
            self.code, self.bytes, self.reason
        )
    }
}

impl core::error::Error for Unsupported {}

/// The reason why the emulator does not do an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Bytes that are no instruction, or one of a set that the decoder leaves out.
    NotDecoded,
    /// An instruction without an implementation.
    NotImplemented,
    /// An instruction that wants atomic access to RAM.
    LockedRam,
    /// An instruction that lies outside the guest's RAM.
    CodeNotRam(NotRam),
    /// A paging structure outside the guest's RAM, on the way to the instruction or its operands.
    PagingNotRam(NotRam),
}

impl Reason {
    /// Returns whether the guest cannot go on at all: its paging structures are not in RAM.
    /// Where it is just that the emulator does not do an instruction, or cannot see it, #UD says so to the guest.
    #[must_use]
    pub const fn is_guests_end(self) -> bool {
        match self {
            Self::NotDecoded | Self::NotImplemented | Self::LockedRam | Self::CodeNotRam(_) => {
                false
            }
            Self::PagingNotRam(_) => true,
        }
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotDecoded => f.write_str("not a known instruction"),
            Self::NotImplemented => f.write_str("no implementation for device memory"),
            Self::LockedRam => f.write_str("a locked access to RAM"),
            Self::CodeNotRam(not_ram) => write!(f, "code outside RAM: {not_ram}"),
            Self::PagingNotRam(not_ram) => write!(f, "paging structure outside RAM: {not_ram}"),
        }
    }
}

/// The bytes of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstructionBytes {
    bytes: [u8; 16],
    length: u8,
}

impl InstructionBytes {
    /// Returns the bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }
}

impl core::fmt::Display for InstructionBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_slice()
            .iter()
            .try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// The cause of an early end of an emulation, before it is known which instruction to report.
enum Stop {
    Fault(Fault),
    Unsupported(Reason),
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Fault(fault) => Self::Fault(Fault {
                vector: ExceptionVector::Page,
                error_code: Some(fault.error_code.bits() as u32),
                cr2: Some(fault.address.0),
            }),
            WalkError::NotRam(not_ram) => Self::Unsupported(Reason::PagingNotRam(not_ram)),
        }
    }
}

/// Builds the decoder's tables, which are allocated at first use: to be called once at boot,
/// so that no VM exit has to wait for that.
pub fn prepare() {
    const NOP: &[u8] = &[0x90];
    let _ = iced_x86::Decoder::new(64, NOP, iced_x86::DecoderOptions::NONE).decode();
}

/// Emulates the instruction at CS:RIP.
///
/// `violation` is the EPT violation that it caused, if it caused one; with it, the common
/// forms of MOV go a fast way, which trusts the CPU's own translation of the operand.
///
/// # Errors
/// [`EmulationError::Fault`] if the instruction faults, [`EmulationError::Unsupported`] if
/// it cannot be emulated.
pub fn emulate<C: Cpu, M: GuestMemory, B: Bus>(
    cpu: &mut C,
    memory: &M,
    bus: &mut B,
    violation: Option<Violation>,
) -> Result<Completed, EmulationError> {
    if let Some(violation) = violation
        && fast_move::emulate(cpu, memory, bus, violation)
    {
        return Ok(Completed::Retired);
    }
    emulate_any(cpu, memory, bus)
}

/// Emulates the long way, for every instruction.
#[inline(never)]
fn emulate_any<C: Cpu, M: GuestMemory, B: Bus>(
    cpu: &mut C,
    memory: &M,
    bus: &mut B,
) -> Result<Completed, EmulationError> {
    let mut context = context::Context::new(cpu, memory);
    let mut bytes = match context.fetch() {
        Ok(bytes) => bytes,
        Err(stop) => return Err(report(stop, InstructionBytes::default())),
    };
    let instruction = match context.decode(&mut bytes) {
        Ok(instruction) => instruction,
        Err(stop) => return Err(report(stop, bytes)),
    };
    match context.execute(bus, &instruction, bytes.as_slice()) {
        Ok(completed) => Ok(completed),
        Err(Stop::Fault(fault)) => Err(EmulationError::Fault(fault)),
        Err(Stop::Unsupported(reason)) => Err(EmulationError::Unsupported(Unsupported {
            reason,
            bytes: InstructionBytes {
                length: instruction.len() as u8,
                ..bytes
            },
            code: instruction.code(),
        })),
    }
}

#[cold]
fn report(stop: Stop, bytes: InstructionBytes) -> EmulationError {
    match stop {
        Stop::Fault(fault) => EmulationError::Fault(fault),
        Stop::Unsupported(reason) => EmulationError::Unsupported(Unsupported {
            reason,
            bytes,
            code: iced_x86::Code::INVALID,
        }),
    }
}
