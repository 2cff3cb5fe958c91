//! The host's two 8259 interrupt controllers, which tarpit keeps silent.

use x86_64::instructions::port::Port;

/// Masks all lines of both controllers. Firmware leaves the timer and keyboard lines open,
/// and those would end every guest entry through the LAPIC's virtual wire.
///
/// # Safety
/// Only for code that owns the machine's I/O ports.
pub unsafe fn mask_all() {
    // SAFETY: the caller owns the ports; OCW1 (the odd port) only sets the mask.
    unsafe {
        Port::<u8>::new(0x21).write(0xff);
        Port::<u8>::new(0xa1).write(0xff);
    }
}
