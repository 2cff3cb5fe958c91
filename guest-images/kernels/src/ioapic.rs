//! The I/O APIC. 82093AA datasheet.

use arch::ioapic::{IOREGSEL, IOWIN};

use crate::mmio;

pub use arch::ioapic::{ACTIVE_LOW, ENTRIES, ID, LEVEL, MASKED, REMOTE_IRR, VERSION};

/// The address of the registers.
pub const ADDRESS: u64 = 0xfec0_0000;
/// The index register's address.
pub const SELECT: u64 = ADDRESS + IOREGSEL as u64;
/// The data register's address.
pub const WINDOW: u64 = ADDRESS + IOWIN as u64;

/// Reads the register with `index`.
#[must_use]
pub fn read(index: u8) -> u32 {
    // SAFETY: the I/O APIC is mapped and touches no memory.
    unsafe {
        mmio::write32(SELECT, u32::from(index));
        mmio::read32(WINDOW)
    }
}

/// Writes the register with `index`.
pub fn write(index: u8, value: u32) {
    // SAFETY: as above.
    unsafe {
        mmio::write32(SELECT, u32::from(index));
        mmio::write32(WINDOW, value);
    }
}

/// Reads the redirection entry of `pin`.
#[must_use]
pub fn entry(pin: u8) -> u64 {
    let index = ENTRIES + 2 * pin;
    u64::from(read(index)) | u64::from(read(index + 1)) << 32
}

/// Writes the redirection entry of `pin`, masked meanwhile.
pub fn set_entry(pin: u8, value: u64) {
    let index = ENTRIES + 2 * pin;
    write(index, read(index) | MASKED as u32);
    write(index + 1, (value >> 32) as u32);
    write(index, value as u32);
}

/// Returns the number of pins.
#[must_use]
pub fn pins() -> u8 {
    (read(VERSION) >> 16) as u8 + 1
}

/// Masks all pins.
pub fn mask_all() {
    for pin in 0..pins() {
        set_entry(pin, MASKED);
    }
}
