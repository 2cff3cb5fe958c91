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
//! integer part.
//!
//! The hardware forms its product from host time zero, so the value that RDTSC returns by
//! [`VirtualClock::tsc_scaling`] may differ from the exact one by at most one tick, and does
//! not differ at all while the rate is an integer. The error does not add up: each change
//! of rate computes the offset from the exact line anew.

use crate::time::{CounterTicks, HostTicks, Now, TimerTicks};

/// How fast a line of guest time runs: guest ticks per host tick, in 16.48 fixed point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

impl Rate {
    const FRACTION_BITS: u32 = 48;

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
}

impl core::fmt::Debug for Rate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let fraction = self.0 & (Self::ONE.0 - 1);
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
    /// Guest ticks and their fraction at `host`; the anchor for a host time before it.
    const fn at(&self, host: u64) -> (u64, u64) {
        let elapsed = host.saturating_sub(self.host) as u128;
        // At most 2^64 * 2^64 - 2^64 + 2^48: no overflow.
        let exact = elapsed * self.rate.0 as u128 + self.fraction as u128;
        let whole = exact >> Rate::FRACTION_BITS;
        // A guest that has lived through 2^64 ticks stands still; at 4 GHz and a rate of
        // 65,535 that is after 19 hours, at 1,000 after 53 days of fast time alone.
        let guest = self.guest as u128 + whole;
        let guest = if guest > u64::MAX as u128 {
            u64::MAX
        } else {
            guest as u64
        };
        (guest, (exact as u64) & (Rate::ONE.0 - 1))
    }

    const fn set_rate(&mut self, host: u64, rate: Rate) {
        (self.guest, self.fraction) = self.at(host);
        if host > self.host {
            self.host = host;
        }
        self.rate = rate;
    }

    /// The first host time at which the line has reached `guest`; `u64::MAX` for never.
    const fn when(&self, guest: u64) -> u64 {
        if guest <= self.guest {
            return self.host;
        }
        let distance =
            (((guest - self.guest) as u128) << Rate::FRACTION_BITS) - self.fraction as u128;
        let host = self.host as u128 + distance.div_ceil(self.rate.0 as u128);
        if host > u64::MAX as u128 {
            u64::MAX
        } else {
            host as u64
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
    #[must_use]
    pub const fn now(&self, host: HostTicks) -> Now {
        Now {
            counter: CounterTicks(self.counter.at(host.0).0),
            timer: TimerTicks(self.timer.at(host.0).0),
        }
    }

    /// Lets guest time go on at `rates` from `host` on.
    pub const fn set_rates(&mut self, host: HostTicks, rates: Rates) {
        self.counter.set_rate(host.0, rates.counter);
        self.timer.set_rate(host.0, rates.timer);
    }

    /// The rates that hold now.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        Rates {
            counter: self.counter.rate,
            timer: self.timer.rate,
        }
    }

    /// The first host time at which `deadline` has come, as far as the rates stay as they
    /// are; `HostTicks(u64::MAX)` for never.
    #[must_use]
    pub const fn host_deadline(&self, deadline: TimerTicks) -> HostTicks {
        HostTicks(self.timer.when(deadline.0))
    }

    /// The TSC scaling that shows the counter line as RDTSC.
    #[must_use]
    pub const fn tsc_scaling(&self) -> TscScaling {
        let multiplier = self.counter.rate.0;
        let scaled = (self.counter.host as u128 * multiplier as u128) >> Rate::FRACTION_BITS;
        TscScaling {
            multiplier,
            offset: self.counter.guest.wrapping_sub(scaled as u64),
        }
    }
}
