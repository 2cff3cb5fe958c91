//! Multiboot information, version 2 (Multiboot2 Specification 2.0, 3.6): a sequence of tags.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

use super::{
    BootInfo, BootInfoError, MAX_ENTRIES, MemoryRegion, PhysicalMemory, Protocol, memory_region,
    module, u32_at,
};

/// EAX at entry.
pub(super) const LOADER_MAGIC: u32 = 0x36d7_6289;

/// The information starts with its total size and a reserved word.
const INFO_HEADER_SIZE: usize = 8;
/// A tag starts with its type and its size, which counts these two words.
const TAG_HEADER_SIZE: usize = 8;

const TAG_END: u32 = 0;
const TAG_COMMAND_LINE: u32 = 1;
const TAG_LOADER_NAME: u32 = 2;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_RSDP_1: u32 = 14;
const TAG_RSDP_2: u32 = 15;

pub(super) fn read(address: u32, memory: &impl PhysicalMemory) -> Result<BootInfo, BootInfoError> {
    let address = u64::from(address);
    let reach = |length| {
        memory
            .bytes(address, length)
            .ok_or(BootInfoError::OutOfReach {
                what: "information",
                address,
            })
    };
    let bad = bad_length("information");
    let total = u32_at(reach(INFO_HEADER_SIZE as u64)?, 0).ok_or(bad)?;
    let mut tags = reach(u64::from(total))?
        .get(INFO_HEADER_SIZE..)
        .ok_or(bad)?;

    let mut memory_map = None;
    let mut info = BootInfo {
        protocol: Protocol::Multiboot2,
        loader: String::new(),
        command_line: String::new(),
        memory_map: Vec::new(),
        modules: Vec::new(),
        rsdp: None,
    };
    loop {
        let kind = u32_at(tags, 0).ok_or(bad)?;
        let size = u32_at(tags, 4).ok_or(bad)? as usize;
        let content = tags.get(TAG_HEADER_SIZE..size).ok_or(bad_length("tag"))?;
        match kind {
            TAG_END => break,
            TAG_COMMAND_LINE => info.command_line = string("command line", content)?,
            TAG_LOADER_NAME => info.loader = string("loader name", content)?,
            TAG_MODULE => {
                let index = info.modules.len();
                if index == MAX_ENTRIES {
                    return Err(BootInfoError::TooMany { what: "modules" });
                }
                let bad = bad_length("module tag");
                let start = u32_at(content, 0).ok_or(bad)?;
                let end = u32_at(content, 4).ok_or(bad)?;
                let line = string("module command line", content.get(8..).ok_or(bad)?)?;
                info.modules.push(module(index, start, end, line)?);
            }
            TAG_MEMORY_MAP => memory_map = Some(regions(content)?),
            // The tags hold copies of the RSDP. That of ACPI 2 and later is preferred.
            TAG_RSDP_1 if info.rsdp.is_none() => {
                let mut rsdp = [0; 36];
                let copy = content.first_chunk::<20>().ok_or(bad_length("RSDP"))?;
                rsdp[..20].copy_from_slice(copy);
                info.rsdp = Some(rsdp);
            }
            TAG_RSDP_2 => info.rsdp = Some(*content.first_chunk().ok_or(bad_length("RSDP"))?),
            _ => {}
        }
        // Tags start at multiples of 8.
        tags = tags.get(size.next_multiple_of(8)..).ok_or(bad)?;
    }
    info.memory_map = memory_map.ok_or(BootInfoError::NoMemoryMap)?;
    Ok(info)
}

/// Returns a memory map: the size of an entry, a version, and the entries.
fn regions(content: &[u8]) -> Result<Vec<MemoryRegion>, BootInfoError> {
    let bad = bad_length("memory map");
    let entry_size = u32_at(content, 0).ok_or(bad)? as usize;
    let entries = content.get(8..).ok_or(bad)?;
    if entry_size == 0 {
        return Err(bad);
    }
    if entries.len() / entry_size > MAX_ENTRIES {
        return Err(BootInfoError::TooMany {
            what: "memory regions",
        });
    }
    entries
        .chunks_exact(entry_size)
        .map(|entry| memory_region(entry).ok_or(bad))
        .collect()
}

fn string(what: &'static str, content: &[u8]) -> Result<String, BootInfoError> {
    let end = content
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(BootInfoError::EndlessString { what })?;
    Ok(String::from_utf8_lossy(&content[..end]).into_owned())
}

const fn bad_length(what: &'static str) -> BootInfoError {
    BootInfoError::BadLength { what }
}
