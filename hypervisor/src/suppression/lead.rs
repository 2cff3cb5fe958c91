//! How far a guest's time is ahead of real time, without rounding.
//!
//! A guest's clock has two lines ([`devices::clock`]). Each line's *lead* is what suppression has
//! gained and is to give back; its *drift* is what it has gained for good, under the paper's
//! policy. The sum of both is the distance between the line and real time, exact in units of
//! 2^-48 tick: the account is told each change of the clock's rates with the host time at which
//! the clock itself changed, and computes what the clock computes.

#![forbid(unsafe_code)]

use devices::clock::{Course, Rate, Rates};
use devices::time::HostTicks;

/// Bits of the fraction of a [`Rate`], and of an exact lead.
const FRACTION_BITS: u32 = 48;

/// The account to which a gain is booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Booking {
    /// The account of gains that will be given back.
    Lead,
    /// The account of gains that stay.
    Drift,
}

/// The distance by which the two lines are ahead of real time, in host ticks; negative if they are
/// behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lead {
    /// The distance of the line that the guest reads as time.
    pub counter: i64,
    /// The distance of the line that its timers are due on.
    pub timer: i64,
}

impl Lead {
    /// Returns the lead of the line that is further ahead.
    #[must_use]
    pub(crate) const fn most(self) -> i64 {
        if self.counter > self.timer {
            self.counter
        } else {
            self.timer
        }
    }
}

/// One line's distance from real time, in units of 2^-48 tick.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    lead: i128,
    drift: i128,
}

impl Line {
    /// Books what is gained between two host times at `rate`, which holds until `end`.
    fn advance(
        &mut self,
        from: HostTicks,
        to: HostTicks,
        rate: Rate,
        end: HostTicks,
        booking: Booking,
    ) {
        let elapsed = to.min(end).since(from);
        let excess = i128::from(rate.bits()) - i128::from(Rate::ONE.bits());
        let gained = excess.saturating_mul(i128::from(elapsed));
        let account = match booking {
            Booking::Lead => &mut self.lead,
            Booking::Drift => &mut self.drift,
        };
        *account = account.saturating_add(gained);
    }
}

