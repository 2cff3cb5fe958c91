//! What CR3 says about the process that runs.
//!
//! The root of its paging structures is the only name that a process has to us. The same
//! process may have two roots: with page-table isolation, one is for its own code and one for
//! the kernel's. Their *user halves*, the entries for the lower half of the address space,
//! refer to the same tables, and no two processes share those: so roots are told to be
//! [aliases](same_process) by looking at them, whatever the operating system.

use arch::paging::{ADDRESS, ADDRESS_32, PDPT_ADDRESS};
use arch::{Cr0Flags, Cr4Flags, EferFlags, PageTableFlags};
use vmx::addr::GuestPhysAddr;

use crate::guest_memory::GuestMemory;
use crate::guest_paging::tables::Table;

const PRESENT: u64 = PageTableFlags::PRESENT.bits();

/// The shape of the topmost paging structure, which CR3 refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootFormat {
    /// A page directory of 1024 entries of 4 bytes (32-bit paging).
    Narrow,
    /// Four page-directory-pointer-table entries (PAE paging).
    Pae,
    /// A PML4 or PML5 table.
    Long,
}

impl RootFormat {
    /// Returns the format that the control registers call for; `None` without paging.
    #[must_use]
    pub(crate) const fn of(cr0: u64, cr4: u64, efer: u64) -> Option<Self> {
        if cr0 & Cr0Flags::PAGING.bits() == 0 {
            None
        } else if efer & EferFlags::LONG_MODE_ACTIVE.bits() != 0 {
            Some(Self::Long)
        } else if cr4 & Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() != 0 {
            Some(Self::Pae)
        } else {
            Some(Self::Narrow)
        }
    }

    /// Returns the paging structure at `address` in this format.
    #[must_use]
    pub(crate) const fn table(self, address: u64) -> Table {
        Table::new(address, matches!(self, Self::Narrow))
    }

    /// Returns the number of the root's entries that map the lower half of the address space, which user
    /// space begins with everywhere.
    const fn user_half(self) -> usize {
        match self {
            Self::Narrow => 512,
            Self::Pae => 2,
            Self::Long => 256,
        }
    }
}

/// The root of an address space: CR3 without the bits that are no part of the address (PCID,
/// caching, and bit 63).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Root(u64);

impl Root {
    /// Returns the root that `cr3` refers to.
    #[must_use]
    pub(crate) const fn new(cr3: u64, format: RootFormat) -> Self {
        Self(match format {
            RootFormat::Narrow => cr3 & ADDRESS_32,
            RootFormat::Pae => cr3 & PDPT_ADDRESS,
            RootFormat::Long => cr3 & ADDRESS,
        })
    }

    /// Returns the guest-physical address of the topmost paging structure.
    #[must_use]
    pub(crate) const fn address(self) -> GuestPhysAddr {
        GuestPhysAddr(self.0)
    }
}

