//! RDMSR and WRMSR of what does not pass through: an allow-list, and #GP for the rest.

use arch::gpr::RCX;
use arch::{GeneralProtection, msr};
use devices::time::HostTicks;

use crate::msr::check_debugctl;
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::control_registers::write_efer;
use crate::vcpu::{StopReason, Vcpu};

impl<C: GuestCpu> Vcpu<C> {
    #[inline]
    pub(in crate::vcpu) fn handle_rdmsr(&mut self, at: HostTicks) -> Result<(), StopReason> {
        match self.read_msr(self.cpu.gpr(RCX) as u32, at) {
            Ok(value) => {
                self.cpu.set_edx_eax(value);
                self.cpu.skip_instruction();
                Ok(())
            }
            Err(error) => self.raise(error.into()),
        }
    }

    #[inline]
    pub(in crate::vcpu) fn handle_wrmsr(&mut self, at: HostTicks) -> Result<(), StopReason> {
        let value = self.cpu.edx_eax();
        match self.write_msr(self.cpu.gpr(RCX) as u32, value, at) {
            Ok(()) => {
                self.cpu.skip_instruction();
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
            msr::IA32_DEBUGCTL => Ok(self.cpu.debugctl()),
            msr::IA32_TSC_DEADLINE => {
                Ok(self.with_devices(at, |_, devices| devices.lapic.tsc_deadline(devices.now)))
            }
            msr::IA32_EFER => Ok(self.cpu.efer()),
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
                let (efer, cr0) = (self.cpu.efer(), self.cpu.cr0());
                let allowed = self.vm.cpuid.limits().efer;
                self.cpu.set_efer(write_efer(value, efer, cr0, allowed)?);
                Ok(())
            }
            msr::IA32_DEBUGCTL => {
                check_debugctl(value)?;
                self.cpu.set_debugctl(value);
                Ok(())
            }
            // The processor takes what its own IA32_TSC_AUX takes, which need not be what
            // the architecture has.
            msr::IA32_TSC_AUX if self.vm.cpuid.limits().tsc_aux => {
                self.tsc.set_aux(value)?;
                self.cpu.set_tsc_aux(value);
                Ok(())
            }
            _ => self.msrs.write(number, value),
        }
    }

    /// The guest's TSC has been set: RDTSC shows it, and an armed deadline moves with it.
    fn tsc_moved(&mut self, at: HostTicks) {
        let board = self.vm.board.lock();
        let scaling = self.tsc.scaling(board.clock.tsc_scaling());
        self.cpu.set_tsc_offset(scaling.offset);
        self.lapic
            .set_tsc_offset(board.clock.now(at), self.tsc.adjust());
        drop(board);
        // Only a TSC deadline depends on it.
        self.attention |= self.lapic.next_deadline().is_some();
    }
}
