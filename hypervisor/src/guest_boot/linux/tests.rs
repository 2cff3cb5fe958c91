use alloc::{format, string::String, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::guest_boot::test_ram::{self, TestRam};
use crate::guest_boot::{FileKind, initrd::InitrdError};

pub(super) const MIB: u64 = 1 << 20;
const CODE: &[u8] = b"protected-mode code, 32 bytes :)";
const SETUP_SECTORS: usize = 2;
pub(super) const LOAD_ADDRESS: u64 = 16 * MIB;
const INIT_SIZE: u32 = 8 << 20;

/// A bzImage with everything right in its header.
pub(super) fn bzimage() -> Vec<u8> {
    let mut file = vec![0; (SETUP_SECTORS + 1) * SECTOR];
    let mut set = |offset: usize, bytes: &[u8]| {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    set(
        offset_of!(boot_params, hdr.setup_sects),
        &[SETUP_SECTORS as u8],
    );
    set(
        offset_of!(boot_params, hdr.syssize),
        &(CODE.len() as u32 / 16).to_le_bytes(),
    );
    set(offset_of!(boot_params, hdr.boot_flag), &[0x55, 0xAA]);
    set(offset_of!(boot_params, hdr.jump), &[0xEB, 0x6A]);
    set(offset_of!(boot_params, hdr.header), b"HdrS");
    set(
        offset_of!(boot_params, hdr.version),
        &0x020F_u16.to_le_bytes(),
    );
    set(offset_of!(boot_params, hdr.loadflags), &[LOADED_HIGH as u8]);
    set(
        offset_of!(boot_params, hdr.initrd_addr_max),
        &0x7FFF_FFFF_u32.to_le_bytes(),
    );
    set(
        offset_of!(boot_params, hdr.xloadflags),
        &(XLF_KERNEL_64 as u16).to_le_bytes(),
    );
    set(
        offset_of!(boot_params, hdr.cmdline_size),
        &2047_u32.to_le_bytes(),
    );
    set(
        offset_of!(boot_params, hdr.pref_address),
        &LOAD_ADDRESS.to_le_bytes(),
    );
    set(
        offset_of!(boot_params, hdr.init_size),
        &INIT_SIZE.to_le_bytes(),
    );
    file.extend_from_slice(CODE);
    file
}

/// A cpio archive with nothing but its trailer.
fn archive() -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    for number in 0..13 {
        bytes.extend_from_slice(if number == 11 {
            b"0000000B"
        } else {
            b"00000000"
        });
    }
    bytes.extend_from_slice(b"TRAILER!!!\0\0\0\0");
    bytes
}

pub(in crate::guest_boot) fn vm<'a>(
    memory: u64,
    kernel: &'a [u8],
    initrd: Option<&'a [u8]>,
) -> VmConfig<'a> {
    VmConfig {
        name: "test".into(),
        memory,
        vcpus: 1,
        pins: Vec::new(),
        weight: 100,
        cap: None,
        suppression: crate::suppression::order::Defaults::default(),
        rules: Vec::new(),
        restart: crate::vm_config::RestartPolicy::default(),
        test_devices: false,
        disks: Vec::new(),
        nics: Vec::new(),
        entropy: false,
        console: false,
        kernel,
        firmware: None,
        initrd,
        modules: Vec::new(),
        command_line: "console=ttyS0".into(),
    }
}

fn booted(memory: u64, initrd: Option<&[u8]>) -> (TestRam, EntryState) {
    let ram = TestRam::new(memory);
    let kernel = bzimage();
    let entry = test_ram::load(&ram, &vm(memory, &kernel, initrd)).unwrap();
    (ram, entry)
}

fn error(memory: u64, kernel: &[u8], initrd: Option<&[u8]>) -> LoadError {
    test_ram::load(&TestRam::new(memory), &vm(memory, kernel, initrd)).unwrap_err()
}

/// A 32-bit field of the zero page.
fn zero_page_u32(ram: &TestRam, offset: usize) -> u32 {
    ram.u32(layout::ZERO_PAGE + offset as u64)
}

