//! The last of tarpit's log messages, kept for the operator: what was said before somebody listened, or
//! was not to be shown.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use spin::Mutex;

/// The number of bytes that are kept.
const CAPACITY: usize = 32 << 10;

struct Ring<const N: usize> {
    bytes: [u8; N],
    /// The position of the oldest byte, and the number of bytes.
    first: usize,
    count: usize,
    /// The number of bytes that have ever been kept.
    total: u64,
}

static RING: Mutex<Ring<CAPACITY>> = Mutex::new(Ring::EMPTY);

impl<const N: usize> Ring<N> {
    const EMPTY: Self = Self {
        bytes: [0; N],
        first: 0,
        count: 0,
        total: 0,
    };

    fn push(&mut self, byte: u8) {
        self.total += 1;
        self.bytes[(self.first + self.count) % N] = byte;
        if self.count < N {
            self.count += 1;
        } else {
            self.first = (self.first + 1) % N;
        }
    }

    /// Returns the last `length` of the bytes that are kept.
    fn last(&self, length: usize) -> Vec<u8> {
        let start = (self.first + self.count - length) % N;
        let (begin, end) = self.bytes.split_at(start);
        // They go on at the beginning, where the end is too short for them.
        let until_end = length.min(end.len());
        [&end[..until_end], &begin[..length - until_end]].concat()
    }

    /// Returns what is kept, from the first whole line on.
    fn lines(&self) -> String {
        let bytes = self.last(self.count);
        let start = if self.count < N {
            0
        } else {
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            newline.map_or(0, |at| at + 1)
        };
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Returns what has been kept since `position`, as far as it is still there, and the position of
    /// what comes next.
    fn since(&self, position: u64) -> (String, u64) {
        let new = self.total.saturating_sub(position).min(self.count as u64) as usize;
        let bytes = self.last(new);
        (String::from_utf8_lossy(&bytes).into_owned(), self.total)
    }
}

impl<const N: usize> Write for Ring<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}

/// Keeps a message, which ends in a line break. Lost if another CPU keeps one just now for too long.
pub(crate) fn keep(text: fmt::Arguments<'_>) {
    const ATTEMPTS: u32 = 1_000_000;
    for _ in 0..ATTEMPTS {
        if let Some(mut ring) = RING.try_lock() {
            // It takes everything; a failing Display loses just its own text.
            let _ = ring.write_fmt(text);
            return;
        }
        core::hint::spin_loop();
    }
}

/// Returns the messages that are kept.
#[must_use]
pub(crate) fn lines() -> String {
    RING.lock().lines()
}

/// Returns the messages that have been kept since `position`, which is 0 or was returned by an earlier
/// call, as far as they are still there, and the position of what comes next.
#[must_use]
pub(crate) fn since(position: u64) -> (String, u64) {
    RING.lock().since(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_lines_are_kept() {
        let mut ring = Ring::<20>::EMPTY;
        ring.write_str("one\ntwo\n").unwrap();
        assert_eq!(ring.lines(), "one\ntwo\n");
        for number in 3..100 {
            writeln!(ring, "line {number}").unwrap();
        }
        assert_eq!(ring.lines(), "line 98\nline 99\n");
    }

    #[test]
    fn what_is_new_since_a_position_is_given_once() {
        let mut ring = Ring::<20>::EMPTY;
        ring.write_str("one\ntwo\n").unwrap();
        let (lines, position) = ring.since(0);
        assert_eq!(lines, "one\ntwo\n");
        assert_eq!(ring.since(position), (String::new(), position));
        ring.write_str("three\n").unwrap();
        let (lines, position) = ring.since(position);
        assert_eq!(lines, "three\n");
        ring.write_str("a line longer than all the ring\n").unwrap();
        let (lines, _) = ring.since(position);
        assert_eq!(lines, "r than all the ring\n");
    }
}
