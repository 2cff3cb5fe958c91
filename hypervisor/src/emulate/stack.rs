//! Instructions that work on the stack, and near branches to where memory says.

use iced_x86::{Code, Instruction, OpKind};

use super::context::{Context, Span};
use super::cpu::{AccessRights, Cpu, Mode, RBP, RSP, SegmentRegister, set_part};
use super::operand::{Place, is_segment_register};
use super::{Bus, Completed, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    pub(super) fn push(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let width = stack_width(instruction)?;
        let source = self.place(instruction, 0, AccessKind::Read)?;
        let (top, span) = self.push_span(self.stack_pointer(), width)?;
        let value = self.get(bus, source);
        self.write(bus, span, value);
        self.set_stack_pointer(top);
        Ok(())
    }

    pub(super) fn pop(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let width = stack_width(instruction)?;
        if is_segment_register(instruction, 0) {
            return self.pop_segment_register(bus, instruction, width);
        }
        let top = self.stack_pointer();
        let source = self.span(SegmentRegister::Ss, top, width, AccessKind::Read)?;
        let destination = if instruction.op0_kind() == OpKind::Memory {
            // An address based on RSP is computed after RSP has been incremented (the page
            // of POP).
            let (segment, offset) = self.effective_address(instruction, width.bytes() as u64);
            Place::Memory(self.span(segment, offset, width, AccessKind::Write)?)
        } else {
            self.place(instruction, 0, AccessKind::Write)?
        };
        let value = self.read(bus, source);
        self.set_stack_pointer(top.wrapping_add(width.bytes() as u64));
        self.put(bus, destination, value);
        Ok(())
    }

    /// Executes CALL and JMP to where an operand says.
    pub(super) fn branch(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<Completed, Stop> {
        let is_call = match instruction.code() {
            Code::Call_rm16 | Code::Call_rm32 | Code::Call_rm64 => true,
            Code::Jmp_rm16 | Code::Jmp_rm32 | Code::Jmp_rm64 => false,
            _ => {
                self.far_branch(bus, instruction)?;
                return Ok(Completed::Retired);
            }
        };
        let width = self.width(instruction, 0)?;
        let source = self.place(instruction, 0, AccessKind::Read)?;
        let push = if is_call {
            Some(self.push_span(self.stack_pointer(), width)?)
        } else {
            None
        };
        let target = self.get(bus, source);
        self.check_target(target)?;
        if let Some((top, span)) = push {
            self.write(bus, span, self.next_ip(instruction));
            self.set_stack_pointer(top);
        }
        self.cpu.set_rip(target);
        Ok(Completed::Retired)
    }

    /// Returns the stack pointer after a push of `width` onto a stack whose top is `top`, and where the push
    /// goes.
    pub(super) fn push_span(&self, top: u64, width: Width) -> Result<(u64, Span), Stop> {
        let top = top.wrapping_sub(width.bytes() as u64) & self.stack_mask();
        let span = self.span(SegmentRegister::Ss, top, width, AccessKind::Write)?;
        Ok((top, span))
    }

    /// Returns the address size of the stack: 64 bits in 64-bit mode, else as SS.B says.
    fn stack_mask(&self) -> u64 {
        if self.mode == Mode::Long {
            u64::MAX
        } else if self
            .cpu
            .segment_rights(SegmentRegister::Ss)
            .contains(AccessRights::DEFAULT_BIG)
        {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    pub(super) fn stack_pointer(&self) -> u64 {
        self.cpu.gpr(RSP) & self.stack_mask()
    }

    pub(super) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let old = self.cpu.gpr(RSP);
        self.cpu.set_gpr(RSP, old & !mask | value & mask);
    }

    /// Executes RET, near.
    pub(super) fn return_near(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<Completed, Stop> {
        let width = match instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => Width::WORD,
            Code::Retnd | Code::Retnd_imm16 => Width::DOUBLEWORD,
            Code::Retnq | Code::Retnq_imm16 => Width::QUADWORD,
            _ => return Err(Stop::Unsupported(Reason::NotImplemented)),
        };
        let released = match instruction.op_count() {
            0 => 0,
            _ => u64::from(instruction.immediate16()),
        };
        let top = self.stack_pointer();
        let span = self.span(SegmentRegister::Ss, top, width, AccessKind::Read)?;
        let target = self.read(bus, span);
        self.check_target(target)?;
        let increment = (width.bytes() as u64).wrapping_add(released);
        self.set_stack_pointer(top.wrapping_add(increment));
        self.cpu.set_rip(target);
        Ok(Completed::Retired)
    }

    /// Executes LEAVE.
    pub(super) fn leave(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let width = match instruction.code() {
            Code::Leavew => Width::WORD,
            Code::Leaved => Width::DOUBLEWORD,
            _ => Width::QUADWORD,
        };
        let frame = self.cpu.gpr(RBP) & self.stack_mask();
        let span = self.span(SegmentRegister::Ss, frame, width, AccessKind::Read)?;
        let value = self.read(bus, span);
        self.set_stack_pointer(frame.wrapping_add(width.bytes() as u64));
        set_part(self.cpu, RBP, value, width);
        Ok(())
    }

    /// Executes ENTER with no nested frames, as all compilers have it.
    pub(super) fn enter(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        if instruction.immediate8_2nd() & 31 != 0 {
            return Err(Stop::Unsupported(Reason::NotImplemented));
        }
        let width = match instruction.code() {
            Code::Enterw_imm16_imm8 => Width::WORD,
            Code::Enterd_imm16_imm8 => Width::DOUBLEWORD,
            _ => Width::QUADWORD,
        };
        let (frame, span) = self.push_span(self.stack_pointer(), width)?;
        let pushed = self.cpu.gpr(RBP) & width.mask();
        self.write(bus, span, pushed);
        set_part(self.cpu, RBP, frame, width);
        self.set_stack_pointer(frame.wrapping_sub(u64::from(instruction.immediate16())));
        Ok(())
    }

    /// Returns whether a near branch may go to `target`.
    fn check_target(&self, target: u64) -> Result<(), Stop> {
        let allowed = if self.mode == Mode::Long {
            self.is_canonical(target)
        } else {
            target <= u64::from(self.cpu.segment_limit(SegmentRegister::Cs))
        };
        if allowed {
            Ok(())
        } else {
            Err(self.beyond_code())
        }
    }
}

/// Returns the width of a push or pop: an operand in memory has it; so has any other, but for
/// segment registers, which go by the operand size.
fn stack_width(instruction: &Instruction) -> Result<Width, Stop> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs() as usize;
    Width::from_bytes(bytes).ok_or(Stop::Unsupported(Reason::NotImplemented))
}
