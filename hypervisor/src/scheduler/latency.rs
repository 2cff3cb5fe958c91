//! How long woken VCPUs wait for a CPU.
#![forbid(unsafe_code)]

/// Statistics of waiting times, in host TSC ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    /// The longest.
    pub max: u64,
    /// All together.
    pub total: u64,
    /// The number of waiting times.
    pub count: u64,
}

impl Latency {
    /// Adds a waiting time.
    pub(crate) fn record(&mut self, ticks: u64) {
        self.max = self.max.max(ticks);
        self.total = self.total.saturating_add(ticks);
        self.count += 1;
    }

    /// Returns these and those of `other`.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            max: self.max.max(other.max),
            total: self.total.saturating_add(other.total),
            count: self.count + other.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_the_sum_are_kept() {
        let mut latency = Latency::default();
        latency.record(10);
        latency.record(40);
        let mut other = Latency::default();
        other.record(100);
        let all = latency.and(other);
        assert_eq!((all.max, all.total, all.count), (100, 150, 3));
    }
}
