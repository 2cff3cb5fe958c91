use alloc::{format, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::guest_boot::test_ram::{self, TestRam};
use crate::guest_memory::GuestMemory;
use crate::vm_config::{GuestModule, RestartPolicy};

pub(super) const MIB: u64 = 1 << 20;
const MAGIC: u32 = 0x1BAD_B002;
const CODE: &[u8] = b"hlt; jmp .-1";

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn header(flags: u32) -> Vec<u8> {
    words(&[MAGIC, flags, 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags)])
}

/// A 32-bit ELF file with one segment: a multiboot header, then code, then 5000 bytes of bss.
fn elf32_with(flags: u32, address: u32) -> Vec<u8> {
    const HEADERS: u32 = 52 + 32;
    let contents = [header(flags), CODE.to_vec()].concat();
    let mut file = b"\x7FELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(words(&[3 << 16 | 2, 1]));
    // Linked 3 GiB above where it is loaded; the entry point is behind the header.
    let linked = address.wrapping_add(0xC000_0000);
    file.extend(words(&[linked + 12, 52, 0, 0]));
    file.extend(
        [52_u16, 32, 1, 40, 0, 0]
            .into_iter()
            .flat_map(u16::to_le_bytes),
    );
    let size = contents.len() as u32;
    file.extend(words(&[
        1,
        HEADERS,
        linked,
        address,
        size,
        size + 5000,
        7,
        4096,
    ]));
    file.extend(contents);
    file
}

pub(super) fn elf32() -> Vec<u8> {
    elf32_with(3, MIB as u32)
}

/// A 64-bit ELF file with the same contents.
pub(super) fn elf64() -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let contents = [header(0), CODE.to_vec()].concat();
    let size = contents.len() as u64;
    let mut file = b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(words(&[62 << 16 | 2, 1]));
    file.extend([MIB + 12, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend(words(&[0]));
    file.extend(
        [64_u16, 56, 1, 64, 0, 0]
            .into_iter()
            .flat_map(u16::to_le_bytes),
    );
    file.extend(words(&[1, 7]));
    let fields = [HEADERS, MIB, MIB, size, size, 4096];
    file.extend(fields.into_iter().flat_map(u64::to_le_bytes));
    file.extend(contents);
    file
}

/// An image with addresses in its header: 16 bytes that are loaded before it, code after it.
pub(super) fn with_addresses(load_end: u32, bss_end: u32) -> Vec<u8> {
    let load = 2 * MIB as u32;
    let mut file = vec![0; 4];
    file.extend([0xEE; 16]);
    file.extend(header(1 << 16));
    file.extend(words(&[load + 16, load, load_end, bss_end, load + 48]));
    file.extend(CODE);
    file
}

pub(super) fn vm(kernel: &[u8]) -> VmConfig<'_> {
    VmConfig {
        name: "test".into(),
        memory: 8 * MIB,
        vcpus: 1,
        pins: Vec::new(),
        weight: 100,
        cap: None,
        suppression: crate::suppression::order::Defaults::default(),
        rules: Vec::new(),
        restart: RestartPolicy::default(),
        test_devices: false,
        disks: Vec::new(),
        nics: Vec::new(),
        entropy: false,
        console: false,
        kernel,
        firmware: None,
        initrd: None,
        modules: Vec::new(),
        command_line: "apic timeout=9".into(),
    }
}

fn booted(vm: &VmConfig) -> (TestRam, EntryState) {
    let ram = TestRam::new(vm.memory);
    let entry = test_ram::load(&ram, vm).unwrap();
    (ram, entry)
}

fn error(kernel: &[u8]) -> LoadError {
    test_ram::load(&TestRam::new(8 * MIB), &vm(kernel)).unwrap_err()
}

#[test]
fn it_starts_in_flat_protected_mode_with_the_magic_number() {
    let file = elf32();
    let (ram, entry) = booted(&vm(&file));
    assert_eq!(
        entry.rip,
        MIB + 12,
        "the physical address of the entry point"
    );
    assert_eq!(entry.rax, 0x2BAD_B002);
    assert_eq!(entry.cr0 & (1 | 1 << 31), 1, "protection without paging");
    assert_eq!(entry.rflags & 1 << 9, 0, "interrupts are off");
    assert_eq!((entry.cs.base, entry.cs.limit), (0, u32::MAX));
    assert_eq!(ram.bytes(entry.rip, CODE.len()), CODE);
}

