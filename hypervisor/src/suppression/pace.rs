//! How long a guest's interrupt handler is waited for, and how often it is looked at: as suits the
//! machine.
//!
//! Where tarpit itself runs under a hypervisor, an exit takes ten times as long as on a processor,
//! and a handler makes some. It would not be over in the time that is enough elsewhere, and a guest
//! that is looked at too often would get nowhere. What an exit takes is not known beforehand, but
//! seen: no stay in the guest is shorter than an entry and an exit take, and none that a timer ends
//! is over before the timer's exit is.

use devices::time::Hertz;

/// The least that a handler is given, in host ticks. A tick of Linux with the switch to another
/// process takes 5,000 to 20,000 instructions.
pub(crate) const LEAST_FOR_A_HANDLER: u64 = 50_000;
/// The same in time, 50 us, as the frequency of which that is a period: for processors whose ticks
/// are short, and which wait for memory.
const LEAST_TIME_FOR_A_HANDLER: Hertz = Hertz::new(20_000);
/// The exits that a handler may make, those of being looked at included.
const EXITS_OF_A_HANDLER: u64 = 32;
/// The least run of a guest before it is looked at, in host ticks. Looking takes about a thousand.
const LEAST_RUN: u64 = 2_000;

/// The least stay in the guest, in host ticks, however soon something is due: enough for an
/// instruction where nothing is known of what an entry takes.
const LEAST_STAY: u64 = 64;

/// The pace of a VCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The time that a handler is given besides its exits, in host ticks.
    handler: u64,
    /// The shortest stay in the guest so far, in host ticks: about what an entry and an exit take.
    shortest_stay: u64,
    /// The least delay of exits by the timer so far, in host ticks. A hypervisor below may have a
    /// timer of its own for it, which takes longer than other exits.
    least_late: u64,
    /// The cost of an exit by a timer, in host ticks; see [`Pace::exit_cost`].
    exit_cost: u64,
    /// The longest run of a handler, in host ticks; see [`Pace::longest_handler`].
    longest_handler: u64,
    /// The least run of the guest before it is looked at, in host ticks; see [`Pace::least_run`].
    least_run: u64,
    /// The least stay in the guest, in host ticks; see [`Pace::least_stay`].
    least_stay: u64,
}

impl Pace {
    /// Makes the pace of a machine whose TSC counts at `tsc`, before anything has been seen.
    #[must_use]
    pub(crate) const fn new(tsc: Hertz) -> Self {
        let ticks = LEAST_TIME_FOR_A_HANDLER.ticks_for(1, tsc);
        let handler = if ticks > LEAST_FOR_A_HANDLER {
            ticks
        } else {
            LEAST_FOR_A_HANDLER
        };
        Self {
            handler,
            shortest_stay: u64::MAX,
            least_late: u64::MAX,
            exit_cost: 0,
            longest_handler: handler,
            least_run: LEAST_RUN,
            least_stay: LEAST_STAY,
        }
    }

    /// Takes note of a stay in the guest: the host ticks from before an entry to after the exit.
    #[inline]
    pub(crate) fn note_stay(&mut self, ticks: u64) {
        if ticks < self.shortest_stay {
            self.shortest_stay = ticks;
            self.reckon();
        }
    }

    /// Takes note of how much later than it was to be an exit by the timer was, in host ticks.
    #[inline]
    pub(crate) fn note_late(&mut self, ticks: u64) {
        if ticks < self.least_late {
            self.least_late = ticks;
            self.reckon();
        }
    }

    #[cold]
    fn reckon(&mut self) {
        let known = |ticks| if ticks == u64::MAX { 0 } else { ticks };
        let exit = known(self.shortest_stay).saturating_add(known(self.least_late));
        self.exit_cost = exit;
        let exits = EXITS_OF_A_HANDLER.saturating_mul(exit);
        self.longest_handler = self.handler.saturating_add(exits);
        self.least_run = exit.saturating_mul(3).max(LEAST_RUN);
        self.least_stay = exit.saturating_mul(2).max(LEAST_STAY);
    }

    /// Returns what an exit takes that a timer causes, from when it is due until the guest has been
    /// left, in host ticks; zero before one was seen.
    #[must_use]
    pub(crate) const fn exit_cost(&self) -> u64 {
        self.exit_cost
    }

    /// Returns how long an interrupt handler may run, in host ticks, before a target that has not
    /// been seen in user mode is taken to run again.
    #[must_use]
    pub(crate) const fn longest_handler(&self) -> u64 {
        self.longest_handler
    }

    /// Returns how long the guest is to stay at least, in host ticks from before the entry, even when
    /// something is due already: with what an entry and an exit take, as long again for its own
    /// instructions.
    #[must_use]
    #[inline]
    pub(crate) const fn least_stay(&self) -> u64 {
        self.least_stay
    }

    /// Returns how long the guest is to be left alone, in host ticks from before the entry, before it is
    /// looked at for what it does. At most a third of that goes to the entry and the exit.
    #[must_use]
    #[inline]
    pub(crate) const fn least_run(&self) -> u64 {
        self.least_run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_has_50_microseconds_and_on_a_slow_tsc_50_000_ticks() {
        assert_eq!(Pace::new(Hertz::new(250_000_000)).longest_handler(), 50_000);
        let fast = Pace::new(Hertz::new(3_000_000_000));
        assert_eq!(fast.longest_handler(), 150_000);
    }

    #[test]
    fn where_exits_are_slow_handlers_may_take_longer_and_are_looked_at_less_often() {
        let mut pace = Pace::new(Hertz::new(1_000_000_000));
        assert_eq!(pace.least_run(), 2_000);
        assert_eq!(pace.least_stay(), 64);
        for stay in [900_000, 16_000, 40_000] {
            pace.note_stay(stay);
        }
        assert_eq!(pace.longest_handler(), 50_000 + 32 * 16_000);
        assert_eq!(pace.least_run(), 48_000);
        assert_eq!(pace.least_stay(), 32_000);
        for late in [90_000, 24_000, 30_000] {
            pace.note_late(late);
        }
        assert_eq!(pace.longest_handler(), 50_000 + 32 * 40_000);
        assert_eq!(pace.least_run(), 120_000);
    }

    #[test]
    fn where_exits_are_fast_they_change_nothing_that_counts() {
        let mut pace = Pace::new(Hertz::new(1_000_000_000));
        pace.note_stay(12);
        assert!(pace.longest_handler() < 51_000);
        assert_eq!(pace.least_run(), 2_000);
        pace.note_stay(0);
        assert_eq!(pace.longest_handler(), 50_000);
    }
}
