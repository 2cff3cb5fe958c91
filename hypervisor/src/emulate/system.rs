//! Instructions on the registers of the system: descriptor tables, LDT, task and machine status (SDM vol. 2A,
//! LGDT/LIDT, LLDT, LMSW; vol. 2B, LTR, SGDT, SIDT, SLDT, SMSW, STR).

use arch::{Cr4Flags, EferFlags, ExceptionVector};
use iced_x86::{Code, Instruction, Mnemonic};
use vmx::segment::DescriptorTable;

use super::context::Context;
use super::cpu::{AccessRights, Cpu, Fault, Mode, Segment, SegmentRegister};
use super::descriptor::{BUSY, Descriptor, TABLE_INDICATOR, find, is_null};
use super::segments::selector_fault;
use super::{Bus, Stop};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// The type of an LDT.
const LDT: u32 = 2;
/// The types of a TSS that is not busy: of 16 bits, and of 32 or, in IA-32e mode, 64.
const AVAILABLE_TSS_16: u32 = 1;
const AVAILABLE_TSS: u32 = 9;

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Returns whether the processor is in IA-32e mode: 64-bit or compatibility mode.
    pub(super) fn is_ia32e(&self) -> bool {
        self.cpu.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0
    }

    /// Refuses to do anywhere but at CPL 0 what is privileged.
    fn check_privilege(&self) -> Result<(), Stop> {
        // In virtual-8086 mode the CPL is 3.
        if self.mode == Mode::Virtual8086 || self.cpu.cpl() != 0 {
            return Err(self.general_protection());
        }
        Ok(())
    }

    /// Refuses what CR4.UMIP keeps from user mode.
    fn check_user_mode_prevention(&self) -> Result<(), Stop> {
        if self.cpu.cr4() & Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION.bits() != 0
            && (self.mode == Mode::Virtual8086 || self.cpu.cpl() != 0)
        {
            return Err(self.general_protection());
        }
        Ok(())
    }

    /// Refuses what there is no use for without descriptors.
    fn check_has_descriptors(&self) -> Result<(), Stop> {
        if self.has_descriptors() {
            Ok(())
        } else {
            Err(Stop::Fault(Fault::without_code(
                ExceptionVector::InvalidOpcode,
            )))
        }
    }

    /// Executes LLDT and LTR.
    pub(super) fn load_system_segment(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        self.check_has_descriptors()?;
        self.check_privilege()?;
        let is_task = instruction.mnemonic() == Mnemonic::Ltr;
        let source = self.place(instruction, 0, AccessKind::Read)?;
        let selector = self.get(bus, source) as u16;
        if is_null(selector) {
            if is_task {
                return Err(self.general_protection());
            }
            let nothing = Segment {
                selector,
                base: 0,
                limit: 0,
                rights: AccessRights::UNUSABLE,
            };
            self.cpu.set_segment(SegmentRegister::Ldtr, nothing);
            return Ok(());
        }
        let mut descriptor = self.system_descriptor(bus, selector)?;
        let fits = match descriptor.system_type() {
            Some(LDT) => !is_task,
            Some(AVAILABLE_TSS) => is_task,
            Some(AVAILABLE_TSS_16) => is_task && !self.is_ia32e(),
            _ => false,
        };
        if !fits {
            return Err(selector_fault(ExceptionVector::GeneralProtection, selector));
        }
        if !descriptor.is_present() {
            return Err(selector_fault(ExceptionVector::SegmentNotPresent, selector));
        }
        let register = if is_task {
            let busy = AccessRights::from_bits_retain(BUSY);
            self.set_access_bits(bus, &mut descriptor, busy)?;
            SegmentRegister::Tr
        } else {
            SegmentRegister::Ldtr
        };
        self.cpu.set_segment(register, descriptor.segment(selector));
        Ok(())
    }

    /// Reads the descriptor of a system segment in the GDT: of 16 bytes in IA-32e mode (SDM vol. 3A, 3.5.2).
    fn system_descriptor(&self, bus: &mut impl Bus, selector: u16) -> Result<Descriptor, Stop> {
        let invalid = || selector_fault(ExceptionVector::GeneralProtection, selector);
        if selector & TABLE_INDICATOR != 0 {
            return Err(invalid());
        }
        if !self.is_ia32e() {
            return self.descriptor(bus, selector)?.ok_or_else(invalid);
        }
        let linear = find(self.cpu, selector, 16).ok_or_else(invalid)?;
        let low = self.read_system_quadword(bus, linear)?;
        let high = self.read_system_quadword(bus, linear.wrapping_add(8))?;
        let high = u64::from_le_bytes(high);
        let mut descriptor = Descriptor::decode(self.wrap(linear), low);
        descriptor.base |= high << 32;
        // The type of the upper half is zero, or it would be a descriptor of its own.
        if high >> 40 & 0x1f != 0 || !self.is_canonical(descriptor.base) {
            return Err(invalid());
        }
        Ok(descriptor)
    }

    /// Executes SLDT, STR and SMSW to memory.
    pub(super) fn store_system_word(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        let mnemonic = instruction.mnemonic();
        if mnemonic != Mnemonic::Smsw {
            self.check_has_descriptors()?;
        }
        self.check_user_mode_prevention()?;
        let destination = self.place(instruction, 0, AccessKind::Write)?;
        let value = match mnemonic {
            Mnemonic::Sldt => self.cpu.segment_selector(SegmentRegister::Ldtr).into(),
            Mnemonic::Str => self.cpu.segment_selector(SegmentRegister::Tr).into(),
            _ => self.cpu.cr0() & 0xffff,
        };
        self.put(bus, destination, value);
        Ok(())
    }

    /// Executes LMSW.
    pub(super) fn load_machine_status(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        self.check_privilege()?;
        let source = self.place(instruction, 0, AccessKind::Read)?;
        let value = self.get(bus, source);
        self.cpu.load_machine_status(value as u16);
        Ok(())
    }

    /// Executes LGDT and LIDT.
    pub(super) fn load_table_register(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        self.check_privilege()?;
        let (segment, offset) = self.effective_address(instruction, 0);
        let size = if self.mode == Mode::Long { 10 } else { 6 };
        let block = self.block(segment, offset, size, AccessKind::Read)?;
        let bytes = self.read_block(bus, &block);
        let mut base = [0; 8];
        base[..size - 2].copy_from_slice(&bytes[2..size]);
        let mut base = u64::from_le_bytes(base);
        if matches!(
            instruction.code(),
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16
        ) {
            base &= 0xff_ffff;
        }
        if self.mode == Mode::Long && !self.is_canonical(base) {
            return Err(self.general_protection());
        }
        let table = DescriptorTable {
            base,
            limit: u16::from_le_bytes([bytes[0], bytes[1]]).into(),
        };
        if instruction.mnemonic() == Mnemonic::Lgdt {
            self.cpu.set_gdtr(table);
        } else {
            self.cpu.set_idtr(table);
        }
        Ok(())
    }

    /// Executes SGDT and SIDT.
    pub(super) fn store_table_register(
        &mut self,
        bus: &mut impl Bus,
        instruction: &Instruction,
    ) -> Result<(), Stop> {
        self.check_user_mode_prevention()?;
        let (segment, offset) = self.effective_address(instruction, 0);
        let size = if self.mode == Mode::Long { 10 } else { 6 };
        let block = self.block(segment, offset, size, AccessKind::Write)?;
        let table = if instruction.mnemonic() == Mnemonic::Sgdt {
            self.cpu.gdtr()
        } else {
            self.cpu.idtr()
        };
        let mut bytes = [0; super::block::MAX_SIZE];
        bytes[..2].copy_from_slice(&(table.limit as u16).to_le_bytes());
        bytes[2..10].copy_from_slice(&table.base.to_le_bytes());
        self.write_block(bus, &block, &bytes);
        Ok(())
    }
}
