//! The HPET. IA-PC HPET specification, 2.3.

use crate::{acpi, mmio};

/// General capabilities: the period in femtoseconds is in the upper half.
pub const CAPABILITIES: u64 = 0x000;
/// General configuration.
pub const CONFIGURATION: u64 = 0x010;
/// General interrupt status.
pub const STATUS: u64 = 0x020;
/// Main counter.
pub const COUNTER: u64 = 0x0f0;

/// Configuration: the counter runs.
pub const ENABLE: u64 = 1 << 0;
/// Configuration: timers 0 and 1 take the places of the PIT and the RTC.
pub const LEGACY: u64 = 1 << 1;

/// Timer: level-triggered.
pub const TIMER_LEVEL: u64 = 1 << 1;
/// Timer: interrupts on.
pub const TIMER_ENABLE: u64 = 1 << 2;
/// Timer: periodic.
pub const TIMER_PERIODIC: u64 = 1 << 3;
/// Timer: can be periodic.
pub const TIMER_CAN_BE_PERIODIC: u64 = 1 << 4;
/// Timer: the next write of the comparator sets the accumulator.
pub const TIMER_SET: u64 = 1 << 6;
/// Timer: works with 32 bits.
pub const TIMER_32BIT: u64 = 1 << 8;

/// The HPET.
#[derive(Clone, Copy, Debug)]
pub struct Hpet {
    base: u64,
}

impl Hpet {
    /// Returns the HPET that ACPI tells of.
    #[must_use]
    pub fn find() -> Option<Self> {
        acpi::hpet().map(|base| Self { base })
    }

    /// Returns the address of `register`.
    #[must_use]
    pub fn address(self, register: u64) -> u64 {
        self.base + register
    }

    /// Reads a 64-bit register.
    #[must_use]
    pub fn read(self, register: u64) -> u64 {
        // SAFETY: the HPET touches no memory, and is in the one-to-one map.
        unsafe { mmio::read64(self.base + register) }
    }

    /// Writes a 64-bit register.
    pub fn write(self, register: u64, value: u64) {
        // SAFETY: as above.
        unsafe { mmio::write64(self.base + register, value) }
    }

    /// Returns the address of timer `timer`'s configuration register.
    #[must_use]
    pub const fn timer(timer: u64) -> u64 {
        0x100 + 0x20 * timer
    }

    /// Returns the address of timer `timer`'s comparator.
    #[must_use]
    pub const fn comparator(timer: u64) -> u64 {
        0x108 + 0x20 * timer
    }

    /// Returns the counter's period in femtoseconds.
    #[must_use]
    pub fn period_fs(self) -> u64 {
        self.read(CAPABILITIES) >> 32
    }

    /// Returns the counter's frequency, rounded.
    #[must_use]
    pub fn hertz(self) -> u64 {
        let period = self.period_fs().max(1);
        (1_000_000_000_000_000 + period / 2) / period
    }

    /// Returns the main counter.
    #[must_use]
    pub fn counter(self) -> u64 {
        self.read(COUNTER)
    }

    /// Stops the counter and all timers.
    pub fn stop(self) {
        self.write(CONFIGURATION, 0);
        for timer in 0..=(self.read(CAPABILITIES) >> 8 & 0x1f) {
            self.write(Self::timer(timer), 0);
        }
        self.write(STATUS, u64::MAX);
    }
}
