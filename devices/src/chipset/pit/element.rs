//! The counting element of an 8254 counter: count and output as functions of time.

/// The modes of the 8254, named by what the output does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Mode 0: rises when the count is done.
    TerminalCount,
    /// Mode 1: low for the count, from the gate's rise on.
    OneShot,
    /// Mode 2 (and 6): low for one cycle in each count.
    RateGenerator,
    /// Mode 3 (and 7): low for half of each count.
    SquareWave,
    /// Mode 4: low for one cycle when the count is done.
    SoftwareStrobe,
    /// Mode 5: the same, counting from the gate's rise on.
    HardwareStrobe,
}

impl Mode {
    /// Makes a mode of the three mode bits of the control word.
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    /// Returns whether counting begins anew by itself at the end of the count.
    pub(super) const fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Returns whether only a rise of the gate loads the count.
    pub(super) const fn needs_trigger(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }

    /// Returns whether a low gate stops counting.
    pub(super) const fn is_gated(self) -> bool {
        !self.needs_trigger()
    }
}

/// The counting mode of the element, and whether it counts in BCD.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) mode: Mode,
    pub(super) bcd: bool,
}

impl Format {
    /// Returns how many values the 16 bits of the count take.
    const fn modulus(self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Returns the count that the register value `raw` stands for: zero is the greatest.
    pub(super) const fn decode(self, raw: u16) -> u32 {
        if raw == 0 {
            return self.modulus() as u32;
        }
        let raw = raw as u32;
        if self.bcd {
            (raw >> 12) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15)
        } else {
            raw
        }
    }

    /// Returns the register value that shows `count`.
    const fn encode(self, count: u64) -> u16 {
        let count = (count % self.modulus()) as u16;
        if self.bcd {
            (count / 1000) << 12 | (count / 100 % 10) << 8 | (count / 10 % 10) << 4 | (count % 10)
        } else {
            count
        }
    }
}

/// The counting element (CE), by what it last loaded and when.
#[derive(Clone, Copy, Debug)]
pub(super) enum Element {
    /// A state without a count loaded since it was programmed; shows the count it had.
    Idle {
        /// The register value that it shows.
        shown: u16,
    },
    /// A count-down that goes on.
    Counting {
        /// The count that was loaded, at least 1.
        length: u32,
        /// The cycle at which that was; modulo 2^64, as a count that begins with its second
        /// half was as if loaded earlier.
        start: u64,
    },
    /// A count-down stopped by its gate.
    Held {
        /// The count that was loaded, at least 1.
        length: u32,
        /// The number of cycles that it had counted.
        elapsed: u64,
    },
}

impl Element {
    /// Returns what a read of the count shows.
    pub(super) const fn count(self, format: Format, cycle: u64) -> u16 {
        let (length, elapsed) = match self {
            Self::Idle { shown } => return shown,
            Self::Counting { length, start } => (length as u64, since(start, cycle)),
            Self::Held { length, elapsed } => (length as u64, elapsed),
        };
        match format.mode {
            Mode::RateGenerator => format.encode(length - elapsed % length),
            Mode::SquareWave => {
                // By twos, from an even number, once in each half.
                let phase = elapsed % length;
                let high = high_half(length);
                let into_half = if phase < high { phase } else { phase - high };
                format.encode((length & !1).saturating_sub(2 * into_half))
            }
            _ => {
                let modulus = format.modulus();
                format.encode(length + modulus - elapsed % modulus)
            }
        }
    }

    /// Returns the level of the output.
    pub(super) const fn output(self, mode: Mode, cycle: u64) -> bool {
        let (length, elapsed) = match self {
            Self::Idle { .. } => return !matches!(mode, Mode::TerminalCount),
            // The gate sets the output high at once.
            Self::Held { .. } if mode.is_periodic() => return true,
            Self::Held { length, elapsed } => (length as u64, elapsed),
            Self::Counting { length, start } => (length as u64, since(start, cycle)),
        };
        match mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= length,
            // A length of 1 is illegal in the periodic modes: the output stays as it is.
            Mode::RateGenerator => length == 1 || elapsed % length != length - 1,
            Mode::SquareWave => elapsed % length < high_half(length),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != length,
        }
    }

    /// Returns the first cycle after `cycle` at which the output rises.
    pub(super) const fn next_rise(self, mode: Mode, cycle: u64) -> Option<u64> {
        let Self::Counting { length, start } = self else {
            return None;
        };
        let length = length as u64;
        let elapsed = since(start, cycle);
        let rise = match mode {
            Mode::TerminalCount | Mode::OneShot => length,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => length + 1,
            Mode::RateGenerator | Mode::SquareWave => {
                if length == 1 {
                    return None;
                }
                // For cycles before the start, the first one after it.
                (elapsed / length + 1) * length
            }
        };
        if rise > elapsed {
            Some(start.wrapping_add(rise))
        } else {
            None
        }
    }

    /// Returns when a new count takes over from a periodic one, and whether the low half of a
    /// square wave is next then: at the end of the period, or of the half.
    pub(super) const fn handover(self, mode: Mode, cycle: u64) -> Option<(u64, bool)> {
        let Self::Counting { length, start } = self else {
            return None;
        };
        let length = length as u64;
        let elapsed = since(start, cycle);
        let phase = elapsed % length;
        let high = high_half(length);
        let period_start = start.wrapping_add(elapsed - phase);
        match mode {
            Mode::SquareWave if phase < high && length > 1 => {
                Some((period_start.wrapping_add(high), true))
            }
            Mode::SquareWave | Mode::RateGenerator => {
                Some((period_start.wrapping_add(length), false))
            }
            _ => None,
        }
    }
}

/// Returns how many cycles of a square wave's `length` its output is high.
pub(super) const fn high_half(length: u64) -> u64 {
    length.div_ceil(2)
}

/// Cycles from `start` to `cycle`, both modulo 2^64; zero if `start` is yet to come.
const fn since(start: u64, cycle: u64) -> u64 {
    let elapsed = cycle.wrapping_sub(start);
    if elapsed > u64::MAX / 2 { 0 } else { elapsed }
}
