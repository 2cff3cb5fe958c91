//! Linux by its 64-bit boot protocol (the kernel's Documentation/arch/x86/boot.rst and
//! zero-page.rst).

use alloc::vec;
use core::mem::{offset_of, size_of};

use arch::PageTableFlags;
use linux_raw_sys::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params,
};
use thiserror::Error;
use vmx::addr::{GuestPhysAddr, PAGE_SIZE};

use super::{
    LoadError,
    entry::EntryState,
    gdt,
    image::MemoryImage,
    initrd, layout,
    memory_map::{self, low_ram_end},
};
use crate::{guest_memory::NotRam, vm_config::VmConfig};

/// The first version of the boot protocol that has a 64-bit entry point.
const FIRST_64_BIT_VERSION: u16 = 0x020C;
/// The 64-bit entry point, from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a boot loader without an assigned number.
const UNKNOWN_LOADER: u8 = 0xFF;
const SECTOR: usize = 512;
/// The memory that a kernel needs beyond its image to get to user space: page structures, percpu
/// areas, drivers. An estimate on the low side: with less it would surely fail, in ways that say
/// less.
const WORKING_ROOM: u64 = 16 << 20;

/// The reason why a bzImage cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LinuxError {
    /// A boot protocol, of this version, without a 64-bit entry.
    #[error(
        "its boot protocol {}.{:02} has no 64-bit entry point: use a 64-bit Linux 3.8 or later",
        .0 >> 8, .0 & 0xFF
    )]
    TooOld(u16),
    /// A 32-bit kernel.
    #[error("it is a 32-bit Linux: use a 64-bit one")]
    Not64Bit,
    /// A zImage.
    #[error("it is a zImage: use a bzImage")]
    LoadedLow,
    /// A file that ends too early.
    #[error("the file is truncated: its header speaks of {expected} bytes, there are {actual}")]
    Truncated {
        /// The length that the file should have, in bytes.
        expected: u64,
        /// The length that it has, in bytes.
        actual: u64,
    },
    /// A header with numbers that make no sense.
    #[error("its header is damaged: load address {address:#x}, memory needed {size:#x}")]
    BadHeader {
        /// The address at which the kernel wants to be.
        address: u64,
        /// The size of the memory that it wants there, in bytes.
        size: u64,
    },
    /// A command line that is too long.
    #[error("the command line has {length} bytes, this kernel takes {limit}: shorten it")]
    CommandLineTooLong {
        /// The length of the command line, in bytes.
        length: usize,
        /// The longest that the kernel takes, in bytes.
        limit: usize,
    },
    /// A VM with too little memory.
    #[error(
        "the VM has too little memory, {}M: kernel and initrd need {}M (say mem={}M)",
        .actual >> 20, .needed >> 20, .needed >> 20
    )]
    TooLittleMemory {
        /// The memory that the VM has, in bytes.
        actual: u64,
        /// The least that could do, in bytes, a multiple of 1 MiB.
        needed: u64,
    },
    /// An initrd that cannot be placed at all.
    #[error("the initrd of {size} bytes does not fit below {limit:#x}, where this kernel wants it")]
    InitrdTooLarge {
        /// Its size in bytes.
        size: u64,
        /// One past the highest address it may occupy.
        limit: u64,
    },
}

/// Returns whether `file` is a Linux bzImage (of whatever version).
#[must_use]
pub(crate) fn is_bzimage(file: &[u8]) -> bool {
    field(file, offset_of!(boot_params, hdr.boot_flag)) == Some([0x55, 0xAA])
        && field(file, offset_of!(boot_params, hdr.header)) == Some(*b"HdrS")
}

/// The setup header, in the parts that concern a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SetupHeader {
    /// The offset of the protected-mode code in the file.
    code_offset: usize,
    /// The address at which the kernel runs, and so is loaded: it would move there anyway.
    load_address: u64,
    /// The size of the contiguous memory that it needs there, in bytes.
    init_size: u64,
    /// One past the highest address that the initrd may occupy.
    initrd_limit: u64,
    /// The most bytes that the command line may have, without the final NUL.
    command_line_limit: usize,
    /// One past the last byte of the header in the file.
    end: usize,
}

