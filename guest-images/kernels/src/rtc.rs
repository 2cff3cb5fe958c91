//! The real-time clock. MC146818A datasheet.

use x86_64::instructions::port::Port;

use crate::tsc;

/// Register A: rates, and update in progress.
pub const A: u8 = 0x0a;
/// Register B: interrupts and formats.
pub const B: u8 = 0x0b;
/// Register C: what interrupted; reading it clears it.
pub const C: u8 = 0x0c;
/// Register D: valid.
pub const D: u8 = 0x0d;

/// The RTC's interrupt.
pub const IRQ: u8 = 8;

/// Reads a register.
#[must_use]
pub fn read(register: u8) -> u8 {
    // SAFETY: the RTC touches no memory. Bit 7 of the index keeps NMIs as they are: off.
    unsafe {
        Port::new(0x70).write(register | 0x80);
        Port::new(0x71).read()
    }
}

/// Writes a register.
pub fn write(register: u8, value: u8) {
    // SAFETY: as above.
    unsafe {
        Port::new(0x70).write(register | 0x80);
        Port::new(0x71).write(value);
    }
}

/// Register B: periodic interrupts.
pub const PERIODIC: u8 = 1 << 6;

/// Makes the RTC's line high, which it stays until [`drop_line`]: by a periodic interrupt at 8 kHz.
/// `is_high` tells when it has come.
///
/// Returns whether it came within 2^33 ticks of the TSC.
pub fn raise_line(is_high: impl FnMut() -> bool) -> bool {
    let _ = read(C);
    write(A, 0x23);
    write(B, read(B) | PERIODIC);
    tsc::wait_until(1 << 33, is_high)
}

/// Makes the RTC's line low, and keeps it so.
pub fn drop_line() {
    write(B, read(B) & !(PERIODIC | 0x30));
    let _ = read(C);
}
