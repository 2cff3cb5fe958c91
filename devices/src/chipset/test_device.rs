//! The test device: what test kernels exercise ports, device memory and interrupt wires with.
//!
//! Source: QEMU's `pc-testdev`, which test kernels expect. Its parts are
//!
//! - a latch of four bytes, on ports 0xE0 to 0xE3 and again, byte by byte, on 0xE8 to 0xEB;
//! - ports 0xE4 to 0xE7, a write to which asks the hypervisor to forget its mapping of a page.
//!   That has no effect that a guest can see, and none here;
//! - a port for each IOAPIC pin, which sets the level of the pin's wire (see
//!   [`crate::chipset`]);
//! - 64 KiB of device memory that keeps what is written to it.
//!
//! No operating system looks for it.

use alloc::boxed::Box;
use alloc::vec;

use super::bus::{Access, Context, Device};
use crate::platform_map::mmio;

/// Bytes of device memory: all that a 16-bit offset reaches.
const MEMORY_LENGTH: usize = mmio::TEST_MEMORY_LENGTH as usize;

/// The region of the ports that set the levels of pins.
const IRQ_LINES: usize = 2;
/// The region of the memory; the remaining two show the latch.
const MEMORY: usize = 3;

/// The latch and the memory of the test device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestDevice {
    latch: [u8; 4],
    /// Bit `n`: pin `n` was driven high.
    lines: u32,
    memory: Box<[u8]>,
}

impl Default for TestDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl TestDevice {
    /// Returns the device after power-up: all zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            latch: [0; 4],
            lines: 0,
            memory: vec![0; MEMORY_LENGTH].into_boxed_slice(),
        }
    }

    /// Reads byte `index` (modulo 4) of the latch.
    #[must_use]
    pub const fn read_latch(&self, index: u16) -> u8 {
        self.latch[(index & 3) as usize]
    }

    /// Writes byte `index` (modulo 4) of the latch.
    pub const fn write_latch(&mut self, index: u16, value: u8) {
        self.latch[(index & 3) as usize] = value;
    }

    /// Reads `size` bytes (at most 8) of the memory from `offset` on; bytes behind its end
    /// read as ones.
    #[must_use]
    pub fn read_memory(&self, offset: u16, size: u8) -> u64 {
        let mut bytes = [0xff; 8];
        let from = self.memory.get(usize::from(offset)..).unwrap_or_default();
        let length = usize::from(size.min(8)).min(from.len());
        for (to, from) in bytes.iter_mut().zip(&from[..length]) {
            *to = *from;
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes the low `size` bytes (at most 8) of `value` to the memory from `offset` on;
    /// what goes behind its end is lost.
    pub fn write_memory(&mut self, offset: u16, size: u8, value: u64) {
        let to = self
            .memory
            .get_mut(usize::from(offset)..)
            .unwrap_or_default();
        for (to, from) in to
            .iter_mut()
            .zip(value.to_le_bytes())
            .take(size.min(8).into())
        {
            *to = from;
        }
    }
}

impl TestDevice {
    /// Drives the wire at pin `pin` (below 32) of the IOAPIC.
    fn set_line(&mut self, pin: u8, level: bool, cx: &mut Context<'_>) {
        let bit = 1 << (pin & 31);
        self.lines = self.lines & !bit | if level { bit } else { 0 };
        cx.interrupts.set_test_line(pin, level, cx.host);
    }
}

impl Device for TestDevice {
    fn read(&mut self, access: Access, _: &mut Context<'_>) -> u64 {
        match access.region {
            MEMORY => self.read_memory(access.offset16(), access.size),
            // The levels can only be set.
            IRQ_LINES => u64::MAX,
            _ => self.read_latch(access.offset16()).into(),
        }
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let offset = access.offset16();
        match access.region {
            MEMORY => self.write_memory(offset, access.size, value),
            // One wire a port, whatever the width.
            IRQ_LINES => self.set_line(offset as u8, value != 0, cx),
            _ => self.write_latch(offset, value as u8),
        }
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        self.latch = [0; 4];
        self.memory.fill(0);
        for pin in 0..u32::BITS as u8 {
            if self.lines >> pin & 1 != 0 {
                self.set_line(pin, false, cx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_keeps_what_is_written() {
        let mut device = TestDevice::new();
        device.write_memory(0x100, 4, 0xffff_ffff_1234_5678);
        assert_eq!(device.read_memory(0x102, 2) & 0xffff, 0x1234);
        assert_eq!(
            device.read_memory(0x104, 1) & 0xff,
            0,
            "only 4 bytes written"
        );
    }

    #[test]
    fn the_memory_ends() {
        let mut device = TestDevice::new();
        device.write_memory(0xffff, 8, 0x1122);
        assert_eq!(device.read_memory(0xffff, 2) & 0xffff, 0xff22);
    }

    #[test]
    fn the_latch_is_four_bytes() {
        let mut device = TestDevice::new();
        device.write_latch(0xe1, 7);
        assert_eq!(device.read_latch(1), 7);
        assert_eq!(device.read_latch(0), 0);
    }
}
