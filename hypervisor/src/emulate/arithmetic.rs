//! Division, double-precision shifts, bit scans, and CMPXCHG8B and CMPXCHG16B.

use arch::ExceptionVector;
use iced_x86::{Instruction, Mnemonic};

use super::context::Context;
use super::cpu::{Cpu, Fault, RAX, RBX, RCX, RDX, SegmentRegister, set_part};
use super::flags::{self, BitScan};
use super::operand::Place;
use super::{Bus, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Executes DIV and IDIV: RDX:RAX divided by the operand, or AX by one of a byte. The status
    /// flags, which the manual leaves undefined, stay as they are.
    pub(super) fn divide(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let source = self.place(instruction, 0, AccessKind::Read)?;
        let divisor = self.get(bus, source);
        let (low, high) = if width == Width::BYTE {
            (self.cpu.gpr(RAX), self.cpu.gpr(RAX) >> 8)
        } else {
            (self.cpu.gpr(RAX), self.cpu.gpr(RDX))
        };
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        let Some((quotient, remainder)) = flags::divide(low, high, divisor, signed, width) else {
            return Err(Stop::Fault(Fault::without_code(ExceptionVector::Division)));
        };
        if width == Width::BYTE {
            set_part(self.cpu, RAX, remainder << 8 | quotient, Width::WORD);
        } else {
            set_part(self.cpu, RAX, quotient, width);
            set_part(self.cpu, RDX, remainder, width);
        }
        Ok(())
    }

    /// Executes SHLD and SHRD.
    pub(super) fn double_shift(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.writable_place(instruction, 0)?;
        let filler = self.place(instruction, 1, AccessKind::Read)?;
        let count = self.place(instruction, 2, AccessKind::Read)?;
        let a = self.get(bus, destination);
        let b = self.get(bus, filler);
        let count = self.get(bus, count) as u8;
        let left = instruction.mnemonic() == Mnemonic::Shld;
        let outcome = flags::double_shift(self.rflags, a, b, count, left, width);
        self.put(bus, destination, outcome.value);
        self.cpu.set_rflags(outcome.rflags);
        Ok(())
    }

    /// Executes BSF, BSR, TZCNT, LZCNT and POPCNT.
    pub(super) fn scan(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
        scan: BitScan,
    ) -> Result<(), Stop> {
        let width = self.width(instruction, 0)?;
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let source = self.place(instruction, 1, AccessKind::Read)?;
        let value = self.get(bus, source);
        let (found, rflags) = flags::scan(self.rflags, value, scan, width);
        if let Some(found) = found {
            self.put(bus, destination, found);
        }
        self.cpu.set_rflags(rflags);
        Ok(())
    }

    /// Executes CMPXCHG8B: EDX:EAX with the operand, ECX:EBX to it.
    pub(super) fn cmpxchg8b(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let destination = self.writable_place(instruction, 0)?;
        let low = |value| value & Width::DOUBLEWORD.mask();
        let pair = |cpu: &C, high, register| cpu.gpr(high) << 32 | low(cpu.gpr(register));
        let old = self.get(bus, destination);
        let equal = old == pair(self.cpu, RDX, RAX);
        if equal {
            let new = pair(self.cpu, RCX, RBX);
            self.put(bus, destination, new);
        } else {
            // The destination is written in any case.
            self.put(bus, destination, old);
            self.cpu.set_gpr(RAX, low(old));
            self.cpu.set_gpr(RDX, old >> 32);
        }
        self.set_zero_flag(equal);
        Ok(())
    }

    /// Executes CMPXCHG16B: RDX:RAX with the operand, RCX:RBX to it.
    pub(super) fn cmpxchg16b(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let (segment, offset) = self.effective_address(instruction, 0);
        let half = |context: &Self, segment: SegmentRegister, offset| {
            let span = context.span(segment, offset, Width::QUADWORD, AccessKind::Write)?;
            context.check_locked_span(instruction, span)?;
            Ok::<_, Stop>(span)
        };
        let low = half(self, segment, offset)?;
        if !low.is_aligned(16) {
            return Err(Stop::Fault(Fault::with_zero_code(
                ExceptionVector::GeneralProtection,
                self.mode,
            )));
        }
        let high = half(self, segment, offset.wrapping_add(8))?;
        let halves = [
            (Place::Memory(low), RAX, RBX),
            (Place::Memory(high), RDX, RCX),
        ];
        let old = halves.map(|(place, ..)| self.get(bus, place));
        let equal =
            (old.iter().zip(halves)).all(|(old, (_, expected, _))| *old == self.cpu.gpr(expected));
        for (old, (place, expected, new)) in old.into_iter().zip(halves) {
            if equal {
                let new = self.cpu.gpr(new);
                self.put(bus, place, new);
            } else {
                self.put(bus, place, old);
                self.cpu.set_gpr(expected, old);
            }
        }
        self.set_zero_flag(equal);
        Ok(())
    }

    /// Sets or clears ZF alone.
    fn set_zero_flag(&mut self, on: bool) {
        let zero = if on { flags::ZF } else { 0 };
        self.cpu.set_rflags(self.rflags & !flags::ZF | zero);
    }
}
