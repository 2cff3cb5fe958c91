//! The ACPI power-management timer (ACPI 6.5, 4.8.2.1 and 4.8.3.3).

use crate::time::{Hertz, Now, Oscillator};

/// The frequency of the PM timer.
pub const FREQUENCY: Hertz = Hertz::new(3_579_545);

/// The number of bits of the PM timer: the FADT's flag TMR_VAL_EXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// TMR_VAL_EXT = 0: wraps every 4.7 s.
    Bits24,
    /// TMR_VAL_EXT = 1: wraps every 20 minutes.
    Bits32,
}

/// The free-running counter of 3.579545 MHz behind the PM timer port. It has no state but
/// time itself.
#[derive(Clone, Copy, Debug)]
pub struct PmTimer {
    oscillator: Oscillator,
    width: Width,
}

impl PmTimer {
    /// Makes a PM timer for a guest whose TSC runs at `tsc`.
    #[must_use]
    pub const fn new(width: Width, tsc: Hertz) -> Self {
        Self {
            oscillator: Oscillator::new(FREQUENCY, tsc),
            width,
        }
    }

    /// Returns the value of the timer register: what a 32-bit read of its port returns.
    #[inline]
    #[must_use]
    pub const fn read(&self, now: Now) -> u32 {
        let count = self.oscillator.cycle(now) as u32;
        match self.width {
            Width::Bits24 => count & 0x00FF_FFFF,
            Width::Bits32 => count,
        }
    }

    /// Answers a read of part of the register: of the bytes from `offset` on, as many as the caller
    /// takes of the result. Beyond the register there is zero.
    #[must_use]
    pub const fn read_at(&self, offset: u16, now: Now) -> u32 {
        match offset {
            0..4 => self.read(now) >> (8 * offset),
            _ => 0,
        }
    }

    /// Returns the clock input, for the status bit in the PM1 event block.
    pub(crate) const fn oscillator(&self) -> &Oscillator {
        &self.oscillator
    }

    /// Returns the number of the counter's most significant bit.
    pub(crate) const fn top_bit(&self) -> u32 {
        match self.width {
            Width::Bits24 => 23,
            Width::Bits32 => 31,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::{CounterTicks, TimerTicks};

    fn at(counter: u64) -> Now {
        Now {
            counter: CounterTicks(counter),
            timer: TimerTicks(0),
        }
    }

    proptest! {
        #[test]
        fn shows_its_frequency_exactly_at_any_age(
            tsc in 1_000_000..10_000_000_000u64,
            counter: u64,
        ) {
            let count = u128::from(counter) * 3_579_545 / u128::from(tsc);
            prop_assume!(count <= u128::from(u64::MAX));
            let tsc = Hertz::new(tsc);
            let narrow = PmTimer::new(Width::Bits24, tsc);
            let wide = PmTimer::new(Width::Bits32, tsc);
            prop_assert_eq!(u128::from(narrow.read(at(counter))), count % (1 << 24));
            prop_assert_eq!(u128::from(wide.read(at(counter))), count % (1 << 32));
        }
    }

    #[test]
    fn counts_3579545_in_a_second_of_guest_time() {
        let timer = PmTimer::new(Width::Bits32, Hertz::new(2_500_000_000));
        assert_eq!(timer.read(at(2_500_000_000)), 3_579_545);
        assert_eq!(timer.read(at(2_499_999_999)), 3_579_544);
    }

    #[test]
    fn parts_of_the_register_can_be_read() {
        let timer = PmTimer::new(Width::Bits32, FREQUENCY);
        let now = at(0xA1B2_C3D4);
        assert_eq!(timer.read_at(0, now), 0xA1B2_C3D4);
        assert_eq!(timer.read_at(1, now) as u8, 0xC3);
        assert_eq!(timer.read_at(2, now) as u16, 0xA1B2);
        assert_eq!(timer.read_at(4, now), 0);
        assert_eq!(PmTimer::new(Width::Bits24, FREQUENCY).read_at(3, now), 0);
    }
}
