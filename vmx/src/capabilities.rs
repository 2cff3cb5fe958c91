//! What the CPU's VMX can do, read once into typed fields (SDM vol. 3D, app. A).

use core::fmt;

use arch::msr::*;

use crate::controls::{Allowed, Entry, Exit, PinBased, Primary, Secondary};
use crate::msr;

/// The reason why tarpit cannot run on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID.1:ECX.VMX is zero.
    NoVmx,
    /// IA32_FEATURE_CONTROL is locked with VMX off.
    LockedByFirmware,
    /// VMX lacks the named feature.
    Missing(&'static str),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmx => f.write_str(
                "this CPU has no VMX (CPUID.1:ECX bit 5 is 0): use a CPU with Intel VT-x, or an \
                 emulator or hypervisor that offers it (Bochs, or KVM with nested=1)",
            ),
            Self::LockedByFirmware => f.write_str(
                "firmware has locked VMX off in IA32_FEATURE_CONTROL (MSR 0x3a): enable Intel \
                 virtualization technology (VT-x) in the firmware's set-up",
            ),
            Self::Missing(feature) => write!(f, "this CPU's VMX lacks {feature}"),
        }
    }
}

impl core::error::Error for Unsupported {}

/// The capabilities of EPT and VPID (IA32_VMX_EPT_VPID_CAP, app. A.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Whether an EPT entry can map 2 MiB.
    pub pages_2m: bool,
    /// Whether an EPT entry can map 1 GiB.
    pub pages_1g: bool,
    /// Whether EPT keeps accessed and dirty flags.
    pub accessed_dirty: bool,
    /// Execute-only EPT entries.
    pub execute_only: bool,
    /// INVEPT of one EPTP (else only of all).
    pub invept_single: bool,
    /// INVVPID of one address.
    pub invvpid_address: bool,
    /// INVVPID of one VPID.
    pub invvpid_single: bool,
    /// INVVPID of one VPID but for its global translations.
    pub invvpid_single_non_global: bool,
}

impl Translation {
    /// All that there is, as recent processors have it.
    pub const ALL: Self = Self {
        pages_2m: true,
        pages_1g: true,
        accessed_dirty: true,
        execute_only: true,
        invept_single: true,
        invvpid_address: true,
        invvpid_single: true,
        invvpid_single_non_global: true,
    };

    const fn from_msr(value: u64) -> Self {
        Self {
            execute_only: value & 1 != 0,
            pages_2m: value >> 16 & 1 != 0,
            pages_1g: value >> 17 & 1 != 0,
            accessed_dirty: value >> 21 & 1 != 0,
            invept_single: value >> 25 & 1 != 0,
            invvpid_address: value >> 40 & 1 != 0,
            invvpid_single: value >> 41 & 1 != 0,
            invvpid_single_non_global: value >> 43 & 1 != 0,
        }
    }
}

/// The VMX capabilities of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The identifier that the first word of VMXON regions and VMCSs holds.
    pub revision: u32,
    /// The preemption timer counts once every 2^this TSC ticks.
    pub preemption_timer_shift: u32,
    /// The number of CR3-target values.
    pub cr3_targets: u32,
    pub(crate) pin: Allowed,
    pub(crate) primary: Allowed,
    pub(crate) secondary: Allowed,
    pub(crate) exit: Allowed,
    pub(crate) entry: Allowed,
    /// CR0 bits that must be one in VMX operation (in a guest, but for PE and PG).
    pub cr0_fixed0: u64,
    /// CR0 bits that may be one.
    pub cr0_fixed1: u64,
    /// CR4 bits that must be one.
    pub cr4_fixed0: u64,
    /// CR4 bits that may be one.
    pub cr4_fixed1: u64,
    /// EPT and VPID.
    pub translation: Translation,
}

