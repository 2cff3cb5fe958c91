//! Multiboot information, version 1 (Multiboot Specification 0.6.96, 3.3).
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

use super::{
    BootInfo, BootInfoError, MAX_ENTRIES, MAX_STRING, MemoryKind, MemoryRegion, PhysicalMemory,
    Protocol, memory_region, module, u32_at,
};
use crate::machine::memory::PhysRange;

/// EAX at entry.
pub(super) const LOADER_MAGIC: u32 = 0x2bad_b002;

/// The part of the information structure that tarpit reads: up to `boot_loader_name`.
const INFO_SIZE: u64 = 68;
const MODULE_SIZE: u64 = 16;

/// Bits of `flags`: which fields are valid.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

pub(super) fn read(address: u32, memory: &impl PhysicalMemory) -> Result<BootInfo, BootInfoError> {
    let info = bytes(memory, "information", u64::from(address), INFO_SIZE)?;
    let field = |offset| u32_at(info, offset).ok_or(bad_length("information"));
    let flags = field(0)?;
    let has = |flag| flags & flag != 0;

    let loader = if has(HAS_LOADER_NAME) {
        string(memory, "loader name", field(64)?)?
    } else {
        String::new()
    };
    // QEMU puts the file's name before the command line proper; GRUB does not.
    let file_name_first = loader.eq_ignore_ascii_case("qemu");
    let command_line = |what, address| {
        let line = string(memory, what, address)?;
        Ok::<_, BootInfoError>(if file_name_first {
            without_first_word(&line)
        } else {
            line
        })
    };

    let memory_map = if has(HAS_MEMORY_MAP) {
        regions(bytes(
            memory,
            "memory map",
            u64::from(field(48)?),
            u64::from(field(44)?),
        )?)?
    } else if has(HAS_MEMORY) {
        bounds(field(4)?, field(8)?)
    } else {
        return Err(BootInfoError::NoMemoryMap);
    };

    let mut modules = Vec::new();
    if has(HAS_MODULES) {
        let count = field(20)?;
        if count as usize > MAX_ENTRIES {
            return Err(BootInfoError::TooMany { what: "modules" });
        }
        let size = u64::from(count) * MODULE_SIZE;
        let list = if count == 0 {
            &[]
        } else {
            bytes(memory, "module list", u64::from(field(24)?), size)?
        };
        for (index, entry) in list.chunks_exact(MODULE_SIZE as usize).enumerate() {
            let word = |offset| u32_at(entry, offset).ok_or(bad_length("module list"));
            let line = match word(8)? {
                0 => String::new(),
                address => command_line("module command line", address)?,
            };
            modules.push(module(index, word(0)?, word(4)?, line)?);
        }
    }

    Ok(BootInfo {
        protocol: Protocol::Multiboot1,
        command_line: if has(HAS_COMMAND_LINE) {
            command_line("command line", field(16)?)?
        } else {
            String::new()
        },
        loader,
        memory_map,
        modules,
        rsdp: None,
    })
}

/// Returns a memory map of entries that each start with their own size, not counting that field.
fn regions(mut map: &[u8]) -> Result<Vec<MemoryRegion>, BootInfoError> {
    let bad = bad_length("memory map");
    let mut regions = Vec::new();
    while !map.is_empty() {
        let size = u32_at(map, 0).ok_or(bad)? as usize;
        let end = size.checked_add(4).ok_or(bad)?;
        let entry = map.get(4..end).ok_or(bad)?;
        regions.push(memory_region(entry).ok_or(bad)?);
        if regions.len() > MAX_ENTRIES {
            return Err(BootInfoError::TooMany {
                what: "memory regions",
            });
        }
        map = map.get(end..).ok_or(bad)?;
    }
    Ok(regions)
}

/// Returns the memory map that `mem_lower` and `mem_upper` (KiB from 0 and from 1 MiB) stand for.
fn bounds(lower: u32, upper: u32) -> Vec<MemoryRegion> {
    let kib = |count: u32| u64::from(count) * 1024;
    [
        PhysRange::new(0, kib(lower)),
        PhysRange::new(1 << 20, (1 << 20) + kib(upper)),
    ]
    .map(|range| MemoryRegion {
        range,
        kind: MemoryKind::Available,
    })
    .into()
}

fn bytes<'a>(
    memory: &'a impl PhysicalMemory,
    what: &'static str,
    address: u64,
    length: u64,
) -> Result<&'a [u8], BootInfoError> {
    memory
        .bytes(address, length)
        .ok_or(BootInfoError::OutOfReach { what, address })
}

/// Returns the zero-terminated string at `address`.
fn string(
    memory: &impl PhysicalMemory,
    what: &'static str,
    address: u32,
) -> Result<String, BootInfoError> {
    let mut text = Vec::new();
    for offset in 0..MAX_STRING {
        match bytes(memory, what, u64::from(address) + offset, 1)? {
            [0] => return Ok(String::from_utf8_lossy(&text).into_owned()),
            byte => text.extend_from_slice(byte),
        }
    }
    Err(BootInfoError::EndlessString { what })
}

fn without_first_word(line: &str) -> String {
    match line.trim_start().split_once(' ') {
        Some((_, rest)) => rest.trim_start().into(),
        None => String::new(),
    }
}

const fn bad_length(what: &'static str) -> BootInfoError {
    BootInfoError::BadLength { what }
}
