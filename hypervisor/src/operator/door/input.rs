//! The bytes that come over the line, put together to lines: a bounded number of them, whatever comes.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The longest line that is taken, in bytes, without its end.
pub(crate) const LINE_CAPACITY: usize = 4096;
/// The number of bytes that may wait while a request is served.
const CAPACITY: usize = 2 * LINE_CAPACITY + 2;

/// Lines that were not taken, since this was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    /// Lines longer than [`LINE_CAPACITY`].
    pub too_long: u64,
    /// Lines for which there was no room because those before them waited.
    pub too_many: u64,
}

/// The bytes that have come and have not been looked at.
#[derive(Debug)]
pub(super) struct Input {
    /// Whole lines with their ends, and the beginning of the last.
    bytes: VecDeque<u8>,
    /// The number of whole lines.
    lines: usize,
    /// The length of the beginning.
    begun: usize,
    /// Whether the rest of the line that comes is of no use.
    skipping: bool,
    refused: Refused,
}

impl Input {
    /// Makes room for all that may ever wait.
    pub(super) fn new() -> Self {
        Self {
            bytes: VecDeque::with_capacity(CAPACITY),
            lines: 0,
            begun: 0,
            skipping: false,
            refused: Refused::default(),
        }
    }

    /// Takes a byte.
    pub(super) fn push(&mut self, byte: u8) {
        if byte == b'\n' && self.skipping {
            self.skipping = false;
            return;
        }
        if self.skipping {
            return;
        }
        if byte != b'\n' && self.begun == LINE_CAPACITY {
            self.refused.too_long += 1;
            self.skip();
        } else if self.bytes.len() == CAPACITY {
            self.refused.too_many += 1;
            self.skip();
            self.skipping = byte != b'\n';
        } else {
            self.bytes.push_back(byte);
            if byte == b'\n' {
                self.lines += 1;
                self.begun = 0;
            } else {
                self.begun += 1;
            }
        }
    }

    /// Forgets the line that has begun, and what is still to come of it.
    fn skip(&mut self) {
        self.bytes.truncate(self.bytes.len() - self.begun);
        self.begun = 0;
        self.skipping = true;
    }

    /// Returns whether a whole line waits, or is to be refused.
    pub(super) fn has_line(&self) -> bool {
        self.lines > 0 || self.refused != Refused::default()
    }

    /// Returns the next line, without its end, if a whole one has come.
    pub(super) fn next_line(&mut self) -> Option<Vec<u8>> {
        self.lines = self.lines.checked_sub(1)?;
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line = self.bytes.drain(..=end).take(end).collect();
        Some(line)
    }

    /// Returns which lines were refused since the last call.
    pub(super) fn take_refused(&mut self) -> Refused {
        core::mem::take(&mut self.refused)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(input: &mut Input, text: &[u8]) {
        text.iter().for_each(|byte| input.push(*byte));
    }

    #[test]
    fn lines_come_whole_and_in_order() {
        let mut input = Input::new();
        push(&mut input, b"one\n\ntw");
        assert_eq!(input.next_line().unwrap(), b"one");
        assert_eq!(input.next_line().unwrap(), b"");
        assert_eq!(input.next_line(), None);
        push(&mut input, b"o\r\n");
        assert_eq!(input.next_line().unwrap(), b"two\r");
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_and_the_next_is_taken() {
        let mut input = Input::new();
        push(&mut input, &[b'x'; LINE_CAPACITY]);
        push(&mut input, b"\n");
        assert_eq!(input.next_line().unwrap().len(), LINE_CAPACITY);
        push(&mut input, &[b'x'; 100_000]);
        push(&mut input, b"\nnext\n");
        assert_eq!(input.next_line().unwrap(), b"next");
        let refused = Refused {
            too_long: 1,
            too_many: 0,
        };
        assert_eq!(input.take_refused(), refused);
        assert_eq!(input.take_refused(), Refused::default());
    }

    proptest! {
        #[test]
        fn whatever_comes_the_room_is_bounded_and_no_line_is_torn(
            lines in prop::collection::vec((0usize..6000, 0u8..3), 1..40),
        ) {
            let mut input = Input::new();
            let mut taken: Vec<Vec<u8>> = Vec::new();
            for (number, (length, looks)) in lines.iter().enumerate() {
                push(&mut input, &alloc::vec![number as u8 + b' '; *length]);
                push(&mut input, b"\n");
                prop_assert!(input.bytes.len() <= CAPACITY);
                prop_assert!(input.bytes.capacity() < 2 * CAPACITY);
                for _ in 0..*looks {
                    taken.extend(input.next_line());
                }
            }
            while let Some(line) = input.next_line() {
                taken.push(line);
            }
            let refused = input.take_refused();
            let count = taken.len() as u64 + refused.too_long + refused.too_many;
            prop_assert_eq!(count, lines.len() as u64);
            let mut expected = lines.iter().enumerate();
            for line in taken {
                let same = |(number, (length, _)): (usize, &(usize, u8))| {
                    line == alloc::vec![number as u8 + b' '; *length]
                };
                prop_assert!(expected.any(same), "torn or out of order: {} bytes", line.len());
            }
        }
    }
}
