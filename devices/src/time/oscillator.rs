//! The clock input of a device.

use super::{CounterTicks, Hertz, Lead, Now, Ratio, TimerTicks};

/// The clock input of a device, derived from the guest's time: an oscillator of a given
/// frequency that had its cycle number zero at the start of the counter line.
///
/// A cycle begins at the first tick at or after its exact time: cycle `n` is the present
/// one from tick `ceil(n * tsc / frequency)` on. So a deadline for a cycle has come exactly
/// when the counters show that cycle.
#[derive(Clone, Copy, Debug)]
pub struct Oscillator {
    cycles: Ratio,
    ticks: Ratio,
}

impl Oscillator {
    /// Makes an oscillator of `frequency` for a guest whose TSC runs at `tsc` (at rate 1).
    #[must_use]
    pub const fn new(frequency: Hertz, tsc: Hertz) -> Self {
        Self {
            cycles: Ratio::new(frequency, tsc),
            ticks: Ratio::new(tsc, frequency),
        }
    }

    /// Returns the number of the present cycle, as the guest's counters have it.
    #[inline]
    #[must_use]
    pub const fn cycle(&self, now: Now) -> u64 {
        self.cycles.floor(now.counter.0)
    }

    /// Returns the whole cycles in `ticks` of the TSC, in real time.
    #[must_use]
    pub const fn cycles_in(&self, ticks: u64) -> u64 {
        self.cycles.floor(ticks)
    }

    /// Returns the number of the present cycle, as a timer armed at `lead` has it.
    #[inline]
    #[must_use]
    pub const fn timer_cycle(&self, now: Now, lead: Lead) -> u64 {
        self.cycles.floor(lead.counter(now.timer).0)
    }

    /// Returns when cycle `cycle` begins for a timer armed at `lead`; the last point of the line
    /// for a cycle beyond it.
    #[must_use]
    pub const fn deadline(&self, cycle: u64, lead: Lead) -> TimerTicks {
        lead.deadline(CounterTicks(self.ticks.ceil(cycle)))
    }
}