#[test]
fn the_kernel_starts_in_long_mode_at_its_64_bit_entry() {
    let (ram, entry) = booted(64 * MIB, None);
    assert_eq!(ram.bytes(LOAD_ADDRESS, CODE.len()), CODE);
    assert_eq!(entry.rip, LOAD_ADDRESS + 0x200);
    assert_eq!(entry.rsi, layout::ZERO_PAGE);
    assert_eq!(entry.efer, 0x500);
    assert_eq!((entry.cs.selector, entry.data.selector), (0x10, 0x18));
    assert_eq!(entry.rflags & 1 << 9, 0, "interrupts are off");
}

#[test]
fn the_segment_registers_agree_with_the_gdt() {
    let (ram, entry) = booted(64 * MIB, None);
    for segment in [entry.cs, entry.data] {
        let descriptor = ram.u64(entry.gdtr.base + u64::from(segment.selector));
        let rights = (descriptor >> 40) as u32 & 0xF0FF;
        assert_eq!(rights, segment.rights.bits());
        assert!(u64::from(segment.selector) + 7 <= entry.gdtr.limit.into());
    }
}

#[test]
fn the_first_4_gib_are_mapped_one_to_one() {
    let (ram, entry) = booted(64 * MIB, None);
    for address in [
        0,
        layout::ZERO_PAGE,
        LOAD_ADDRESS,
        0xBFFF_FFFF,
        0xFFFF_FFFF_u64,
    ] {
        let table = |table: u64, index: u64| ram.u64((table & !0xFFF) + 8 * (index & 511));
        let pml4e = table(entry.cr3, address >> 39);
        let pdpte = table(pml4e, address >> 30);
        let pde = table(pdpte, address >> 21);
        for present in [pml4e, pdpte, pde] {
            assert_eq!(present & 3, 3);
        }
        assert_eq!(pde & 1 << 7, 1 << 7);
        assert_eq!((pde & !0x1F_FFFF) | (address & 0x1F_FFFF), address);
    }
}

#[test]
fn the_zero_page_tells_of_command_line_acpi_and_memory() {
    let (ram, _) = booted(64 * MIB, None);
    let line = zero_page_u32(&ram, offset_of!(boot_params, hdr.cmd_line_ptr));
    assert_eq!(ram.string(line.into()), "console=ttyS0");
    let rsdp = zero_page_u32(&ram, offset_of!(boot_params, acpi_rsdp_addr));
    assert_eq!(ram.bytes(rsdp.into(), 8), b"RSD PTR ");
    let entries = ram.bytes(
        layout::ZERO_PAGE + offset_of!(boot_params, e820_entries) as u64,
        1,
    )[0];
    let last = layout::ZERO_PAGE
        + offset_of!(boot_params, e820_table) as u64
        + (u64::from(entries) - 1) * 20;
    assert_eq!((ram.u64(last), ram.u64(last + 8)), (MIB, 63 * MIB));
    assert_eq!(ram.u32(last + 16), 1, "usable");
    assert_eq!(
        zero_page_u32(&ram, offset_of!(boot_params, hdr.ramdisk_size)),
        0
    );
}

#[test]
fn the_initrd_is_at_the_top_of_memory() {
    let initrd = archive();
    let (ram, _) = booted(64 * MIB, Some(&initrd));
    let address = zero_page_u32(&ram, offset_of!(boot_params, hdr.ramdisk_image));
    let size = zero_page_u32(&ram, offset_of!(boot_params, hdr.ramdisk_size));
    assert_eq!(u64::from(address), 64 * MIB - PAGE_SIZE);
    assert_eq!(ram.bytes(address.into(), size as usize), initrd);
}

#[test]
fn the_initrd_stays_below_the_limit_of_the_kernel() {
    let mut kernel = bzimage();
    let limit = 40 * MIB as u32 - 1;
    let at = offset_of!(boot_params, hdr.initrd_addr_max);
    kernel[at..at + 4].copy_from_slice(&limit.to_le_bytes());
    let (ram, initrd) = (TestRam::new(64 * MIB), archive());
    test_ram::load(&ram, &vm(64 * MIB, &kernel, Some(&initrd))).unwrap();
    let address = zero_page_u32(&ram, offset_of!(boot_params, hdr.ramdisk_image));
    assert_eq!(u64::from(address), 40 * MIB - PAGE_SIZE);
}