impl core::fmt::Debug for Root {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl core::fmt::Display for Root {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Returns the table that `entry` of a root refers to; zero if it refers to none.
const fn table_of(entry: u64, format: RootFormat) -> u64 {
    // Rights and flags differ between the roots of one process: Linux marks the user half
    // no-execute in the kernel's.
    if entry & PRESENT == 0 {
        return 0;
    }
    match format {
        RootFormat::Narrow => entry & ADDRESS_32,
        RootFormat::Pae | RootFormat::Long => entry & ADDRESS,
    }
}

/// Returns the table that entry `index` of `root` refers to; zero if it refers to none. An entry
/// outside RAM refers to none.
pub(crate) fn referred_table(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
    index: usize,
) -> u64 {
    let entry = format.table(root.0).entry(memory, index);
    table_of(entry, format)
}

/// Returns the entries of `root`'s user half that refer to a table: index and table.
pub(crate) fn user_tables(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
) -> impl Iterator<Item = (usize, u64)> {
    let table = format.table(root.0);
    table
        .entries(memory, 0..format.user_half())
        .map(move |(index, entry)| (index, table_of(entry, format)))
        .filter(|(_, table)| *table != 0)
}

/// Returns a digest of the user half of `root`, by which roots of one process know each other: those
/// whose user halves agree have the same, and others do not. `None` for a user half that is empty.
///
/// A guest that knew `seed` could make two processes' roots have the same digest.
pub(crate) fn user_half_digest(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
    seed: u64,
) -> Option<u128> {
    const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];
    let mut lanes = [seed, !seed.rotate_left(32)];
    let mut is_empty = true;
    for (index, table) in user_tables(memory, root, format) {
        is_empty = false;
        // Tables are pages, or at least aligned: the index has room in the low bits.
        let word = table ^ index as u64;
        for (lane, odd) in lanes.iter_mut().zip(ODD) {
            *lane = (*lane ^ word).wrapping_mul(odd);
            *lane ^= *lane >> 29;
        }
    }
    let [high, low] = lanes;
    (!is_empty).then_some(u128::from(high) << 64 | u128::from(low))
}

/// Returns whether two different roots belong to one process: their user halves agree, and are not
/// empty.
#[must_use]
pub(crate) fn same_process(
    memory: &impl GuestMemory,
    a: Root,
    b: Root,
    format: RootFormat,
) -> bool {
    let tables_of = |root| user_tables(memory, root, format);
    let mut tables = tables_of(a).peekable();
    tables.peek().is_some() && tables.eq(tables_of(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_ram::TestRam;

    const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();
    const LONG: RootFormat = RootFormat::Long;

    fn root(cr3: u64) -> Root {
        Root::new(cr3, LONG)
    }

    /// A process with page-table isolation: its kernel root at `kernel`, the user one behind.
    fn isolated_process(ram: &TestRam, kernel: u64) {
        for (index, table) in [(0, kernel + 0x2000), (255, kernel + 0x3000)] {
            ram.write_u64(kernel + index * 8, table | NO_EXECUTE | 0x67);
            ram.write_u64(kernel + 0x1000 + index * 8, table | 0x47);
        }
        // The kernel half, of which the user root has just a bit.
        ram.write_u64(kernel + 300 * 8, 0x9067);
        ram.write_u64(kernel + 511 * 8, 0xa067);
        ram.write_u64(kernel + 0x1000 + 511 * 8, 0xb067);
    }

    #[test]
    fn cr3_is_normalized() {
        assert_eq!(root(0x8000_0001_2345_6803), root(0x1_2345_6000));
        assert_eq!(
            Root::new(0x1234_5678, RootFormat::Pae).address(),
            GuestPhysAddr(0x1234_5660)
        );
        assert_eq!(
            Root::new(0x1234_5678, RootFormat::Narrow).address(),
            GuestPhysAddr(0x1234_5000)
        );
    }

    #[test]
    fn the_two_roots_of_an_isolated_process_are_aliases() {
        let ram = TestRam::new(0x10000);
        isolated_process(&ram, 0x1000);
        isolated_process(&ram, 0x8000);
        assert!(same_process(&ram, root(0x1000), root(0x2000), LONG));
        assert!(!same_process(&ram, root(0x1000), root(0x8000), LONG));
        assert!(!same_process(&ram, root(0x2000), root(0x9000), LONG));
    }

    #[test]
    fn digests_agree_where_processes_do() {
        let ram = TestRam::new(0x10000);
        isolated_process(&ram, 0x1000);
        isolated_process(&ram, 0x8000);
        let digest = |cr3, seed| user_half_digest(&ram, root(cr3), LONG, seed);
        assert!(digest(0x1000, 5).is_some());
        assert_eq!(digest(0x1000, 5), digest(0x2000, 5));
        assert_ne!(digest(0x1000, 5), digest(0x8000, 5));
        assert_ne!(digest(0x1000, 5), digest(0x1000, 6));
        // The same table at another place.
        ram.write_u64(0x1000, 0);
        ram.write_u64(0x1008, 0x3067);
        assert_ne!(digest(0x1000, 5), digest(0x2000, 5));
    }

    #[test]
    fn roots_without_user_space_have_no_digest() {
        let ram = TestRam::new(0x10000);
        ram.write_u64(0x1000 + 300 * 8, 0x9067);
        assert_eq!(user_half_digest(&ram, root(0x1000), LONG, 1), None);
        assert_eq!(user_half_digest(&ram, root(0xfee0_0000), LONG, 1), None);
    }

    #[test]
    fn roots_without_user_space_are_nobodys_aliases() {
        let ram = TestRam::new(0x10000);
        assert!(!same_process(&ram, root(0x1000), root(0x2000), LONG));
    }

    #[test]
    fn a_root_outside_ram_has_no_aliases() {
        let ram = TestRam::new(0x10000);
        isolated_process(&ram, 0x1000);
        assert!(!same_process(&ram, root(0x1000), root(0xfee0_0000), LONG));
        let end = root(0x000f_ffff_ffff_f000);
        assert!(!same_process(&ram, end, end, LONG));
    }

    #[test]
    fn legacy_formats_compare_their_lower_half() {
        let ram = TestRam::new(0x10000);
        for (kernel, user) in [(0x1000, 0x2000), (0x3000, 0x4000)] {
            ram.write_u32(kernel + 4 * 100, 0x5067 + kernel as u32);
            ram.write_u32(user + 4 * 100, 0x5047 + kernel as u32);
            ram.write_u32(kernel + 4 * 800, 0x7067);
        }
        let narrow = |cr3| Root::new(cr3, RootFormat::Narrow);
        let same = |a, b| same_process(&ram, narrow(a), narrow(b), RootFormat::Narrow);
        assert!(same(0x1000, 0x2000));
        assert!(!same(0x1000, 0x4000));

        ram.write_u64(0x8020, 0x9001);
        ram.write_u64(0x8020 + 24, 0xa001);
        ram.write_u64(0x8040, 0x9001);
        let pae = |cr3| Root::new(cr3, RootFormat::Pae);
        assert!(same_process(
            &ram,
            pae(0x8020),
            pae(0x8040),
            RootFormat::Pae
        ));
    }
}
