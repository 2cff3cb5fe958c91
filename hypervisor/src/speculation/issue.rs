//! The known issues, and which processors have them.
//!
//! A processor that has been mended says so in IA32_ARCH_CAPABILITIES. Which of the others have a
//! flaw is known by their model: for most flaws all have it that do not deny it; some are in the
//! models that Intel lists ("Affected Processors", in its guidance on transient execution), and in
//! no other.

use arch::cpuid::{Leaf1Ecx, Leaf7Ebx, Leaf7Sub2Edx};
use arch::msr::ArchCapabilities as Says;

use super::Processor;

/// A known issue of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "the names are those under which they are known"
)]
pub(crate) enum Issue {
    SpectreV1,
    SpectreV2,
    Meltdown,
    SpeculativeStoreBypass,
    L1TerminalFault,
    MicroarchitecturalDataSampling,
    TsxAsynchronousAbort,
    ItlbMultihit,
    SpecialRegisterBufferDataSampling,
    MmioStaleData,
    Retbleed,
    RegisterFileDataSampling,
    GatherDataSampling,
    BranchHistoryInjection,
    PostBarrierReturnStack,
    IndirectTargetSelection,
}

impl Issue {
    /// All of them, in the order in which they became known.
    pub(crate) const ALL: [Self; 16] = [
        Self::SpectreV1,
        Self::SpectreV2,
        Self::Meltdown,
        Self::SpeculativeStoreBypass,
        Self::L1TerminalFault,
        Self::MicroarchitecturalDataSampling,
        Self::TsxAsynchronousAbort,
        Self::ItlbMultihit,
        Self::SpecialRegisterBufferDataSampling,
        Self::MmioStaleData,
        Self::Retbleed,
        Self::RegisterFileDataSampling,
        Self::GatherDataSampling,
        Self::BranchHistoryInjection,
        Self::PostBarrierReturnStack,
        Self::IndirectTargetSelection,
    ];

    /// Returns the name under which Linux's folder `vulnerabilities` has it, or its list of bugs in `/proc/cpuinfo`.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SpectreV1 => "spectre_v1",
            Self::SpectreV2 => "spectre_v2",
            Self::Meltdown => "meltdown",
            Self::SpeculativeStoreBypass => "spec_store_bypass",
            Self::L1TerminalFault => "l1tf",
            Self::MicroarchitecturalDataSampling => "mds",
            Self::TsxAsynchronousAbort => "tsx_async_abort",
            Self::ItlbMultihit => "itlb_multihit",
            Self::SpecialRegisterBufferDataSampling => "srbds",
            Self::MmioStaleData => "mmio_stale_data",
            Self::Retbleed => "retbleed",
            Self::RegisterFileDataSampling => "reg_file_data_sampling",
            Self::GatherDataSampling => "gather_data_sampling",
            Self::BranchHistoryInjection => "branch_history_injection",
            Self::PostBarrierReturnStack => "eibrs_pbrsb",
            Self::IndirectTargetSelection => "indirect_target_selection",
        }
    }
}

bitflags::bitflags! {
    /// The facts that a model is known for: flaws that only listed models have, and flaws that a
    /// model is known not to have although it cannot say so.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Known: u16 {
        const SRBDS = 1 << 0;
        const MMIO = 1 << 1;
        const RETBLEED = 1 << 2;
        const RFDS = 1 << 3;
        const GDS = 1 << 4;
        const ITS = 1 << 5;
        const NO_SSB = 1 << 6;
        const NO_L1TF = 1 << 7;
        const NO_MDS = 1 << 8;
        const NO_ITLB_MULTIHIT = 1 << 9;
        const NO_PBRSB = 1 << 10;
    }
}

