//! The high precision event timers (IA-PC HPET specification 1.0a).
//!
//! The main counter runs at 100 MHz: 10,000,000 fs a cycle is exact both as a period and as
//! a frequency, so a guest that calibrates its TSC against the HPET finds the frequency that
//! CPUID tells it, to the last digit. (The usual 14.31818 MHz has no whole period in
//! femtoseconds: the guest would see the HPET drift from the TSC by 4 ppb.) It is coarser
//! than any TSC, and of the resolution that the specification asks for, ten times over.
//!
//! There are three timers, all of them 64 bits wide and able to be periodic. They interrupt
//! by wire, not by message: there is no FSB delivery.

use super::bus::{Access, Context, Device, Outputs as Wiring};
use crate::time::{Hertz, Now, Oscillator, TimerTicks};
use comparator::Comparator;

mod comparator;
#[cfg(test)]
mod tests;

/// The frequency of the main counter.
pub const FREQUENCY: Hertz = Hertz::new(100_000_000);

/// The period of the main counter, in femtoseconds.
pub const PERIOD_FS: u32 = 10_000_000;

/// The number of timers.
pub const TIMERS: usize = 3;

/// The length of the register window in bytes.
pub const WINDOW: u64 = 0x400;

/// The lower half of the capabilities register: what the ACPI table "HPET" has as Event
/// Timer Block ID. Vendor 8086h, legacy replacement, a 64-bit counter, revision 1.
pub const BLOCK_ID: u32 = 0x8086_0000 | 1 << 15 | 1 << 13 | (TIMERS as u32 - 1) << 8 | 1;

/// General configuration: ENABLE_CNF.
const ENABLE: u64 = 1 << 0;
/// General configuration: LEG_RT_CNF.
const LEGACY: u64 = 1 << 1;

/// The destination of a timer's interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The legacy-replacement route in place of the PIT: IRQ 0 of the 8259, pin 2 of the IOAPIC.
    LegacyIrq0,
    /// The legacy-replacement route in place of the RTC: IRQ 8 of the 8259, pin 8 of the IOAPIC.
    LegacyIrq8,
    /// A pin of the IOAPIC: this global system interrupt.
    Gsi(u8),
}

/// The interrupt wires of the timers.
pub trait Outputs {
    /// Drives the wire of timer `timer` to `asserted`. An edge-triggered interrupt is a
    /// call with `true` and one with `false`.
    fn set_level(&mut self, timer: usize, route: Route, asserted: bool);
}

impl<F: FnMut(usize, Route, bool)> Outputs for F {
    fn set_level(&mut self, timer: usize, route: Route, asserted: bool) {
        self(timer, route, asserted);
    }
}

/// The main counter.
#[derive(Clone, Copy, Debug)]
enum MainCounter {
    /// The value at which it stands.
    Halted(u64),
    /// The difference of its value from the count of the input clock's cycles, modulo 2^64.
    Running(u64),
}

/// The HPET's registers, and the wires behind them.
#[derive(Clone, Debug)]
pub struct Hpet {
    oscillator: Oscillator,
    main: MainCounter,
    legacy: bool,
    /// General interrupt status: a bit for each timer in level-triggered mode.
    status: u8,
    timers: [Comparator; TIMERS],
    /// The routes that the level-triggered timers hold asserted, by timer.
    asserted: [Option<Route>; TIMERS],
    /// The pins of the IOAPIC that the timers can be routed to: a bit for each GSI.
    routes: u32,
    deadline: Option<TimerTicks>,
}

impl Hpet {
    /// Returns the HPET at power-up, for a guest whose TSC runs at `tsc`; its timers can be routed
    /// to the GSIs whose bits are set in `routes`.
    #[must_use]
    pub const fn new(tsc: Hertz, routes: u32) -> Self {
        Self::with_clock(Oscillator::new(FREQUENCY, tsc), routes)
    }

    const fn with_clock(oscillator: Oscillator, routes: u32) -> Self {
        Self {
            oscillator,
            main: MainCounter::Halted(0),
            legacy: false,
            status: 0,
            timers: [Comparator::new(); TIMERS],
            asserted: [None; TIMERS],
            routes,
            deadline: None,
        }
    }

    /// Puts the HPET into the state after power-up.
    pub fn reset(&mut self, outputs: &mut impl Outputs) {
        for (n, asserted) in self.asserted.iter().enumerate() {
            if let Some(route) = *asserted {
                outputs.set_level(n, route, false);
            }
        }
        *self = Self::with_clock(self.oscillator, self.routes);
    }

    /// Returns whether timers 0 and 1 have taken the place of the PIT and the RTC as sources of IRQ
    /// 0 and IRQ 8: then the interrupts of those must not get through.
    #[inline]
    #[must_use]
    pub const fn legacy_replacement(&self) -> bool {
        self.legacy
    }

