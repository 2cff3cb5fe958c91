//! The real-time clock and its CMOS memory (Motorola MC146818A data sheet; Intel 82371
//! data sheet, 4.2.4).
//!
//! The chip's time base is its own crystal of 32.768 kHz, and a divider chain below it:
//! seconds, the periodic interrupt and the update cycle are taps of that chain. Here the
//! chain is a number of cycles since a point in time. The time registers are brought up to
//! date when they are looked at, so an RTC without enabled interrupts costs nothing.

use super::bus::{Access, Context, Device, Outputs};
use crate::line::Line;
use crate::time::{Hertz, Lead, Now, Oscillator, TimerTicks};
use alarm::Alarm;

pub use chrono::NaiveDateTime;
pub use registers::{Format, TimeRegisters};

mod alarm;
mod registers;
#[cfg(test)]
mod tests;

/// The device's output: IRQ 8.
pub(super) const IRQ_8: usize = 0;

/// The frequency of the crystal.
pub const FREQUENCY: Hertz = Hertz::new(32_768);

/// The register that holds the century, for the FADT's field CENTURY.
pub const CENTURY: u8 = 0x32;

/// The divider chain has 15 stages: 2^15 cycles are a second.
const SECOND_SHIFT: u32 = 15;
/// An update takes 1,984 us, announced 244 us before: 73 cycles (data sheet, table 6).
const UPDATE_CYCLES: u64 = 73;
/// The first update comes half a second after the divider was let go.
const AFTER_RESET: u64 = 1 << (SECOND_SHIFT - 1);

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0A;
const B: u8 = 0x0B;
const C: u8 = 0x0C;
const D: u8 = 0x0D;

/// Register A: update in progress.
const UIP: u8 = 1 << 7;
/// Register B: updates are inhibited.
const SET: u8 = 1 << 7;
/// Register B: update-ended interrupt enable.
const UIE: u8 = 1 << 4;
/// Periodic, alarm and update-ended: flags in register C, enables in register B.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
/// Register C: an enabled interrupt is requested.
const IRQF: u8 = 1 << 7;
/// Register D: the battery is good.
const VRT: u8 = 1 << 7;

/// The RTC with 128 bytes of CMOS: ports 0x70 (index) and 0x71 (data).
///
/// IRQ 8 is a level here: asserted until register C is read.
#[derive(Clone, Debug)]
pub struct Rtc {
    oscillator: Oscillator,
    index: u8,
    memory: [u8; 128],
    /// The crystal's cycle in which the divider chain was zero; modulo 2^64.
    zero: u64,
    /// The second of the chain that the time registers show.
    shown: u64,
    /// Flags of register C.
    flags: u8,
    lead: Lead,
    /// The value of the chain up to which its events are in `flags`, on the line of the timers.
    seen: u64,
    /// The second of the chain in which the alarm goes off next.
    alarm: Option<u64>,
    deadline: Option<TimerTicks>,
}

impl Rtc {
    /// Makes an RTC that shows `time` at `now`, in BCD and 24 hours, for a guest whose TSC runs at
    /// `tsc`. A year beyond 9999 shows as 1 January 2000.
    #[must_use]
    pub fn new(time: NaiveDateTime, tsc: Hertz, now: Now) -> Self {
        let oscillator = Oscillator::new(FREQUENCY, tsc);
        let mut rtc = Self {
            oscillator,
            index: D,
            memory: [0; 128],
            zero: oscillator.cycle(now),
            shown: 0,
            flags: 0,
            lead: now.lead(),
            seen: 0,
            alarm: None,
            deadline: None,
        };
        // The divider runs from 32.768 kHz, and has the taps of the BIOS: 1024 Hz.
        rtc.set(A, 0x26);
        rtc.set(B, 0x02);
        rtc.set(D, VRT);
        rtc.set_time(
            TimeRegisters::encode(time, rtc.format()).unwrap_or(TimeRegisters {
                second: 0,
                minute: 0,
                hour: 0,
                weekday: 7,
                day: 1,
                month: 1,
                year: 0,
                century: 0x20,
            }),
        );
        rtc
    }

