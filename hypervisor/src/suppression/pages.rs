//! How a process maps its memory: walks through its paging structures that change nothing, in all
//! formats of roots. Processors are not offered five levels.

#![forbid(unsafe_code)]

use arch::PageTableFlags;
use arch::paging::{ADDRESS, ADDRESS_32, PAGE_SIZE};
use vmx::addr::GuestPhysAddr;

use super::address_space::{Root, RootFormat};
use crate::guest_memory::GuestMemory;

const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITABLE: u64 = PageTableFlags::WRITABLE.bits();
const USER: u64 = PageTableFlags::USER_ACCESSIBLE.bits();
const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();

/// The memory behind a page of user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The guest-physical address of the page's 4 KiB.
    pub frame: u64,
    /// Whether user mode may write there.
    pub writable: bool,
}

/// The end of a search for a page that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// A page at this address, and its memory.
    Found(u64, Mapping),
    /// The address at which to go on: as many entries were looked at as may be.
    Unfinished(u64),
    /// The end of user space.
    End,
}

impl RootFormat {
    /// Returns the shifts of linear addresses at each level of tables, and the bits of an index.
    #[inline]
    const fn levels(self) -> (&'static [u32], u32) {
        match self {
            Self::Long => (&[39, 30, 21, 12], 9),
            Self::Pae => (&[30, 21, 12], 9),
            Self::Narrow => (&[22, 12], 10),
        }
    }

    /// Returns the end of the addresses that user space may have. (32-bit kernels give it more than
    /// half.)
    #[inline]
    const fn user_end(self) -> u64 {
        match self {
            Self::Long => 1 << 47,
            Self::Pae | Self::Narrow => 1 << 32,
        }
    }

    /// Returns the rights that an entry can give: the four of a PAE root have none (SDM vol. 3A, table 4-8).
    #[inline]
    const fn rights(self, shift: u32) -> u64 {
        if matches!(self, Self::Pae) && shift == 30 {
            0
        } else {
            USER | WRITABLE
        }
    }

    /// Returns what is behind an entry that is present, and spans `1 << shift` bytes.
    #[inline]
    const fn target(self, entry: u64, shift: u32) -> Target {
        let is_narrow = matches!(self, Self::Narrow);
        let is_large = entry & LARGE != 0 && self.rights(shift) != 0 && shift < 39;
        let address = if is_narrow {
            entry & ADDRESS_32
        } else {
            entry & ADDRESS
        };
        if shift == 12 {
            Target::Page(address)
        } else if !is_large {
            Target::Table(address)
        } else if is_narrow {
            // PSE-36: bits 20:13 are bits 39:32 of the address (SDM vol. 3A, table 4-4).
            Target::Page(entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32)
        } else {
            Target::Page(address & !((1 << shift) - 1))
        }
    }
}

/// The page or table that an entry refers to, by its guest-physical address.
#[derive(Clone, Copy, Debug)]
enum Target {
    Page(u64),
    Table(u64),
}

/// Returns the guest-physical address of the 4 KiB at `address` in a page at `page` that spans `1 << shift` bytes.
const fn frame(page: u64, shift: u32, address: u64) -> u64 {
    page | address & ((1 << shift) - 1) & !(PAGE_SIZE - 1)
}

/// The pages that an address space maps for user mode. The table that was reached last is remembered: addresses that
/// are close to each other take one walk.
#[derive(Debug)]
pub(super) struct Mapper<'a, M> {
    memory: &'a M,
    root: Root,
    format: RootFormat,
    last: Option<LastTable>,
}

/// A table of small pages, and the rights on the way to it.
#[derive(Clone, Copy, Debug)]
struct LastTable {
    /// The address of the region that it maps, in regions.
    region: u64,
    table: u64,
    writable: bool,
}

impl<'a, M: GuestMemory> Mapper<'a, M> {
    pub(super) const fn new(memory: &'a M, root: Root, format: RootFormat) -> Self {
        Self {
            memory,
            root,
            format,
            last: None,
        }
    }

    /// Returns what is mapped at `address`, if anything.
    pub(super) fn mapping(&mut self, address: u64) -> Option<Mapping> {
        // Code of its own for each, as pages are looked at when a target is switched in or out.
        match self.format {
            RootFormat::Long => self.walk(RootFormat::Long, address),
            RootFormat::Pae => self.walk(RootFormat::Pae, address),
            RootFormat::Narrow => self.walk(RootFormat::Narrow, address),
        }
    }

