//! The PM1a event and control blocks of ACPI's fixed hardware (ACPI 6.5, 4.8.3): the status
//! of the PM timer, the power button, and power-off.
//!
//! The platform is always in ACPI mode (the FADT's SMI_CMD is zero), so SCI_EN is set from
//! the start.

use bitflags::bitflags;

use super::pm_timer::PmTimer;
use crate::line::Line;
use crate::time::{Lead, Now, TimerTicks};

bitflags! {
    /// Events of the PM1 status register; its bits are also those of the enable register,
    /// where the event has one (ACPI 6.5, tables 4.11 and 4.12).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Events: u16 {
        /// TMR: the most significant bit of the PM timer changed.
        const TIMER = 1 << 0;
        /// GBL: the firmware wants the OS. Nothing sets it here.
        const GLOBAL_LOCK = 1 << 5;
        /// PWRBTN: the power button was pressed.
        const POWER_BUTTON = 1 << 8;
        /// SLPBTN: the sleep button was pressed. There is none.
        const SLEEP_BUTTON = 1 << 9;
        /// RTC: the alarm of the RTC. Not wired: the FADT says so by FIX_RTC.
        const RTC = 1 << 10;
    }
}

/// Bits of the PM1 control register (ACPI 6.5, table 4.13).
mod control {
    /// The interrupt of fixed events is an SCI.
    pub(super) const SCI_EN: u16 = 1 << 0;
    /// The bus-master reload bit, kept as written.
    pub(super) const BM_RLD: u16 = 1 << 1;
    /// The lowest bit of SLP_TYP, which has three.
    pub(super) const SLP_TYP_SHIFT: u32 = 10;
    /// SLP_TYP.
    pub(super) const SLP_TYP: u16 = 0b111 << SLP_TYP_SHIFT;
    /// The bit that enters the state of SLP_TYP; reads as zero.
    pub(super) const SLP_EN: u16 = 1 << 13;
}

/// The guest asked to be switched off, by entering S5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct PowerOff;

/// The PM1a event block (4 bytes: status, enable) and control block (2 bytes).
#[derive(Clone, Debug)]
pub struct Pm1 {
    timer: PmTimer,
    status: Events,
    enable: Events,
    control: u16,
    /// SLP_TYP of S5, as the DSDT's `\_S5` has it.
    s5: u8,
    lead: Lead,
    /// The number of changes of the timer's top bit when TMR_STS was last cleared.
    seen: u64,
}

impl Pm1 {
    /// Returns the blocks at power-up, beside the PM timer `timer`, for a DSDT whose `\_S5` names
    /// the sleep type `s5` (0 to 7).
    #[must_use]
    pub const fn new(timer: PmTimer, s5: u8, now: Now) -> Self {
        Self {
            timer,
            status: Events::empty(),
            enable: Events::empty(),
            control: control::SCI_EN,
            s5,
            lead: now.lead(),
            seen: timer.oscillator().cycle(now) >> timer.top_bit(),
        }
    }

    /// Puts the blocks into the state after power-up. The SCI is to be driven low.
    pub const fn reset(&mut self, now: Now) {
        *self = Self::new(self.timer, self.s5, now);
    }

    /// Reads the event block: the bytes from `offset` (0 to 3) on, as many as the caller
    /// takes of the result.
    #[must_use]
    pub fn read_event(&self, offset: u16, now: Now) -> u32 {
        let block = u32::from(self.status_at(now).bits()) | u32::from(self.enable.bits()) << 16;
        block.checked_shr(8 * u32::from(offset)).unwrap_or(0)
    }

    /// Writes `size` bytes (1, 2 or 4) of the event block at `offset`. Ones clear status
    /// bits; what lies beyond the block is ignored.
    pub fn write_event(
        &mut self,
        offset: u16,
        size: u8,
        value: u32,
        now: Now,
        sci: &mut impl Line,
    ) {
        let (value, lanes) = place(offset, size, value);
        self.catch_up(now);
        self.status -= Events::from_bits_truncate(value as u16);
        let enable_lanes = (lanes >> 16) as u16;
        self.enable = Events::from_bits_truncate(
            self.enable.bits() & !enable_lanes | (value >> 16) as u16 & enable_lanes,
        );
        self.lead = now.lead();
        self.seen = self.changes(now);
        sci.set_level(self.sci());
    }

