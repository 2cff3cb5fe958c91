//! The guest time that counts of the exits in which a clock becomes fast.
//!
//! To switch to a target and back takes a guest longer than the turn of one that is slowed down by much, and so a turn is to
//! be worth something to its scheduler: what the exit took in which the switch was seen counts for it. But timers that are due
//! in that time are late by the rest of it, so it is no more than it has to be: as much as keeps what turns take of all
//! time small, and at most half of what others have had since the last one, however many targets and threads take turns:
//! two thirds of the first exit. Beside an equal a scheduler makes turns as long as what others have between them. Of that
//! what an exit counts for is one part, and the other the time to the next tick: so the second part, of 3.5 ms, makes turns of 7 ms
//! where the first is half, and of 10 ms where it is two thirds.

#![forbid(unsafe_code)]

use devices::time::Hertz;

/// The most that counts of an exit, as a divisor of a second of guest time: two ticks and a half of most guests.
const MOST_PER_SECOND: u64 = 100;
/// The least that counts where that is enough, and the most where other VCPUs run that see all of it pass at once, in the
/// middle of whatever they do: half a tick.
const LEAST_PER_SECOND: u64 = 500;
/// The part of all time, as a divisor, that turns of targets are to take at most.
const TURNS_SHARE: u64 = 256;

/// The account of what exits count for.
#[derive(Clone, Debug)]
pub(super) struct CountedExits {
    /// The rest that may be counted until others have another turn, in ticks of guest time.
    left: u64,
    /// The same of the next exit, where it is the first.
    left_for_first: u64,
    /// The most that counts of one exit at present, in ticks of guest time.
    each: u64,
    least: u64,
    most: u64,
}

impl CountedExits {
    /// Makes the account of a guest whose targets have had no turn, on a machine whose TSC counts at `tsc`.
    pub(super) const fn new(tsc: Hertz) -> Self {
        let most = tsc.get() / MOST_PER_SECOND;
        Self {
            left: u64::MAX,
            left_for_first: u64::MAX,
            each: most,
            least: tsc.get() / LEAST_PER_SECOND,
            most,
        }
    }

    /// Takes note that others have had `guest` ticks of guest time between two turns.
    pub(super) const fn turn_begins(&mut self, guest: u64) {
        self.left = guest / 2;
        self.left_for_first = guest / 3 * 2;
    }

    /// Takes note that a turn took `ticks`, and that others had had `others` ticks before it.
    pub(super) fn turn_ended(&mut self, ticks: u64, others: u64) {
        let each = if ticks.saturating_mul(TURNS_SHARE) > others {
            self.each + self.each / 4
        } else {
            self.each - self.each / 16
        };
        self.each = each.clamp(self.least, self.most);
    }

    /// Returns what counts of an exit where `are_seen` says whether other VCPUs run. Of what others leave no more than
    /// `room` is there; `None` for as much as there may be, whatever others had.
    pub(super) fn of_exit(&self, are_seen: bool, room: Option<u64>) -> u64 {
        let each = if are_seen { self.least } else { self.each };
        match room {
            Some(room) => each.min(self.left.max(self.left_for_first)).min(room),
            None if are_seen => self.least,
            None => self.most,
        }
    }

    /// Takes note that `guest` ticks have been counted.
    pub(super) const fn take(&mut self, guest: u64) {
        self.left = self.left.saturating_sub(guest);
        self.left_for_first = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);
    const MS: u64 = 1_000_000;

    /// What counts of an exit after many turns that take `ticks` and come after `others` ticks, with much of guest time.
    fn after_turns(ticks: u64, others: u64) -> u64 {
        let mut exits = CountedExits::new(TSC);
        for _ in 0..100 {
            exits.turn_begins(100 * MS);
            exits.turn_ended(ticks, others);
        }
        exits.turn_begins(100 * MS);
        exits.of_exit(false, Some(100 * MS))
    }

    #[test]
    fn an_exit_counts_for_as_much_as_keeps_turns_cheap() {
        assert_eq!(after_turns(30_000, 5 * MS), 10 * MS, "dear turns");
        assert_eq!(after_turns(30_000, 20 * MS), 2 * MS, "cheap ones");
        // What others have grows with what counts: it settles between.
        let mut exits = CountedExits::new(TSC);
        for _ in 0..200 {
            let others = 4 * exits.of_exit(false, Some(u64::MAX));
            exits.turn_ended(60_000, others);
        }
        let settled = exits.of_exit(false, Some(u64::MAX));
        assert!((3 * MS..5 * MS).contains(&settled), "{settled}");
    }

    #[test]
    fn exits_count_for_half_of_what_others_have_had_the_first_for_more_and_for_no_more_than_there_is_room_for()
     {
        let mut exits = CountedExits::new(TSC);
        exits.turn_begins(9 * MS);
        assert_eq!(exits.of_exit(false, Some(100 * MS)), 6 * MS);
        exits.take(6 * MS);
        assert_eq!(exits.of_exit(false, Some(100 * MS)), 0);
        exits.turn_begins(8 * MS);
        assert_eq!(exits.of_exit(false, Some(MS)), MS);
        exits.take(3 * MS);
        assert_eq!(exits.of_exit(false, Some(100 * MS)), MS);
        assert_eq!(exits.of_exit(false, None), 10 * MS);
        assert_eq!(exits.of_exit(true, None), 2 * MS);
    }
}
