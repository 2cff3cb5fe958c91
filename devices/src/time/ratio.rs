//! Exact conversion between two frequencies without a division.

use super::Hertz;

/// The ratio of two frequencies, prepared so that conversions are exact and take
/// multiplications only: a read of a clock is on the path of a VM exit.
///
/// [`Hertz::periods_in`] and [`Hertz::ticks_for`] compute the same by division.
///
/// # Why it is exact
/// With `f = floor(n * 2^64 / d)` for the proper fraction `n / d`, the estimate
/// `floor(t * f / 2^64)` of `floor(t * n / d)` is too small by at most one for every 64-bit
/// `t`, since `t * (n / d - f / 2^64) < t / 2^64 < 1`. So `t * n - estimate * d` is in
/// `0..2d`, which 64 bits hold as `d < 2^63`: wrapping arithmetic finds it, and it tells
/// which of the two it is.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// The integer part of the ratio.
    whole: u64,
    /// The rest of the ratio is `numerator / denominator`, below one.
    numerator: u64,
    denominator: u64,
    /// `floor(numerator * 2^64 / denominator)`.
    fraction: u64,
}

impl Ratio {
    /// Returns the ratio `of / to`: how many periods of `of` there are in a period of `to`.
    #[must_use]
    pub const fn new(of: Hertz, to: Hertz) -> Self {
        let denominator = to.get();
        let numerator = of.get() % denominator;
        Self {
            whole: of.get() / denominator,
            numerator,
            denominator,
            fraction: (((numerator as u128) << 64) / denominator as u128) as u64,
        }
    }

    /// Returns `floor(ticks * ratio)`, exact, saturating at `u64::MAX`.
    #[inline]
    #[must_use]
    pub const fn floor(&self, ticks: u64) -> u64 {
        let (part, _) = self.part(ticks);
        self.add_whole(ticks, part)
    }

    /// Returns `ceil(ticks * ratio)`, exact, saturating at `u64::MAX`.
    #[inline]
    #[must_use]
    pub const fn ceil(&self, ticks: u64) -> u64 {
        let (part, remainder) = self.part(ticks);
        self.add_whole(ticks, part)
            .saturating_add((remainder != 0) as u64)
    }

    /// Returns quotient and remainder of `ticks * numerator / denominator`.
    #[inline]
    const fn part(&self, ticks: u64) -> (u64, u64) {
        let estimate = ((ticks as u128 * self.fraction as u128) >> 64) as u64;
        let remainder = ticks
            .wrapping_mul(self.numerator)
            .wrapping_sub(estimate.wrapping_mul(self.denominator));
        if remainder >= self.denominator {
            (estimate + 1, remainder - self.denominator)
        } else {
            (estimate, remainder)
        }
    }

    #[inline]
    const fn add_whole(&self, ticks: u64, part: u64) -> u64 {
        if self.whole == 0 {
            part
        } else {
            ticks.saturating_mul(self.whole).saturating_add(part)
        }
    }
}
