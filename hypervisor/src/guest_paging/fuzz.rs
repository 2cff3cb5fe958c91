//! A target for fuzzing: page tables as a guest may write them, in every mode of paging.

use std::vec::Vec;

use super::tests::{Registers, access, translate};
use super::*;
use crate::test_ram::TestRam;

/// The size of the RAM that the tables are in: other addresses are none.
const RAM: u64 = 0x8000;
/// CR0 with paging.
const PAGING: u64 = 0x8000_0001;
/// The registers' bits that say how tables are read.
const CR4: u64 = Cr4Flags::PAGE_SIZE_EXTENSION.bits()
    | Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits()
    | Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits()
    | Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits()
    | Cr4Flags::L5_PAGING.bits();
const EFER: u64 = EferFlags::LONG_MODE_ACTIVE.bits() | EferFlags::NO_EXECUTE_ENABLE.bits();

#[test]
fn page_tables() {
    fuzzing::check!()
        .with_type::<(Vec<(u16, u64)>, u64, u64, u64, [u8; 4], u8, bool)>()
        .for_each(|(entries, cr3, linear, flags, pdptes, kind, user)| {
            let ram = TestRam::new(RAM as usize);
            for &(slot, entry) in entries {
                // Tables that refer to each other, with all flags, or anything.
                let entry = match entry >> 60 & 7 {
                    0 => entry,
                    1..4 => entry & 0x8000_0000_0000_7fff | 1,
                    _ => entry & 0x7000 | 0x7,
                };
                ram.write_u64(u64::from(slot) * 8 % RAM, entry);
            }
            let registers = Registers {
                cr0: PAGING | flags & Cr0Flags::WRITE_PROTECT.bits(),
                cr3: cr3 % (RAM + 0x1000),
                cr4: flags & CR4,
                efer: flags & EFER,
                pdptes: pdptes
                    .map(|table| u64::from(table & 0xf) << 12 | u64::from(table >> 4 & 1)),
            };
            let kind =
                [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][usize::from(kind % 3)];
            let before = ram.snapshot();
            let first = translate(registers, &ram, *linear, access(kind, *user));
            let after = ram.snapshot();
            // Nothing but accessed and dirty flags is written, and they are only set.
            for (old, new) in before.iter().zip(&after) {
                assert_eq!(old & !0x60, new & !0x60);
                assert_eq!(old & !new, 0);
            }
            let second = translate(registers, &ram, *linear, access(kind, *user));
            assert_eq!(first, second, "a walk that set flags goes the same way");
            assert!(ram.snapshot() == after);
            match first {
                Ok(address) => assert!(address < 1 << 39),
                Err(WalkError::Fault(_)) => {
                    let dirty = before
                        .iter()
                        .zip(&after)
                        .any(|(old, new)| (new & !old) & 0x40 != 0);
                    assert!(!dirty, "a fault makes nothing dirty");
                }
                Err(WalkError::NotRam(_)) => {}
            }
            // What has been fetched is found again.
            let is_long = registers.efer & EferFlags::LONG_MODE_ACTIVE.bits() != 0;
            if let Ok(address) = first
                && is_long
                && kind == AccessKind::Fetch
                && registers.cr4 & Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() != 0
            {
                let located = locate_fetched_code(&ram, registers.cr3, registers.cr4, *linear);
                assert_eq!(located.map(|it| it.0), Some(address));
            }
        });
}
