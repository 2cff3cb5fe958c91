//! How long it takes to wake a VCPU: what a timer that ends its halt is early by, so as not to be late.
//!
//! From the host timer's interrupt to a VCPU that looks at its timers it is a way: the end of the host's
//! sleep, the scheduler's decision, the way back into the loop. All that time the guest's timer would be
//! late by. So a halted VCPU asks to be run that much earlier, and waits for the rest of the time on its CPU, where
//! it would have been on its way. Linux's KVM does the same (`lapic_timer_advance_ns`).
#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

/// The longest way that is believed, 50 us, as the frequency of which that is a period. What takes longer was
/// a wait for a CPU that others had.
const LONGEST: Hertz = Hertz::new(20_000);

/// The weight of what has been seen before, in eighths: one way counts for the rest.
const PAST: u64 = 7;

/// The time that it takes a VCPU to wake, as far as has been seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct WakeLatency {
    /// A moving average of the ways, in host ticks; `None` before the first.
    usual: Option<u64>,
    /// The longest that counts, in host ticks.
    longest: u64,
}

impl WakeLatency {
    /// Makes that of a host whose TSC counts at `tsc`, before anything has been seen.
    pub(super) const fn new(tsc: Hertz) -> Self {
        Self {
            usual: None,
            longest: LONGEST.ticks_for(1, tsc),
        }
    }

    /// Returns when a VCPU is to be run whose timer is due at `deadline`.
    pub(super) fn wake_at(&self, deadline: HostTicks) -> HostTicks {
        if deadline.0 == u64::MAX {
            return deadline;
        }
        HostTicks(deadline.0.saturating_sub(self.ticks()))
    }

    /// Takes note that a VCPU that was to be run at `wanted` for its timer has been run at `now`.
    pub(super) fn note(&mut self, wanted: HostTicks, now: HostTicks) {
        let took = now.since(wanted);
        if now >= wanted && took <= self.longest {
            // Not the shortest: that would be the one of a CPU that happened to be awake.
            self.usual = Some(match self.usual {
                None => took,
                Some(usual) => (usual * PAST + took) / (PAST + 1),
            });
        }
    }

    /// Returns whether a timer that is due at `deadline` is so near at `now` that a sleep would be no
    /// shorter.
    pub(super) fn is_near(&self, deadline: HostTicks, now: HostTicks) -> bool {
        now < deadline && deadline.since(now) <= self.ticks()
    }

    fn ticks(&self) -> u64 {
        self.usual.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 50 us are 50,000 of its ticks.
    const TSC: Hertz = Hertz::new(1_000_000_000);
    const DUE: HostTicks = HostTicks(1_000_000);

    #[test]
    fn the_usual_way_is_what_a_wake_up_is_early_by() {
        let mut latency = WakeLatency::new(TSC);
        assert_eq!(latency.wake_at(DUE), DUE, "nothing is known yet");
        latency.note(DUE, HostTicks(DUE.0 + 4_000));
        assert_eq!(latency.wake_at(DUE), HostTicks(DUE.0 - 4_000));
        latency.note(DUE, DUE);
        assert_eq!(latency.wake_at(DUE), HostTicks(DUE.0 - 3_500));
        for _ in 0..100 {
            latency.note(DUE, HostTicks(DUE.0 + 900));
        }
        let early = DUE.since(latency.wake_at(DUE));
        assert!((890..=910).contains(&early), "{early}");
        assert_eq!(latency.wake_at(HostTicks(500)), HostTicks(0));
        assert_eq!(latency.wake_at(HostTicks(u64::MAX)).0, u64::MAX, "never");
    }

    #[test]
    fn a_wait_for_a_busy_cpu_and_a_run_before_the_time_tell_nothing() {
        let mut latency = WakeLatency::new(TSC);
        latency.note(DUE, HostTicks(DUE.0 + 50_001));
        latency.note(DUE, HostTicks(DUE.0 - 10));
        assert_eq!(latency.wake_at(DUE), DUE);
    }

    #[test]
    fn a_timer_is_near_for_as_long_as_a_wake_up_takes() {
        let mut latency = WakeLatency::new(TSC);
        assert!(!latency.is_near(DUE, HostTicks(DUE.0 - 1)));
        latency.note(DUE, HostTicks(DUE.0 + 900));
        assert!(!latency.is_near(DUE, HostTicks(DUE.0 - 901)));
        assert!(latency.is_near(DUE, HostTicks(DUE.0 - 900)));
        assert!(latency.is_near(DUE, HostTicks(DUE.0 - 1)));
        assert!(!latency.is_near(DUE, DUE), "it is due");
    }
}
