//! A target for fuzzing: bzImages, most of them with something wrong in their headers.

use alloc::vec;
use alloc::vec::Vec;

use super::tests::{LOAD_ADDRESS, MIB, bzimage, vm};
use super::*;
use crate::guest_boot::test_ram::{self, TestRam};

/// Fields of the header, with their sizes.
const FIELDS: [(usize, usize); 12] = [
    (offset_of!(boot_params, hdr.setup_sects), 1),
    (offset_of!(boot_params, hdr.syssize), 4),
    (offset_of!(boot_params, hdr.jump), 2),
    (offset_of!(boot_params, hdr.version), 2),
    (offset_of!(boot_params, hdr.loadflags), 1),
    (offset_of!(boot_params, hdr.initrd_addr_max), 4),
    (offset_of!(boot_params, hdr.xloadflags), 2),
    (offset_of!(boot_params, hdr.cmdline_size), 4),
    (offset_of!(boot_params, hdr.pref_address), 8),
    (offset_of!(boot_params, hdr.init_size), 4),
    (offset_of!(boot_params, hdr.header), 4),
    (offset_of!(boot_params, hdr.kernel_alignment), 4),
];

#[test]
fn bzimages() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, u64)>, u16, u16, u8, [u16; 3])>()
        .for_each(
            |(fields, more, cut, mebibytes, [initrd, command_line, _])| {
                let mut kernel = bzimage();
                kernel.extend((0..*more).map(|byte| byte as u8 | 1));
                for &(field, value) in fields {
                    let (offset, size) = FIELDS[usize::from(field) % FIELDS.len()];
                    // Addresses and sizes that fit, as often as not.
                    let value = match value >> 62 {
                        0 if size >= 4 => (value % 40) * MIB,
                        1 if size >= 4 => LOAD_ADDRESS + value % 0x10_0000,
                        _ => value,
                    };
                    kernel[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
                if cut & 0xc000 == 0 {
                    kernel.truncate(usize::from(*cut));
                }
                let memory = u64::from(mebibytes % 64 + 2) * MIB;
                // A file of no format that is known, so nothing is unpacked.
                let initrd = vec![0xa5; usize::from(*initrd)];
                let mut vm = vm(
                    memory,
                    &kernel,
                    Some(&initrd).filter(|it| !it.is_empty()).map(|it| &it[..]),
                );
                vm.command_line = "x".repeat(usize::from(*command_line));
                check(&vm);
            },
        );
}

/// Loads a VM's files. If that works, everything is where the guest is told that it is, and nothing is over
/// something else.
fn check(vm: &VmConfig) {
    let ram = TestRam::new(vm.memory);
    let Ok(entry) = test_ram::load(&ram, vm) else {
        return;
    };
    let header = SetupHeader::parse(vm.kernel).unwrap();
    let code = &vm.kernel[header.code_offset..];
    assert_eq!(entry.rip, header.load_address + ENTRY_64);
    assert!(ram.bytes(header.load_address, code.len()) == code);
    let zero_page = ram.bytes(layout::ZERO_PAGE, size_of::<boot_params>());
    let word = |offset| u32::from_le_bytes(field(&zero_page, offset).unwrap());
    let line = u64::from(word(offset_of!(boot_params, hdr.cmd_line_ptr)));
    assert_eq!(ram.string(line), vm.command_line);
    assert!(vm.command_line.len() <= header.command_line_limit);
    if let Some(initrd) = vm.initrd {
        let at = u64::from(word(offset_of!(boot_params, hdr.ramdisk_image)));
        assert_eq!(
            word(offset_of!(boot_params, hdr.ramdisk_size)) as usize,
            initrd.len()
        );
        assert!(ram.bytes(at, initrd.len()) == initrd);
        assert!(at >= header.memory_end());
        assert!(at + initrd.len() as u64 <= header.initrd_limit.min(vm.memory));
    }
    let [count] = field(&zero_page, offset_of!(boot_params, e820_entries)).unwrap();
    assert_eq!(usize::from(count), memory_map::entries(vm.memory).count());
    let rsdp = field(&zero_page, offset_of!(boot_params, acpi_rsdp_addr)).unwrap();
    assert_eq!(ram.bytes(u64::from_le_bytes(rsdp), 8), b"RSD PTR ");
    assert_eq!(ram.u64(entry.cr3) & !0xfff, layout::PAGE_TABLES + PAGE_SIZE);
}
