//! What the emulator needs to know and change of a VCPU.

use arch::{Cr0Flags, EferFlags, ExceptionVector, RFlags};

use super::block::Bytes;
use super::native::{Computation, Computed};
use super::width::Width;
use crate::guest_paging::PagingRegisters;

pub use arch::gpr::{RAX, RCX, RDI, RDX, RSI, RSP};
pub(super) use arch::gpr::{RBP, RBX};
pub use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

/// The registers of a VCPU. Reading one may cost a VMREAD, and each method is called only
/// where an instruction needs it.
pub trait Cpu: PagingRegisters {
    /// Returns the general-purpose register `index` (0 to 15, as encoded: RAX is 0, RSP is 4).
    fn gpr(&self, index: usize) -> u64;
    /// Sets the general-purpose register `index`.
    fn set_gpr(&mut self, index: usize, value: u64);
    /// Returns XCR0.
    fn xcr0(&self) -> u64;
    /// Returns the register XMM`index` (0 to 15).
    fn xmm(&self, index: usize) -> u128;
    /// Sets the low 128 bits of vector register `index`, and leaves those above alone.
    fn set_xmm(&mut self, index: usize, value: u128);
    /// Returns the high half of the register YMM`index` (0 to 15).
    fn ymm_high(&self, index: usize) -> u128;
    /// Sets the high half of the register YMM`index`, and clears what is above it.
    fn set_ymm_high(&mut self, index: usize, value: u128);
    /// Returns RIP.
    fn rip(&self) -> u64;
    /// Sets RIP, to the next instruction or the target of a jump: the emulated instruction
    /// is over. What else that means is the VCPU's to do, as after every instruction that it
    /// steps over: it ends blocking by STI and by MOV SS, clears RFLAGS.RF, and makes a
    /// debug exception pending if RFLAGS.TF was set.
    fn set_rip(&mut self, rip: u64);
    /// Returns RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS; only status flags differ from what [`Cpu::rflags`] said.
    fn set_rflags(&mut self, rflags: u64);
    /// Returns the current privilege level: the DPL of SS.
    fn cpl(&self) -> u8;
    /// Returns the selector in a segment register.
    fn segment_selector(&self, segment: SegmentRegister) -> u16;
    /// Returns the base of a segment.
    fn segment_base(&self, segment: SegmentRegister) -> u64;
    /// Returns the limit of a segment in bytes, granularity applied.
    fn segment_limit(&self, segment: SegmentRegister) -> u32;
    /// Returns the access rights of a segment.
    fn segment_rights(&self, segment: SegmentRegister) -> AccessRights;
    /// Returns a segment register whole.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Sets a segment register.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// Keeps events off until the next instruction is over, as a load of SS by MOV and POP does. To be
    /// called after [`Cpu::set_rip`].
    fn block_events_by_mov_ss(&mut self);
    /// Returns GDTR.
    fn gdtr(&self) -> DescriptorTable;
    /// Sets GDTR.
    fn set_gdtr(&mut self, table: DescriptorTable);
    /// Returns IDTR.
    fn idtr(&self) -> DescriptorTable;
    /// Sets IDTR.
    fn set_idtr(&mut self, table: DescriptorTable);
    /// Has the processor execute one instruction, on the guest's registers of x87, MMX, SSE and AVX, with
    /// `operand` as its memory, which the guest has enabled; RIP stays where it is.
    fn compute(&mut self, computation: &mut Computation<'_>, operand: &mut Bytes) -> Computed;
    /// Loads the low four bits of CR0 as LMSW does, which sets PE but does not clear it.
    fn load_machine_status(&mut self, value: u16);
}

/// Sets the low `width` of the register `index` as instructions do: bytes and words leave the
/// rest of it, 32 bits are zero-extended.
#[inline]
pub(super) fn set_part(cpu: &mut impl Cpu, index: usize, value: u64, width: Width) {
    let value = match width {
        Width::BYTE | Width::WORD => cpu.gpr(index) & !width.mask() | value & width.mask(),
        _ => value & width.mask(),
    };
    cpu.set_gpr(index, value);
}

/// The operating mode of the CPU, as far as decoding and addressing depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected or compatibility mode with 16-bit code.
    Protected16,
    /// Protected or compatibility mode with 32-bit code.
    Protected32,
    /// 64-bit mode.
    Long,
}

impl Mode {
    /// Returns the mode that `cpu` is in.
    pub fn of(cpu: &impl Cpu) -> Self {
        let rights = cpu.segment_rights(SegmentRegister::Cs);
        if cpu.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0 {
            if rights.contains(AccessRights::LONG) {
                return Self::Long;
            }
        } else if cpu.cr0() & Cr0Flags::PROTECTED_MODE_ENABLE.bits() == 0 {
            return Self::Real;
        } else if cpu.rflags() & RFlags::VIRTUAL_8086_MODE.bits() != 0 {
            return Self::Virtual8086;
        }
        if rights.contains(AccessRights::DEFAULT_BIG) {
            Self::Protected32
        } else {
            Self::Protected16
        }
    }

    /// Returns the width of code in bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 => 16,
            Self::Protected32 => 32,
            Self::Long => 64,
        }
    }

    /// Returns whether segment types are checked: not in real-address and virtual-8086 mode.
    #[must_use]
    pub const fn checks_segment_types(self) -> bool {
        matches!(self, Self::Protected16 | Self::Protected32)
    }
}

/// An exception that the emulated instruction raises, to be injected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The vector: #DE, #UD, #NM, #NP, #SS, #GP, #PF, #MF, #AC or #XM.
    pub vector: ExceptionVector,
    /// The error code to deliver; none in real-address mode, for #UD and for #NM.
    pub error_code: Option<u32>,
    /// The new value of CR2, for #PF.
    pub cr2: Option<u64>,
}

impl Fault {
    /// Makes a fault of a vector that has no error code.
    #[must_use]
    pub const fn without_code(vector: ExceptionVector) -> Self {
        Self {
            vector,
            error_code: None,
            cr2: None,
        }
    }

    /// Makes a fault with the error code 0, in the modes that have error codes.
    #[must_use]
    pub const fn with_zero_code(vector: ExceptionVector, mode: Mode) -> Self {
        Self {
            vector,
            error_code: if matches!(mode, Mode::Real) {
                None
            } else {
                Some(0)
            },
            cr2: None,
        }
    }
}
