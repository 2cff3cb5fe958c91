//! The firmware-configuration interface, read by selector and one byte at a time.
//!
//! Firmware and test kernels that know QEMU's machines ask it for what ACPI tables would tell
//! them only after a search: how many processors there are, and how much RAM.
//!
//! Source: QEMU's `docs/specs/fw_cfg.rst`, the traditional (port) interface. There is no DMA
//! interface, and the ID item says so; nothing can be written; items that are not here are
//! empty, and an item reads as zeros behind its end.

use super::bus::{Access, Context, Device};

/// The region of the selector; the other is the data port.
const SELECTOR: usize = 0;

/// The signature that tells a guest that the interface is there.
const SIGNATURE: [u8; 8] = *b"QEMU\0\0\0\0";
/// The ID item: bit 0, the traditional interface.
const TRADITIONAL_INTERFACE: u64 = 1;

/// Keys of items.
mod key {
    pub(super) const SIGNATURE: u16 = 0x00;
    pub(super) const ID: u16 = 0x01;
    pub(super) const RAM_SIZE: u16 = 0x03;
    pub(super) const PROCESSORS: u16 = 0x05;
    pub(super) const MAX_PROCESSORS: u16 = 0x0f;
    /// Bit 14 asks for a write channel, which there is none of.
    pub(super) const WRITE_CHANNEL: u16 = 1 << 14;
}

/// The firmware-configuration device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FwCfg {
    processors: u16,
    ram_size: u64,
    /// The bytes of the selected item that are still to be read, the next one lowest.
    rest: u64,
}

impl FwCfg {
    /// Returns the device of a machine with so many processors and so many bytes of RAM. The
    /// signature is selected.
    #[must_use]
    pub const fn new(processors: u16, ram_size: u64) -> Self {
        Self {
            processors,
            ram_size,
            rest: u64::from_le_bytes(SIGNATURE),
        }
    }

    /// Takes a write to the selector port: the next byte to be read is the first of item `key`.
    pub const fn select(&mut self, key: u16) {
        self.rest = match key & !key::WRITE_CHANNEL {
            key::SIGNATURE => u64::from_le_bytes(SIGNATURE),
            key::ID => TRADITIONAL_INTERFACE,
            key::RAM_SIZE => self.ram_size,
            key::PROCESSORS | key::MAX_PROCESSORS => self.processors as u64,
            _ => 0,
        };
    }

    /// Answers a read of the data port: the next byte of the selected item.
    pub const fn read(&mut self) -> u8 {
        let byte = self.rest as u8;
        self.rest >>= 8;
        byte
    }
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
        *self = Self::new(self.processors, self.ram_size);
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
        let mut device = FwCfg::new(3, 0x1_2340_0000);
        assert_eq!(&item(&mut device, 0), b"QEMU");
        assert_eq!(u16::from_le_bytes(item(&mut device, 5)), 3);
        assert_eq!(u16::from_le_bytes(item(&mut device, 15)), 3);
        assert_eq!(u64::from_le_bytes(item(&mut device, 3)), 0x1_2340_0000);
    }

    #[test]
    fn nothing_is_promised_that_is_not_there() {
        let mut device = FwCfg::new(1, 1 << 28);
        assert_eq!(
            u32::from_le_bytes(item(&mut device, 1)),
            1,
            "the ports alone, no DMA"
        );
        for absent in [2, 0x19, 0x8000, 0xffff] {
            assert_eq!(item(&mut device, absent), [0; 10], "{absent:#x}");
        }
        assert_eq!(item(&mut device, 5), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
