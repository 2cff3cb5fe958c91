//! The VM-execution, VM-exit and VM-entry control vectors (SDM vol. 3C, 25.6 to 25.8).
#![forbid(unsafe_code)]

use bitflags::bitflags;

bitflags! {
    /// Pin-based VM-execution controls (table 25-5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PinBased: u32 {
        /// External interrupts cause VM exits.
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        /// NMIs cause VM exits.
        const NMI_EXITING = 1 << 3;
        /// The guest has NMIs of its own, with blocking by NMI.
        const VIRTUAL_NMIS = 1 << 5;
        /// The VMX-preemption timer counts down in VMX non-root operation.
        const PREEMPTION_TIMER = 1 << 6;
        /// Posted interrupts are processed without an exit.
        const POSTED_INTERRUPTS = 1 << 7;
    }

    /// Primary processor-based VM-execution controls (table 25-6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// Exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW_EXITING = 1 << 2;
        /// The TSC is offset (and scaled).
        const TSC_OFFSETTING = 1 << 3;
        /// HLT exits.
        const HLT_EXITING = 1 << 7;
        /// INVLPG exits.
        const INVLPG_EXITING = 1 << 9;
        /// MWAIT exits.
        const MWAIT_EXITING = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// RDTSC and RDTSCP exit.
        const RDTSC_EXITING = 1 << 12;
        /// MOV to CR3 exits, but for the CR3-target values.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits.
        const CR3_STORE_EXITING = 1 << 16;
        /// MOV to CR8 exits.
        const CR8_LOAD_EXITING = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE_EXITING = 1 << 20;
        /// CR8 is the virtual-APIC page's TPR.
        const TPR_SHADOW = 1 << 21;
        /// Exit as soon as the guest can take an NMI.
        const NMI_WINDOW_EXITING = 1 << 22;
        /// MOV DR exits.
        const MOV_DR_EXITING = 1 << 23;
        /// All port I/O exits.
        const UNCONDITIONAL_IO_EXITING = 1 << 24;
        /// Port I/O exits by the I/O bitmaps.
        const IO_BITMAPS = 1 << 25;
        /// Exit after each guest instruction.
        const MONITOR_TRAP_FLAG = 1 << 27;
        /// RDMSR and WRMSR exit by the MSR bitmaps.
        const MSR_BITMAPS = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXITING = 1 << 29;
        /// PAUSE exits.
        const PAUSE_EXITING = 1 << 30;
        /// The secondary controls hold.
        const SECONDARY = 1 << 31;
    }

    /// Secondary processor-based VM-execution controls (table 25-7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Accesses to the APIC-access page are virtualized.
        const VIRTUALIZE_APIC_ACCESSES = 1 << 0;
        /// Extended page tables.
        const EPT = 1 << 1;
        /// LGDT, SIDT and their like exit.
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        /// RDTSCP does not fault.
        const RDTSCP = 1 << 3;
        /// RDMSR and WRMSR of the x2APIC MSRs are virtualized.
        const VIRTUALIZE_X2APIC_MODE = 1 << 4;
        /// Cached translations are tagged.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD_EXITING = 1 << 6;
        /// The guest may run unpaged and in real mode.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// APIC-register virtualization: reads of virtualized APIC registers do not exit.
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        /// Virtual interrupts are evaluated and delivered by the processor.
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        /// A loop of PAUSE exits.
        const PAUSE_LOOP_EXITING = 1 << 10;
        /// RDRAND exits.
        const RDRAND_EXITING = 1 << 11;
        /// INVPCID does not fault.
        const INVPCID = 1 << 12;
        /// VM functions.
        const VM_FUNCTIONS = 1 << 13;
        /// XSAVES and XRSTORS do not fault.
        const XSAVES = 1 << 20;
        /// The TSC is multiplied.
        const TSC_SCALING = 1 << 25;
    }

    /// VM-exit controls (table 25-13).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Exit: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host is in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// The interrupt controller is acknowledged at an external-interrupt exit.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// IA32_PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// IA32_EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 21;
        /// The preemption timer's value is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
    }

    /// VM-entry controls (table 25-15).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entry: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in IA-32e mode.
        const IA32E_MODE_GUEST = 1 << 9;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }
}

/// The values that a CPU allows for one control vector: some bits must be one, some must be zero
/// (SDM vol. 3D, app. A.3 to A.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    must_be_one: u32,
    may_be_one: u32,
}

impl Allowed {
    /// Decodes a capability MSR: allowed zero-settings in its low half, one-settings above.
    #[must_use]
    pub const fn from_msr(value: u64) -> Self {
        Self {
            must_be_one: value as u32,
            may_be_one: (value >> 32) as u32,
        }
    }

    /// Returns the same without `bits`, where they need not be one.
    #[must_use]
    pub const fn without(self, bits: u32) -> Self {
        Self {
            must_be_one: self.must_be_one,
            may_be_one: self.may_be_one & !bits | self.must_be_one,
        }
    }

    /// Returns whether all of `bits` may be one.
    #[must_use]
    pub const fn allows(self, bits: u32) -> bool {
        bits & !self.may_be_one == 0
    }

    /// Returns `wanted` with the bits that must be one; bits that may not be one are left out, so
    /// ask [`Allowed::allows`] first for those that matter.
    #[must_use]
    pub const fn adjust(self, wanted: u32) -> u32 {
        (wanted | self.must_be_one) & self.may_be_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_that_must_be_one_is_set_and_one_that_may_not_is_left_out() {
        let allowed = Allowed::from_msr(0x0000_00ff_0000_0016);
        assert!(allowed.allows(0x80));
        assert!(!allowed.allows(0x100));
        assert_eq!(allowed.adjust(0x180), 0x96);
    }
}
