//! A target for fuzzing: the host's ACPI tables, whose checksums are right, and whose contents need not be.

use std::vec;
use std::vec::Vec;

use super::*;

/// The bytes of a table without its header, and some fields that mean something.
fn table(content: &[u8], revision: u8, fields: &[(u8, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[8] = revision;
    bytes.extend(content);
    for &(at, value) in fields {
        // Most fields of a FADT are at multiples of four.
        let at = usize::from(at) * 4 % bytes.len().next_multiple_of(4).max(4);
        if let Some(field) = bytes.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn tables_of_the_host() {
    fuzzing::check!()
        .with_type::<(Vec<u8>, Vec<(u8, [u8; 16])>, Vec<(u8, u32)>, u8, Vec<u8>)>()
        .for_each(|(content, entries, fields, revision, aml)| {
            let mut bytes = table(content, *revision, fields);
            bytes.resize(bytes.len() + usize::from(*revision), 0);
            let whole = Table(&bytes);
            let mut acpi = Acpi::default();
            acpi.read_madt(whole);
            acpi.read_fadt(whole, &[b"\x08_S5_\x12", &aml[..]].concat());
            assert!(acpi.pm_timer.is_none_or(|timer| timer.port != 0));
            if let Some(off) = acpi.soft_off {
                assert!(off.sleep_type_a < 8 && off.sleep_type_b < 8 && off.pm1a_control != 0);
            }
            assert!(hpet(whole) != Some(0));
            if let Some(line) = console_line(whole) {
                assert_eq!(ConsoleLine::new(line.port, line.baud), Some(line));
            }

            // Processors and I/O APICs: as many as there are entries that are long enough.
            let mut madt = vec![0; 44];
            let mut expected = Vec::new();
            for (kind, entry) in entries {
                let mut entry = *entry;
                entry[0] = [0, 1, 9, *kind][usize::from(kind % 4)];
                // Most of the right length.
                entry[1] = if kind & 0xc0 == 0 {
                    entry[1] % 20
                } else {
                    [8, 12, 16, 5][usize::from(kind % 4)]
                };
                let length = usize::from(entry[1]).min(16);
                madt.extend(&entry[..length.max(2)]);
                expected.push((entry, length));
            }
            let mut acpi = Acpi::default();
            acpi.read_madt(Table(&madt));
            let fits = |kind: u8, least: usize| {
                let is = |it: &&([u8; 16], usize)| it.0[0] == kind && it.1 >= least;
                expected.iter().filter(is).count()
            };
            // A wrong length makes another list of what follows, of which no byte counts twice.
            assert!(acpi.io_apics.len() * 12 + acpi.cpus.len() * 8 <= madt.len());
            if expected
                .iter()
                .all(|(entry, length)| usize::from(entry[1]) == *length && *length >= 2)
            {
                assert_eq!(acpi.io_apics.len(), fits(1, 12));
            }
        });
}
