//! Numbers of model-specific registers, and their bits where more than one crate needs them, by
//! the names of SDM vol. 4, chapter 2. (The bits of IA32_EFER and IA32_APIC_BASE are
//! [`EferFlags`](crate::EferFlags) and [`ApicBaseFlags`](crate::ApicBaseFlags).)
#![allow(missing_docs, reason = "the names are the manual's")]

use core::ops::RangeInclusive;

pub const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
pub const IA32_PLATFORM_ID: u32 = 0x17;
pub const IA32_APIC_BASE: u32 = 0x1b;
pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
pub const IA32_TSC_ADJUST: u32 = 0x3b;
pub const IA32_SPEC_CTRL: u32 = 0x48;
pub const IA32_PRED_CMD: u32 = 0x49;
/// The revision of the microcode, in the high half.
pub const IA32_BIOS_SIGN_ID: u32 = 0x8b;
pub const MSR_PLATFORM_INFO: u32 = 0xce;
pub const IA32_MTRRCAP: u32 = 0xfe;
pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
pub const IA32_FLUSH_CMD: u32 = 0x10b;
pub const IA32_TSX_CTRL: u32 = 0x122;
pub const IA32_MCU_OPT_CTRL: u32 = 0x123;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_MCG_CAP: u32 = 0x179;
pub const IA32_MCG_STATUS: u32 = 0x17a;
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
pub const IA32_DEBUGCTL: u32 = 0x1d9;
/// The first of the variable-range MTRRs: bases at even, masks at odd numbers.
pub const IA32_MTRR_PHYSBASE0: u32 = 0x200;
pub const IA32_MTRR_FIX64K_00000: u32 = 0x250;
pub const IA32_MTRR_FIX16K_80000: u32 = 0x258;
pub const IA32_MTRR_FIX16K_A0000: u32 = 0x259;
/// The first of the fixed-range MTRRs of 4 KiB ranges, which end with
/// [`IA32_MTRR_FIX4K_F8000`].
pub const IA32_MTRR_FIX4K_C0000: u32 = 0x268;
pub const IA32_MTRR_FIX4K_F8000: u32 = 0x26f;
pub const IA32_PAT: u32 = 0x277;
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// The first of the machine-check banks' registers: control, status, address and misc of each.
pub const IA32_MC0_CTL: u32 = 0x400;
pub const IA32_VMX_BASIC: u32 = 0x480;
pub const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
pub const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
pub const IA32_VMX_EXIT_CTLS: u32 = 0x483;
pub const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
pub const IA32_VMX_MISC: u32 = 0x485;
pub const IA32_VMX_CR0_FIXED0: u32 = 0x486;
pub const IA32_VMX_CR0_FIXED1: u32 = 0x487;
pub const IA32_VMX_CR4_FIXED0: u32 = 0x488;
pub const IA32_VMX_CR4_FIXED1: u32 = 0x489;
pub const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
pub const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
pub const IA32_VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
pub const IA32_VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
pub const IA32_VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
pub const IA32_XSS: u32 = 0xda0;
pub const IA32_EFER: u32 = 0xc000_0080;
pub const IA32_STAR: u32 = 0xc000_0081;
pub const IA32_LSTAR: u32 = 0xc000_0082;
pub const IA32_CSTAR: u32 = 0xc000_0083;
pub const IA32_FMASK: u32 = 0xc000_0084;
pub const IA32_FS_BASE: u32 = 0xc000_0100;
pub const IA32_GS_BASE: u32 = 0xc000_0101;
pub const IA32_KERNEL_GS_BASE: u32 = 0xc000_0102;
pub const IA32_TSC_AUX: u32 = 0xc000_0103;

/// The first MSR of x2APIC mode (SDM vol. 3A, 11.12.1.2). The MSR of a register is
/// [`Register::msr`](crate::apic::Register::msr).
pub const X2APIC_FIRST: u32 = 0x800;
/// The last MSR of x2APIC mode, a reserved one as most of them.
pub const X2APIC_LAST: u32 = 0x8ff;
/// The MSRs of x2APIC mode.
pub const X2APIC: RangeInclusive<u32> = X2APIC_FIRST..=X2APIC_LAST;

