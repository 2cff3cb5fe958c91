//! Delivering events to the guest at VM entry: exceptions, NMIs, interrupts, and events
//! whose delivery an exit interrupted (SDM vol. 3C, 27.6 and 28.2.4).

use arch::RFlags;
use devices::lapic::Pending;
use vmx::controls::Primary;
use vmx::event::{Event, EventKind};
use vmx::fields;

use super::registers::{BLOCKED_BY_NMI, BLOCKED_BY_STI_OR_MOV_SS};
use super::{Vcpu, stop_reason::StopReason};
use crate::emulate::{Cpu, Fault};
use crate::vm::BoardHost;

impl Vcpu {
    /// Queues an exception for the next entry; one that meets another on its way becomes a
    /// double fault.
    ///
    /// # Errors
    /// If the guest is in a triple fault.
    pub(super) fn raise(&mut self, exception: Event) -> Result<(), StopReason> {
        let first = self.being_delivered.take();
        let event = match first {
            Some(first) => exception.after(first).ok_or(StopReason::TripleFault)?,
            None => exception,
        };
        if first.is_some_and(|first| first.kind == EventKind::Nmi) {
            // The NMI will not be delivered again, and its delivery has blocked NMIs.
            let vmcs = &mut self.registers.vmcs;
            let state = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
            vmcs.write(fields::GUEST_INTERRUPTIBILITY, state | BLOCKED_BY_NMI);
        }
        self.to_inject = Some(event);
        self.attention = true;
        Ok(())
    }

    /// Queues the fault of an emulated instruction.
    ///
    /// # Errors
    /// As [`Vcpu::raise`].
    pub(super) fn raise_fault(&mut self, fault: Fault) -> Result<(), StopReason> {
        if let Some(address) = fault.cr2 {
            write_cr2(address);
        }
        self.raise(Event::exception(fault.vector, fault.error_code))
    }

    /// Remembers the event whose delivery the exit interrupted, if any: it is delivered
    /// again unless the exit's handler raises an exception in its place.
    #[inline]
    pub(super) fn note_interrupted_delivery(&mut self) {
        let information = self.registers.vmcs.read(fields::IDT_VECTORING_INFORMATION);
        if information >> 31 != 0 {
            self.note_delivery(information);
        }
    }

    #[cold]
    fn note_delivery(&mut self, information: u32) {
        let vmcs = &mut self.registers.vmcs;
        self.being_delivered = Event::from_information(
            information,
            vmcs.read(fields::IDT_VECTORING_ERROR_CODE),
            vmcs.read(fields::EXIT_INSTRUCTION_LENGTH),
        );
        if self
            .being_delivered
            .is_some_and(|event| event.kind == EventKind::Nmi)
        {
            // Delivering it has blocked NMIs; delivering it again needs them open.
            let state = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
            vmcs.write(fields::GUEST_INTERRUPTIBILITY, state & !BLOCKED_BY_NMI);
        }
        self.attention = true;
    }

    /// Chooses what the next entry delivers, and asks for an exit when the guest can take
    /// what remains. The PIC is asked for its vector by `acknowledge_pic`.
    pub(super) fn prepare_events(&mut self) {
        // What an earlier call has injected, without an entry since, stays: VM exits clear it.
        let information = self
            .registers
            .vmcs
            .read(fields::ENTRY_INTERRUPTION_INFORMATION);
        let mut injected = information >> 31 != 0;
        let interrupted = self.being_delivered.take();
        if let Some(event) = self.to_inject.take().or(interrupted) {
            self.inject(event);
            injected = true;
        }

        let state = self.registers.vmcs.read(fields::GUEST_INTERRUPTIBILITY);
        let mut primary = self.primary;
        if self.lapic.nmi_pending() {
            if state & BLOCKED_BY_NMI != 0 {
                self.lapic.limit_nmis();
            } else if !injected
                && state & BLOCKED_BY_STI_OR_MOV_SS == 0
                && !self.registers.has_pending_debug_exception()
            {
                self.lapic.take_nmi();
                self.inject(Event::NMI);
                injected = true;
            }
        }
        primary.set(Primary::NMI_WINDOW_EXITING, self.lapic.nmi_pending());

        let mut wants_window = false;
        if self.virtual_delivery {
            self.update_virtual_interrupts();
            // Only what does not pass through IRR is left to us: the PIC's interrupts.
            if self.ext_int_pending() {
                wants_window = !self.try_inject_interrupt(injected, state, Pending::ExtInt);
            }
        } else if let Some(pending) = self.deliverable() {
            wants_window = !self.try_inject_interrupt(injected, state, pending);
            if !wants_window {
                wants_window = self.deliverable().is_some();
            }
        }
        if !self.virtual_delivery {
            self.update_tpr_threshold();
        }
        primary.set(Primary::INTERRUPT_WINDOW_EXITING, wants_window);
        if primary != self.primary {
            self.primary = primary;
            self.registers.vmcs.set_primary(self.capabilities, primary);
        }
    }

