//! Delivering events to the guest at VM entry: exceptions, NMIs, interrupts, and events
//! whose delivery an exit interrupted (SDM vol. 3C, 27.6 and 28.2.4).
#![forbid(unsafe_code)]

use arch::RFlags;
use devices::lapic::{Highest, Pending};
use vmx::event::{Event, EventKind};

use super::backend::{GuestCpu, Interruptibility};
use super::{StopReason, Vcpu};
use crate::emulate::Fault;
use crate::machine::host_time::host_now;
use crate::vm::requests::Requests;

/// Events that the next entry delivers before whatever the local APIC has.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// An exception.
    pub(super) exception: Option<Event>,
    /// An event whose delivery the last exit interrupted: delivered again unless there is an
    /// exception, which takes its place.
    pub(super) interrupted: Option<Event>,
}

impl<C: GuestCpu> Vcpu<C> {
    /// Queues an exception for the next entry; one that meets another on its way becomes a
    /// double fault.
    ///
    /// # Errors
    /// If the guest is in a triple fault.
    pub(super) fn raise(&mut self, exception: Event) -> Result<(), StopReason> {
        let first = self.events.interrupted.take();
        let event = match first {
            Some(first) => exception.after(first).ok_or(StopReason::TripleFault)?,
            None => exception,
        };
        if first.is_some_and(|first| first.kind == EventKind::Nmi) {
            // The NMI will not be delivered again, and its delivery has blocked NMIs.
            let state = self.cpu.interruptibility();
            self.cpu
                .set_interruptibility(state | Interruptibility::BLOCKED_BY_NMI);
        }
        self.events.exception = Some(event);
        self.pending |= Requests::EVENT;
        Ok(())
    }

    /// Queues the fault of an emulated instruction.
    ///
    /// # Errors
    /// As [`Vcpu::raise`].
    pub(super) fn raise_fault(&mut self, fault: Fault) -> Result<(), StopReason> {
        if let Some(address) = fault.cr2 {
            self.cpu.set_cr2(address);
        }
        self.raise(Event::exception(fault.vector, fault.error_code))
    }

    /// Remembers the event whose delivery the exit interrupted, if any: it is delivered
    /// again unless the exit's handler raises an exception in its place.
    #[inline]
    pub(super) fn note_interrupted_delivery(&mut self) {
        if let Some(event) = self.cpu.interrupted_delivery() {
            self.note_delivery(event);
        }
    }

    #[cold]
    fn note_delivery(&mut self, event: Event) {
        self.events.interrupted = Some(event);
        if event.kind == EventKind::Nmi {
            // Delivering it has blocked NMIs; delivering it again needs them open.
            let state = self.cpu.interruptibility();
            self.cpu
                .set_interruptibility(state - Interruptibility::BLOCKED_BY_NMI);
        }
        self.pending |= Requests::EVENT;
    }

    /// Chooses what the next entry delivers, and asks for an exit when the guest can take
    /// what remains, or an interrupt if that `is_wanted`. `highest` are the LAPIC's vectors. The PIC is
    /// asked for its vector by `acknowledge_pic`.
    pub(super) fn prepare_events(&mut self, mut highest: Highest, is_wanted: bool) {
        // What an earlier call has injected, without an entry since, stays: VM exits clear it.
        let mut injected = self.cpu.is_injecting();
        let interrupted = self.events.interrupted.take();
        if let Some(event) = self.events.exception.take().or(interrupted) {
            self.inject(event);
            injected = true;
        }

        let state = self.cpu.interruptibility();
        if self.lapic.nmi_pending() {
            if state.contains(Interruptibility::BLOCKED_BY_NMI) {
                self.lapic.limit_nmis();
            } else if !injected
                && !state.intersects(Interruptibility::SHADOW)
                && !self.cpu.has_pending_debug_exception()
            {
                self.lapic.take_nmi();
                self.inject(Event::NMI);
                injected = true;
            }
        }
        let mut wants_window = false;
        if self.apic_virtualization.delivers_interrupts {
            // What does not pass through IRR is left to us: the PIC's interrupts. And so is what comes
            // where a breakpoint waits for the interrupted instruction: the manual has interrupts
            // before breakpoints (SDM vol. 3A, table 6-2), but there are processors that have not.
            match self.lapic.pending_of(highest) {
                Some(Pending::ExtInt) => {
                    wants_window = !self.try_inject_interrupt(injected, state, Pending::ExtInt);
                }
                Some(pending) if self.resume_point.is_watched() => {
                    let is_taken = self.try_inject_interrupt(injected, state, pending);
                    if is_taken {
                        highest = self.lapic.highest();
                    }
                }
                _ => {}
            }
            self.update_virtual_interrupts(highest);
        } else if let Some(pending) = self.lapic.pending_of(highest) {
            wants_window = !self.try_inject_interrupt(injected, state, pending);
            if !wants_window {
                wants_window = self.lapic.pending().is_some();
            }
        }
        if !self.apic_virtualization.delivers_interrupts {
            // The guest leaves when it lowers the TPR so far that the highest pending vector can
            // be delivered.
            self.cpu.set_tpr_threshold(self.lapic.tpr_threshold());
        }
        self.cpu
            .set_event_windows(wants_window || is_wanted, self.lapic.nmi_pending());
    }

    /// Injects an interrupt if the guest can take one now. A pending debug trap comes first (SDM
    /// vol. 3A, table 6-2), and would be lost by the injection (SDM vol. 3C, 27.7.3).
    fn try_inject_interrupt(
        &mut self,
        injected: bool,
        state: Interruptibility,
        pending: Pending,
    ) -> bool {
        if injected
            || state.intersects(Interruptibility::SHADOW)
            || self.cpu.rflags() & RFlags::INTERRUPT_FLAG.bits() == 0
            || self.cpu.has_pending_debug_exception()
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
        if event.is_fault() {
            // The image of RFLAGS that a fault pushes has RF set (SDM vol. 3B, 18.3.1.1); what VM
            // entry pushes is the guest's RFLAGS as they are.
            let rflags = self.cpu.rflags();
            self.cpu.set_rflags(rflags | RFlags::RESUME_FLAG.bits());
        }
        if matches!(
            event.kind,
            EventKind::HardwareException | EventKind::PrivilegedSoftwareException
        ) {
            // The handler's first instruction is not in the shadow of the STI or MOV SS before
            // the exception; and with RFLAGS.TF set, VM entry refuses a shadow without a
            // pending single step (SDM vol. 3C, 27.3.1.5).
            self.cpu.end_shadow();
        }
        self.cpu.inject(event);
    }

    /// Returns whether something is pending that ends HLT. `highest` are the LAPIC's vectors.
    pub(super) fn wakes(&self, highest: Highest) -> bool {
        let nmis_blocked = || {
            self.cpu
                .interruptibility()
                .contains(Interruptibility::BLOCKED_BY_NMI)
        };
        (self.lapic.nmi_pending() && !nmis_blocked())
            || self.events.exception.is_some()
            || (self.lapic.pending_of(highest).is_some()
                && self.cpu.rflags() & RFlags::INTERRUPT_FLAG.bits() != 0)
    }

    /// Returns the 8259 pair's answer to the processor's interrupt acknowledge: a vector. With that it
    /// hears its inputs again, and timers have deadlines that had none.
    fn acknowledge_pic(&mut self) -> u8 {
        self.pending |= Requests::TIMERS;
        self.vm
            .with_chipset(host_now(), |chipset, env| chipset.acknowledge_pic(env))
    }
}

#[cfg(test)]
mod tests;
