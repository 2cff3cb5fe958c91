//! What CPUID tells a guest: an allow-list of what the host's CPU can do and tarpit
//! virtualizes truthfully, with the VM's own topology and the true frequency of its TSC.
//!
//! All leaves of all VCPUs are worked out once, into a [`GuestCpuid`]; answering a CPUID
//! exit is a look-up in it, as few instructions as can be. Only what follows the VCPU's
//! state ([`Dynamic`]) is filled in on the way.
#![forbid(unsafe_code)]

mod features;
mod table;
mod tsc;
mod xsave;

use alloc::vec::Vec;

use arch::msr::SpecCtrl;
use devices::time::Hertz;

use table::{CpuidTable, Topology};

pub(crate) use raw_cpuid::CpuIdResult;
pub(crate) use tsc::TscRatio;

const NONE: CpuIdResult = CpuIdResult {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
};

/// The instructions that the VMX controls of this machine let a guest use (SDM vol. 3C, table
/// 25-7): without the control, the instruction raises #UD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmxSupport {
    /// "Enable RDTSCP", for RDTSCP and RDPID.
    pub rdtscp: bool,
    /// "Enable INVPCID".
    pub invpcid: bool,
    /// "Enable XSAVES/XRSTORS".
    pub xsaves: bool,
}

/// The state of a VCPU that CPUID shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dynamic {
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// Whether the local APIC is enabled globally, by bit 11 of IA32_APIC_BASE.
    pub apic_enabled: bool,
    /// Whether it is in 64-bit mode.
    pub in_64_bit_mode: bool,
}

/// Returns CPUID of the CPU that this runs on.
#[must_use]
pub(crate) fn host(leaf: u32, subleaf: u32) -> CpuIdResult {
    raw_cpuid::native_cpuid::cpuid_count(leaf, subleaf)
}

/// All that CPUID answers in a VM.
#[derive(Clone)]
pub(crate) struct GuestCpuid {
    /// The tables of the VCPUs, whose APIC IDs are their numbers. There is at least one.
    tables: Vec<CpuidTable>,
    tsc: TscRatio,
    limits: Limits,
    signature: u32,
}

impl GuestCpuid {
    /// Works out the answers for a VM of `vcpus` VCPUs (at least one), on a host whose CPUID
    /// is `host` (leaf, sub-leaf) and whose VMX can do what `vmx` says. `tsc` is the frequency
    /// of the guest's TSC.
    #[must_use]
    pub(crate) fn new(
        host: impl Fn(u32, u32) -> CpuIdResult,
        vmx: VmxSupport,
        vcpus: u32,
        tsc: Hertz,
    ) -> Self {
        let tsc = TscRatio::new(tsc);
        let table = |apic_id| CpuidTable::new(&host, vmx, Topology { vcpus, apic_id }, tsc);
        let first = table(0);
        let (limits, signature) = (first.limits(), first.signature());
        Self {
            tables: core::iter::once(first)
                .chain((1..vcpus).map(table))
                .collect(),
            tsc,
            limits,
            signature,
        }
    }

    /// Returns what CPUID answers on VCPU `vcpu` for `leaf` (EAX) and `subleaf` (ECX). `dynamic` is
    /// called only where the answer depends on it.
    #[must_use]
    #[inline]
    pub(crate) fn query(
        &self,
        vcpu: u32,
        leaf: u32,
        subleaf: u32,
        dynamic: impl FnOnce() -> Dynamic,
    ) -> CpuIdResult {
        match self.tables.get(vcpu as usize) {
            Some(table) => table.lookup(leaf, subleaf, dynamic),
            None => NONE,
        }
    }

    /// Returns what the features mean for registers.
    #[must_use]
    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the frequency of the TSC, as leaf 15H tells it.
    #[must_use]
    pub(crate) const fn tsc(&self) -> TscRatio {
        self.tsc
    }

    /// Returns the input clock of the local APICs' timers: the crystal of leaf 15H.
    #[must_use]
    pub(crate) const fn apic_timer_hz(&self) -> Hertz {
        self.tsc.apic_timer_hz()
    }

    /// Returns family, model and stepping, as leaf 1 has them in EAX.
    #[must_use]
    pub(crate) const fn signature(&self) -> u32 {
        self.signature
    }
}

/// The bits and sizes of registers that follow from the features that CPUID shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The bits that CR4 may have. Setting another one raises #GP.
    pub cr4: u64,
    /// The bits that IA32_EFER may have, LMA among them. Setting another one raises #GP.
    pub efer: u64,
    /// The bits that XCR0 may have. Zero if there is no XSAVE.
    pub xcr0: u64,
    /// The size of an XSAVE area in standard format for all of XCR0, in bytes.
    pub xsave_bytes: usize,
    /// Whether IA32_TSC_AUX exists.
    pub tsc_aux: bool,
    /// Whether IA32_ARCH_CAPABILITIES exists.
    pub arch_capabilities: bool,
    /// The bits that IA32_SPEC_CTRL may have. None if it does not exist.
    pub spec_ctrl: SpecCtrl,
    /// Whether IA32_PRED_CMD exists.
    pub pred_cmd: bool,
    /// Whether IA32_FLUSH_CMD exists.
    pub flush_cmd: bool,
    /// Whether IA32_XSS exists.
    pub xss: bool,
    /// The width of a physical address in bits (MAXPHYADDR).
    pub physical_address_bits: u32,
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
