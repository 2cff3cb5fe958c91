//! Commands for firmware that say how to put the ACPI tables in their place: QEMU's and SeaBIOS's
//! "linker/loader" (QEMU's `hw/acpi/bios-linker-loader.c`).
//!
//! A command is 128 bytes long: its number, and behind that names of files, of 56 bytes each, and numbers.
//! The tables are made for address zero, so that their pointers are offsets to which the firmware adds
//! the address that it has put them at; then it makes the checksums right.

use alloc::vec::Vec;

use devices::chipset::fw_cfg::File;

use super::super::acpi::{ALIGNMENT, CHECKSUM, RSDP_CHECKSUMS, RSDP_POINTERS, Tables};

/// The files' names.
const COMMANDS: &str = "etc/table-loader";
const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";

/// The length of a command.
pub(super) const COMMAND_LENGTH: usize = 128;
/// The length of a file's name in a command.
const NAME_LENGTH: usize = 56;
/// The boundary that the RSDP is searched for on (ACPI 6.5, 5.2.5.1).
const RSDP_ALIGNMENT: u32 = 16;

/// A place for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Zone {
    /// Anywhere below 4 GiB.
    High = 1,
    /// The segment below 1 MiB in which the RSDP is searched for.
    Low = 2,
}

/// Returns the tables and what is to be done with them, as files.
pub(super) fn files(tables: Tables) -> [File; 3] {
    let mut commands = Commands(Vec::new());
    commands.allocate(TABLES, ALIGNMENT as u32, Zone::High);
    commands.allocate(RSDP, RSDP_ALIGNMENT, Zone::Low);
    for pointer in &tables.pointers {
        commands.add_pointer(TABLES, pointer.offset, pointer.length);
    }
    for table in &tables.checked {
        commands.add_checksum(TABLES, table.start + CHECKSUM, table.clone());
    }
    for pointer in RSDP_POINTERS {
        commands.add_pointer(RSDP, pointer.offset, pointer.length);
    }
    for (range, at) in RSDP_CHECKSUMS {
        commands.add_checksum(RSDP, at, range);
    }
    let rsdp = tables.rsdp();
    [(COMMANDS, commands.0), (TABLES, tables.bytes), (RSDP, rsdp)]
        .map(|(name, content)| File { name, content })
}

/// Commands, one after the other.
struct Commands(Vec<u8>);

impl Commands {
    /// Adds a command: its number, names of files, and numbers of so many bytes.
    fn push(&mut self, number: u32, names: &[&str], numbers: &[(usize, usize)]) {
        let end = self.0.len() + COMMAND_LENGTH;
        self.0.extend(number.to_le_bytes());
        for name in names {
            debug_assert!(name.len() < NAME_LENGTH);
            let padded = name.bytes().chain(core::iter::repeat(0));
            self.0.extend(padded.take(NAME_LENGTH));
        }
        for (number, length) in numbers {
            self.0.extend(number.to_le_bytes().iter().take(*length));
        }
        debug_assert!(self.0.len() <= end);
        self.0.resize(end, 0);
    }

    /// Adds: load `file` on such a boundary.
    fn allocate(&mut self, file: &str, alignment: u32, zone: Zone) {
        self.push(1, &[file], &[(alignment as usize, 4), (zone as usize, 1)]);
    }

    /// Adds: add the address of the tables to the number of `length` bytes at `offset` of `file`.
    fn add_pointer(&mut self, file: &str, offset: usize, length: u8) {
        self.push(2, &[file, TABLES], &[(offset, 4), (length.into(), 1)]);
    }

    /// Adds: change the byte at `offset` of `file` so that the sum of the bytes in `range` is zero.
    fn add_checksum(&mut self, file: &str, offset: usize, range: core::ops::Range<usize>) {
        let numbers = [(offset, 4), (range.start, 4), (range.len(), 4)];
        self.push(3, &[file], &numbers);
    }
}