    /// Reads `size` bytes at `offset` of the register window: 4 or 8 of them, aligned.
    /// Any other access reads zero, as does what is reserved.
    #[must_use]
    pub fn read(&self, offset: u64, size: usize, now: Now) -> u64 {
        let Some((register, lanes)) = Lanes::of(offset, size) else {
            return 0;
        };
        lanes.extract(self.register(register, now))
    }

    /// Writes `size` bytes at `offset` of the register window: 4 or 8 of them, aligned.
    /// Any other access is ignored, as is one to what is reserved or read-only. The main
    /// counter can only be written while it is halted.
    pub fn write(
        &mut self,
        offset: u64,
        size: usize,
        value: u64,
        now: Now,
        outputs: &mut impl Outputs,
    ) {
        let Some((register, lanes)) = Lanes::of(offset, size) else {
            return;
        };
        self.catch_up(now, outputs);
        match register {
            0x010 => {
                let old = self.configuration();
                self.configure(lanes.merge(old, value), now);
            }
            0x020 => self.status &= !(lanes.merge(0, value) as u8),
            0x0F0 => {
                if let MainCounter::Halted(count) = &mut self.main {
                    *count = lanes.merge(*count, value);
                }
            }
            _ => self.write_timer(register, lanes, value, now),
        }
        self.drive(outputs);
        self.plan();
    }

    /// Returns when a timer next interrupts.
    #[inline]
    #[must_use]
    pub const fn next_deadline(&self) -> Option<TimerTicks> {
        self.deadline
    }

    /// Gives the interrupts that are due; several of a periodic timer are one.
    pub fn expire(&mut self, now: Now, outputs: &mut impl Outputs) {
        if self.deadline.is_none_or(|deadline| now.timer < deadline) {
            return;
        }
        self.catch_up(now, outputs);
        self.drive(outputs);
        self.plan();
    }

    fn register(&self, register: u64, now: Now) -> u64 {
        match register {
            // First, as a guest whose clock source is the HPET reads little else.
            0x0F0 => self.count(now),
            0x000 => u64::from(PERIOD_FS) << 32 | u64::from(BLOCK_ID),
            0x010 => self.configuration(),
            0x020 => u64::from(self.status_at(now)),
            _ => match self.timer(register) {
                Some((timer, 0x00)) => self.timers[timer].configuration(self.routes),
                Some((timer, 0x08)) => self.timers[timer].value(&self.oscillator, now),
                _ => 0,
            },
        }
    }

    /// Returns the timer, and the offset in its block, of the register at `register`.
    const fn timer(&self, register: u64) -> Option<(usize, u64)> {
        let Some(offset) = register.checked_sub(0x100) else {
            return None;
        };
        let timer = (offset / 0x20) as usize;
        if timer < TIMERS {
            Some((timer, offset % 0x20))
        } else {
            None
        }
    }

    fn count(&self, now: Now) -> u64 {
        match self.main {
            MainCounter::Halted(count) => count,
            MainCounter::Running(base) => self.oscillator.cycle(now).wrapping_add(base),
        }
    }

    const fn is_running(&self) -> bool {
        matches!(self.main, MainCounter::Running(_))
    }

    const fn configuration(&self) -> u64 {
        let enable = if self.is_running() { ENABLE } else { 0 };
        enable | if self.legacy { LEGACY } else { 0 }
    }

    fn configure(&mut self, value: u64, now: Now) {
        self.legacy = value & LEGACY != 0;
        let count = self.count(now);
        let cycle = self.oscillator.cycle(now);
        match (self.is_running(), value & ENABLE != 0) {
            (false, true) => {
                self.main = MainCounter::Running(count.wrapping_sub(cycle));
                for timer in &mut self.timers {
                    timer.arm(count, &self.oscillator, now);
                }
            }
            (true, false) => {
                self.main = MainCounter::Halted(count);
                for timer in &mut self.timers {
                    timer.disarm();
                }
            }
            _ => {}
        }
    }

    fn write_timer(&mut self, register: u64, lanes: Lanes, value: u64, now: Now) {
        let Some((index, offset)) = self.timer(register) else {
            return;
        };
        let timer = &mut self.timers[index];
        let moved = match offset {
            0x00 => {
                let old = timer.configuration(self.routes);
                timer.configure(lanes.merge(old, value), self.routes)
            }
            0x08 => timer.set_value(|old| lanes.merge(old, value)),
            _ => false,
        };
        if moved && self.is_running() {
            let count = self.count(now);
            self.timers[index].arm(count, &self.oscillator, now);
        }
    }

    /// Returns the status register, with what has come to be due.
    fn status_at(&self, now: Now) -> u8 {
        let mut status = self.status;
        for (n, timer) in self.timers.iter().enumerate() {
            if timer.is_level() && timer.is_due(now) {
                status |= 1 << n;
            }
        }
        status
    }

