use std::vec::Vec;

use proptest::prelude::*;

use super::*;

fn available(start: u64, end: u64) -> MemoryRegion {
    MemoryRegion {
        range: PhysRange::new(start, end),
        kind: MemoryKind::Available,
    }
}

fn reserved(start: u64, end: u64) -> MemoryRegion {
    MemoryRegion {
        range: PhysRange::new(start, end),
        kind: MemoryKind::Reserved,
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn low_memory_the_image_and_modules_are_not_handed_out() {
    let map = [available(0, 0x9_fc00), available(MIB, 64 * MIB)];
    let image = PhysRange::new(MIB, 2 * MIB + 123);
    let module = PhysRange::new(8 * MIB + 1, 9 * MIB - 1);
    let allocator = FrameAllocator::new(&map, [image, module].into_iter());
    assert_eq!(
        allocator.free_ranges(),
        [
            PhysRange::new(2 * MIB + PAGE_SIZE, 8 * MIB),
            PhysRange::new(9 * MIB, 64 * MIB)
        ]
    );
}

#[test]
fn overlapping_map_entries_are_available_only_if_all_say_so() {
    let map = [
        reserved(32 * MIB, 33 * MIB),
        available(16 * MIB, 48 * MIB),
        available(40 * MIB, 64 * MIB),
    ];
    let allocator = FrameAllocator::new(&map, core::iter::empty());
    assert_eq!(
        allocator.free_ranges(),
        [
            PhysRange::new(16 * MIB, 32 * MIB),
            PhysRange::new(33 * MIB, 64 * MIB)
        ]
    );
}

#[test]
fn partial_frames_at_the_edges_are_left_out() {
    let map = [available(16 * MIB + 1, 17 * MIB - 1)];
    let allocator = FrameAllocator::new(&map, core::iter::empty());
    assert_eq!(allocator.free_bytes(), MIB - 2 * PAGE_SIZE);
}

#[test]
fn guest_ram_comes_aligned_from_the_top_and_tables_from_the_bottom() {
    let map = [available(MIB, 2047 * MIB)];
    let mut allocator = FrameAllocator::new(&map, core::iter::empty());
    let ram = allocator.allocate(512 * MIB, SIZE_2M).unwrap();
    assert_eq!(ram, PhysRange::new(1534 * MIB, 2046 * MIB));
    let table = allocator.allocate(PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!(table.start.0, MIB);
    let gib = allocator.allocate(256 * MIB, SIZE_1G).unwrap();
    assert_eq!(gib.start.0, SIZE_1G);
}

#[test]
fn what_cannot_be_had_is_an_error_and_costs_nothing() {
    let mut allocator = FrameAllocator::new(&[available(MIB, 4 * MIB)], core::iter::empty());
    let before = allocator.free_bytes();
    for (size, alignment) in [
        (0, 1),
        (4 * MIB, 1),
        (u64::MAX, 1),
        (PAGE_SIZE, 3 * PAGE_SIZE),
        (PAGE_SIZE, 1 << 63),
    ] {
        let error = allocator.allocate(size, alignment).unwrap_err();
        assert_eq!(error, OutOfMemory { size, alignment });
    }
    assert_eq!(allocator.free_bytes(), before);
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_found_out() {
    let mut allocator = FrameAllocator::new(&[available(MIB, 4 * MIB)], core::iter::empty());
    let range = allocator.allocate(2 * PAGE_SIZE, 1).unwrap();
    allocator.free(range);
    allocator.free(range);
}

#[test]
fn a_full_account_refuses_to_split_but_keeps_working() {
    let map: Vec<_> = (0..CAPACITY as u64)
        .map(|i| available((16 + 4 * i) * MIB, (19 + 4 * i) * MIB))
        .collect();
    let mut allocator = FrameAllocator::new(&map, core::iter::empty());
    assert_eq!(allocator.free_ranges().len(), CAPACITY);
    // The top range is 3 MiB from an aligned start: 2 MiB leave one rest only.
    assert!(allocator.allocate(2 * MIB, SIZE_2M).is_ok());
    // Off the start of every range, within it: would need one range more.
    assert!(!allocator.remove(PhysRange::new(17 * MIB, 18 * MIB)));
    assert!(allocator.allocate(PAGE_SIZE, 1).is_ok());
}

#[test]
fn what_is_not_free_in_one_piece_comes_in_the_largest_there_are() {
    // As of a PC with 4 GiB of RAM and its hole for devices, and a module in the middle.
    let map = [
        available(MIB, 3072 * MIB),
        available(4096 * MIB, 5120 * MIB),
    ];
    let module = PhysRange::new(1000 * MIB + 1, 1001 * MIB);
    let mut allocator = FrameAllocator::new(&map, [module].into_iter());
    assert_eq!(
        allocator.aligned_bytes(SIZE_2M),
        (2070 * MIB, (998 + 2070 + 1024) * MIB)
    );
    let mut missing = 3200 * MIB;
    let mut sizes = Vec::new();
    while missing > 0 {
        let piece = allocator.allocate_piece(missing, SIZE_2M).unwrap();
        assert!(piece.start.is_aligned(SIZE_2M));
        missing -= piece.size();
        sizes.push(piece.size() / MIB);
    }
    assert_eq!(sizes, [2070, 1024, 106]);
    // One that fits is not divided.
    let whole = allocator.allocate_piece(800 * MIB, SIZE_2M).unwrap();
    assert_eq!(whole.size(), 800 * MIB);
}

#[test]
fn where_no_piece_is_aligned_there_is_none() {
    let map = [available(3 * MIB, 4 * MIB - 1)];
    let mut allocator = FrameAllocator::new(&map, core::iter::empty());
    assert_eq!(allocator.aligned_bytes(SIZE_2M), (0, 0));
    assert!(allocator.allocate_piece(MIB, SIZE_2M).is_err());
    assert!(allocator.allocate_piece(MIB, 3 * PAGE_SIZE).is_err());
}

proptest! {
    #[test]
    fn allocations_never_overlap_and_freeing_restores_all(
        requests in prop::collection::vec((1u64..3 * SIZE_2M, 12u32..23), 1..60),
    ) {
        let map = [available(MIB, 100 * MIB), available(120 * MIB, 256 * MIB)];
        let mut allocator = FrameAllocator::new(&map, core::iter::empty());
        let before = allocator.free_ranges().to_vec();
        let mut taken: Vec<PhysRange> = Vec::new();
        for (size, shift) in requests {
            let Ok(range) = allocator.allocate(size, 1 << shift) else { continue };
            prop_assert!(range.size() >= size && range.start.is_aligned(1 << shift));
            prop_assert!(taken.iter().all(|t| t.end <= range.start || range.end <= t.start));
            taken.push(range);
        }
        for pair in allocator.free_ranges().windows(2) {
            prop_assert!(pair[0].end < pair[1].start);
        }
        // Free every other first, to have holes merge from both sides.
        let (even, odd): (Vec<_>, Vec<_>) =
            taken.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
        for (_, range) in even.into_iter().chain(odd) {
            allocator.free(range);
        }
        prop_assert_eq!(allocator.free_ranges(), &before[..]);
    }
}
