//! A timer of the HPET: its configuration, and a comparator that knows when it matches.

use crate::time::{Lead, Now, Oscillator, TimerTicks};

/// Tn_INT_TYPE_CNF: level-triggered.
const LEVEL: u32 = 1 << 1;
/// Tn_INT_ENB_CNF.
const INTERRUPT_ENABLE: u32 = 1 << 2;
/// Tn_TYPE_CNF: periodic.
const PERIODIC: u32 = 1 << 3;
/// Tn_PER_INT_CAP and Tn_SIZE_CAP: can be periodic, is 64 bits wide.
const CAPABILITIES: u32 = 1 << 4 | 1 << 5;
/// Tn_VAL_SET_CNF: the next write of the comparator sets its value, not only the period.
const SET_VALUE: u32 = 1 << 6;
/// Tn_32MODE_CNF.
const MODE_32: u32 = 1 << 8;
/// Tn_INT_ROUTE_CNF.
const ROUTE_SHIFT: u32 = 9;
const ROUTE: u32 = 0x1F << ROUTE_SHIFT;
const WRITABLE: u32 = LEVEL | INTERRUPT_ENABLE | PERIODIC | SET_VALUE | MODE_32 | ROUTE;

/// One timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Comparator {
    config: u32,
    /// The comparator register: what the main counter is compared with.
    value: u64,
    /// The period of a periodic timer, added to `value` at each match: the value last written.
    period: u64,
    /// The cycle of the HPET's input clock in which the next match is.
    next: Option<u64>,
    /// The lead by which `next` lies on the timer line: from when the timer was set.
    lead: Lead,
    /// The time of `next` on the timer line.
    deadline: TimerTicks,
}

impl Comparator {
    pub(super) const fn new() -> Self {
        Self {
            config: 0,
            value: u64::MAX,
            period: 0,
            next: None,
            lead: Lead::ZERO,
            deadline: TimerTicks(u64::MAX),
        }
    }

    pub(super) const fn is_level(&self) -> bool {
        self.config & LEVEL != 0
    }

    pub(super) const fn is_enabled(&self) -> bool {
        self.config & INTERRUPT_ENABLE != 0
    }

    /// Returns the GSI it is routed to.
    pub(super) const fn route(&self) -> u8 {
        ((self.config & ROUTE) >> ROUTE_SHIFT) as u8
    }

    /// Returns when the next match is; the last point of the line for never.
    pub(super) const fn deadline(&self) -> TimerTicks {
        self.deadline
    }

    /// Returns whether there has been a match since [`Comparator::advance`].
    #[inline]
    pub(super) const fn is_due(&self, now: Now) -> bool {
        self.next.is_some() && now.timer.0 >= self.deadline.0
    }

    /// Returns the register "configuration and capability".
    pub(super) const fn configuration(&self, routes: u32) -> u64 {
        (routes as u64) << 32 | (self.config | CAPABILITIES) as u64
    }

    /// Writes that register; whether the comparator is to be armed anew. A route that is
    /// not in `routes` is not taken, which a guest finds by reading it back.
    pub(super) const fn configure(&mut self, value: u64, routes: u32) -> bool {
        let old = self.config;
        let mut config = value as u32 & WRITABLE;
        let route = (config & ROUTE) >> ROUTE_SHIFT;
        if routes & 1 << route == 0 {
            config = config & !ROUTE | old & ROUTE;
        }
        if config & PERIODIC == 0 {
            config &= !SET_VALUE;
        }
        self.config = config;
        self.value &= self.mask();
        self.period &= self.mask();
        (config ^ old) & (PERIODIC | MODE_32) != 0
    }

    /// Returns the comparator register at `now`.
    pub(super) fn value(&self, oscillator: &Oscillator, now: Now) -> u64 {
        let mut present = *self;
        if present.is_due(now) {
            present.advance(oscillator, now);
        }
        present.value
    }

    /// Writes the comparator register by way of `merge`; whether the comparator is to be
    /// armed anew. That always sets the period, should the timer be made periodic later
    /// (specification 2.3.9.2.2: "increased by the last value written"). In periodic mode it
    /// sets the value only after Tn_VAL_SET_CNF was written.
    pub(super) fn set_value(&mut self, merge: impl Fn(u64) -> u64) -> bool {
        self.period = merge(self.period) & self.mask();
        let sets_value = self.config & (PERIODIC | SET_VALUE) != PERIODIC;
        if sets_value {
            self.value = merge(self.value) & self.mask();
            self.config &= !SET_VALUE;
        }
        sets_value
    }

    /// Waits for the main counter, at `count` now, to get to the comparator's value. If that
    /// is the present count, it is not a match until the counter has wrapped around.
    pub(super) fn arm(&mut self, count: u64, oscillator: &Oscillator, now: Now) {
        let away = self.value.wrapping_sub(count).wrapping_sub(1) & self.mask();
        let next = oscillator.cycle(now).saturating_add(1).checked_add(away);
        self.lead = now.lead();
        self.set_next(next, oscillator);
    }

    /// Stops waiting.
    pub(super) const fn disarm(&mut self) {
        self.next = None;
        self.deadline = TimerTicks(u64::MAX);
    }

    /// Goes past all matches that have been: to the next one of a periodic timer, or after
    /// the next wrap-around of a 32-bit one.
    pub(super) fn advance(&mut self, oscillator: &Oscillator, now: Now) {
        let Some(next) = self.next else {
            return;
        };
        let late = oscillator.timer_cycle(now, self.lead).saturating_sub(next);
        let interval = match (self.config & PERIODIC != 0, self.config & MODE_32 != 0) {
            (true, _) if self.period != 0 => self.period,
            (_, true) => 1 << 32,
            // The counter wraps around after 5,800 years.
            _ => return self.disarm(),
        };
        let ahead = if late < interval {
            Some(interval)
        } else {
            (late / interval + 1).checked_mul(interval)
        };
        if let Some(ahead) = ahead {
            self.value = self.value.wrapping_add(ahead) & self.mask();
        }
        self.set_next(ahead.and_then(|ahead| next.checked_add(ahead)), oscillator);
    }

    fn set_next(&mut self, next: Option<u64>, oscillator: &Oscillator) {
        self.next = next;
        self.deadline = match next {
            Some(cycle) => oscillator.deadline(cycle, self.lead),
            None => TimerTicks(u64::MAX),
        };
    }

    const fn mask(&self) -> u64 {
        if self.config & MODE_32 != 0 {
            u32::MAX as u64
        } else {
            u64::MAX
        }
    }
}
