//! This program as one that a process becomes or starts: by its arguments it knows whose it is.

use core::ffi::CStr;
use core::fmt::Write;

use super::execs;
use crate::system::memory::inherited_counters;
use crate::system::{self, Arguments, Errno};
use crate::tag;
use crate::work::Work;

/// The word for a program that goes on as `execs`: `again INDEX UNIT`.
const AGAIN: &CStr = c"again";
/// The word for a program that computes one unit: `once INDEX UNIT`.
pub(super) const ONCE: &CStr = c"once";

/// Goes on with `work` as a new program. Returns only if that fails.
pub(super) fn become_new(work: Work) -> Errno {
    let (index, unit) = (Number::of(work.index() as u64), Number::of(work.unit()));
    system::execute([c"/proc/self/exe", AGAIN, index.text(), unit.text()])
}

/// Does the work of another process, and ends, if `arguments` ask for that.
pub fn go_on(mut arguments: Arguments) {
    // The first is the program's name.
    let run = match arguments.nth(1) {
        Some(word) if word == AGAIN => execs::go_on,
        Some(word) if word == ONCE => once,
        _ => return,
    };
    let mut number = || arguments.next()?.to_str().ok()?.parse::<u64>().ok();
    let (Some(index), Some(unit)) = (number(), number()) else {
        return;
    };
    let index = index as usize;
    let slot = inherited_counters()
        .ok()
        .and_then(|counters| counters.get(index));
    let well = slot.is_some_and(|slot| {
        tag::hold(index);
        run(Work::new(slot, index, unit, Some(0))) && slot.wrong() == 0
    });
    system::exit(i32::from(!well))
}

/// Does a unit. Returns whether there are more to be done.
fn once(work: Work) -> bool {
    work.computation(0).do_units(1);
    work.goes_on()
}

/// The text of a number, with a zero byte at its end.
pub(super) struct Number {
    bytes: [u8; 24],
    length: usize,
}

impl Number {
    /// Returns the text of `value`.
    pub(super) fn of(value: u64) -> Self {
        let mut number = Self {
            bytes: [0; 24],
            length: 0,
        };
        // All digits fit.
        let _ = write!(number, "{value}");
        number
    }

    /// Returns the text as programs take it.
    pub(super) fn text(&self) -> &CStr {
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
    use crate::counters::Slot;

    #[test]
    fn numbers_are_handed_on_as_text() {
        assert_eq!(Number::of(0).text(), c"0");
        assert_eq!(Number::of(u64::MAX).text(), c"18446744073709551615");
    }

    #[test]
    fn once_does_one_unit_and_none_when_asked_to_end() {
        static SLOT: Slot = Slot::new();
        let work = Work::new(&SLOT, 0, 10, None);
        assert!(once(work));
        assert_eq!(SLOT.finished(), 1);
        SLOT.ask_to_end();
        assert!(!once(work));
        assert_eq!(SLOT.finished(), 1);
    }
}
