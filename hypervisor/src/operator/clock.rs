//! The host's time, as the operator is told it.

use devices::time::{Hertz, HostTicks};

use crate::machine::host_time::host_now;

/// The host's TSC, and what its ticks are in the operator's units. Points in time
/// are told from when the console opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostClock {
    tsc: Hertz,
    opened: HostTicks,
    read: fn() -> HostTicks,
}

impl HostClock {
    /// Starts the clock of a machine whose TSC has this frequency: the console opens now.
    #[must_use]
    pub(crate) fn start(tsc: Hertz) -> Self {
        Self::with(tsc, host_now)
    }

    /// Starts a clock as [`HostClock::start`] does, with a TSC of the caller's.
    #[must_use]
    pub(crate) fn with(tsc: Hertz, read: fn() -> HostTicks) -> Self {
        Self {
            tsc,
            opened: read(),
            read,
        }
    }

    /// Returns the frequency of the TSC.
    #[must_use]
    pub(crate) const fn frequency(&self) -> Hertz {
        self.tsc
    }

    /// Returns the TSC's value.
    #[must_use]
    pub(crate) fn now(&self) -> HostTicks {
        (self.read)()
    }

    /// Returns the ticks in a second divided by `parts`, which is not zero.
    #[must_use]
    pub(crate) const fn fraction_of_second(&self, parts: u64) -> u64 {
        self.tsc.get() / parts
    }

    /// Returns the nanoseconds from when the console opened until `at`.
    #[must_use]
    pub(crate) fn nanos(&self, at: HostTicks) -> u64 {
        self.tsc.nanos(at.since(self.opened))
    }

    /// Returns the microseconds from when the console opened until `at`.
    #[must_use]
    pub(crate) fn micros(&self, at: HostTicks) -> u64 {
        self.nanos(at) / 1000
    }

    /// Converts a number of ticks to microseconds, rounded down.
    #[must_use]
    pub(crate) fn ticks_in_micros(&self, ticks: u64) -> u64 {
        self.tsc.nanos(ticks) / 1000
    }

    /// Converts ticks to microseconds, rounded toward zero.
    #[must_use]
    pub(crate) fn micros_of(&self, ticks: i64) -> i64 {
        let micros = i128::from(ticks) * 1_000_000 / i128::from(self.tsc.get());
        micros.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// Converts ticks to milliseconds, rounded toward zero.
    #[must_use]
    pub(crate) fn millis(&self, ticks: i64) -> i64 {
        let millis = i128::from(ticks) * 1000 / i128::from(self.tsc.get());
        millis.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time_since_the_console_opened() {
        let tsc = Hertz::new(2_000_000_000);
        let clock = HostClock::with(tsc, || HostTicks(1000));
        assert_eq!(clock.now(), HostTicks(1000));
        assert_eq!(clock.nanos(HostTicks(3000)), 1000);
        assert_eq!(clock.micros(HostTicks(2_001_000)), 1000);
        assert_eq!(clock.ticks_in_micros(2_001_999), 1000);
        assert_eq!(clock.micros_of(-7_001_000), -3_500);
        assert_eq!(clock.millis(-7_000_000), -3);
        assert_eq!(clock.millis(i64::MAX), i64::MAX / 2_000_000);
        assert_eq!(clock.fraction_of_second(4000), 500_000);
    }
}
