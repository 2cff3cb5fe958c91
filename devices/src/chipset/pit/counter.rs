//! One counter of the 8254: what the bus and the gate do to a counting element.

use super::element::{Element, Format, Mode, high_half};

/// The bytes of the count that the bus accesses: the RW bits of the control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// A count on its way to the counting element.
#[derive(Clone, Copy, Debug)]
struct Load {
    length: u32,
    /// The cycle at which it is loaded.
    at: u64,
    occasion: Occasion,
}

/// The reason for loading a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// A write or a trigger in the cycle before.
    Start,
    /// The end of the period, or of its low half.
    PeriodEnd,
    /// The end of the high half of a square wave.
    HighHalfEnd,
}

/// One counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    /// The lower six bits of the control word.
    control: u8,
    gate: bool,
    element: Element,
    load: Option<Load>,
    /// The count register (CR): the length written since the control word.
    register: Option<u32>,
    /// The count register holds what the element has not loaded yet.
    null_count: bool,
    /// The low byte of a count whose high byte is still to be written.
    low_byte: Option<u8>,
    /// The next read of a count in two bytes is that of the high byte.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// Makes a counter at power-up.
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            control: 0x30,
            gate,
            element: Element::Idle { shown: 0 },
            load: None,
            register: None,
            null_count: true,
            low_byte: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// Sets the lower six bits of the control word.
    pub(super) fn program(&mut self, control: u8, cycle: u64) {
        let shown = self.count(cycle);
        *self = Self {
            control,
            element: Element::Idle { shown },
            ..Self::new(self.gate)
        };
    }

    /// Reads a byte of the count or of what is latched.
    pub(super) fn read(&mut self, cycle: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.count(cycle))
            .to_le_bytes();
        let (byte, more) = match self.access() {
            Access::Low => (low, false),
            Access::High => (high, false),
            Access::LowThenHigh if self.high_next => (high, false),
            Access::LowThenHigh => (low, true),
        };
        self.high_next = more;
        if !more {
            self.latched_count = None;
        }
        byte
    }

    /// Writes a byte of the count; whether that sets the output or starts counting.
    pub(super) fn write(&mut self, value: u8, cycle: u64) -> bool {
        self.settle(cycle);
        let raw = match (self.access(), self.low_byte) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::LowThenHigh, None) => {
                self.low_byte = Some(value);
                let stops = self.mode() == Mode::TerminalCount;
                if stops {
                    self.stop(cycle);
                }
                return stops;
            }
        };
        self.low_byte = None;
        let length = self.format().decode(raw);
        self.register = Some(length);
        self.null_count = true;
        let mode = self.mode();
        if mode.needs_trigger() || mode.is_periodic() {
            if let Some(load) = &mut self.load {
                load.length = length;
                return false;
            }
            if mode.needs_trigger() {
                return false;
            }
            match self.element {
                Element::Idle { .. } => {}
                // Loaded by the trigger that the gate gives when it rises.
                Element::Held { .. } => return false,
                Element::Counting { .. } => {
                    self.load = self.handover(length, cycle);
                    return false;
                }
            }
        }
        if mode == Mode::TerminalCount {
            self.stop(cycle);
        }
        self.load_next(length, cycle);
        true
    }

    /// Sets the gate.
    pub(super) fn set_gate(&mut self, high: bool, cycle: u64) {
        if high == self.gate {
            return;
        }
        self.settle(cycle);
        self.gate = high;
        let mode = self.mode();
        if !high {
            if mode.is_gated()
                && let Element::Counting { length, start } = self.element
            {
                let elapsed = cycle.wrapping_sub(start);
                self.element = Element::Held { length, elapsed };
            }
            // A handover at the end of the period is off; the count register has its count.
            if self
                .load
                .is_some_and(|load| load.occasion != Occasion::Start)
            {
                self.load = None;
            }
        } else if mode.needs_trigger() || mode.is_periodic() {
            if let Some(length) = self.register {
                self.load_next(length, cycle);
            }
        } else if let Element::Held { length, elapsed } = self.element {
            self.element = Element::Counting {
                length,
                start: cycle.wrapping_sub(elapsed),
            };
        }
    }

    /// Returns the level of the output.
    pub(super) fn output(&self, cycle: u64) -> bool {
        self.element_at(cycle).output(self.mode(), cycle)
    }

    /// Returns the first cycle after `cycle` at which the output rises if nothing is written and
    /// the gate stays as it is.
    pub(super) fn next_rise(&self, cycle: u64) -> Option<u64> {
        let mode = self.mode();
        let Some(load) = self.load else {
            return self.element.next_rise(mode, cycle);
        };
        let at = load.at;
        let loaded = self.loaded(load);
        if at > cycle {
            let before = self.element.next_rise(mode, cycle);
            if before.is_some_and(|rise| rise < at) {
                return before;
            }
            if !self.element.output(mode, at - 1) && loaded.output(mode, at) {
                return Some(at);
            }
        }
        loaded.next_rise(mode, cycle.max(at))
    }

    /// Latches the count, unless one is latched.
    pub(super) fn latch_count(&mut self, cycle: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(cycle));
        }
    }

    /// Latches the status byte, unless one is latched.
    pub(super) fn latch_status(&mut self, cycle: u64) {
        self.settle(cycle);
        if self.latched_status.is_none() {
            let output = u8::from(self.output(cycle)) << 7;
            let null_count = u8::from(self.null_count) << 6;
            self.latched_status = Some(output | null_count | self.control);
        }
    }

    /// Returns the count as a read shows it.
    pub(super) fn count(&self, cycle: u64) -> u16 {
        self.element_at(cycle).count(self.format(), cycle)
    }

    const fn mode(&self) -> Mode {
        Mode::from_bits(self.control >> 1)
    }

    const fn format(&self) -> Format {
        Format {
            mode: self.mode(),
            bcd: self.control & 1 != 0,
        }
    }

    const fn access(&self) -> Access {
        match self.control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        }
    }

    /// Stops counting and sets the output low: at once, by a write of the count in mode 0.
    fn stop(&mut self, cycle: u64) {
        self.element = Element::Idle {
            shown: self.count(cycle),
        };
        self.load = None;
    }

    /// Loads `length` with the next cycle.
    const fn load_next(&mut self, length: u32, cycle: u64) {
        self.load = Some(Load {
            length,
            at: cycle.saturating_add(1),
            occasion: Occasion::Start,
        });
    }

    /// Loads `length` where the periodic count that is running ends.
    const fn handover(&self, length: u32, cycle: u64) -> Option<Load> {
        match self.element.handover(self.mode(), cycle) {
            Some((at, true)) => Some(Load {
                length,
                at,
                occasion: Occasion::HighHalfEnd,
            }),
            Some((at, false)) => Some(Load {
                length,
                at,
                occasion: Occasion::PeriodEnd,
            }),
            None => None,
        }
    }

    /// Returns the element right after `load`.
    const fn loaded(&self, load: Load) -> Element {
        let length = load.length;
        if self.mode().is_gated() && !self.gate {
            return Element::Held { length, elapsed: 0 };
        }
        let ahead = match load.occasion {
            Occasion::HighHalfEnd => high_half(length as u64),
            Occasion::Start | Occasion::PeriodEnd => 0,
        };
        Element::Counting {
            length,
            start: load.at.wrapping_sub(ahead),
        }
    }

    const fn element_at(&self, cycle: u64) -> Element {
        match self.load {
            Some(load) if load.at <= cycle => self.loaded(load),
            _ => self.element,
        }
    }

    /// Makes the load that has taken place by `cycle` a thing of the past.
    fn settle(&mut self, cycle: u64) {
        if let Some(load) = self.load
            && load.at <= cycle
        {
            self.element = self.loaded(load);
            self.load = None;
            self.null_count = false;
        }
    }
}