/// Controls without which tarpit does not run, with the names that the SDM gives them.
const REQUIRED_PIN: &[(PinBased, &str)] = &[
    (
        PinBased::EXTERNAL_INTERRUPT_EXITING,
        "external-interrupt exiting",
    ),
    (PinBased::NMI_EXITING, "NMI exiting"),
    (PinBased::VIRTUAL_NMIS, "virtual NMIs"),
    (PinBased::PREEMPTION_TIMER, "the VMX-preemption timer"),
];
const REQUIRED_PRIMARY: &[(Primary, &str)] = &[
    (Primary::SECONDARY, "secondary processor-based controls"),
    (
        Primary::INTERRUPT_WINDOW_EXITING,
        "interrupt-window exiting",
    ),
    (Primary::NMI_WINDOW_EXITING, "NMI-window exiting"),
    (Primary::TSC_OFFSETTING, "TSC offsetting"),
    (Primary::HLT_EXITING, "HLT exiting"),
    (Primary::TPR_SHADOW, "the TPR shadow"),
    (Primary::IO_BITMAPS, "I/O bitmaps"),
    (Primary::MSR_BITMAPS, "MSR bitmaps"),
];
const REQUIRED_SECONDARY: &[(Secondary, &str)] = &[
    (Secondary::EPT, "EPT (extended page tables)"),
    (Secondary::VPID, "VPID (virtual-processor identifiers)"),
    (Secondary::UNRESTRICTED_GUEST, "unrestricted guest"),
];
const REQUIRED_EXIT: &[(Exit, &str)] = &[
    (Exit::HOST_64_BIT, "64-bit hosts"),
    (
        Exit::SAVE_EFER.union(Exit::LOAD_EFER),
        "saving and loading IA32_EFER at VM exits",
    ),
    (
        Exit::SAVE_PAT.union(Exit::LOAD_PAT),
        "saving and loading IA32_PAT at VM exits",
    ),
];
const REQUIRED_ENTRY: &[(Entry, &str)] = &[
    (Entry::IA32E_MODE_GUEST, "64-bit guests"),
    (Entry::LOAD_EFER, "loading IA32_EFER at VM entry"),
    (Entry::LOAD_PAT, "loading IA32_PAT at VM entry"),
];

impl Capabilities {
    /// Reads the capabilities of this CPU.
    ///
    /// # Errors
    /// If the CPU has no VMX, firmware has locked it off, or it lacks something that tarpit
    /// needs; the error names it.
    pub fn read() -> Result<Self, Unsupported> {
        let has_vmx = raw_cpuid::CpuId::new()
            .get_feature_info()
            .is_some_and(|features| features.has_vmx());
        if !has_vmx {
            return Err(Unsupported::NoVmx);
        }
        // SAFETY: a CPU with VMX has IA32_FEATURE_CONTROL (SDM vol. 4, table 2-2).
        let feature_control =
            FeatureControl::from_bits_retain(unsafe { msr::read(IA32_FEATURE_CONTROL) });
        if feature_control.contains(FeatureControl::LOCK)
            && !feature_control.contains(FeatureControl::VMX_OUTSIDE_SMX)
        {
            return Err(Unsupported::LockedByFirmware);
        }
        // SAFETY: a CPU with VMX has these MSRs (SDM vol. 3D, app. A).
        let read = |number| unsafe { msr::read(number) };
        let basic = read(IA32_VMX_BASIC);
        let has_true_controls = basic >> 55 & 1 != 0;
        let allowed =
            |plain, true_| Allowed::from_msr(read(if has_true_controls { true_ } else { plain }));
        let primary = allowed(IA32_VMX_PROCBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS);
        if !primary.allows(Primary::SECONDARY.bits()) {
            return Err(Unsupported::Missing("secondary processor-based controls"));
        }
        let secondary = Allowed::from_msr(read(IA32_VMX_PROCBASED_CTLS2));
        if !secondary.allows(Secondary::EPT.bits()) {
            return Err(Unsupported::Missing("EPT (extended page tables)"));
        }
        let misc = read(IA32_VMX_MISC);
        let capabilities = Self {
            revision: basic as u32 & 0x7fff_ffff,
            preemption_timer_shift: misc as u32 & 0x1f,
            cr3_targets: (misc >> 16) as u32 & 0x1ff,
            pin: allowed(IA32_VMX_PINBASED_CTLS, IA32_VMX_TRUE_PINBASED_CTLS),
            primary,
            secondary,
            exit: allowed(IA32_VMX_EXIT_CTLS, IA32_VMX_TRUE_EXIT_CTLS),
            entry: allowed(IA32_VMX_ENTRY_CTLS, IA32_VMX_TRUE_ENTRY_CTLS),
            cr0_fixed0: read(IA32_VMX_CR0_FIXED0),
            cr0_fixed1: read(IA32_VMX_CR0_FIXED1),
            cr4_fixed0: read(IA32_VMX_CR4_FIXED0),
            cr4_fixed1: read(IA32_VMX_CR4_FIXED1),
            translation: Translation::from_msr(read(IA32_VMX_EPT_VPID_CAP)),
        };
        if basic >> 54 & 1 == 0 {
            return Err(Unsupported::Missing("exit information for INS and OUTS"));
        }
        capabilities.check_required(read(IA32_VMX_EPT_VPID_CAP))?;
        Ok(capabilities)
    }

