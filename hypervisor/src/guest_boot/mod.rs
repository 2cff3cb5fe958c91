//! Preparing a guest: from the files that the operator gave for a VM to a [memory image](image) and
//! the state of its first VCPU.
//!
//! [`prepare`] tells a Linux bzImage from a multiboot 1 image by itself; a VM may start in
//! [`firmware`] instead. Everything here is
//! pure, and tested on the host.
#![cfg_attr(not(test), forbid(unsafe_code))]

pub(crate) mod acpi;
mod bios_data;
pub(crate) mod entry;
pub(crate) mod firmware;
pub(crate) mod gdt;
pub(crate) mod image;
pub(crate) mod initrd;
mod layout;
pub(crate) mod linux;
pub(crate) mod memory_map;
pub(crate) mod mp_tables;
pub(crate) mod multiboot;
#[cfg(test)]
pub(crate) mod test_ram;

use thiserror::Error;

use crate::{guest_memory::NotRam, vm_config::VmConfig};

pub(crate) use entry::EntryState;
pub(crate) use image::{GuestImage, MemoryImage};

/// The reason why a VM cannot be started with the files it was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LoadError {
    /// A kernel file in neither of the formats that we load.
    #[error("the kernel is {0}: give a Linux bzImage (vmlinuz) or a multiboot 1 image")]
    NotAKernel(FileKind),
    /// A Linux kernel that cannot be started.
    #[error("the kernel cannot be started: {0}")]
    Linux(#[from] linux::LinuxError),
    /// A multiboot image that cannot be started.
    #[error("the kernel cannot be started: {0}")]
    Multiboot(#[from] multiboot::MultibootError),
    /// An initial RAM disk that is damaged.
    #[error("the initrd is unusable: {0}")]
    Initrd(#[from] initrd::InitrdError),
    /// Firmware that cannot be started.
    #[error("the firmware cannot be started: {0}")]
    Firmware(#[from] firmware::FirmwareError),
    /// Modules for a kernel that cannot take them.
    #[error("a Linux kernel takes no `module` files: use `initrd`")]
    ModulesForLinux,
    /// A VM whose RAM does not hold the loader's own structures.
    #[error("the VM has too little memory for the tables it boots with: {0}")]
    NotRam(#[from] NotRam),
}

/// The likely kind of a file that is not a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum FileKind {
    /// A file without bytes.
    #[error("an empty file")]
    Empty,
    /// An ELF file without a multiboot header.
    #[error("an ELF file without a multiboot 1 header (a vmlinux?)")]
    PlainElf,
    /// A file that is compressed as a whole.
    #[error("a compressed file (decompress it)")]
    Compressed,
    /// A cpio archive.
    #[error("a cpio archive (an initrd?)")]
    Cpio,
    /// Anything else.
    #[error("of no known format")]
    Unknown,
}

impl FileKind {
    fn of(file: &[u8]) -> Self {
        match file {
            [] => Self::Empty,
            [0x7F, b'E', b'L', b'F', ..] => Self::PlainElf,
            [0x1F, 0x8B, ..]
            | [0xFD, b'7', b'z', b'X', b'Z', ..]
            | [0x28, 0xB5, 0x2F, 0xFD, ..] => Self::Compressed,
            [b'0', b'7', b'0', b'7', b'0', ..] => Self::Cpio,
            _ => Self::Unknown,
        }
    }
}

/// Makes the guest of `vm`, which has `vm.memory` bytes of RAM laid out as
/// [`memory_map::ram_ranges`] says: kernel, initrd or modules, boot parameters, ACPI and MP tables;
/// or else firmware, which makes such things itself.
///
/// # Errors
/// If a file is not what it should be or the RAM does not suffice.
pub(crate) fn prepare<'a>(vm: &VmConfig<'a>) -> Result<GuestImage<'a>, LoadError> {
    let mut memory = MemoryImage::new(vm.memory);
    let entry = if let Some(image) = vm.firmware {
        firmware::check(image)?;
        firmware::prepare(&mut memory, image)?
    } else {
        // A bzImage may hold anything after its header, so look for that first.
        let is_linux = linux::is_bzimage(vm.kernel);
        if !is_linux && !multiboot::is_multiboot(vm.kernel) {
            return Err(LoadError::NotAKernel(FileKind::of(vm.kernel)));
        }
        bios_data::install(&mut memory)?;
        mp_tables::install(&mut memory, vm.vcpus, vm.pci_functions())?;
        let rsdp = acpi::install(&mut memory, vm.vcpus, vm.pci_functions())?;
        if is_linux {
            linux::prepare(&mut memory, vm, rsdp)?
        } else {
            multiboot::prepare(&mut memory, vm)?
        }
    };
    Ok(GuestImage { memory, entry })
}
