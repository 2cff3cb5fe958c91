//! Task switches, which the processor leaves to us whole.

use arch::{Dr6Flags, ExceptionVector};
use vmx::event::{Event, EventKind};

use crate::task_switch::{Cause, Request, SwitchError, switch_task};
use crate::vcpu::backend::exit::{TaskSwitch, TaskSwitchSource};
use crate::vcpu::backend::{GuestCpu, Interruptibility, TlbFlush};
use crate::vcpu::{StopReason, Vcpu};
use crate::vm::requests::Requests;

impl<C: GuestCpu> Vcpu<C> {
    pub(in crate::vcpu) fn handle_task_switch(
        &mut self,
        task: TaskSwitch,
    ) -> Result<(), StopReason> {
        let event = self.events.interrupted;
        let (cause, length) = match (task.source, event) {
            (TaskSwitchSource::Call, _) => (Cause::Call, self.cpu.instruction_length()),
            (TaskSwitchSource::Iret, _) => (Cause::Iret, self.cpu.instruction_length()),
            (TaskSwitchSource::Jump, _) => (Cause::Jump, self.cpu.instruction_length()),
            (TaskSwitchSource::Event, Some(event)) => (cause_of(event), event.instruction_length),
            (TaskSwitchSource::Event, None) => return Err(self.unexpected_exit()),
        };
        let request = Request {
            selector: task.selector,
            cause,
            return_rip: self.cpu.rip().wrapping_add(length.into()),
        };
        let cr3 = self.cpu.cr3();
        let result = switch_task(&mut self.cpu, &self.vm.ram, &request);
        if self.cpu.cr3() != cr3 {
            self.cpu.flush_tlb(TlbFlush::NonGlobal);
        }
        self.pending |= Requests::EVENT;
        match result {
            Ok(switched) => {
                // The new task runs: the event has been delivered.
                self.events.interrupted = None;
                self.block_nmis(cause, event);
                if switched.debug_trap {
                    self.cpu.add_to_dr6(Dr6Flags::SWITCH.bits());
                    self.raise(Event::exception(ExceptionVector::Debug, None))?;
                }
                Ok(())
            }
            Err(SwitchError::Fault(fault)) => self.raise_fault(fault),
            Err(SwitchError::NotRam(not_ram)) => Err(StopReason::NotRam(not_ram)),
        }
    }

    /// Blocks NMIs after an NMI, and unblocks them after IRET, as without a switch of tasks.
    fn block_nmis(&mut self, cause: Cause, event: Option<Event>) {
        let state = self.cpu.interruptibility();
        let new = match cause {
            Cause::Iret => state - Interruptibility::BLOCKED_BY_NMI,
            Cause::Event { .. } if event.is_some_and(|event| event.kind == EventKind::Nmi) => {
                state | Interruptibility::BLOCKED_BY_NMI
            }
            _ => return,
        };
        self.cpu.set_interruptibility(new);
    }
}

fn cause_of(event: Event) -> Cause {
    Cause::Event {
        error_code: event.error_code,
        external: !matches!(
            event.kind,
            EventKind::SoftwareInterrupt | EventKind::SoftwareException
        ),
    }
}
