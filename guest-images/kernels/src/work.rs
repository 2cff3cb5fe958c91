//! Work that takes a known number of instructions, and no exit.

use core::arch::asm;

/// Turns a loop of two instructions so many times (at least once).
#[inline]
pub fn turn(turns: u32) {
    // SAFETY: counts in a register.
    unsafe { asm!("2: dec {0:e}", "jnz 2b", inout(reg) turns => _, options(nomem, nostack)) }
}