impl SetupHeader {
    fn parse(file: &[u8]) -> Result<Self, LinuxError> {
        // Versions before 2.12 have shorter headers: look at the version first.
        let truncated = LinuxError::Truncated {
            expected: size_of::<boot_params>() as u64,
            actual: file.len() as u64,
        };
        macro_rules! header {
            ($field:ident) => {
                field(file, offset_of!(boot_params, hdr.$field)).ok_or_else(|| truncated.clone())?
            };
        }
        let version = u16::from_le_bytes(header!(version));
        if version < FIRST_64_BIT_VERSION {
            return Err(LinuxError::TooOld(version));
        }
        let [loadflags] = header!(loadflags);
        if u32::from(loadflags) & LOADED_HIGH == 0 {
            return Err(LinuxError::LoadedLow);
        }
        if u32::from(u16::from_le_bytes(header!(xloadflags))) & XLF_KERNEL_64 == 0 {
            return Err(LinuxError::Not64Bit);
        }

        let [setup_sectors] = header!(setup_sects);
        // Zero stands for four, and the boot sector comes on top.
        let setup_sectors = if setup_sectors == 0 { 4 } else { setup_sectors };
        let code_offset = (usize::from(setup_sectors) + 1) * SECTOR;
        // The size is in units of 16 bytes; the last one may be incomplete.
        let code_size = u64::from(u32::from_le_bytes(header!(syssize))) * 16;
        let expected = code_offset as u64 + code_size;
        if (file.len() as u64) <= expected.saturating_sub(16) || file.len() <= code_offset {
            return Err(LinuxError::Truncated {
                expected,
                actual: file.len() as u64,
            });
        }

        let load_address = u64::from_le_bytes(header!(pref_address));
        let init_size = u64::from(u32::from_le_bytes(header!(init_size)));
        let loaded_size = (file.len() - code_offset) as u64;
        let makes_sense = (memory_map::HIGH_MEMORY_START..memory_map::DEVICE_HOLE_START)
            .contains(&load_address)
            && init_size >= loaded_size;
        if !makes_sense {
            return Err(LinuxError::BadHeader {
                address: load_address,
                size: init_size,
            });
        }
        // The second byte of the jump over the header is the header's length from there.
        let [_, jump_distance] = header!(jump);
        let end = offset_of!(boot_params, hdr.header) + usize::from(jump_distance);
        Ok(Self {
            code_offset,
            load_address,
            init_size,
            initrd_limit: u64::from(u32::from_le_bytes(header!(initrd_addr_max))) + 1,
            command_line_limit: u32::from_le_bytes(header!(cmdline_size)) as usize,
            end: end.min(offset_of!(boot_params, _pad7) + 36).min(file.len()),
        })
    }

    fn memory_end(&self) -> u64 {
        self.load_address + self.init_size
    }
}

/// Puts the bzImage of `vm` into `memory`, telling it of the ACPI tables through `rsdp`.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn prepare<'a>(
    memory: &mut MemoryImage<'a>,
    vm: &VmConfig<'a>,
    rsdp: u64,
) -> Result<EntryState, LoadError> {
    if !vm.modules.is_empty() {
        return Err(LoadError::ModulesForLinux);
    }
    let header = SetupHeader::parse(vm.kernel)?;
    let command_line = vm.command_line.as_bytes();
    let command_line_room = (layout::COMMAND_LINE_END - layout::COMMAND_LINE - 1) as usize;
    let limit = header.command_line_limit.min(command_line_room);
    if command_line.len() > limit {
        return Err(LinuxError::CommandLineTooLong {
            length: command_line.len(),
            limit,
        }
        .into());
    }
    let initrd_address = place_initrd(&header, vm)?;

    let mut zero_page = ZeroPage::new(vm.kernel, &header);
    zero_page.set(
        offset_of!(boot_params, hdr.type_of_loader),
        &[UNKNOWN_LOADER],
    );
    zero_page.set_u32(
        offset_of!(boot_params, hdr.cmd_line_ptr),
        layout::COMMAND_LINE as u32,
    );
    zero_page.set(offset_of!(boot_params, acpi_rsdp_addr), &rsdp.to_le_bytes());
    zero_page.set_memory_map(vm.memory);
    if let (Some(address), Some(initrd)) = (initrd_address, vm.initrd) {
        memory.write(GuestPhysAddr(u64::from(address)), initrd)?;
        zero_page.set_u32(offset_of!(boot_params, hdr.ramdisk_image), address);
        zero_page.set_u32(
            offset_of!(boot_params, hdr.ramdisk_size),
            initrd.len() as u32,
        );
    }

    let code = vm.kernel.get(header.code_offset..).unwrap_or_default();
    memory.write(GuestPhysAddr(header.load_address), code)?;
    memory.write(GuestPhysAddr(layout::COMMAND_LINE), command_line.to_vec())?;
    memory.write(
        GuestPhysAddr(layout::COMMAND_LINE + command_line.len() as u64),
        &[0][..],
    )?;
    memory.write(GuestPhysAddr(layout::ZERO_PAGE), zero_page.0.to_vec())?;
    let cr3 = map_first_4_gib(memory)?;
    let gdtr = gdt::install(memory, layout::GDT, gdt::Code::Bits64)?;
    Ok(EntryState {
        rsi: layout::ZERO_PAGE,
        ..EntryState::long_mode(header.load_address + ENTRY_64, cr3, gdtr)
    })
}

