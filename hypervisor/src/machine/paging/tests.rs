use std::boxed::Box;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

#[repr(align(4096))]
struct Frame([u8; 4096]);

/// Tables in the test's own memory, reached at their "physical" addresses just the same.
fn frames(count: &mut usize) -> impl FnMut() -> Result<HostPhysAddr, OutOfMemory> {
    move || {
        *count += 1;
        let frame = Box::leak(Box::new(Frame([0; 4096])));
        Ok(HostPhysAddr(frame.0.as_ptr() as u64))
    }
}

#[test]
fn four_gib_take_two_tables_with_1g_pages_and_six_without() {
    for (has_1g, tables_needed) in [(true, 2), (false, 6)] {
        let mut count = 0;
        let mut new = frames(&mut count);
        let mut tables = PageTables::new(&mut new, has_1g, true).unwrap();
        tables
            .set(FIRST_4G, Some(Protection::Data), &mut new)
            .unwrap();
        drop(new);
        assert_eq!(count, tables_needed);
    }
}

#[test]
fn a_guard_page_in_a_large_page_is_missing_alone() {
    let mut count = 0;
    let mut new = frames(&mut count);
    let mut tables = PageTables::new(&mut new, true, true).unwrap();
    tables
        .set(FIRST_4G, Some(Protection::Data), &mut new)
        .unwrap();
    let guard = PhysRange::new(777 * PAGE_SIZE, 778 * PAGE_SIZE);
    tables.set(guard, None, &mut new).unwrap();
    assert_eq!(tables.protection(777 * PAGE_SIZE + 5), None);
    for page in [0, 776, 778, 0xf_ffff] {
        let protection = tables.protection(page * PAGE_SIZE);
        assert_eq!(protection, Some(Protection::Data), "page {page}");
    }
    assert_eq!(tables.protection(4 << 30), None);
}

#[test]
fn code_is_executable_and_constants_are_neither_writable_nor_executable() {
    let mut count = 0;
    let mut new = frames(&mut count);
    let mut tables = PageTables::new(&mut new, false, true).unwrap();
    let parts = [
        (PhysRange::new(MIB, MIB + 0x5000), Protection::Code),
        (
            PhysRange::new(MIB + 0x5000, MIB + 0x6000),
            Protection::Constants,
        ),
    ];
    tables
        .set(FIRST_4G, Some(Protection::Data), &mut new)
        .unwrap();
    for (range, protection) in parts {
        tables.set(range, Some(protection), &mut new).unwrap();
    }
    for (range, protection) in parts {
        assert_eq!(tables.protection(range.start.0), Some(protection));
        assert_eq!(tables.protection(range.end.0 - 1), Some(protection));
    }
    assert_eq!(tables.protection(MIB + 0x6000), Some(Protection::Data));
}

#[test]
fn unmapping_nothing_takes_no_tables() {
    let mut count = 0;
    let mut new = frames(&mut count);
    let mut tables = PageTables::new(&mut new, false, true).unwrap();
    tables
        .set(PhysRange::new(0, 1 << 40), None, &mut new)
        .unwrap();
    drop(new);
    assert_eq!(count, 1);
}

#[test]
fn running_out_of_memory_is_an_error() {
    let error = OutOfMemory {
        size: PAGE_SIZE,
        alignment: PAGE_SIZE,
    };
    let mut count = 0;
    let mut tables = PageTables::new(&mut frames(&mut count), true, true).unwrap();
    let result = tables.set(FIRST_4G, Some(Protection::Data), &mut || Err(error));
    assert_eq!(result, Err(error));
}

fn any_protection() -> impl Strategy<Value = Option<Protection>> {
    prop_oneof![
        Just(None),
        Just(Some(Protection::Constants)),
        Just(Some(Protection::Data)),
        Just(Some(Protection::Code)),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_changes_leaves_each_page_as_last_set(
        changes in prop::collection::vec((0u64..2048, 1u64..1500, any_protection()), 1..12),
        has_1g in any::<bool>(),
    ) {
        let mut count = 0;
        let mut new = frames(&mut count);
        let mut tables = PageTables::new(&mut new, has_1g, true).unwrap();
        // Around a border of 1 GiB pages, so that all sizes take part.
        let base = (1 << 30) - 1024 * PAGE_SIZE;
        let mut model: BTreeMap<u64, Option<Protection>> = BTreeMap::new();
        for (first, length, protection) in changes {
            let start = base + first * PAGE_SIZE;
            let end = start + length * PAGE_SIZE;
            tables.set(PhysRange::new(start, end), protection, &mut new).unwrap();
            model.extend((first..first + length).map(|page| (page, protection)));
        }
        for page in 0..4096 {
            let expected = model.get(&page).copied().flatten();
            prop_assert_eq!(tables.protection(base + page * PAGE_SIZE), expected);
        }
    }
}