bitflags::bitflags! {
    /// The bits of IA32_FEATURE_CONTROL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FeatureControl: u64 {
        /// The lock of the MSR: once set, it cannot be written until the next reset.
        const LOCK = 1 << 0;
        /// VMXON outside SMX operation.
        const VMX_OUTSIDE_SMX = 1 << 2;
    }

    /// The bits of IA32_SPEC_CTRL (SDM vol. 4, table 2-2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SpecCtrl: u64 {
        /// Indirect branches are not predicted by what less privileged code has done.
        const IBRS = 1 << 0;
        /// Nor by what the other thread of the core does.
        const STIBP = 1 << 1;
        /// Speculative-store-bypass disable: loads wait for the addresses of earlier stores.
        const SSBD = 1 << 2;
        /// Above ring 3, branch history of ring 3 does not select indirect targets.
        const BHI_DIS_S = 1 << 10;
    }

    /// The bits of IA32_PRED_CMD, which are commands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PredCmd: u64 {
        /// Indirect branch predictor barrier.
        const IBPB = 1 << 0;
    }

    /// The bits of IA32_FLUSH_CMD, which are commands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FlushCmd: u64 {
        /// The command that writes the first-level data cache back, and invalidates it.
        const L1D_FLUSH = 1 << 0;
    }

    /// The bits of IA32_TSX_CTRL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TsxCtrl: u64 {
        /// XBEGIN aborts at once.
        const RTM_DISABLE = 1 << 0;
        /// CPUID shows neither RTM nor HLE.
        const TSX_CPUID_CLEAR = 1 << 1;
    }

    /// The bits of IA32_MCU_OPT_CTRL: what of the microcode's remedies is switched off.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct McuOptCtrl: u64 {
        /// The switch that turns off the remedy for RDRAND and RDSEED (SRBDS).
        const RNGDS_MITG_DIS = 1 << 0;
        /// The switch that turns off the remedy for gathering loads (GDS).
        const GDS_MITG_DIS = 1 << 4;
    }

    /// The bits of IA32_ARCH_CAPABILITIES: which issues the processor does not have, and what it
    /// has against the others.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ArchCapabilities: u64 {
        const RDCL_NO = 1 << 0;
        /// Enhanced IBRS: it may be left on.
        const IBRS_ALL = 1 << 1;
        /// RSB alternate: returns may be predicted by the indirect branch predictor.
        const RSBA = 1 << 2;
        /// No flush of the first-level data cache is needed at VM entries.
        const SKIP_L1DFL_VMENTRY = 1 << 3;
        const SSB_NO = 1 << 4;
        const MDS_NO = 1 << 5;
        /// No machine check when a page's size changes: no iTLB multihit.
        const PSCHANGE_MC_NO = 1 << 6;
        const TSX_CTRL = 1 << 7;
        const TAA_NO = 1 << 8;
        const SBDR_SSDP_NO = 1 << 13;
        const FBSDP_NO = 1 << 14;
        const PSDP_NO = 1 << 15;
        /// VERW overwrites the fill buffers.
        const FB_CLEAR = 1 << 17;
        const BHI_NO = 1 << 20;
        const PBRSB_NO = 1 << 24;
        const GDS_CTRL = 1 << 25;
        const GDS_NO = 1 << 26;
        const RFDS_NO = 1 << 27;
        /// VERW overwrites the register files.
        const RFDS_CLEAR = 1 << 28;
        const ITS_NO = 1 << 62;
    }

    /// The bits of IA32_DEBUGCTL (SDM vol. 3B, 18.4.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DebugCtl: u64 {
        /// Last branches are recorded.
        const LBR = 1 << 0;
        /// RFLAGS.TF steps on branches, not on instructions.
        const BTF = 1 << 1;
    }
}
