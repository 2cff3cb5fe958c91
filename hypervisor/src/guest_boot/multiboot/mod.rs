//! Multiboot 1 images (Multiboot Specification 0.6.96): test kernels and small operating
//! systems, ELF or anything that says by itself where it belongs.

mod image;
mod information;

use core::ops::Range;

use thiserror::Error;
use vmx::addr::{GuestPhysAddr, PAGE_SIZE};

use super::{LoadError, entry::EntryState, gdt, image::MemoryImage, layout, memory_map};
use crate::vm_config::VmConfig;
use image::{Image, Segment};
use information::{Information, Module};

pub(crate) use image::is_multiboot;

/// The value that a multiboot 1 boot loader leaves in EAX.
const BOOTLOADER_MAGIC: u64 = 0x2BAD_B002;

/// The reason why a multiboot image cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum MultibootError {
    /// A demand for features of the boot loader that there are not.
    #[error("its multiboot header demands features {0:#x} that tarpit does not know")]
    UnknownDemands(u16),
    /// An image that is not ELF and has no addresses in its header.
    #[error("it is no ELF file and its multiboot header has no load addresses")]
    NoAddresses,
    /// A header with addresses that contradict each other.
    #[error("the load addresses in its multiboot header contradict each other")]
    BadAddresses,
    /// A file with ELF structures that cannot be read.
    #[error("it is a damaged or truncated ELF file")]
    BadElf,
    /// An ELF file for another architecture.
    #[error("it is an ELF file for another machine (number {0}): use one for x86")]
    WrongMachine(u16),
    /// A file that ends before what is to be loaded of it.
    #[error("the file is truncated: {expected} bytes are to be loaded, there are {actual}")]
    Truncated {
        /// The least length that the file should have, in bytes.
        expected: u64,
        /// The length that it has, in bytes.
        actual: u64,
    },
    /// An entry point above 4 GiB.
    #[error("its entry point {0:#x} is not below 4 GiB")]
    EntryTooHigh(u64),
    /// A part that does not fit where it wants to be.
    #[error(
        "it wants to be loaded to {:#x}..{:#x}, which is no free RAM in a VM with {}M: give it more \
         with `mem=`, or link it elsewhere", .range.start, .range.end, .memory >> 20
    )]
    NoRamThere {
        /// The addresses that it wants.
        range: Range<u64>,
        /// The memory that the VM has, in bytes.
        memory: u64,
    },
    /// Modules that do not fit into the VM's memory, which has this size in bytes.
    #[error("its modules do not fit into the VM's {}M: give it more with `mem=`", .0 >> 20)]
    NoRoom(u64),
}

/// Puts the multiboot image of `vm`, its initrd (as the first module) and its modules into `memory`.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn prepare<'a>(
    memory: &mut MemoryImage<'a>,
    vm: &VmConfig<'a>,
) -> Result<EntryState, LoadError> {
    let image = Image::parse(vm.kernel)?;
    let mut end = memory_map::HIGH_MEMORY_START;
    for segment in &image.segments {
        check_usable(segment, vm.memory)?;
        memory.write(GuestPhysAddr(segment.address), segment.data)?;
        let bss = segment.end() - segment.data_end();
        memory.clear(GuestPhysAddr(segment.data_end()), bss)?;
        end = end.max(segment.end());
    }

    let mut room = Room {
        next: end.next_multiple_of(PAGE_SIZE),
        limit: memory_map::low_ram_end(vm.memory),
        memory: vm.memory,
    };
    let mut modules = alloc::vec::Vec::new();
    let files = (vm.initrd.iter().map(|data| ("initrd", *data))).chain(
        vm.modules
            .iter()
            .map(|file| (file.string.as_str(), file.data)),
    );
    for (string, data) in files {
        let address = room.take(data.len())?;
        memory.write(GuestPhysAddr(address.into()), data)?;
        modules.push(Module {
            range: address..address + data.len() as u32,
            string,
        });
    }

    let information = Information {
        name: &vm.name,
        arguments: &vm.command_line,
        modules: &modules,
        ram_size: vm.memory,
    };
    // Low memory if the image leaves it alone, else behind all.
    let size = information.size() + gdt::SIZE;
    let low = layout::MULTIBOOT..layout::MULTIBOOT + size as u64;
    let is_free = low.end <= layout::MULTIBOOT_END
        && !(image.segments.iter()).any(|s| s.address < low.end && low.start < s.end());
    let address = if is_free {
        low.start as u32
    } else {
        room.take(size)?
    };
    let information_address = address + gdt::SIZE as u32;
    memory.write(
        GuestPhysAddr(information_address.into()),
        information.bytes_at(information_address),
    )?;
    let gdtr = gdt::install(memory, address.into(), gdt::Code::Bits32)?;
    Ok(EntryState {
        rax: BOOTLOADER_MAGIC,
        rbx: information_address.into(),
        ..EntryState::protected_mode(image.entry.into(), gdtr)
    })
}

/// Returns whether all of `segment` is RAM that the guest may use as it likes.
fn check_usable(segment: &Segment, ram_size: u64) -> Result<(), MultibootError> {
    let is_usable = memory_map::entries(ram_size)
        .filter(|entry| entry.kind == memory_map::Kind::Usable)
        .any(|entry| entry.range.start <= segment.address && segment.end() <= entry.range.end);
    if is_usable {
        Ok(())
    } else {
        Err(MultibootError::NoRamThere {
            range: segment.address..segment.end(),
            memory: ram_size,
        })
    }
}

/// The RAM behind the image.
struct Room {
    next: u64,
    limit: u64,
    memory: u64,
}

impl Room {
    /// Takes `size` bytes, on a page boundary.
    fn take(&mut self, size: usize) -> Result<u32, MultibootError> {
        let address = self.next;
        let end = address
            .checked_add(size as u64)
            .filter(|end| *end <= self.limit)
            .ok_or(MultibootError::NoRoom(self.memory))?;
        self.next = end.next_multiple_of(PAGE_SIZE);
        u32::try_from(address).map_err(|_| MultibootError::NoRoom(self.memory))
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
