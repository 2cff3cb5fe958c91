//! The end of tarpit when it cannot go on: one line on the serial console, then halt.

use crate::machine::{power, serial};
use core::fmt;
use core::panic::PanicInfo;

/// Reports a condition of the machine or its configuration that tarpit cannot run with, as
/// exactly one line `tarpit: fatal: <cause and remedy>`, and halts this CPU.
///
/// `cause` names what is wrong and what to do about it, without a line break.
pub fn fatal(cause: fmt::Arguments<'_>) -> ! {
    serial::emergency_print(format_args!("tarpit: fatal: {cause}\n"));
    power::halt()
}

/// Reports a panic, which is always a bug of tarpit, and halts this CPU.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => serial::emergency_print(format_args!(
            "tarpit: panic at {}:{}: {}\n",
            at.file(),
            at.line(),
            info.message()
        )),
        None => serial::emergency_print(format_args!("tarpit: panic: {}\n", info.message())),
    }
    power::halt()
}
