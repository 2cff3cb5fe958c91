//! A target for fuzzing: multiboot images, in ELF and with addresses of their own.

use alloc::vec;
use alloc::vec::Vec;

use super::tests::{MIB, elf32, elf64, vm, with_addresses};
use super::*;
use crate::guest_boot::test_ram::{self, TestRam};
use crate::vm_config::GuestModule;

#[test]
fn multiboot_images() {
    fuzzing::check!()
        .with_type::<(u8, Vec<(u8, u32)>, Vec<(u16, u8)>, Vec<u16>, u16, u8)>()
        .for_each(|(kind, words, patches, modules, initrd, mebibytes)| {
            let mut kernel = match kind % 4 {
                0 => elf32(),
                1 => elf64(),
                2 => with_addresses(0, 0),
                _ => with_addresses(2 * MIB as u32 + 60, 3 * MIB as u32),
            };
            for &(at, value) in words {
                // Addresses in RAM and offsets in the file, as often as not.
                let value = match value >> 30 {
                    0 => value % 9 * MIB as u32 + (value >> 8 & 0xfff),
                    1 => value & 0xff,
                    _ => value,
                };
                let at = usize::from(at) * 4 % kernel.len();
                if let Some(word) = kernel.get_mut(at..at + 4) {
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            for &(at, byte) in patches {
                let at = usize::from(at) % kernel.len();
                kernel[at] = byte;
            }
            let initrd = vec![0xa5; usize::from(*initrd)];
            let files: Vec<_> = modules
                .iter()
                .map(|&length| vec![length as u8; usize::from(length)])
                .collect();
            let mut vm = vm(&kernel);
            vm.memory = u64::from(mebibytes % 8 + 2) * MIB;
            vm.initrd = Some(&initrd[..]).filter(|it| !it.is_empty());
            vm.modules = files
                .iter()
                .map(|data| GuestModule {
                    string: "a module".into(),
                    data,
                })
                .collect();
            check(&vm);
        });
}

/// Loads a VM's files. If that works, everything is where the guest is told that it is, and nothing is over
/// something else.
fn check(vm: &VmConfig) {
    let ram = TestRam::new(vm.memory);
    let Ok(entry) = test_ram::load(&ram, vm) else {
        return;
    };
    let image = Image::parse(vm.kernel).unwrap();
    assert_eq!(entry.rip, u64::from(image.entry));
    // Of parts over each other the last counts.
    let last = image.segments.last().unwrap();
    assert!(ram.bytes(last.address, last.data.len()) == last.data);
    if let Some(cleared) = last.size.checked_sub(last.data.len() as u64 + 1) {
        assert_eq!(ram.bytes(last.data_end() + cleared, 1), [0]);
    }
    let information = entry.rbx;
    let word = |at: u64| u64::from(ram.u32(at));
    assert_eq!(
        word(information + 44) as usize,
        24 * memory_map::entries(vm.memory).count()
    );
    let line = ram.string(word(information + 16));
    assert!(line.ends_with(&vm.command_line), "{line}");
    let files = vm
        .initrd
        .into_iter()
        .chain(vm.modules.iter().map(|file| file.data));
    let files: Vec<_> = files.collect();
    assert_eq!(word(information + 20) as usize, files.len());
    let list = word(information + 24);
    for (index, file) in files.iter().enumerate() {
        let start = word(list + 16 * index as u64);
        let end = word(list + 16 * index as u64 + 4);
        assert_eq!((end - start) as usize, file.len());
        assert!(ram.bytes(start, file.len()) == *file);
        let over = |segment: &&image::Segment| segment.address < end && start < segment.end();
        assert_eq!(image.segments.iter().filter(over).count(), 0);
    }
    // The tables of the firmware are as they were.
    assert_eq!(ram.bytes(layout::ACPI, 8), b"RSD PTR ");
    assert_eq!(ram.bytes(layout::MP_TABLES, 4), b"_MP_");
}
