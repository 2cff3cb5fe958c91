//! RDMSR and WRMSR of what does not pass through: an allow-list, and #GP for the rest.

use arch::gpr::RCX;
use arch::{GeneralProtection, msr};
use devices::lapic::LocalApic;
use devices::time::{HostTicks, Now, TimerTicks};
use vmx::bitmaps::MsrAccess;

use crate::msr::check_debugctl;
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::control_registers::write_efer;
use crate::vcpu::{StopReason, Vcpu};
use crate::vm::requests::Requests;

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
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => self.with_devices(at, |_, devices| {
                devices.read_lapic(|lapic, now| lapic.msr_read(now, number))
            }),
            msr::IA32_APIC_BASE => Ok(self.lapic.apic_base().bits()),
            msr::IA32_TSC_ADJUST => Ok(self.time.tsc.adjust()),
            msr::IA32_TIME_STAMP_COUNTER => {
                Ok(self.time.tsc.read(self.vm.board.lock().clock.now(at)))
            }
            msr::IA32_DEBUGCTL => Ok(self.cpu.debugctl()),
            msr::IA32_TSC_DEADLINE => {
                Ok(self.with_devices(at, |_, devices| devices.read_lapic(LocalApic::tsc_deadline)))
            }
            msr::IA32_EFER => Ok(self.cpu.efer()),
            msr::IA32_SPEC_CTRL if self.spec_ctrl.exists() => Ok(self.cpu.spec_ctrl()),
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
                let now = self.vm.board.lock().clock.now(at);
                self.move_timer(now, |lapic| lapic.set_tsc_deadline(now, value));
                Ok(())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let result = self.with_devices(at, |_, devices| {
                    let now = devices.now;
                    let (lapic, mut messages) = devices.lapic();
                    lapic.msr_write(now, number, value, &mut messages)
                });
                self.follow_apic_enable();
                result
            }
            msr::IA32_TSC_ADJUST => {
                self.time.tsc.set_adjust(value);
                self.tsc_moved(at);
                Ok(())
            }
            msr::IA32_TIME_STAMP_COUNTER => {
                let now = self.vm.board.lock().clock.now(at);
                self.time.tsc.write(now, value);
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
                self.time.tsc.set_aux(value)?;
                self.cpu.set_tsc_aux(value);
                Ok(())
            }
            msr::IA32_SPEC_CTRL => {
                let without_exits = self.spec_ctrl.write(value)?;
                if without_exits {
                    self.cpu.set_msr_exits(number, MsrAccess::Read, false);
                    self.cpu.set_msr_exits(number, MsrAccess::Write, false);
                }
                self.cpu.set_spec_ctrl(value, without_exits);
                Ok(())
            }
            _ => self.msrs.write(number, value),
        }
    }

    /// Follows a write to the guest's TSC: RDTSC shows it, and an armed deadline moves with it.
    fn tsc_moved(&mut self, at: HostTicks) {
        let board = self.vm.board.lock();
        let scaling = self.time.tsc.scaling(board.clock.tsc_scaling());
        self.cpu.set_tsc_offset(scaling.offset);
        let now = board.clock.now(at);
        drop(board);
        let adjust = self.time.tsc.adjust();
        if self.lapic.next_deadline().is_some() {
            self.move_timer(now, |lapic| lapic.set_tsc_offset(now, adjust));
        } else {
            // Only a deadline depends on it.
            self.lapic.set_tsc_offset(now, adjust);
        }
    }

    /// Has the LAPIC's timer be due at another time by `change`, at `now`.
    fn move_timer(&mut self, now: Now, change: impl FnOnce(&mut LocalApic)) {
        let was_due = |deadline: TimerTicks| deadline <= now.timer;
        let expired = self.lapic.next_deadline().is_some_and(was_due);
        change(&mut self.lapic);
        self.pending |= Requests::TIMERS;
        // A deadline in the past has expired at once.
        if expired || self.lapic.next_deadline().is_none() {
            self.pending |= Requests::EVENT;
        }
    }
}

#[cfg(test)]
mod tests {
    use arch::gpr::{RAX, RCX, RDX};
    use arch::msr::{IA32_SPEC_CTRL, SpecCtrl};
    use vmx::bitmaps::MsrAccess;
    use vmx::event::Event;

    use crate::msr::speculation::SpecCtrlMsr;
    use crate::vcpu::Vcpu;
    use crate::vcpu::backend::GuestCpu;
    use crate::vcpu::backend::exit::Exit;
    use crate::vcpu::backend::fake::{FakeCpu, Stay};
    use crate::vcpu::fixture::vcpu;

    /// A VCPU whose guest may have these bits in IA32_SPEC_CTRL.
    fn vcpu_with(spec_ctrl: SpecCtrl) -> Vcpu<FakeCpu> {
        let mut vcpu = vcpu();
        vcpu.spec_ctrl = SpecCtrlMsr::new(spec_ctrl);
        vcpu
    }

    /// The guest writes `value` to IA32_SPEC_CTRL, or reads it.
    fn access(exit: Exit, value: u64) -> Stay {
        Stay::until(10, exit).having(move |cpu| {
            cpu.gprs[RCX] = u64::from(IA32_SPEC_CTRL);
            cpu.gprs[RAX] = value;
            cpu.gprs[RDX] = 0;
        })
    }

    #[test]
    fn what_a_guest_writes_to_spec_ctrl_is_there_while_it_runs() {
        let mut vcpu = vcpu_with(SpecCtrl::IBRS | SpecCtrl::SSBD);
        vcpu.then(access(Exit::Wrmsr, SpecCtrl::SSBD.bits()));
        assert_eq!(vcpu.entry_after_script().event, None);
        assert_eq!(vcpu.cpu.spec_ctrl(), SpecCtrl::SSBD.bits());
        vcpu.then(access(Exit::Rdmsr, 0));
        assert_eq!(vcpu.entry_after_script().event, None);
        assert_eq!(vcpu.cpu.gprs[RAX], SpecCtrl::SSBD.bits());
    }

    #[test]
    fn spec_ctrl_faults_where_it_is_not_there_and_for_bits_that_are_not() {
        for (allowed, exit, value) in [
            (SpecCtrl::empty(), Exit::Wrmsr, 0),
            (SpecCtrl::empty(), Exit::Rdmsr, 0),
            (SpecCtrl::IBRS, Exit::Wrmsr, SpecCtrl::SSBD.bits()),
        ] {
            let mut vcpu = vcpu_with(allowed);
            vcpu.then(access(exit, value));
            let event = vcpu.entry_after_script().event;
            assert_eq!(event, Some(Event::GENERAL_PROTECTION), "{allowed:?}");
            assert_eq!(vcpu.cpu.spec_ctrl(), 0);
        }
    }

    #[test]
    fn a_guest_that_writes_spec_ctrl_at_each_system_call_soon_does_so_without_exits() {
        let mut vcpu = vcpu_with(SpecCtrl::IBRS);
        let exits = |vcpu: &Vcpu<FakeCpu>| vcpu.cpu.msr_exits(IA32_SPEC_CTRL, MsrAccess::Write);
        vcpu.then(access(Exit::Wrmsr, 1));
        vcpu.entry_after_script();
        assert!(exits(&vcpu));
        for _ in 0..100 {
            vcpu.then(access(Exit::Wrmsr, 1));
            vcpu.then(access(Exit::Wrmsr, 0));
        }
        vcpu.entry_after_script();
        assert!(!exits(&vcpu));
    }
}
