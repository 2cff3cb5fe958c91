use std::vec;

use proptest::prelude::*;

use super::*;

/// A machine with some bytes of memory at one place.
pub(super) struct Memory {
    pub(super) base: u64,
    pub(super) content: Vec<u8>,
}

impl PhysicalMemory for Memory {
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]> {
        let start = address.checked_sub(self.base)? as usize;
        self.content.get(start..start.checked_add(length as usize)?)
    }
}

pub(super) const BASE: u32 = 0x9000;
pub(super) const MB1: u32 = 0x2bad_b002;
pub(super) const MB2: u32 = 0x36d7_6289;

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn region(base: u64, length: u64, kind: u32) -> Vec<u8> {
    let mut entry = base.to_le_bytes().to_vec();
    entry.extend(length.to_le_bytes());
    entry.extend(kind.to_le_bytes());
    entry
}

/// Multiboot 1 information as QEMU or GRUB leaves it, by loader name.
pub(super) fn multiboot1(loader: &str) -> Memory {
    let mut content = vec![0; 0x100];
    let put = |content: &mut Vec<u8>, bytes: &[u8]| {
        let address = BASE + content.len() as u32;
        content.extend(bytes);
        address
    };
    let name = put(&mut content, &[loader.as_bytes(), b"\0"].concat());
    let line = put(&mut content, b"build/tarpit  loglevel=debug on-end=stay\0");
    let guest = put(&mut content, b"bzImage vm=debian\0");
    let mut map = words(&[20]);
    map.extend(region(0, 0x9_fc00, 1));
    map.extend(words(&[24]));
    map.extend(region(0x10_0000, 0x7fe_0000, 1));
    map.extend(words(&[0xabcd]));
    map.extend(words(&[20]));
    map.extend(region(0xfffc_0000, 0x4_0000, 2));
    let map_address = put(&mut content, &map);
    let modules = put(
        &mut content,
        &words(&[0x20_0000, 0x20_1234, guest, 0, 0x30_0000, 0x30_0000, 0, 0]),
    );
    let flags = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
    for (offset, value) in [
        (0, flags),
        (16, line),
        (20, 2),
        (24, modules),
        (44, map.len() as u32),
        (48, map_address),
        (64, name),
    ] {
        content[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    Memory {
        base: u64::from(BASE),
        content,
    }
}

fn set(memory: &mut Memory, offset: usize, value: u32) {
    memory.content[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn qemus_file_names_are_cut_off_the_command_lines() {
    let info = BootInfo::read(MB1, BASE, &multiboot1("qemu")).unwrap();
    assert_eq!(info.protocol, Protocol::Multiboot1);
    assert_eq!(info.command_line, "loglevel=debug on-end=stay");
    assert_eq!(info.modules[0].command_line, "vm=debian");
}

#[test]
fn grubs_command_lines_have_no_file_names() {
    let info = BootInfo::read(MB1, BASE, &multiboot1("GRUB 2.06")).unwrap();
    assert_eq!(
        info.command_line,
        "build/tarpit  loglevel=debug on-end=stay"
    );
    assert_eq!(info.modules[0].command_line, "bzImage vm=debian");
}

#[test]
fn multiboot1_gives_map_and_modules() {
    let info = BootInfo::read(MB1, BASE, &multiboot1("GRUB")).unwrap();
    assert_eq!(info.modules.len(), 2);
    assert_eq!(info.modules[0].range, PhysRange::new(0x20_0000, 0x20_1234));
    assert!(info.modules[1].range.is_empty());
    assert_eq!(info.modules[1].command_line, "");
    let kinds: Vec<_> = info.memory_map.iter().map(|r| r.kind).collect();
    assert_eq!(
        kinds,
        [
            MemoryKind::Available,
            MemoryKind::Available,
            MemoryKind::Reserved
        ]
    );
    assert_eq!(
        info.memory_map[1].range,
        PhysRange::new(0x10_0000, 0x80e_0000)
    );
}

#[test]
fn multiboot1_without_a_map_falls_back_to_the_memory_bounds() {
    let mut memory = multiboot1("old");
    set(&mut memory, 0, 1);
    set(&mut memory, 4, 639);
    set(&mut memory, 8, 1024);
    let info = BootInfo::read(MB1, BASE, &memory).unwrap();
    assert_eq!(info.memory_map[1].range, PhysRange::new(1 << 20, 2 << 20));
    assert!(info.modules.is_empty() && info.command_line.is_empty());
    set(&mut memory, 0, 0);
    assert_eq!(
        BootInfo::read(MB1, BASE, &memory),
        Err(BootInfoError::NoMemoryMap)
    );
}

#[test]
fn multiboot1_lists_that_cannot_be_are_errors() {
    let broken = |offset, value| {
        let mut memory = multiboot1("GRUB");
        set(&mut memory, offset, value);
        BootInfo::read(MB1, BASE, &memory).unwrap_err()
    };
    assert!(matches!(broken(16, 4), BootInfoError::OutOfReach { .. }));
    assert!(matches!(broken(20, 5000), BootInfoError::TooMany { .. }));
    assert!(matches!(broken(20, 500), BootInfoError::OutOfReach { .. }));
    assert!(matches!(broken(44, 23), BootInfoError::BadLength { .. }));
    let mut backward = multiboot1("GRUB");
    let modules = u32_at(&backward.content, 24).unwrap() - BASE;
    set(&mut backward, modules as usize + 4, 0x1f_ffff);
    assert_eq!(
        BootInfo::read(MB1, BASE, &backward),
        Err(BootInfoError::BackwardModule { index: 0 })
    );
}

/// Multiboot 2 information of these tags, and an end tag.
pub(super) fn multiboot2(tags: &[(u32, Vec<u8>)]) -> Memory {
    let mut content = vec![0; 8];
    for (kind, tag) in tags.iter().chain(&[(0, vec![])]) {
        content.extend(kind.to_le_bytes());
        content.extend((tag.len() as u32 + 8).to_le_bytes());
        content.extend(tag);
        content.resize(content.len().next_multiple_of(8), 0xee);
    }
    let total = content.len() as u32;
    content[..4].copy_from_slice(&total.to_le_bytes());
    Memory {
        base: u64::from(BASE),
        content,
    }
}

pub(super) fn grub_tags() -> Vec<(u32, Vec<u8>)> {
    let mut map = words(&[24, 0]);
    for (base, length, kind) in [
        (0, 0x9_f000, 1),
        (1 << 20, 0x1_0000, 3),
        (0x11_0000, 0x10_0000, 4),
        (u64::MAX - 5, 100, 1),
    ] {
        map.extend(region(base, length, kind));
        map.extend(words(&[0]));
    }
    let mut module = words(&[0x40_0000, 0x50_0000]);
    module.extend(b"initrd for=debian\0");
    vec![
        (1, b"loglevel=warn\0".to_vec()),
        (2, b"GRUB 2.06\0".to_vec()),
        (3, module),
        (4, words(&[639, 0xffff])),
        (6, map),
        (15, (0..36).collect()),
        (14, vec![7; 20]),
    ]
}

#[test]
fn multiboot2_gives_everything() {
    let info = BootInfo::read(MB2, BASE, &multiboot2(&grub_tags())).unwrap();
    assert_eq!(info.protocol, Protocol::Multiboot2);
    assert_eq!(info.loader, "GRUB 2.06");
    assert_eq!(info.command_line, "loglevel=warn");
    assert_eq!(info.modules.len(), 1);
    assert_eq!(info.modules[0].range, PhysRange::new(0x40_0000, 0x50_0000));
    assert_eq!(info.modules[0].command_line, "initrd for=debian");
    assert_eq!(info.memory_map.len(), 4);
    assert_eq!(info.memory_map[1].kind, MemoryKind::AcpiTables);
    assert_eq!(info.memory_map[2].kind, MemoryKind::AcpiNvs);
    assert_eq!(info.memory_map[3].range.end.0, u64::MAX);
    assert_eq!(info.rsdp.unwrap()[35], 35);
}

#[test]
fn an_rsdp_of_acpi_1_is_taken_if_there_is_no_newer_one() {
    let mut tags = grub_tags();
    tags.retain(|tag| tag.0 != 15);
    let info = BootInfo::read(MB2, BASE, &multiboot2(&tags)).unwrap();
    let rsdp = info.rsdp.unwrap();
    assert_eq!((rsdp[19], rsdp[20]), (7, 0));
}

#[test]
fn multiboot2_tags_that_cannot_be_are_errors() {
    let with = |kind, content: Vec<u8>| {
        let mut tags = grub_tags();
        tags.insert(0, (kind, content));
        BootInfo::read(MB2, BASE, &multiboot2(&tags)).unwrap_err()
    };
    assert!(matches!(
        with(1, b"no end".to_vec()),
        BootInfoError::EndlessString { .. }
    ));
    assert!(matches!(
        with(3, words(&[1])),
        BootInfoError::BadLength { .. }
    ));
    assert!(matches!(
        with(6, words(&[0, 0, 0])),
        BootInfoError::BadLength { .. }
    ));
    assert!(matches!(
        with(6, [words(&[4, 0]), vec![0; 8]].concat()),
        BootInfoError::BadLength { .. }
    ));
    assert!(matches!(
        with(15, vec![0; 35]),
        BootInfoError::BadLength { .. }
    ));
    assert_eq!(
        BootInfo::read(MB2, BASE, &multiboot2(&[])),
        Err(BootInfoError::NoMemoryMap)
    );
}

#[test]
fn an_unknown_magic_is_told_what_to_use() {
    let error = BootInfo::read(0x1234, BASE, &multiboot2(&[])).unwrap_err();
    assert_eq!(error, BootInfoError::UnknownMagic(0x1234));
    assert!(std::format!("{error}").contains("multiboot2"));
}

proptest! {
    #[test]
    fn garbage_never_panics(
        content in prop::collection::vec(any::<u8>(), 0..400),
        small_words in prop::collection::vec(0u32..64, 0..100),
        one in any::<bool>(),
    ) {
        let magic = if one { MB1 } else { MB2 };
        for content in [content, words(&small_words)] {
            let memory = Memory { base: u64::from(BASE), content };
            let _ = BootInfo::read(magic, BASE, &memory);
        }
    }

    #[test]
    fn damage_to_good_information_never_panics(offset in 0usize..0x200, byte in any::<u8>()) {
        for (magic, mut memory) in [(MB1, multiboot1("qemu")), (MB2, multiboot2(&grub_tags()))] {
            if let Some(old) = memory.content.get_mut(offset) {
                *old = byte;
            }
            let _ = BootInfo::read(magic, BASE, &memory);
        }
    }
}
