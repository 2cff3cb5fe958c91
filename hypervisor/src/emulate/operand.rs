//! Operands of a decoded instruction: where they are, and what they hold.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

use super::context::{Context, Span};
use super::cpu::{Cpu, SegmentRegister, set_part};
use super::{Bus, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// An operand, located and checked.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Register(Register),
    Immediate(u64),
    Memory(Span),
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Returns the width of operand `index`.
    pub(super) fn width(&self, instruction: &Instruction, index: u32) -> Result<Width, Stop> {
        let bytes = match instruction.op_kind(index) {
            OpKind::Register => instruction.op_register(index).size(),
            OpKind::Memory => match instruction.memory_size() {
                MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64 => 0,
                size => size.size(),
            },
            _ => 0,
        };
        Width::from_bytes(bytes).ok_or(Stop::Unsupported(Reason::NotImplemented))
    }

    /// Locates operand `index` for a read-modify-write.
    pub(super) fn writable_place(
        &self,
        instruction: &Instruction,
        index: u32,
    ) -> Result<Place, Stop> {
        let place = self.place(instruction, index, AccessKind::Write)?;
        if let Place::Memory(span) = place {
            self.check_locked_span(instruction, span)?;
        }
        Ok(place)
    }

    /// Refuses an atomic access to RAM, which other VCPUs see at the same time.
    pub(super) fn check_locked_span(
        &self,
        instruction: &Instruction,
        span: Span,
    ) -> Result<(), Stop> {
        let locked = instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg;
        if locked && self.touches_ram(span) {
            return Err(Stop::Unsupported(Reason::LockedRam));
        }
        Ok(())
    }

    /// Locates operand `index` and checks it for an access of `kind`.
    pub(super) fn place(
        &self,
        instruction: &Instruction,
        index: u32,
        kind: AccessKind,
    ) -> Result<Place, Stop> {
        match instruction.op_kind(index) {
            OpKind::Register => {
                let register = instruction.op_register(index);
                if register.is_gpr() || register.is_segment_register() {
                    Ok(Place::Register(register))
                } else {
                    Err(Stop::Unsupported(Reason::NotImplemented))
                }
            }
            OpKind::Memory => {
                let width = self.width(instruction, index)?;
                let (segment, offset) = self.effective_address(instruction, 0);
                Ok(Place::Memory(self.span(segment, offset, width, kind)?))
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Ok(Place::Immediate(instruction.immediate(index))),
            _ => Err(Stop::Unsupported(Reason::NotImplemented)),
        }
    }

    pub(super) fn get(&self, bus: &mut impl Bus, place: Place) -> u64 {
        match place {
            Place::Register(register) => self.register(register),
            Place::Immediate(value) => value,
            Place::Memory(span) => self.read(bus, span),
        }
    }

    pub(super) fn put(&mut self, bus: &mut impl Bus, place: Place, value: u64) {
        match place {
            Place::Register(register) => self.set_register(register, value),
            Place::Memory(span) => self.write(bus, span, value),
            // No instruction writes to an immediate.
            Place::Immediate(_) => {}
        }
    }

    /// Returns the value of a general-purpose register or part of one, zero-extended, or the
    /// selector in a segment register.
    pub(super) fn register(&self, register: Register) -> u64 {
        if register.is_segment_register() {
            return self.cpu.segment_selector(segment_register(register)).into();
        }
        let full = self.cpu.gpr(register.full_register().number());
        if is_high_byte(register) {
            return full >> 8 & 0xff;
        }
        match Width::from_bytes(register.size()) {
            Some(width) => full & width.mask(),
            None => full,
        }
    }

    /// Sets a general-purpose register or part of one.
    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let index = register.full_register().number();
        if is_high_byte(register) {
            let rest = self.cpu.gpr(index) & !0xff00;
            self.cpu.set_gpr(index, rest | (value & 0xff) << 8);
        } else if let Some(width) = Width::from_bytes(register.size()) {
            set_part(self.cpu, index, value, width);
        }
    }

    /// Returns segment and offset of the memory operand, with `rsp_increment` added to RSP if that
    /// is its base.
    pub(super) fn effective_address(
        &self,
        instruction: &Instruction,
        rsp_increment: u64,
    ) -> (SegmentRegister, u64) {
        let mut offset = instruction.memory_displacement64();
        let base = instruction.memory_base();
        // For RIP-relative addresses the decoder's displacement is the whole address.
        if base != Register::None && !base.is_ip() {
            offset = offset.wrapping_add(self.register(base));
            if base.full_register() == Register::RSP {
                offset = offset.wrapping_add(rsp_increment);
            }
        }
        let index = instruction.memory_index();
        if index != Register::None {
            let scale = u64::from(instruction.memory_index_scale());
            offset = offset.wrapping_add(self.register(index).wrapping_mul(scale));
        }
        (
            segment_register(instruction.memory_segment()),
            offset & address_mask(instruction),
        )
    }
}

/// Returns the address size of the memory operand, as a mask.
pub(super) fn address_mask(instruction: &Instruction) -> u64 {
    let bytes = [instruction.memory_base(), instruction.memory_index()]
        .into_iter()
        .find(|register| *register != Register::None)
        .map_or(instruction.memory_displ_size() as usize, Register::size);
    Width::from_bytes(bytes).map_or(u64::MAX, Width::mask)
}

pub(super) fn is_segment_register(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Register
        && instruction.op_register(index).is_segment_register()
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// Returns our name for the decoder's segment register.
pub(super) fn segment_register(register: Register) -> SegmentRegister {
    match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}
