//! A guest that starts in firmware: the image in its ROM, the processor at the reset vector, and what
//! the firmware is told of the machine.
//!
//! That is what SeaBIOS wants to know of QEMU's machines, by files in the firmware-configuration
//! interface (QEMU's `docs/specs/fw_cfg.rst`, and SeaBIOS's `docs/Runtime_config.md`): the memory map,
//! the ACPI tables with commands that say how to put them in their place, the order of disks to boot from,
//! and the serial port that is the console.

mod loader;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use devices::chipset::FirmwareConfig;
use devices::chipset::fw_cfg::File;
use devices::platform_map::port;
use thiserror::Error;
use vmx::addr::{GuestPhysAddr, PAGE_SIZE};

use super::acpi::Tables;
use super::entry::EntryState;
use super::image::MemoryImage;
use super::memory_map::{DEVICE_HOLE_END, HIGH_MEMORY_START, Kind, low_ram_end, ram_ranges};
use crate::guest_memory::NotRam;
use crate::vm_config::VmConfig;

/// The least size of an image, in bytes: the segment that the processor starts in.
const MIN_SIZE: usize = 64 << 10;
/// The largest size of an image, in bytes: what is below 4 GiB without a device.
const MAX_SIZE: usize = 8 << 20;
/// The most of an image that is below 1 MiB, too: its end.
const SHADOWED: usize = 128 << 10;
/// The bytes at the reset vector, up to the end of the image.
const RESET_CODE: usize = 16;

/// The reason why an image cannot be firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum FirmwareError {
    /// A file of a size that no ROM has.
    #[error(
        "the file has {0} bytes, and a ROM is a multiple of {PAGE_SIZE} from {min} KiB to {max} MiB: give \
         an image as /usr/share/seabios/bios-256k.bin of Debian's package seabios, uncompressed",
        min = MIN_SIZE >> 10,
        max = MAX_SIZE >> 20
    )]
    Size(usize),
    /// A file with nothing at its end, where the processor starts.
    #[error(
        "there is no code at the reset vector, {RESET_CODE} bytes before the end of the file: give an \
         image as /usr/share/seabios/bios-256k.bin of Debian's package seabios"
    )]
    NoCode,
}

/// Checks that `image` can be firmware.
///
/// # Errors
/// If it has no code at the reset vector, or a size that no ROM has.
pub(crate) fn check(image: &[u8]) -> Result<(), FirmwareError> {
    let size = image.len();
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) || !size.is_multiple_of(PAGE_SIZE as usize) {
        return Err(FirmwareError::Size(size));
    }
    let code = image.last_chunk::<RESET_CODE>();
    match code {
        Some([first, rest @ ..]) if rest.iter().any(|byte| byte != first) => Ok(()),
        _ => Err(FirmwareError::NoCode),
    }
}

/// Returns the guest-physical address of a ROM with this image, which ends at 4 GiB.
#[must_use]
pub(crate) const fn rom_start(image: &[u8]) -> GuestPhysAddr {
    GuestPhysAddr(DEVICE_HOLE_END - image.len() as u64)
}

/// Puts a copy of the end of `image` below 1 MiB, where real mode reaches it, into `memory`. Returns the
/// state to start the first VCPU in.
///
/// # Errors
/// If the VM has no RAM there.
pub(super) fn prepare<'a>(
    memory: &mut MemoryImage<'a>,
    image: &'a [u8],
) -> Result<EntryState, NotRam> {
    let end = &image[image.len().saturating_sub(SHADOWED)..];
    memory.write(GuestPhysAddr(HIGH_MEMORY_START - end.len() as u64), end)?;
    Ok(EntryState::reset())
}

/// Returns what the firmware of `vm` is told.
#[must_use]
pub(crate) fn config(vm: &VmConfig<'_>) -> FirmwareConfig {
    let low_ram = low_ram_end(vm.memory);
    // A number whose length is that of the file.
    let number = |name, bytes: &[u8]| File {
        name,
        content: bytes.to_vec(),
    };
    let mut files = alloc::vec![
        File {
            name: "etc/e820",
            content: e820(vm.memory),
        },
        File {
            name: "bootorder",
            content: boot_order(vm).into_bytes(),
        },
        number("etc/sercon-port", &port::COM1.to_le_bytes()),
        // Where nothing can be booted, it says so and stays, instead of starting again and again.
        number("etc/boot-fail-wait", &u32::MAX.to_le_bytes()),
    ];
    let tables = Tables::new(0, vm.vcpus, vm.pci_functions());
    files.extend(loader::files(tables));
    FirmwareConfig {
        low_ram,
        high_ram: vm.memory - low_ram,
        files,
    }
}

/// Returns the memory map: the start, the length and the kind of each range of RAM. What is below
/// 1 MiB is RAM as a whole there; the firmware knows what a PC has in between.
fn e820(ram_size: u64) -> Vec<u8> {
    let low = 0..low_ram_end(ram_size);
    let high = ram_ranges(ram_size).filter(|range| range.start >= DEVICE_HOLE_END);
    let mut bytes = Vec::new();
    for range in core::iter::once(low).chain(high) {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend((range.end - range.start).to_le_bytes());
        bytes.extend((Kind::Usable as u32).to_le_bytes());
    }
    bytes
}

/// Returns the devices to boot from, the first first: the VM's disks in their order, by their paths in
/// Open Firmware's way, a line each. A zero ends it.
fn boot_order(vm: &VmConfig<'_>) -> String {
    let first = vm.first_disk();
    let lines = (first..).take(vm.disks.len());
    let mut text: String = lines
        .map(|device| format!("/pci@i0cf8/scsi@{device:x}/disk@0,0\n"))
        .collect();
    text.push('\0');
    text
}
