//! The allow-list of CPU features. A bit that is not named here, no guest sees.
//!
//! Left out on purpose: what has a control or an MSR that is not virtualised (VMX, SMX,
//! MONITOR/MWAIT, performance counters and debug store, processor trace, SGX, RDT,
//! thermal and power management, WAITPKG, ENQCMD, PCONFIG, user interrupts, CET, AMX,
//! protection keys, 5-level paging, SPEC_CTRL and its like), and what is deprecated
//! (TSX, MPX).

use super::{EXTENDED, VmxSupport};
use raw_cpuid::CpuIdResult;

/// CR4.OSXSAVE.
pub(super) const CR4_OSXSAVE: u64 = 1 << 18;
/// CPUID.1:ECX.OSXSAVE: shows CR4's bit.
pub(super) const OSXSAVE: u32 = 1 << 27;
/// CPUID.1:EDX.APIC: shows whether it is enabled.
pub(super) const APIC: u32 = 1 << 9;

/// CPUID.80000001H:EDX.SYSCALL: shows whether the instruction is there in the present mode.
pub(super) const SYSCALL: u32 = 1 << 11;

const XSAVE: u32 = 1 << 26;
const AVX: u32 = 1 << 28;
const AVX512F: u32 = 1 << 16;

/// Defines a set of feature bits by their names and numbers.
macro_rules! bits {
    ($($(#[$doc:meta])* $set:ident = { $($name:ident: $bit:literal),* $(,)? };)*) => {
        $($(#[$doc])* const $set: u32 = 0 $(| { const $name: u32 = 1 << $bit; $name })*;)*
    };
}

bits! {
    LEAF1_ECX = {
        SSE3: 0, PCLMULQDQ: 1, SSSE3: 9, FMA: 12, CMPXCHG16B: 13, PCID: 17, SSE4_1: 19,
        SSE4_2: 20, MOVBE: 22, POPCNT: 23, AESNI: 25, XSAVE: 26, AVX: 28, F16C: 29,
        RDRAND: 30,
    };
    /// Ours whatever the host's CPU has: tarpit makes them.
    LEAF1_ECX_MADE = { X2APIC: 21, TSC_DEADLINE: 24, HYPERVISOR: 31 };
    LEAF1_EDX = {
        FPU: 0, VME: 1, DE: 2, PSE: 3, TSC: 4, MSR: 5, PAE: 6, CX8: 8, SEP: 11, PGE: 13,
        CMOV: 15, PAT: 16, PSE36: 17, CLFSH: 19, MMX: 23, FXSR: 24, SSE: 25, SSE2: 26,
        SS: 27,
    };
    LEAF1_EDX_MADE = { MCE: 7, APIC: 9, MTRR: 12, MCA: 14 };
    LEAF7_EBX = {
        FSGSBASE: 0, BMI1: 3, AVX2: 5, FDP_EXCPTN_ONLY: 6, SMEP: 7, BMI2: 8, ERMS: 9,
        INVPCID: 10, NO_FPU_CS_DS: 13, AVX512F: 16, AVX512DQ: 17, RDSEED: 18, ADX: 19,
        SMAP: 20, AVX512_IFMA: 21, CLFLUSHOPT: 23, CLWB: 24, AVX512CD: 28, SHA: 29,
        AVX512BW: 30, AVX512VL: 31,
    };
    LEAF7_EBX_MADE = { TSC_ADJUST: 1 };
    LEAF7_ECX = {
        PREFETCHWT1: 0, AVX512_VBMI: 1, UMIP: 2, AVX512_VBMI2: 6, GFNI: 8, VAES: 9,
        VPCLMULQDQ: 10, AVX512_VNNI: 11, AVX512_BITALG: 12, AVX512_VPOPCNTDQ: 14,
        RDPID: 22, CLDEMOTE: 25, MOVDIRI: 27, MOVDIR64B: 28,
    };
    LEAF7_EDX = {
        FSRM: 4, AVX512_VP2INTERSECT: 8, MD_CLEAR: 10, SERIALIZE: 14, AVX512_FP16: 23,
        ARCH_CAPABILITIES: 29,
    };
    LEAF7_1_EAX = {
        AVX_VNNI: 4, AVX512_BF16: 5, FAST_ZERO_MOVSB: 10, FAST_SHORT_STOSB: 11,
        FAST_SHORT_CMPSB: 12, AVX_IFMA: 23,
    };
    EXTENDED1_ECX = { LAHF64: 0, LZCNT: 5, PREFETCHW: 8 };
    EXTENDED1_EDX = { SYSCALL: 11, NX: 20, PAGE_1G: 26, RDTSCP: 27, LONG_MODE: 29 };

    NEEDS_INVPCID = { INVPCID: 10 };
    NEEDS_RDTSCP_EXTENDED1_EDX = { RDTSCP: 27 };
    NEEDS_RDTSCP_LEAF7_ECX = { RDPID: 22 };

    /// What is useless, and undefined, without AVX.
    NEEDS_AVX_LEAF1_ECX = { FMA: 12, F16C: 29 };
    NEEDS_AVX_LEAF7_EBX = {
        AVX2: 5, AVX512F: 16, AVX512DQ: 17, AVX512_IFMA: 21, AVX512CD: 28, AVX512BW: 30,
        AVX512VL: 31,
    };
    NEEDS_AVX_LEAF7_ECX = { VAES: 9, VPCLMULQDQ: 10 };
    NEEDS_AVX_LEAF7_1_EAX = { AVX_VNNI: 4, AVX_IFMA: 23 };
    /// The same for the state that AVX-512 needs.
    NEEDS_AVX512_LEAF7_EBX = {
        AVX512F: 16, AVX512DQ: 17, AVX512_IFMA: 21, AVX512CD: 28, AVX512BW: 30, AVX512VL: 31,
    };
    NEEDS_AVX512_LEAF7_ECX = {
        AVX512_VBMI: 1, AVX512_VBMI2: 6, AVX512_VNNI: 11, AVX512_BITALG: 12,
        AVX512_VPOPCNTDQ: 14,
    };
    NEEDS_AVX512_LEAF7_EDX = { AVX512_VP2INTERSECT: 8, AVX512_FP16: 23 };
    NEEDS_AVX512_LEAF7_1_EAX = { AVX512_BF16: 5 };
}

/// The features that a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub leaf1_ecx: u32,
    pub leaf1_edx: u32,
    pub leaf7_ebx: u32,
    pub leaf7_ecx: u32,
    pub leaf7_edx: u32,
    pub leaf7_1_eax: u32,
    pub extended1_ecx: u32,
    pub extended1_edx: u32,
    /// Whether XSAVES and XRSTORS may be shown.
    pub xsaves: bool,
}

impl Allowed {
    pub(super) fn new(host: &impl Fn(u32, u32) -> CpuIdResult, vmx: VmxSupport) -> Self {
        let leaf1 = host(1, 0);
        let leaf7 = host(7, 0);
        // A sub-leaf that is not there reads as zero.
        let leaf7_1 = host(7, 1);
        let extended1 = host(EXTENDED + 1, 0);
        let mut allowed = Self {
            leaf1_ecx: leaf1.ecx & LEAF1_ECX | LEAF1_ECX_MADE,
            leaf1_edx: leaf1.edx & LEAF1_EDX | LEAF1_EDX_MADE,
            leaf7_ebx: leaf7.ebx & LEAF7_EBX | LEAF7_EBX_MADE,
            leaf7_ecx: leaf7.ecx & LEAF7_ECX,
            leaf7_edx: leaf7.edx & LEAF7_EDX,
            leaf7_1_eax: leaf7_1.eax & LEAF7_1_EAX,
            extended1_ecx: extended1.ecx & EXTENDED1_ECX,
            extended1_edx: extended1.edx & EXTENDED1_EDX,
            xsaves: vmx.xsaves,
        };
        if !vmx.invpcid {
            allowed.leaf7_ebx &= !NEEDS_INVPCID;
        }
        if !vmx.rdtscp {
            allowed.leaf7_ecx &= !NEEDS_RDTSCP_LEAF7_ECX;
            allowed.extended1_edx &= !NEEDS_RDTSCP_EXTENDED1_EDX;
        }
        if !allowed.has_xsave() {
            allowed.leaf1_ecx &= !AVX;
        }
        if !allowed.has_avx() {
            allowed.leaf1_ecx &= !NEEDS_AVX_LEAF1_ECX;
            allowed.leaf7_ebx &= !NEEDS_AVX_LEAF7_EBX;
            allowed.leaf7_ecx &= !NEEDS_AVX_LEAF7_ECX;
            allowed.leaf7_1_eax &= !NEEDS_AVX_LEAF7_1_EAX;
        }
        if !allowed.has_avx512() {
            allowed.leaf7_ebx &= !NEEDS_AVX512_LEAF7_EBX;
            allowed.leaf7_ecx &= !NEEDS_AVX512_LEAF7_ECX;
            allowed.leaf7_edx &= !NEEDS_AVX512_LEAF7_EDX;
            allowed.leaf7_1_eax &= !NEEDS_AVX512_LEAF7_1_EAX;
        }
        allowed
    }

    pub(super) const fn has_xsave(&self) -> bool {
        self.leaf1_ecx & XSAVE != 0
    }

    pub(super) const fn has_avx(&self) -> bool {
        self.leaf1_ecx & AVX != 0
    }

    pub(super) const fn has_avx512(&self) -> bool {
        self.leaf7_ebx & AVX512F != 0
    }

    pub(super) const fn has_tsc_aux(&self) -> bool {
        self.extended1_edx & NEEDS_RDTSCP_EXTENDED1_EDX != 0
            || self.leaf7_ecx & NEEDS_RDTSCP_LEAF7_ECX != 0
    }

    pub(super) const fn has_arch_capabilities(&self) -> bool {
        self.leaf7_edx & 1 << 29 != 0
    }

    /// The bits of CR4 that come with these features (SDM vol. 3, 2.5).
    pub(super) const fn cr4(&self) -> u64 {
        /// OSFXSR and OSXMMEXCPT, with SSE; PCE and MCE, always.
        const ALWAYS: u64 = 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10;
        // CR4 bits, each with the register and bit that it depends on.
        let dependent = [
            (0b11, self.leaf1_edx, 1),         // VME and PVI: VME
            (1 << 2, self.leaf1_edx, 4),       // TSD: TSC
            (1 << 3, self.leaf1_edx, 2),       // DE
            (1 << 4, self.leaf1_edx, 3),       // PSE
            (1 << 5, self.leaf1_edx, 6),       // PAE
            (1 << 7, self.leaf1_edx, 13),      // PGE
            (1 << 11, self.leaf7_ecx, 2),      // UMIP
            (1 << 16, self.leaf7_ebx, 0),      // FSGSBASE
            (1 << 17, self.leaf1_ecx, 17),     // PCIDE: PCID
            (CR4_OSXSAVE, self.leaf1_ecx, 26), // XSAVE
            (1 << 20, self.leaf7_ebx, 7),      // SMEP
            (1 << 21, self.leaf7_ebx, 20),     // SMAP
        ];
        let mut bits = ALWAYS;
        let mut index = 0;
        while index < dependent.len() {
            let (cr4, register, bit) = dependent[index];
            if register >> bit & 1 != 0 {
                bits |= cr4;
            }
            index += 1;
        }
        bits
    }

    /// The bits of IA32_EFER that come with these features: SCE; LME and LMA; NXE.
    pub(super) const fn efer(&self) -> u64 {
        let (syscall, nx, long_mode) = (1 << 11, 1 << 20, 1 << 29);
        let mut bits = 0;
        if self.extended1_edx & syscall != 0 {
            bits |= 1;
        }
        if self.extended1_edx & long_mode != 0 {
            bits |= 1 << 8 | 1 << 10;
        }
        if self.extended1_edx & nx != 0 {
            bits |= 1 << 11;
        }
        bits
    }
}
