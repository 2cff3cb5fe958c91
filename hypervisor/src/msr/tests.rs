use devices::time::Hertz;
use proptest::prelude::*;

use super::*;
use crate::cpuid::{CpuIdResult, VmxSupport};

/// A host that can do everything, of a Skylake-X's model.
fn host(leaf: u32, _: u32) -> CpuIdResult {
    let eax = match leaf {
        0 => 0x16,
        1 => 0x0005_0654,
        0x8000_0000 => 0x8000_0008,
        0x8000_0008 => 46,
        _ => u32::MAX,
    };
    CpuIdResult {
        eax,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
    }
}

fn msrs_with(xsaves: bool) -> Msrs {
    msrs_on(host, xsaves)
}

fn msrs_on(host: fn(u32, u32) -> CpuIdResult, xsaves: bool) -> Msrs {
    let vmx = VmxSupport {
        rdtscp: true,
        invpcid: true,
        xsaves,
    };
    let cpuid = GuestCpuid::new(host, vmx, 1, Hertz::new(3_500_000_000));
    Msrs::new(
        &cpuid,
        &HostMsrs {
            microcode_revision: 1,
            arch_capabilities: u64::MAX,
        },
    )
}

pub(super) fn msrs() -> Msrs {
    msrs_with(true)
}

#[test]
fn linux_may_use_the_tsc_deadline_timer() {
    let mut msrs = msrs();
    // As it asks for the revision: write zero, CPUID, read.
    msrs.write(IA32_BIOS_SIGN_ID, 0).unwrap();
    assert_eq!(msrs.read(IA32_BIOS_SIGN_ID), Ok(0x0200_0014 << 32));
}

#[test]
fn misc_enable_reads_back_what_may_be_written() {
    let mut msrs = msrs();
    let start = msrs.read(IA32_MISC_ENABLE).unwrap();
    assert_eq!(start, 0x1801);
    let value = 0x4_00C5_0809 & !0x1880 | start & 0x1880;
    msrs.write(IA32_MISC_ENABLE, value).unwrap();
    assert_eq!(msrs.read(IA32_MISC_ENABLE), Ok(value));
    for wrong in [start | 1 << 1, start | 1 << 63] {
        assert_eq!(
            msrs.write(IA32_MISC_ENABLE, wrong),
            Err(GeneralProtection),
            "{wrong:#x}"
        );
        assert_eq!(msrs.read(IA32_MISC_ENABLE), Ok(value));
    }
}

#[test]
fn writes_to_read_only_bits_of_misc_enable_are_ignored() {
    let mut msrs = msrs();
    // Performance monitoring available, and branch trace storage and PEBS unavailable.
    msrs.write(IA32_MISC_ENABLE, 1 | 1 << 7).unwrap();
    assert_eq!(msrs.read(IA32_MISC_ENABLE), Ok(0x1801));
}

#[test]
fn vmx_is_locked_away() {
    let mut msrs = msrs();
    assert_eq!(msrs.read(IA32_FEATURE_CONTROL), Ok(1));
    assert_eq!(msrs.write(IA32_FEATURE_CONTROL, 5), Err(GeneralProtection));
    for vmx in 0x480..=0x491 {
        assert_eq!(msrs.read(vmx), Err(GeneralProtection));
    }
}

#[test]
fn there_are_no_machine_check_banks() {
    let mut msrs = msrs();
    assert_eq!(msrs.read(IA32_MCG_CAP), Ok(0));
    for bank in 0x400..0x480 {
        assert_eq!(msrs.read(bank), Err(GeneralProtection));
        assert_eq!(msrs.write(bank, 0), Err(GeneralProtection));
    }
    msrs.write(IA32_MCG_STATUS, 0).unwrap();
    assert_eq!(msrs.write(IA32_MCG_STATUS, 8), Err(GeneralProtection));
}

