//! How much of the local APIC the processor does: shadow of the TPR alone, or registers and
//! interrupt delivery too (SDM vol. 3C, ch. 30).
//!
//! The virtual-APIC page *is* the LAPIC's register page. With virtual-interrupt delivery, the
//! processor moves vectors from IRR to ISR and takes EOIs by itself; the LAPIC model keeps to
//! what the processor does not do. Without, all goes through the model, and the only thing
//! left to the processor is CR8.

use arch::apic::{self, Register};
use arch::msr;
use devices::lapic::{Mode, VectorRegister};
use vmx::bitmaps::MsrAccess;
use vmx::controls::Secondary;
use vmx::fields;

use super::Vcpu;
use super::setup;

/// What the processor does for the LAPIC in its present mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Assistance {
    /// The TPR shadow, for CR8.
    TprShadow,
    /// The TPR shadow, for CR8 and in the APIC-access page; other accesses to that exit.
    XApicTpr,
    /// Registers in the APIC-access page, and interrupt delivery.
    XApic,
    /// Registers as MSRs, and interrupt delivery.
    X2Apic,
}

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

impl Vcpu {
    /// Brings the controls in line with the LAPIC after an access to it that may have enabled
    /// or disabled it by software.
    #[inline]
    pub(super) fn follow_apic_enable(&mut self) {
        if self.lapic.is_software_enabled() != self.apic_was_enabled {
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
        self.apic_was_enabled = enabled;
        let assistance = match self.lapic.mode() {
            _ if !self.may_virtualize_apic => Assistance::TprShadow,
            Mode::XApic if base.address() == apic::DEFAULT_ADDRESS => {
                if enabled {
                    Assistance::XApic
                } else {
                    Assistance::XApicTpr
                }
            }
            Mode::X2Apic if enabled => Assistance::X2Apic,
            _ => Assistance::TprShadow,
        };
        let registers =
            Secondary::APIC_REGISTER_VIRTUALIZATION | Secondary::VIRTUAL_INTERRUPT_DELIVERY;
        let extra = match assistance {
            Assistance::TprShadow => Secondary::empty(),
            Assistance::XApicTpr => Secondary::VIRTUALIZE_APIC_ACCESSES,
            Assistance::XApic => Secondary::VIRTUALIZE_APIC_ACCESSES | registers,
            Assistance::X2Apic => Secondary::VIRTUALIZE_X2APIC_MODE | registers,
        };
        let controls = setup::controls(self.capabilities);
        self.registers
            .vmcs
            .set_secondary(self.capabilities, controls.secondary | extra);
        self.virtual_delivery = matches!(assistance, Assistance::XApic | Assistance::X2Apic);
        self.lapic
            .set_virtual_interrupt_delivery(self.virtual_delivery);
        self.tpr_threshold = 0;
        self.registers.vmcs.write(fields::TPR_THRESHOLD, 0);
        let wants_page = matches!(assistance, Assistance::XApicTpr | Assistance::XApic);
        let mapped = self.vm.set_apic_access_page_mapped(self.index, wants_page);
        // Without a table for the page, accesses exit and are emulated.
        if let Err(error) = mapped {
            log::warn!("vm {}: no APIC-access page: {error}", self.vm.name);
        }
        self.pass_x2apic_msrs_through(assistance == Assistance::X2Apic);
        self.eoi_exits = [0; 4];
        self.write_eoi_exits();
        self.attention = true;
    }

    fn pass_x2apic_msrs_through(&mut self, on: bool) {
        let bitmaps = &mut *self.msr_bitmaps;
        for msr in msr::X2APIC {
            bitmaps.set_exits(msr, MsrAccess::Read, true);
            bitmaps.set_exits(msr, MsrAccess::Write, true);
        }
        if on {
            let vectors = Register::ISR.msr()..Register::ESR.msr();
            let readable = X2APIC_READABLE
                .map(Register::msr)
                .into_iter()
                .chain(vectors);
            for msr in readable {
                bitmaps.set_exits(msr, MsrAccess::Read, false);
            }
            for msr in X2APIC_WRITABLE.map(Register::msr) {
                bitmaps.set_exits(msr, MsrAccess::Write, false);
            }
        }
    }

    /// Tells the processor the highest requested vector, and which EOIs we want to hear of:
    /// those of level-triggered interrupts, for the I/O APIC.
    pub(super) fn update_virtual_interrupts(&mut self) {
        let request = self.lapic.highest_irr().unwrap_or(0);
        let service = self.lapic.highest_isr().unwrap_or(0);
        let status = u16::from(service) << 8 | u16::from(request);
        let vmcs = &mut self.registers.vmcs;
        if vmcs.read(fields::GUEST_INTERRUPT_STATUS) != status {
            vmcs.write(fields::GUEST_INTERRUPT_STATUS, status);
        }
        let level = self.lapic.page().bitmap(VectorRegister::Tmr);
        if level != self.eoi_exits {
            self.eoi_exits = level;
            self.write_eoi_exits();
        }
    }

    fn write_eoi_exits(&mut self) {
        if !self.capabilities.virtual_apic() {
            return;
        }
        for (field, bits) in [
            fields::EOI_EXIT_BITMAP_0,
            fields::EOI_EXIT_BITMAP_1,
            fields::EOI_EXIT_BITMAP_2,
            fields::EOI_EXIT_BITMAP_3,
        ]
        .into_iter()
        .zip(self.eoi_exits)
        {
            self.registers.vmcs.write(field, bits);
        }
    }

    /// Without virtual-interrupt delivery: asks for an exit when the guest lowers the TPR so
    /// far that the highest pending vector can be delivered.
    pub(super) fn update_tpr_threshold(&mut self) {
        let threshold = u32::from(self.lapic.tpr_threshold());
        if threshold != self.tpr_threshold {
            self.tpr_threshold = threshold;
            self.registers.vmcs.write(fields::TPR_THRESHOLD, threshold);
        }
    }
}
