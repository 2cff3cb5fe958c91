//! Division, double-precision shifts and bit scans.

use iced_x86::{Instruction, Mnemonic};

use super::context::Context;
use super::cpu::{Cpu, Fault, RAX, RDX, set_part};
use super::flags::{self, BitScan};
use super::{Bus, Stop, Width};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// DIV and IDIV: RDX:RAX divided by the operand, or AX by one of a byte. The status flags,
    /// which the manual leaves undefined, stay as they are.
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
            return Err(Stop::Fault(Fault {
                vector: Fault::DIVIDE_ERROR,
                error_code: None,
                cr2: None,
            }));
        };
        if width == Width::BYTE {
            set_part(self.cpu, RAX, remainder << 8 | quotient, Width::WORD);
        } else {
            set_part(self.cpu, RAX, quotient, width);
            set_part(self.cpu, RDX, remainder, width);
        }
        Ok(())
    }

    /// SHLD and SHRD.
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

    /// BSF, BSR, TZCNT, LZCNT and POPCNT.
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

    /// SMSW to memory: the low word of CR0.
    pub(super) fn store_machine_status(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let status = self.cpu.cr0() & 0xffff;
        self.put(bus, destination, status);
        Ok(())
    }
}
