//! Where a guest's serial output goes.
//!
//! A guest's UART takes bytes as fast as the guest writes them, and the machine's line has
//! 115,200 baud. What is on its way waits in a ring that all guests share, so each has only so
//! much room there: a VCPU that has written more gets no CPU until the line has caught up. It
//! waits without any lock, and who writes little does not wait for who writes much.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::boxed::Box;

use spin::Mutex;

use super::{TIME, guest_byte};
use crate::ids::VmId;
use crate::machine::serial;
use crate::vm::host::SerialOutput;

/// How closely the line is followed: who waits does so until it has taken this part of the room.
const PIECES: usize = 64;

/// The room that each guest has, in bytes.
static ROOM: AtomicU64 = AtomicU64::new(serial::RING_SIZE as u64 / 2);

/// Divides half of the ring among `guests`; the other half is the operator's, and for what a
/// guest writes by one instruction when its room is nearly full.
pub(super) fn divide_among(guests: usize) {
    let room = serial::RING_SIZE as u64 / 2 / guests.max(1) as u64;
    // What a Linux writes while it boots goes in at once.
    ROOM.store(room.min(32 << 10), Ordering::Relaxed);
}

/// How much of what a guest has written is still on its way. Positions are counts of bytes that
/// anybody has written to the line.
#[derive(Debug)]
struct Backlog {
    /// The length of a piece.
    piece: u64,
    /// Where the last pieces ended, the oldest at `oldest`.
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

    /// Whether there is more than there is room for, when the line has come to `sent`.
    const fn is_full(&self, sent: u64) -> bool {
        sent < self.ends[self.oldest]
    }
}

/// The far end of a guest's serial line: the console.
#[derive(Debug)]
struct GuestOutput {
    vm: VmId,
    backlog: Mutex<Backlog>,
    full: AtomicBool,
}

/// Makes the far end of the serial line of `vm`.
#[must_use]
pub fn guest_output(vm: VmId) -> Box<dyn SerialOutput> {
    Box::new(GuestOutput {
        vm,
        backlog: Mutex::new(Backlog::new(ROOM.load(Ordering::Relaxed))),
        full: AtomicBool::new(false),
    })
}

impl SerialOutput for GuestOutput {
    fn write(&self, byte: u8) {
        let from = serial::written();
        guest_byte(self.vm, byte);
        let to = serial::written();
        // Most bytes only make a line longer that is written when it is whole.
        if to != from {
            let mut backlog = self.backlog.lock();
            backlog.add(from, to);
            self.full
                .store(backlog.is_full(serial::sent()), Ordering::Relaxed);
        }
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        let full = self.backlog.lock().is_full(serial::sent());
        self.full.store(full, Ordering::Relaxed);
        !full
    }

    fn delay(&self) -> u64 {
        // A millisecond, in which the line takes some ten bytes.
        TIME.get().map_or(0, |(tsc, _)| tsc.get() / 1000)
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
