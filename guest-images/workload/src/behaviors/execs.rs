//! Computes, and becomes a new program after each unit: this one, which goes on.
//!
//! The units before the first time are for whoever wants to find the process first.

use core::ffi::CStr;
use core::fmt::Write;

use super::Behavior;
use crate::system::memory::inherited_counters;
use crate::system::{self, Arguments, Errno};
use crate::work::Work;

/// The default number of units before it becomes a new program for the first time.
const UNITS_BEFORE: u32 = 1_000_000;

/// The argument by which the new program knows what it is.
const AGAIN: &CStr = c"again";

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "execs",
    unit: "the computation of `unit` steps, each behind the first n (1,000,000) as a new program",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut before = work.number().unwrap_or(UNITS_BEFORE);
    let mut computation = work.computation(0);
    while work.goes_on() {
        computation.do_unit();
        if before > 0 {
            before -= 1;
            continue;
        }
        let index = Number::of(work.index() as u64);
        let unit = Number::of(work.unit());
        let program = c"/proc/self/exe";
        return Err(system::execute([program, AGAIN, index.text(), unit.text()]));
    }
    Ok(())
}

/// Goes on as the new program, if `arguments` say that this is one.
pub fn go_on(mut arguments: Arguments) {
    // The first is the program's name.
    if arguments.nth(1) != Some(AGAIN) {
        return;
    }
    let mut number = || arguments.next()?.to_str().ok()?.parse::<u64>().ok();
    let (Some(index), Some(unit)) = (number(), number()) else {
        return;
    };
    let index = index as usize;
    let slot = inherited_counters()
        .ok()
        .and_then(|counters| counters.get(index));
    let status = match slot {
        Some(slot) => i32::from(run(Work::new(slot, index, unit, Some(0))).is_err()),
        None => 1,
    };
    system::exit(status)
}

/// The text of a number, with a zero byte at its end.
struct Number {
    bytes: [u8; 24],
    length: usize,
}

impl Number {
    fn of(value: u64) -> Self {
        let mut number = Self {
            bytes: [0; 24],
            length: 0,
        };
        // All digits fit.
        let _ = write!(number, "{value}");
        number
    }

    fn text(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Number {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for &byte in text.as_bytes() {
            // The last byte stays zero.
            if self.length + 1 >= self.bytes.len() {
                return Err(core::fmt::Error);
            }
            self.bytes[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_handed_on_as_text() {
        assert_eq!(Number::of(0).text(), c"0");
        assert_eq!(Number::of(u64::MAX).text(), c"18446744073709551615");
    }
}
