//! Task switches, which the processor leaves to us whole.

use arch::{Dr6Flags, ExceptionVector};
use vmx::event::{Event, EventKind};
use vmx::exit::TaskSwitch;
use vmx::{fields, translation};

use crate::emulate::Cpu;
use crate::guest_paging::PagingRegisters;
use crate::task_switch::{Cause, Request, SwitchError, switch_task};
use crate::vcpu::live_state::update_dr6;
use crate::vcpu::registers::BLOCKED_BY_NMI;
use crate::vcpu::{StopReason, Vcpu};

impl Vcpu {
    pub(in crate::vcpu) fn handle_task_switch(
        &mut self,
        task: TaskSwitch,
    ) -> Result<(), StopReason> {
        let event = self.being_delivered;
        let (cause, length) = match (task.source, event) {
            (0, _) => (Cause::Call, self.instruction_length()),
            (1, _) => (Cause::Iret, self.instruction_length()),
            (2, _) => (Cause::Jump, self.instruction_length()),
            (_, Some(event)) => (cause_of(event), event.instruction_length),
            (_, None) => return Err(StopReason::UnexpectedExit(vmx::exit::basic::TASK_SWITCH)),
        };
        let request = Request {
            selector: task.selector,
            cause,
            return_rip: self.registers.rip().wrapping_add(length.into()),
        };
        let cr3 = self.registers.cr3();
        let result = switch_task(&mut self.registers, &self.vm.ram, &request);
        if self.registers.cr3() != cr3 {
            translation::invalidate_vpid_non_global(&self.capabilities.translation, self.vpid);
        }
        self.attention = true;
        match result {
            Ok(switched) => {
                // The new task runs: the event has been delivered.
                self.being_delivered = None;
                self.block_nmis(cause, event);
                if switched.debug_trap {
                    update_dr6(Dr6Flags::SWITCH.bits());
                    self.raise(Event::exception(ExceptionVector::Debug, None))?;
                }
                Ok(())
            }
            Err(SwitchError::Fault(fault)) => self.raise_fault(fault),
            Err(SwitchError::NotRam(not_ram)) => Err(StopReason::NotRam(not_ram)),
        }
    }

    fn instruction_length(&self) -> u32 {
        self.registers.vmcs.read(fields::EXIT_INSTRUCTION_LENGTH)
    }

    /// An NMI blocks NMIs, and IRET unblocks them, as without a switch of tasks.
    fn block_nmis(&mut self, cause: Cause, event: Option<Event>) {
        let vmcs = &mut self.registers.vmcs;
        let state = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
        let new = match cause {
            Cause::Iret => state & !BLOCKED_BY_NMI,
            Cause::Event { .. } if event.is_some_and(|event| event.kind == EventKind::Nmi) => {
                state | BLOCKED_BY_NMI
            }
            _ => return,
        };
        vmcs.write(fields::GUEST_INTERRUPTIBILITY, new);
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
