//! Searches through address spaces made by hand.

use super::*;
use crate::test_ram::TestRam;

const RAM: usize = 0x80_0000;
const USER: u64 = 0x67;
const KERNEL: u64 = 0x63;
const LARGE: u64 = arch::PageTableFlags::HUGE_PAGE.bits();

/// A guest with tables from 0x1000 on, and the memory behind them free.
struct Space {
    ram: TestRam,
    root: Root,
    format: RootFormat,
    next_table: u64,
}

impl Space {
    fn new(format: RootFormat) -> Self {
        Self {
            ram: TestRam::new(RAM),
            root: Root::new(0x1000, format),
            format,
            next_table: 0x2000,
        }
    }

    /// The entry that maps `address` at the level of `shift`, with tables down to there.
    fn entry(&mut self, address: u64, shift: u32) -> u64 {
        let (size, bits, mut level) = match self.format {
            RootFormat::Long => (8, 9, 39),
            RootFormat::Pae => (8, 9, 30),
            RootFormat::Narrow => (4, 10, 22),
        };
        let mut table = 0x1000;
        loop {
            let slot = table + (address >> level & ((1 << bits) - 1)) * size;
            if level == shift {
                return slot;
            }
            let entry = self.read(slot);
            table = if entry & 1 != 0 {
                entry & !0xfff
            } else {
                let new = self.next_table;
                self.next_table += 0x1000;
                // PDPTEs of PAE paging have no user bit.
                let flags = if self.format == RootFormat::Pae && level == 30 {
                    1
                } else {
                    USER
                };
                self.write(slot, new | flags);
                new
            };
            level -= bits;
        }
    }

    fn read(&self, slot: u64) -> u64 {
        match self.format {
            RootFormat::Narrow => self.ram.read_u32(GuestPhysAddr(slot)).unwrap().into(),
            _ => self.ram.read_u64(GuestPhysAddr(slot)).unwrap(),
        }
    }

    fn write(&self, slot: u64, entry: u64) {
        match self.format {
            RootFormat::Narrow => self.ram.write_u32(slot, entry as u32),
            _ => self.ram.write_u64(slot, entry),
        }
    }

    fn map(&mut self, address: u64, shift: u32, entry: u64) {
        let slot = self.entry(address, shift);
        self.write(slot, entry);
    }

    fn put(&self, address: u64, text: &[u8]) {
        self.ram.write(GuestPhysAddr(address), text).unwrap();
    }

    /// The first match and the number of matches.
    fn find(&self, pattern: &[u8]) -> (Option<u64>, u64) {
        let search = self.search(pattern);
        assert!(search.is_complete());
        (search.first().map(|address| address.0), search.matches())
    }

    fn search(&self, pattern: &[u8]) -> Search {
        let mut search = Search::new(self.root, self.format, RAM as u64);
        let finder = Finder::new(pattern);
        while search.step(&self.ram, &finder) {}
        search
    }
}

#[test]
fn a_pattern_is_found_in_pages_of_4_kib() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    space.map(0x7fff_ffff_f000, 12, 0x20_0000 | USER);
    space.put(0x10_0123, b"EVIL");
    space.put(0x20_0ffc, b"EVIL");
    assert_eq!(space.find(b"EVIL"), (Some(0x40_0123), 2));
    assert_eq!(space.find(b"GOOD"), (None, 0));
}

#[test]
fn a_pattern_is_found_in_pages_of_2_mib() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0x5555_5540_0000, 21, 0x40_0000 | USER | LARGE);
    space.put(0x40_0ffe, b"EVIL");
    space.put(0x5f_fffc, b"EVIL");
    assert_eq!(space.find(b"EVIL"), (Some(0x5555_5540_0ffe), 2));
}

#[test]
fn a_match_may_lie_across_pages_that_follow_each_other_in_virtual_space_only() {
    let mut space = Space::new(RootFormat::Long);
    // Backwards in physical memory, and over the border of a page table.
    space.map(0x3f_f000, 12, 0x12_0000 | USER);
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    space.put(0x12_0ffd, b"EVI");
    space.put(0x10_0000, b"L");
    assert_eq!(space.find(b"EVIL"), (Some(0x3f_fffd), 1));

    // Side by side in physical memory, but with a hole between.
    let mut space = Space::new(RootFormat::Long);
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    space.map(0x40_2000, 12, 0x10_1000 | USER);
    space.put(0x10_0ffe, b"EVIL");
    assert_eq!(space.find(b"EVIL"), (None, 0));
}

