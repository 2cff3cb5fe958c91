//! The virtual clock: the one source of a guest's time.
//!
//! A [`VirtualClock`] is a piecewise-linear map from host TSC to guest time. It has two
//! lines on one anchor: the *counter* line, from which everything that a guest reads as
//! time derives, and the *timer* line, on which everything that interrupts it is due. The
//! rates of the two lines are the two knobs of suppression (clock multiplier, interval
//! divisor); while they are equal, the guest sees a consistent world.
//!
//! # Exactness
//! A rate is a fixed-point number of 16.48 bits, the format of the VMCS field "TSC
//! multiplier" (SDM vol. 3C, 26.3: guest TSC = (host TSC * multiplier >> 48) + offset), and
//! host time is an integer, so guest time is exact in units of 2^-48 tick. Each line keeps
//! those 48 bits of fraction over a change of rate: no rounding is ever carried on, and a
//! line is continuous and monotonic by construction. What the guest sees of a line is its
//! integer part. So the error of [`VirtualClock::now`] is that of one rounding down, less
//! than one tick, whatever came before.
//!
//! The hardware forms its product from host time zero and knows no fraction of the offset,
//! so what RDTSC returns by [`VirtualClock::tsc_scaling`] is the exact value or one tick
//! less, and always the exact value while the rate is an integer. The error does not add
//! up: each change of rate computes the offset from the exact line anew. Being late by at
//! most one tick and never early, RDTSC does not go back over a change of rate either,
//! provided that guest time advances by a tick between the last RDTSC before and the first
//! one after it. At rates down to 1/16 any VM exit takes long enough for that; at slower ones
//! whoever changes the rate waits for it ([`Rates::settling_time`]).
//!
//! # Range
//! Guest time is counted in 64 bits: 146 years of guest time at 4 GHz, which a rate of
//! 65,535 lives through in 19 hours and a rate of 1,000 in 53 days of being in force.
//! A line that has reached the end of its range stands still there, and nothing is due on
//! it any more.

use crate::time::{CounterTicks, HostTicks, Now, TimerTicks};

#[cfg(test)]
mod tests;

/// The speed of a line of guest time: guest ticks per host tick, in 16.48 fixed point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    const FRACTION_BITS: u32 = 48;
    const FRACTION_MASK: u64 = (1 << Self::FRACTION_BITS) - 1;

    /// Real time.
    pub const ONE: Self = Self(1 << Self::FRACTION_BITS);
    /// The slowest rate, 1/4096: a clock that all but stands still.
    pub const MIN: Self = Self(Self::ONE.0 / 4096);
    /// The fastest rate, 65,535.
    pub const MAX: Self = Self(65_535 << Self::FRACTION_BITS);

    /// Returns `factor` times real time; `None` unless `factor` is from 1 to 65,535.
    #[must_use]
    pub const fn times(factor: u32) -> Option<Self> {
        if factor >= 1 && factor <= 65_535 {
            Some(Self((factor as u64) << Self::FRACTION_BITS))
        } else {
            None
        }
    }

    /// Returns the rate with these 16.48 bits; `None` outside [`Rate::MIN`] to [`Rate::MAX`].
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits >= Self::MIN.0 && bits <= Self::MAX.0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// Returns the rate in 16.48 fixed point, as the VMCS field "TSC multiplier" takes it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the rate as an integer; `None` if it is not one.
    const fn integer(self) -> Option<u64> {
        if self.0 & Self::FRACTION_MASK == 0 {
            Some(self.0 >> Self::FRACTION_BITS)
        } else {
            None
        }
    }
}

impl core::fmt::Debug for Rate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let fraction = self.0 & Self::FRACTION_MASK;
        write!(f, "x{}", self.0 >> Self::FRACTION_BITS)?;
        if fraction != 0 {
            write!(
                f,
                ".{:03}",
                (u128::from(fraction) * 1000) >> Self::FRACTION_BITS
            )?;
        }
        Ok(())
    }
}

/// The rates of the two lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Rate of the counter line: the clock multiplier.
    pub counter: Rate,
    /// Rate of the timer line: the interval divisor.
    pub timer: Rate,
}

impl Rates {
    /// Real time on both lines.
    pub const REAL_TIME: Self = Self {
        counter: Rate::ONE,
        timer: Rate::ONE,
    };

    /// Returns whether a line is faster than real time.
    #[must_use]
    pub const fn is_fast(self) -> bool {
        self.is_faster_than(Self::REAL_TIME)
    }

    /// Returns whether a line is faster than it is at rates `other`.
    #[must_use]
    pub const fn is_faster_than(self, other: Self) -> bool {
        self.counter.0 > other.counter.0 || self.timer.0 > other.timer.0
    }

    /// Returns how many host ticks after a change to these rates no VCPU is to read the TSC, so
    /// that it does not go back: those in which the counter line advances by a tick.
    #[must_use]
    pub const fn settling_time(self) -> u64 {
        Rate::ONE.0.div_ceil(self.counter.0)
    }
}

