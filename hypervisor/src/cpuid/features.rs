//! The allow-list of CPU features. A bit that is not named here, no guest sees.
//!
//! Left out on purpose: what has a control or an MSR that is not virtualized (VMX, SMX,
//! MONITOR/MWAIT, performance counters and debug store, processor trace, SGX, RDT,
//! thermal and power management, WAITPKG, ENQCMD, PCONFIG, user interrupts, CET, AMX,
//! protection keys, 5-level paging, the controls of speculation that sub-leaf 2 of leaf 7 names), and
//! what is deprecated (TSX, MPX).

use arch::cpuid::*;
use arch::msr::SpecCtrl;
use arch::{Cr4Flags, EferFlags, XCr0Flags};
use raw_cpuid::CpuIdResult;

use super::{VmxSupport, xsave};

/// Defines sets of feature bits by their names.
macro_rules! sets {
    ($($(#[$doc:meta])* $set:ident: $type:ident = $($name:ident)*;)*) => {
        $($(#[$doc])* const $set: $type = $type::empty()$(.union($type::$name))*;)*
    };
}

sets! {
    LEAF1_ECX: Leaf1Ecx =
        SSE3 PCLMULQDQ SSSE3 FMA CMPXCHG16B PCID SSE4_1 SSE4_2 MOVBE POPCNT AESNI XSAVE AVX F16C
        RDRAND;
    /// The features that guests have whatever the host's CPU has: tarpit makes them.
    LEAF1_ECX_MADE: Leaf1Ecx = X2APIC TSC_DEADLINE HYPERVISOR;
    LEAF1_EDX: Leaf1Edx =
        FPU VME DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS;
    LEAF1_EDX_MADE: Leaf1Edx = MCE APIC MTRR MCA;
    LEAF7_EBX: Leaf7Ebx =
        FSGSBASE BMI1 AVX2 FDP_EXCPTN_ONLY SMEP BMI2 ERMS INVPCID NO_FPU_CS_DS AVX512F AVX512DQ
        RDSEED ADX SMAP AVX512_IFMA CLFLUSHOPT CLWB AVX512CD SHA AVX512BW AVX512VL;
    LEAF7_EBX_MADE: Leaf7Ebx = TSC_ADJUST;
    LEAF7_ECX: Leaf7Ecx =
        PREFETCHWT1 AVX512_VBMI UMIP AVX512_VBMI2 GFNI VAES VPCLMULQDQ AVX512_VNNI AVX512_BITALG
        AVX512_VPOPCNTDQ RDPID CLDEMOTE MOVDIRI MOVDIR64B;
    LEAF7_EDX: Leaf7Edx =
        FSRM AVX512_VP2INTERSECT MD_CLEAR SERIALIZE AVX512_FP16 IBRS_IBPB STIBP L1D_FLUSH
        ARCH_CAPABILITIES SSBD;
    LEAF7_1_EAX: Leaf7Sub1Eax =
        AVX_VNNI AVX512_BF16 FAST_ZERO_MOVSB FAST_SHORT_STOSB FAST_SHORT_CMPSB AVX_IFMA;
    EXTENDED1_ECX: Extended1Ecx = LAHF64 LZCNT PREFETCHW;
    EXTENDED1_EDX: Extended1Edx = SYSCALL NX PAGE_1G RDTSCP LONG_MODE;

    /// The features that are useless, and undefined, without AVX.
    NEEDS_AVX_LEAF1_ECX: Leaf1Ecx = FMA F16C;
    NEEDS_AVX_LEAF7_EBX: Leaf7Ebx = AVX2 AVX512F AVX512DQ AVX512_IFMA AVX512CD AVX512BW AVX512VL;
    NEEDS_AVX_LEAF7_ECX: Leaf7Ecx = VAES VPCLMULQDQ;
    NEEDS_AVX_LEAF7_1_EAX: Leaf7Sub1Eax = AVX_VNNI AVX_IFMA;
    /// The features that are useless without the state that AVX-512 needs.
    NEEDS_AVX512_LEAF7_EBX: Leaf7Ebx = AVX512F AVX512DQ AVX512_IFMA AVX512CD AVX512BW AVX512VL;
    NEEDS_AVX512_LEAF7_ECX: Leaf7Ecx =
        AVX512_VBMI AVX512_VBMI2 AVX512_VNNI AVX512_BITALG AVX512_VPOPCNTDQ;
    NEEDS_AVX512_LEAF7_EDX: Leaf7Edx = AVX512_VP2INTERSECT AVX512_FP16;
    NEEDS_AVX512_LEAF7_1_EAX: Leaf7Sub1Eax = AVX512_BF16;
}

/// The features that a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub leaf1_ecx: Leaf1Ecx,
    pub leaf1_edx: Leaf1Edx,
    pub leaf7_ebx: Leaf7Ebx,
    pub leaf7_ecx: Leaf7Ecx,
    pub leaf7_edx: Leaf7Edx,
    pub leaf7_1_eax: Leaf7Sub1Eax,
    pub extended1_ecx: Extended1Ecx,
    pub extended1_edx: Extended1Edx,
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
            leaf1_ecx: Leaf1Ecx::from_bits_retain(leaf1.ecx) & LEAF1_ECX | LEAF1_ECX_MADE,
            leaf1_edx: Leaf1Edx::from_bits_retain(leaf1.edx) & LEAF1_EDX | LEAF1_EDX_MADE,
            leaf7_ebx: Leaf7Ebx::from_bits_retain(leaf7.ebx) & LEAF7_EBX | LEAF7_EBX_MADE,
            leaf7_ecx: Leaf7Ecx::from_bits_retain(leaf7.ecx) & LEAF7_ECX,
            leaf7_edx: Leaf7Edx::from_bits_retain(leaf7.edx) & LEAF7_EDX,
            leaf7_1_eax: Leaf7Sub1Eax::from_bits_retain(leaf7_1.eax) & LEAF7_1_EAX,
            extended1_ecx: Extended1Ecx::from_bits_retain(extended1.ecx) & EXTENDED1_ECX,
            extended1_edx: Extended1Edx::from_bits_retain(extended1.edx) & EXTENDED1_EDX,
            xsaves: vmx.xsaves,
        };
        if !vmx.invpcid {
            allowed.leaf7_ebx.remove(Leaf7Ebx::INVPCID);
        }
        if !vmx.rdtscp {
            allowed.leaf7_ecx.remove(Leaf7Ecx::RDPID);
            allowed.extended1_edx.remove(Extended1Edx::RDTSCP);
        }
        // What XCR0 cannot enable is of no use, and would raise #GP in tarpit: whoever virtualizes the host may
        // leave out components and not the features.
        let components = XCr0Flags::from_bits_retain(host(0xD, 0).eax.into());
        if !components.contains(XCr0Flags::X87 | XCr0Flags::SSE) {
            allowed.leaf1_ecx.remove(Leaf1Ecx::XSAVE);
        }
        if !components.contains(XCr0Flags::AVX) {
            allowed.leaf1_ecx.remove(Leaf1Ecx::AVX);
        }
        if !components.contains(xsave::AVX512) {
            allowed.leaf7_ebx.remove(Leaf7Ebx::AVX512F);
        }
        if !allowed.has_xsave() {
            allowed.leaf1_ecx.remove(Leaf1Ecx::AVX);
        }
        if !allowed.has_avx() {
            allowed.leaf1_ecx.remove(NEEDS_AVX_LEAF1_ECX);
            allowed.leaf7_ebx.remove(NEEDS_AVX_LEAF7_EBX);
            allowed.leaf7_ecx.remove(NEEDS_AVX_LEAF7_ECX);
            allowed.leaf7_1_eax.remove(NEEDS_AVX_LEAF7_1_EAX);
        }
        if !allowed.has_avx512() {
            allowed.leaf7_ebx.remove(NEEDS_AVX512_LEAF7_EBX);
            allowed.leaf7_ecx.remove(NEEDS_AVX512_LEAF7_ECX);
            allowed.leaf7_edx.remove(NEEDS_AVX512_LEAF7_EDX);
            allowed.leaf7_1_eax.remove(NEEDS_AVX512_LEAF7_1_EAX);
        }
        allowed
    }

    pub(super) const fn has_xsave(&self) -> bool {
        self.leaf1_ecx.contains(Leaf1Ecx::XSAVE)
    }

    pub(super) const fn has_avx(&self) -> bool {
        self.leaf1_ecx.contains(Leaf1Ecx::AVX)
    }

    pub(super) const fn has_avx512(&self) -> bool {
        self.leaf7_ebx.contains(Leaf7Ebx::AVX512F)
    }

    pub(super) const fn has_tsc_aux(&self) -> bool {
        self.extended1_edx.contains(Extended1Edx::RDTSCP)
            || self.leaf7_ecx.contains(Leaf7Ecx::RDPID)
    }

    pub(super) const fn has_arch_capabilities(&self) -> bool {
        self.has_leaf7_edx(Leaf7Edx::ARCH_CAPABILITIES)
    }

    /// Returns the bits of IA32_SPEC_CTRL that come with these features (SDM vol. 4, table 2-2).
    pub(super) fn spec_ctrl(&self) -> SpecCtrl {
        let mut bits = SpecCtrl::empty();
        bits.set(SpecCtrl::IBRS, self.has_leaf7_edx(Leaf7Edx::IBRS_IBPB));
        bits.set(SpecCtrl::STIBP, self.has_leaf7_edx(Leaf7Edx::STIBP));
        bits.set(SpecCtrl::SSBD, self.has_leaf7_edx(Leaf7Edx::SSBD));
        bits
    }

    pub(super) const fn has_pred_cmd(&self) -> bool {
        self.has_leaf7_edx(Leaf7Edx::IBRS_IBPB)
    }

    pub(super) const fn has_flush_cmd(&self) -> bool {
        self.has_leaf7_edx(Leaf7Edx::L1D_FLUSH)
    }

    const fn has_leaf7_edx(&self, feature: Leaf7Edx) -> bool {
        self.leaf7_edx.contains(feature)
    }

    /// Returns the bits of CR4 that come with these features (SDM vol. 3A, 2.5).
    pub(super) fn cr4(&self) -> Cr4Flags {
        let edx = |feature| self.leaf1_edx.contains(feature);
        let mut flags = Cr4Flags::OSFXSR
            | Cr4Flags::OSXMMEXCPT_ENABLE
            | Cr4Flags::PERFORMANCE_MONITOR_COUNTER
            | Cr4Flags::MACHINE_CHECK_EXCEPTION;
        for (dependent, has) in [
            (
                Cr4Flags::VIRTUAL_8086_MODE_EXTENSIONS
                    | Cr4Flags::PROTECTED_MODE_VIRTUAL_INTERRUPTS,
                edx(Leaf1Edx::VME),
            ),
            (Cr4Flags::TIMESTAMP_DISABLE, edx(Leaf1Edx::TSC)),
            (Cr4Flags::DEBUGGING_EXTENSIONS, edx(Leaf1Edx::DE)),
            (Cr4Flags::PAGE_SIZE_EXTENSION, edx(Leaf1Edx::PSE)),
            (Cr4Flags::PHYSICAL_ADDRESS_EXTENSION, edx(Leaf1Edx::PAE)),
            (Cr4Flags::PAGE_GLOBAL, edx(Leaf1Edx::PGE)),
            (
                Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION,
                self.leaf7_ecx.contains(Leaf7Ecx::UMIP),
            ),
            (
                Cr4Flags::FSGSBASE,
                self.leaf7_ebx.contains(Leaf7Ebx::FSGSBASE),
            ),
            (Cr4Flags::PCID, self.leaf1_ecx.contains(Leaf1Ecx::PCID)),
            (Cr4Flags::OSXSAVE, self.has_xsave()),
            (
                Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
                self.leaf7_ebx.contains(Leaf7Ebx::SMEP),
            ),
            (
                Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION,
                self.leaf7_ebx.contains(Leaf7Ebx::SMAP),
            ),
        ] {
            flags.set(dependent, has);
        }
        flags
    }

    /// Returns the bits of IA32_EFER that come with these features.
    pub(super) fn efer(&self) -> EferFlags {
        let mut flags = EferFlags::empty();
        for (dependent, feature) in [
            (EferFlags::SYSTEM_CALL_EXTENSIONS, Extended1Edx::SYSCALL),
            (
                EferFlags::LONG_MODE_ENABLE | EferFlags::LONG_MODE_ACTIVE,
                Extended1Edx::LONG_MODE,
            ),
            (EferFlags::NO_EXECUTE_ENABLE, Extended1Edx::NX),
        ] {
            flags.set(dependent, self.extended1_edx.contains(feature));
        }
        flags
    }
}
