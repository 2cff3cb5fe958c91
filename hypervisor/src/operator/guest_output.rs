//! Where a guest's serial output goes.
//!
//! A guest's UART takes bytes as fast as the guest writes them, and the terminal's line has
//! 115,200 baud. What is on its way waits in a buffer that all guests share, so each has only so
//! much room there: a VCPU that has written more gets no CPU until the line has caught up. It
//! waits without any lock, and a guest that writes little never waits for one that writes much.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use super::terminal::Terminal;
use crate::ids::VmId;
use crate::vm::host::SerialOutput;

/// The number of pieces of a guest's room, by which the line is followed: a VCPU that waits does so
/// until the line has taken one.
const PIECES: usize = 64;

/// The most room that a guest has, in bytes: what a Linux writes while it boots goes in at once.
const MAX_ROOM: u64 = 32 << 10;

/// The output of a guest that is still on its way. Positions are counts of bytes that anybody has
/// written to the line.
#[derive(Debug)]
struct Backlog {
    /// The length of a piece.
    piece: u64,
    /// The positions at which the last pieces ended, the oldest at `oldest`.
    ends: [u64; PIECES],
    oldest: usize,
    /// Bytes in the present piece.
    count: u64,
}

impl Backlog {
    const fn new(room: u64) -> Self {
        Self {
            piece: room / PIECES as u64,
            ends: [0; PIECES],
            oldest: 0,
            count: 0,
        }
    }

    /// Adds what was written between two positions.
    fn add(&mut self, from: u64, to: u64) {
        self.count += to.saturating_sub(from);
        if self.count >= self.piece {
            self.count = 0;
            self.ends[self.oldest] = to;
            self.oldest = (self.oldest + 1) % PIECES;
        }
    }

    /// Returns whether there is more than there is room for, when the line has come to `sent`.
    const fn is_full(&self, sent: u64) -> bool {
        sent < self.ends[self.oldest]
    }
}

/// The far end of a guest's serial line: a channel of the terminal.
pub(crate) struct GuestOutput {
    terminal: Arc<Terminal>,
    /// The VM whose serial line it is.
    vm: VmId,
    backlog: Mutex<Backlog>,
    full: AtomicBool,
}

impl GuestOutput {
    /// Makes the far end of the serial line of `vm`, one of `guests` that share the terminal.
    ///
    /// They divide half of the line's buffer among them; the other half is the operator's, and for
    /// what a guest writes by one instruction when its room is nearly full.
    #[must_use]
    pub(crate) fn new(terminal: Arc<Terminal>, vm: VmId, guests: usize) -> Self {
        let room = terminal.line().capacity() / 2 / guests.max(1) as u64;
        Self {
            terminal,
            vm,
            backlog: Mutex::new(Backlog::new(room.min(MAX_ROOM))),
            full: AtomicBool::new(false),
        }
    }
}

impl SerialOutput for GuestOutput {
    fn write(&self, name: &str, byte: u8) {
        let line = self.terminal.line();
        let from = line.written();
        self.terminal.guest_byte(self.vm, name, byte);
        let to = line.written();
        // Most bytes only make a line longer that is written when it is whole.
        if to != from {
            let mut backlog = self.backlog.lock();
            backlog.add(from, to);
            self.full
                .store(backlog.is_full(line.sent()), Ordering::Relaxed);
        }
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        let sent = self.terminal.line().sent();
        let full = self.backlog.lock().is_full(sent);
        self.full.store(full, Ordering::Relaxed);
        !full
    }

    fn delay(&self) -> u64 {
        // A millisecond, in which the line takes some ten bytes.
        self.terminal.clock().fraction_of_second(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = 6400;
    const PIECE: u64 = ROOM / PIECES as u64;

    #[test]
    fn a_guest_waits_when_its_room_is_full_and_goes_on_a_piece_at_a_time() {
        let mut backlog = Backlog::new(ROOM);
        let mut written = 0;
        let mut write = |backlog: &mut Backlog| {
            backlog.add(written, written + 10);
            written += 10;
            written
        };
        while !backlog.is_full(0) {
            assert!(write(&mut backlog) <= ROOM + PIECE);
        }
        assert!(backlog.is_full(PIECE - 1));
        assert!(!backlog.is_full(PIECE));
        while !backlog.is_full(PIECE) {
            assert!(write(&mut backlog) <= ROOM + 2 * PIECE);
        }
    }

    #[test]
    fn what_others_write_takes_none_of_a_guests_room() {
        let mut backlog = Backlog::new(ROOM);
        for line in 0..50 {
            // Ten lines of others' between any two.
            backlog.add(line * 500, line * 500 + 50);
        }
        assert!(!backlog.is_full(0), "2,500 bytes of 6,400");
    }
}