/// Rates, and how long they hold: each line runs in real time after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// The rates.
    pub rates: Rates,
    /// The time until which the counter line's rate holds; `HostTicks(u64::MAX)` for ever.
    pub counter_until: HostTicks,
    /// The time until which the timer line's rate holds.
    pub timer_until: HostTicks,
}

impl Course {
    /// Real time.
    pub const REAL_TIME: Self = Self::at(Rates::REAL_TIME);

    /// Makes a course of `rates` for ever.
    #[must_use]
    pub const fn at(rates: Rates) -> Self {
        Self {
            rates,
            counter_until: HostTicks(u64::MAX),
            timer_until: HostTicks(u64::MAX),
        }
    }
}

/// The VMCS fields that make the hardware show the counter line as the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScaling {
    /// "TSC multiplier".
    pub multiplier: u64,
    /// "TSC offset", to be added modulo 2^64.
    pub offset: u64,
}

impl TscScaling {
    /// Returns what the hardware computes for the host TSC `host`.
    #[must_use]
    pub const fn apply(self, host: HostTicks) -> CounterTicks {
        let scaled = (host.0 as u128 * self.multiplier as u128) >> Rate::FRACTION_BITS;
        CounterTicks((scaled as u64).wrapping_add(self.offset))
    }
}

/// Guest time from an anchor on: passes through (`host`, `guest` + `fraction` / 2^48) with slope
/// `rate`, up to host time `until`, and with slope one from there on.
#[derive(Clone, Copy, Debug)]
struct Line {
    host: u64,
    guest: u64,
    fraction: u64,
    rate: Rate,
    /// `u64::MAX` for a line without a knee.
    until: u64,
}

impl Line {
    /// Returns the whole guest ticks at `host`; those of the anchor for a host time before it.
    #[inline]
    const fn at(&self, host: u64) -> u64 {
        if self.rate.0 == Rate::ONE.0 {
            // The fraction stays what it is, below one.
            return self.guest.saturating_add(host.saturating_sub(self.host));
        }
        self.at_rate(host)
    }

    /// Returns the same at another rate than one. Apart, so that real time has a short path.
    #[inline]
    const fn at_rate(&self, host: u64) -> u64 {
        let bent = if host < self.until { host } else { self.until };
        let whole = self.progress(bent.saturating_sub(self.host)) >> Rate::FRACTION_BITS;
        if whole > u64::MAX as u128 {
            return u64::MAX;
        }
        self.guest
            .saturating_add(whole as u64)
            .saturating_add(host.saturating_sub(bent))
    }

    /// Returns how far the line gets beyond `guest` in `elapsed` host ticks, in 2^-48 ticks.
    #[inline]
    const fn progress(&self, elapsed: u64) -> u128 {
        // At most (2^64 - 1) * 65,535 * 2^48 + 2^48 - 1: no overflow.
        elapsed as u128 * self.rate.0 as u128 + self.fraction as u128
    }

    const fn set_rate(&mut self, host: u64, rate: Rate, until: u64) {
        if host > self.host {
            let bent = if host < self.until { host } else { self.until };
            let progress = self.progress(bent.saturating_sub(self.host));
            self.guest = self.at(host);
            self.fraction = progress as u64 & Rate::FRACTION_MASK;
            self.host = host;
        }
        self.rate = rate;
        self.until = if until > self.host { until } else { self.host };
    }

    /// Lets guest time stand still up to host time `to`, with all that was to come later by as much.
    const fn skip(&mut self, to: u64) {
        if to > self.host {
            if self.until != u64::MAX {
                self.until = self.until.saturating_add(to - self.host);
            }
            self.host = to;
        }
    }

    /// Returns the first host time from the anchor on at which the line has reached `guest`;
    /// `u64::MAX` for never.
    #[inline]
    const fn when(&self, guest: u64) -> u64 {
        if guest == u64::MAX {
            return u64::MAX;
        }
        if guest <= self.guest {
            return self.host;
        }
        let distance = guest - self.guest;
        if self.rate.0 == Rate::ONE.0 {
            return self.host.saturating_add(distance);
        }
        let at = self.host.saturating_add(self.elapsed_for(distance));
        if at <= self.until {
            return at;
        }
        // Behind the knee, where the line runs in real time.
        let there = self.at(self.until);
        self.until.saturating_add(guest.saturating_sub(there))
    }

    /// Returns the host ticks from the anchor until the line has come `distance` whole ticks beyond
    /// `guest`; `u64::MAX` if they are more. Apart, so that real time has a short path.
    #[inline(never)]
    const fn elapsed_for(&self, distance: u64) -> u64 {
        if let Some(rate) = self.rate.integer() {
            // ceil((distance - f) / n) = ceil(distance / n) for integers and 0 <= f < 1.
            return distance.div_ceil(rate);
        }
        let exact = ((distance as u128) << Rate::FRACTION_BITS) - self.fraction as u128;
        let elapsed = exact.div_ceil(self.rate.0 as u128);
        if elapsed > u64::MAX as u128 {
            u64::MAX
        } else {
            elapsed as u64
        }
    }
}

