//! The machine's real-time clock, read once at boot: where the clocks of guests start
//! (Motorola MC146818, "Time, Calendar and Alarm Locations").

use devices::chipset::rtc::{Format, NaiveDateTime, TimeRegisters};
use x86_64::instructions::port::Port;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const CENTURY: u8 = 0x32;
/// Register A: an update is in progress, or begins within 244 us.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Attempts to read the same time twice in a row, outside of an update that takes 2 ms.
const ATTEMPTS: u32 = 10_000;

fn read(index: u8) -> u8 {
    // SAFETY: the index and data ports of the CMOS; nothing else uses them, and reading
    // these registers changes nothing. Bit 7 of the index would mask NMIs, and is off.
    unsafe {
        Port::<u8>::new(0x70).write(index);
        Port::<u8>::new(0x71).read()
    }
}

fn registers() -> TimeRegisters {
    TimeRegisters {
        second: read(0),
        minute: read(2),
        hour: read(4),
        weekday: read(6),
        day: read(7),
        month: read(8),
        year: read(9),
        century: read(CENTURY),
    }
}

/// Returns the date and time that the RTC shows; `None` if it shows none, or is not there.
#[must_use]
pub(crate) fn now() -> Option<NaiveDateTime> {
    for _ in 0..ATTEMPTS {
        if read(REGISTER_A) & UPDATE_IN_PROGRESS != 0 {
            continue;
        }
        let first = registers();
        if first == registers() {
            return first.decode(Format::of(read(REGISTER_B)));
        }
    }
    None
}
