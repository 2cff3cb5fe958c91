//! How much of a physical CPU a VCPU gets of what it asks for.
//!
//! A guest's scheduler charges a process for the time in which its VCPU waits for a CPU, as if it
//! had run. With several VCPUs on one CPU that happens to all processes but a target, whose turns
//! are too short to be caught waiting. So it would be charged less than they, and get more than
//! `1/N` of what it would have: with a share `s` of the CPU, `1/(s * N)`. Its clock has to run at
//! `N / s` then.

#![forbid(unsafe_code)]

use devices::time::Hertz;

/// The largest factor that waiting adds.
const MOST: u64 = 16;

/// The time that a VCPU ran and the time that it waited, lately, in ticks: both are halved when
/// they come to a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuShare {
    ran: u64,
    waited: u64,
    memory: u64,
}

impl CpuShare {
    /// Makes a VCPU that has a CPU for itself, as far as is known.
    #[must_use]
    pub(super) const fn new(tsc: Hertz) -> Self {
        Self {
            ran: 0,
            waited: 0,
            memory: tsc.get(),
        }
    }

    /// Takes note that it ran for `ticks`.
    pub(super) const fn ran(&mut self, ticks: u64) {
        self.ran = self.ran.saturating_add(ticks);
        self.forget();
    }

    /// Takes note that it waited for a CPU for `ticks`.
    pub(super) const fn waited(&mut self, ticks: u64) {
        self.waited = self.waited.saturating_add(ticks);
        self.forget();
    }

    const fn forget(&mut self) {
        while self.ran.saturating_add(self.waited) > self.memory {
            self.ran /= 2;
            self.waited /= 2;
        }
    }

    /// Returns what `bits`, a rate in fixed point, becomes by the waiting.
    #[must_use]
    pub(super) fn scale(&self, bits: u64) -> u64 {
        // Too little is known before it ran for a hundredth of the memory.
        if self.waited == 0 || self.ran < self.memory / 128 {
            return bits;
        }
        let wanted = u128::from(self.ran) + u128::from(self.waited);
        let scaled = u128::from(bits) * wanted / u128::from(self.ran);
        let most = u128::from(bits) * u128::from(MOST);
        u64::try_from(scaled.min(most)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);

    #[test]
    fn who_never_waits_is_left_alone() {
        let mut share = CpuShare::new(TSC);
        assert_eq!(share.scale(1000), 1000);
        share.ran(500_000_000);
        assert_eq!(share.scale(1000), 1000);
    }

    #[test]
    fn who_waits_half_of_the_time_counts_twice() {
        let mut share = CpuShare::new(TSC);
        for _ in 0..1000 {
            share.ran(10_000_000);
            share.waited(10_000_000);
        }
        let scaled = share.scale(1000);
        assert!((1950..=2050).contains(&scaled), "{scaled}");
    }

    #[test]
    fn what_was_long_ago_is_forgotten_and_the_factor_has_a_limit() {
        let mut share = CpuShare::new(TSC);
        share.ran(20_000_000);
        share.waited(900_000_000);
        assert_eq!(share.scale(10), 160);
        for _ in 0..1000 {
            share.ran(10_000_000);
        }
        assert_eq!(share.scale(1000), 1000);
    }
}
