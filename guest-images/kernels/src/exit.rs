//! The end of the machine, with a result.

use x86_64::instructions::port::Port;

/// The result of a kernel that panicked or took an exception that it did not expect.
pub const PANICKED: u8 = 0x7f;

/// The debug-exit device's port (QEMU: `-device isa-debug-exit,iobase=0xf4`).
const DEBUG_EXIT: u16 = 0xf4;
/// Bochs's port that takes the word "Shutdown".
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// Ends the machine with `result`: 0 is success. Halts for good on a machine that does not end.
pub fn exit(result: u8) -> ! {
    // SAFETY: both ports end the machine or, where there is no such device, do nothing.
    unsafe {
        Port::new(DEBUG_EXIT).write(result);
        for letter in b"Shutdown" {
            Port::new(BOCHS_SHUTDOWN).write(*letter);
        }
    }
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