    /// Sets a byte of the CMOS memory as firmware would leave it. The registers of the RTC
    /// itself (up to 0x0D) are not set by this, nor is what lies beyond the memory.
    pub fn store(&mut self, index: u8, value: u8) {
        if index > D {
            self.set(index, value);
        }
    }

    /// Stores how large the machine is, where firmware that knows QEMU's machines looks for it: so
    /// many bytes of RAM below 4 GiB and from there on, and so many processors. What is more than a
    /// place can hold, it shows as the most that it can.
    pub fn store_machine(&mut self, low_ram: u64, high_ram: u64, processors: u16) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        /// The unit of the newer places.
        const BLOCK: u64 = 64 * KIB;
        let conventional = (low_ram / KIB).min(640);
        let extended = low_ram.saturating_sub(MIB) / KIB;
        let above_16_mib = low_ram.saturating_sub(16 * MIB) / BLOCK;
        for (index, length, value) in [
            (0x15, 2, conventional),
            // From 1 MiB on, in KiB.
            (0x17, 2, extended),
            (0x30, 2, extended),
            // From 16 MiB on.
            (0x34, 2, above_16_mib),
            // From 4 GiB on.
            (0x5b, 3, high_ram / BLOCK),
            // One less than there are.
            (0x5f, 1, u64::from(processors.saturating_sub(1))),
        ] {
            let most = (1 << (8 * length)) - 1;
            let bytes = value.min(most).to_le_bytes();
            for (index, byte) in (index..).zip(bytes.into_iter().take(length)) {
                self.store(index, byte);
            }
        }
    }

    /// Reads the port 0x70 + `offset` (modulo 2). The index is write-only.
    pub fn read(&mut self, offset: u16, now: Now, irq8: &mut impl Line) -> u8 {
        if offset & 1 == 0 {
            return 0xFF;
        }
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                self.update_time(now);
                self.get(self.index)
            }
            A if self.is_updating(now) => self.get(A) | UIP,
            C => self.acknowledge(now, irq8),
            index => self.get(index),
        }
    }

    /// Writes the port 0x70 + `offset` (modulo 2). Bit 7 of the index masks NMIs on a PC;
    /// there are none to mask.
    pub fn write(&mut self, offset: u16, value: u8, now: Now, irq8: &mut impl Line) {
        if offset & 1 == 0 {
            self.index = value & 0x7F;
            return;
        }
        if self.index > D && self.index != CENTURY {
            self.set(self.index, value);
            return;
        }
        self.catch_up(now);
        self.update_time(now);
        match self.index {
            A => self.write_a(value, now),
            B => self.write_b(value, now),
            C | D => {}
            index => self.set(index, value),
        }
        // Whatever was written, events are counted from here.
        self.lead = now.lead();
        self.seen = self.chain(now);
        self.plan_alarm();
        irq8.set_level(self.irq());
        self.plan();
    }

    /// Puts the RTC into the state after a reset: no interrupt is enabled or requested (data
    /// sheet, "RESET"). Time and memory have their battery. IRQ 8 is to be driven low.
    pub fn reset(&mut self, now: Now) {
        /// Register B: square-wave enable, which is cleared like the interrupts.
        const SQWE: u8 = 1 << 3;
        self.catch_up(now);
        self.flags = 0;
        self.set(B, self.get(B) & !(INTERRUPTS | SQWE));
        self.plan();
    }

    /// Lets `ticks` of the TSC pass at `now` for the RTC alone, as for one that its battery has kept going while
    /// the machine was off. What would have interrupted the guest meanwhile does so once.
    pub fn run_on(&mut self, ticks: u64, now: Now, irq8: &mut impl Line) {
        if self.is_running() {
            self.zero = self.zero.wrapping_sub(self.oscillator.cycles_in(ticks));
        }
        self.interrupt_if_due(now, irq8);
    }

    /// Returns when IRQ 8 is next to be asserted.
    #[inline]
    #[must_use]
    pub const fn next_deadline(&self) -> Option<TimerTicks> {
        self.deadline
    }

    /// Asserts `irq8` if an interrupt is due.
    pub fn expire(&mut self, now: Now, irq8: &mut impl Line) {
        if self.deadline.is_none_or(|deadline| now.timer < deadline) {
            return;
        }
        self.interrupt_if_due(now, irq8);
    }

    /// Asserts `irq8` if what has happened since the last time interrupts, and plans on.
    fn interrupt_if_due(&mut self, now: Now, irq8: &mut impl Line) {
        self.catch_up(now);
        irq8.set_level(self.irq());
        self.plan();
    }

    fn get(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn set(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.memory.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn format(&self) -> Format {
        Format::of(self.get(B))
    }

    /// Returns whether the divider chain runs: it is fed by 32.768 kHz, and not held in reset.
    fn is_running(&self) -> bool {
        self.get(A) >> 4 & 7 == 2
    }

    /// Returns whether the time goes on.
    fn is_ticking(&self) -> bool {
        self.is_running() && self.get(B) & SET == 0
    }

    /// Cycles of the divider chain, as the guest's counters have it.
    fn chain(&self, now: Now) -> u64 {
        self.oscillator.cycle(now).wrapping_sub(self.zero)
    }

    /// Returns the tap of the chain for the periodic interrupt, as the number of its stage (data
    /// sheet, table 5).
    fn periodic_shift(&self) -> Option<u32> {
        match self.get(A) & 0x0F {
            0 => None,
            1 => Some(7),
            2 => Some(8),
            rate => Some(u32::from(rate) - 1),
        }
    }

    fn is_updating(&self, now: Now) -> bool {
        let into_second = self.chain(now) & ((1 << SECOND_SHIFT) - 1);
        self.is_ticking() && into_second >= (1 << SECOND_SHIFT) - UPDATE_CYCLES
    }

    fn time(&self) -> TimeRegisters {
        TimeRegisters {
            second: self.get(SECONDS),
            minute: self.get(MINUTES),
            hour: self.get(HOURS),
            weekday: self.get(WEEKDAY),
            day: self.get(DAY),
            month: self.get(MONTH),
            year: self.get(YEAR),
            century: self.get(CENTURY),
        }
    }

    fn set_time(&mut self, time: TimeRegisters) {
        self.set(SECONDS, time.second);
        self.set(MINUTES, time.minute);
        self.set(HOURS, time.hour);
        self.set(WEEKDAY, time.weekday);
        self.set(DAY, time.day);
        self.set(MONTH, time.month);
        self.set(YEAR, time.year);
        self.set(CENTURY, time.century);
    }

    /// Brings the time registers up to date. What shows no time of day stays as it is until the
    /// guest has set one.
    fn update_time(&mut self, now: Now) {
        let second = self.chain(now) >> SECOND_SHIFT;
        if !self.is_ticking() || second == self.shown {
            return;
        }
        let passed = second.wrapping_sub(self.shown);
        if let Some(time) = self.time().advanced(passed, self.format()) {
            self.set_time(time);
        }
        self.shown = second;
    }

    fn write_a(&mut self, value: u8, now: Now) {
        let was_running = self.is_running();
        self.set(A, value & !UIP);
        if self.is_running() && !was_running {
            self.zero = self.oscillator.cycle(now).wrapping_sub(AFTER_RESET);
            self.shown = 0;
        }
    }

    fn write_b(&mut self, value: u8, now: Now) {
        let was_set = self.get(B) & SET != 0;
        let is_set = value & SET != 0;
        // SET going high clears UIE (data sheet, "register B").
        let value = if is_set && !was_set {
            value & !UIE
        } else {
            value
        };
        self.set(B, value);
        if was_set && !is_set {
            self.shown = self.chain(now) >> SECOND_SHIFT;
        }
    }

    /// Reads register C, which clears it.
    fn acknowledge(&mut self, now: Now, irq8: &mut impl Line) -> u8 {
        self.catch_up(now);
        let irqf = if self.irq() { IRQF } else { 0 };
        let value = self.flags | irqf;
        self.flags = 0;
        irq8.set_level(false);
        self.plan();
        value
    }

    fn irq(&self) -> bool {
        self.flags & self.get(B) & INTERRUPTS != 0
    }

    /// Sets the flags of what has happened since the last time.
    fn catch_up(&mut self, now: Now) {
        if !self.is_running() {
            return;
        }
        let chain = self
            .oscillator
            .timer_cycle(now, self.lead)
            .wrapping_sub(self.zero);
        if chain <= self.seen {
            return;
        }
        if let Some(shift) = self.periodic_shift()
            && chain >> shift != self.seen >> shift
        {
            self.flags |= PERIODIC;
        }
        let second = chain >> SECOND_SHIFT;
        let update = second != self.seen >> SECOND_SHIFT;
        self.seen = chain;
        if update && self.is_ticking() {
            self.flags |= UPDATE;
            if self.alarm.is_some_and(|alarm| alarm <= second) {
                self.flags |= ALARM;
                self.plan_alarm();
            }
        }
    }

    /// Finds the next alarm after what has been seen.
    fn plan_alarm(&mut self) {
        self.alarm = self.next_alarm();
    }

    fn next_alarm(&self) -> Option<u64> {
        const DAY: u64 = 86_400;
        let format = self.format();
        let shown = u64::from(self.time().second_of_day(format)?);
        let second = self.seen >> SECOND_SHIFT;
        // Modulo a day; the registers may be of a later second than what the timers saw.
        let ahead = (second % DAY + DAY - self.shown % DAY) % DAY;
        let present = ((shown + ahead) % DAY) as u32;
        let alarm = Alarm::new(
            self.get(SECONDS_ALARM),
            self.get(MINUTES_ALARM),
            self.get(HOURS_ALARM),
            format,
        );
        Some(second + u64::from(alarm.after(present)?))
    }

    fn plan(&mut self) {
        self.deadline = self
            .next_interrupt()
            .map(|chain| {
                self.oscillator
                    .deadline(self.zero.wrapping_add(chain), self.lead)
            })
            .filter(|deadline| deadline.0 < u64::MAX);
    }

    /// Returns how far the chain has come when IRQ 8 is next asserted; `None` while it is.
    fn next_interrupt(&self) -> Option<u64> {
        if self.irq() || !self.is_running() {
            return None;
        }
        let enabled = self.get(B);
        let after = |shift: u32| ((self.seen >> shift) + 1) << shift;
        let periodic = self
            .periodic_shift()
            .filter(|_| enabled & PERIODIC != 0)
            .map(after);
        let ticking = self.is_ticking();
        let update = (ticking && enabled & UPDATE != 0).then(|| after(SECOND_SHIFT));
        let alarm = self
            .alarm
            .filter(|_| ticking && enabled & ALARM != 0)
            .map(|second| second << SECOND_SHIFT);
        [periodic, update, alarm].into_iter().flatten().min()
    }
}

impl Device for Rtc {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let now = cx.now;
        Self::read(self, access.offset16(), now, &mut cx.output(IRQ_8)).into()
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let now = cx.now;
        let mut irq8 = cx.output(IRQ_8);
        Self::write(self, access.offset16(), value as u8, now, &mut irq8);
    }

    fn next_deadline(&self, _: &Outputs<'_>) -> Option<TimerTicks> {
        self.deadline
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        Self::expire(self, now, &mut cx.output(IRQ_8));
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        Self::reset(self, cx.now);
        cx.set_output(IRQ_8, false);
    }
}
