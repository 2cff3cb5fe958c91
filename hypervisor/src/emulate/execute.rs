//! Execution of a decoded instruction.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::context::Context;
use super::cpu::{Cpu, Mode, RAX, RDX, set_part};
use super::flags::{self, BitOperation, BitScan, Outcome, Shift};
use super::operand::{Place, address_mask, is_segment_register};
use super::{Bus, Completed, Reason, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Executes `instruction`, whose bytes `bytes` begin with.
    pub(super) fn execute(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<Completed, Stop> {
        if let Some(operation) = self.string_operation(instruction) {
            let next = self.next_ip(instruction);
            return self.repeat(bus, &operation, next);
        }
        match instruction.mnemonic() {
            Mnemonic::Mov if is_segment_register(instruction, 0) => {
                self.load_segment_register(bus, instruction)?;
            }
            Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri => self.mov(bus, instruction)?,
            Mnemonic::Movzx => self.load_extended(bus, instruction, false)?,
            Mnemonic::Movsx | Mnemonic::Movsxd => self.load_extended(bus, instruction, true)?,
            Mnemonic::Movbe => {
                let width = self.width(instruction, 0)?;
                let destination = self.place(instruction, 0, AccessKind::Write)?;
                let source = self.place(instruction, 1, AccessKind::Read)?;
                let value = self.get(bus, source).swap_bytes() >> (64 - width.bits());
                self.put(bus, destination, value);
            }
            Mnemonic::Add => {
                self.binary(bus, instruction, |f, a, b, w| flags::add(f, a, b, false, w))?
            }
            Mnemonic::Adc => {
                self.binary(bus, instruction, |f, a, b, w| flags::add(f, a, b, true, w))?
            }
            Mnemonic::Sub => {
                self.binary(bus, instruction, |f, a, b, w| flags::sub(f, a, b, false, w))?
            }
            Mnemonic::Sbb => {
                self.binary(bus, instruction, |f, a, b, w| flags::sub(f, a, b, true, w))?
            }
            Mnemonic::And => {
                self.binary(bus, instruction, |f, a, b, w| flags::logic(f, a & b, w))?
            }
            Mnemonic::Or => {
                self.binary(bus, instruction, |f, a, b, w| flags::logic(f, a | b, w))?
            }
            Mnemonic::Xor => {
                self.binary(bus, instruction, |f, a, b, w| flags::logic(f, a ^ b, w))?
            }
            Mnemonic::Cmp => {
                self.compare(bus, instruction, |f, a, b, w| flags::sub(f, a, b, false, w))?
            }
            Mnemonic::Test => {
                self.compare(bus, instruction, |f, a, b, w| flags::logic(f, a & b, w))?
            }
            Mnemonic::Inc => self.unary(bus, instruction, flags::inc)?,
            Mnemonic::Dec => self.unary(bus, instruction, flags::dec)?,
            Mnemonic::Neg => {
                self.unary(bus, instruction, |f, a, w| flags::sub(f, 0, a, false, w))?
            }
            Mnemonic::Not => self.unary(bus, instruction, |rflags, a, w| Outcome {
                value: !a & w.mask(),
                rflags,
            })?,
            Mnemonic::Shl | Mnemonic::Sal => self.shift(bus, instruction, Shift::Left)?,
            Mnemonic::Shr => self.shift(bus, instruction, Shift::Right)?,
            Mnemonic::Sar => self.shift(bus, instruction, Shift::ArithmeticRight)?,
            Mnemonic::Rol => self.shift(bus, instruction, Shift::RotateLeft)?,
            Mnemonic::Ror => self.shift(bus, instruction, Shift::RotateRight)?,
            Mnemonic::Rcl => self.shift(bus, instruction, Shift::RotateLeftThroughCarry)?,
            Mnemonic::Rcr => self.shift(bus, instruction, Shift::RotateRightThroughCarry)?,
            Mnemonic::Bt => self.bit(bus, instruction, BitOperation::Test)?,
            Mnemonic::Bts => self.bit(bus, instruction, BitOperation::Set)?,
            Mnemonic::Btr => self.bit(bus, instruction, BitOperation::Reset)?,
            Mnemonic::Btc => self.bit(bus, instruction, BitOperation::Complement)?,
            Mnemonic::Xchg => self.xchg(bus, instruction)?,
            Mnemonic::Xadd => self.xadd(bus, instruction)?,
            Mnemonic::Cmpxchg => self.cmpxchg(bus, instruction)?,
            Mnemonic::Cmpxchg8b => self.cmpxchg8b(bus, instruction)?,
            Mnemonic::Cmpxchg16b => self.cmpxchg16b(bus, instruction)?,
            Mnemonic::Mul => self.multiply_accumulator(bus, instruction, false)?,
            Mnemonic::Imul if instruction.op_count() == 1 => {
                self.multiply_accumulator(bus, instruction, true)?;
            }
            Mnemonic::Imul => self.multiply(bus, instruction)?,
            Mnemonic::Push => self.push(bus, instruction)?,
            Mnemonic::Pop => self.pop(bus, instruction)?,
            Mnemonic::Call | Mnemonic::Jmp => return self.branch(bus, instruction),
            Mnemonic::Ret => return self.return_near(bus, instruction),
            Mnemonic::Leave => self.leave(bus, instruction)?,
            Mnemonic::Enter => self.enter(bus, instruction)?,
            Mnemonic::Div | Mnemonic::Idiv => self.divide(bus, instruction)?,
            Mnemonic::Shld | Mnemonic::Shrd => self.double_shift(bus, instruction)?,
            Mnemonic::Bsf => self.scan(bus, instruction, BitScan::Forward)?,
            Mnemonic::Bsr => self.scan(bus, instruction, BitScan::Reverse)?,
            Mnemonic::Tzcnt => self.scan(bus, instruction, BitScan::TrailingZeros)?,
            Mnemonic::Lzcnt => self.scan(bus, instruction, BitScan::LeadingZeros)?,
            Mnemonic::Popcnt => self.scan(bus, instruction, BitScan::Ones)?,
            Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
                self.load_far_pointer(bus, instruction)?;
            }
            Mnemonic::Lldt | Mnemonic::Ltr => self.load_system_segment(bus, instruction)?,
            Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => {
                self.store_system_word(bus, instruction)?;
            }
            Mnemonic::Lmsw => self.load_machine_status(bus, instruction)?,
            Mnemonic::Lgdt | Mnemonic::Lidt => self.load_table_register(bus, instruction)?,
            Mnemonic::Sgdt | Mnemonic::Sidt => self.store_table_register(bus, instruction)?,
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => {
                // There is no cache between a guest and its devices.
                self.place(instruction, 0, AccessKind::Read)?;
            }
            _ if Self::is_vector_move(instruction) => self.move_vector(bus, instruction)?,
            _ if instruction.condition_code() == ConditionCode::None => {
                self.compute(bus, instruction, bytes)?;
            }
            _ => self.conditional(bus, instruction)?,
        }
        let next = self.next_ip(instruction);
        self.cpu.set_rip(next);
        if matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
            && instruction.op0_register() == Register::SS
        {
            self.cpu.block_events_by_mov_ss();
        }
        Ok(Completed::Retired)
    }

    fn mov(&mut self, bus: &mut impl Bus, instruction: &Instruction) -> Result<(), Stop> {
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let source = self.place(instruction, 1, AccessKind::Read)?;
        let value = self.get(bus, source);
        self.put(bus, destination, value);
        Ok(())
    }

    fn load_extended(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        signed: bool,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 1)?;
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let source = self.place(instruction, 1, AccessKind::Read)?;
        let mut value = self.get(bus, source);
        if signed {
            value = width.sign_extend(value);
        }
        self.put(bus, destination, value);
        Ok(())
    }

    fn binary(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        compute: impl FnOnce(u64, u64, u64, Width) -> Outcome,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.writable_place(instruction, 0)?;
        let source = self.place(instruction, 1, AccessKind::Read)?;
        let a = self.get(bus, destination);
        let b = self.get(bus, source);
        let outcome = compute(self.rflags, a, b, width);
        self.put(bus, destination, outcome.value);
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    fn compare(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        compute: impl FnOnce(u64, u64, u64, Width) -> Outcome,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let left = self.place(instruction, 0, AccessKind::Read)?;
        let right = self.place(instruction, 1, AccessKind::Read)?;
        let a = self.get(bus, left);
        let b = self.get(bus, right);
        let outcome = compute(self.rflags, a, b, width);
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    fn unary(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        compute: impl FnOnce(u64, u64, Width) -> Outcome,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.writable_place(instruction, 0)?;
        let a = self.get(bus, destination);
        let outcome = compute(self.rflags, a, width);
        self.put(bus, destination, outcome.value);
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    fn shift(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        operation: Shift,
    ) -> Result<(), Stop> {
        let count = self.place(instruction, 1, AccessKind::Read)?;
        let count = self.get(bus, count) as u8;
        self.unary(bus, instruction, |rflags, a, width| {
            flags::shift(rflags, a, count, operation, width)
        })
    }

    fn bit(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        operation: BitOperation,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let kind = if operation == BitOperation::Test {
            AccessKind::Read
        } else {
            AccessKind::Write
        };
        let index = self.place(instruction, 1, AccessKind::Read)?;
        let place = if instruction.op0_kind() == OpKind::Memory {
            let (segment, mut offset) = self.effective_address(instruction, 0);
            if let Place::Register(register) = index {
                // A register's index reaches beyond the operand: the memory is a string of
                // bits (SDM vol. 2A, 3.1.1.9, and the page of BT).
                let index = width.sign_extend(self.register(register)) as i64;
                let element = index.div_euclid(i64::from(width.bits()));
                let distance = element.wrapping_mul(width.bytes() as i64);
                offset = offset.wrapping_add(distance as u64) & address_mask(instruction);
            }
            let span = self.span(segment, offset, width, kind)?;
            self.check_locked_span(instruction, span)?;
            Place::Memory(span)
        } else {
            self.place(instruction, 0, kind)?
        };
        let index = self.get(bus, index);
        let value = self.get(bus, place);
        let outcome = flags::bit(self.rflags, value, index, operation, width);
        if operation != BitOperation::Test {
            self.put(bus, place, outcome.value);
        }
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    fn xchg(&mut self, bus: &mut impl Bus, instruction: &Instruction) -> Result<(), Stop> {
        let left = self.writable_place(instruction, 0)?;
        let right = self.writable_place(instruction, 1)?;
        let a = self.get(bus, left);
        let b = self.get(bus, right);
        self.put(bus, left, b);
        self.put(bus, right, a);
        Ok(())
    }

    fn xadd(&mut self, bus: &mut impl Bus, instruction: &Instruction) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.writable_place(instruction, 0)?;
        let source = self.place(instruction, 1, AccessKind::Write)?;
        let a = self.get(bus, destination);
        let b = self.get(bus, source);
        let outcome = flags::add(self.rflags, a, b, false, width);
        self.put(bus, source, a);
        self.put(bus, destination, outcome.value);
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    fn cmpxchg(&mut self, bus: &mut impl Bus, instruction: &Instruction) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.writable_place(instruction, 0)?;
        let source = self.place(instruction, 1, AccessKind::Read)?;
        let old = self.get(bus, destination);
        let new = self.get(bus, source);
        let outcome = flags::sub(self.rflags, self.cpu.gpr(RAX), old, false, width);
        if outcome.value == 0 {
            self.put(bus, destination, new);
        } else {
            // The destination is written in any case (the page of CMPXCHG).
            self.put(bus, destination, old);
            set_part(self.cpu, RAX, old, width);
        }
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    /// Executes MUL and IMUL with one operand: RDX:RAX gets RAX times it.
    fn multiply_accumulator(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        signed: bool,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let source = self.place(instruction, 0, AccessKind::Read)?;
        let b = self.get(bus, source);
        let (low, high) = flags::multiply(self.rflags, self.cpu.gpr(RAX), b, signed, width);
        if width == Width::BYTE {
            set_part(self.cpu, RAX, high << 8 | low.value, Width::WORD);
        } else {
            set_part(self.cpu, RAX, low.value, width);
            set_part(self.cpu, RDX, high, width);
        }
        self.cpu.set_rflags(low.rflags);
        Ok(())
    }

    /// Executes IMUL with two or three operands.
    fn multiply(&mut self, bus: &mut impl Bus, instruction: &Instruction) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let left = instruction.op_count() - 2;
        let left = self.place(instruction, left, AccessKind::Read)?;
        let right = self.place(instruction, instruction.op_count() - 1, AccessKind::Read)?;
        let a = self.get(bus, left);
        let b = self.get(bus, right);
        let (product, _) = flags::multiply(self.rflags, a, b, true, width);
        self.put(bus, destination, product.value);
        self.cpu.set_rflags(product.rflags);
        Ok(())
    }

    /// Executes CMOVcc and SETcc: of all instructions that depend on a condition, just they have a
    /// memory operand (and one or two operands).
    fn conditional(&mut self, bus: &mut impl Bus, instruction: &Instruction) -> Result<(), Stop> {
        let Some(code) = (instruction.condition_code() as u8).checked_sub(1) else {
            return Err(Stop::Unsupported(Reason::NotImplemented));
        };
        let holds = flags::condition(self.rflags, code);
        let destination = match instruction.op_count() {
            2 => {
                let destination = self.place(instruction, 0, AccessKind::Write)?;
                // The source is read whatever the condition is, and a 32-bit destination
                // is zero-extended.
                let source = self.place(instruction, 1, AccessKind::Read)?;
                let new = self.get(bus, source);
                let value = if holds {
                    new
                } else {
                    self.get(bus, destination)
                };
                self.put(bus, destination, value);
                return Ok(());
            }
            1 if instruction.op0_kind() == OpKind::Memory => {
                self.place(instruction, 0, AccessKind::Write)?
            }
            _ => return Err(Stop::Unsupported(Reason::NotImplemented)),
        };
        self.put(bus, destination, holds.into());
        Ok(())
    }

    pub(super) fn next_ip(&self, instruction: &Instruction) -> u64 {
        match self.mode {
            Mode::Long => instruction.next_ip(),
            Mode::Protected32 => u64::from(instruction.next_ip32()),
            Mode::Real | Mode::Virtual8086 | Mode::Protected16 => {
                u64::from(instruction.next_ip16())
            }
        }
    }
}
