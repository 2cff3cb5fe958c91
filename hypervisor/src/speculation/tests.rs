//! A table of real processors: what they enumerate, which issues they have, and what becomes of them.

use alloc::string::ToString;
use alloc::vec::Vec;

use arch::cpuid::{Leaf1Ecx, Leaf7Ebx, Leaf7Edx, Leaf7Sub2Edx};
use arch::msr::{ArchCapabilities as Says, McuOptCtrl, SpecCtrl};
use proptest::prelude::*;
use vmx::entry::ReturnStack;

use super::defenses::Status;
use super::*;
use crate::machine::speculation::Remedies;

/// The features that microcode of 2018 and later enumerates.
const CONTROLS: Leaf7Edx = Leaf7Edx::IBRS_IBPB
    .union(Leaf7Edx::STIBP)
    .union(Leaf7Edx::SSBD)
    .union(Leaf7Edx::ARCH_CAPABILITIES);
const BUFFERS: Leaf7Edx = Leaf7Edx::MD_CLEAR.union(Leaf7Edx::L1D_FLUSH);
/// The flaws that processors since Cascade Lake deny, and the features that they have.
const MENDED: Says = Says::RDCL_NO
    .union(Says::IBRS_ALL)
    .union(Says::SKIP_L1DFL_VMENTRY)
    .union(Says::MDS_NO);
const NO_MMIO: Says = Says::SBDR_SSDP_NO
    .union(Says::FBSDP_NO)
    .union(Says::PSDP_NO);

/// A processor of Intel's with AVX, RDRAND and RDSEED.
fn intel(model: u32, stepping: u32) -> Processor {
    Processor {
        intel: true,
        family: 6,
        model,
        stepping,
        leaf1_ecx: Leaf1Ecx::AVX | Leaf1Ecx::RDRAND,
        leaf7_ebx: Leaf7Ebx::RDSEED,
        leaf7_edx: Leaf7Edx::empty(),
        leaf7_2_edx: Leaf7Sub2Edx::empty(),
        capabilities: Says::empty(),
    }
}

impl Processor {
    fn rtm(mut self) -> Self {
        self.leaf7_ebx |= Leaf7Ebx::RTM;
        self
    }

    fn edx(mut self, features: Leaf7Edx) -> Self {
        self.leaf7_edx |= features;
        self
    }

    fn says_also(mut self, capabilities: Says) -> Self {
        self.capabilities |= capabilities;
        self
    }

    fn bhi_ctrl(mut self) -> Self {
        self.leaf7_2_edx |= Leaf7Sub2Edx::BHI_CTRL;
        self
    }
}

fn westmere_without_microcode() -> Processor {
    Processor {
        leaf1_ecx: Leaf1Ecx::empty(),
        leaf7_ebx: Leaf7Ebx::empty(),
        ..intel(0x2c, 2)
    }
}

fn skylake_sp() -> Processor {
    intel(0x55, 4)
        .rtm()
        .edx(CONTROLS | BUFFERS)
        .says_also(Says::RSBA | Says::FB_CLEAR | Says::GDS_CTRL | Says::RFDS_NO)
}

fn kaby_lake() -> Processor {
    intel(0x9e, 9)
        .rtm()
        .edx(CONTROLS | BUFFERS | Leaf7Edx::SRBDS_CTRL)
        .says_also(Says::RSBA | Says::FB_CLEAR | Says::GDS_CTRL | Says::RFDS_NO)
}

fn cascade_lake() -> Processor {
    intel(0x55, 7)
        .rtm()
        .edx(CONTROLS | BUFFERS)
        .says_also(MENDED | Says::TSX_CTRL | Says::FB_CLEAR | Says::GDS_CTRL | Says::RFDS_NO)
}

fn ice_lake_sp() -> Processor {
    intel(0x6a, 6).rtm().edx(CONTROLS | BUFFERS).says_also(
        MENDED
            | Says::PSCHANGE_MC_NO
            | Says::TSX_CTRL
            | Says::TAA_NO
            | Says::FB_CLEAR
            | Says::GDS_CTRL
            | Says::RFDS_NO,
    )
}

