//! Targets for fuzzing: what a boot loader may leave, by both protocols.

use core::cell::Cell;
use std::format;
use std::vec::Vec;

use super::tests::{BASE, MB1, MB2, Memory, grub_tags, multiboot1, multiboot2, words};
use super::*;

/// Memory that counts how often it is looked at.
struct Watched<'a> {
    memory: &'a Memory,
    reads: Cell<usize>,
}

impl PhysicalMemory for Watched<'_> {
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]> {
        self.reads.set(self.reads.get() + 1);
        self.memory.bytes(address, length)
    }
}

/// Reads the information, and checks that what comes of it is bounded and makes sense.
fn check(magic: u32, memory: &Memory) {
    let watched = Watched {
        memory,
        reads: Cell::new(0),
    };
    let read = BootInfo::read(magic, BASE, &watched);
    let strings = MAX_ENTRIES + 2;
    assert!(watched.reads.get() <= 8 + strings * (memory.content.len() + 1));
    match read {
        Ok(info) => {
            assert!(info.modules.len() <= MAX_ENTRIES);
            assert!(info.memory_map.len() <= MAX_ENTRIES + 1);
            let lines = info.modules.iter().map(|module| &module.command_line);
            for text in lines.chain([&info.loader, &info.command_line]) {
                // What is no UTF-8 becomes a character of three bytes.
                assert!(text.len() <= 3 * memory.content.len());
                assert!(!text.contains('\0'));
            }
            for module in &info.modules {
                assert!(module.range.start <= module.range.end);
                assert!(module.range.end.0 <= u64::from(u32::MAX));
            }
            for region in &info.memory_map {
                assert!(region.range.start <= region.range.end);
            }
            assert_eq!(BootInfo::read(magic, BASE, memory), Ok(info));
        }
        Err(error) => assert!(!format!("{error}").is_empty()),
    }
}

/// Puts bytes at offsets of what was right.
fn damage(memory: &mut Memory, patches: &[(u16, u8)]) {
    for &(offset, byte) in patches {
        let length = memory.content.len();
        if length > 0 {
            memory.content[usize::from(offset) % length] = byte;
        }
    }
}

#[test]
fn multiboot_1_information() {
    fuzzing::check!()
        .with_type::<(Vec<u8>, Vec<(u16, u8)>, Vec<(u8, u32)>, bool)>()
        .for_each(|(raw, patches, fields, by_qemu)| {
            check(
                MB1,
                &Memory {
                    base: BASE.into(),
                    content: raw.clone(),
                },
            );
            let mut memory = multiboot1(if *by_qemu { "qemu" } else { "GRUB 2.06" });
            for &(field, value) in fields {
                // Counts and lengths that are about right, and addresses in reach and not.
                let value = match value >> 30 {
                    0 => value & 0x1f,
                    1 => BASE + (value & 0x3ff),
                    _ => value,
                };
                let at = usize::from(field % 17) * 4;
                memory.content[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            damage(&mut memory, patches);
            check(MB1, &memory);
        });
}

#[test]
fn multiboot_2_information() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, Vec<u8>)>, Vec<(u16, u8)>, u8)>()
        .for_each(|(tags, patches, kept)| {
            let raw = tags.iter().flat_map(|(_, content)| content.iter().copied());
            check(
                MB2,
                &Memory {
                    base: BASE.into(),
                    content: raw.collect(),
                },
            );
            let right = grub_tags().into_iter().enumerate();
            let right = right.filter(|(index, _)| kept >> (index % 8) & 1 != 0);
            let more = tags.iter();
            let more = more.map(|(kind, content)| (u32::from(*kind) % 18, content.clone()));
            // An end tag in the middle hides what is behind it.
            let more = more.filter(|(kind, content)| *kind != 0 || content.len() % 8 == 0);
            let all: Vec<_> = right.map(|(_, tag)| tag).chain(more).collect();
            let mut memory = multiboot2(&all);
            damage(&mut memory, patches);
            check(MB2, &memory);
            memory.content.truncate(memory.content.len() / 2);
            check(MB2, &memory);
        });
}

#[test]
fn memory_maps_of_small_words() {
    fuzzing::check!()
        .with_type::<(Vec<u8>, bool)>()
        .for_each(|(small, one)| {
            let small: Vec<u32> = small.iter().map(|&word| word.into()).collect();
            let memory = Memory {
                base: BASE.into(),
                content: words(&small),
            };
            check(if *one { MB1 } else { MB2 }, &memory);
        });
}
