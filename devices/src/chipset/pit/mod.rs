//! The 8254 programmable interval timer of a PC (Intel 8254 datasheet, order number
//! 231164).
//!
//! Nothing steps: each counter keeps the input clock cycle at which its present count was
//! loaded, and output and count follow from the time since. Only the rising edges of
//! counter 0's output, which request IRQ 0, need a wake-up.

use crate::line::Line;
use crate::time::{Hertz, Lead, Now, Oscillator, TimerTicks};
use counter::Counter;

mod counter;
mod element;
#[cfg(test)]
mod tests;

/// The input clock of the counters.
pub const FREQUENCY: Hertz = Hertz::new(1_193_182);

/// The 8254: ports 0x40 to 0x43, as the PC wires it.
///
/// Counter 0's output is IRQ 0 and counter 2's drives the speaker, its gate being a bit of
/// the [speaker port](super::speaker_port); the gates of counters 0 and 1 are tied high.
/// The registers are 8 bits wide: a wider access is to be split into accesses to
/// consecutive ports, as the ISA bus does.
///
/// At power-up nothing counts. Firmware would have left counter 0 at 18.2 Hz; a guest that
/// starts without firmware finds it silent.
#[derive(Clone, Debug)]
pub struct Pit {
    oscillator: Oscillator,
    counters: [Counter; 3],
    irq0: Irq0,
}

/// The rising edges of counter 0's output, on the timer line.
#[derive(Clone, Copy, Debug)]
struct Irq0 {
    lead: Lead,
    /// The cycle up to which edges have been delivered.
    seen: u64,
    /// The cycle of the next edge, and when that is.
    next: Option<(u64, TimerTicks)>,
}

impl Pit {
    /// Returns the 8254 at power-up, for a guest whose TSC runs at `tsc`.
    #[must_use]
    pub const fn new(tsc: Hertz) -> Self {
        Self::with_clock(Oscillator::new(FREQUENCY, tsc))
    }

    const fn with_clock(oscillator: Oscillator) -> Self {
        Self {
            oscillator,
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            irq0: Irq0 {
                lead: Lead::ZERO,
                seen: 0,
                next: None,
            },
        }
    }

    /// Puts the 8254 into the state after power-up. IRQ 0 is to be driven low.
    pub const fn reset(&mut self) {
        let oscillator = self.oscillator;
        *self = Self::with_clock(oscillator);
    }

    /// Reads the port 0x40 + `offset` (modulo 4).
    pub fn read(&mut self, offset: u16, now: Now) -> u8 {
        let cycle = self.oscillator.cycle(now);
        match self.counters.get_mut(usize::from(offset & 3)) {
            Some(counter) => counter.read(cycle),
            // Nothing drives the bus when the control word is read.
            None => 0xFF,
        }
    }

    /// Writes the port 0x40 + `offset` (modulo 4). `irq0` is counter 0's output.
    pub fn write(&mut self, offset: u16, value: u8, now: Now, irq0: &mut impl Line) {
        self.expire(now, irq0);
        let cycle = self.oscillator.cycle(now);
        let restarted = match offset & 3 {
            3 if value >> 6 == 3 => {
                self.read_back(value, cycle);
                false
            }
            3 => self.write_control(value, cycle),
            n => {
                let starts = self.counters[usize::from(n)].write(value, cycle);
                starts && n == 0
            }
        };
        if restarted {
            irq0.set_level(self.counters[0].output(cycle));
            self.irq0.lead = now.lead();
            self.irq0.seen = cycle;
        }
        self.plan();
    }

    /// Sets the gate of counter 2.
    pub fn set_gate2(&mut self, high: bool, now: Now) {
        let cycle = self.oscillator.cycle(now);
        self.counters[2].set_gate(high, cycle);
    }

    /// Returns the output of counter 2.
    #[must_use]
    pub fn output2(&self, now: Now) -> bool {
        self.counters[2].output(self.oscillator.cycle(now))
    }

    /// Returns when IRQ 0 next rises.
    #[inline]
    #[must_use]
    pub const fn next_deadline(&self) -> Option<TimerTicks> {
        match self.irq0.next {
            Some((_, deadline)) => Some(deadline),
            None => None,
        }
    }

    /// Gives `irq0` the rising edge that is due, if any; several that are due are one, as
    /// they are for an interrupt controller that had no time to see them.
    pub fn expire(&mut self, now: Now, irq0: &mut impl Line) {
        let Some((edge, deadline)) = self.irq0.next else {
            return;
        };
        if now.timer < deadline {
            return;
        }
        irq0.set_level(false);
        irq0.set_level(true);
        self.irq0.seen = self.oscillator.timer_cycle(now, self.irq0.lead).max(edge);
        self.plan();
    }

    /// Returns the input clock cycle of the present moment, for what else in a PC counts them.
    pub(crate) const fn cycle(&self, now: Now) -> u64 {
        self.oscillator.cycle(now)
    }

    fn plan(&mut self) {
        self.irq0.next = self.counters[0]
            .next_rise(self.irq0.seen)
            .map(|cycle| (cycle, self.oscillator.deadline(cycle, self.irq0.lead)));
    }

    /// Takes a control word for one counter; whether that restarts counter 0.
    fn write_control(&mut self, value: u8, cycle: u64) -> bool {
        let select = usize::from(value >> 6);
        let counter = &mut self.counters[select];
        if value & 0x30 == 0 {
            counter.latch_count(cycle);
            return false;
        }
        counter.program(value & 0x3F, cycle);
        select == 0
    }

    fn read_back(&mut self, value: u8, cycle: u64) {
        for (n, counter) in self.counters.iter_mut().enumerate() {
            if value & (2 << n) == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(cycle);
            }
            if value & 0x10 == 0 {
                counter.latch_status(cycle);
            }
        }
    }
}
