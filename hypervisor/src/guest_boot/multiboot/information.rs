//! The information that a multiboot 1 image is started with (specification, 3.3): one block
//! that holds the structure itself and all that it points to.

use alloc::{format, string::String, vec::Vec};
use core::ops::Range;

use crate::guest_boot::memory_map;

const BOOT_LOADER_NAME: &str = "tarpit";
/// The whole structure; what is not told is zero.
const STRUCTURE_SIZE: usize = 116;
const MODULE_SIZE: usize = 16;
const MEMORY_MAP_ENTRY_SIZE: usize = 24;

/// The `flags` that tell which fields are valid: memory sizes (0), command line (2), modules (3),
/// memory map (6), boot loader name (9).
const FLAGS: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;

/// Offsets of the fields.
mod field {
    pub(super) const FLAGS: usize = 0;
    pub(super) const MEM_LOWER: usize = 4;
    pub(super) const MEM_UPPER: usize = 8;
    pub(super) const COMMAND_LINE: usize = 16;
    pub(super) const MODULES_COUNT: usize = 20;
    pub(super) const MODULES_ADDRESS: usize = 24;
    pub(super) const MEMORY_MAP_LENGTH: usize = 44;
    pub(super) const MEMORY_MAP_ADDRESS: usize = 48;
    pub(super) const BOOT_LOADER_NAME: usize = 64;
}

/// A module that has been loaded.
pub(super) struct Module<'a> {
    /// The guest-physical addresses of its content.
    pub(super) range: Range<u32>,
    /// The string that comes with it.
    pub(super) string: &'a str,
}

/// The information that an image is given.
pub(super) struct Information<'a> {
    /// The image's name: the first word of the command line, as boot loaders have it.
    pub(super) name: &'a str,
    /// The rest of the command line.
    pub(super) arguments: &'a str,
    /// The modules.
    pub(super) modules: &'a [Module<'a>],
    /// The size of the guest's RAM, in bytes.
    pub(super) ram_size: u64,
}

impl Information<'_> {
    /// Returns how many bytes the block has.
    pub(super) fn size(&self) -> usize {
        self.bytes_at(0).len()
    }

    /// Returns the block, for the address that it will be at.
    pub(super) fn bytes_at(&self, address: u32) -> Vec<u8> {
        let mut block = Block {
            address,
            bytes: alloc::vec![0; STRUCTURE_SIZE],
        };
        block.set(field::FLAGS, FLAGS);
        // In KiB; upper memory as far as it is contiguous from 1 MiB on.
        block.set(field::MEM_LOWER, (memory_map::EBDA_START / 1024) as u32);
        let upper =
            memory_map::low_ram_end(self.ram_size).saturating_sub(memory_map::HIGH_MEMORY_START);
        block.set(field::MEM_UPPER, (upper / 1024) as u32);

        let modules = block.reserve(self.modules.len() * MODULE_SIZE);
        block.set(field::MODULES_COUNT, self.modules.len() as u32);
        block.set(field::MODULES_ADDRESS, block.address_of(modules));

        let entries: Vec<_> = memory_map::entries(self.ram_size).collect();
        let map = block.reserve(entries.len() * MEMORY_MAP_ENTRY_SIZE);
        let map_length = entries.len() * MEMORY_MAP_ENTRY_SIZE;
        block.set(field::MEMORY_MAP_LENGTH, map_length as u32);
        block.set(field::MEMORY_MAP_ADDRESS, block.address_of(map));
        for (index, entry) in entries.into_iter().enumerate() {
            let at = map + index * MEMORY_MAP_ENTRY_SIZE;
            // The size does not count itself.
            block.set(at, MEMORY_MAP_ENTRY_SIZE as u32 - 4);
            block.set_u64(at + 4, entry.range.start);
            block.set_u64(at + 12, entry.range.end - entry.range.start);
            block.set(at + 20, entry.kind as u32);
        }

        let mut command_line = String::from(self.name);
        if !self.arguments.is_empty() {
            command_line = format!("{} {}", self.name, self.arguments);
        }
        let command_line = block.add_string(&command_line);
        block.set(field::COMMAND_LINE, command_line);
        let name = block.add_string(BOOT_LOADER_NAME);
        block.set(field::BOOT_LOADER_NAME, name);
        for (index, module) in self.modules.iter().enumerate() {
            let string = block.add_string(module.string);
            let at = modules + index * MODULE_SIZE;
            block.set(at, module.range.start);
            block.set(at + 4, module.range.end);
            block.set(at + 8, string);
        }
        block.bytes
    }
}

/// Bytes that will be at `address`.
struct Block {
    address: u32,
    bytes: Vec<u8>,
}

impl Block {
    const fn address_of(&self, offset: usize) -> u32 {
        self.address.wrapping_add(offset as u32)
    }

    /// Adds `size` zero bytes on a boundary of four; returns their offset.
    fn reserve(&mut self, size: usize) -> usize {
        let offset = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(offset + size, 0);
        offset
    }

    /// Adds `text` with a NUL; returns its address.
    fn add_string(&mut self, text: &str) -> u32 {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.address_of(offset)
    }

    /// Writes `value` at `offset`.
    ///
    /// # Panics
    /// If `offset` has not been reserved.
    fn set(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn set_u64(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
}