fn whole_ticks(exact: i128) -> i64 {
    (exact >> FRACTION_BITS).clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// The account of a VM's lead and drift.
#[derive(Clone, Debug)]
pub(super) struct Account {
    counter: Line,
    timer: Line,
    /// The host time up to which gains are booked.
    since: HostTicks,
    /// The course of the VM's clock, and where its gain is booked, from then on.
    course: Course,
    booking: Booking,
}

impl Account {
    /// Returns the account of a clock that starts at `now`, in real time.
    #[must_use]
    pub(super) const fn new(now: HostTicks) -> Self {
        const NONE: Line = Line { lead: 0, drift: 0 };
        Self {
            counter: NONE,
            timer: NONE,
            since: now,
            course: Course::REAL_TIME,
            booking: Booking::Lead,
        }
    }

    /// Books what was gained up to `now`.
    pub(super) fn advance(&mut self, now: HostTicks) {
        let Course {
            rates,
            counter_until,
            timer_until,
        } = self.course;
        let (since, booking) = (self.since, self.booking);
        self.counter
            .advance(since, now, rates.counter, counter_until, booking);
        self.timer
            .advance(since, now, rates.timer, timer_until, booking);
        self.since = self.since.max(now);
    }

    /// Returns the time up to which gains are booked.
    #[must_use]
    pub(super) const fn accounted_until(&self) -> HostTicks {
        self.since
    }

    /// Takes note that the clock goes on by `course` from `now` on.
    pub(super) fn change(&mut self, now: HostTicks, course: Course, booking: Booking) {
        self.advance(now);
        self.course = course;
        self.booking = booking;
    }

    /// Takes note that guest time stood still between `from` and `to` because the VM was paused:
    /// that is no lag.
    pub(super) fn pause(&mut self, from: HostTicks, to: HostTicks) {
        self.advance(from);
        self.course.rates = self.rates(from);
        let elapsed = to.since(self.since);
        self.course.counter_until = self.course.counter_until.saturating_add(elapsed);
        self.course.timer_until = self.course.timer_until.saturating_add(elapsed);
        self.since = self.since.max(to);
    }

    /// Returns the course of the clock.
    #[must_use]
    pub(super) const fn course(&self) -> Course {
        self.course
    }

    /// Returns the rates at which the clock runs at `now`.
    #[must_use]
    pub(super) fn rates(&self, now: HostTicks) -> Rates {
        let mut rates = self.course.rates;
        if now >= self.course.counter_until {
            rates.counter = Rate::ONE;
        }
        if now >= self.course.timer_until {
            rates.timer = Rate::ONE;
        }
        rates
    }

    /// Returns what is to be given back, up to the last [`Account::advance`].
    #[must_use]
    pub(super) fn lead(&self) -> Lead {
        Lead {
            counter: whole_ticks(self.counter.lead),
            timer: whole_ticks(self.timer.lead),
        }
    }

    /// Returns what stays gained, up to the last [`Account::advance`].
    #[must_use]
    pub(super) fn drift(&self) -> Lead {
        Lead {
            counter: whole_ticks(self.counter.drift),
            timer: whole_ticks(self.timer.drift),
        }
    }

    /// Returns the guest time on the timer line at the last [`Account::advance`], up to a constant.
    #[must_use]
    pub(super) fn guest_time(&self) -> u64 {
        let ahead = whole_ticks(self.timer.lead.saturating_add(self.timer.drift));
        self.since.0.saturating_add_signed(ahead)
    }
}

#[cfg(test)]
mod tests {
    use devices::clock::VirtualClock;
    use proptest::prelude::*;

    use super::*;

    fn rate() -> impl Strategy<Value = Rate> {
        prop_oneof![
            Just(Rate::ONE),
            Just(Rate::MIN),
            (1u32..65_536).prop_map(|n| Rate::times(n).unwrap()),
            (Rate::MIN.bits()..=4 * Rate::ONE.bits())
                .prop_map(|bits| Rate::from_bits(bits).unwrap()),
        ]
    }

    proptest! {
        /// Whatever happens to the clock, lead and drift together are what it shows beyond real
        /// time.
        #[test]
        fn lead_and_drift_are_what_the_clock_shows_beyond_real_time(
            history in prop::collection::vec(
                (
                    0u64..1 << 32,
                    rate(),
                    rate(),
                    any::<bool>(),
                    any::<bool>(),
                    prop::option::of(0u64..1 << 32),
                ),
                1..100,
            ),
        ) {
            let mut clock = VirtualClock::new(HostTicks(0));
            let mut account = Account::new(HostTicks(0));
            let (mut now, mut paused) = (0u64, 0u64);
            for (elapsed, counter, timer, keep, pause, end) in history {
                let before = now;
                now += elapsed;
                if pause {
                    clock.skip(HostTicks(before), HostTicks(now));
                    account.pause(HostTicks(before), HostTicks(now));
                    paused += elapsed;
                    continue;
                }
                let mut course = Course::at(Rates { counter, timer });
                if let Some(end) = end {
                    course.counter_until = HostTicks(now + end);
                    course.timer_until = HostTicks(now + end / 2);
                }
                let booking = if keep { Booking::Drift } else { Booking::Lead };
                clock.set_course(HostTicks(now), course);
                account.change(HostTicks(now), course, booking);
                let shown = clock.now(HostTicks(now));
                let beyond = |line: u64| line as i64 - (now - paused) as i64;
                let (lead, drift) = (account.lead(), account.drift());
                // Two roundings down instead of one.
                let counter = beyond(shown.counter.0) - lead.counter - drift.counter;
                let timer = beyond(shown.timer.0) - lead.timer - drift.timer;
                prop_assert!((0..=1).contains(&counter), "{counter}");
                prop_assert!((0..=1).contains(&timer), "{timer}");
            }
        }
    }

    #[test]
    fn a_gain_is_booked_where_it_belongs() {
        let mut account = Account::new(HostTicks(0));
        let ten = Rate::times(10).unwrap();
        let fast = Course::at(Rates {
            counter: ten,
            timer: Rate::ONE,
        });
        account.change(HostTicks(100), fast, Booking::Drift);
        account.change(HostTicks(110), fast, Booking::Lead);
        account.change(HostTicks(130), Course::REAL_TIME, Booking::Lead);
        account.advance(HostTicks(1000));
        assert_eq!(
            account.drift(),
            Lead {
                counter: 90,
                timer: 0
            }
        );
        assert_eq!(
            account.lead(),
            Lead {
                counter: 180,
                timer: 0
            }
        );
        assert_eq!(account.lead().most(), 180);
    }
}