#[test]
fn bss_is_zero_even_in_used_memory() {
    let ram = TestRam::new(8 * MIB);
    ram.write(GuestPhysAddr(MIB), &[0xFF; 8000]).unwrap();
    test_ram::load(&ram, &vm(&elf32())).unwrap();
    let bss = MIB + 12 + CODE.len() as u64;
    assert_eq!(ram.bytes(bss, 5000), [0; 5000]);
    assert_eq!(ram.bytes(bss + 5000, 1), [0xFF]);
}

#[test]
fn a_64_bit_elf_file_is_loaded_too() {
    let file = elf64();
    let (ram, entry) = booted(&vm(&file));
    assert_eq!(ram.bytes(entry.rip, CODE.len()), CODE);
}

#[test]
fn the_addresses_in_the_header_count_where_they_are() {
    let load = 2 * MIB as u32;
    for (load_end, bss_end) in [(0, 0), (load + 48 + CODE.len() as u32, load + 0x2000)] {
        let file = with_addresses(load_end, bss_end);
        let (ram, entry) = booted(&vm(&file));
        assert_eq!(ram.bytes(2 * MIB, 16), [0xEE; 16]);
        assert_eq!(entry.rip, 2 * MIB + 48);
        assert_eq!(ram.bytes(entry.rip, CODE.len()), CODE);
    }
}

#[test]
fn the_information_tells_of_memory_and_command_line() {
    let file = elf32();
    let (ram, entry) = booted(&vm(&file));
    let field = |offset: u64| ram.u32(entry.rbx + offset);
    assert_eq!(field(0), 0b10_0100_1101);
    assert_eq!((field(4), field(8)), (639, 7 * 1024));
    assert_eq!(ram.string(field(16).into()), "test apic timeout=9");
    assert_eq!(ram.string(field(64).into()), "tarpit");

    let (length, mut at) = (field(44), u64::from(field(48)));
    let end = at + u64::from(length);
    let mut entries = Vec::new();
    while at < end {
        let start = ram.u64(at + 4);
        let kind = ram.u32(at + 20);
        entries.push((start..start + ram.u64(at + 12), kind));
        at += u64::from(ram.u32(at)) + 4;
    }
    let expected: Vec<_> = memory_map::entries(8 * MIB)
        .map(|entry| (entry.range, entry.kind as u32))
        .collect();
    assert_eq!(entries, expected);
}

#[test]
fn modules_follow_the_image_on_page_boundaries() {
    let file = elf32();
    let mut vm = vm(&file);
    vm.initrd = Some(b"the environment");
    vm.modules = vec![GuestModule {
        string: "second file".into(),
        data: b"more",
    }];
    let (ram, entry) = booted(&vm);
    assert_eq!(ram.u32(entry.rbx + 20), 2);
    let list = u64::from(ram.u32(entry.rbx + 24));
    for (index, string, data) in [(0, "initrd", "the environment"), (1, "second file", "more")] {
        let at = list + 16 * index;
        let (start, end) = (ram.u32(at), ram.u32(at + 4));
        assert_eq!(start % 4096, 0);
        assert!(u64::from(start) >= MIB + 24 + 5000, "behind the bss");
        assert_eq!(
            ram.bytes(start.into(), (end - start) as usize),
            data.as_bytes()
        );
        assert_eq!(ram.string(ram.u32(at + 8).into()), string);
    }
}

#[test]
fn the_information_gets_out_of_the_way_of_the_image() {
    let file = elf32_with(0, layout::MULTIBOOT as u32 + 0x100);
    let (ram, entry) = booted(&vm(&file));
    assert_eq!(ram.bytes(entry.rip, CODE.len()), CODE);
    assert!(entry.rbx >= MIB && entry.gdtr.base >= MIB);
    assert_eq!(
        ram.string(ram.u32(entry.rbx + 16).into()),
        "test apic timeout=9"
    );
}

