//! Feature bits of CPUID (SDM vol. 2A, the page of CPUID): a type for each register of a leaf,
//! the bits by the names of the manual. They are the bits that the workspace has a use for.
#![allow(missing_docs, reason = "the names are the manual's")]

/// The leaf with the highest extended leaf; extended leaves are counted from here.
pub const EXTENDED: u32 = 0x8000_0000;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident { $($bit:ident = $number:literal),* $(,)? })*) => {
        bitflags::bitflags! {
            $(
                $(#[$doc])*
                #[derive(Clone, Copy, Debug, PartialEq, Eq)]
                pub struct $name: u32 {
                    $(const $bit = 1 << $number;)*
                }
            )*
        }
    };
}

registers! {
    /// Leaf 1, ECX.
    Leaf1Ecx {
        SSE3 = 0, PCLMULQDQ = 1, VMX = 5, SSSE3 = 9, FMA = 12, CMPXCHG16B = 13, PCID = 17,
        SSE4_1 = 19, SSE4_2 = 20, X2APIC = 21, MOVBE = 22, POPCNT = 23, TSC_DEADLINE = 24,
        AESNI = 25, XSAVE = 26, OSXSAVE = 27, AVX = 28, F16C = 29, RDRAND = 30,
        // Zero on processors; hypervisors set it in guests.
        HYPERVISOR = 31,
    }

    /// Leaf 1, EDX.
    Leaf1Edx {
        FPU = 0, VME = 1, DE = 2, PSE = 3, TSC = 4, MSR = 5, PAE = 6, MCE = 7, CX8 = 8,
        APIC = 9, SEP = 11, MTRR = 12, PGE = 13, MCA = 14, CMOV = 15, PAT = 16, PSE36 = 17,
        CLFSH = 19, MMX = 23, FXSR = 24, SSE = 25, SSE2 = 26, SS = 27, HTT = 28,
    }

    /// Leaf 7, sub-leaf 0, EBX.
    Leaf7Ebx {
        FSGSBASE = 0, TSC_ADJUST = 1, BMI1 = 3, AVX2 = 5, FDP_EXCPTN_ONLY = 6, SMEP = 7,
        BMI2 = 8, ERMS = 9, INVPCID = 10, RTM = 11, NO_FPU_CS_DS = 13, AVX512F = 16, AVX512DQ = 17,
        RDSEED = 18, ADX = 19, SMAP = 20, AVX512_IFMA = 21, CLFLUSHOPT = 23, CLWB = 24,
        AVX512CD = 28, SHA = 29, AVX512BW = 30, AVX512VL = 31,
    }

    /// Leaf 7, sub-leaf 0, ECX.
    Leaf7Ecx {
        PREFETCHWT1 = 0, AVX512_VBMI = 1, UMIP = 2, AVX512_VBMI2 = 6, GFNI = 8, VAES = 9,
        VPCLMULQDQ = 10, AVX512_VNNI = 11, AVX512_BITALG = 12, AVX512_VPOPCNTDQ = 14,
        RDPID = 22, CLDEMOTE = 25, MOVDIRI = 27, MOVDIR64B = 28,
    }

    /// Leaf 7, sub-leaf 0, EDX.
    Leaf7Edx {
        FSRM = 4, AVX512_VP2INTERSECT = 8, SRBDS_CTRL = 9, MD_CLEAR = 10, RTM_ALWAYS_ABORT = 11,
        SERIALIZE = 14, AVX512_FP16 = 23, IBRS_IBPB = 26, STIBP = 27, L1D_FLUSH = 28,
        ARCH_CAPABILITIES = 29, SSBD = 31,
    }

    /// Leaf 7, sub-leaf 1, EAX.
    Leaf7Sub1Eax {
        AVX_VNNI = 4, AVX512_BF16 = 5, FAST_ZERO_MOVSB = 10, FAST_SHORT_STOSB = 11,
        FAST_SHORT_CMPSB = 12, AVX_IFMA = 23,
    }

    /// Leaf 7, sub-leaf 2, EDX.
    Leaf7Sub2Edx { BHI_CTRL = 4 }

    /// Leaf DH, sub-leaf 1, EAX.
    LeafDSub1Eax { XSAVEOPT = 0, XSAVEC = 1, XGETBV1 = 2, XSAVES = 3 }

    /// Leaf 80000001H, ECX.
    Extended1Ecx { LAHF64 = 0, LZCNT = 5, PREFETCHW = 8 }

    /// Leaf 80000001H, EDX.
    Extended1Edx { SYSCALL = 11, NX = 20, PAGE_1G = 26, RDTSCP = 27, LONG_MODE = 29 }
}
