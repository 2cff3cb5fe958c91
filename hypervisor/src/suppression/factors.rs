//! How strongly a target is suppressed.

use devices::clock::{Rate, Rates};

/// A factor of suppression: 1 (none) to 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Factor(Rate);

/// A number that is no [`Factor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FactorOutOfRange;

impl core::fmt::Display for FactorOutOfRange {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a factor is from 1 to 65535")
    }
}

impl core::error::Error for FactorOutOfRange {}

impl Factor {
    /// The factor that the paper's experiment uses.
    pub(crate) const DEFAULT: Self = match Self::new(1000) {
        Ok(factor) => factor,
        Err(_) => unreachable!(),
    };

    /// Returns the factor `number`.
    ///
    /// # Errors
    /// If it is not from 1 to 65,535.
    pub(crate) const fn new(number: u32) -> Result<Self, FactorOutOfRange> {
        match Rate::times(number) {
            Some(rate) => Ok(Self(rate)),
            None => Err(FactorOutOfRange),
        }
    }

    /// Returns the number.
    #[must_use]
    pub(crate) const fn get(self) -> u32 {
        (self.0.bits() / Rate::ONE.bits()) as u32
    }
}

/// The two knobs of suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Factors {
    /// The divisor of the intervals of timer interrupts.
    pub interval: Factor,
    /// The multiplier of the progress of readable time.
    pub clock: Factor,
}

impl Factors {
    /// Returns the same factor for both.
    #[must_use]
    pub(crate) const fn both(factor: Factor) -> Self {
        Self {
            interval: factor,
            clock: factor,
        }
    }

    /// Returns the rates of the virtual clock while a target with these factors runs.
    #[must_use]
    pub(crate) const fn rates(self) -> Rates {
        Rates {
            counter: self.clock.0,
            timer: self.interval.0,
        }
    }
}