/// A guest's time as a function of the host's. See the [module documentation](self).
#[derive(Clone, Debug)]
pub struct VirtualClock {
    counter: Line,
    timer: Line,
}

impl VirtualClock {
    /// Makes a clock that starts at guest time zero at `host`, in real time.
    #[must_use]
    pub const fn new(host: HostTicks) -> Self {
        let line = Line {
            host: host.0,
            guest: 0,
            fraction: 0,
            rate: Rate::ONE,
            until: u64::MAX,
        };
        Self {
            counter: line,
            timer: line,
        }
    }

    /// Returns the guest time at `host`. For a host time before the last change of rate: the time
    /// of that change, so that guest time never goes back.
    #[inline]
    #[must_use]
    pub const fn now(&self, host: HostTicks) -> Now {
        Now {
            counter: CounterTicks(self.counter.at(host.0)),
            timer: TimerTicks(self.timer.at(host.0)),
        }
    }

    /// Lets guest time go on at `rates` from `host` on; from the last change of rate on if
    /// `host` is before that.
    pub const fn set_rates(&mut self, host: HostTicks, rates: Rates) {
        self.set_course(host, Course::at(rates));
    }

    /// Lets guest time go on by `course` from `host` on; from the last change on if `host` is before
    /// that.
    ///
    /// A course with an end is for times at which no VCPU is in the guest: RDTSC does not see the end
    /// ([`VirtualClock::tsc_scaling`]), so whoever lets a VCPU enter sets a course for that first.
    pub const fn set_course(&mut self, host: HostTicks, course: Course) {
        let Course {
            rates,
            counter_until,
            timer_until,
        } = course;
        self.counter
            .set_rate(host.0, rates.counter, counter_until.0);
        self.timer.set_rate(host.0, rates.timer, timer_until.0);
    }

    /// Takes the host time from `from` to `to` out of guest time: it stands still between
    /// them. Nobody may have read the clock for a host time after `from`.
    pub const fn skip(&mut self, from: HostTicks, to: HostTicks) {
        self.set_course(from, self.course_from(from));
        self.counter.skip(to.0);
        self.timer.skip(to.0);
    }

    /// Lets the host time from `from` to `to` pass in guest time as in real time, whatever the course is: that
    /// goes on at `to`. Nobody may have read the clock for a host time after `from`.
    pub const fn pass(&mut self, from: HostTicks, to: HostTicks) {
        self.skip(from, to);
        let passed = to.since(from);
        self.counter.guest = self.counter.guest.saturating_add(passed);
        self.timer.guest = self.timer.guest.saturating_add(passed);
    }

    /// Returns the rates of the course that was set last.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        Rates {
            counter: self.counter.rate,
            timer: self.timer.rate,
        }
    }

    /// Returns the course that was set last.
    #[must_use]
    pub const fn course(&self) -> Course {
        Course {
            rates: self.rates(),
            counter_until: HostTicks(self.counter.until),
            timer_until: HostTicks(self.timer.until),
        }
    }

    /// Returns what is left of the course at `host`: a line that is past its end runs in real time.
    const fn course_from(&self, host: HostTicks) -> Course {
        let mut course = self.course();
        if host.0 >= self.counter.until {
            course.rates.counter = Rate::ONE;
            course.counter_until = HostTicks(u64::MAX);
        }
        if host.0 >= self.timer.until {
            course.rates.timer = Rate::ONE;
            course.timer_until = HostTicks(u64::MAX);
        }
        course
    }

    /// Returns the first host time at which [`VirtualClock::now`] shows a timer line at or past
    /// `deadline`, as far as the rates stay as they are. For a deadline that had come by the last
    /// change of rate: the host time of that change. `HostTicks(u64::MAX)` for never, which is the
    /// answer to `TimerTicks(u64::MAX)`.
    #[inline]
    #[must_use]
    pub const fn host_deadline(&self, deadline: TimerTicks) -> HostTicks {
        HostTicks(self.timer.when(deadline.0))
    }

    /// Returns the TSC scaling that shows the counter line as RDTSC: the exact counter while the
    /// rate is an integer, else that or one tick less.
    #[must_use]
    pub const fn tsc_scaling(&self) -> TscScaling {
        let line = &self.counter;
        let product = line.host as u128 * line.rate.0 as u128;
        let whole = (product >> Rate::FRACTION_BITS) as u64;
        let fraction = product as u64 & Rate::FRACTION_MASK;
        // The hardware's fraction runs ahead of the line's: it would carry into the integer
        // part too early, so start one lower. Never early is what monotonicity needs.
        let early = (fraction > line.fraction) as u64;
        TscScaling {
            multiplier: line.rate.0,
            offset: line.guest.wrapping_sub(whole).wrapping_sub(early),
        }
    }
}
