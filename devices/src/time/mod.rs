//! Units of time, as types.
//!
//! Three time lines exist, all counted in TSC ticks of the same nominal frequency:
//! the host's ([`HostTicks`]), and two of the guest: the one its *counters* show
//! ([`CounterTicks`]) and the one its *timers* run on ([`TimerTicks`]). Both guest
//! lines run together unless suppression gives them different rates; see
//! [`crate::clock`].

use core::fmt;

mod oscillator;
mod ratio;
#[cfg(test)]
mod tests;

pub use oscillator::Oscillator;
pub use ratio::Ratio;

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

macro_rules! ticks {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The start of the line.
            pub const ZERO: Self = Self(0);

            /// Returns this point moved `ticks` later; the last point of the line if there is none.
            #[must_use]
            pub const fn saturating_add(self, ticks: u64) -> Self {
                Self(self.0.saturating_add(ticks))
            }

            /// Ticks from `earlier` to this point; zero if `earlier` is later.
            #[must_use]
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }
    };
}

ticks! {
    /// A point on the host's time line: a value of the host's TSC.
    HostTicks
}
ticks! {
    /// A point on the guest's counter line: what every clock the guest can read derives from.
    CounterTicks
}
ticks! {
    /// A point on the guest's timer line: what every timer interrupt is due on.
    TimerTicks
}

/// The present moment of a guest, on both of its time lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The time that the guest's counters show.
    pub counter: CounterTicks,
    /// The time that the guest's timers have come to.
    pub timer: TimerTicks,
}

impl Now {
    /// Returns the timer-line deadline of an event that is due when the counters show `when`, as
    /// seen from now. An event in the past is due now.
    #[must_use]
    pub const fn deadline_at(self, when: CounterTicks) -> TimerTicks {
        self.timer.saturating_add(when.since(self.counter))
    }

    /// Returns how far the timer line is ahead of the counter line.
    #[inline]
    #[must_use]
    pub const fn lead(self) -> Lead {
        Lead(self.timer.0.wrapping_sub(self.counter.0) as i64)
    }
}

/// The lead of the timer line over the counter line when a timer was armed; negative if it was
/// behind. It places points of the counter line on the timer line: by a lead that is kept, all the
/// expiries of a periodic timer derive from one anchor, without rounding one after the other.
///
/// Lines that are 2^63 ticks apart (73 years at 4 GHz) are beyond it; then deadlines are
/// wrong, but still points on the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lead(i64);

impl Lead {
    /// Both lines together.
    pub const ZERO: Self = Self(0);

    /// Returns where the counter point `when` lies on the timer line. The last point of the counter
    /// line stands for "never" and stays so.
    #[inline]
    #[must_use]
    pub const fn deadline(self, when: CounterTicks) -> TimerTicks {
        if when.0 == u64::MAX {
            return TimerTicks(u64::MAX);
        }
        TimerTicks(when.0.saturating_add_signed(self.0))
    }

    /// Returns the counter point that lies at `timer` on the timer line.
    #[inline]
    #[must_use]
    pub const fn counter(self, timer: TimerTicks) -> CounterTicks {
        CounterTicks(timer.0.saturating_add_signed(self.0.saturating_neg()))
    }
}

/// A frequency in hertz: at least one, and below 2^63.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hertz(core::num::NonZeroU64);

impl Hertz {
    /// Makes a frequency of `hz` hertz.
    ///
    /// # Panics
    /// If `hz` is zero or at least 2^63; meant for constants.
    #[must_use]
    pub const fn new(hz: u64) -> Self {
        match Self::try_new(hz) {
            Some(frequency) => frequency,
            None => panic!("a frequency is not zero, and below 2^63 Hz"),
        }
    }

    /// Makes a frequency of `hz` hertz, or `None` if that is zero or at least 2^63.
    #[must_use]
    pub const fn try_new(hz: u64) -> Option<Self> {
        match core::num::NonZeroU64::new(hz) {
            Some(nonzero) if hz < 1 << 63 => Some(Self(nonzero)),
            _ => None,
        }
    }

    /// Returns the number of hertz.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Returns how many whole periods of this frequency fit in `ticks` periods of `other`:
    /// `floor(ticks * self / other)`, exact, saturating at `u64::MAX`.
    #[must_use]
    pub const fn periods_in(self, ticks: u64, other: Hertz) -> u64 {
        saturate(ticks as u128 * self.get() as u128 / other.get() as u128)
    }

    /// Returns the fewest periods of `other` that hold `periods` whole periods of this frequency:
    /// `ceil(periods * other / self)`, exact, saturating at `u64::MAX`.
    ///
    /// With [`Hertz::periods_in`] this is a Galois connection: a counter that starts at
    /// zero shows at least `periods` exactly from `ticks_for(periods, ..)` on.
    #[must_use]
    pub const fn ticks_for(self, periods: u64, other: Hertz) -> u64 {
        saturate((periods as u128 * other.get() as u128).div_ceil(self.get() as u128))
    }

    /// Returns the length of `ticks` periods of this frequency in nanoseconds, rounded down.
    #[must_use]
    pub const fn nanos(self, ticks: u64) -> u64 {
        Hertz::new(NANOS_PER_SECOND).periods_in(ticks, self)
    }
}

impl fmt::Debug for Hertz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.get())
    }
}

impl fmt::Display for Hertz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06} MHz",
            self.get() / 1_000_000,
            self.get() % 1_000_000
        )
    }
}

const fn saturate(value: u128) -> u64 {
    if value > u64::MAX as u128 {
        u64::MAX
    } else {
        value as u64
    }
}
