//! Limits to what is sent in a time: a token bucket.
//!
//! It runs on the host's time: a guest whose clock is fast has no larger share by that.

use core::fmt;

use crate::time::{Hertz, HostTicks};

/// A number of megabits (10^6) a second: 1 to [`Bandwidth::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth(u32);

impl Bandwidth {
    /// The most megabits a second.
    pub const MOST: u32 = 100_000;

    /// Makes a bandwidth of so many megabits a second; `None` unless that is 1 to [`Bandwidth::MOST`].
    #[must_use]
    pub const fn from_megabits(megabits: u32) -> Option<Self> {
        if megabits >= 1 && megabits <= Self::MOST {
            Some(Self(megabits))
        } else {
            None
        }
    }

    /// Returns the megabits a second.
    #[must_use]
    pub const fn megabits(self) -> u32 {
        self.0
    }

    const fn bytes_a_second(self) -> u64 {
        self.0 as u64 * (1_000_000 / 8)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Mbit/s", self.0)
    }
}

/// A token bucket: in any time, no more is sent than the bandwidth allows in it, and
/// [`TokenBucket::burst`] bytes and one piece more.
///
/// It counts what has been sent and not yet paid for by time, in units of which a tick pays as many
/// as there are bytes a second, and a byte costs as many as there are ticks: nothing is rounded.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    bandwidth: Bandwidth,
    tsc: Hertz,
    /// The units that are not paid for, as of `at`.
    owed: u128,
    at: HostTicks,
}

impl TokenBucket {
    /// The least burst in bytes: a few frames of any size.
    const LEAST_BURST: u64 = 128 << 10;
    /// The burst is what is sent in a second, divided by this, if that is more: a VM may be without a
    /// CPU for as long, and is not to lose by that.
    const BURST: u64 = 100;

    /// Makes a bucket with nothing owed, where `tsc` is the frequency of the host's ticks.
    #[must_use]
    pub const fn new(bandwidth: Bandwidth, tsc: Hertz) -> Self {
        Self {
            bandwidth,
            tsc,
            owed: 0,
            at: HostTicks::ZERO,
        }
    }

    /// Returns the bandwidth.
    #[must_use]
    pub const fn bandwidth(&self) -> Bandwidth {
        self.bandwidth
    }

    /// Returns how many bytes may be sent at once after a pause.
    #[must_use]
    pub const fn burst(&self) -> u64 {
        let part = self.bandwidth.bytes_a_second() / Self::BURST;
        if part > Self::LEAST_BURST {
            part
        } else {
            Self::LEAST_BURST
        }
    }

    /// Returns when something may be sent next, if not at `now`.
    #[must_use]
    pub fn wait(&mut self, now: HostTicks) -> Option<HostTicks> {
        let rate = u128::from(self.bandwidth.bytes_a_second());
        let paid = u128::from(now.since(self.at)) * rate;
        self.owed = self.owed.saturating_sub(paid);
        self.at = self.at.max(now);
        let allowed = u128::from(self.burst()) * u128::from(self.tsc.get());
        let ahead = self.owed.checked_sub(allowed).filter(|&it| it != 0)?;
        let ticks = u64::try_from(ahead.div_ceil(rate)).unwrap_or(u64::MAX);
        Some(self.at.saturating_add(ticks))
    }

    /// Counts `bytes` as sent, after [`TokenBucket::wait`] has said that something may be.
    pub fn spend(&mut self, bytes: u64) {
        self.owed += u128::from(bytes) * u128::from(self.tsc.get());
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const GHZ: Hertz = Hertz::new(1_000_000_000);

    fn bucket(megabits: u32, tsc: Hertz) -> TokenBucket {
        TokenBucket::new(Bandwidth::from_megabits(megabits).unwrap(), tsc)
    }

    #[test]
    fn a_bandwidth_is_neither_nothing_nor_absurd() {
        assert_eq!(Bandwidth::from_megabits(0), None);
        assert_eq!(Bandwidth::from_megabits(Bandwidth::MOST + 1), None);
        let most = Bandwidth::from_megabits(Bandwidth::MOST).unwrap();
        assert_eq!(std::format!("{most}"), "100000 Mbit/s");
    }

    #[test]
    fn after_a_burst_as_much_is_sent_as_time_pays_for() {
        // A byte in 80 ticks.
        let mut bucket = bucket(100, GHZ);
        let burst = bucket.burst();
        assert_eq!(burst, 131_072);
        bucket.spend(burst);
        assert_eq!(bucket.wait(HostTicks(0)), None, "just not in debt");
        bucket.spend(1000);
        assert_eq!(bucket.wait(HostTicks(0)), Some(HostTicks(80_000)));
        assert_eq!(bucket.wait(HostTicks(79_999)), Some(HostTicks(80_000)));
        assert_eq!(bucket.wait(HostTicks(80_000)), None);
        // A burst is there again when that has been paid for, and never more.
        let later = HostTicks(1_000_000_000_000);
        assert_eq!(bucket.wait(later), None);
        bucket.spend(burst + 1);
        assert_eq!(bucket.wait(later), Some(HostTicks(later.0 + 80)));
        // Time that goes back changes nothing.
        assert_eq!(bucket.wait(HostTicks(0)), Some(HostTicks(later.0 + 80)));
    }

    #[test]
    fn a_fast_line_has_a_burst_for_when_its_sender_has_no_cpu() {
        assert_eq!(bucket(10_000, GHZ).burst(), 12_500_000);
        let mut bucket = bucket(Bandwidth::MOST, Hertz::new(1 << 62));
        bucket.spend(1 << 40);
        assert_eq!(bucket.wait(HostTicks(u64::MAX)), Some(HostTicks(u64::MAX)));
    }

    proptest! {
        /// Whatever is tried and when, in no time more is sent than it allows; and who waits for as
        /// long as it is told may send.
        #[test]
        fn no_more_is_sent_in_any_time_than_rate_and_burst_allow(
            megabits in prop_oneof![1..100u32, 1..=Bandwidth::MOST],
            hz in prop_oneof![Just(100_000_000u64), 1_000_000..6_000_000_000u64],
            tries in proptest::collection::vec((0..100_000u64, 1..70_000u64, any::<bool>()), 1..200),
        ) {
            let tsc = Hertz::new(hz);
            let mut bucket = bucket(megabits, tsc);
            let mut now = HostTicks(0);
            let mut sent: Vec<(u64, u64)> = Vec::new();
            for (pause, bytes, patient) in tries {
                now = now.saturating_add(pause);
                match bucket.wait(now) {
                    Some(until) if patient => {
                        prop_assert!(until > now && bucket.wait(HostTicks(until.0 - 1)).is_some());
                        now = until;
                        prop_assert_eq!(bucket.wait(now), None);
                    }
                    Some(_) => continue,
                    None => {}
                }
                bucket.spend(bytes);
                sent.push((now.0, bytes));
            }
            for (first, &(from, _)) in sent.iter().enumerate() {
                let (mut sum, mut largest) = (0u128, 0);
                for &(to, bytes) in &sent[first..] {
                    sum += u128::from(bytes);
                    largest = largest.max(bytes);
                    let rate = u128::from(megabits) * 125_000;
                    let paid = u128::from(to - from) * rate / u128::from(hz);
                    let most = paid + 1 + u128::from(bucket.burst() + largest);
                    prop_assert!(sum <= most, "{sum} bytes in {} ticks", to - from);
                }
            }
        }
    }
}