fn tiger_lake() -> Processor {
    intel(0x8c, 1).edx(CONTROLS | BUFFERS).says_also(
        MENDED | Says::PSCHANGE_MC_NO | Says::TAA_NO | NO_MMIO | Says::GDS_CTRL | Says::RFDS_NO,
    )
}

fn alder_lake() -> Processor {
    intel(0x97, 2).bhi_ctrl().edx(CONTROLS | BUFFERS).says_also(
        MENDED
            | Says::PSCHANGE_MC_NO
            | Says::TAA_NO
            | NO_MMIO
            | Says::FB_CLEAR
            | Says::GDS_NO
            | Says::RFDS_CLEAR,
    )
}

fn sapphire_rapids() -> Processor {
    intel(0x8f, 8)
        .rtm()
        .bhi_ctrl()
        .edx(CONTROLS | BUFFERS)
        .says_also(
            MENDED
                | Says::PSCHANGE_MC_NO
                | Says::TSX_CTRL
                | Says::TAA_NO
                | NO_MMIO
                | Says::GDS_NO
                | Says::RFDS_NO
                | Says::ITS_NO,
        )
}

fn goldmont_plus() -> Processor {
    Processor {
        leaf1_ecx: Leaf1Ecx::RDRAND,
        ..intel(0x7a, 8)
    }
    .edx(CONTROLS | BUFFERS)
    .says_also(Says::RDCL_NO | Says::SKIP_L1DFL_VMENTRY | Says::RFDS_CLEAR | NO_MMIO)
}

fn issues(processor: &Processor) -> Vec<&'static str> {
    let has = |issue: &Issue| processor.has(*issue);
    Issue::ALL
        .into_iter()
        .filter(has)
        .map(Issue::name)
        .collect()
}

#[test]
fn each_processor_has_the_issues_that_it_is_known_for() {
    let table: &[(&str, Processor, &str)] = &[
        (
            "Westmere-EP without microcode",
            westmere_without_microcode(),
            "spectre_v1 spectre_v2 meltdown spec_store_bypass l1tf mds itlb_multihit \
             mmio_stale_data branch_history_injection",
        ),
        (
            "Haswell, client",
            intel(0x3c, 3).edx(CONTROLS | BUFFERS | Leaf7Edx::SRBDS_CTRL),
            "spectre_v1 spectre_v2 meltdown spec_store_bypass l1tf mds itlb_multihit srbds \
             branch_history_injection",
        ),
        (
            "Skylake-SP",
            skylake_sp(),
            "spectre_v1 spectre_v2 meltdown spec_store_bypass l1tf mds tsx_async_abort \
             itlb_multihit mmio_stale_data retbleed gather_data_sampling branch_history_injection",
        ),
        (
            "Kaby Lake",
            kaby_lake(),
            "spectre_v1 spectre_v2 meltdown spec_store_bypass l1tf mds tsx_async_abort \
             itlb_multihit srbds mmio_stale_data retbleed gather_data_sampling \
             branch_history_injection",
        ),
        (
            "Coffee Lake, stepping 13, TSX off",
            intel(0x9e, 13)
                .edx(CONTROLS | BUFFERS | Leaf7Edx::SRBDS_CTRL)
                .says_also(MENDED | Says::TSX_CTRL | Says::FB_CLEAR | Says::GDS_CTRL),
            "spectre_v1 spectre_v2 spec_store_bypass itlb_multihit mmio_stale_data retbleed \
             gather_data_sampling branch_history_injection eibrs_pbrsb indirect_target_selection",
        ),
        (
            "Cascade Lake",
            cascade_lake(),
            "spectre_v1 spectre_v2 spec_store_bypass tsx_async_abort itlb_multihit \
             mmio_stale_data retbleed gather_data_sampling branch_history_injection \
             eibrs_pbrsb indirect_target_selection",
        ),
        (
            "Ice Lake-SP",
            ice_lake_sp(),
            "spectre_v1 spectre_v2 spec_store_bypass mmio_stale_data gather_data_sampling \
             branch_history_injection eibrs_pbrsb indirect_target_selection",
        ),
        (
            "Tiger Lake",
            tiger_lake(),
            "spectre_v1 spectre_v2 spec_store_bypass gather_data_sampling \
             branch_history_injection eibrs_pbrsb indirect_target_selection",
        ),
        (
            "Alder Lake",
            alder_lake(),
            "spectre_v1 spectre_v2 spec_store_bypass reg_file_data_sampling \
             branch_history_injection eibrs_pbrsb",
        ),
        (
            "Sapphire Rapids",
            sapphire_rapids(),
            "spectre_v1 spectre_v2 spec_store_bypass branch_history_injection eibrs_pbrsb",
        ),
        (
            "Goldmont Plus",
            goldmont_plus(),
            "spectre_v1 spectre_v2 spec_store_bypass reg_file_data_sampling \
             branch_history_injection",
        ),
        (
            "Silvermont",
            Processor {
                leaf1_ecx: Leaf1Ecx::RDRAND,
                ..intel(0x4d, 8)
            },
            "spectre_v1 spectre_v2 meltdown mds branch_history_injection",
        ),
    ];
    for (name, processor, expected) in table {
        let expected: Vec<_> = expected.split_whitespace().collect();
        assert_eq!(issues(processor), expected, "{name}");
    }
}

