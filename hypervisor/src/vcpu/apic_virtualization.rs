//! How much of the local APIC the processor does: shadow of the TPR alone, or registers and
//! interrupt delivery too (SDM vol. 3C, ch. 30).
//!
//! The virtual-APIC page *is* the LAPIC's register page. With virtual-interrupt delivery, the
//! processor moves vectors from IRR to ISR and takes EOIs by itself; the LAPIC model keeps to
//! what the processor does not do. Without, all goes through the model, and the only thing
//! left to the processor is CR8.
#![forbid(unsafe_code)]

use arch::apic::{self, Register};
use arch::msr;
use devices::lapic::{Highest, Mode};
use vmx::bitmaps::MsrAccess;

use super::Vcpu;
use super::backend::{ApicAssistance, GuestCpu};
use crate::vm::requests::Requests;

/// Registers, besides ISR, TMR and IRR, that the processor reads from the virtual-APIC page as
/// well as the model would: those that x2APIC mode has on every model, but for the current count,
/// which is a function of time. A read of any other exits, as it may have to fault.
const X2APIC_READABLE: [Register; 15] = [
    Register::ID,
    Register::VERSION,
    Register::TPR,
    Register::PPR,
    Register::LDR,
    Register::SVR,
    Register::ESR,
    Register::ICR_LOW,
    Register::LVT_TIMER,
    Register::LVT_THERMAL,
    Register::LVT_PERFORMANCE,
    Register::LVT_LINT0,
    Register::LVT_LINT1,
    Register::LVT_ERROR,
    Register::INITIAL_COUNT,
];
/// Registers that the processor takes writes of.
const X2APIC_WRITABLE: [Register; 3] = [Register::TPR, Register::EOI, Register::SELF_IPI];

/// The state of the processor's virtualization of the local APIC.
#[derive(Debug)]
pub(super) struct ApicVirtualization {
    /// Whether it may do more than shadow the TPR.
    is_allowed: bool,
    /// Whether it delivers interrupts now.
    pub(super) delivers_interrupts: bool,
    /// Whether the LAPIC was enabled by software when the controls were last set.
    was_enabled: bool,
}

impl ApicVirtualization {
    /// Returns what it does after power-up, if it may do more later or not.
    pub(super) const fn new(is_allowed: bool) -> Self {
        Self {
            is_allowed,
            delivers_interrupts: false,
            was_enabled: false,
        }
    }
}

impl<C: GuestCpu> Vcpu<C> {
    /// Brings the controls in line with the LAPIC after an access to it that may have enabled
    /// or disabled it by software.
    #[inline]
    pub(super) fn follow_apic_enable(&mut self) {
        if self.lapic.is_software_enabled() != self.apic_virtualization.was_enabled {
            self.configure_apic();
        }
    }

    /// Brings the controls in line with the mode of the LAPIC: after power-up and after every
    /// write to IA32_APIC_BASE.
    ///
    /// The processor's self-IPIs know nothing of the enable bit in the SVR, without which a
    /// LAPIC takes none: while it is off, all interrupts are left to the model.
    pub(super) fn configure_apic(&mut self) {
        let base = self.lapic.apic_base();
        let enabled = self.lapic.is_software_enabled();
        self.apic_virtualization.was_enabled = enabled;
        let assistance = match self.lapic.mode() {
            _ if !self.apic_virtualization.is_allowed => ApicAssistance::TprShadow,
            Mode::XApic if base.address() == apic::DEFAULT_ADDRESS => {
                if enabled {
                    ApicAssistance::XApic
                } else {
                    ApicAssistance::XApicTpr
                }
            }
            Mode::X2Apic if enabled => ApicAssistance::X2Apic,
            _ => ApicAssistance::TprShadow,
        };
        self.cpu.set_apic_assistance(assistance);
        self.apic_virtualization.delivers_interrupts =
            matches!(assistance, ApicAssistance::XApic | ApicAssistance::X2Apic);
        self.lapic
            .set_virtual_interrupt_delivery(self.apic_virtualization.delivers_interrupts);
        let wants_page = matches!(assistance, ApicAssistance::XApicTpr | ApicAssistance::XApic);
        let mapped = self.vm.want_apic_access_page(self.index, wants_page);
        // Without a table for the page, accesses exit and are emulated.
        if let Err(error) = mapped {
            log::warn!("vm {}: no APIC-access page: {error}", self.vm.name);
        }
        self.pass_x2apic_msrs_through(assistance == ApicAssistance::X2Apic);
        self.pending |= Requests::EVENT | Requests::TIMERS;
    }

    fn pass_x2apic_msrs_through(&mut self, on: bool) {
        let cpu = &mut self.cpu;
        for msr in msr::X2APIC {
            cpu.set_msr_exits(msr, MsrAccess::Read, true);
            cpu.set_msr_exits(msr, MsrAccess::Write, true);
        }
        if on {
            let vectors = Register::ISR.msr()..Register::ESR.msr();
            let readable = X2APIC_READABLE
                .map(Register::msr)
                .into_iter()
                .chain(vectors);
            for msr in readable {
                cpu.set_msr_exits(msr, MsrAccess::Read, false);
            }
            for msr in X2APIC_WRITABLE.map(Register::msr) {
                cpu.set_msr_exits(msr, MsrAccess::Write, false);
            }
        }
    }

    /// Tells the processor the highest requested vector, and which EOIs we want to hear of:
    /// those of level-triggered interrupts, for the I/O APIC.
    pub(super) fn update_virtual_interrupts(&mut self, highest: Highest) {
        self.cpu
            .set_virtual_interrupts(highest.requested, highest.in_service);
        if let Some(level_triggered) = self.lapic.take_changed_modes() {
            self.cpu.set_eoi_exits(level_triggered);
        }
    }
}