    /// Reads the control block: the bytes from `offset` (0 or 1) on.
    #[must_use]
    pub fn read_control(&self, offset: u16) -> u32 {
        u32::from(self.control)
            .checked_shr(8 * u32::from(offset))
            .unwrap_or(0)
    }

    /// Writes `size` bytes (1, 2 or 4) of the control block at `offset`; what lies beyond it
    /// is ignored. To enter a sleep state other than S5 does nothing: there is none.
    #[must_use]
    pub fn write_control(
        &mut self,
        offset: u16,
        size: u8,
        value: u32,
        sci: &mut impl Line,
    ) -> Option<PowerOff> {
        let (value, lanes) = place(offset, size, value);
        let (value, lanes) = (value as u16, lanes as u16);
        let kept = control::SCI_EN | control::BM_RLD | control::SLP_TYP;
        self.control = self.control & !lanes | value & lanes & kept;
        sci.set_level(self.sci());
        let sleep_type = (self.control & control::SLP_TYP) >> control::SLP_TYP_SHIFT;
        let enter = value & lanes & control::SLP_EN != 0;
        (enter && sleep_type == u16::from(self.s5)).then_some(PowerOff)
    }

    /// Presses the power button: an orderly shutdown, if the guest listens.
    pub fn press_power_button(&mut self, sci: &mut impl Line) {
        self.status |= Events::POWER_BUTTON;
        sci.set_level(self.sci());
    }

    /// Returns when the timer next raises the SCI, if it is enabled to.
    #[must_use]
    pub fn next_deadline(&self) -> Option<TimerTicks> {
        if self.enable.contains(Events::TIMER) && !self.sci() && self.control & control::SCI_EN != 0
        {
            let change = (self.seen + 1) << self.timer.top_bit();
            Some(self.timer.oscillator().deadline(change, self.lead))
        } else {
            None
        }
    }

    /// Raises the SCI if the timer's status has come to be due.
    pub fn expire(&mut self, now: Now, sci: &mut impl Line) {
        self.catch_up(now);
        sci.set_level(self.sci());
    }

    /// Returns how often the top bit has changed, on the line of the timers.
    fn changes(&self, now: Now) -> u64 {
        self.timer.oscillator().timer_cycle(now, self.lead) >> self.timer.top_bit()
    }

    fn status_at(&self, now: Now) -> Events {
        if self.changes(now) > self.seen {
            self.status | Events::TIMER
        } else {
            self.status
        }
    }

    fn catch_up(&mut self, now: Now) {
        self.status = self.status_at(now);
        self.seen = self.changes(now);
    }

    fn sci(&self) -> bool {
        self.control & control::SCI_EN != 0 && self.status.intersects(self.enable)
    }
}

/// Moves `size` bytes of `value` to byte `offset` of a 4-byte block; which of its bits
/// they cover.
const fn place(offset: u16, size: u8, value: u32) -> (u32, u32) {
    let lanes = match size {
        1 => 0xFF,
        2 => 0xFFFF,
        _ => 0xFFFF_FFFF,
    };
    if offset >= 4 {
        return (0, 0);
    }
    let shift = 8 * offset as u32;
    ((value & lanes) << shift, lanes << shift)
}

#[cfg(test)]
mod tests {
    use super::super::pm_timer::{FREQUENCY, Width};
    use super::*;
    use crate::time::CounterTicks;

    /// A guest whose TSC is the PM timer's clock: a tick is a count.
    fn at(count: u64) -> Now {
        Now {
            counter: CounterTicks(count),
            timer: TimerTicks(count),
        }
    }

    fn pm1(width: Width) -> Pm1 {
        Pm1::new(PmTimer::new(width, FREQUENCY), 5, at(0))
    }

    fn no_line(_: bool) {}

    #[test]
    fn timer_status_sets_each_time_the_top_bit_changes() {
        for (width, half) in [(Width::Bits24, 1 << 23), (Width::Bits32, 1u64 << 31)] {
            let mut pm1 = pm1(width);
            for change in 1..=5u64 {
                assert_eq!(pm1.read_event(0, at(change * half - 1)) & 1, 0);
                assert_eq!(pm1.read_event(0, at(change * half)) & 1, 1);
                // It stays until a one is written to it.
                pm1.write_event(0, 2, 0xFFFE, at(change * half + 1), &mut no_line);
                assert_eq!(pm1.read_event(0, at(change * half + 2)) & 1, 1);
                pm1.write_event(0, 2, 1, at(change * half + 3), &mut no_line);
                assert_eq!(pm1.read_event(0, at(change * half + 4)) & 1, 0);
            }
        }
    }

