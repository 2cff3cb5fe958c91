//! Leaf 15H: the frequency of the TSC, as a ratio to the frequency of the core crystal.

use devices::time::Hertz;

/// The frequency of a guest's TSC in the terms of CPUID leaf 15H: `crystal * numerator /
/// denominator`.
///
/// The "crystal" of a guest runs as fast as its TSC, or at the largest fraction of it that
/// leaf 15H can tell: so the ratio is exact (within 1 Hz above 4.29 GHz), and stays so in
/// software that, like Linux, computes it in 32-bit kilohertz; a ratio to a 25 MHz
/// crystal would be neither. The crystal is the input clock of the local APIC's timer
/// too, whose ticks thus are ticks of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TscRatio {
    tsc: Hertz,
    numerator: u32,
    crystal: u32,
}

impl TscRatio {
    /// Returns the ratio for a TSC of frequency `tsc`.
    #[must_use]
    pub(crate) const fn new(tsc: Hertz) -> Self {
        let hz = tsc.get();
        let numerator = hz.div_ceil(u32::MAX as u64);
        Self {
            tsc,
            // Frequencies beyond 2^64 / 2^32 times the largest crystal do not exist.
            numerator: numerator as u32,
            crystal: ((hz + numerator / 2) / numerator) as u32,
        }
    }

    /// Returns the frequency itself.
    #[must_use]
    pub(crate) const fn hz(self) -> Hertz {
        self.tsc
    }

    /// Returns the divisor, EAX.
    #[must_use]
    pub(crate) const fn denominator(self) -> u32 {
        1
    }

    /// Returns the factor, EBX.
    #[must_use]
    pub(crate) const fn numerator(self) -> u32 {
        self.numerator
    }

    /// Returns the frequency of the crystal, ECX.
    #[must_use]
    pub(crate) const fn crystal_hz(self) -> u32 {
        self.crystal
    }

    /// Returns the input clock of the local APIC's timer: the crystal. Linux, which knows it from
    /// leaf 15H, does not measure it.
    #[must_use]
    pub(crate) const fn apic_timer_hz(self) -> Hertz {
        Hertz::new(self.crystal as u64)
    }

    /// Returns the TSC's frequency in MHz, rounded, for leaf 16H; at least 1.
    pub(super) const fn rounded_mhz(self) -> u32 {
        let mhz = self.tsc.get().saturating_add(500_000) / 1_000_000;
        match mhz {
            0 => 1,
            1..=0xFFFF => mhz as u32,
            // The field has 16 bits.
            _ => 0xFFFF,
        }
    }
}
