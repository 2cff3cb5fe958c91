//! The time that it takes a sleeping CPU to wake, by which it is woken before a timer is due.
//!
//! From the interrupt of the host's timer to the entry of a VCPU it is a way: the end of the sleep, the
//! scheduler's decision, the VCPU's state. By all of that the guest's timer would be late. So an idle CPU
//! sleeps that much less, and waits, with the VCPU at hand, for the rest of the time. KVM does the same
//! (`lapic_timer_advance_ns`).
#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

/// The longest time that is believed and waited for, 20 us, as the frequency of which that is a period.
/// What takes longer was held up by something else.
const LONGEST: Hertz = Hertz::new(50_000);

/// The weight of what has been seen before, as the shift of its sum: a new time counts for an eighth.
const MEMORY: u32 = 3;

/// A moving average of the times that waking has taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct WakeLatency {
    /// The average, in host ticks, times eight; `None` before the first time.
    sum: Option<u64>,
    /// The longest time that counts, in host ticks.
    longest: u64,
}

impl WakeLatency {
    /// Makes that of a CPU whose TSC counts at `tsc`, before it has slept.
    pub(super) const fn new(tsc: Hertz) -> Self {
        Self {
            sum: None,
            longest: LONGEST.ticks_for(1, tsc),
        }
    }

    /// Takes note that the CPU, which slept until `until`, was ready to enter a guest at `ready`. Nothing
    /// follows if that is before `until`: something else has ended the sleep.
    pub(super) fn note(&mut self, until: HostTicks, ready: HostTicks) {
        let took = ready.since(until);
        if ready < until || took > self.longest {
            return;
        }
        // Not the shortest: that would be the one of a CPU that happened to be awake.
        self.sum = Some(match self.sum {
            None => took << MEMORY,
            Some(sum) => sum - (sum >> MEMORY) + took,
        });
    }

    /// Returns how long waking takes, in host ticks: no longer than 20 us, and zero before it was seen.
    #[must_use]
    pub(super) fn ticks(self) -> u64 {
        self.sum.unwrap_or(0) >> MEMORY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 us are 20,000 of its ticks.
    const TSC: Hertz = Hertz::new(1_000_000_000);
    const DUE: u64 = 1_000_000;

    fn after(latency: &mut WakeLatency, took: u64) -> u64 {
        latency.note(HostTicks(DUE), HostTicks(DUE + took));
        latency.ticks()
    }

    #[test]
    fn the_first_time_counts_at_once_and_later_ones_little_by_little() {
        let mut latency = WakeLatency::new(TSC);
        assert_eq!(latency.ticks(), 0);
        assert_eq!(after(&mut latency, 800), 800);
        assert_eq!(after(&mut latency, 1_600), 900);
        for _ in 0..100 {
            after(&mut latency, 500);
        }
        assert!((500..508).contains(&latency.ticks()), "{latency:?}");
    }

    #[test]
    fn what_is_held_up_or_ends_before_its_time_tells_nothing() {
        let mut latency = WakeLatency::new(TSC);
        after(&mut latency, 800);
        assert_eq!(after(&mut latency, 20_001), 800);
        latency.note(HostTicks(DUE), HostTicks(DUE - 1));
        assert_eq!(latency.ticks(), 800);
    }

    #[test]
    fn it_is_never_more_than_20_microseconds() {
        let mut latency = WakeLatency::new(TSC);
        for took in 0..40_000 {
            assert!(after(&mut latency, took) <= 20_000);
        }
        assert!(latency.ticks() > 19_900);
    }
}