    #[inline(always)]
    fn walk(&mut self, format: RootFormat, address: u64) -> Option<Mapping> {
        if address >= format.user_end() {
            return None;
        }
        let (shifts, index_bits) = format.levels();
        let region = address >> (12 + index_bits);
        let (mut table, mut writable, shifts) = match self.last {
            Some(last) if last.region == region => (last.table, last.writable, &[12][..]),
            _ => (self.root.address().0, true, shifts),
        };
        for &shift in shifts {
            if shift == 12 {
                self.last = Some(LastTable {
                    region,
                    table,
                    writable,
                });
            }
            let index = address >> shift & ((1 << index_bits) - 1);
            let entry = format.table(table).entry(self.memory, index as usize);
            let rights = format.rights(shift);
            let wanted = PRESENT | rights & USER;
            if entry & wanted != wanted {
                return None;
            }
            writable &= entry & rights == rights;
            match format.target(entry, shift) {
                Target::Page(page) => {
                    let frame = frame(page, shift, address);
                    return Some(Mapping { frame, writable });
                }
                Target::Table(next) => table = next,
            }
        }
        None
    }
}

/// Returns what `root` maps for user mode at `address`, if anything.
pub(super) fn mapping(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
    address: u64,
) -> Option<Mapping> {
    Mapper::new(memory, root, format).mapping(address)
}

/// Looks for a page that user mode may write, from address `from` on. `lines` is the number of lines of tables, of
/// eight entries each, that it may go through, and then of those that are left.
pub(super) fn next_writable(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
    from: u64,
    lines: &mut u32,
) -> Search {
    const LINE: u64 = 8;
    let (shifts, index_bits) = format.levels();
    let mut at = from & !(PAGE_SIZE - 1);
    'from_root: while at < format.user_end() {
        if *lines == 0 {
            return Search::Unfinished(at);
        }
        let mut table = root.address().0;
        for &shift in shifts {
            let table_shift = shift + index_bits;
            let begin = at >> table_shift << table_shift;
            let first = (at - begin) >> shift;
            let end = ((format.user_end() - begin) >> shift).min(1 << index_bits);
            // Nothing behind an entry that does not let user mode write can be written.
            let wanted = PRESENT | format.rights(shift);
            let indices = first as usize..end as usize;
            let found = format.table(table).first_with(memory, wanted, indices);
            let behind = found.map_or(end, |(index, _)| index as u64);
            *lines = lines.saturating_sub(1 + ((behind - first) / LINE) as u32);
            let Some((_, entry)) = found else {
                at = begin + (1 << table_shift);
                continue 'from_root;
            };
            if behind != first {
                at = begin + (behind << shift);
            }
            match format.target(entry, shift) {
                Target::Page(page) => {
                    let frame = frame(page, shift, at);
                    return Search::Found(
                        at,
                        Mapping {
                            frame,
                            writable: true,
                        },
                    );
                }
                Target::Table(next) => table = next,
            }
        }
    }
    Search::End
}

/// Returns a digest of the page at `frame`; `None` if that is no RAM, or holds nothing but zeros, as all
/// memory does that has just been given away.
pub(super) fn digest(memory: &impl GuestMemory, frame: u64) -> Option<u64> {
    const PIECE: usize = 256;
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut digest = ODD;
    let mut bits = 0;
    let mut piece = [0; PIECE];
    for at in (frame..frame.checked_add(PAGE_SIZE)?).step_by(PIECE) {
        memory.read(GuestPhysAddr(at), &mut piece).ok()?;
        for word in piece.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            bits |= word;
            digest = (digest.rotate_left(23) ^ word).wrapping_mul(ODD);
        }
    }
    (bits != 0).then_some(digest)
}

