//! How late a process that sleeps 10 ms at a time wakes.

use serde_json::{Value, json};

use super::observation::Wake;

/// The time from one wake of the sleeper to the next, if it were woken at once, in milliseconds.
const SLEEP_MS: f64 = 10.0;

/// The median and the largest of some values, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub median: f64,
    pub largest: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: *values.get(values.len() / 2)?,
            largest: *values.last()?,
        })
    }

    fn json(self) -> Value {
        json!({ "median_ms": self.median, "largest_ms": self.largest })
    }
}

/// The lateness of the sleeper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Latency {
    /// The number of times that it woke.
    pub wakes: usize,
    /// The lateness by its own clock.
    pub guest: Spread,
    /// The lateness by the host's: the time between two of its lines, without the sleep.
    pub host: Spread,
}

impl Latency {
    /// Makes it from its wakes, one after the other; `None` where there are not two.
    pub(super) fn of(wakes: &[Wake]) -> Option<Self> {
        let guest = wakes.iter().map(|wake| wake.late_ns as f64 / 1e6);
        let apart = wakes
            .windows(2)
            .map(|pair| pair[1].host_us.saturating_sub(pair[0].host_us) as f64 / 1e3 - SLEEP_MS);
        Some(Self {
            wakes: wakes.len(),
            host: Spread::of(apart.collect())?,
            guest: Spread::of(guest.collect())?,
        })
    }

    /// Returns it as JSON, for programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "wakes": self.wakes,
            "guest_time": self.guest.json(),
            "host_time": self.host.json(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_told_by_both_clocks() {
        let wake = |host_ms: u64, late_us: u64| Wake {
            host_us: host_ms * 1000,
            guest_ns: 0,
            late_ns: late_us * 1000,
        };
        let wakes = [wake(0, 100), wake(11, 200), wake(26, 5000), wake(36, 50)];
        let latency = Latency::of(&wakes).expect("wakes");
        assert_eq!(latency.wakes, 4);
        let spread = |median, largest| Spread { median, largest };
        assert_eq!(latency.guest, spread(0.2, 5.0));
        assert_eq!(latency.host, spread(1.0, 5.0));
        assert_eq!(Latency::of(&wakes[..1]), None);
    }
}
