//! Exceptions that exit, NMIs of the host, and VMCALL.

use arch::msr::DebugCtl;
use arch::{Dr7Flags, ExceptionVector, gpr};
use vmx::event::{Event, EventKind};
use vmx::fields;

use crate::emulate::Cpu;
use crate::vcpu::{StopReason, Vcpu};

/// What VMCALL returns in RAX, whatever is asked: there are no hypercalls, and a guest that
/// tries one is to learn it the gentle way.
const NO_SUCH_HYPERCALL: u64 = u64::MAX;

impl Vcpu {
    pub(in crate::vcpu) fn handle_exception(
        &mut self,
        event: Option<Event>,
    ) -> Result<(), StopReason> {
        let Some(event) = event else {
            return Err(StopReason::UnexpectedExit(
                vmx::exit::basic::EXCEPTION_OR_NMI,
            ));
        };
        if event.kind == EventKind::Nmi {
            crate::machine::cpu::take_pending_nmi();
            return Ok(());
        }
        if event.vector == ExceptionVector::Debug as u8 {
            self.reflect_debug_exception(event.kind);
        }
        // SDM vol. 3C, 28.2.2: an exception during IRET's unblocking of NMIs leaves them
        // unblocked; the handler of the exception starts with them blocked again.
        const NMI_UNBLOCKING_DUE_TO_IRET: u32 = 1 << 12;
        let information = self
            .registers
            .vmcs
            .read(fields::EXIT_INTERRUPTION_INFORMATION);
        if information & NMI_UNBLOCKING_DUE_TO_IRET != 0 && self.being_delivered.is_none() {
            let state = self.registers.vmcs.read(fields::GUEST_INTERRUPTIBILITY);
            self.registers.vmcs.write(
                fields::GUEST_INTERRUPTIBILITY,
                state | super::super::registers::BLOCKED_BY_NMI,
            );
        }
        // The processor has decided that this one is to be delivered: double faults would
        // have been reported as such, except for the first exception that we intercepted.
        self.raise(event)
    }

    /// A #DB exit leaves DR6, DR7 and IA32_DEBUGCTL alone: do what the delivery would have done
    /// (SDM vol. 3C, 28.1; vol. 3B, 18.4.1).
    fn reflect_debug_exception(&mut self, kind: EventKind) {
        let vmcs = &mut self.registers.vmcs;
        let causes = vmcs.read(fields::EXIT_QUALIFICATION) & 0xe00f;
        let dr7 = vmcs.read(fields::GUEST_DR7);
        vmcs.write(
            fields::GUEST_DR7,
            dr7 & !Dr7Flags::GENERAL_DETECT_ENABLE.bits(),
        );
        let debugctl = vmcs.read(fields::GUEST_DEBUGCTL);
        vmcs.write(
            fields::GUEST_DEBUGCTL,
            debugctl & !(DebugCtl::LBR | DebugCtl::BTF).bits(),
        );
        // INT1 is no debug condition: it leaves DR6 as it is.
        if kind == EventKind::HardwareException {
            crate::vcpu::live_state::update_dr6(causes);
        }
    }

    pub(in crate::vcpu) fn handle_vmcall(&mut self) -> Result<(), StopReason> {
        if self.registers.cpl() != 0 {
            return self.raise(Event::INVALID_OPCODE);
        }
        self.registers.gpr.gpr[gpr::RAX] = NO_SUCH_HYPERCALL;
        self.registers.skip_instruction();
        Ok(())
    }
}