    /// Lets happen what is due: status bits and edges.
    fn catch_up(&mut self, now: Now, outputs: &mut impl Outputs) {
        for n in 0..TIMERS {
            if !self.timers[n].is_due(now) {
                continue;
            }
            self.timers[n].advance(&self.oscillator, now);
            let timer = &self.timers[n];
            if timer.is_level() {
                self.status |= 1 << n;
            } else if timer.is_enabled()
                && let Some(route) = self.route(n)
            {
                outputs.set_level(n, route, true);
                outputs.set_level(n, route, false);
            }
        }
    }

    /// Drives the wires of the level-triggered timers to what they should be.
    fn drive(&mut self, outputs: &mut impl Outputs) {
        for n in 0..TIMERS {
            let timer = &self.timers[n];
            let asserts = timer.is_level()
                && timer.is_enabled()
                && self.is_running()
                && self.status & 1 << n != 0;
            let wanted = if asserts { self.route(n) } else { None };
            let present = self.asserted[n];
            if wanted == present {
                continue;
            }
            if let Some(route) = present {
                outputs.set_level(n, route, false);
            }
            if let Some(route) = wanted {
                outputs.set_level(n, route, true);
            }
            self.asserted[n] = wanted;
        }
    }

    fn route(&self, timer: usize) -> Option<Route> {
        match timer {
            0 if self.legacy => Some(Route::LegacyIrq0),
            1 if self.legacy => Some(Route::LegacyIrq8),
            _ => {
                let gsi = self.timers[timer].route();
                (self.routes & 1 << gsi != 0).then_some(Route::Gsi(gsi))
            }
        }
    }

    fn plan(&mut self) {
        self.deadline = self.earliest(|_| true);
    }
}

impl Hpet {
    /// Returns the earliest of the deadlines of the timers that `interrupt` says yes to.
    fn earliest(&self, interrupt: impl Fn(usize) -> bool) -> Option<TimerTicks> {
        let mut earliest = None;
        for (n, timer) in self.timers.iter().enumerate() {
            // A level that is asserted cannot be asserted again.
            let pending = timer.is_level() && self.status & 1 << n != 0;
            if !timer.is_enabled() || pending {
                continue;
            }
            let deadline = timer.deadline();
            if deadline.0 < u64::MAX
                && earliest.is_none_or(|other| deadline < other)
                && interrupt(n)
            {
                earliest = Some(deadline);
            }
        }
        earliest
    }
}

impl Device for Hpet {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        Self::read(self, access.offset, access.size.into(), cx.now)
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let (size, now) = (access.size.into(), cx.now);
        let (interrupts, host) = (&mut *cx.interrupts, &mut *cx.host);
        Self::write(
            self,
            access.offset,
            size,
            value,
            now,
            &mut |timer, route, level| {
                interrupts.set_hpet(timer, route, level, host);
            },
        );
        cx.interrupts.set_legacy_replacement(self.legacy, cx.host);
    }

    fn next_deadline(&self, outputs: &Wiring<'_>) -> Option<TimerTicks> {
        self.deadline?;
        self.earliest(|n| {
            // A level that nobody hears is asserted once, and stays.
            self.timers[n].is_level() || outputs.hear_hpet_edge(self.route(n))
        })
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let (interrupts, host) = (&mut *cx.interrupts, &mut *cx.host);
        Self::expire(self, now, &mut |timer, route, level| {
            interrupts.set_hpet(timer, route, level, host);
        });
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        let (interrupts, host) = (&mut *cx.interrupts, &mut *cx.host);
        Self::reset(self, &mut |timer, route, level| {
            interrupts.set_hpet(timer, route, level, host);
        });
        cx.interrupts.set_legacy_replacement(false, cx.host);
    }
}

/// The part of a 64-bit register that an access covers.
#[derive(Clone, Copy, Debug)]
struct Lanes {
    shift: u32,
    mask: u64,
}

impl Lanes {
    /// Returns the register that an access is to, and which part of it; `None` if the access is to
    /// be ignored.
    const fn of(offset: u64, size: usize) -> Option<(u64, Self)> {
        if offset >= WINDOW {
            return None;
        }
        match size {
            8 if offset.is_multiple_of(8) => Some((
                offset,
                Self {
                    shift: 0,
                    mask: u64::MAX,
                },
            )),
            4 if offset.is_multiple_of(4) => {
                let shift = (offset % 8) as u32 * 8;
                let mask = 0xFFFF_FFFF << shift;
                Some((offset & !7, Self { shift, mask }))
            }
            _ => None,
        }
    }

    const fn extract(self, register: u64) -> u64 {
        (register & self.mask) >> self.shift
    }

    /// Returns the register with `value` in this part of it.
    const fn merge(self, register: u64, value: u64) -> u64 {
        register & !self.mask | (value << self.shift) & self.mask
    }
}
