//! Two registers that reset the machine: system control port A and the reset control
//! register.
//!
//! Source: Intel ICH9 datasheet, 13.7.2 (PORT92) and 13.7.5 (RST_CNT). Both trigger on a bit
//! that goes from 0 to 1.

use super::bus::{Access, Context, Device};
use super::i8042::ResetPulse;

/// System control port A (0x92).
///
/// The A20 gate is open for good: what is written to its bit can be read back and does
/// nothing else.
#[derive(Clone, Copy, Debug)]
pub(super) struct SystemControlA {
    value: u8,
}

impl SystemControlA {
    /// INIT to the CPU, as it goes from 0 to 1.
    const INIT_NOW: u8 = 1 << 0;
    const A20_OPEN: u8 = 1 << 1;

    pub(super) const fn new() -> Self {
        Self {
            value: Self::A20_OPEN,
        }
    }

    pub(super) const fn read(self) -> u8 {
        self.value
    }

    pub(super) fn write(&mut self, value: u8) -> Option<ResetPulse> {
        let rising = value & !self.value;
        self.value = value & (Self::INIT_NOW | Self::A20_OPEN);
        (rising & Self::INIT_NOW != 0).then_some(ResetPulse)
    }
}

/// The reset control register (0xCF9).
#[derive(Clone, Copy, Debug)]
pub(super) struct ResetControl {
    value: u8,
}

impl ResetControl {
    /// The choice between the whole system (1) and the CPU alone (0).
    const SYSTEM_RESET: u8 = 1 << 1;
    /// The bit that resets what was chosen, as it goes from 0 to 1.
    const RESET_NOW: u8 = 1 << 2;
    /// The choice of a power cycle.
    const FULL_RESET: u8 = 1 << 3;

    pub(super) const fn new() -> Self {
        Self { value: 0 }
    }

    pub(super) const fn read(self) -> u8 {
        self.value
    }

    /// Takes a write. What was chosen to be reset makes no difference: a guest that gets as far as this
    /// wants to start over.
    pub(super) fn write(&mut self, value: u8) -> Option<ResetPulse> {
        let rising = value & !self.value;
        self.value = value & (Self::SYSTEM_RESET | Self::RESET_NOW | Self::FULL_RESET);
        (rising & Self::RESET_NOW != 0).then_some(ResetPulse)
    }
}

impl Device for SystemControlA {
    fn read(&mut self, _: Access, _: &mut Context<'_>) -> u64 {
        Self::read(*self).into()
    }

    fn write(&mut self, _: Access, value: u64, cx: &mut Context<'_>) {
        ResetPulse::reset_machine(Self::write(self, value as u8), cx);
    }

    fn reset(&mut self, _: &mut Context<'_>) {
        *self = Self::new();
    }
}

impl Device for ResetControl {
    fn read(&mut self, _: Access, _: &mut Context<'_>) -> u64 {
        Self::read(*self).into()
    }

    fn write(&mut self, _: Access, value: u64, cx: &mut Context<'_>) {
        ResetPulse::reset_machine(Self::write(self, value as u8), cx);
    }

    fn reset(&mut self, _: &mut Context<'_>) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform_map::RESET_VALUE;

    #[test]
    fn the_reset_value_of_the_fadt_resets() {
        assert_eq!(ResetControl::new().write(RESET_VALUE), Some(ResetPulse));
    }

    #[test]
    fn only_a_rising_reset_bit_resets() {
        let mut control = ResetControl::new();
        assert_eq!(control.write(0x02), None);
        assert_eq!(control.read(), 0x02);
        assert_eq!(control.write(0x06), Some(ResetPulse));
        assert_eq!(control.write(0x06), None);
        assert_eq!(control.write(0x02), None);
        assert_eq!(control.write(0x0e), Some(ResetPulse));
    }

    #[test]
    fn port_92_resets_by_bit_0_and_shows_a20() {
        let mut control = SystemControlA::new();
        assert_eq!(control.read(), 0x02);
        assert_eq!(control.write(0xfe), None);
        assert_eq!(control.read(), 0x02);
        assert_eq!(control.write(0x00), None);
        assert_eq!(control.write(0x01), Some(ResetPulse));
        assert_eq!(control.write(0x01), None);
    }
}