    /// The interrupt that the guest is to take next, by the LAPIC's priorities.
    fn deliverable(&self) -> Option<Pending> {
        self.lapic.pending()
    }

    /// Injects an interrupt if the guest can take one now. A pending debug trap comes first (SDM
    /// vol. 3A, table 7-2), and would be lost by the injection (SDM vol. 3C, 27.7.3).
    fn try_inject_interrupt(&mut self, injected: bool, state: u32, pending: Pending) -> bool {
        if injected
            || state & BLOCKED_BY_STI_OR_MOV_SS != 0
            || self.registers.rflags() & RFlags::INTERRUPT_FLAG.bits() == 0
            || self.registers.has_pending_debug_exception()
        {
            return false;
        }
        let vector = match pending {
            Pending::Vector(_) => self.lapic.acknowledge(),
            Pending::ExtInt => {
                self.lapic.take_ext_int();
                self.acknowledge_pic()
            }
        };
        self.inject(Event::interrupt(vector));
        true
    }

    fn inject(&mut self, event: Event) {
        let protected = self.registers.in_protected_mode();
        let vmcs = &mut self.registers.vmcs;
        if event.is_fault() {
            // The image of RFLAGS that a fault pushes has RF set (SDM vol. 3B, 18.3.1.1); what VM
            // entry pushes is the guest's RFLAGS as they are.
            let rflags = vmcs.read(fields::GUEST_RFLAGS);
            vmcs.write(fields::GUEST_RFLAGS, rflags | RFlags::RESUME_FLAG.bits());
        }
        if matches!(
            event.kind,
            EventKind::HardwareException | EventKind::PrivilegedSoftwareException
        ) {
            // The handler's first instruction is not in the shadow of the STI or MOV SS before
            // the exception; and with RFLAGS.TF set, VM entry refuses a shadow without a
            // pending single step (SDM vol. 3C, 27.3.1.5).
            let state = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
            if state & BLOCKED_BY_STI_OR_MOV_SS != 0 {
                vmcs.write(
                    fields::GUEST_INTERRUPTIBILITY,
                    state & !BLOCKED_BY_STI_OR_MOV_SS,
                );
            }
        }
        vmcs.write(
            fields::ENTRY_INTERRUPTION_INFORMATION,
            event.information(protected),
        );
        if let Some(code) = event.error_code {
            vmcs.write(fields::ENTRY_EXCEPTION_ERROR_CODE, code);
        }
        vmcs.write(fields::ENTRY_INSTRUCTION_LENGTH, event.instruction_length);
    }

    /// Whether something is pending that ends HLT.
    pub(super) fn wakes(&self) -> bool {
        let nmis_blocked =
            || self.registers.vmcs.read(fields::GUEST_INTERRUPTIBILITY) & BLOCKED_BY_NMI != 0;
        (self.lapic.nmi_pending() && !nmis_blocked())
            || self.to_inject.is_some()
            || (self.deliverable().is_some()
                && self.registers.rflags() & RFlags::INTERRUPT_FLAG.bits() != 0)
    }

    /// The interrupt that the 8259 pair has pending, if it is to be taken.
    fn ext_int_pending(&self) -> bool {
        self.lapic.pending() == Some(Pending::ExtInt)
    }

    /// The 8259 pair's answer to the processor's interrupt acknowledge: a vector.
    fn acknowledge_pic(&self) -> u8 {
        self.vm
            .board
            .lock()
            .chipset
            .acknowledge_pic(&mut BoardHost::new(&self.vm))
    }
}

/// Sets CR2, which the guest's page faults find there: the host takes none of its own.
fn write_cr2(address: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: CR2 is information for page-fault handlers; ours reads it right after a fault.
    unsafe {
        core::arch::asm!("mov cr2, {}", in(reg) address, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    let _ = address;
}
