//! One clock, held against the TSC.

use core::fmt;

use kernels::{println, tsc};

/// A frequency as a fraction, so that a period in femtoseconds is exact.
#[derive(Clone, Copy)]
pub(crate) struct Hertz(pub(crate) u64, pub(crate) u64);

impl Hertz {
    /// The clock's ticks in `ticks` of the TSC.
    fn in_tsc_ticks(self, ticks: u64, tsc_hertz: u64) -> i128 {
        let numerator = u128::from(ticks) * u128::from(self.0);
        (numerator / (u128::from(tsc_hertz) * u128::from(self.1))) as i128
    }
}

/// The findings about a clock so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reading {
    /// Its ticks since the start, wraps included.
    total: i128,
    /// The number of times that it went back.
    pub(crate) backwards: u64,
    /// The number of times that it did not agree with the TSC.
    pub(crate) off: u64,
    /// The furthest that it was off, in ticks of its own.
    worst: i128,
    /// The lead over the middle of the TSC's readings around it, in ticks of its own.
    ahead: i128,
}

/// A clock.
pub(crate) struct Clock<'a> {
    name: &'static str,
    read: &'a dyn Fn() -> u64,
    /// The number of ticks after which it begins again; 0 for never.
    modulus: u64,
    hertz: Hertz,
    there: bool,
    last: u64,
    /// The TSC before and after the first reading.
    started: (u64, u64),
    reading: Reading,
}

/// Disagreements that are printed, of each clock.
const SHOWN: u64 = 5;

impl<'a> Clock<'a> {
    pub(crate) fn new(
        name: &'static str,
        read: &'a dyn Fn() -> u64,
        modulus: u64,
        hertz: Hertz,
        there: bool,
    ) -> Self {
        let before = tsc::now();
        let last = read();
        let started = (before, tsc::now());
        Self {
            name,
            read,
            modulus,
            hertz,
            there,
            last,
            started,
            reading: Reading::default(),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn is_there(&self) -> bool {
        self.there
    }

    pub(crate) fn reading(&self) -> Reading {
        self.reading
    }

    /// Reads it, between two readings of the TSC: it must be in between, too.
    pub(crate) fn check(&mut self, tsc_hertz: u64, ppm: u64) {
        if !self.there {
            return;
        }
        let before = tsc::now();
        let now = (self.read)();
        let after = tsc::now();
        let in_ticks = |ticks| self.hertz.in_tsc_ticks(ticks, tsc_hertz);
        let least = in_ticks(before - self.started.1);
        let most = in_ticks(after - self.started.0) + 1;
        let middle = i128::midpoint(least, most);

        let step = i128::from(now) - i128::from(self.last);
        let mut total = self.reading.total + step;
        if self.modulus != 0 {
            // However long ago the last reading was: the number of wraps that fits the TSC best.
            let modulus = i128::from(self.modulus);
            total += (middle - total + modulus / 2).div_euclid(modulus) * modulus;
        }
        self.last = now;
        if total < self.reading.total {
            self.reading.backwards += 1;
            if self.reading.backwards <= SHOWN {
                println!(
                    "clocks: BACK {} from {} to {total}",
                    self.name, self.reading.total
                );
            }
        }
        self.reading.total = total;
        self.reading.ahead = total - middle;
        // One tick for where its first and its present tick began, and what its frequency is off.
        let slack = 1 + most * i128::from(ppm) / 1_000_000;
        let off = if total < least - slack {
            total - (least - slack)
        } else {
            (total - (most + slack)).max(0)
        };
        if off != 0 {
            self.reading.off += 1;
            if off.abs() > self.reading.worst.abs() {
                self.reading.worst = off;
            }
            if self.reading.off <= SHOWN {
                println!(
                    "clocks: OFF {} expected {least} to {most}, got {total}",
                    self.name
                );
            }
        }
    }
}

impl fmt::Display for Clock<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        if !self.there {
            return write!(formatter, "clock={} none", self.name);
        }
        let Reading {
            total,
            backwards,
            off,
            worst,
            ahead,
        } = self.reading;
        write!(
            formatter,
            "clock={} total={total} ahead={ahead} back={backwards} off={off} worst={worst}",
            self.name
        )
    }
}
