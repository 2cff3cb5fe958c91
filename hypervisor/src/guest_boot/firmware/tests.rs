use std::borrow::ToOwned;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use ::acpi::AcpiTables;
use ::acpi::fadt::Fadt;
use ::acpi::madt::{Madt, MadtEntry};
use ::acpi::mcfg::Mcfg;
use devices::virtio::disk::image::DiskImage;

use super::super::LoadError;
use super::super::acpi::tests::Firmware;
use super::super::linux::tests::vm as linux_vm;
use super::super::test_ram::{TestRam, load as load_guest};
use super::*;
use crate::vm_config::GuestDisk;

const KIB: usize = 1 << 10;
const GIB: u64 = 1 << 30;

/// An image whose pages can be told apart, with a jump at the reset vector.
fn image(size: usize) -> Vec<u8> {
    let mut image: Vec<u8> = (0..size).map(|at| (at >> 12) as u8).collect();
    image[size - 16..].copy_from_slice(b"\xea\x5b\xe0\x00\xf006/23/99\0\xfc\0");
    image
}

/// A VM that starts in `image`.
fn vm(memory: u64, image: &[u8]) -> VmConfig<'_> {
    VmConfig {
        firmware: Some(image),
        ..linux_vm(memory, &[], None)
    }
}

fn file(config: &FirmwareConfig, name: &str) -> Vec<u8> {
    let found = config.files.iter().find(|file| file.name == name);
    found.unwrap().content.clone()
}

#[test]
fn a_file_that_is_no_rom_is_told_why_and_what_is_one() {
    for size in [64 * KIB, 128 * KIB, 256 * KIB, 8 << 20] {
        assert_eq!(check(&image(size)), Ok(()));
    }
    for size in [0, 512, 60 * KIB, 128 * KIB - 16, 128 * KIB + 1, 9 << 20] {
        let error = check(&vec![7; size]).unwrap_err();
        assert_eq!(error, FirmwareError::Size(size));
        let text = std::format!("{}", LoadError::from(error));
        assert!(
            text.contains(&std::format!("{size} bytes")) && text.contains("bios-256k.bin"),
            "{text}"
        );
    }
    for nothing in [0, 0xff] {
        let mut empty = image(128 * KIB);
        empty[128 * KIB - 16..].fill(nothing);
        assert_eq!(check(&empty), Err(FirmwareError::NoCode));
    }
    let ram = TestRam::new(4 << 20);
    let error = load_guest(&ram, &vm(4 << 20, &[1, 2, 3])).unwrap_err();
    assert_eq!(error, FirmwareError::Size(3).into());
}

#[test]
fn the_end_of_the_image_is_below_1_mib_and_the_processor_at_the_reset_vector() {
    for (size, shadowed) in [(64, 64), (128, 128), (256, 128), (1024, 128)] {
        let image = image(size * KIB);
        let ram = TestRam::new(4 << 20);
        let state = load_guest(&ram, &vm(4 << 20, &image)).unwrap();
        let start = 0x10_0000 - shadowed * KIB;
        assert_eq!(
            ram.bytes(start as u64, shadowed * KIB),
            image[(size - shadowed) * KIB..]
        );
        // Nothing else: firmware makes the rest itself.
        let below = ram.bytes(0xc_0000, start - 0xc_0000);
        assert!(below.iter().all(|&byte| byte == 0));
        assert!(ram.bytes(0, 0xa_0000).iter().all(|&byte| byte == 0));
        assert_eq!(state.cs.base + state.rip, 0xffff_fff0);
        assert_eq!(
            (state.cs.selector, state.cr0 & 1, state.efer),
            (0xf000, 0, 0)
        );
        assert_eq!(rom_start(&image).0 + image.len() as u64, 4 * GIB);
    }
}

#[test]
fn the_memory_map_is_the_ram_below_and_above_the_hole() {
    let image = image(128 * KIB);
    for (memory, low, high) in [
        (256 << 20, 256 << 20, 0),
        (3 * GIB, 3 * GIB, 0),
        (5 * GIB, 3 * GIB, 2 * GIB),
    ] {
        let config = config(&vm(memory, &image));
        assert_eq!((config.low_ram, config.high_ram), (low, high));
        let map = file(&config, "etc/e820");
        let ranges: Vec<_> = map
            .chunks(20)
            .map(|entry| {
                let (start, length) = (entry[..8].try_into(), entry[8..16].try_into());
                assert_eq!(entry[16..], [1, 0, 0, 0]);
                (
                    u64::from_le_bytes(start.unwrap()),
                    u64::from_le_bytes(length.unwrap()),
                )
            })
            .collect();
        let expected = [(0, low), (4 * GIB, high)];
        let count = 1 + usize::from(high != 0);
        assert_eq!(ranges, expected[..count]);
    }
}

