//! How software reaches the registers: as memory in xAPIC mode, as MSRs in x2APIC mode, or
//! through the virtualization hardware.

use arch::GeneralProtection;
use arch::apic::{Register, dfr, esr, icr, svr};

use super::base::Mode;
use super::{ApicBus, LocalApic};
use crate::time::Now;

impl LocalApic {
    /// Answers a read of `size` bytes (1, 2, 4 or 8) at `offset` of the register page.
    ///
    /// Registers are the first four bytes of each 16 (SDM vol. 3A, 11.4.1); whatever lies
    /// between reads as zero. Outside of xAPIC mode nobody answers, and the bus floats at
    /// ones.
    pub fn mmio_read(&mut self, now: Now, offset: u16, size: u8) -> u64 {
        let all = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        if self.mode != Mode::XApic {
            return all;
        }
        let register = Register::at(offset);
        if !register.in_xapic(self.config.cmci) {
            self.record_error(esr::ILLEGAL_REGISTER);
            return 0;
        }
        let value = u64::from(self.read_register(now, register));
        value >> (8 * u32::from(offset & 7)) & all & if offset & 8 == 0 { all } else { 0 }
    }

    /// Takes a write of the low `size` bytes of `value` at `offset` of the register page.
    ///
    /// Only aligned writes of four bytes are defined (SDM vol. 3A, 11.4.1): others change
    /// nothing, nor does any outside of xAPIC mode.
    pub fn mmio_write(
        &mut self,
        now: Now,
        offset: u16,
        size: u8,
        value: u64,
        bus: &mut impl ApicBus,
    ) {
        if self.mode != Mode::XApic || size != 4 || offset & 0xf != 0 {
            return;
        }
        let register = Register::at(offset);
        if register.in_xapic(self.config.cmci) {
            self.write_register(now, register, value as u32, bus);
        } else {
            self.record_error(esr::ILLEGAL_REGISTER);
        }
    }

    /// Answers a RDMSR of one of the MSRs from 0x800 to 0x8ff.
    ///
    /// # Errors
    /// Outside of x2APIC mode, for a register that does not exist there, and for one that
    /// cannot be read (SDM vol. 3A, 11.12.1.3).
    pub fn msr_read(&mut self, now: Now, msr: u32) -> Result<u64, GeneralProtection> {
        let register = self.x2apic_register(msr)?;
        match register {
            Register::EOI | Register::SELF_IPI => Err(GeneralProtection),
            Register::ICR_LOW => {
                Ok(u64::from(self.icr_high()) << 32 | u64::from(self.read_register(now, register)))
            }
            _ => Ok(u64::from(self.read_register(now, register))),
        }
    }

    /// Takes a WRMSR of one of the MSRs from 0x800 to 0x8ff.
    ///
    /// # Errors
    /// Outside of x2APIC mode, for a register that does not exist there or cannot be
    /// written, and for a value with reserved bits set (SDM vol. 3A, 11.12.1.3); nothing
    /// changes then.
    pub fn msr_write(
        &mut self,
        now: Now,
        msr: u32,
        value: u64,
        bus: &mut impl ApicBus,
    ) -> Result<(), GeneralProtection> {
        let register = self.x2apic_register(msr)?;
        let mut writable = u64::from(
            register
                .x2apic_writable(self.config.cmci)
                .ok_or(GeneralProtection)?,
        );
        if register == Register::ICR_LOW {
            writable |= u64::MAX << 32;
        }
        if value & !writable != 0 {
            return Err(GeneralProtection);
        }
        if register == Register::ICR_LOW {
            self.page()
                .write(Register::X2APIC_ICR_HIGH, (value >> 32) as u32);
        }
        self.write_register(now, register, value as u32, bus);
        Ok(())
    }

    fn x2apic_register(&self, msr: u32) -> Result<Register, GeneralProtection> {
        let register = Register::of_msr(msr).ok_or(GeneralProtection)?;
        if self.mode == Mode::X2Apic && register.in_x2apic(self.config.cmci) {
            Ok(register)
        } else {
            Err(GeneralProtection)
        }
    }

    /// Finishes a write that the hardware has already made to the page at `offset`: the
    /// answer to a VM exit "APIC write" (SDM vol. 3C, 30.4.3.3).
    pub fn after_virtualized_write(&mut self, now: Now, offset: u16, bus: &mut impl ApicBus) {
        let register = Register::at(offset);
        let value = self.page().read(register);
        self.write_register(now, register, value, bus);
    }

    fn read_register(&self, now: Now, register: Register) -> u32 {
        match register {
            Register::PPR => u32::from(self.processor_priority()),
            Register::APR => u32::from(self.port.arbitration_priority()),
            Register::CURRENT_COUNT => self.timer.current_count(now),
            _ => self.page().read(register),
        }
    }

    /// Takes a write in either mode: of a register that exists in it, without reserved bits or with
    /// such that are ignored. It must hold also when the page already has the value.
    #[inline]
    fn write_register(&mut self, now: Now, register: Register, value: u32, bus: &mut impl ApicBus) {
        match register {
            Register::EOI => self.end_of_interrupt(bus),
            Register::ICR_LOW => {
                let command = value & icr::DEFINED;
                self.page().write(Register::ICR_LOW, command);
                self.send_ipi(command, self.icr_high(), bus);
            }
            Register::SELF_IPI => self.send_self_ipi(value as u8),
            Register::TPR => self.set_task_priority(value as u8),
            Register::ICR_HIGH => self.page().write(Register::ICR_HIGH, value & 0xff00_0000),
            Register::INITIAL_COUNT => {
                self.expire(now);
                let counts = self.timer.set_initial_count(now, value);
                self.page()
                    .write(Register::INITIAL_COUNT, if counts { value } else { 0 });
            }
            _ => self.write_rare_register(now, register, value),
        }
    }

    fn write_rare_register(&mut self, now: Now, register: Register, value: u32) {
        match register {
            // The ID is not to be changed, as later processors have it.
            Register::ID => self.show_id(),
            Register::LDR => {
                self.page().write(Register::LDR, value & 0xff00_0000);
                self.publish();
            }
            Register::DFR => {
                self.page().write(Register::DFR, value | !dfr::MODEL);
                self.publish();
            }
            Register::SVR => self.write_svr(value),
            Register::ESR => self.write_esr(),
            Register::DIVIDE => {
                self.expire(now);
                self.timer.set_divide(now, value);
                self.page()
                    .write(Register::DIVIDE, value & arch::apic::divide::DEFINED);
            }
            _ => {
                if let Some(defined) = register.lvt_defined() {
                    self.write_lvt(now, register, defined, value);
                }
            }
        }
    }

    fn write_svr(&mut self, value: u32) {
        let value = value & svr::DEFINED;
        self.page().write(Register::SVR, value);
        let was_enabled = core::mem::replace(&mut self.software_enabled, value & svr::ENABLED != 0);
        if was_enabled != self.software_enabled {
            if was_enabled {
                self.mask_lvt();
            }
            self.publish();
        }
    }
}