#[test]
fn a_small_page_behind_a_large_one_goes_on() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0x20_0000, 21, 0x40_0000 | USER | LARGE);
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    space.put(0x5f_fffe, b"EV");
    space.put(0x10_0000, b"IL");
    assert_eq!(space.find(b"EVIL"), (Some(0x3f_fffe), 1));
}

#[test]
fn the_kernels_pages_are_not_searched() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0x40_0000, 12, 0x10_0000 | KERNEL);
    space.put(0x10_0000, b"EVIL");
    assert_eq!(space.find(b"EVIL"), (None, 0));
    // Not even if just an upper table is the kernel's.
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    assert_eq!(space.find(b"EVIL"), (Some(0x40_0000), 1));
    let slot = space.entry(0x40_0000, 30);
    let table = space.read(slot) & !0xfff;
    space.write(slot, table | KERNEL);
    assert_eq!(space.find(b"EVIL"), (None, 0));
}

#[test]
fn overlapping_matches_count_each() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    space.map(0x40_1000, 12, 0x11_0000 | USER);
    space.put(0x10_0ffe, b"aa");
    space.put(0x11_0000, b"aa");
    assert_eq!(space.find(b"aa"), (Some(0x40_0ffe), 3));
    assert_eq!(space.find(b"a"), (Some(0x40_0ffe), 4));
}

#[test]
fn a_page_outside_ram_is_passed_over() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0x40_0000, 12, 0x10_0000 | USER);
    space.map(0x40_1000, 12, 0xfee0_0000 | USER);
    space.map(0x40_2000, 12, 0x11_0000 | USER);
    space.put(0x10_0ffe, b"EV");
    space.put(0x11_0000, b"IL EVIL");
    assert_eq!(space.find(b"EVIL"), (Some(0x40_2003), 1));
}

#[test]
fn pae_address_spaces() {
    let mut space = Space::new(RootFormat::Pae);
    space.map(0x0804_8000, 12, 0x10_0000 | USER);
    space.map(0xbfe0_0000, 21, 0x40_0000 | USER | LARGE);
    space.put(0x10_0000, b"EVIL");
    space.put(0x5f_fffc, b"EVIL");
    assert_eq!(space.find(b"EVIL"), (Some(0x0804_8000), 2));
}

#[test]
fn thirty_two_bit_address_spaces() {
    let mut space = Space::new(RootFormat::Narrow);
    space.map(0x0804_8000, 12, 0x10_0000 | USER);
    space.map(0x0804_9000, 12, 0x20_0000 | USER);
    space.map(0xbfc0_0000, 22, 0x40_0000 | USER | LARGE);
    space.put(0x10_0fff, b"E");
    space.put(0x20_0000, b"VIL");
    space.put(0x7f_fffc, b"EVIL");
    assert_eq!(space.find(b"EVIL"), (Some(0x0804_8fff), 2));
}

#[test]
fn a_guest_that_maps_one_page_without_end_does_not_keep_us_for_ever() {
    let mut space = Space::new(RootFormat::Long);
    space.map(0, 12, 0x10_0000 | USER);
    // The page table is its own directory, and so on: everything is mapped.
    let table = space.entry(0, 12);
    for index in 0..512 {
        for level in [39, 30, 21] {
            let slot = space.entry(0, level);
            space.write(slot + index * 8, space.read(slot));
        }
        space.write(table + index * 8, 0x10_0000 | USER);
    }
    space.put(0x10_0000, b"EVIL");
    let search = space.search(b"EVIL");
    assert!(!search.is_complete());
    assert_eq!(search.matches(), 4 * RAM as u64 / 4096);
}

#[test]
fn nor_does_one_with_empty_tables_without_end() {
    let mut space = Space::new(RootFormat::Long);
    let table = space.entry(0, 12);
    for level in [39, 30, 21] {
        let slot = space.entry(0, level);
        for index in 0..512 {
            space.write(slot + index * 8, space.read(slot));
        }
    }
    assert_eq!(space.read(table), 0);
    let search = space.search(b"EVIL");
    assert!(!search.is_complete());
}

