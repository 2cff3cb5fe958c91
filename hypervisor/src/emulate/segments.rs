//! Loads of segment registers: MOV, POP, LDS and its like (SDM vol. 2A, LDS/LES/LFS/LGS/LSS; vol. 2B, MOV
//! and POP).

use arch::ExceptionVector;
use iced_x86::{Code, Instruction, Mnemonic};

use super::context::Context;
use super::cpu::{AccessRights, Cpu, Fault, Mode, Segment, SegmentRegister};
use super::descriptor::is_null;
use super::operand::{Place, segment_register};
use super::{Bus, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// The rights of every segment in virtual-8086 mode (SDM vol. 3C, 27.3.1.2).
const VIRTUAL_8086_RIGHTS: u32 = 0xf3;

/// A pointer in memory: an offset, and behind it a selector.
#[derive(Clone, Copy)]
pub(super) struct FarPointer {
    pub(super) offset: u64,
    pub(super) selector: u16,
}

/// Returns an exception whose error code names `selector`.
#[cold]
pub(super) fn selector_fault(vector: ExceptionVector, selector: u16) -> Stop {
    Stop::Fault(Fault {
        vector,
        error_code: Some(u32::from(selector & !0b11)),
        cr2: None,
    })
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Returns #GP(0).
    #[cold]
    pub(super) fn general_protection(&self) -> Stop {
        Stop::Fault(Fault::with_zero_code(
            ExceptionVector::GeneralProtection,
            self.mode,
        ))
    }

    /// Returns whether selectors name descriptors, as they do in protected mode and beyond.
    pub(super) const fn has_descriptors(&self) -> bool {
        !matches!(self.mode, Mode::Real | Mode::Virtual8086)
    }

    /// Returns what `register`, which holds data or the stack, has when `selector` is loaded, and marks the
    /// descriptor as accessed.
    pub(super) fn data_segment(
        &self,
        bus: &mut impl Bus,
        register: SegmentRegister,
        selector: u16,
    ) -> Result<Segment, Stop> {
        if !self.has_descriptors() {
            return Ok(self.real_segment(register, selector));
        }
        let is_stack = register == SegmentRegister::Ss;
        let cpl = self.cpu.cpl();
        let rpl = (selector & 0b11) as u8;
        if is_null(selector) {
            if is_stack && !(self.mode == Mode::Long && cpl < 3 && rpl == cpl) {
                return Err(self.general_protection());
            }
            // The DPL of SS is the CPL, whatever SS holds.
            let dpl = if is_stack { u32::from(cpl) << 5 } else { 0 };
            return Ok(Segment {
                selector,
                base: 0,
                limit: 0,
                rights: AccessRights::UNUSABLE | AccessRights::from_bits_retain(dpl),
            });
        }
        let invalid = || selector_fault(ExceptionVector::GeneralProtection, selector);
        let mut descriptor = self.descriptor(bus, selector)?.ok_or_else(invalid)?;
        let dpl = descriptor.rights.dpl();
        let (allowed, absent) = if is_stack {
            (
                descriptor.is_writable() && rpl == cpl && dpl == cpl,
                ExceptionVector::Stack,
            )
        } else {
            (
                descriptor.is_readable() && (descriptor.is_conforming() || cpl.max(rpl) <= dpl),
                ExceptionVector::SegmentNotPresent,
            )
        };
        if !allowed {
            return Err(invalid());
        }
        if !descriptor.is_present() {
            return Err(selector_fault(absent, selector));
        }
        self.set_access_bits(bus, &mut descriptor, AccessRights::ACCESSED)?;
        Ok(descriptor.segment(selector))
    }

    /// Returns what `register` has when `selector` is loaded in real-address or virtual-8086 mode.
    pub(super) fn real_segment(&self, register: SegmentRegister, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.mode == Mode::Virtual8086 {
            return Segment {
                selector,
                base,
                limit: 0xffff,
                rights: AccessRights::from_bits_retain(VIRTUAL_8086_RIGHTS),
            };
        }
        Segment {
            selector,
            base,
            ..self.cpu.segment(register)
        }
    }

    /// Executes MOV to a segment register.
    pub(super) fn load_segment_register(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let register = segment_register(instruction.op0_register());
        if register == SegmentRegister::Cs {
            return Err(Stop::Fault(Fault::without_code(
                ExceptionVector::InvalidOpcode,
            )));
        }
        let source = self.place(instruction, 1, AccessKind::Read)?;
        let selector = self.get(bus, source) as u16;
        let segment = self.data_segment(bus, register, selector)?;
        self.cpu.set_segment(register, segment);
        Ok(())
    }

    /// Executes LDS, LES, LFS, LGS and LSS.
    pub(super) fn load_far_pointer(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let register = match instruction.mnemonic() {
            Mnemonic::Lds => SegmentRegister::Ds,
            Mnemonic::Les => SegmentRegister::Es,
            Mnemonic::Lfs => SegmentRegister::Fs,
            Mnemonic::Lgs => SegmentRegister::Gs,
            _ => SegmentRegister::Ss,
        };
        let width = self.width(instruction, 0)?;
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let pointer = self.far_pointer(bus, instruction, width)?;
        let segment = self.data_segment(bus, register, pointer.selector)?;
        self.cpu.set_segment(register, segment);
        self.put(bus, destination, pointer.offset);
        Ok(())
    }

    /// Reads the far pointer that is the memory operand, with an offset of `width`.
    pub(super) fn far_pointer(
        &self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        width: Width,
    ) -> Result<FarPointer, Stop> {
        let (segment, offset) = self.effective_address(instruction, 0);
        let size = width.bytes();
        let block = self.block(segment, offset, size + 2, AccessKind::Read)?;
        let bytes = self.read_block(bus, &block);
        let mut offset = [0; 8];
        offset[..size].copy_from_slice(&bytes[..size]);
        Ok(FarPointer {
            offset: u64::from_le_bytes(offset),
            selector: u16::from_le_bytes([bytes[size], bytes[size + 1]]),
        })
    }

    /// Executes CALL and JMP, far, to code of the same privilege (SDM vol. 2A, CALL and JMP). Gates and tasks
    /// are left out.
    pub(super) fn far_branch(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let (width, is_call) = match instruction.code() {
            Code::Jmp_m1616 => (Width::WORD, false),
            Code::Jmp_m1632 => (Width::DOUBLEWORD, false),
            Code::Jmp_m1664 => (Width::QUADWORD, false),
            Code::Call_m1616 => (Width::WORD, true),
            Code::Call_m1632 => (Width::DOUBLEWORD, true),
            Code::Call_m1664 => (Width::QUADWORD, true),
            _ => return Err(Stop::Unsupported(Reason::NotImplemented)),
        };
        let frame = if is_call {
            let (top, code) = self.push_span(self.stack_pointer(), width)?;
            let (top, next) = self.push_span(top, width)?;
            Some((top, code, next))
        } else {
            None
        };
        let pointer = self.far_pointer(bus, instruction, width)?;
        let code = self.code_segment(bus, pointer)?;
        if let Some((top, code_span, next_span)) = frame {
            let old = self.cpu.segment_selector(SegmentRegister::Cs);
            self.write(bus, code_span, old.into());
            self.write(bus, next_span, self.next_ip(instruction) & width.mask());
            self.set_stack_pointer(top);
        }
        self.cpu.set_segment(SegmentRegister::Cs, code);
        self.cpu.set_rip(pointer.offset);
        Ok(())
    }

    /// Returns what CS has after a far branch to `pointer`.
    fn code_segment(&self, bus: &mut impl Bus, pointer: FarPointer) -> Result<Segment, Stop> {
        let FarPointer { offset, selector } = pointer;
        if !self.has_descriptors() {
            let segment = self.real_segment(SegmentRegister::Cs, selector);
            if offset > u64::from(segment.limit) {
                return Err(self.general_protection());
            }
            return Ok(segment);
        }
        if is_null(selector) {
            return Err(self.general_protection());
        }
        let invalid = || selector_fault(ExceptionVector::GeneralProtection, selector);
        let mut descriptor = self.descriptor(bus, selector)?.ok_or_else(invalid)?;
        if !descriptor.is_code_or_data() {
            return Err(Stop::Unsupported(Reason::NotImplemented));
        }
        let cpl = self.cpu.cpl();
        let rpl = (selector & 0b11) as u8;
        let dpl = descriptor.rights.dpl();
        let privilege_fits = if descriptor.is_conforming() {
            dpl <= cpl
        } else {
            rpl <= cpl && dpl == cpl
        };
        let ia32e = self.is_ia32e();
        let long = ia32e && descriptor.rights.contains(AccessRights::LONG);
        let both = long && descriptor.rights.contains(AccessRights::DEFAULT_BIG);
        if !descriptor.is_code() || !privilege_fits || both {
            return Err(invalid());
        }
        if !descriptor.is_present() {
            return Err(selector_fault(ExceptionVector::SegmentNotPresent, selector));
        }
        let within = if long {
            self.is_canonical(offset)
        } else {
            offset <= u64::from(descriptor.limit)
        };
        if !within {
            return Err(self.general_protection());
        }
        self.set_access_bits(bus, &mut descriptor, AccessRights::ACCESSED)?;
        Ok(descriptor.segment(selector & !0b11 | u16::from(cpl)))
    }

    /// Executes POP of a segment register.
    pub(super) fn pop_segment_register(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        width: Width,
    ) -> Result<(), Stop> {
        let register = segment_register(instruction.op0_register());
        let top = self.stack_pointer();
        let span = self.span(SegmentRegister::Ss, top, width, AccessKind::Read)?;
        let selector = self.get(bus, Place::Memory(span)) as u16;
        let segment = self.data_segment(bus, register, selector)?;
        // By the size of the old stack's addresses.
        self.set_stack_pointer(top.wrapping_add(width.bytes() as u64));
        self.cpu.set_segment(register, segment);
        Ok(())
    }
}