/// Finds the highest place for the initrd, and checks that the VM has memory for all.
fn place_initrd(header: &SetupHeader, vm: &VmConfig) -> Result<Option<u32>, LoadError> {
    let (size, unpacked_size) = match vm.initrd {
        Some(initrd) => (initrd.len() as u64, initrd::unpacked_size(initrd)?),
        None => (0, None),
    };
    let mib = 1 << 20;
    let needed = [
        size.next_multiple_of(PAGE_SIZE),
        unpacked_size.unwrap_or(0),
        WORKING_ROOM,
    ]
    .into_iter()
    .fold(header.memory_end(), u64::saturating_add)
    .checked_next_multiple_of(mib)
    .unwrap_or(u64::MAX);
    if vm.memory < needed {
        return Err(LinuxError::TooLittleMemory {
            actual: vm.memory,
            needed,
        }
        .into());
    }
    if size == 0 {
        return Ok(None);
    }
    let limit = header.initrd_limit.min(low_ram_end(vm.memory));
    limit
        .checked_sub(size)
        .map(|address| GuestPhysAddr(address).page().0)
        .filter(|&address| address >= header.memory_end())
        .and_then(|address| u32::try_from(address).ok())
        .map(Some)
        .ok_or_else(|| LinuxError::InitrdTooLarge { size, limit }.into())
}

/// `struct boot_params` as bytes.
struct ZeroPage([u8; size_of::<boot_params>()]);

impl ZeroPage {
    /// Makes a page of zeros, but for the setup header of `kernel`.
    fn new(kernel: &[u8], header: &SetupHeader) -> Self {
        let mut page = Self([0; _]);
        let start = offset_of!(boot_params, hdr);
        if let Some(setup_header) = kernel.get(start..header.end) {
            page.set(start, setup_header);
        }
        page
    }

    /// Writes a field.
    ///
    /// # Panics
    /// If the field is not within the page: for offsets of fields of `boot_params` only.
    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn set_u32(&mut self, offset: usize, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    fn set_memory_map(&mut self, ram_size: u64) {
        let table = offset_of!(boot_params, e820_table);
        let mut count = 0;
        for entry in memory_map::entries(ram_size).take(E820_MAX_ENTRIES_ZEROPAGE as usize) {
            let at = table + count * size_of::<boot_e820_entry>();
            let length = entry.range.end - entry.range.start;
            self.set(
                at + offset_of!(boot_e820_entry, addr),
                &entry.range.start.to_le_bytes(),
            );
            self.set(
                at + offset_of!(boot_e820_entry, size),
                &length.to_le_bytes(),
            );
            self.set_u32(at + offset_of!(boot_e820_entry, type_), entry.kind as u32);
            count += 1;
        }
        self.set(offset_of!(boot_params, e820_entries), &[count as u8]);
    }
}

/// Returns the `N` bytes at `offset` of `file`, if it is that long.
fn field<const N: usize>(file: &[u8], offset: usize) -> Option<[u8; N]> {
    file.get(offset..)?.first_chunk().copied()
}

/// Writes page tables that map the first 4 GiB one to one, with 2 MiB pages (every CPU
/// with long mode has these); returns the address of the PML4.
fn map_first_4_gib(memory: &mut MemoryImage<'_>) -> Result<u64, NotRam> {
    const PRESENT_WRITABLE: u64 = PageTableFlags::PRESENT
        .union(PageTableFlags::WRITABLE)
        .bits();
    const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();
    const PML4: u64 = layout::PAGE_TABLES;
    const PDPT: u64 = PML4 + PAGE_SIZE;
    const DIRECTORIES: u64 = PDPT + PAGE_SIZE;
    let mut write_table = |address, entries: &dyn Fn(u64) -> u64| {
        let mut page = vec![0; PAGE_SIZE as usize];
        for (index, bytes) in (0..).zip(page.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&entries(index).to_le_bytes());
        }
        memory.write(GuestPhysAddr(address), page)
    };

    write_table(PML4, &|index| match index {
        0 => PDPT | PRESENT_WRITABLE,
        _ => 0,
    })?;
    write_table(PDPT, &|index| match index {
        0..4 => (DIRECTORIES + index * PAGE_SIZE) | PRESENT_WRITABLE,
        _ => 0,
    })?;
    for gib in 0..4 {
        write_table(DIRECTORIES + gib * PAGE_SIZE, &|index| {
            (gib << 30) | (index << 21) | LARGE | PRESENT_WRITABLE
        })?;
    }
    Ok(PML4)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(super) mod tests;