#[cfg(test)]
pub(super) mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::test_ram::TestRam;

    /// Maps the page at `address` to `frame` with `flags` in address space `root` of long mode; tables come from
    /// `next_table` on where there are none yet.
    pub(in crate::suppression) fn map(
        ram: &TestRam,
        root: u64,
        address: u64,
        entry: u64,
        next_table: &mut u64,
    ) {
        let mut table = root;
        for shift in [39, 30, 21] {
            let slot = GuestPhysAddr(table + (address >> shift & 0x1ff) * 8);
            let mut next = ram.read_u64(slot).unwrap();
            if next == 0 {
                next = *next_table | 0x67;
                *next_table += PAGE_SIZE;
                ram.write_u64(slot.0, next);
            }
            table = next & ADDRESS;
        }
        ram.write_u64(table + (address >> 12 & 0x1ff) * 8, entry);
    }

    fn all_writable(ram: &TestRam, root: Root, format: RootFormat, most: u32) -> Vec<(u64, u64)> {
        let mut from = 0;
        let mut found = Vec::new();
        loop {
            match next_writable(ram, root, format, from, &mut { most }) {
                Search::Found(address, mapping) => {
                    found.push((address, mapping.frame));
                    from = address + PAGE_SIZE;
                }
                Search::Unfinished(at) => {
                    assert!(at > from);
                    from = at;
                }
                Search::End => return found,
            }
        }
    }

    #[test]
    fn rights_and_frames_of_long_mode() {
        let ram = TestRam::new(0x20000);
        let root = Root::new(0x1000, RootFormat::Long);
        let mut tables = 0x10000;
        map(&ram, 0x1000, 0x40_0000, 0x7065, &mut tables);
        map(&ram, 0x1000, 0x40_1000, 0x8067, &mut tables);
        map(&ram, 0x1000, 0x7fff_ffff_e000, 0x9067, &mut tables);
        map(&ram, 0x1000, 0x7fff_ffff_f000, 0xa063, &mut tables);
        let mut mapper = Mapper::new(&ram, root, RootFormat::Long);
        let mut at = |address| {
            let found = mapper.mapping(address);
            assert_eq!(found, mapping(&ram, root, RootFormat::Long, address));
            found
        };
        let page = |frame, writable| Some(Mapping { frame, writable });
        assert_eq!(at(0x40_0123), page(0x7000, false));
        assert_eq!(at(0x40_1fff), page(0x8000, true));
        assert_eq!(at(0x40_2000), None);
        assert_eq!(at(0x7fff_ffff_f000), None, "the kernel's");
        assert_eq!(at(1 << 47), None);
        let expected = [(0x40_1000, 0x8000), (0x7fff_ffff_e000, 0x9000)];
        for most in [1, 4, 7, 10_000] {
            assert_eq!(all_writable(&ram, root, RootFormat::Long, most), expected);
        }
    }

    #[test]
    fn large_pages_are_as_many_small_ones() {
        let ram = TestRam::new(0x20000);
        let root = Root::new(0x1000, RootFormat::Long);
        ram.write_u64(0x1000, 0x2067);
        ram.write_u64(0x2000, 0x3067);
        ram.write_u64(0x3008, 0x4000_00e7);
        let page = mapping(&ram, root, RootFormat::Long, 0x21_2345);
        let expected = Mapping {
            frame: 0x4001_2000,
            writable: true,
        };
        assert_eq!(page, Some(expected));
    }

    #[test]
    fn pages_of_32_bit_guests() {
        let ram = TestRam::new(0x20000);
        let narrow = Root::new(0x1000, RootFormat::Narrow);
        ram.write_u32(0x1000 + 4 * 32, 0x2067);
        ram.write_u32(0x2000 + 4 * 5, 0x7067);
        ram.write_u32(0x1000 + 4 * 700, 0x0080_00e7);
        let found = all_writable(&ram, narrow, RootFormat::Narrow, 50);
        assert_eq!(found[0], (0x0800_5000, 0x7000));
        assert_eq!(found[1], (0xaf00_0000, 0x0080_0000));

        let pae = Root::new(0x5020, RootFormat::Pae);
        ram.write_u64(0x5020 + 16, 0x6001);
        ram.write_u64(0x6000, 0x8067);
        ram.write_u64(0x8000 + 8, 0x9067);
        let found = all_writable(&ram, pae, RootFormat::Pae, 50);
        assert_eq!(found, [(0x8000_1000, 0x9000)]);
    }

    #[test]
    fn tables_outside_ram_map_nothing() {
        let ram = TestRam::new(0x2000);
        ram.write_u64(0x1000, 0x10_0067);
        for cr3 in [0x1000, 0xf_ffff_ffff_f000] {
            let root = Root::new(cr3, RootFormat::Long);
            assert_eq!(mapping(&ram, root, RootFormat::Long, 0), None);
        }
        assert_eq!(digest(&ram, 0x2000), None);
        assert_eq!(digest(&ram, u64::MAX), None);
    }

    #[test]
    fn digests_tell_pages_apart_by_any_word() {
        let ram = TestRam::new(0x4000);
        assert_eq!(digest(&ram, 0x1000), None, "only zeros");
        for page in [0x1000, 0x2000] {
            ram.write_u64(page + 0x10, 7);
        }
        let one = digest(&ram, 0x1000);
        assert!(one.is_some());
        assert_eq!(one, digest(&ram, 0x2000));
        for at in [0x1000, 0x1800, 0x1ff8] {
            ram.write_u64(at, 1);
            assert_ne!(digest(&ram, 0x1000), one);
            ram.write_u64(at, 0);
        }
    }
}