#[test]
fn what_is_done_is_what_the_processor_needs_and_can() {
    let done = |processor| Defenses::new(processor, true, McuOptCtrl::empty()).remedies();
    let nothing = Remedies::NONE;
    assert_eq!(
        done(westmere_without_microcode()),
        Remedies {
            no_execution_in_large_pages: true,
            ..nothing
        }
    );
    assert_eq!(
        done(skylake_sp()),
        Remedies {
            spec_ctrl: SpecCtrl::IBRS,
            spec_ctrl_at_exits: true,
            return_stack: ReturnStack::Fill,
            no_execution_in_large_pages: true,
            branch_barrier: true,
            clear_buffers: true,
            flush_l1d: true,
            ..nothing
        }
    );
    assert_eq!(
        done(cascade_lake()),
        Remedies {
            spec_ctrl: SpecCtrl::IBRS,
            return_stack: ReturnStack::CallFirst,
            no_execution_in_large_pages: true,
            disable_tsx: true,
            branch_barrier: true,
            clear_buffers: true,
            ..nothing
        }
    );
    assert_eq!(
        done(sapphire_rapids()),
        Remedies {
            spec_ctrl: SpecCtrl::IBRS | SpecCtrl::BHI_DIS_S,
            return_stack: ReturnStack::CallFirst,
            disable_tsx: true,
            branch_barrier: true,
            ..nothing
        }
    );
}

#[test]
fn a_call_at_exits_is_for_those_that_need_it_alone() {
    let return_stack = |processor| {
        Defenses::new(processor, true, McuOptCtrl::empty())
            .remedies()
            .return_stack
    };
    let mended = sapphire_rapids().says_also(Says::PBRSB_NO);
    assert_eq!(return_stack(mended), ReturnStack::Keep);
    assert!(!mended.has(Issue::PostBarrierReturnStack));
    let tremont = intel(0x86, 4).edx(CONTROLS | BUFFERS).says_also(MENDED);
    assert_eq!(return_stack(tremont), ReturnStack::Keep);
}

#[test]
fn ibrs_counts_as_it_is_done() {
    let shown = |processor, issue| status(processor, issue).to_string();
    assert_eq!(
        shown(skylake_sp(), Issue::SpectreV2),
        "mitigated: IBRS and a filled return stack at exits; IBPB at a change of VM"
    );
    assert_eq!(
        shown(skylake_sp(), Issue::Retbleed),
        "mitigated: IBRS at exits"
    );
    assert_eq!(
        shown(cascade_lake(), Issue::SpectreV2),
        "mitigated: enhanced IBRS in the host; IBPB at a change of VM"
    );
    assert_eq!(
        shown(cascade_lake(), Issue::PostBarrierReturnStack),
        "mitigated: a call and LFENCE at exits"
    );
    let old = intel(0x5e, 3);
    assert_eq!(shown(old, Issue::Retbleed), "vulnerable: no microcode");
}

fn status(processor: Processor, issue: Issue) -> Status {
    Defenses::new(processor, true, McuOptCtrl::empty()).status(issue)
}

