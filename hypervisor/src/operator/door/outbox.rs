//! The lines that wait for the line to the outside: a bounded number of bytes, whatever is answered and
//! whatever happens.

use alloc::collections::VecDeque;

use serde::Serialize;

use crate::console::{Output, RequestId};
use crate::operator::terminal::SerialLine;

/// The number of bytes that may wait.
const CAPACITY: usize = 64 << 10;
/// The part of them that events may fill: answers get through all the same.
const EVENT_CAPACITY: usize = CAPACITY / 2;
/// The part that is kept free for the ends of answers.
const RESERVE: usize = 1024;
/// The number of bytes that may wait when a request is begun.
const FREE: usize = CAPACITY / 4;

/// The lines that wait.
#[derive(Debug)]
pub(super) struct Outbox {
    bytes: VecDeque<u8>,
    /// Whether the present answer did not fit.
    cut: bool,
    /// The events for which there was no room, and of which the client does not know.
    dropped: u64,
}

/// The last line of an answer.
#[derive(Serialize)]
struct EndLine<'a> {
    id: Option<&'a RequestId>,
    end: bool,
}

/// The line that tells of events that are missing.
#[derive(Serialize)]
struct DroppedLine {
    event: &'static str,
    count: u64,
}

/// An answer that did not fit.
#[derive(Serialize)]
struct CutLine<'a> {
    id: Option<&'a RequestId>,
    error: &'static str,
    message: &'static str,
}

impl Output for Outbox {
    /// Takes a whole line of an answer.
    fn write(&mut self, bytes: &[u8]) {
        self.cut |= self.bytes.len() + bytes.len() > CAPACITY - RESERVE;
        if !self.cut {
            self.bytes.extend(bytes);
        }
    }

    fn backlog(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Outbox {
    /// Makes room for all that may ever wait.
    pub(super) fn new() -> Self {
        Self {
            bytes: VecDeque::with_capacity(CAPACITY),
            cut: false,
            dropped: 0,
        }
    }

    /// Returns whether there is room for the answer to one more request.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() <= FREE
    }

    /// Returns whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends an answer.
    pub(super) fn end(&mut self, id: Option<&RequestId>) {
        if core::mem::take(&mut self.cut) {
            self.push(&CutLine {
                id,
                error: "answer_cut",
                message: "the answer is too long: its end is missing",
            });
        }
        self.push(&EndLine { id, end: true });
    }

    /// Takes an event, or drops and counts it.
    pub(super) fn event(&mut self, event: &impl Serialize) {
        self.tell_dropped();
        if self.dropped > 0 || !self.push_within(event, EVENT_CAPACITY) {
            self.dropped += 1;
        }
    }

    /// Tells how many events were dropped, if that is so and there is room again.
    pub(super) fn tell_dropped(&mut self) {
        // Not just for one more that fits: what follows is to be whole for a while.
        if self.dropped > 0 && self.bytes.len() <= EVENT_CAPACITY / 2 {
            let event = DroppedLine {
                event: "dropped",
                count: core::mem::take(&mut self.dropped),
            };
            self.push(&event);
        }
    }

    /// Gives `line` what it has room for.
    pub(super) fn drain(&mut self, line: &dyn SerialLine) {
        let on_their_way = line.written().saturating_sub(line.sent());
        let room = line.capacity().saturating_sub(on_their_way);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let (first, _) = self.bytes.as_slices();
        let count = first.len().min(room);
        line.write(first.get(..count).unwrap_or_default());
        self.bytes.drain(..count);
    }

    /// Takes a line for which there is room: the end of an answer, or a short answer when nothing much
    /// waits.
    pub(super) fn push(&mut self, line: &impl Serialize) {
        let fits = self.push_within(line, CAPACITY);
        debug_assert!(fits, "there is room for it");
    }

    fn push_within(&mut self, line: &impl Serialize, capacity: usize) -> bool {
        let Ok(text) = serde_json::to_string(line) else {
            debug_assert!(false, "a line that JSON cannot hold");
            return true;
        };
        let fits = self.bytes.len() + text.len() + 2 <= capacity;
        if fits {
            self.bytes.extend(text.as_bytes());
            self.bytes.extend(b"\r\n");
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec::Vec;

    use super::*;

    fn lines(outbox: &mut Outbox) -> Vec<serde_json::Value> {
        let bytes: Vec<u8> = outbox.bytes.drain(..).collect();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn events_that_nobody_fetches_are_counted_and_told() {
        let mut outbox = Outbox::new();
        const SENT: u64 = 100_000;
        for number in 0..SENT {
            outbox.event(&number);
        }
        assert!(outbox.bytes.len() <= EVENT_CAPACITY);
        let kept = lines(&mut outbox);
        outbox.tell_dropped();
        let told = lines(&mut outbox);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["event"], "dropped");
        assert_eq!(told[0]["count"], SENT - kept.len() as u64);
        outbox.event(&7);
        assert_eq!(lines(&mut outbox), [7]);
    }

    #[test]
    fn an_answer_that_does_not_fit_has_an_end_that_says_so() {
        let mut outbox = Outbox::new();
        (0..100_000u64).for_each(|number| outbox.event(&number));
        let id = RequestId::Word("\"".repeat(64));
        for _ in 0..1000 {
            outbox.write(&[b'1'; 998]);
        }
        outbox.write(b"1");
        outbox.end(Some(&id));
        assert!(outbox.bytes.len() <= CAPACITY);
        let all: Vec<u8> = outbox.bytes.iter().copied().collect();
        let text = String::from_utf8(all).unwrap();
        let ends: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(ends[1].ends_with("\"error\":\"answer_cut\",\"message\":\"the answer is too long: its end is missing\"}"), "{ends:?}");
        assert!(ends[0].ends_with("\"end\":true}"), "{ends:?}");
        // The next one is not cut for that.
        lines_forgotten(&mut outbox);
        outbox.end(None);
        assert_eq!(lines(&mut outbox).len(), 1);
    }

    fn lines_forgotten(outbox: &mut Outbox) {
        outbox.bytes.clear();
    }
}
