//! MOV to control registers that exits: bits that the guest does not own, and CR3 while
//! there are targets of suppression.

use arch::paging::CR3_NO_FLUSH;
use arch::{Cr0Flags, Cr4Flags, EferFlags};
use vmx::controls::Primary;
use vmx::event::Event;
use vmx::exit::CrAccess;
use vmx::fields;
use vmx::translation;

use crate::emulate::{AccessRights, Cpu, SegmentRegister};
use crate::guest_paging::{PagingRegisters, read_pdptes};
use crate::vcpu::control_registers::{Cr0Context, write_cr0};
use crate::vcpu::{StopReason, Vcpu};

impl Vcpu {
    pub(in crate::vcpu) fn handle_cr_access(&mut self, access: CrAccess) -> Result<(), StopReason> {
        match access {
            CrAccess::Write { register: 0, gpr } => {
                let value = self.operand(gpr);
                self.write_cr0(value)
            }
            CrAccess::Write { register: 3, gpr } => {
                let value = self.operand(gpr);
                self.observer.loaded_cr3 = value;
                self.write_cr3(value)
            }
            // CR4 exits only for bits that the guest is not to have, CR8 only for values
            // that the processor has checked... and never with the TPR shadow.
            CrAccess::Write { register: 4, .. } => self.raise(Event::GENERAL_PROTECTION),
            CrAccess::Write { .. } | CrAccess::Read { .. } => {
                Err(StopReason::UnexpectedExit(vmx::exit::basic::CR_ACCESS))
            }
            CrAccess::Clts => {
                let cr0 = self.registers.cr0();
                self.write_cr0(cr0 & !Cr0Flags::TASK_SWITCHED.bits())
            }
            CrAccess::Lmsw(operand) => {
                // LMSW sets PE but does not clear it.
                let cr0 = self.registers.cr0();
                let operand = u64::from(operand) & 0xf;
                self.write_cr0(cr0 & !0xe | operand)
            }
        }
    }

    /// The value of an operand, as wide as the mode has it.
    fn operand(&self, gpr: u8) -> u64 {
        let value = self.registers.gpr(usize::from(gpr));
        if self.registers.in_64_bit_mode() {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), StopReason> {
        /// The type of a busy TSS of 16 bits.
        const BUSY_TSS_16: u32 = 3;
        let registers = &mut self.registers;
        let context = Cr0Context {
            cr0: registers.cr0(),
            cr4: registers.cr4(),
            efer: registers.efer(),
            cs_long: registers
                .segment_rights(SegmentRegister::Cs)
                .contains(AccessRights::LONG),
            tr_16_bit: registers.segment_rights(SegmentRegister::Tr).bits() & 0xf == BUSY_TSS_16,
        };
        let Ok(write) = write_cr0(value, &context) else {
            return self.raise(Event::GENERAL_PROTECTION);
        };
        if write.loads_pdptes && !self.load_pdptes(self.cr3()) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        let paging_changed = (context.cr0 ^ write.visible) & Cr0Flags::PAGING.bits() != 0;
        let vmcs = &mut self.registers.vmcs;
        vmcs.write(fields::GUEST_CR0, write.real);
        vmcs.write(fields::CR0_READ_SHADOW, write.visible);
        if write.efer != context.efer {
            vmcs.write(fields::GUEST_EFER, write.efer);
            vmcs.set_ia32e_mode(write.efer & EferFlags::LONG_MODE_ACTIVE.bits() != 0);
        }
        if paging_changed {
            translation::invalidate_vpid(&self.capabilities.translation, self.vpid);
        }
        self.registers.skip_instruction();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), StopReason> {
        let cr4 = self.registers.cr4();
        let long = self.registers.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0;
        let pcids = long && cr4 & Cr4Flags::PCID.bits() != 0;
        let no_flush = pcids && value & CR3_NO_FLUSH != 0;
        let root = if pcids { value & !CR3_NO_FLUSH } else { value };
        if long && root >> self.registers.physical_address_bits != 0 {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        let pae = !long
            && self.registers.cr0() & Cr0Flags::PAGING.bits() != 0
            && cr4 & Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() != 0;
        if pae && !self.load_pdptes(root) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        self.registers.vmcs.write(fields::GUEST_CR3, root);
        if !no_flush {
            translation::invalidate_vpid_non_global(&self.capabilities.translation, self.vpid);
        }
        self.registers.skip_instruction();
        Ok(())
    }

    /// Loads the PDPTE registers from memory, as MOV to CR3 does under PAE paging. False if
    /// they cannot be: then nothing is loaded.
    fn load_pdptes(&mut self, cr3: u64) -> bool {
        let bits = self.registers.physical_address_bits;
        let pdptes = read_pdptes(&self.vm.ram, cr3, bits);
        if let Some(pdptes) = pdptes {
            self.registers.set_pdptes(pdptes);
        }
        pdptes.is_some()
    }

    /// Sets whether MOV to CR3 exits, and for which values not.
    pub(in crate::vcpu) fn watch_cr3(&mut self, watch: bool, exempt: &[u64]) {
        let mut primary = self.primary;
        primary.set(Primary::CR3_LOAD_EXITING, watch);
        if primary != self.primary {
            self.primary = primary;
            self.registers.vmcs.set_primary(self.capabilities, primary);
        }
        let room = (self.capabilities.cr3_targets as usize).min(4);
        let exempt = &exempt[..exempt.len().min(room)];
        for (field, &value) in [
            fields::CR3_TARGET_0,
            fields::CR3_TARGET_1,
            fields::CR3_TARGET_2,
            fields::CR3_TARGET_3,
        ]
        .into_iter()
        .zip(exempt)
        {
            self.registers.vmcs.write(field, value);
        }
        self.registers
            .vmcs
            .write(fields::CR3_TARGET_COUNT, exempt.len() as u32);
    }
}
