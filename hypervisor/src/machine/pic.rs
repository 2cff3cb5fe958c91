//! The host's two 8259 interrupt controllers, which tarpit keeps silent.

use x86_64::instructions::port::Port;

/// The vectors of the first controller's lines; the second's follow. Firmware has them on exceptions'
/// vectors, and a spurious interrupt comes even from a masked controller.
const FIRST_VECTOR: u8 = 0x20;

/// Puts both controllers' lines on vectors of interrupts, and masks them all. Firmware leaves the timer
/// and keyboard lines open, and those would end every guest entry through the LAPIC's virtual wire.
///
/// # Safety
/// Only for code that owns the machine's I/O ports.
pub(crate) unsafe fn silence() {
    for (command, first_vector, cascade) in
        [(0x20, FIRST_VECTOR, 1 << 2), (0xa0, FIRST_VECTOR + 8, 2)]
    {
        let data = command + 1;
        for (port, value) in [
            // Before the controller forgets its mask.
            (data, 0xff),
            // ICW1: edges, a cascade, and ICW4 to come.
            (command, 0x11),
            // ICW2 to ICW4: vectors, where the cascade is, 8086 mode.
            (data, first_vector),
            (data, cascade),
            (data, 0x01),
            // OCW1: the mask.
            (data, 0xff),
        ] {
            // SAFETY: the caller owns the ports. Nothing is delivered: all is masked before and after.
            unsafe { Port::<u8>::new(port).write(value) };
        }
    }
}
