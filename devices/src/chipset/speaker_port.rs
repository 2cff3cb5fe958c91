//! The system control port B, 0x61: gate and output of the PIT's counter 2, the speaker,
//! and the refresh toggle (82371 datasheet, 4.2.5: "NMI status and control").

use super::bus::{Access, Context, Device, Outputs};
use super::pit::Pit;
use crate::time::{Hertz, Now, TimerTicks};

/// Bits that software can write: counter 2's gate, speaker data, and the enables of two
/// sources of NMI that do not exist here.
const WRITABLE: u8 = 0x0F;
const GATE_2: u8 = 1 << 0;
const REFRESH: u8 = 1 << 4;
const OUTPUT_2: u8 = 1 << 5;

/// Cycles of the PIT from one refresh of the memory to the next: what a PC's firmware
/// programs counter 1 to, 15.1 us.
const REFRESH_CYCLES: u64 = 18;

/// Port 0x61.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpeakerPort {
    control: u8,
}

impl SpeakerPort {
    /// Returns the port at power-up: gate closed, speaker off.
    #[must_use]
    pub const fn new() -> Self {
        Self { control: 0 }
    }

    /// Reads the port.
    #[must_use]
    pub fn read(&self, pit: &Pit, now: Now) -> u8 {
        let mut value = self.control;
        if (pit.cycle(now) / REFRESH_CYCLES) & 1 != 0 {
            value |= REFRESH;
        }
        if pit.output2(now) {
            value |= OUTPUT_2;
        }
        value
    }

    /// Writes the port, which sets the gate of the PIT's counter 2.
    pub fn write(&mut self, value: u8, pit: &mut Pit, now: Now) {
        self.control = value & WRITABLE;
        pit.set_gate2(value & GATE_2 != 0, now);
    }
}

/// The PIT on the bus, with the port that gates its counter 2.
#[derive(Clone, Debug)]
pub struct PitAndSpeaker {
    pit: Pit,
    speaker: SpeakerPort,
}

impl PitAndSpeaker {
    /// The region of the PIT's ports; the other is the speaker port.
    const PIT: usize = 0;
    /// The output: counter 0's.
    const IRQ_0: usize = 0;

    /// Makes both as they are after power-up, for a guest whose TSC runs at `tsc`.
    #[must_use]
    pub const fn new(tsc: Hertz) -> Self {
        Self {
            pit: Pit::new(tsc),
            speaker: SpeakerPort::new(),
        }
    }
}

#[cfg(test)]
impl PitAndSpeaker {
    /// Returns when the PIT's output next rises, heard or not.
    pub(super) const fn next_edge(&self) -> Option<TimerTicks> {
        self.pit.next_deadline()
    }
}

impl Device for PitAndSpeaker {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let value = match access.region {
            Self::PIT => self.pit.read(access.offset16(), cx.now),
            _ => self.speaker.read(&self.pit, cx.now),
        };
        value.into()
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let now = cx.now;
        match access.region {
            Self::PIT => {
                let mut irq0 = cx.output(Self::IRQ_0);
                self.pit
                    .write(access.offset16(), value as u8, now, &mut irq0);
            }
            _ => self.speaker.write(value as u8, &mut self.pit, now),
        }
    }

    fn next_deadline(&self, outputs: &Outputs<'_>) -> Option<TimerTicks> {
        self.pit
            .next_deadline()
            .filter(|_| outputs.hear_edge(Self::IRQ_0))
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        self.pit.expire(now, &mut cx.output(Self::IRQ_0));
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        self.pit.reset();
        self.speaker = SpeakerPort::new();
        cx.set_output(Self::IRQ_0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pit::FREQUENCY;
    use super::*;
    use crate::time::CounterTicks;

    /// A guest whose TSC is the PIT's clock: a tick is a cycle.
    fn at(cycle: u64) -> Now {
        Now {
            counter: CounterTicks(cycle),
            timer: TimerTicks(cycle),
        }
    }

    #[test]
    fn linux_calibrates_the_tsc_by_counter_2() {
        let (mut port, mut pit) = (SpeakerPort::new(), Pit::new(FREQUENCY));
        let no_irq = &mut |_: bool| {};
        // pit_calibrate_tsc(): gate up, speaker off, mode 0, 10 ms, poll the output.
        let value = (port.read(&pit, at(100)) & !0x02) | 0x01;
        port.write(value, &mut pit, at(100));
        pit.write(3, 0xB0, at(110), no_irq);
        pit.write(2, (11_932 & 0xFF) as u8, at(120), no_irq);
        pit.write(2, (11_932 >> 8) as u8, at(130), no_irq);
        let done = 130 + 1 + 11_932;
        assert_eq!(port.read(&pit, at(done - 1)) & OUTPUT_2, 0);
        assert_eq!(port.read(&pit, at(done)) & OUTPUT_2, OUTPUT_2);
    }

    #[test]
    fn a_closed_gate_stops_counter_2() {
        let (mut port, mut pit) = (SpeakerPort::new(), Pit::new(FREQUENCY));
        let no_irq = &mut |_: bool| {};
        port.write(1, &mut pit, at(0));
        pit.write(3, 0x90, at(0), no_irq);
        pit.write(2, 100, at(0), no_irq);
        port.write(0, &mut pit, at(51));
        assert_eq!(port.read(&pit, at(1_000)) & OUTPUT_2, 0);
        port.write(1, &mut pit, at(2_000));
        assert_eq!(port.read(&pit, at(2_049)) & OUTPUT_2, 0);
        assert_eq!(port.read(&pit, at(2_050)) & OUTPUT_2, OUTPUT_2);
    }

    #[test]
    fn the_refresh_bit_toggles_every_15_us() {
        let (port, pit) = (SpeakerPort::new(), Pit::new(FREQUENCY));
        let toggles = (1..=FREQUENCY.get())
            .filter(|&cycle| {
                (port.read(&pit, at(cycle)) ^ port.read(&pit, at(cycle - 1))) & REFRESH != 0
            })
            .count();
        assert_eq!(toggles, 66_287);
    }

    #[test]
    fn only_the_lower_four_bits_are_writable() {
        let (mut port, mut pit) = (SpeakerPort::new(), Pit::new(FREQUENCY));
        port.write(0xFF, &mut pit, at(0));
        assert_eq!(port.read(&pit, at(0)) & !(REFRESH | OUTPUT_2), 0x0F);
    }
}