#[test]
fn too_little_memory_is_refused_with_the_amount_that_is_needed() {
    let refused = error(32 * MIB, &bzimage(), None);
    let needed = 40 * MIB;
    assert_eq!(
        refused,
        LinuxError::TooLittleMemory {
            actual: 32 * MIB,
            needed
        }
        .into()
    );
    assert!(format!("{refused}").contains("mem=40M"), "{refused}");
    booted(needed, None);
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    for (file, kind) in [
        (&b""[..], FileKind::Empty),
        (b"\x7FELF and so on", FileKind::PlainElf),
        (b"\x1F\x8B and so on", FileKind::Compressed),
        (b"070701 and so on", FileKind::Cpio),
        (b"#!/bin/sh", FileKind::Unknown),
    ] {
        assert_eq!(error(64 * MIB, file, None), LoadError::NotAKernel(kind));
    }
}

#[test]
fn a_truncated_kernel_is_refused() {
    let kernel = bzimage();
    let expected = kernel.len() as u64;
    for length in [0x210, 0x300, kernel.len() - CODE.len(), kernel.len() - 16] {
        let refused = error(64 * MIB, &kernel[..length], None);
        assert!(
            matches!(refused, LoadError::Linux(LinuxError::Truncated { .. })),
            "{length} of {expected} bytes: {refused}"
        );
    }
}

#[test]
fn kernels_without_a_64_bit_entry_are_refused() {
    let with = |offset: usize, bytes: &[u8]| {
        let mut kernel = bzimage();
        kernel[offset..offset + bytes.len()].copy_from_slice(bytes);
        error(64 * MIB, &kernel, None)
    };
    assert_eq!(
        with(offset_of!(boot_params, hdr.version), &[0x0B, 0x02]),
        LinuxError::TooOld(0x020B).into()
    );
    assert_eq!(
        with(offset_of!(boot_params, hdr.xloadflags), &[0, 0]),
        LinuxError::Not64Bit.into()
    );
    assert_eq!(
        with(offset_of!(boot_params, hdr.loadflags), &[0]),
        LinuxError::LoadedLow.into()
    );
    assert!(matches!(
        with(offset_of!(boot_params, hdr.pref_address), &[0xFF; 8]),
        LoadError::Linux(LinuxError::BadHeader { .. })
    ));
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let kernel = bzimage();
    let mut vm = vm(64 * MIB, &kernel, None);
    vm.command_line = "x".repeat(2047);
    test_ram::load(&TestRam::new(64 * MIB), &vm).unwrap();
    vm.command_line.push('x');
    assert_eq!(
        test_ram::load(&TestRam::new(64 * MIB), &vm),
        Err(LinuxError::CommandLineTooLong {
            length: 2048,
            limit: 2047
        }
        .into())
    );
}

#[test]
fn a_truncated_initrd_is_refused() {
    let initrd = archive();
    assert!(matches!(
        error(64 * MIB, &bzimage(), Some(&initrd[..100])),
        LoadError::Initrd(InitrdError::Truncated { .. })
    ));
    assert_eq!(
        error(64 * MIB, &bzimage(), Some(&[])),
        LoadError::Initrd(InitrdError::Empty)
    );
}

proptest! {
    #[test]
    fn no_setup_header_makes_the_loader_panic(header in proptest::collection::vec(any::<u8>(), 0x7F)) {
        let mut kernel = bzimage();
        let start = offset_of!(boot_params, hdr);
        // What identifies it as a bzImage of a new version stays.
        for (at, byte) in (start..).zip(header) {
            if !(0x1FE..0x208).contains(&at) {
                kernel[at] = byte;
            }
        }
        let config = vm(8 * MIB, &kernel, None);
        if let Err(refused) = test_ram::load(&TestRam::new(8 * MIB), &config) {
            let text: String = format!("{refused}");
            prop_assert!(!text.is_empty());
        }
    }
}
