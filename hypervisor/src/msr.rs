//! What RDMSR and WRMSR of a guest lead to: an allow-list. What is not on it raises #GP, as
//! an MSR does that the CPU does not have.
//!
//! MSRs fall to three: some the guest accesses without an exit ([`pass_through`]), since
//! the VMCS or the VCPU's switch keeps them apart. Some belong to a device or to the VMCS,
//! and are for the VCPU to answer: [`TIME_STAMP_COUNTER`], [`TSC_ADJUST`], [`TSC_DEADLINE`],
//! [`APIC_BASE`], the x2APIC's range, [`EFER`], [`DEBUGCTL`]. The rest are state or constants
//! kept here, in [`Msrs`], without effect on anything else.

mod microcode;
mod mtrr;

use crate::cpuid::GuestCpuid;
use mtrr::Mtrrs;

/// IA32_TIME_STAMP_COUNTER.
pub const TIME_STAMP_COUNTER: u32 = 0x10;
/// IA32_PLATFORM_ID.
pub const PLATFORM_ID: u32 = 0x17;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1B;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3A;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3B;
/// IA32_BIOS_SIGN_ID: the revision of the microcode.
pub const BIOS_SIGN_ID: u32 = 0x8B;
/// MSR_PLATFORM_INFO.
pub const PLATFORM_INFO: u32 = 0xCE;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10A;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;
/// IA32_SYSENTER_ESP.
pub const SYSENTER_ESP: u32 = 0x175;
/// IA32_SYSENTER_EIP.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_MCG_CAP.
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS.
pub const MCG_STATUS: u32 = 0x17A;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1A0;
/// IA32_DEBUGCTL.
pub const DEBUGCTL: u32 = 0x1D9;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6E0;
/// IA32_XSS.
pub const XSS: u32 = 0xDA0;
/// IA32_EFER.
pub const EFER: u32 = 0xC000_0080;
/// IA32_STAR.
pub const STAR: u32 = 0xC000_0081;
/// IA32_LSTAR.
pub const LSTAR: u32 = 0xC000_0082;
/// IA32_CSTAR.
pub const CSTAR: u32 = 0xC000_0083;
/// IA32_FMASK.
pub const FMASK: u32 = 0xC000_0084;
/// IA32_FS_BASE.
pub const FS_BASE: u32 = 0xC000_0100;
/// IA32_GS_BASE.
pub const GS_BASE: u32 = 0xC000_0101;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xC000_0103;

/// DEBUGCTL.BTF: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// FEATURE_CONTROL: locked, with nothing enabled.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// The bits of IA32_ARCH_CAPABILITIES that tell of a flaw which the CPU does not have. They
/// are true for a guest as well, and come with nothing to control: RDCL (0), SSB (4), MDS (5),
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

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The MSRs that guests may read and write without an exit: the VMCS switches them, or the
/// VCPU when it comes onto a CPU, and the CPU itself checks what is written.
pub fn pass_through() -> impl Iterator<Item = u32> {
    [
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        PAT,
        STAR,
        LSTAR,
        CSTAR,
        FMASK,
        FS_BASE,
        GS_BASE,
        KERNEL_GS_BASE,
    ]
    .into_iter()
}

/// What the host's MSRs tell that guests shall know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMsrs {
    /// The revision of its microcode: the high half of IA32_BIOS_SIGN_ID, after writing
    /// zero to it and executing CPUID leaf 1.
    pub microcode_revision: u32,
    /// IA32_ARCH_CAPABILITIES; zero if it does not exist.
    pub arch_capabilities: u64,
}

/// The MSRs of a VCPU that are state or constants and nothing more.
#[derive(Clone, Debug)]
pub struct Msrs {
    mtrrs: Mtrrs,
    misc_enable: u64,
    mcg_status: u64,
    microcode_revision: u32,
    /// In units of 100 MHz.
    base_ratio: u8,
    /// `None` if it does not exist.
    arch_capabilities: Option<u64>,
    xss: bool,
}

impl Msrs {
    /// The MSRs as firmware leaves them to the guest. An INIT changes none of them.
    #[must_use]
    pub fn new(cpuid: &GuestCpuid, host: &HostMsrs) -> Self {
        let limits = cpuid.limits();
        let ratio = cpuid.tsc().hz().get() / 100_000_000;
        Self {
            mtrrs: Mtrrs::new(limits.physical_address_bits),
            misc_enable: MISC_ENABLE_AT_RESET,
            mcg_status: 0,
            microcode_revision: microcode::shown(cpuid.signature(), host.microcode_revision),
            base_ratio: u8::try_from(ratio).unwrap_or(u8::MAX).max(1),
            arch_capabilities: limits
                .arch_capabilities
                .then_some(host.arch_capabilities & ARCH_CAPABILITIES_ALLOWED),
            xss: limits.xss,
        }
    }

    /// RDMSR of `msr`.
    ///
    /// # Errors
    /// If it is not here: [`GeneralProtection`].
    pub fn read(&self, msr: u32) -> Result<u64, GeneralProtection> {
        match msr {
            PLATFORM_ID | MCG_CAP => Ok(0),
            FEATURE_CONTROL => Ok(FEATURE_CONTROL_LOCKED),
            BIOS_SIGN_ID => Ok(u64::from(self.microcode_revision) << 32),
            PLATFORM_INFO => Ok(u64::from(self.base_ratio) << 8),
            ARCH_CAPABILITIES => self.arch_capabilities.ok_or(GeneralProtection),
            MCG_STATUS => Ok(self.mcg_status),
            MISC_ENABLE => Ok(self.misc_enable),
            XSS if self.xss => Ok(0),
            _ => self.mtrrs.read(msr).ok_or(GeneralProtection),
        }
    }

    /// WRMSR of `value` to `msr`.
    ///
    /// # Errors
    /// If it is not here, is read-only, or does not take the value: [`GeneralProtection`].
    /// Nothing is changed then.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let check = |valid: bool| valid.then_some(()).ok_or(GeneralProtection);
        match msr {
            // CPUID puts the revision back.
            BIOS_SIGN_ID => {}
            MCG_STATUS => {
                check(value & !MCG_STATUS_WRITABLE == 0)?;
                self.mcg_status = value;
            }
            MISC_ENABLE => {
                check(value & !(MISC_ENABLE_WRITABLE | MISC_ENABLE_READ_ONLY) == 0)?;
                self.misc_enable = value & MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED;
            }
            XSS => check(self.xss && value == 0)?,
            _ => self.mtrrs.write(msr, value)?,
        }
        Ok(())
    }
}

/// Whether IA32_DEBUGCTL, which the VMCS holds, takes `value`: guests step on branches, and trace
/// nothing.
///
/// # Errors
/// If not: [`GeneralProtection`].
pub const fn check_debugctl(value: u64) -> Result<(), GeneralProtection> {
    if value & !DEBUGCTL_BTF == 0 {
        Ok(())
    } else {
        Err(GeneralProtection)
    }
}

#[cfg(test)]
mod tests;