/// Returns what the model of family 6 is known for; `None` for one that is not listed at all, which is as
/// new as this list or newer, or older than Haswell.
fn known(model: u32, stepping: u32) -> Option<Known> {
    const CORE_CLIENT: Known = Known::MMIO
        .union(Known::RETBLEED)
        .union(Known::GDS)
        .union(Known::SRBDS);
    const ATOM: Known = Known::NO_SSB
        .union(Known::NO_L1TF)
        .union(Known::NO_ITLB_MULTIHIT);
    let its = |from| {
        if stepping >= from {
            Known::ITS
        } else {
            Known::empty()
        }
    };
    Some(match model {
        // Silvermont and Airmont; Knights Landing and Knights Mill.
        0x37 | 0x4a | 0x4c | 0x4d | 0x5a | 0x5d | 0x57 | 0x85 => ATOM,
        // Goldmont, which has no enhanced IBRS, and Goldmont Plus.
        0x5c | 0x5f | 0x7a => {
            Known::NO_L1TF | Known::NO_MDS | Known::NO_ITLB_MULTIHIT | Known::RFDS | Known::NO_PBRSB
        }
        // Tremont: servers, and clients.
        0x86 | 0x9c => Known::MMIO | Known::RFDS | Known::NO_ITLB_MULTIHIT | Known::NO_PBRSB,
        0x96 => Known::MMIO | Known::RFDS | Known::NO_PBRSB,
        // Ivy Bridge, Haswell and Broadwell: clients.
        0x3a | 0x3c | 0x45 | 0x46 | 0x3d | 0x47 => Known::SRBDS,
        // Haswell and Broadwell: servers.
        0x3f | 0x4f | 0x56 => Known::MMIO,
        // Skylake-SP; from stepping 5 on Cascade Lake and Cooper Lake.
        0x55 => Known::MMIO | Known::RETBLEED | Known::GDS | its(6),
        // Skylake, clients.
        0x4e | 0x5e => CORE_CLIENT,
        // Kaby Lake, Coffee Lake and what was called so later.
        0x8e => CORE_CLIENT | its(0xc),
        0x9e => CORE_CLIENT | its(0xd),
        // Cannon Lake.
        0x66 => Known::RETBLEED,
        // Comet Lake.
        0xa5 | 0xa6 => Known::MMIO | Known::RETBLEED | Known::GDS | Known::ITS,
        // Ice Lake: clients, and servers.
        0x7d | 0x7e => Known::MMIO | Known::RETBLEED | Known::GDS | Known::ITS,
        0x6a | 0x6c => Known::MMIO | Known::GDS | Known::ITS,
        // Tiger Lake.
        0x8c | 0x8d => Known::GDS | Known::ITS,
        // Lakefield, Rocket Lake.
        0x8a => Known::MMIO | Known::RETBLEED,
        0xa7 => Known::MMIO | Known::RETBLEED | Known::GDS | Known::ITS,
        // Alder Lake and Raptor Lake, whose small cores are Gracemont, and Gracemont alone.
        0x97 | 0x9a | 0xb7 | 0xba | 0xbf | 0xbe => Known::RFDS,
        _ => return None,
    })
}

impl Processor {
    /// Returns whether it has this issue. In doubt it has.
    #[must_use]
    pub(crate) fn has(&self, issue: Issue) -> bool {
        let known = if self.intel && self.family == 6 {
            known(self.model, self.stepping)
        } else {
            None
        };
        let listed = |flaw| known.is_some_and(|known| known.contains(flaw));
        match issue {
            Issue::SpectreV1 | Issue::SpectreV2 => true,
            Issue::Meltdown => !self.says(Says::RDCL_NO),
            Issue::SpeculativeStoreBypass => !self.says(Says::SSB_NO) && !listed(Known::NO_SSB),
            Issue::L1TerminalFault => !self.says(Says::RDCL_NO) && !listed(Known::NO_L1TF),
            Issue::MicroarchitecturalDataSampling => {
                !self.says(Says::MDS_NO) && !listed(Known::NO_MDS)
            }
            Issue::TsxAsynchronousAbort => self.has_rtm() && !self.says(Says::TAA_NO),
            Issue::ItlbMultihit => {
                !self.says(Says::PSCHANGE_MC_NO) && !listed(Known::NO_ITLB_MULTIHIT)
            }
            Issue::SpecialRegisterBufferDataSampling => {
                let has_generator = self.leaf1_ecx.contains(Leaf1Ecx::RDRAND)
                    || self.leaf7_ebx.contains(Leaf7Ebx::RDSEED);
                // Those without MDS leak only by TSX.
                let can_leak = !self.says(Says::MDS_NO) || self.has_rtm();
                listed(Known::SRBDS) && has_generator && can_leak
            }
            Issue::MmioStaleData => {
                let denied = Says::SBDR_SSDP_NO | Says::FBSDP_NO | Says::PSDP_NO;
                let old = known.is_none() && !self.says(Says::RDCL_NO);
                !self.says(denied) && (listed(Known::MMIO) || old)
            }
            Issue::Retbleed => listed(Known::RETBLEED) || self.says(Says::RSBA),
            Issue::RegisterFileDataSampling => {
                !self.says(Says::RFDS_NO) && (self.says(Says::RFDS_CLEAR) || listed(Known::RFDS))
            }
            Issue::GatherDataSampling => {
                !self.says(Says::GDS_NO)
                    && (self.says(Says::GDS_CTRL) || listed(Known::GDS))
                    && self.leaf1_ecx.contains(Leaf1Ecx::AVX)
            }
            Issue::BranchHistoryInjection => self.intel && !self.says(Says::BHI_NO),
            Issue::PostBarrierReturnStack => {
                self.says(Says::IBRS_ALL) && !self.says(Says::PBRSB_NO) && !listed(Known::NO_PBRSB)
            }
            Issue::IndirectTargetSelection => {
                // What has BHI_DIS_S has another branch predictor.
                !self.says(Says::ITS_NO)
                    && !self.leaf7_2_edx.contains(Leaf7Sub2Edx::BHI_CTRL)
                    && listed(Known::ITS)
            }
        }
    }

    /// Returns whether it mistakes indirect targets within one privilege level only, if it does: a
    /// guest's do not reach the host.
    pub(super) const fn keeps_targets_of_guests_apart(&self) -> bool {
        matches!(self.model, 0x7d | 0x7e | 0x6a | 0x6c | 0x8c | 0x8d | 0xa7)
    }
}
