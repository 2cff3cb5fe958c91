//! A guest's physical memory map: which addresses are RAM, and what the guest is
//! told about them (the entries that a PC's BIOS call INT 15h, AX=E820h returns).
//!
//! It is the map of a PC: RAM from 0 up to the hole for devices below 4 GiB, the rest
//! of it from 4 GiB on, with the legacy holes below 1 MiB.

use core::ops::Range;

use devices::platform_map::mmio;

/// End of the conventional memory that a guest may use: the extended BIOS data area starts here.
pub(crate) const EBDA_START: u64 = 0x9_FC00;
/// Start of the legacy video memory: nothing, as the video adapter has no graphics.
pub(crate) const VIDEO_START: u64 = 0xA_0000;
/// Start of the video adapter's text, which is RAM; so is what follows it, as firmware would have
/// shadowed its ROMs.
pub(crate) const VIDEO_TEXT_START: u64 = mmio::VGA_TEXT;
/// Start of the firmware area, which holds the ACPI and MP tables.
pub(crate) const FIRMWARE_START: u64 = 0xE_0000;
/// The start of extended memory: 1 MiB.
pub(crate) const HIGH_MEMORY_START: u64 = 0x10_0000;
/// Start of the hole that devices occupy below 4 GiB.
pub(crate) const DEVICE_HOLE_START: u64 = 0xC000_0000;
/// End of the device hole: RAM that does not fit below it continues here.
pub(crate) const DEVICE_HOLE_END: u64 = 0x1_0000_0000;

/// The kind of a range of guest-physical addresses, in the numbers of ACPI 6.5, table 15.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// RAM for the guest to use.
    Usable = 1,
    /// A range that is not for general use: firmware tables and the like.
    Reserved = 2,
}

/// An entry of the map that the guest is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The guest-physical addresses.
    pub range: Range<u64>,
    /// The kind of the range.
    pub kind: Kind,
}

/// Returns one past the last RAM address below the device hole, for a guest with `ram_size` bytes.
#[must_use]
pub(crate) const fn low_ram_end(ram_size: u64) -> u64 {
    if ram_size < DEVICE_HOLE_START {
        ram_size
    } else {
        DEVICE_HOLE_START
    }
}

/// Returns the guest-physical ranges that are RAM in a guest with `ram_size` bytes of it, in
/// ascending order. What is in none of them is a device or nothing.
///
/// The 96 KiB of the legacy video hole count towards `ram_size` but are not
/// there, as on a PC: so a byte of RAM at `address` is byte `address` of the guest's
/// memory below the device hole, and byte `address - 1 GiB` above 4 GiB.
pub(crate) fn ram_ranges(ram_size: u64) -> impl Iterator<Item = Range<u64>> {
    let low_end = low_ram_end(ram_size);
    [
        0..low_end.min(VIDEO_START),
        VIDEO_TEXT_START..low_end,
        DEVICE_HOLE_END..DEVICE_HOLE_END.saturating_add(ram_size - low_end),
    ]
    .into_iter()
    .filter(|range| !range.is_empty())
}

/// Returns whether the `length` bytes at `address` are RAM in a guest with `ram_size` bytes of it.
#[must_use]
pub(crate) fn is_ram(ram_size: u64, address: u64, length: u64) -> bool {
    let end = address.checked_add(length);
    end.is_some_and(|end| ram_ranges(ram_size).any(|it| it.start <= address && end <= it.end))
}

/// Returns which byte of the guest's memory is at `address`, which is RAM.
#[must_use]
pub(crate) const fn ram_offset(address: u64) -> u64 {
    if address < DEVICE_HOLE_END {
        address
    } else {
        address - (DEVICE_HOLE_END - DEVICE_HOLE_START)
    }
}

/// Returns the map that a guest with `ram_size` bytes of RAM is given, in ascending order.
pub(crate) fn entries(ram_size: u64) -> impl Iterator<Item = Entry> {
    use Kind::{Reserved, Usable};
    let low_end = low_ram_end(ram_size);
    [
        (0..low_end.min(EBDA_START), Usable),
        (EBDA_START..low_end.min(VIDEO_START), Reserved),
        (FIRMWARE_START..low_end.min(HIGH_MEMORY_START), Reserved),
        (HIGH_MEMORY_START..low_end, Usable),
        (
            DEVICE_HOLE_END..DEVICE_HOLE_END.saturating_add(ram_size - low_end),
            Usable,
        ),
    ]
    .into_iter()
    .filter(|(range, _)| !range.is_empty())
    .map(|(range, kind)| Entry { range, kind })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_guest_has_ram_around_the_video_hole_only() {
        assert_eq!(
            ram_ranges(256 << 20).collect::<Vec<_>>(),
            [0..0xA_0000, 0xB_8000..0x1000_0000]
        );
    }

    #[test]
    fn ram_that_does_not_fit_below_the_device_hole_continues_at_4_gib() {
        assert_eq!(
            ram_ranges(5 * GIB).last(),
            Some(4 * GIB..6 * GIB),
            "3 GiB are below the hole"
        );
        assert_eq!(ram_ranges(3 * GIB).last(), Some(0xB_8000..3 * GIB));
    }

    proptest! {
        #[test]
        fn entries_ascend_without_overlap_and_are_all_ram(ram_size in 0..1u64 << 40) {
            let ram: Vec<_> = ram_ranges(ram_size).collect();
            let mut end = 0;
            for entry in entries(ram_size) {
                prop_assert!(entry.range.start >= end && entry.range.end > entry.range.start);
                end = entry.range.end;
                prop_assert!(
                    ram.iter().any(|r| r.start <= entry.range.start && entry.range.end <= r.end),
                    "{entry:?} is not within {ram:?}"
                );
            }
        }

        #[test]
        fn ram_has_offsets_up_to_its_size_and_each_once(ram_size in VIDEO_TEXT_START..1u64 << 40) {
            let mut end = 0;
            for range in ram_ranges(ram_size) {
                prop_assert!(ram_offset(range.start) >= end);
                end = ram_offset(range.end - 1) + 1;
                prop_assert_eq!(end - ram_offset(range.start), range.end - range.start);
            }
            prop_assert_eq!(end, ram_size);
        }

        #[test]
        fn ram_amounts_to_its_size_less_the_video_hole(ram_size in VIDEO_TEXT_START..1u64 << 40) {
            let total: u64 = ram_ranges(ram_size).map(|r| r.end - r.start).sum();
            prop_assert_eq!(total, ram_size - (VIDEO_TEXT_START - VIDEO_START));
        }
    }
}
