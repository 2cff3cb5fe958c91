//! What RDMSR and WRMSR of a guest lead to: an allow-list. What is not on it raises #GP, as
//! an MSR does that the CPU does not have.
//!
//! MSRs fall to three: some the guest accesses without an exit ([`pass_through`]), since
//! the VMCS or the VCPU's switch keeps them apart. Some belong to a device or to the VMCS,
//! and are for the VCPU to answer: [`IA32_TIME_STAMP_COUNTER`], [`IA32_TSC_ADJUST`],
//! [`IA32_TSC_DEADLINE`], [`IA32_APIC_BASE`], the x2APIC's range, [`IA32_EFER`],
//! [`IA32_DEBUGCTL`], and IA32_SPEC_CTRL ([`speculation`]). The rest are state or constants
//! kept here, in [`Msrs`], without effect on anything else.
#![forbid(unsafe_code)]

mod microcode;
mod mtrr;
pub(crate) mod speculation;

use arch::GeneralProtection;
use arch::msr::*;

use crate::cpuid::GuestCpuid;
use mtrr::Mtrrs;

/// The bits of IA32_ARCH_CAPABILITIES that tell of a flaw which the CPU does not have. They
/// are true for a guest as well, and come with nothing to control but IA32_SPEC_CTRL: RDCL (0), SSB (4), MDS (5),
/// machine check on page size change (6), TAA (8), SBDR/SSDP (13), FBSDP (14), PSDP (15),
/// BHI (20), PBRSB (24), GDS (26), RFDS (27).
const ARCH_CAPABILITIES_ALLOWED: u64 = 0x0D10_E171;

/// MISC_ENABLE bits that are state without effect: fast strings (0), automatic thermal
/// control (3), SpeedStep (16), MONITOR (18), limit of CPUID (22), no xTPR messages (23), no
/// NX (34).
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// MISC_ENABLE bits that are one for ever: neither branch trace storage nor PEBS is there.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// MISC_ENABLE bits that can only be read: the fixed ones, and performance monitoring (7), which
/// is not there. They are not reserved: what is written to them is ignored (SDM vol. 4, table
/// 2-2).
const MISC_ENABLE_READ_ONLY: u64 = MISC_ENABLE_FIXED | 1 << 7;
/// MISC_ENABLE after reset: fast strings.
const MISC_ENABLE_AT_RESET: u64 = MISC_ENABLE_FIXED | 1;
/// MCG_STATUS: RIPV, EIPV and MCIP.
const MCG_STATUS_WRITABLE: u64 = 0b111;

/// Returns the MSRs that guests may read and write without an exit: the VMCS switches them, or the
/// VCPU when it comes onto a CPU, and the CPU itself checks what is written.
pub(crate) fn pass_through() -> impl Iterator<Item = u32> {
    [
        IA32_SYSENTER_CS,
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        IA32_PAT,
        IA32_STAR,
        IA32_LSTAR,
        IA32_CSTAR,
        IA32_FMASK,
        IA32_FS_BASE,
        IA32_GS_BASE,
        IA32_KERNEL_GS_BASE,
    ]
    .into_iter()
}

/// The values in the host's MSRs that guests shall know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostMsrs {
    /// The revision of its microcode: the high half of IA32_BIOS_SIGN_ID, after writing
    /// zero to it and executing CPUID leaf 1.
    pub microcode_revision: u32,
    /// IA32_ARCH_CAPABILITIES; zero if it does not exist.
    pub arch_capabilities: u64,
}

impl HostMsrs {
    /// Returns whether the TSC-deadline mode of local APICs works, on a CPU with the signature of CPUID
    /// leaf 1, EAX.
    #[must_use]
    pub(crate) fn deadline_mode_works(&self, signature: u32) -> bool {
        microcode::deadline_mode_works(signature, self.microcode_revision)
    }
}