#[test]
fn the_segment_registers_agree_with_the_gdt() {
    let file = elf32();
    let (ram, entry) = booted(&vm(&file));
    for segment in [entry.cs, entry.data] {
        let descriptor = ram.u64(entry.gdtr.base + u64::from(segment.selector));
        assert_eq!((descriptor >> 40) as u32 & 0xF0FF, segment.rights.bits());
    }
}

/// xv6 loads a GDT of its own, with its code behind selector 8 and its data behind 16, but no segment
/// register: its first return from an interrupt is to the code segment that it was started with.
#[test]
fn a_kernel_with_segments_where_qemu_has_them_may_keep_the_selectors() {
    let file = elf32();
    let (_, entry) = booted(&vm(&file));
    assert_eq!((entry.cs.selector, entry.data.selector), (0x08, 0x10));
}

#[test]
fn acpi_and_mp_tables_are_there() {
    let file = elf32();
    let (ram, _) = booted(&vm(&file));
    assert_eq!(ram.bytes(layout::ACPI, 8), b"RSD PTR ");
    assert_eq!(ram.bytes(layout::MP_TABLES, 4), b"_MP_");
}

#[test]
fn images_that_cannot_be_started_are_refused() {
    use MultibootError as E;
    let multiboot = |error: LoadError| match error {
        LoadError::Multiboot(error) => error,
        other => panic!("{other}"),
    };
    let refused = |file: &[u8]| multiboot(error(file));
    assert_eq!(
        refused(&elf32_with(1 << 5, 0x10_0000)),
        E::UnknownDemands(1 << 5)
    );
    assert_eq!(refused(&header(0)), E::NoAddresses);
    assert_eq!(refused(&with_addresses(MIB as u32, 0)), E::BadAddresses);
    assert!(matches!(
        refused(&with_addresses(3 * MIB as u32, 0)),
        E::Truncated { .. }
    ));
    let whole = elf32();
    assert!(matches!(
        refused(&whole[..whole.len() - 1]),
        E::Truncated { .. }
    ));
    let mut arm = elf32();
    arm[18] = 40;
    assert_eq!(refused(&arm), E::WrongMachine(40));
    for address in [0x9_F000_u32, 0xF_0000, 8 * MIB as u32 - 5000] {
        assert!(
            matches!(refused(&elf32_with(0, address)), E::NoRamThere { .. }),
            "{address:#x}"
        );
    }
    let file = elf32();
    let module = vec![0; 7 * MIB as usize];
    let mut crowded = vm(&file);
    crowded.initrd = Some(&module);
    let refused = test_ram::load(&TestRam::new(8 * MIB), &crowded).unwrap_err();
    assert_eq!(multiboot(refused), E::NoRoom(8 * MIB));
}

#[test]
fn a_header_beyond_the_first_8_kib_does_not_count() {
    for (offset, counts) in [
        (0, true),
        (2, false),
        (8180, true),
        (8184, false),
        (8192, false),
    ] {
        let file = [vec![0; offset], header(0)].concat();
        assert_eq!(is_multiboot(&file), counts, "{offset}");
    }
    let mut wrong_checksum = header(0);
    wrong_checksum[8] ^= 1;
    assert!(!is_multiboot(&wrong_checksum));
}

proptest! {
    #[test]
    fn no_elf_header_makes_the_loader_panic(
        at in 16_usize..84, bytes in proptest::collection::vec(any::<u8>(), 1..16),
        cut in 0_usize..200,
    ) {
        let mut file = elf32();
        for (slot, byte) in file[at..84.min(at + bytes.len())].iter_mut().zip(bytes) {
            *slot = byte;
        }
        file.truncate(file.len().saturating_sub(cut));
        if let Err(refused) = test_ram::load(&TestRam::new(2 * MIB), &vm(&file)) {
            let text = format!("{refused}");
            prop_assert!(!text.is_empty());
        }
    }

    #[test]
    fn no_load_addresses_make_the_loader_panic(addresses: [u32; 5], padding in 0_usize..64) {
        let file = [vec![0; padding * 4], header(1 << 16), words(&addresses), CODE.to_vec()].concat();
        let _ = test_ram::load(&TestRam::new(2 * MIB), &vm(&file));
    }
}
