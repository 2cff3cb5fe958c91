use arch::cpuid::EXTENDED;
use proptest::prelude::*;

use super::table::MAX_BASIC;
use super::*;

pub(super) const ALL: VmxSupport = VmxSupport {
    rdtscp: true,
    invpcid: true,
    xsaves: true,
};
const ONE: Topology = Topology {
    vcpus: 1,
    apic_id: 0,
};

fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuIdResult {
    CpuIdResult { eax, ebx, ecx, edx }
}

/// A Skylake-X, as Bochs emulates it.
pub(super) fn skylake_x(leaf_number: u32, subleaf: u32) -> CpuIdResult {
    match (leaf_number, subleaf) {
        (0, _) => leaf(0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
        (1, _) => leaf(0x0005_0654, 0x0004_0800, 0x7FFE_F3BF, 0xBFEB_FBFF),
        (2, _) => leaf(0x7603_6301, 0x00F0_B5FF, 0, 0x00C3_0000),
        (4, 0) => leaf(0x1C00_4121, 0x01C0_003F, 0x3F, 0),
        (4, 1) => leaf(0x1C00_4122, 0x01C0_003F, 0x3F, 0),
        (4, 2) => leaf(0x1C00_4143, 0x03C0_003F, 0x3FF, 0),
        (4, 3) => leaf(0x1C03_C163, 0x0280_003F, 0x2FFF, 4),
        (5, _) => leaf(64, 64, 3, 0x2020),
        (6, _) => leaf(0x75, 2, 9, 0),
        (7, 0) => leaf(0, 0xD19F_27EB, 8, 0),
        (0xA, _) => leaf(0x0730_0404, 0, 0, 0x603),
        (0xD, 0) => leaf(0xFF, 2696, 2696, 0),
        (0xD, 1) => leaf(0xF, 2696, 0, 0),
        (0xD, 2) => leaf(256, 576, 0, 0),
        (0xD, 3) => leaf(64, 960, 0, 0),
        (0xD, 4) => leaf(64, 1024, 0, 0),
        (0xD, 5) => leaf(64, 1088, 0, 0),
        (0xD, 6) => leaf(512, 1152, 0, 0),
        (0xD, 7) => leaf(1024, 1664, 0, 0),
        (0x15, _) => leaf(2, 0x124, 0, 0),
        (0x8000_0000, _) => leaf(0x8000_0008, 0, 0, 0),
        (0x8000_0001, _) => leaf(0, 0, 0x121, 0x2C10_0800),
        (0x8000_0002..=0x8000_0004, _) => leaf(leaf_number, 2, 3, 4),
        (0x8000_0006, _) => leaf(0, 0, 0x0100_6040, 0),
        (0x8000_0007, _) => leaf(0, 0, 0, 0x100),
        (0x8000_0008, _) => leaf(0x302E, 0x200, 7, 8),
        (0x17.., _) => leaf(0xDAC, 0xFA0, 0x64, 0),
        _ => NONE,
    }
}

pub(super) const AFTER_RESET: Dynamic = Dynamic {
    cr4: 0,
    xcr0: 1,
    apic_enabled: true,
    in_64_bit_mode: false,
};

fn table_with(vmx: VmxSupport, topology: Topology) -> CpuidTable {
    table_on(skylake_x, vmx, topology)
}

fn table_on(
    host: impl Fn(u32, u32) -> CpuIdResult,
    vmx: VmxSupport,
    topology: Topology,
) -> CpuidTable {
    let tsc = TscRatio::new(Hertz::new(100_000_000));
    CpuidTable::new(host, vmx, topology, tsc)
}

fn table() -> CpuidTable {
    table_with(ALL, ONE)
}

fn answer(leaf: u32, subleaf: u32) -> CpuIdResult {
    table().lookup(leaf, subleaf, || AFTER_RESET)
}

pub(super) fn has(register: u32, bit: u32) -> bool {
    register >> bit & 1 != 0
}

#[test]
fn what_is_not_virtualized_is_hidden_though_the_host_has_it() {
    let features = answer(1, 0);
    for (name, bit) in [
        ("DTES64", 2),
        ("MONITOR", 3),
        ("VMX", 5),
        ("EIST", 7),
        ("PDCM", 15),
        ("OSXSAVE", 27),
    ] {
        assert!(!has(features.ecx, bit), "{name}");
    }
    for (name, bit) in [("DS", 21), ("ACPI", 22), ("TM", 29), ("PBE", 31)] {
        assert!(!has(features.edx, bit), "{name}");
    }
    let structured = answer(7, 0);
    assert!(!has(structured.ebx, 14), "MPX");
    assert!(!has(structured.ecx, 3), "PKU");
    assert_eq!(answer(0xA, 0), NONE, "no performance monitoring");
    assert_eq!(answer(5, 0), NONE, "no MONITOR");
}

#[test]
fn what_tarpit_makes_is_shown_though_the_host_may_lack_it() {
    let bare = |leaf_number, subleaf| match leaf_number {
        1 | 7 => NONE,
        _ => skylake_x(leaf_number, subleaf),
    };
    let tsc = TscRatio::new(Hertz::new(1_000_000_000));
    let table = CpuidTable::new(bare, ALL, ONE, tsc);
    let features = table.lookup(1, 0, || AFTER_RESET);
    for (name, bit) in [("x2APIC", 21), ("TSC deadline", 24), ("hypervisor", 31)] {
        assert!(has(features.ecx, bit), "{name}");
    }
    assert!(has(features.edx, 9), "APIC");
    assert!(has(table.lookup(7, 0, || AFTER_RESET).ebx, 1), "TSC_ADJUST");
    assert!(
        has(table.lookup(0x8000_0007, 0, || AFTER_RESET).edx, 8),
        "invariant TSC"
    );
    assert!(has(table.lookup(6, 0, || AFTER_RESET).eax, 2), "ARAT");
}

#[test]
fn what_needs_a_vmx_control_is_hidden_without_it() {
    let none = VmxSupport {
        rdtscp: false,
        invpcid: false,
        xsaves: false,
    };
    let lookup = |vmx, leaf, subleaf| table_with(vmx, ONE).lookup(leaf, subleaf, || AFTER_RESET);
    for (vmx, shown) in [(ALL, true), (none, false)] {
        assert_eq!(has(lookup(vmx, 0x8000_0001, 0).edx, 27), shown, "RDTSCP");
        assert_eq!(has(lookup(vmx, 7, 0).ebx, 10), shown, "INVPCID");
        assert_eq!(has(lookup(vmx, 0xD, 1).eax, 3), shown, "XSAVES");
    }
}

#[test]
fn osxsave_follows_cr4() {
    let state = Dynamic {
        cr4: arch::Cr4Flags::OSXSAVE.bits(),
        ..AFTER_RESET
    };
    assert!(has(table().lookup(1, 0, || state).ecx, 27));
    assert!(!has(table().lookup(1, 0, || AFTER_RESET).ecx, 27));
}

#[test]
fn syscall_is_shown_in_64_bit_mode_alone() {
    let state = Dynamic {
        in_64_bit_mode: true,
        ..AFTER_RESET
    };
    assert!(has(table().lookup(0x8000_0001, 0, || state).edx, 11));
    assert!(!has(table().lookup(0x8000_0001, 0, || AFTER_RESET).edx, 11));
}

#[test]
fn the_apic_bit_follows_ia32_apic_base() {
    let state = Dynamic {
        apic_enabled: false,
        ..AFTER_RESET
    };
    assert!(!has(table().lookup(1, 0, || state).edx, 9));
    assert!(has(table().lookup(1, 0, || AFTER_RESET).edx, 9));
}

#[test]
fn the_size_of_the_xsave_area_follows_xcr0() {
    let size = |xcr0, subleaf| {
        let state = Dynamic {
            xcr0,
            ..AFTER_RESET
        };
        table().lookup(0xD, subleaf, || state).ebx
    };
    assert_eq!(size(0b1, 0), 576);
    assert_eq!(size(0b111, 0), 832);
    assert_eq!(size(0xE7, 0), 2688);
    // Compacted, the hole of MPX between AVX and AVX-512 closes.
    assert_eq!(size(0xE7, 1), 2432);
}

#[test]
fn components_that_are_not_shown_have_no_subleaf() {
    let main = answer(0xD, 0);
    assert_eq!((main.eax, main.edx), (0xE7, 0), "no MPX");
    assert_eq!(main.ecx, 2688);
    assert_eq!(answer(0xD, 3), NONE);
    assert_eq!(answer(0xD, 2).eax, 256);
    assert_eq!(answer(0xD, 9), NONE);
    assert_eq!(answer(0xD, u32::MAX), NONE);
}

#[test]
fn control_registers_offer_what_cpuid_shows() {
    let limits = table().limits();
    let cr4 = limits.cr4;
    for (name, bit, offered) in [
        ("PAE", 5, true),
        ("OSFXSR", 9, true),
        ("UMIP", 11, false),
        ("LA57", 12, false),
        ("VMXE", 13, false),
        ("SMXE", 14, false),
        ("FSGSBASE", 16, true),
        ("PCIDE", 17, true),
        ("OSXSAVE", 18, true),
        ("SMEP", 20, true),
        ("SMAP", 21, true),
        ("PKE", 22, false),
        ("CET", 23, false),
    ] {
        assert_eq!(cr4 >> bit & 1 != 0, offered, "{name}");
    }
    assert_eq!(limits.efer, 0xD01);
    assert_eq!((limits.xcr0, limits.xsave_bytes), (0xE7, 2688));
    assert_eq!(limits.physical_address_bits, 46);
    assert!(limits.tsc_aux && limits.xss && !limits.arch_capabilities);
    assert!(limits.spec_ctrl.is_empty() && !limits.pred_cmd && !limits.flush_cmd);
}

#[test]
fn controls_of_speculation_are_those_that_the_host_has() {
    // IBRS and IBPB, STIBP, L1D_FLUSH, SSBD.
    for bits in 0..16_u32 {
        let has = |bit: u32| bits >> bit & 1 != 0;
        let edx = u32::from(has(0)) << 26
            | u32::from(has(1)) << 27
            | u32::from(has(2)) << 28
            | u32::from(has(3)) << 31;
        let host = |leaf_number, subleaf| match (leaf_number, subleaf) {
            (7, 0) => CpuIdResult {
                edx,
                ..skylake_x(7, 0)
            },
            _ => skylake_x(leaf_number, subleaf),
        };
        let table = table_on(host, ALL, ONE);
        assert_eq!(table.lookup(7, 0, || AFTER_RESET).edx & edx, edx);
        let limits = table.limits();
        let spec_ctrl = u64::from(has(0)) | u64::from(has(1)) << 1 | u64::from(has(3)) << 2;
        assert_eq!(limits.spec_ctrl.bits(), spec_ctrl, "{bits:#b}");
        assert_eq!(limits.pred_cmd, has(0), "{bits:#b}");
        assert_eq!(limits.flush_cmd, has(2), "{bits:#b}");
    }
}

#[test]
fn leaves_that_do_not_exist_read_as_the_last_basic_one() {
    let last = answer(0x16, 0);
    assert_eq!(last.eax, 100, "MHz");
    for leaf in [0x17, 0x1F, 0x3FFF_FFFF, 0x4000_0001, 0x8000_0009, u32::MAX] {
        assert_eq!(answer(leaf, 0), last, "{leaf:#x}");
    }
}

#[test]
fn the_hypervisor_has_a_name() {
    let found = answer(0x4000_0000, 0);
    let name = [found.ebx, found.ecx, found.edx]
        .map(u32::to_le_bytes)
        .concat();
    assert_eq!(name, b"TarpitTarpit");
    assert_eq!(found.eax, 0x4000_0000);
}

#[test]
fn each_vcpu_is_a_core_of_one_package() {
    for vcpus in 1..=8 {
        let guest = GuestCpuid::new(skylake_x, ALL, vcpus, Hertz::new(1_000_000_000));
        for apic_id in 0..vcpus {
            let lookup = |leaf, subleaf| guest.query(apic_id, leaf, subleaf, || AFTER_RESET);
            assert_eq!(lookup(1, 0).ebx >> 24, apic_id);
            assert_eq!(has(lookup(1, 0).edx, 28), vcpus > 1, "HTT");

            let smt = lookup(0xB, 0);
            assert_eq!((smt.eax, smt.ebx, smt.ecx), (0, 1, 0x100));
            let core = lookup(0xB, 1);
            assert_eq!((core.ebx, core.ecx), (vcpus, 0x201));
            assert_eq!(apic_id >> core.eax, 0, "all are in package 0");
            let end = lookup(0xB, 2);
            assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
            for level in [smt, core, end] {
                assert_eq!(level.edx, apic_id);
            }

            let addressable = vcpus.next_power_of_two();
            let (l1, l3) = (lookup(4, 0), lookup(4, 3));
            assert_eq!((l1.eax >> 26) + 1, addressable);
            assert_eq!(l1.eax >> 14 & 0xFFF, 0, "L1 is private");
            assert_eq!((l3.eax >> 14 & 0xFFF) + 1, addressable, "L3 is shared");
            assert_eq!(lookup(1, 0).ebx >> 16 & 0xFF, addressable);
            assert_eq!(lookup(4, 4), NONE);
        }
    }
}

#[test]
fn features_whose_state_the_host_cannot_save_are_not_shown() {
    for (components, xcr0) in [(0xFF, 0xE7), (0x7F, 7), (7, 7), (3, 3), (1, 0), (0, 0)] {
        let masked = |number, subleaf| match (number, subleaf) {
            (0xD, 0) => leaf(components, 2696, 2696, 0),
            _ => skylake_x(number, subleaf),
        };
        let tsc = TscRatio::new(Hertz::new(1_000_000_000));
        let table = CpuidTable::new(masked, ALL, ONE, tsc);
        assert_eq!(table.limits().xcr0, xcr0, "{components:#x}");
        let leaf1 = table.lookup(1, 0, || AFTER_RESET).ecx;
        let leaf7 = table.lookup(7, 0, || AFTER_RESET).ebx;
        let shown = (has(leaf1, 26), has(leaf1, 28), has(leaf7, 16));
        assert_eq!(
            shown,
            (xcr0 != 0, xcr0 & 4 != 0, xcr0 & 0xE0 != 0),
            "{components:#x}"
        );
    }
}

#[test]
fn a_host_without_xsave_has_no_leaf_d_and_no_avx() {
    let old = |leaf_number, subleaf| {
        let mut found = skylake_x(leaf_number, subleaf);
        if leaf_number == 1 {
            found.ecx &= !(1 << 26);
        }
        found
    };
    let tsc = TscRatio::new(Hertz::new(1_000_000_000));
    let table = CpuidTable::new(old, ALL, ONE, tsc);
    assert_eq!(table.lookup(0xD, 0, || AFTER_RESET), NONE);
    assert!(!has(table.lookup(1, 0, || AFTER_RESET).ecx, 28), "AVX");
    let structured = table.lookup(7, 0, || AFTER_RESET);
    assert!(
        !has(structured.ebx, 5) && !has(structured.ebx, 16),
        "AVX2, AVX-512"
    );
    assert_eq!(table.limits().xcr0, 0);
}

proptest! {
    #[test]
    fn leaf_15_tells_the_frequency_of_the_tsc(hz in 1_000_000_u64..20_000_000_000) {
        let tsc = TscRatio::new(Hertz::new(hz));
        let table = CpuidTable::new(skylake_x, ALL, ONE, tsc);
        let found = table.lookup(0x15, 0, || AFTER_RESET);
        let told = u64::from(found.ecx) * u64::from(found.ebx) / u64::from(found.eax);
        prop_assert!(told.abs_diff(hz) <= 1 || hz > 3 * u64::from(u32::MAX));
        prop_assert!(told.abs_diff(hz) <= u64::from(found.ebx) / 2 + 1);
        prop_assert_eq!(tsc.apic_timer_hz().get(), u64::from(found.ecx));
        // Linux's way: in kilohertz and 32 bits.
        if hz <= u64::from(u32::MAX) {
            prop_assert_eq!((found.ecx / 1000).checked_mul(found.ebx).unwrap(), (hz / 1000) as u32);
        }
    }

    #[test]
    fn no_leaf_makes_the_lookup_panic(leaf: u32, subleaf: u32, cr4: u64, xcr0: u64) {
        let state = Dynamic { cr4, xcr0, apic_enabled: true, in_64_bit_mode: true };
        let table = table();
        let _ = table.lookup(leaf, subleaf, || state);
        let _ = table.lookup(leaf & 0x1F, subleaf & 0xF, || state);
    }

    #[test]
    fn nothing_is_shown_that_neither_host_nor_tarpit_has(leaf in 0_u32..0x20, garbage: u32) {
        // A host with every bit set must not leak more than the allow-list.
        let full = |leaf_number, _| match leaf_number {
            0 => leaf_of_ones(0x20),
            EXTENDED => leaf_of_ones(0x8000_0008),
            _ => leaf_of_ones(u32::MAX),
        };
        let tsc = TscRatio::new(Hertz::new(1_000_000_000));
        let table = CpuidTable::new(full, ALL, ONE, tsc);
        prop_assert!(!has(table.lookup(1, garbage, || AFTER_RESET).ecx, 5), "VMX");
        if leaf > MAX_BASIC {
            prop_assert_eq!(
                table.lookup(leaf, garbage, || AFTER_RESET),
                table.lookup(MAX_BASIC, garbage, || AFTER_RESET)
            );
        }
    }
}

fn leaf_of_ones(eax: u32) -> CpuIdResult {
    leaf(eax, u32::MAX, u32::MAX, u32::MAX)
}