#[test]
fn without_microcode_what_needs_it_is_open() {
    let old = westmere_without_microcode();
    for issue in [
        Issue::SpectreV2,
        Issue::L1TerminalFault,
        Issue::MicroarchitecturalDataSampling,
    ] {
        assert_eq!(status(old, issue), Status::Vulnerable("no microcode"));
    }
    assert_eq!(
        status(old, Issue::TsxAsynchronousAbort).to_string(),
        "not affected"
    );
}

#[test]
fn what_threads_of_a_core_share_is_open_while_they_run_different_vms() {
    for issue in [
        Issue::L1TerminalFault,
        Issue::MicroarchitecturalDataSampling,
    ] {
        let alone = Defenses::new(skylake_sp(), true, McuOptCtrl::empty());
        assert!(matches!(alone.status(issue), Status::Mitigated(_)));
        let shared = Defenses::new(skylake_sp(), false, McuOptCtrl::empty());
        assert_eq!(
            shared.status(issue).to_string(),
            "vulnerable: the threads of a core run different VMs"
        );
    }
}

#[test]
fn a_remedy_of_microcode_counts_only_while_it_is_on() {
    let off = McuOptCtrl::RNGDS_MITG_DIS | McuOptCtrl::GDS_MITG_DIS;
    for issue in [
        Issue::SpecialRegisterBufferDataSampling,
        Issue::GatherDataSampling,
    ] {
        assert_eq!(
            status(kaby_lake(), issue),
            Status::Mitigated("by microcode")
        );
        let switched_off = Defenses::new(kaby_lake(), true, off).status(issue);
        assert!(matches!(switched_off, Status::Vulnerable(_)));
    }
}

#[test]
fn transactions_that_are_switched_off_leak_nothing() {
    assert_eq!(
        status(cascade_lake(), Issue::TsxAsynchronousAbort).to_string(),
        "mitigated: TSX switched off"
    );
    assert_eq!(
        status(skylake_sp(), Issue::TsxAsynchronousAbort).to_string(),
        "mitigated: VERW at a change of VM"
    );
}

proptest! {
    /// Nothing is said to be done that the processor has no means for.
    #[test]
    fn no_processor_is_asked_for_what_it_does_not_have(
        model: u8, stepping in 0u32..16, ebx: u32, edx: u32, sub2: u32, capabilities: u64
    ) {
        let processor = Processor {
            leaf7_ebx: Leaf7Ebx::from_bits_retain(ebx),
            leaf7_edx: Leaf7Edx::from_bits_retain(edx),
            leaf7_2_edx: Leaf7Sub2Edx::from_bits_retain(sub2),
            capabilities: Says::from_bits_retain(capabilities),
            ..intel(model.into(), stepping)
        };
        let defenses = Defenses::new(processor, true, McuOptCtrl::empty());
        let remedies = defenses.remedies();
        let has = |feature| processor.leaf7_edx.contains(feature);
        prop_assert!(has(Leaf7Edx::IBRS_IBPB) || !remedies.branch_barrier);
        prop_assert!(has(Leaf7Edx::IBRS_IBPB) || remedies.spec_ctrl.is_empty());
        prop_assert!(!remedies.spec_ctrl_at_exits || remedies.spec_ctrl.contains(SpecCtrl::IBRS));
        prop_assert!(has(Leaf7Edx::MD_CLEAR) || !remedies.clear_buffers);
        prop_assert!(has(Leaf7Edx::L1D_FLUSH) || !remedies.flush_l1d);
        for issue in Issue::ALL {
            let status = defenses.status(issue);
            prop_assert_eq!(status == Status::NotAffected, !processor.has(issue));
            if let Status::Mitigated(how) = status {
                prop_assert!(remedies.branch_barrier || !how.contains("IBPB"), "{}", how);
                let at_exits = remedies.spec_ctrl_at_exits || !how.contains("IBRS at exits");
                prop_assert!(at_exits, "{}", how);
                let sets_ibrs = remedies.spec_ctrl.contains(SpecCtrl::IBRS);
                prop_assert!(sets_ibrs || !how.contains("IBRS"), "{}", how);
                prop_assert!(remedies.clear_buffers || !how.contains("VERW"), "{}", how);
                prop_assert!(remedies.disable_tsx || !how.contains("TSX"), "{}", how);
            }
        }
    }
}