    #[test]
    fn an_enabled_timer_raises_the_sci_until_its_status_is_cleared() {
        let mut pm1 = pm1(Width::Bits24);
        let mut sci = false;
        assert_eq!(pm1.next_deadline(), None);
        pm1.write_event(2, 2, 1, at(10), &mut |level| sci = level);
        assert!(!sci);
        let due = pm1.next_deadline().unwrap();
        assert_eq!(due, TimerTicks(1 << 23));
        pm1.expire(at(due.0), &mut |level| sci = level);
        assert!(sci);
        // Nothing more can happen to the line until the guest acts.
        assert_eq!(pm1.next_deadline(), None);
        // Late: the next change has gone by meanwhile, and counts as the same event.
        pm1.write_event(0, 2, 1, at((2 << 23) + 7), &mut |level| sci = level);
        assert!(!sci);
        assert_eq!(pm1.next_deadline(), Some(TimerTicks(3 << 23)));
    }

    #[test]
    fn without_sci_en_there_is_no_sci() {
        let mut pm1 = pm1(Width::Bits24);
        let mut sci = false;
        assert_eq!(pm1.write_control(0, 2, 0, &mut no_line), None);
        pm1.write_event(2, 1, 1, at(0), &mut no_line);
        assert_eq!(pm1.next_deadline(), None);
        pm1.expire(at(1 << 23), &mut |level| sci = level);
        assert!(!sci);
        assert_eq!(pm1.write_control(0, 2, 1, &mut |level| sci = level), None);
        assert!(sci);
    }

    #[test]
    fn the_power_button_is_an_event_of_its_own() {
        let mut pm1 = pm1(Width::Bits32);
        let mut sci = false;
        pm1.press_power_button(&mut |level| sci = level);
        assert!(!sci);
        assert_eq!(pm1.read_event(0, at(1)), 0x100);
        pm1.write_event(0, 4, 0x0100_0000, at(1), &mut |level| sci = level);
        assert!(sci);
        assert_eq!(pm1.read_event(0, at(1)), 0x0100_0100);
        assert_eq!(pm1.read_event(3, at(1)), 1);
        pm1.write_event(1, 1, 1, at(1), &mut |level| sci = level);
        assert!(!sci);
    }

    #[test]
    fn s5_is_power_off_and_nothing_else_is() {
        let mut pm1 = pm1(Width::Bits32);
        let s5 = 5 << 10 | 1;
        assert_eq!(pm1.write_control(0, 2, s5, &mut no_line), None);
        assert_eq!(pm1.read_control(0), s5);
        assert_eq!(
            pm1.write_control(0, 2, 3 << 10 | 1 << 13 | 1, &mut no_line),
            None
        );
        assert_eq!(pm1.read_control(0), 3 << 10 | 1);
        assert_eq!(
            pm1.write_control(0, 2, s5 | 1 << 13, &mut no_line),
            Some(PowerOff)
        );
        // By bytes, too: SLP_EN and SLP_TYP are both in the upper one.
        assert_eq!(
            pm1.write_control(1, 1, (s5 | 1 << 13) >> 8, &mut no_line),
            Some(PowerOff)
        );
        assert_eq!(pm1.read_control(1), s5 >> 8);
    }

    #[test]
    fn accesses_beyond_the_blocks_do_nothing() {
        let mut pm1 = pm1(Width::Bits32);
        pm1.write_event(4, 4, u32::MAX, at(0), &mut no_line);
        pm1.write_event(u16::MAX, 4, u32::MAX, at(0), &mut no_line);
        assert_eq!(pm1.write_control(u16::MAX, 4, u32::MAX, &mut no_line), None);
        assert_eq!(pm1.read_event(0, at(0)), 0);
        assert_eq!(pm1.read_event(u16::MAX, at(0)), 0);
        assert_eq!(pm1.read_control(u16::MAX), 0);
        assert_eq!(pm1.read_control(0), 1);
    }
}
