//! The firmware-configuration interface, read by selector and one byte at a time.
//!
//! Firmware and test kernels that know QEMU's machines ask it for what a PC's firmware would find
//! out by itself: how many processors there are, and how much RAM. Firmware also gets whole files
//! there, whose directory is an item of its own.
//!
//! Source: QEMU's `docs/specs/fw_cfg.rst`, the traditional (port) interface. There is no DMA
//! interface, and the ID item says so; nothing can be written; items that are not here are
//! empty, and an item reads as zeros behind its end.

use alloc::vec;
use alloc::vec::Vec;

use super::bus::{Access, Context, Device};

/// The region of the selector; the other is the data port.
const SELECTOR: usize = 0;

/// The signature that tells a guest that the interface is there.
const SIGNATURE: &[u8] = b"QEMU";
/// The ID item: bit 0, the traditional interface.
const TRADITIONAL_INTERFACE: u32 = 1;

/// Keys of items.
mod key {
    pub(super) const SIGNATURE: u16 = 0x00;
    pub(super) const ID: u16 = 0x01;
    pub(super) const RAM_SIZE: u16 = 0x03;
    pub(super) const PROCESSORS: u16 = 0x05;
    pub(super) const MAX_PROCESSORS: u16 = 0x0f;
    pub(super) const DIRECTORY: u16 = 0x19;
    pub(super) const FIRST_FILE: u16 = 0x20;
    /// Bit 14 asks for a write channel, which there is none of.
    pub(super) const WRITE_CHANNEL: u16 = 1 << 14;
}

/// The length of a file's name in the directory, with the zero that ends it.
const NAME_LENGTH: usize = 56;

/// A file for the firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The name by which firmware finds it: less than 56 bytes.
    pub name: &'static str,
    /// The contents of the file: less than 4 GiB.
    pub content: Vec<u8>,
}

/// The firmware-configuration device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfg {
    /// The items by their keys.
    items: Vec<(u16, Vec<u8>)>,
    /// The index of the selected item; none if an item is selected that is not there.
    selected: Option<usize>,
    /// The number of its bytes that have been read.
    offset: usize,
}

impl FwCfg {
    /// Makes the device of a machine with so many processors and so many bytes of RAM, which offers
    /// `files`. The signature is selected.
    #[must_use]
    pub fn new(processors: u16, ram_size: u64, files: &[File]) -> Self {
        let processors = processors.to_le_bytes().to_vec();
        let mut items = vec![
            (key::SIGNATURE, SIGNATURE.to_vec()),
            (key::ID, TRADITIONAL_INTERFACE.to_le_bytes().to_vec()),
            (key::RAM_SIZE, ram_size.to_le_bytes().to_vec()),
            (key::PROCESSORS, processors.clone()),
            (key::MAX_PROCESSORS, processors),
            (key::DIRECTORY, directory(files)),
        ];
        let contents = files.iter().map(|file| file.content.clone());
        items.extend((key::FIRST_FILE..).zip(contents));
        let mut device = Self {
            items,
            selected: None,
            offset: 0,
        };
        device.select(key::SIGNATURE);
        device
    }

    /// Takes a write to the selector port: the next byte to be read is the first of item `key`.
    pub fn select(&mut self, key: u16) {
        let key = key & !key::WRITE_CHANNEL;
        self.selected = self.items.iter().position(|(its, _)| *its == key);
        self.offset = 0;
    }

    /// Answers a read of the data port: the next byte of the selected item.
    pub fn read(&mut self) -> u8 {
        let item = self.selected.and_then(|index| self.items.get(index));
        let Some(&byte) = item.and_then(|(_, bytes)| bytes.get(self.offset)) else {
            return 0;
        };
        self.offset += 1;
        byte
    }
}

/// Returns the directory of `files`: their number, and for each its size, its key and its name, the
/// numbers with the highest byte first.
fn directory(files: &[File]) -> Vec<u8> {
    let mut bytes = (files.len() as u32).to_be_bytes().to_vec();
    for (key, file) in (key::FIRST_FILE..).zip(files) {
        debug_assert!(file.name.len() < NAME_LENGTH, "{} is too long", file.name);
        bytes.extend((file.content.len() as u32).to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        let mut name = [0; NAME_LENGTH];
        for (to, from) in name.iter_mut().take(NAME_LENGTH - 1).zip(file.name.bytes()) {
            *to = from;
        }
        bytes.extend(name);
    }
    bytes
}

impl Device for FwCfg {
    fn read(&mut self, access: Access, _: &mut Context<'_>) -> u64 {
        match access.region {
            // The selector can only be written.
            SELECTOR => u64::MAX,
            _ => Self::read(self).into(),
        }
    }

    fn write(&mut self, access: Access, value: u64, _: &mut Context<'_>) {
        if access.region == SELECTOR {
            self.select(value as u16);
        }
    }

    fn reset(&mut self, _: &mut Context<'_>) {
        self.select(key::SIGNATURE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item<const N: usize>(device: &mut FwCfg, key: u16) -> [u8; N] {
        device.select(key);
        core::array::from_fn(|_| device.read())
    }

    #[test]
    fn a_guest_learns_how_large_its_machine_is() {
        let mut device = FwCfg::new(3, 0x1_2340_0000, &[]);
        assert_eq!(&item(&mut device, 0), b"QEMU");
        assert_eq!(u16::from_le_bytes(item(&mut device, 5)), 3);
        assert_eq!(u16::from_le_bytes(item(&mut device, 15)), 3);
        assert_eq!(u64::from_le_bytes(item(&mut device, 3)), 0x1_2340_0000);
    }

    #[test]
    fn nothing_is_promised_that_is_not_there() {
        let mut device = FwCfg::new(1, 1 << 28, &[]);
        assert_eq!(
            u32::from_le_bytes(item(&mut device, 1)),
            1,
            "the ports alone, no DMA"
        );
        for absent in [2, 0x19, 0x20, 0x8000, 0xffff] {
            assert_eq!(item(&mut device, absent), [0; 10], "{absent:#x}");
        }
        assert_eq!(item(&mut device, 5), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn firmware_finds_files_by_their_names_in_the_directory() {
        let files = [
            File {
                name: "etc/first",
                content: vec![1, 2, 3],
            },
            File {
                name: "bootorder",
                content: (0..=255).cycle().take(1000).collect(),
            },
        ];
        let mut device = FwCfg::new(1, 1 << 28, &files);
        device.select(0x19);
        let mut bytes = |count: usize| -> Vec<u8> { (0..count).map(|_| device.read()).collect() };
        assert_eq!(bytes(4), [0, 0, 0, 2]);
        let mut entries = Vec::new();
        for _ in 0..2 {
            let size = bytes(4)
                .iter()
                .fold(0, |n, byte| n << 8 | usize::from(*byte));
            let key = bytes(2).iter().fold(0, |n, byte| n << 8 | u16::from(*byte));
            assert_eq!(bytes(2), [0, 0]);
            let name = bytes(56);
            let end = name.iter().position(|&byte| byte == 0).unwrap();
            entries.push((name[..end].to_vec(), key, size));
        }
        assert_eq!(bytes(3), [0, 0, 0], "behind the end");
        for ((name, key, size), file) in entries.into_iter().zip(&files) {
            assert_eq!(name, file.name.as_bytes());
            assert_eq!(size, file.content.len());
            device.select(key);
            let content: Vec<u8> = (0..size).map(|_| device.read()).collect();
            assert_eq!(content, file.content);
            assert_eq!(device.read(), 0);
        }
    }
}
