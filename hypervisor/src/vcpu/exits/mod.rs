//! What each VM exit leads to. One line an exit; the longer answers have files of their own.

mod apic;
mod control_registers;
mod cpuid;
mod exceptions;
mod io;
mod mmio;
mod msr;
mod task_switch;
mod time;
mod xsetbv;

use devices::time::HostTicks;
use vmx::event::Event;
use vmx::exit::VmExit;

use super::bus::Devices;
use super::{Activity, StopReason, Vcpu};

impl Vcpu {
    /// Answers `exit`, which left the guest at host time `at`.
    ///
    /// # Errors
    /// If the VM has come to its end.
    #[inline]
    pub(super) fn handle(&mut self, exit: VmExit, at: HostTicks) -> Result<(), StopReason> {
        match exit {
            VmExit::Cpuid => self.handle_cpuid(),
            VmExit::Wrmsr => self.handle_wrmsr(at)?,
            VmExit::Rdmsr => self.handle_rdmsr(at)?,
            VmExit::Io(access) => self.handle_io(access, at)?,
            VmExit::PreemptionTimer => {
                self.pace.note_late(at.since(self.look_at));
                self.attention = true;
            }
            VmExit::InterruptWindow | VmExit::NmiWindow | VmExit::TprBelowThreshold => {
                self.attention = true;
            }
            VmExit::Hlt => {
                self.registers.skip_instruction();
                // The trap of a single step ends HLT at once.
                if !self.registers.has_pending_debug_exception() {
                    self.activity = Activity::Halted;
                }
            }
            VmExit::ApicWrite { offset } => self.handle_apic_write(offset, at),
            VmExit::ApicAccess(access) => self.handle_apic_access(access, at)?,
            VmExit::VirtualizedEoi { vector } => self.handle_virtualized_eoi(vector, at),
            VmExit::CrAccess(access) => self.handle_cr_access(access)?,
            VmExit::EptViolation(violation) => self.handle_ept_violation(violation, at)?,
            // The host's interrupt is taken as soon as the host lets it in.
            VmExit::ExternalInterrupt => crate::machine::cpu::take_pending_interrupts(),
            VmExit::ExceptionOrNmi(event) => self.handle_exception(event)?,
            VmExit::Vmcall => self.handle_vmcall()?,
            VmExit::Xsetbv => self.handle_xsetbv()?,
            VmExit::Rdtsc => self.handle_rdtsc(at, false),
            VmExit::Rdtscp => self.handle_rdtsc(at, true),
            // Guests have no devices that see memory past the caches: nothing to write back.
            VmExit::CacheInvalidation => self.registers.skip_instruction(),
            VmExit::Pause => self.registers.skip_instruction(),
            VmExit::UnknownInstruction => self.raise(Event::INVALID_OPCODE)?,
            VmExit::Rdpmc => self.raise(Event::GENERAL_PROTECTION)?,
            VmExit::TripleFault => return Err(StopReason::TripleFault),
            VmExit::TaskSwitch(task) => self.handle_task_switch(task)?,
            VmExit::EntryFailure { reason } => {
                return Err(StopReason::EntryFailure {
                    reason: reason.into(),
                    instruction: false,
                });
            }
            VmExit::EptMisconfiguration(address) => {
                return Err(StopReason::EptMisconfiguration(address));
            }
            VmExit::Invlpg(_) | VmExit::MovDr { .. } | VmExit::MonitorTrap => {
                return Err(StopReason::UnexpectedExit(self.exit_reason()));
            }
            VmExit::Unexpected { reason } => return Err(StopReason::UnexpectedExit(reason)),
        }
        Ok(())
    }

    /// Locks the board and calls `access` with all devices at host time `at`.
    #[inline]
    pub(super) fn with_devices<R>(
        &mut self,
        at: HostTicks,
        access: impl FnOnce(&mut super::Registers, &mut Devices<'_>) -> R,
    ) -> R {
        let vm = &self.vm;
        let mut board = vm.board.lock();
        let now = board.clock.now(at);
        let before = (self.index != 0).then(|| board.chipset.next_deadline());
        let mut devices = Devices {
            vm,
            lapic: &mut self.lapic,
            board: &mut board,
            now,
        };
        let result = access(&mut self.registers, &mut devices);
        if let Some(before) = before
            && before != board.chipset.next_deadline()
        {
            vm.chipset_deadline_changed();
        }
        result
    }

    fn exit_reason(&self) -> u16 {
        self.registers.vmcs.read(vmx::fields::EXIT_REASON) as u16
    }
}
