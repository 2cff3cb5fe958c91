//! Exceptions that exit, and VMCALL.

use alloc::boxed::Box;

use arch::gpr::RAX;
use arch::msr::DebugCtl;
use arch::{Dr7Flags, ExceptionVector};
use devices::time::HostTicks;
use vmx::event::{Event, EventKind};

use crate::vcpu::backend::exit::InterceptedException;
use crate::vcpu::backend::{GuestCpu, Interruptibility};
use crate::vcpu::{StopReason, Vcpu};

/// The value that VMCALL returns in RAX, whatever is asked: there are no hypercalls, and a guest
/// that tries one is to learn it the gentle way.
const NO_SUCH_HYPERCALL: u64 = u64::MAX;

impl<C: GuestCpu> Vcpu<C> {
    pub(in crate::vcpu) fn handle_exception(
        &mut self,
        exception: InterceptedException,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        let Some(exception) = self.take_resume_point(exception, at) else {
            return Ok(());
        };
        let event = exception.event;
        if event.vector == ExceptionVector::MachineCheck as u8 {
            let check = self.cpu.take_host_machine_check();
            return Err(StopReason::MachineCheck(Box::new(check)));
        }
        if event.vector == ExceptionVector::Debug as u8 {
            self.reflect_debug_exception(event.kind, exception.debug_causes);
        }
        // SDM vol. 3C, 28.2.2: an exception during IRET's unblocking of NMIs leaves them
        // unblocked; the handler of the exception starts with them blocked again.
        if exception.nmi_unblocked && self.events.interrupted.is_none() {
            let state = self.cpu.interruptibility();
            self.cpu
                .set_interruptibility(state | Interruptibility::BLOCKED_BY_NMI);
        }
        // The processor has decided that this one is to be delivered: double faults would
        // have been reported as such, except for the first exception that we intercepted.
        self.raise(event)
    }

    /// Does what the delivery of #DB would have done, whose exit leaves DR6, DR7 and IA32_DEBUGCTL
    /// alone (SDM vol. 3C, 28.1; vol. 3B, 18.4.1).
    fn reflect_debug_exception(&mut self, kind: EventKind, causes: u64) {
        let dr7 = self.cpu.dr7();
        self.cpu
            .set_dr7(dr7 & !Dr7Flags::GENERAL_DETECT_ENABLE.bits());
        let debugctl = self.cpu.debugctl();
        self.cpu
            .set_debugctl(debugctl & !(DebugCtl::LBR | DebugCtl::BTF).bits());
        // INT1 is no debug condition: it leaves DR6 as it is.
        if kind == EventKind::HardwareException {
            self.cpu.add_to_dr6(causes);
        }
    }

    pub(in crate::vcpu) fn handle_hypercall(&mut self) -> Result<(), StopReason> {
        if self.cpu.cpl() != 0 {
            return self.raise(Event::INVALID_OPCODE);
        }
        self.cpu.set_gpr(RAX, NO_SUCH_HYPERCALL);
        self.cpu.skip_instruction();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;

    use arch::ExceptionVector;
    use devices::time::HostTicks;
    use vmx::event::{Event, EventKind};

    use crate::machine::machine_check::MachineCheck;
    use crate::vcpu::backend::exit::{Exit, InterceptedException};
    use crate::vcpu::backend::fake::Stay;
    use crate::vcpu::fixture::vcpu;
    use crate::vcpu::{RunExit, StopReason};

    #[test]
    fn a_machine_check_ends_the_guest_that_it_strikes() {
        let mut vcpu = vcpu();
        let event = Event {
            vector: ExceptionVector::MachineCheck as u8,
            kind: EventKind::HardwareException,
            error_code: None,
            instruction_length: 0,
        };
        vcpu.then(Stay::until(
            10,
            Exit::Exception(InterceptedException {
                event,
                nmi_unblocked: false,
                debug_causes: 0,
            }),
        ));
        assert_eq!(
            vcpu.run(HostTicks(u64::MAX)),
            RunExit::Stopped(StopReason::MachineCheck(Box::new(MachineCheck::NONE)))
        );
    }
}
