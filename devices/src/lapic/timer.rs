//! The APIC timer (SDM vol. 3A, 11.5.4): one-shot, periodic, and TSC-deadline.
//!
//! The count is never stored: it follows from the time since an anchor, so that reads and
//! expiries are exact, and the k-th expiry of a periodic timer is off by less than one tick
//! of guest time, however large k is.

use arch::apic::lvt;

use super::LocalApic;
use super::base::Mode;
use crate::time::{Hertz, Now, TimerTicks};

/// The mode of the timer (LVT timer register, bits 17 and 18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved encoding: the timer stands still.
    Reserved,
}

impl TimerMode {
    pub(super) const fn of_lvt(entry: u32) -> Self {
        match (entry & lvt::TIMER_MODE) >> 17 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The timer's input clock in terms of guest time, in lowest terms: `clocks` periods of the
/// one take `ticks` of the other.
#[derive(Clone, Copy, Debug)]
struct InputClock {
    clocks: u64,
    ticks: u64,
    /// Binary logarithm of the divide configuration.
    divide: u32,
}

impl InputClock {
    const fn new(timer_hz: Hertz, tsc_hz: Hertz) -> Self {
        let (mut a, mut b) = (timer_hz.get(), tsc_hz.get());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        Self {
            clocks: timer_hz.get() / a,
            ticks: tsc_hz.get() / a,
            divide: 1,
        }
    }

    /// Returns the whole counts in `ticks` of guest time.
    fn counts_in(self, ticks: u64) -> u64 {
        let clocks = match ticks.checked_mul(self.clocks) {
            Some(product) => product / self.ticks,
            None => saturate(u128::from(ticks) * u128::from(self.clocks) / u128::from(self.ticks)),
        };
        clocks >> self.divide
    }

    /// Returns the fewest ticks of guest time that hold `counts` counts.
    fn ticks_for(self, counts: u64) -> u64 {
        let clocks = u128::from(counts) << self.divide;
        let product = match u64::try_from(clocks) {
            Ok(clocks) => clocks.checked_mul(self.ticks),
            Err(_) => None,
        };
        match product {
            Some(product) => product.div_ceil(self.clocks),
            None => match clocks.checked_mul(u128::from(self.ticks)) {
                Some(product) => saturate(product.div_ceil(u128::from(self.clocks))),
                None => u64::MAX,
            },
        }
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A count that runs: it reaches zero `left` counts after `anchor`, and then, if periodic,
/// every `period` counts.
#[derive(Clone, Copy, Debug)]
struct Countdown {
    anchor: TimerTicks,
    left: u64,
    period: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    clock: InputClock,
    /// Its entry in the local vector table, as it was when the timer last heard of it. (The page
    /// may show the next one already, where the processor writes to it.)
    entry: u32,
    mode: TimerMode,
    countdown: Option<Countdown>,
    /// IA32_TSC_DEADLINE; zero while disarmed.
    tsc_deadline: u64,
    /// Guest TSC minus the counter line, modulo 2^64.
    tsc_offset: u64,
    due: Option<TimerTicks>,
}

impl Timer {
    pub(super) const fn new(timer_hz: Hertz, tsc_hz: Hertz) -> Self {
        Self {
            clock: InputClock::new(timer_hz, tsc_hz),
            entry: lvt::MASKED,
            mode: TimerMode::OneShot,
            countdown: None,
            tsc_deadline: 0,
            tsc_offset: 0,
            due: None,
        }
    }

    /// Goes to the state after reset. The TSC is not the timer's, and its offset stays.
    pub(super) const fn reset(&mut self) {
        self.stop();
        self.entry = lvt::MASKED;
        self.mode = TimerMode::OneShot;
        self.clock.divide = 1;
    }

    pub(super) const fn stop(&mut self) {
        self.countdown = None;
        self.tsc_deadline = 0;
        self.due = None;
    }

    /// Returns when it next interrupts. A masked timer does not, however short its period is: what it
    /// counts follows from the time whenever somebody looks.
    #[inline]
    const fn next_interrupt(&self) -> Option<TimerTicks> {
        if self.is_masked() { None } else { self.due }
    }

    const fn is_masked(&self) -> bool {
        self.entry & lvt::MASKED != 0
    }

    /// Takes over its entry in the local vector table, as far as it is not its mode. What was due
    /// before must have been expired.
    pub(super) const fn set_entry(&mut self, entry: u32) {
        self.entry = entry;
    }

    /// Masks it.
    pub(super) const fn mask(&mut self) {
        self.entry |= lvt::MASKED;
    }

    /// Returns whether the timer has expired since the last call; several expiries are one.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        match self.due {
            Some(due) if due <= now.timer => {}
            _ => return false,
        }
        self.due = None;
        match (self.mode, self.countdown) {
            (TimerMode::Periodic, Some(countdown)) => {
                self.due = Some(self.expiry(countdown, self.next_expiry(countdown, now)));
            }
            _ => self.stop(),
        }
        true
    }

    /// Counts from the anchor to the first expiry after `now`, if periodic.
    fn next_expiry(&self, countdown: Countdown, now: Now) -> u64 {
        let elapsed = self.clock.counts_in(now.timer.since(countdown.anchor));
        if elapsed < countdown.left {
            return countdown.left;
        }
        let period = u64::from(countdown.period).max(1);
        let over = (elapsed - countdown.left) % period;
        elapsed.saturating_add(period - over)
    }

    fn expiry(&self, countdown: Countdown, counts: u64) -> TimerTicks {
        countdown
            .anchor
            .saturating_add(self.clock.ticks_for(counts))
    }

    /// Returns the current-count register.
    pub(super) fn current_count(&self, now: Now) -> u32 {
        let Some(countdown) = self.countdown else {
            return 0;
        };
        let elapsed = self.clock.counts_in(now.timer.since(countdown.anchor));
        let left = if elapsed < countdown.left {
            countdown.left - elapsed
        } else if self.mode == TimerMode::Periodic {
            self.next_expiry(countdown, now) - elapsed
        } else {
            0
        };
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Takes a write of the initial-count register: starts the countdown, or stops it with zero.
    /// False, and without effect, in a mode that does not count.
    pub(super) fn set_initial_count(&mut self, now: Now, count: u32) -> bool {
        if !self.mode.counts() {
            return false;
        }
        self.stop();
        if count != 0 {
            self.start(now, u64::from(count), count);
        }
        true
    }

    fn start(&mut self, now: Now, left: u64, period: u32) {
        let countdown = Countdown {
            anchor: now.timer,
            left,
            period,
        };
        self.countdown = Some(countdown);
        self.due = Some(self.expiry(countdown, left));
    }

    /// Takes a write of the divide configuration register: the count goes on from where it is, at
    /// the new speed.
    pub(super) fn set_divide(&mut self, now: Now, configuration: u32) {
        // 0 to 7 are divisors of 2 to 128, then 1 (SDM vol. 3A, figure 11-10).
        let bits = (configuration & 3) | (configuration >> 1 & 4);
        let divide = (bits + 1) & 7;
        if divide == self.clock.divide {
            return;
        }
        let left = self.current_count(now);
        self.clock.divide = divide;
        if let Some(countdown) = self.countdown {
            self.start(now, u64::from(left), countdown.period);
        }
    }

    /// Takes a write of the LVT timer register's mode. The count goes on between one-shot and
    /// periodic; any other change stops the timer. True if it did.
    ///
    /// SDM vol. 3A, 11.5.4.1 reads as if every change of mode disarmed the timer. Processors
    /// do so for changes to and from TSC-deadline mode, which the same section then names;
    /// one-shot and periodic differ in nothing but what happens at zero.
    ///
    /// What was due before must have been expired.
    pub(super) fn set_mode(&mut self, now: Now, mode: TimerMode) -> bool {
        if mode == self.mode {
            return false;
        }
        let counted = self.mode.counts();
        if counted
            && mode.counts()
            && let Some(countdown) = self.countdown
        {
            // The next expiry stays where it is; from a periodic timer it is the last one.
            let next = self.next_expiry(countdown, now);
            self.countdown = Some(Countdown {
                left: next,
                ..countdown
            });
        }
        self.mode = mode;
        let stops = !(counted && mode.counts());
        if stops {
            self.stop();
        }
        stops
    }

    /// Returns IA32_TSC_DEADLINE: zero when disarmed, expired, or not in this mode.
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Takes a write of IA32_TSC_DEADLINE (SDM vol. 3A, 11.5.4.1): arms the timer, or disarms it
    /// with zero. Without effect in another mode.
    pub(super) fn set_tsc_deadline(&mut self, now: Now, deadline: u64) {
        if self.mode != TimerMode::TscDeadline {
            return;
        }
        self.tsc_deadline = deadline;
        self.arm_tsc_deadline(now);
    }

    /// Tells the timer that the guest's TSC is now the counter line plus `offset`.
    pub(super) fn set_tsc_offset(&mut self, now: Now, offset: u64) {
        self.tsc_offset = offset;
        if self.tsc_deadline != 0 {
            self.arm_tsc_deadline(now);
        }
    }

    fn arm_tsc_deadline(&mut self, now: Now) {
        let tsc = now.counter.0.wrapping_add(self.tsc_offset);
        self.due = (self.tsc_deadline != 0).then(|| {
            now.timer
                .saturating_add(self.tsc_deadline.saturating_sub(tsc))
        });
    }
}

impl LocalApic {
    /// Returns when [`LocalApic::expire`] wants to be called next: when the timer next interrupts.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Option<TimerTicks> {
        self.timer.next_interrupt()
    }

    /// Raises the timer's interrupt if it is due. Expiries of a periodic timer that came too
    /// late for each other are one.
    #[inline]
    pub fn expire(&mut self, now: Now) {
        if self.timer.expire(now) && !self.timer.is_masked() {
            self.deliver_vector(self.timer.entry as u8, false);
        }
    }

    /// Returns IA32_TSC_DEADLINE: zero unless armed.
    pub fn tsc_deadline(&mut self, now: Now) -> u64 {
        self.expire(now);
        self.timer.tsc_deadline()
    }

    /// Takes a WRMSR of IA32_TSC_DEADLINE (SDM vol. 3A, 11.5.4.1): arms the timer for this value of
    /// the guest's TSC, which may be past, or disarms it with zero. Without effect unless the LVT
    /// timer register selects this mode.
    pub fn set_tsc_deadline(&mut self, now: Now, deadline: u64) {
        self.expire(now);
        if self.mode != Mode::Disabled {
            self.timer.set_tsc_deadline(now, deadline);
            self.expire(now);
        }
    }

    /// Tells the timer that the guest's TSC is the counter line plus `offset`, modulo 2^64,
    /// from now on: after a write of IA32_TIME_STAMP_COUNTER or IA32_TSC_ADJUST. An armed
    /// TSC deadline moves accordingly.
    pub fn set_tsc_offset(&mut self, now: Now, offset: u64) {
        self.expire(now);
        self.timer.set_tsc_offset(now, offset);
        self.expire(now);
    }
}
