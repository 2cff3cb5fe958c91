//! What each VM exit leads to. One line an exit; the longer answers have files of their own.
#![forbid(unsafe_code)]

mod apic;
mod control_registers;
mod cpuid;
mod exceptions;
#[cfg(test)]
mod fuzz;
mod io;
mod mmio;
mod msr;
mod task_switch;
mod time;
mod xsetbv;

use devices::time::HostTicks;
use vmx::event::Event;

use super::backend::exit::Exit;
use super::backend::{ExitReason, GuestCpu};
use super::bus::Devices;
use super::{Activity, StopReason, Vcpu};
use crate::vm::requests::Requests;

impl<C: GuestCpu> Vcpu<C> {
    /// Answers the exit of `reason`, which left the guest at host time `at`.
    ///
    /// # Errors
    /// If the VM has come to its end.
    #[inline]
    pub(super) fn handle(&mut self, reason: ExitReason, at: HostTicks) -> Result<(), StopReason> {
        match self.cpu.decode_exit(reason) {
            Exit::Cpuid => self.handle_cpuid(),
            Exit::Wrmsr => self.handle_wrmsr(at)?,
            Exit::Rdmsr => self.handle_rdmsr(at)?,
            Exit::Io(access) => self.handle_io(access, at)?,
            Exit::StringIo(access) => self.handle_string_io(access, at)?,
            Exit::TimeLimit => {
                self.pace.note_late(at.since(self.stay_limit));
                self.observer.sample_due = true;
            }
            Exit::InterruptWindow | Exit::NmiWindow | Exit::TprBelowThreshold => {
                self.pending |= Requests::EVENT;
            }
            Exit::Hlt => {
                self.cpu.skip_instruction();
                self.observer.sample_due = true;
                // The trap of a single step ends HLT at once.
                if !self.cpu.has_pending_debug_exception() {
                    self.activity = Activity::Halted;
                    // An event may be pending or a timer due already: HLT ends at once then.
                    self.pending |= Requests::EVENT | Requests::TIMERS;
                }
            }
            Exit::ApicWrite { offset } => self.handle_apic_write(offset, at),
            Exit::ApicAccess(access) => self.handle_apic_access(access, at)?,
            Exit::EndOfInterrupt { vector } => self.handle_end_of_interrupt(vector, at),
            Exit::ControlRegister(access) => self.handle_control_register(access)?,
            Exit::NestedPageFault(fault) => self.handle_nested_page_fault(fault, at)?,
            // The host's interrupt is taken as soon as the host lets it in.
            Exit::HostInterrupt => self.cpu.take_host_interrupt(),
            Exit::HostNmi => self.cpu.take_host_nmi(),
            Exit::Exception(exception) => self.handle_exception(exception, at)?,
            Exit::DebugRegister => {
                if !self.handle_debug_register() {
                    return Err(self.unexpected_exit());
                }
            }
            Exit::Hypercall => self.handle_hypercall()?,
            Exit::Xsetbv => self.handle_xsetbv()?,
            Exit::Rdtsc => self.handle_rdtsc(at, false),
            Exit::Rdtscp => self.handle_rdtsc(at, true),
            // Guests have no devices that see memory past the caches: nothing to write back.
            Exit::CacheInvalidation => self.cpu.skip_instruction(),
            Exit::Pause => self.cpu.skip_instruction(),
            Exit::UndefinedInstruction => self.raise(Event::INVALID_OPCODE)?,
            Exit::Rdpmc => self.raise(Event::GENERAL_PROTECTION)?,
            Exit::TripleFault => return Err(StopReason::TripleFault),
            Exit::TaskSwitch(task) => self.handle_task_switch(task)?,
            Exit::EntryFailure => {
                return Err(StopReason::EntryFailure {
                    number: reason.number(),
                    name: C::exit_name(reason),
                });
            }
            Exit::NestedPageTableInvalid(address) => {
                return Err(StopReason::NestedPageTableInvalid(address));
            }
            Exit::Unexpected => return Err(self.unexpected_exit()),
        }
        Ok(())
    }

    /// Locks the board and calls `access` with all devices at host time `at`.
    #[inline]
    pub(super) fn with_devices<R>(
        &mut self,
        at: HostTicks,
        access: impl FnOnce(&mut C, &mut Devices<'_>) -> R,
    ) -> R {
        let vm = &self.vm;
        let mut board = vm.board.lock();
        let now = board.clock.now(at);
        let lapic_deadline = self.lapic.next_deadline();
        let deadline_changes = board.chipset.deadline_changes();
        let mut devices = Devices::new(vm, &mut self.lapic, &mut board, now);
        let result = access(&mut self.cpu, &mut devices);
        self.pending |= devices.pending;
        let mut has_moved_deadline = deadline_changes != board.chipset.deadline_changes();
        let work = board.chipset.take_work();
        drop(board);
        if let Some(work) = work {
            has_moved_deadline |= vm.run_device_work(&work, at);
        }
        if lapic_deadline != self.lapic.next_deadline() {
            // It may have expired.
            self.pending |= Requests::TIMERS | Requests::EVENT;
        }
        if has_moved_deadline {
            // VCPU 0 keeps time for the chipset.
            if self.index == 0 {
                self.pending |= Requests::TIMERS;
            } else {
                vm.chipset_deadline_changed();
            }
        }
        result
    }

    /// Makes the reason to stop of a guest that came out for a reason that nothing of ours asks for.
    #[cold]
    fn unexpected_exit(&self) -> StopReason {
        let reason = self.cpu.exit_reason();
        StopReason::UnexpectedExit {
            number: reason.number(),
            name: C::exit_name(reason),
        }
    }
}
