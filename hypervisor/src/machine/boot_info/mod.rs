//! What the boot loader says: command line, memory map, modules. One form for both
//! multiboot protocols.
//!
//! The loader's structures are read defensively, as a wrong length in them would otherwise
//! show only much later: every access is checked, and what cannot be right is an error.

#[cfg(test)]
mod fuzz;
mod multiboot1;
mod multiboot2;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::memory::PhysRange;

/// The most modules and the most memory regions that are accepted.
const MAX_ENTRIES: usize = 1024;
/// The longest string that is accepted, in bytes.
const MAX_STRING: u64 = 16 << 10;

/// The type of a region of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryKind {
    /// RAM, free to use.
    Available,
    /// RAM that holds ACPI tables.
    AcpiTables,
    /// RAM that ACPI firmware uses across sleep.
    AcpiNvs,
    /// Anything else.
    Reserved,
}

impl MemoryKind {
    /// Makes the kind from the number in both protocols' memory maps, which is that of ACPI's address
    /// range types.
    const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Available,
            3 => Self::AcpiTables,
            4 => Self::AcpiNvs,
            _ => Self::Reserved,
        }
    }
}

/// A region of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryRegion {
    /// The physical addresses of the region.
    pub range: PhysRange,
    /// The type of the region.
    pub kind: MemoryKind,
}

/// A file that the boot loader put in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// The physical addresses of its content. They stay reserved as long as tarpit runs.
    pub range: PhysRange,
    /// Its command line, without the file name.
    pub command_line: String,
}

impl Module {
    /// Returns the module's content.
    ///
    /// # Safety
    /// The range must be identity-mapped, must have been kept out of the frame allocator
    /// since boot, and nobody may write to it.
    #[must_use]
    pub(crate) unsafe fn bytes(&self) -> &'static [u8] {
        if self.range.is_empty() {
            return &[];
        }
        // SAFETY: by the caller.
        unsafe {
            core::slice::from_raw_parts(self.range.start.0 as *const u8, self.range.size() as usize)
        }
    }
}

/// The boot protocol that the loader spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Multiboot 0.6.96.
    Multiboot1,
    /// Multiboot 2.0.
    Multiboot2,
}

/// All that tarpit takes from the boot loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootInfo {
    /// The protocol spoken.
    pub protocol: Protocol,
    /// The loader's name; empty if it gave none.
    pub loader: String,
    /// tarpit's command line, without the file name.
    pub command_line: String,
    /// The memory map, as the firmware gave it: unsorted, perhaps overlapping.
    pub memory_map: Vec<MemoryRegion>,
    /// The modules, in the loader's order.
    pub modules: Vec<Module>,
    /// A copy of the ACPI RSDP (zero-extended to its full size if it is of ACPI 1.0), if
    /// the loader passed one.
    pub rsdp: Option<[u8; 36]>,
}

/// The reason why the loader's information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BootInfoError {
    /// A start by something that speaks neither protocol, with this magic number.
    UnknownMagic(u32),
    /// A structure that lies (partly) outside of the memory that a loader can use.
    OutOfReach {
        /// The name of the structure.
        what: &'static str,
        /// The address at which it should be.
        address: u64,
    },
    /// A structure that is shorter than it must be, or ends after what it is part of.
    BadLength {
        /// The name of the structure.
        what: &'static str,
    },
    /// A string without an end.
    EndlessString {
        /// The name of the string.
        what: &'static str,
    },
    /// More entries than tarpit is prepared for.
    TooMany {
        /// The name of the entries.
        what: &'static str,
    },
    /// A module that ends before it starts.
    BackwardModule {
        /// The module's position, from 0.
        index: usize,
    },
    /// No memory map.
    NoMemoryMap,
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownMagic(magic) => write!(
                f,
                "not started by a multiboot loader (EAX is {magic:#x}); boot tarpit with \
                 GRUB's multiboot or multiboot2 command, or QEMU's -kernel"
            ),
            Self::OutOfReach { what, address } => write!(
                f,
                "the boot loader's {what} at {address:#x} is out of reach; use another loader"
            ),
            Self::BadLength { what } => write!(
                f,
                "the boot loader's {what} has an impossible length; use another loader"
            ),
            Self::EndlessString { what } => write!(
                f,
                "the boot loader's {what} has no end within {MAX_STRING} bytes; shorten it"
            ),
            Self::TooMany { what } => write!(
                f,
                "the boot loader gave more than {MAX_ENTRIES} {what}; give fewer"
            ),
            Self::BackwardModule { index } => write!(
                f,
                "the boot loader's module {index} ends before it starts; use another loader"
            ),
            Self::NoMemoryMap => write!(
                f,
                "the boot loader gave no memory map; use one that does, such as GRUB"
            ),
        }
    }
}

impl core::error::Error for BootInfoError {}

/// Read access to physical memory.
pub(crate) trait PhysicalMemory {
    /// Returns the `length` bytes at `address`, or `None` if they are not all within reach.
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]>;
}

/// The first 4 GiB, identity-mapped; null excepted.
#[derive(Debug)]
pub(crate) struct IdentityMapped(());

impl IdentityMapped {
    /// Access to the first 4 GiB through the identity map.
    ///
    /// # Safety
    /// The first 4 GiB must be identity-mapped, and while the value or anything borrowed
    /// from it lives, nobody may write to what is read through it.
    #[must_use]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl PhysicalMemory for IdentityMapped {
    fn bytes(&self, address: u64, length: u64) -> Option<&[u8]> {
        let end = address.checked_add(length)?;
        if address == 0 || end > 1 << 32 {
            return None;
        }
        // SAFETY: mapped and unchanging by the promise given to `new`.
        Some(unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) })
    }
}

impl BootInfo {
    /// Reads what a multiboot loader left: `magic` in EAX and `address` in EBX.
    ///
    /// # Errors
    /// If the magic is unknown, or any structure cannot be right.
    pub(crate) fn read(
        magic: u32,
        address: u32,
        memory: &impl PhysicalMemory,
    ) -> Result<Self, BootInfoError> {
        match magic {
            multiboot1::LOADER_MAGIC => multiboot1::read(address, memory),
            multiboot2::LOADER_MAGIC => multiboot2::read(address, memory),
            _ => Err(BootInfoError::UnknownMagic(magic)),
        }
    }
}

/// Returns the little-endian `u32` at `offset`.
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

/// Returns the little-endian `u64` at `offset`.
fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

/// Returns a region of a memory map from the 20 bytes (base, length, kind) that both protocols
/// have.
fn memory_region(entry: &[u8]) -> Option<MemoryRegion> {
    let base = u64_at(entry, 0)?;
    let length = u64_at(entry, 8)?;
    Some(MemoryRegion {
        range: PhysRange::new(base, base.saturating_add(length)),
        kind: MemoryKind::from_code(u32_at(entry, 16)?),
    })
}

fn module(
    index: usize,
    start: u32,
    end: u32,
    command_line: String,
) -> Result<Module, BootInfoError> {
    if end < start {
        return Err(BootInfoError::BackwardModule { index });
    }
    Ok(Module {
        range: PhysRange::new(u64::from(start), u64::from(end)),
        command_line,
    })
}