    fn check_required(&self, ept_vpid: u64) -> Result<(), Unsupported> {
        let missing = REQUIRED_PIN
            .iter()
            .map(|(bits, name)| (self.pin, bits.bits(), *name))
            .chain(
                REQUIRED_PRIMARY
                    .iter()
                    .map(|(bits, name)| (self.primary, bits.bits(), *name)),
            )
            .chain(
                REQUIRED_SECONDARY
                    .iter()
                    .map(|(bits, name)| (self.secondary, bits.bits(), *name)),
            )
            .chain(
                REQUIRED_EXIT
                    .iter()
                    .map(|(bits, name)| (self.exit, bits.bits(), *name)),
            )
            .chain(
                REQUIRED_ENTRY
                    .iter()
                    .map(|(bits, name)| (self.entry, bits.bits(), *name)),
            )
            .find(|(allowed, bits, _)| !allowed.allows(*bits));
        if let Some((_, _, name)) = missing {
            return Err(Unsupported::Missing(name));
        }
        // App. A.10: page-walk length 4, write-back structures, INVEPT, INVVPID with the
        // all-contexts types, which every CPU with the instructions has.
        for (bit, name) in [
            (6, "an EPT page-walk length of 4"),
            (14, "write-back EPT structures"),
            (20, "INVEPT"),
            (26, "INVEPT of all contexts"),
            (32, "INVVPID"),
            (42, "INVVPID of all contexts"),
        ] {
            if ept_vpid >> bit & 1 == 0 {
                return Err(Unsupported::Missing(name));
            }
        }
        Ok(())
    }

    /// Returns whether all of these secondary controls may be set.
    #[must_use]
    pub const fn has(&self, controls: Secondary) -> bool {
        self.secondary.allows(controls.bits())
    }

    /// Returns whether all of these pin-based controls may be set.
    #[must_use]
    pub const fn has_pin(&self, controls: PinBased) -> bool {
        self.pin.allows(controls.bits())
    }

    /// Returns the capabilities of a CPU like this one that lacks some secondary controls: for
    /// trying out how such a CPU does.
    #[must_use]
    pub const fn without(mut self, controls: Secondary) -> Self {
        self.secondary = self.secondary.without(controls.bits());
        self
    }

    /// Returns whether there is TSC scaling: the guest's TSC can run at another rate than the
    /// host's.
    #[must_use]
    pub const fn tsc_scaling(&self) -> bool {
        self.has(Secondary::TSC_SCALING)
    }

    /// Returns whether there is APIC-register virtualization, virtual-interrupt delivery, and what
    /// they need.
    #[must_use]
    pub const fn virtual_apic(&self) -> bool {
        self.has(
            Secondary::VIRTUALIZE_APIC_ACCESSES
                .union(Secondary::APIC_REGISTER_VIRTUALIZATION)
                .union(Secondary::VIRTUAL_INTERRUPT_DELIVERY)
                .union(Secondary::VIRTUALIZE_X2APIC_MODE),
        )
    }
}
