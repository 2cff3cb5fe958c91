//! The 8254 timer, and port 0x61, which gates its channel 2 and shows its output.

use x86_64::instructions::port::Port;

/// The PIT's input frequency.
pub const HERTZ: u64 = 1_193_182;

const CONTROL: u16 = 0x43;
const SYSTEM_CONTROL_B: u16 = 0x61;

fn write(port: u16, value: u8) {
    // SAFETY: the 8254 and port 0x61 touch no memory.
    unsafe { Port::new(port).write(value) }
}

fn read(port: u16) -> u8 {
    // SAFETY: as above.
    unsafe { Port::new(port).read() }
}

/// Writes the control word.
pub fn control(value: u8) {
    write(CONTROL, value);
}

/// Writes a byte of `channel`'s count.
pub fn write_byte(channel: u8, value: u8) {
    write(0x40 + u16::from(channel), value);
}

/// Reads a byte of `channel`'s count, latch or status.
#[must_use]
pub fn read_byte(channel: u8) -> u8 {
    read(0x40 + u16::from(channel))
}

/// Starts `channel` in `mode`, binary, with `count` (0 is 65536).
pub fn start(channel: u8, mode: u8, count: u16) {
    control(channel << 6 | 0x30 | mode << 1);
    let [low, high] = count.to_le_bytes();
    write_byte(channel, low);
    write_byte(channel, high);
}

/// Latches `channel`'s count and reads it.
#[must_use]
pub fn count(channel: u8) -> u16 {
    control(channel << 6);
    let low = read_byte(channel);
    u16::from_le_bytes([low, read_byte(channel)])
}

/// Latches `channel`'s status by the read-back command and reads it.
#[must_use]
pub fn status(channel: u8) -> u8 {
    control(0xe0 | 2 << channel);
    read_byte(channel)
}

/// Opens or closes the gate of channel 2. The speaker stays off.
pub fn set_gate2(open: bool) {
    write(
        SYSTEM_CONTROL_B,
        read(SYSTEM_CONTROL_B) & !3 | u8::from(open),
    );
}

/// Returns the level of channel 2's output.
#[must_use]
pub fn output2() -> bool {
    read(SYSTEM_CONTROL_B) & 1 << 5 != 0
}

/// Gives interrupt 0's line a rising edge: mode 0's output is low until its count is through, and
/// high from then on.
pub fn raise_line() {
    start(0, 0, 2);
    while status(0) & 0x80 == 0 {}
}
