//! Walks in every paging mode, over tables built by hand.

use proptest::prelude::*;
use vmx::addr::{GuestPhysAddr, GuestVirtAddr};

use super::*;
use crate::test_ram::TestRam;

#[derive(Clone, Copy)]
pub(super) struct Registers {
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    pub(super) pdptes: [u64; 4],
}

impl PagingRegisters for Registers {
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn cr3(&self) -> u64 {
        self.cr3
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn pdpte(&self, index: usize) -> u64 {
        self.pdptes[index]
    }
    fn physical_address_bits(&self) -> u32 {
        39
    }
}

const LONG: Registers = Registers {
    cr0: 0x8001_0001,
    cr3: 0x1000,
    cr4: Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits(),
    efer: 0xd00,
    pdptes: [0; 4],
};
const THIRTY_TWO_BIT: Registers = Registers {
    cr4: Cr4Flags::PAGE_SIZE_EXTENSION.bits(),
    efer: 0,
    ..LONG
};
const PAE: Registers = Registers {
    efer: EferFlags::NO_EXECUTE_ENABLE.bits(),
    pdptes: [0, 0x2001, 0, 0],
    ..LONG
};
const ALL: u64 = PRESENT | WRITABLE | USER;

fn ram() -> TestRam {
    TestRam::new(0x10000)
}

const LINEAR: u64 = 0x7f12_3456_7abc;

/// Four-level tables that map [`LINEAR`] by the entry `leaf` at the level of `leaf_shift`.
fn map(leaf: u64, leaf_shift: u32) -> TestRam {
    let ram = ram();
    let mut table = 0x1000;
    for shift in [39, 30, 21, 12] {
        let slot = table + (LINEAR >> shift & 0x1ff) * 8;
        if shift == leaf_shift {
            ram.write_u64(slot, leaf);
            break;
        }
        ram.write_u64(slot, (table + 0x1000) | ALL);
        table += 0x1000;
    }
    ram
}

pub(super) const fn access(kind: AccessKind, user: bool) -> Access {
    Access {
        kind,
        user,
        smap_override: false,
    }
}

pub(super) fn translate(
    registers: Registers,
    ram: &TestRam,
    linear: u64,
    access: Access,
) -> Result<u64, WalkError> {
    Paging::new(&registers)
        .translate(ram, GuestVirtAddr(linear), access)
        .map(|address| address.0)
}

fn error_code(result: Result<u64, WalkError>) -> u32 {
    match result {
        Err(WalkError::Fault(fault)) => fault.error_code.bits() as u32,
        other => panic!("no fault: {other:x?}"),
    }
}

const READ: Access = access(AccessKind::Read, false);
const WRITE: Access = access(AccessKind::Write, false);
const FETCH: Access = access(AccessKind::Fetch, false);
const USER_READ: Access = access(AccessKind::Read, true);
const USER_WRITE: Access = access(AccessKind::Write, true);
const USER_FETCH: Access = access(AccessKind::Fetch, true);

#[test]
fn four_levels_with_pages_of_each_size() {
    for (frame, shift) in [
        (0x12_3456_7000, 12),
        (0x12_3440_0000, 21),
        (0x12_4000_0000, 30),
    ] {
        let leaf = frame | ALL | if shift == 12 { 0 } else { LARGE };
        let expected = frame | (LINEAR & ((1 << shift) - 1));
        assert_eq!(
            translate(LONG, &map(leaf, shift), LINEAR, READ),
            Ok(expected)
        );
        let located =
            locate_fetched_code(&map(leaf, shift), LONG.cr3, LONG.cr4, LINEAR).map(|it| it.0);
        assert_eq!(located, Some(expected));
    }
}

/// The entries on the way to `linear`, each with its level.
fn entries(registers: Registers, ram: &TestRam, linear: u64) -> std::vec::Vec<(u32, u64)> {
    let mut found = std::vec![];
    Paging::new(&registers).visit_entries(ram, GuestVirtAddr(linear), |level, entry| {
        found.push((level, entry));
    });
    found
}

#[test]
fn entries_are_told_up_to_the_one_that_leads_nowhere() {
    let leaf = 0x12_3440_0000 | ALL | LARGE;
    let upper = [(4, 0x2000 | ALL), (3, 0x3000 | ALL)];
    assert_eq!(
        entries(LONG, &map(leaf, 21), LINEAR),
        [upper[0], upper[1], (2, leaf)]
    );
    let missing = ram();
    assert_eq!(entries(LONG, &missing, LINEAR), [(4, 0)]);
    assert_eq!(entries(PAE, &missing, 0x4000_0000), [(3, 0x2001), (2, 0)]);
    assert_eq!(entries(PAE, &missing, 0), [(3, 0)]);
    missing.write_u32(0x1000, 0x3000 | ALL as u32);
    assert_eq!(
        entries(THIRTY_TWO_BIT, &missing, 0),
        [(2, 0x3000 | ALL), (1, 0)]
    );
    let nowhere = Registers {
        cr3: 1 << 38,
        ..LONG
    };
    assert_eq!(entries(nowhere, &missing, LINEAR), [(4, u64::MAX)]);
    let off = Registers { cr0: 1, ..LONG };
    assert!(entries(off, &missing, LINEAR).is_empty());
}

#[test]
fn five_levels() {
    let linear = 0x00ab_7f12_3456_7abc;
    let ram = map(0x4_5000 | ALL, 12);
    // One level more on top, at 0x8000.
    ram.write_u64(0x8000 + (linear >> 48 & 0x1ff) * 8, 0x1000 | ALL);
    let registers = Registers {
        cr3: 0x8000,
        cr4: Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() | Cr4Flags::L5_PAGING.bits(),
        ..LONG
    };
    assert_eq!(translate(registers, &ram, linear, READ), Ok(0x4_5abc));
    assert_eq!(
        locate_fetched_code(&ram, registers.cr3, registers.cr4, linear),
        Some(GuestPhysAddr(0x4_5abc))
    );
}

#[test]
fn what_is_not_present_faults_without_the_protection_bit() {
    let ram = map(0, 12);
    assert_eq!(error_code(translate(LONG, &ram, LINEAR, READ)), 0);
    assert_eq!(error_code(translate(LONG, &ram, LINEAR, WRITE)), 2);
    assert_eq!(error_code(translate(LONG, &ram, LINEAR, USER_READ)), 4);
    assert_eq!(error_code(translate(LONG, &ram, LINEAR, USER_FETCH)), 0x14);
    let old = Registers {
        efer: 0x500,
        ..LONG
    };
    assert_eq!(
        error_code(translate(old, &ram, LINEAR, FETCH)),
        0,
        "I/D is for those that can tell fetches: NXE or SMEP"
    );
}

#[test]
fn rights_are_what_all_levels_grant() {
    let kernel = map(0x5000 | PRESENT | WRITABLE, 12);
    assert_eq!(translate(LONG, &kernel, LINEAR, WRITE), Ok(0x5abc));
    assert_eq!(error_code(translate(LONG, &kernel, LINEAR, USER_READ)), 5);

    let read_only = map(0x5000 | PRESENT | USER, 12);
    assert_eq!(translate(LONG, &read_only, LINEAR, USER_READ), Ok(0x5abc));
    assert_eq!(
        error_code(translate(LONG, &read_only, LINEAR, USER_WRITE)),
        7
    );
    assert_eq!(error_code(translate(LONG, &read_only, LINEAR, WRITE)), 3);
    let no_wp = Registers {
        cr0: 0x8000_0001,
        ..LONG
    };
    assert_eq!(translate(no_wp, &read_only, LINEAR, WRITE), Ok(0x5abc));
    assert_eq!(
        error_code(translate(no_wp, &read_only, LINEAR, USER_WRITE)),
        7
    );

    let no_execute = map(0x5000 | ALL | NO_EXECUTE, 12);
    assert_eq!(
        error_code(translate(LONG, &no_execute, LINEAR, FETCH)),
        0x11
    );
    assert_eq!(
        error_code(translate(LONG, &no_execute, LINEAR, USER_FETCH)),
        0x15
    );
    assert_eq!(translate(LONG, &no_execute, LINEAR, USER_READ), Ok(0x5abc));
}

#[test]
fn smep_and_smap_keep_the_kernel_off_user_pages() {
    let user = map(0x5000 | ALL, 12);
    let guarded = Registers {
        cr4: Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits()
            | Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits()
            | Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits(),
        ..LONG
    };
    assert_eq!(error_code(translate(guarded, &user, LINEAR, FETCH)), 0x11);
    assert_eq!(error_code(translate(guarded, &user, LINEAR, READ)), 1);
    assert_eq!(error_code(translate(guarded, &user, LINEAR, WRITE)), 3);
    let with_ac = Access {
        smap_override: true,
        ..WRITE
    };
    assert_eq!(translate(guarded, &user, LINEAR, with_ac), Ok(0x5abc));
    assert_eq!(translate(guarded, &user, LINEAR, USER_WRITE), Ok(0x5abc));
}

#[test]
fn reserved_bits() {
    for (leaf, shift) in [
        (0x5000 | ALL | 1 << 39, 12), // beyond MAXPHYADDR
        (0x20_0000 | ALL | LARGE | 1 << 13, 21),
        (0x4000_0000 | ALL | LARGE | 1 << 29, 30),
        (0x5000 | ALL | LARGE, 39), // PS in a PML4 entry
    ] {
        let ram = map(leaf, shift);
        assert_eq!(error_code(translate(LONG, &ram, LINEAR, USER_WRITE)), 0xf);
    }
    let pat = map(0x20_0000 | ALL | LARGE | 1 << 12, 21);
    assert!(translate(LONG, &pat, LINEAR, READ).is_ok(), "bit 12 is PAT");
    let ignored = map(0x5000 | ALL | 0x7ff << 52, 12);
    assert!(translate(LONG, &ignored, LINEAR, READ).is_ok());
    let no_execute = map(0x5000 | ALL | NO_EXECUTE, 12);
    let old = Registers {
        efer: 0x500,
        ..LONG
    };
    assert_eq!(error_code(translate(old, &no_execute, LINEAR, READ)), 9);
}

#[test]
fn accessed_and_dirty_are_set_where_the_cpu_sets_them() {
    let ram = map(0x5000 | ALL, 12);
    let entries = || -> std::vec::Vec<u64> {
        [39, 30, 21, 12]
            .iter()
            .enumerate()
            .map(|(level, shift)| {
                let slot = 0x1000 * (level as u64 + 1) + (LINEAR >> shift & 0x1ff) * 8;
                ram.read_u64(GuestPhysAddr(slot)).unwrap() & (ACCESSED | DIRTY)
            })
            .collect()
    };
    translate(LONG, &ram, LINEAR, READ).unwrap();
    assert_eq!(entries(), [ACCESSED; 4]);
    translate(LONG, &ram, LINEAR, WRITE).unwrap();
    assert_eq!(entries()[..3], [ACCESSED; 3]);
    assert_eq!(entries()[3], ACCESSED | DIRTY);
}

#[test]
fn a_fault_sets_no_dirty_flag() {
    let ram = map(0x5000 | PRESENT | USER, 12);
    translate(LONG, &ram, LINEAR, USER_WRITE).unwrap_err();
    let slot = 0x4000 + (LINEAR >> 12 & 0x1ff) * 8;
    assert_eq!(ram.read_u64(GuestPhysAddr(slot)).unwrap() & DIRTY, 0);
}

#[test]
fn tables_outside_ram_have_reserved_bits_set() {
    let ram = ram();
    ram.write_u64(0x1000 + (LINEAR >> 39 & 0x1ff) * 8, 0xfee0_0000 | ALL);
    let Err(WalkError::Fault(fault)) = translate(LONG, &ram, LINEAR, READ) else {
        panic!("no page fault");
    };
    let expected = PageFaultErrorCode::PROTECTION_VIOLATION | PageFaultErrorCode::MALFORMED_TABLE;
    assert_eq!(fault.error_code, expected);
}

#[test]
fn thirty_two_bit_pages_of_both_sizes() {
    let ram = ram();
    let linear = 0xc012_3456;
    ram.write_u32(0x1000 + (0xc00 >> 2) * 4, 0x2000 | ALL as u32);
    ram.write_u32(0x2000 + 0x123 * 4, 0x4_5000 | PRESENT as u32);
    assert_eq!(translate(THIRTY_TWO_BIT, &ram, linear, READ), Ok(0x4_5456));
    assert_eq!(
        error_code(translate(THIRTY_TWO_BIT, &ram, linear, USER_READ)),
        5
    );
    assert_eq!(
        error_code(translate(THIRTY_TWO_BIT, &ram, linear, WRITE)),
        3
    );
    let pte = ram.read_u32(GuestPhysAddr(0x2000 + 0x123 * 4)).unwrap();
    assert_eq!(u64::from(pte), 0x4_5000 | PRESENT | ACCESSED);

    // A large page at 0x40_0040_0000: bits 38:32 of the address in bits 19:13.
    let pde = 0x0040_0000 | 0x40 << 13 | (ALL | LARGE) as u32;
    ram.write_u32(0x1000 + (0xc00 >> 2) * 4, pde);
    assert_eq!(
        translate(THIRTY_TWO_BIT, &ram, linear, WRITE),
        Ok(0x40_0052_3456)
    );
    let changed = ram
        .read_u32(GuestPhysAddr(0x1000 + (0xc00 >> 2) * 4))
        .unwrap();
    assert_eq!(changed, pde | (ACCESSED | DIRTY) as u32);
    // With 39 bits of physical address, bit 20 is reserved.
    ram.write_u32(0x1000 + (0xc00 >> 2) * 4, pde | 1 << 20);
    assert_eq!(error_code(translate(THIRTY_TWO_BIT, &ram, linear, READ)), 9);
    // Without PSE, bit 7 means nothing.
    let no_pse = Registers {
        cr4: 0,
        ..THIRTY_TWO_BIT
    };
    ram.write_u32(0x1000 + (0xc00 >> 2) * 4, 0x2000 | (ALL | LARGE) as u32);
    assert_eq!(translate(no_pse, &ram, linear, READ), Ok(0x4_5456));
}

#[test]
fn pae_starts_from_the_pdpte_registers() {
    let ram = ram();
    let linear = 0x4040_3123;
    ram.write_u64(0x2000 + 2 * 8, 0x3000 | ALL);
    ram.write_u64(0x3000 + 3 * 8, 0x5000 | ALL | NO_EXECUTE);
    assert_eq!(translate(PAE, &ram, linear, USER_WRITE), Ok(0x5123));
    assert_eq!(error_code(translate(PAE, &ram, linear, USER_FETCH)), 0x15);
    assert_eq!(error_code(translate(PAE, &ram, 0x123, READ)), 0);
    ram.write_u64(0x3000 + 3 * 8, 0x5000 | ALL | 1 << 52);
    assert_eq!(error_code(translate(PAE, &ram, linear, READ)), 9);
    ram.write_u64(0x2000 + 2 * 8, 0x60_0000 | ALL | LARGE);
    assert_eq!(translate(PAE, &ram, linear, READ), Ok(0x60_3123));
}

#[test]
fn no_paging_is_the_identity() {
    let off = Registers { cr0: 1, ..LONG };
    assert_eq!(
        translate(off, &ram(), 0x1_fee0_0030, USER_WRITE),
        Ok(0xfee0_0030)
    );
}

proptest! {
    /// Whatever a guest puts into its tables, a walk ends with an address below MAXPHYADDR
    /// or an error.
    #[test]
    fn random_tables(
        entries in prop::collection::vec(any::<u64>(), 512),
        cr3 in 0u64..0x8000, linear in any::<u64>(), flags in any::<u64>(),
        user in any::<bool>(), kind in 0usize..3,
    ) {
        let ram = TestRam::new(0x8000);
        for (index, entry) in entries.iter().enumerate() {
            // Tables that refer to each other.
            let entry = entry & 0x8000_0000_0000_7fff;
            ram.write_u64(index as u64 * 64, entry);
        }
        let registers = Registers {
            cr0: 0x8000_0001 | flags & Cr0Flags::WRITE_PROTECT.bits(),
            cr3,
            cr4: flags & (Cr4Flags::PAGE_SIZE_EXTENSION.bits() | Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() | Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits() | Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits() | Cr4Flags::L5_PAGING.bits()),
            efer: flags & (EferFlags::LONG_MODE_ACTIVE.bits() | EferFlags::NO_EXECUTE_ENABLE.bits()),
            pdptes: [1, 0x1001, 0x7001, 0],
        };
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][kind];
        if let Ok(address) = translate(registers, &ram, linear, access(kind, user)) {
            prop_assert!(address < 1 << 39);
        }
    }
}
