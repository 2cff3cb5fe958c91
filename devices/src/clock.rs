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
//! one after it; that is 16 host ticks at the slowest rate, fewer than any VM exit takes.
//!
//! # Range
//! Guest time is counted in 64 bits: 146 years of guest time at 4 GHz, which a rate of
//! 65,535 lives through in 19 hours and a rate of 1,000 in 53 days of being in force.
//! A line that has reached the end of its range stands still there, and nothing is due on
//! it any more.

use crate::time::{CounterTicks, HostTicks, Now, TimerTicks};

#[cfg(test)]
mod tests;

/// How fast a line of guest time runs: guest ticks per host tick, in 16.48 fixed point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    const FRACTION_BITS: u32 = 48;
    const FRACTION_MASK: u64 = (1 << Self::FRACTION_BITS) - 1;

    /// Real time.
    pub const ONE: Self = Self(1 << Self::FRACTION_BITS);
    /// The slowest rate, 1/16.
    pub const MIN: Self = Self(Self::ONE.0 / 16);
    /// The fastest rate, 65,535.
    pub const MAX: Self = Self(65_535 << Self::FRACTION_BITS);

    /// `factor` times real time; `None` unless `factor` is from 1 to 65,535.
    #[must_use]
    pub const fn times(factor: u32) -> Option<Self> {
        if factor >= 1 && factor <= 65_535 {
            Some(Self((factor as u64) << Self::FRACTION_BITS))
        } else {
            None
        }
    }

    /// The rate with these 16.48 bits; `None` outside [`Rate::MIN`] to [`Rate::MAX`].
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits >= Self::MIN.0 && bits <= Self::MAX.0 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The rate in 16.48 fixed point, as the VMCS field "TSC multiplier" takes it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The rate as an integer; `None` if it is not one.
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
    /// What the hardware computes for the host TSC `host`.
    #[must_use]
    pub const fn apply(self, host: HostTicks) -> CounterTicks {
        let scaled = (host.0 as u128 * self.multiplier as u128) >> Rate::FRACTION_BITS;
        CounterTicks((scaled as u64).wrapping_add(self.offset))
    }
}

/// One linear piece of guest time: passes through (`host`, `guest` + `fraction` / 2^48) with
/// slope `rate`.
#[derive(Clone, Copy, Debug)]
struct Line {
    host: u64,
    guest: u64,
    fraction: u64,
    rate: Rate,
}

impl Line {
    /// Whole guest ticks at `host`; those of the anchor for a host time before it.
    #[inline]
    const fn at(&self, host: u64) -> u64 {
        let elapsed = host.saturating_sub(self.host);
        if self.rate.0 == Rate::ONE.0 {
            // The fraction stays what it is, below one.
            return self.guest.saturating_add(elapsed);
        }
        let whole = self.progress(elapsed) >> Rate::FRACTION_BITS;
        if whole > u64::MAX as u128 {
            return u64::MAX;
        }
        self.guest.saturating_add(whole as u64)
    }

    /// How far the line gets beyond `guest` in `elapsed` host ticks, in 2^-48 ticks.
    #[inline]
    const fn progress(&self, elapsed: u64) -> u128 {
        // At most (2^64 - 1) * 65,535 * 2^48 + 2^48 - 1: no overflow.
        elapsed as u128 * self.rate.0 as u128 + self.fraction as u128
    }

    const fn set_rate(&mut self, host: u64, rate: Rate) {
        if host > self.host {
            let progress = self.progress(host - self.host);
            self.guest = self.at(host);
            self.fraction = progress as u64 & Rate::FRACTION_MASK;
            self.host = host;
        }
        self.rate = rate;
    }

    /// The first host time from the anchor on at which the line has reached `guest`;
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
        let elapsed = if self.rate.0 == Rate::ONE.0 {
            distance
        } else {
            self.elapsed_for(distance)
        };
        self.host.saturating_add(elapsed)
    }

    /// Host ticks from the anchor until the line has come `distance` whole ticks beyond
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
    /// A clock that starts at guest time zero at `host`, in real time.
    #[must_use]
    pub const fn new(host: HostTicks) -> Self {
        let line = Line {
            host: host.0,
            guest: 0,
            fraction: 0,
            rate: Rate::ONE,
        };
        Self {
            counter: line,
            timer: line,
        }
    }

    /// Guest time at `host`. For a host time before the last change of rate: the time of
    /// that change, so that guest time never goes back.
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
        self.counter.set_rate(host.0, rates.counter);
        self.timer.set_rate(host.0, rates.timer);
    }

    /// Takes the host time from `from` to `to` out of guest time: it stands still between
    /// them. Nobody may have read the clock for a host time after `from`.
    pub const fn skip(&mut self, from: HostTicks, to: HostTicks) {
        self.set_rates(from, self.rates());
        if to.0 > self.counter.host {
            self.counter.host = to.0;
            self.timer.host = to.0;
        }
    }

    /// The rates that hold now.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        Rates {
            counter: self.counter.rate,
            timer: self.timer.rate,
        }
    }

    /// The first host time at which [`VirtualClock::now`] shows a timer line at or past
    /// `deadline`, as far as the rates stay as they are. For a deadline that had come by the
    /// last change of rate: the host time of that change. `HostTicks(u64::MAX)` for never,
    /// which is the answer to `TimerTicks(u64::MAX)`.
    #[inline]
    #[must_use]
    pub const fn host_deadline(&self, deadline: TimerTicks) -> HostTicks {
        HostTicks(self.timer.when(deadline.0))
    }

    /// The TSC scaling that shows the counter line as RDTSC: the exact counter while the
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
