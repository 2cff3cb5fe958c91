//! MOV to control registers that exits: bits that the guest does not own, and CR3 while
//! there are targets of suppression.

use arch::paging::CR3_NO_FLUSH;
use arch::{Cr0Flags, Cr4Flags, EferFlags};
use vmx::event::Event;

use crate::emulate::{AccessRights, SegmentRegister};
use crate::guest_paging::read_pdptes;
use crate::vcpu::backend::exit::ControlRegisterAccess;
use crate::vcpu::backend::{GuestCpu, TlbFlush};
use crate::vcpu::control_registers::{Cr0Context, with_machine_status, write_cr0};
use crate::vcpu::{StopReason, Vcpu};

impl<C: GuestCpu> Vcpu<C> {
    pub(in crate::vcpu) fn handle_control_register(
        &mut self,
        access: ControlRegisterAccess,
    ) -> Result<(), StopReason> {
        match access {
            ControlRegisterAccess::Write { register: 0, gpr } => {
                let value = self.operand(gpr);
                self.write_cr0(value)
            }
            ControlRegisterAccess::Write { register: 3, gpr } => {
                let value = self.operand(gpr);
                self.observer.loaded_cr3 = Some(value);
                self.write_cr3(value)
            }
            // CR8 exits only for values that the processor has checked... and never with the
            // TPR shadow.
            ControlRegisterAccess::Write { register: 4, gpr } => {
                let value = self.operand(gpr);
                self.write_cr4(value)
            }
            ControlRegisterAccess::Write { .. } | ControlRegisterAccess::Read { .. } => {
                Err(self.unexpected_exit())
            }
            ControlRegisterAccess::Clts => {
                let cr0 = self.cpu.cr0();
                self.write_cr0(cr0 & !Cr0Flags::TASK_SWITCHED.bits())
            }
            ControlRegisterAccess::Lmsw(operand) => {
                let cr0 = self.cpu.cr0();
                self.write_cr0(with_machine_status(cr0, operand))
            }
        }
    }

    /// Returns the value of an operand, as wide as the mode has it.
    fn operand(&self, gpr: u8) -> u64 {
        let value = self.cpu.gpr(usize::from(gpr));
        if self.cpu.in_64_bit_mode() {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), StopReason> {
        /// The type of a busy TSS of 16 bits.
        const BUSY_TSS_16: u32 = 3;
        let cpu = &self.cpu;
        let context = Cr0Context {
            cr0: cpu.cr0(),
            cr4: cpu.cr4(),
            efer: cpu.efer(),
            cs_long: cpu
                .segment_rights(SegmentRegister::Cs)
                .contains(AccessRights::LONG),
            tr_16_bit: cpu.segment_rights(SegmentRegister::Tr).bits() & 0xf == BUSY_TSS_16,
        };
        let Ok(write) = write_cr0(value, &context) else {
            return self.raise(Event::GENERAL_PROTECTION);
        };
        if write.loads_pdptes && !self.load_pdptes(self.cpu.cr3()) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        let paging_changed = (context.cr0 ^ write.visible) & Cr0Flags::PAGING.bits() != 0;
        self.cpu.set_cr0(write.visible, write.real);
        if write.efer != context.efer {
            self.cpu.set_efer(write.efer);
        }
        if paging_changed {
            self.cpu.flush_tlb(TlbFlush::All);
        }
        self.cpu.skip_instruction();
        Ok(())
    }

    /// Answers a write of CR4, which exits only for bits that the guest is not to have, and for MCE, which it has in name only: it
    /// is set whatever the guest does, or else an error of the hardware would shut the machine down.
    fn write_cr4(&mut self, value: u64) -> Result<(), StopReason> {
        const MCE: u64 = Cr4Flags::MACHINE_CHECK_EXCEPTION.bits();
        let allowed = self.vm.cpuid.limits().cr4;
        let visible = self.cpu.cr4();
        if value & !allowed != 0 || (value ^ visible) & MCE == 0 {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        // The processor executes the instruction again, and checks all else itself.
        self.cpu.show_cr4(visible ^ MCE);
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), StopReason> {
        let cr4 = self.cpu.cr4();
        let long = self.cpu.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0;
        let pcids = long && cr4 & Cr4Flags::PCID.bits() != 0;
        let no_flush = pcids && value & CR3_NO_FLUSH != 0;
        let root = if pcids { value & !CR3_NO_FLUSH } else { value };
        if long && root >> self.cpu.physical_address_bits() != 0 {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        let pae = !long
            && self.cpu.cr0() & Cr0Flags::PAGING.bits() != 0
            && cr4 & Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() != 0;
        if pae && !self.load_pdptes(root) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        self.cpu.set_cr3(root, None);
        if !no_flush {
            self.cpu.flush_tlb(TlbFlush::NonGlobal);
        }
        self.cpu.skip_instruction();
        Ok(())
    }

    /// Loads the PDPTE registers from memory, as MOV to CR3 does under PAE paging. False if
    /// they cannot be: then nothing is loaded.
    fn load_pdptes(&mut self, cr3: u64) -> bool {
        let bits = self.cpu.physical_address_bits();
        let pdptes = read_pdptes(&self.vm.ram, cr3, bits);
        if let Some(pdptes) = pdptes {
            self.cpu.set_pdptes(pdptes);
        }
        pdptes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use arch::Cr4Flags;
    use vmx::event::Event;

    use crate::vcpu::backend::exit::{ControlRegisterAccess, Exit};
    use crate::vcpu::backend::fake::Stay;
    use crate::vcpu::fixture::vcpu;

    const MCE: u64 = Cr4Flags::MACHINE_CHECK_EXCEPTION.bits();
    const PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();

    #[test]
    fn a_guest_sees_machine_checks_switched_on_and_off_and_the_processor_does_the_rest() {
        let mut vcpu = vcpu();
        vcpu.cpu.gprs[3] = PAE | MCE;
        let rip = vcpu.cpu.rip;
        let write = Exit::ControlRegister(ControlRegisterAccess::Write {
            register: 4,
            gpr: 3,
        });
        vcpu.then(Stay::until(10, write));
        let entry = vcpu.entry_after_script();
        assert_eq!(entry.event, None);
        assert_eq!(vcpu.cpu.cr4, PAE | MCE);
        assert_eq!(vcpu.cpu.rip, rip, "the instruction is executed again");
    }

    #[test]
    fn a_bit_of_cr4_that_the_guest_does_not_have_is_refused() {
        let mut vcpu = vcpu();
        vcpu.cpu.gprs[3] = PAE | MCE | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
        let write = Exit::ControlRegister(ControlRegisterAccess::Write {
            register: 4,
            gpr: 3,
        });
        vcpu.then(Stay::until(10, write));
        let entry = vcpu.entry_after_script();
        assert_eq!(entry.event, Some(Event::GENERAL_PROTECTION));
        assert_eq!(vcpu.cpu.cr4, PAE);
    }
}
