//! RDMSR and WRMSR of what does not pass through: an allow-list, and #GP for the rest.

use arch::{EferFlags, GeneralProtection, msr};
use devices::time::HostTicks;
use vmx::fields;

use crate::guest_paging::PagingRegisters;
use crate::msr::check_debugctl;
use crate::vcpu::control_registers::write_efer;
use crate::vcpu::{StopReason, Vcpu};

impl Vcpu {
    #[inline]
    pub(in crate::vcpu) fn handle_rdmsr(&mut self, at: HostTicks) -> Result<(), StopReason> {
        match self.read_msr(self.registers.ecx(), at) {
            Ok(value) => {
                self.registers.gpr.set_edx_eax(value);
                self.registers.skip_instruction();
                Ok(())
            }
            Err(error) => self.raise(error.into()),
        }
    }

    #[inline]
    pub(in crate::vcpu) fn handle_wrmsr(&mut self, at: HostTicks) -> Result<(), StopReason> {
        let value = self.registers.gpr.edx_eax();
        match self.write_msr(self.registers.ecx(), value, at) {
            Ok(()) => {
                self.registers.skip_instruction();
                Ok(())
            }
            Err(error) => self.raise(error.into()),
        }
    }

    fn read_msr(&mut self, number: u32, at: HostTicks) -> Result<u64, GeneralProtection> {
        match number {
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                self.with_devices(at, |_, devices| devices.lapic.msr_read(devices.now, number))
            }
            msr::IA32_APIC_BASE => Ok(self.lapic.apic_base().bits()),
            msr::IA32_TSC_ADJUST => Ok(self.tsc.adjust()),
            msr::IA32_TIME_STAMP_COUNTER => Ok(self.tsc.read(self.vm.board.lock().clock.now(at))),
            msr::IA32_DEBUGCTL => Ok(self.registers.vmcs.read(fields::GUEST_DEBUGCTL)),
            msr::IA32_TSC_DEADLINE => {
                Ok(self.with_devices(at, |_, devices| devices.lapic.tsc_deadline(devices.now)))
            }
            msr::IA32_EFER => Ok(self.registers.efer()),
            _ => self.msrs.read(number),
        }
    }

    fn write_msr(
        &mut self,
        number: u32,
        value: u64,
        at: HostTicks,
    ) -> Result<(), GeneralProtection> {
        match number {
            msr::IA32_TSC_DEADLINE => {
                self.attention = true;
                self.with_devices(at, |_, devices| {
                    devices.lapic.set_tsc_deadline(devices.now, value);
                });
                Ok(())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                self.attention = true;
                let result = self.with_devices(at, |_, devices| {
                    let now = devices.now;
                    let (lapic, mut messages) = devices.lapic();
                    lapic.msr_write(now, number, value, &mut messages)
                });
                self.follow_apic_enable();
                result
            }
            msr::IA32_TSC_ADJUST => {
                self.tsc.set_adjust(value);
                self.tsc_moved(at);
                Ok(())
            }
            msr::IA32_TIME_STAMP_COUNTER => {
                let now = self.vm.board.lock().clock.now(at);
                self.tsc.write(now, value);
                self.tsc_moved(at);
                Ok(())
            }
            _ => self.write_rare_msr(number, value),
        }
    }

    /// Writes what guests write as they start, and hardly ever later.
    #[cold]
    #[inline(never)]
    fn write_rare_msr(&mut self, number: u32, value: u64) -> Result<(), GeneralProtection> {
        match number {
            msr::IA32_APIC_BASE => {
                self.lapic.set_apic_base(value)?;
                self.configure_apic();
                Ok(())
            }
            msr::IA32_EFER => {
                let registers = &mut self.registers;
                let efer = registers.efer();
                let allowed = self.vm.cpuid.limits().efer;
                let new = write_efer(value, efer, registers.cr0(), allowed)?;
                registers.vmcs.write(fields::GUEST_EFER, new);
                registers
                    .vmcs
                    .set_ia32e_mode(new & EferFlags::LONG_MODE_ACTIVE.bits() != 0);
                Ok(())
            }
            msr::IA32_DEBUGCTL => {
                check_debugctl(value)?;
                self.registers.vmcs.write(fields::GUEST_DEBUGCTL, value);
                Ok(())
            }
            // The processor takes what its own IA32_TSC_AUX takes, which need not be what
            // the architecture has.
            msr::IA32_TSC_AUX if self.vm.cpuid.limits().tsc_aux => {
                self.tsc.set_aux(value)?;
                // SAFETY: CPUID shows RDTSCP or RDPID only where the host has the MSR, which
                // holds the guest's value while the VCPU is loaded; the value is legal.
                unsafe { vmx::msr::write(msr::IA32_TSC_AUX, value) };
                Ok(())
            }
            _ => self.msrs.write(number, value),
        }
    }

    /// The guest's TSC has been set: RDTSC shows it, and an armed deadline moves with it.
    fn tsc_moved(&mut self, at: HostTicks) {
        let board = self.vm.board.lock();
        let offset = self.tsc.scaling(board.clock.tsc_scaling()).offset;
        self.registers.vmcs.write(fields::TSC_OFFSET, offset);
        self.lapic
            .set_tsc_offset(board.clock.now(at), self.tsc.adjust());
        drop(board);
        // Only a TSC deadline depends on it.
        self.attention |= self.lapic.next_deadline().is_some();
    }
}