#[test]
fn disks_are_booted_from_in_their_order() {
    let image = image(128 * KIB);
    let disk = GuestDisk {
        image: DiskImage::Raw(&[]),
        read_only: false,
        id: String::new(),
        keeps: false,
    };
    let mut vm = VmConfig {
        disks: vec![disk; 2],
        entropy: true,
        ..vm(256 << 20, &image)
    };
    let order = file(&config(&vm), "bootorder");
    // Device 1 is the entropy device.
    let expected = b"/pci@i0cf8/scsi@2/disk@0,0\n/pci@i0cf8/scsi@3/disk@0,0\n\0";
    assert_eq!(order, expected);
    vm.disks.clear();
    assert_eq!(file(&config(&vm), "bootorder"), b"\0");
    assert_eq!(file(&config(&vm), "etc/sercon-port"), [0xf8, 0x03]);
}

/// Does what firmware does with the commands for the tables, which it puts at `high` and `low`, and
/// returns its memory and the address of the RSDP.
fn linked(config: &FirmwareConfig, high: usize, low: usize) -> (Vec<u8>, usize) {
    let commands = file(config, "etc/table-loader");
    let mut memory = vec![0_u8; high + 0x1_0000];
    let mut places = BTreeMap::new();
    for command in commands.chunks(loader::COMMAND_LENGTH) {
        let number = |at: usize, length: usize| {
            let bytes = command[at..at + length].iter().rev();
            bytes.fold(0, |value, byte| value << 8 | usize::from(*byte))
        };
        let name = |at: usize| {
            let name = command[at..at + 56].split(|&byte| byte == 0).next();
            std::str::from_utf8(name.unwrap()).unwrap().to_owned()
        };
        match number(0, 4) {
            1 => {
                let content = file(config, &name(4));
                let (alignment, zone) = (number(60, 4), number(64, 1));
                let at = if zone == 2 { low } else { high };
                assert!(alignment.is_power_of_two() && at.is_multiple_of(alignment));
                memory[at..at + content.len()].copy_from_slice(&content);
                assert_eq!(places.insert(name(4), (at, content.len())), None);
            }
            2 => {
                let ((dest, size), (source, _)) = (places[&name(4)], places[&name(60)]);
                let (offset, length) = (number(116, 4), number(120, 1));
                assert!(offset + length <= size);
                let field = &mut memory[dest + offset..][..length];
                let mut value = [0; 8];
                value[..length].copy_from_slice(field);
                let value = u64::from_le_bytes(value) + source as u64;
                field.copy_from_slice(&value.to_le_bytes()[..length]);
            }
            3 => {
                let (at, size) = places[&name(4)];
                let (offset, start, length) = (number(60, 4), number(64, 4), number(68, 4));
                assert!(offset < size && start + length <= size);
                let bytes = &memory[at + start..][..length];
                let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                let byte = &mut memory[at + offset];
                *byte = byte.wrapping_sub(sum);
            }
            other => panic!("command {other}"),
        }
    }
    (memory, places["etc/acpi/rsdp"].0)
}

#[test]
fn firmware_puts_the_acpi_tables_in_their_place() {
    let image = image(128 * KIB);
    for (vcpus, high) in [(1, 0x0fe0_0000), (8, 0x07c3_4540)] {
        let vm = VmConfig {
            vcpus,
            ..vm(256 << 20, &image)
        };
        let (memory, rsdp) = linked(&config(&vm), high, 0xf_5a60);
        // SAFETY: the handler answers for all of the memory.
        let tables = unsafe { AcpiTables::from_rsdp(Firmware(Rc::new(memory)), rsdp) }.unwrap();
        tables.find_table::<Fadt>().unwrap().validate().unwrap();
        assert!(tables.dsdt().unwrap().address > high);
        let madt = tables.find_table::<Madt>().unwrap();
        let is_processor = |entry: &MadtEntry<'_>| matches!(entry, MadtEntry::LocalApic(_));
        let processors = madt.get().entries().filter(is_processor).count();
        assert_eq!(processors, vcpus as usize);
        let mcfg = tables.find_table::<Mcfg>().unwrap();
        assert_eq!(mcfg.entries().len(), 1);
    }
}
