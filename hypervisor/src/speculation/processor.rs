//! What a processor tells of itself, as far as it matters to its flaws.

use arch::cpuid::{Leaf1Ecx, Leaf7Ebx, Leaf7Edx, Leaf7Sub2Edx};
use arch::msr::ArchCapabilities;
use raw_cpuid::CpuIdResult;

/// A processor: its model, and what it says of its flaws and its remedies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Processor {
    /// Whether Intel made it: its lists name no others.
    pub intel: bool,
    /// The family, with the extended one.
    pub family: u32,
    /// The model, with the extended one.
    pub model: u32,
    /// The stepping.
    pub stepping: u32,
    /// CPUID leaf 1, ECX.
    pub leaf1_ecx: Leaf1Ecx,
    /// CPUID leaf 7, EBX.
    pub leaf7_ebx: Leaf7Ebx,
    /// CPUID leaf 7, EDX.
    pub leaf7_edx: Leaf7Edx,
    /// CPUID leaf 7, sub-leaf 2, EDX.
    pub leaf7_2_edx: Leaf7Sub2Edx,
    /// IA32_ARCH_CAPABILITIES; empty if it does not exist.
    pub capabilities: ArchCapabilities,
}

impl Processor {
    /// Reads a processor's CPUID by `cpuid` (leaf, sub-leaf); `arch_capabilities` is its
    /// IA32_ARCH_CAPABILITIES, zero if it does not exist.
    #[must_use]
    pub(crate) fn new(cpuid: impl Fn(u32, u32) -> CpuIdResult, arch_capabilities: u64) -> Self {
        let vendor = cpuid(0, 0);
        let leaf1 = cpuid(1, 0);
        // Intel's CPUs answer a leaf that they do not have with another one's data.
        let leaf7 = (vendor.eax >= 7).then(|| cpuid(7, 0));
        let leaf7_2 = leaf7
            .filter(|leaf| leaf.eax >= 2)
            .map_or(0, |_| cpuid(7, 2).edx);
        let (family, model, stepping) = signature(leaf1.eax);
        Self {
            intel: [vendor.ebx, vendor.edx, vendor.ecx]
                == [b"Genu", b"ineI", b"ntel"].map(|part| u32::from_le_bytes(*part)),
            family,
            model,
            stepping,
            leaf1_ecx: Leaf1Ecx::from_bits_retain(leaf1.ecx),
            leaf7_ebx: Leaf7Ebx::from_bits_retain(leaf7.map_or(0, |leaf| leaf.ebx)),
            leaf7_edx: Leaf7Edx::from_bits_retain(leaf7.map_or(0, |leaf| leaf.edx)),
            leaf7_2_edx: Leaf7Sub2Edx::from_bits_retain(leaf7_2),
            capabilities: ArchCapabilities::from_bits_retain(arch_capabilities),
        }
    }

    /// Returns whether software can ask for transactions: RTM is there, and does not abort always.
    pub(super) const fn has_rtm(&self) -> bool {
        self.leaf7_ebx.contains(Leaf7Ebx::RTM)
            && !self.leaf7_edx.contains(Leaf7Edx::RTM_ALWAYS_ABORT)
    }

    /// Returns whether it has IA32_MCU_OPT_CTRL.
    #[must_use]
    pub(crate) const fn has_mcu_opt_ctrl(&self) -> bool {
        self.leaf7_edx.contains(Leaf7Edx::SRBDS_CTRL) || self.says(ArchCapabilities::GDS_CTRL)
    }

    pub(super) const fn says(&self, capability: ArchCapabilities) -> bool {
        self.capabilities.contains(capability)
    }
}

/// Returns family, model and stepping of CPUID leaf 1, EAX (SDM vol. 2A, CPUID).
const fn signature(eax: u32) -> (u32, u32, u32) {
    let base_family = eax >> 8 & 0xf;
    let base_model = eax >> 4 & 0xf;
    let family = match base_family {
        0xf => 0xf + (eax >> 20 & 0xff),
        _ => base_family,
    };
    let model = match base_family {
        6 | 0xf => (eax >> 16 & 0xf) << 4 | base_model,
        _ => base_model,
    };
    (family, model, eax & 0xf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_manual() {
        // Skylake-SP, Pentium 4 (Cedar Mill), Pentium.
        assert_eq!(signature(0x0005_0654), (6, 0x55, 4));
        assert_eq!(signature(0x0000_0f65), (15, 6, 5));
        assert_eq!(signature(0x0000_0525), (5, 2, 5));
    }

    #[test]
    fn a_leaf_that_is_not_there_is_not_asked() {
        let old = |leaf, _| {
            assert!(leaf <= 1, "leaf {leaf:#x}");
            CpuIdResult {
                eax: if leaf == 0 { 5 } else { 0x206c2 },
                ebx: u32::from_le_bytes(*b"Genu"),
                edx: u32::from_le_bytes(*b"ineI"),
                ecx: u32::from_le_bytes(*b"ntel"),
            }
        };
        let processor = Processor::new(old, 0);
        assert!(processor.intel);
        assert_eq!(processor.model, 0x2c);
        assert!(processor.leaf7_edx.is_empty() && processor.leaf7_2_edx.is_empty());
    }
}
