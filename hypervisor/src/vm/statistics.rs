//! What a VCPU has done: its exits by reason, and the time they took.
#![forbid(unsafe_code)]

use vmx::exit::basic;

/// Counts of one VCPU. Times are in host TSC ticks.
#[derive(Clone, Debug)]
pub struct Statistics {
    exits: [u64; basic::COUNT],
    root_ticks: [u64; basic::COUNT],
    /// Ticks spent in the guest.
    pub guest_ticks: u64,
    /// VM exits of all reasons.
    pub total_exits: u64,
}

/// The row of one exit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonStatistics {
    /// The basic exit reason.
    pub reason: u16,
    /// How often.
    pub exits: u64,
    /// Ticks in root mode, from the exit to the next entry.
    pub root_ticks: u64,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            exits: [0; basic::COUNT],
            root_ticks: [0; basic::COUNT],
            guest_ticks: 0,
            total_exits: 0,
        }
    }
}

impl Statistics {
    /// Counts an exit, after `guest_ticks` in the guest.
    #[inline]
    pub fn count_exit(&mut self, reason: u16, guest_ticks: u64) {
        self.total_exits += 1;
        self.guest_ticks += guest_ticks;
        if let Some(exits) = self.exits.get_mut(usize::from(reason)) {
            *exits += 1;
        }
    }

    /// Adds the time that an exit took.
    #[inline]
    pub fn add_root_ticks(&mut self, reason: u16, ticks: u64) {
        if let Some(root) = self.root_ticks.get_mut(usize::from(reason)) {
            *root += ticks;
        }
    }

    /// The reasons that occurred, by number.
    pub fn reasons(&self) -> impl Iterator<Item = ReasonStatistics> {
        (0..)
            .zip(self.exits.iter().zip(&self.root_ticks))
            .filter(|(_, (exits, _))| **exits != 0)
            .map(|(reason, (&exits, &root_ticks))| ReasonStatistics {
                reason,
                exits,
                root_ticks,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_by_reason_and_unknown_ones_in_the_total() {
        let mut statistics = Statistics::default();
        statistics.count_exit(basic::CPUID, 100);
        statistics.add_root_ticks(basic::CPUID, 7);
        statistics.count_exit(u16::MAX, 1);
        statistics.add_root_ticks(u16::MAX, 1);
        assert_eq!((statistics.total_exits, statistics.guest_ticks), (2, 101));
        let mut reasons = statistics.reasons();
        let cpuid = ReasonStatistics {
            reason: basic::CPUID,
            exits: 1,
            root_ticks: 7,
        };
        assert_eq!(reasons.next(), Some(cpuid));
        assert_eq!(reasons.next(), None);
    }
}