#[test]
fn a_root_that_holds_no_tables_finds_nothing() {
    for root in [0x5000, 0xffff_f000] {
        let mut space = Space::new(RootFormat::Long);
        space.root = Root::new(root, RootFormat::Long);
        assert_eq!(space.find(b"EVIL"), (None, 0));
    }
}

#[test]
fn a_walk_that_starts_in_the_middle_comes_to_all_and_to_what_lies_across_its_start() {
    for format in [RootFormat::Long, RootFormat::Pae, RootFormat::Narrow] {
        let mut space = Space::new(format);
        for page in [0x10, 0x11, 0x12, 0x40] {
            space.map(page << 12, 12, (0x10_0000 + (page << 12)) | USER);
        }
        // At the beginning, the end, and across the page at which it starts.
        for address in [0x1_0000, 0x1_1ffe, 0x4_0ffc] {
            space.put(0x10_0000 + address, b"EVIL");
        }
        for start in [0, 0x1_2000, 0x1_2abc, 0x20_0000, u64::MAX] {
            let mut walk = Walk::new(space.root, format, RAM as u64).starting_at(start);
            let mut found = Vec::new();
            let mut more = true;
            while more {
                let look = |piece: &Piece<'_>| {
                    let matches = memchr::memmem::find_iter(piece.bytes, b"EVIL");
                    found.extend(matches.map(|it| piece.start + it as u64));
                };
                more = walk.step(&space.ram, 3, |_| false, look);
            }
            assert!(walk.is_complete());
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, [0x1_0000, 0x1_1ffe, 0x4_0ffc], "{start:#x}");
        }
    }
}

#[test]
fn the_highest_page_is_found_in_each_format() {
    for format in [RootFormat::Long, RootFormat::Pae, RootFormat::Narrow] {
        let highest = |space: &Space| pages::highest_page(&space.ram, space.root, format);
        let mut space = Space::new(format);
        assert_eq!(highest(&space), None);
        space.map(0x40_0000, 12, 0x10_0000 | USER);
        assert_eq!(highest(&space), Some(0x40_0000));
        space.map(0x7fff_5000, 12, 0x11_0000 | USER);
        assert_eq!(highest(&space), Some(0x7fff_5000));
        // The kernel's, which is not user mode's.
        space.map(0x7fff_6000, 12, 0x12_0000 | KERNEL);
        assert_eq!(highest(&space), Some(0x7fff_5000));
        if format == RootFormat::Narrow {
            continue;
        }
        space.map(0xa000_0000, 21, 0x20_0000 | USER | LARGE);
        assert_eq!(highest(&space), Some(0xa01f_f000));
    }
}

#[test]
fn of_a_page_that_is_known_only_what_lies_across_its_ends_is_looked_at() {
    for format in [RootFormat::Long, RootFormat::Pae, RootFormat::Narrow] {
        let mut space = Space::new(format);
        for page in 0x10..=0x13 {
            let entry = if page == 0x13 { USER } else { USER & !2 };
            space.map(page << 12, 12, (0x10_0000 + (page << 12)) | entry);
        }
        // In the page before; across the beginning and the end of the known one, and in it; in a
        // page that can be written.
        for address in [0x1_0100, 0x1_0ffe, 0x1_1800, 0x1_1fff, 0x1_3000] {
            space.put(0x10_0000 + address, b"EVIL");
        }
        let mut walk = Walk::new(space.root, format, RAM as u64);
        let mut found = Vec::new();
        let mut whole = Vec::new();
        let skips = |page: Page| !page.writable && page.frame == GuestPhysAddr(0x11_1000);
        while walk.step(&space.ram, 3, skips, |piece| {
            let matches = memchr::memmem::find_iter(piece.bytes, b"EVIL");
            found.extend(matches.map(|it| piece.start + it as u64));
            whole.extend(
                piece
                    .is_whole
                    .then_some((piece.page.frame.0, piece.page.writable)),
            );
        }) {}
        assert_eq!(found, [0x1_0100, 0x1_0ffe, 0x1_1fff, 0x1_3000]);
        assert_eq!(
            whole,
            [(0x11_0000, false), (0x11_2000, false), (0x11_3000, true)]
        );
    }
}