/// The MSRs of a VCPU that are state or constants and nothing more.
#[derive(Clone, Debug)]
pub(crate) struct Msrs {
    mtrrs: Mtrrs,
    misc_enable: u64,
    mcg_status: u64,
    microcode_revision: u32,
    /// The ratio of the base frequency to 100 MHz.
    base_ratio: u8,
    /// The value of IA32_ARCH_CAPABILITIES; `None` if it does not exist.
    arch_capabilities: Option<u64>,
    xss: bool,
}

impl Msrs {
    /// Returns the MSRs as firmware leaves them to the guest. An INIT changes none of them.
    #[must_use]
    pub(crate) fn new(cpuid: &GuestCpuid, host: &HostMsrs) -> Self {
        let limits = cpuid.limits();
        let ratio = cpuid.tsc().hz().get() / 100_000_000;
        Self {
            mtrrs: Mtrrs::new(limits.physical_address_bits),
            misc_enable: MISC_ENABLE_AT_RESET,
            mcg_status: 0,
            microcode_revision: microcode::shown(cpuid.signature(), host.microcode_revision),
            base_ratio: u8::try_from(ratio).unwrap_or(u8::MAX).max(1),
            arch_capabilities: limits.arch_capabilities.then(|| {
                let mut allowed = ARCH_CAPABILITIES_ALLOWED;
                if limits.spec_ctrl.contains(SpecCtrl::IBRS) {
                    allowed |= ArchCapabilities::IBRS_ALL.bits();
                }
                host.arch_capabilities & allowed
            }),
            xss: limits.xss,
        }
    }

    /// Executes RDMSR of `msr`.
    ///
    /// # Errors
    /// If it is not here: [`GeneralProtection`].
    pub(crate) fn read(&self, msr: u32) -> Result<u64, GeneralProtection> {
        match msr {
            IA32_PLATFORM_ID | IA32_MCG_CAP => Ok(0),
            IA32_FEATURE_CONTROL => Ok(FeatureControl::LOCK.bits()),
            IA32_BIOS_SIGN_ID => Ok(u64::from(self.microcode_revision) << 32),
            MSR_PLATFORM_INFO => Ok(u64::from(self.base_ratio) << 8),
            IA32_ARCH_CAPABILITIES => self.arch_capabilities.ok_or(GeneralProtection),
            IA32_MCG_STATUS => Ok(self.mcg_status),
            IA32_MISC_ENABLE => Ok(self.misc_enable),
            IA32_XSS if self.xss => Ok(0),
            _ => self.mtrrs.read(msr).ok_or(GeneralProtection),
        }
    }

    /// Executes WRMSR of `value` to `msr`.
    ///
    /// # Errors
    /// If it is not here, is read-only, or does not take the value: [`GeneralProtection`].
    /// Nothing is changed then.
    pub(crate) fn write(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let check = |valid: bool| valid.then_some(()).ok_or(GeneralProtection);
        match msr {
            // CPUID puts the revision back.
            IA32_BIOS_SIGN_ID => {}
            IA32_MCG_STATUS => {
                check(value & !MCG_STATUS_WRITABLE == 0)?;
                self.mcg_status = value;
            }
            IA32_MISC_ENABLE => {
                check(value & !(MISC_ENABLE_WRITABLE | MISC_ENABLE_READ_ONLY) == 0)?;
                self.misc_enable = value & MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED;
            }
            IA32_XSS => check(self.xss && value == 0)?,
            _ => self.mtrrs.write(msr, value)?,
        }
        Ok(())
    }
}

/// Returns whether IA32_DEBUGCTL, which the VMCS holds, takes `value`: guests step on branches, and
/// trace nothing.
///
/// # Errors
/// If not: [`GeneralProtection`].
pub(crate) const fn check_debugctl(value: u64) -> Result<(), GeneralProtection> {
    if value & !DebugCtl::BTF.bits() == 0 {
        Ok(())
    } else {
        Err(GeneralProtection)
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