#[test]
fn arch_capabilities_tell_of_flaws_that_are_not_there_and_of_no_controls_but_spec_ctrl() {
    let shown = msrs().read(IA32_ARCH_CAPABILITIES).unwrap();
    for (name, bit, is_shown) in [
        ("RDCL_NO", 0, true),
        ("IBRS_ALL", 1, true),
        ("SKIP_L1DFL_VMENTRY", 3, false),
        ("SSB_NO", 4, true),
        ("MDS_NO", 5, true),
        ("IF_PSCHANGE_MC_NO", 6, true),
        ("TSX_CTRL", 7, false),
        ("TAA_NO", 8, true),
        ("ENERGY_FILTERING_CTL", 11, false),
        ("SBDR_SSDP_NO", 13, true),
        ("FBSDP_NO", 14, true),
        ("PSDP_NO", 15, true),
        ("FB_CLEAR", 17, false),
        ("RRSBA", 19, false),
        ("BHI_NO", 20, true),
        ("PBRSB_NO", 24, true),
        ("GDS_CTRL", 25, false),
        ("GDS_NO", 26, true),
        ("RFDS_NO", 27, true),
        ("RFDS_CLEAR", 28, false),
    ] {
        assert_eq!(shown >> bit & 1 != 0, is_shown, "{name}");
    }
    assert_eq!(shown >> 29, 0);
}

#[test]
fn enhanced_ibrs_is_told_of_only_where_the_guest_has_spec_ctrl() {
    let without_ibrs = |leaf, subleaf| {
        let mut answer = host(leaf, subleaf);
        if leaf == 7 {
            answer.edx &= !(1 << 26);
        }
        answer
    };
    let shown = msrs_on(without_ibrs, true).read(IA32_ARCH_CAPABILITIES);
    assert_eq!(shown.unwrap() & ArchCapabilities::IBRS_ALL.bits(), 0);
}

#[test]
fn xss_exists_only_with_xsaves() {
    assert_eq!(msrs_with(true).read(IA32_XSS), Ok(0));
    assert_eq!(msrs_with(true).write(IA32_XSS, 0), Ok(()));
    assert_eq!(
        msrs_with(true).write(IA32_XSS, 1 << 8),
        Err(GeneralProtection)
    );
    assert_eq!(msrs_with(false).read(IA32_XSS), Err(GeneralProtection));
    assert_eq!(msrs_with(false).write(IA32_XSS, 0), Err(GeneralProtection));
}

#[test]
fn debugctl_steps_on_branches_and_traces_nothing() {
    assert_eq!(check_debugctl(2), Ok(()));
    // LBR, TR, BTS.
    for bit in [0, 6, 7] {
        assert_eq!(check_debugctl(1 << bit), Err(GeneralProtection));
    }
}

#[test]
fn platform_info_tells_the_base_ratio() {
    assert_eq!(msrs().read(MSR_PLATFORM_INFO), Ok(35 << 8));
}

#[test]
fn msrs_of_others_are_not_here() {
    let mut msrs = msrs();
    let theirs = [
        IA32_TIME_STAMP_COUNTER,
        IA32_APIC_BASE,
        IA32_TSC_ADJUST,
        IA32_TSC_DEADLINE,
        IA32_EFER,
        IA32_DEBUGCTL,
        IA32_TSC_AUX,
        IA32_SPEC_CTRL,
        IA32_PRED_CMD,
        IA32_FLUSH_CMD,
        0x802,
    ];
    for msr in theirs.into_iter().chain(pass_through()) {
        assert_eq!(msrs.read(msr), Err(GeneralProtection), "{msr:#x}");
        assert_eq!(msrs.write(msr, 0), Err(GeneralProtection), "{msr:#x}");
    }
}

proptest! {
    #[test]
    fn a_refused_write_changes_nothing(msr in prop_oneof![0..0x1000_u32, any::<u32>()], value: u64) {
        let mut msrs = msrs();
        let before = msrs.read(msr);
        if msrs.write(msr, value).is_err() {
            prop_assert_eq!(msrs.read(msr), before);
        } else {
            prop_assert!(msrs.read(msr).is_ok());
        }
    }
}
