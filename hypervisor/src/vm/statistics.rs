//! What a VCPU has done: its exits by reason, and the time they took.
#![forbid(unsafe_code)]

use devices::time::HostTicks;
use vmx::exit::basic;

/// The slot of exits whose reason is none of those that are counted by their number.
const OTHER: usize = basic::COUNT;

/// Counts of one VCPU. Times are in host TSC ticks.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    exits: [u64; basic::COUNT + 1],
    root_ticks: [u64; basic::COUNT + 1],
    guest_ticks: u64,
    /// All the time that it had a CPU before the time since `begun`, which counts, too.
    cpu_ticks: u64,
    begun: HostTicks,
    /// The time at which the last stay, in the guest or out of it, began.
    since: HostTicks,
    /// The slot of the last exit.
    last: usize,
    /// The cost of an exit by a timer, as last measured; zero before.
    exit_cost: u64,
}

/// The row of one exit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReasonStatistics {
    /// The basic exit reason.
    pub reason: u16,
    /// The number of exits.
    pub exits: u64,
    /// Ticks in root mode, from the exit to the next entry.
    pub root_ticks: u64,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            exits: [0; basic::COUNT + 1],
            root_ticks: [0; basic::COUNT + 1],
            guest_ticks: 0,
            cpu_ticks: 0,
            begun: HostTicks::ZERO,
            since: HostTicks::ZERO,
            last: OTHER,
            exit_cost: 0,
        }
    }
}

impl Statistics {
    /// Goes on at `now`, after a time that does not count.
    pub(crate) const fn resume(&mut self, now: HostTicks) {
        self.cpu_ticks = self.cpu_ticks();
        self.begun = now;
        self.since = now;
    }

    /// Ends the last exit at `now`, with an entry or because the VCPU comes off its CPU: the time until
    /// then was the exit's.
    #[inline]
    pub(crate) fn end_exit(&mut self, now: HostTicks) {
        // A CPU's time does not go back: `resume` has begun with this one's.
        if let Some(ticks) = self.root_ticks.get_mut(self.last) {
            *ticks += now.0.wrapping_sub(self.since.0);
        }
        self.since = now;
    }

    /// Counts an exit at `now` by its reason. Returns how long the guest's stay has been.
    #[inline]
    pub(crate) fn count_exit(&mut self, reason: u16, now: HostTicks) -> u64 {
        let stay = now.0.wrapping_sub(self.since.0);
        self.since = now;
        self.guest_ticks += stay;
        self.last = usize::from(reason).min(OTHER);
        self.exits[self.last] += 1;
        stay
    }

    /// Returns the ticks spent in the guest.
    #[must_use]
    pub(crate) const fn guest_ticks(&self) -> u64 {
        self.guest_ticks
    }

    /// Returns the ticks for which it has had a CPU, up to the last exit or entry.
    #[must_use]
    pub(crate) const fn cpu_ticks(&self) -> u64 {
        self.cpu_ticks + self.since.since(self.begun)
    }

    /// Takes note that an exit by a timer takes `ticks` on this machine.
    pub(crate) const fn set_exit_cost(&mut self, ticks: u64) {
        self.exit_cost = ticks;
    }

    /// Returns what an exit by a timer takes, in ticks; zero where none has been measured.
    #[must_use]
    pub(crate) const fn exit_cost(&self) -> u64 {
        self.exit_cost
    }

    /// Returns the number of exits of all reasons.
    #[must_use]
    pub(crate) fn total_exits(&self) -> u64 {
        self.exits.iter().sum()
    }

    /// Returns the reasons that occurred, by number.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = ReasonStatistics> {
        (0..)
            .zip(self.exits.iter().zip(&self.root_ticks))
            .take(OTHER)
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
        statistics.resume(HostTicks(1000));
        statistics.end_exit(HostTicks(1000));
        assert_eq!(statistics.count_exit(basic::CPUID, HostTicks(1100)), 100);
        statistics.end_exit(HostTicks(1107));
        assert_eq!(statistics.count_exit(u16::MAX, HostTicks(1108)), 1);
        statistics.end_exit(HostTicks(1109));
        assert_eq!(
            (statistics.total_exits(), statistics.guest_ticks()),
            (2, 101)
        );
        assert_eq!(statistics.cpu_ticks(), 109, "in the guest and out of it");
        let mut reasons = statistics.reasons();
        let cpuid = ReasonStatistics {
            reason: basic::CPUID,
            exits: 1,
            root_ticks: 7,
        };
        assert_eq!(reasons.next(), Some(cpuid));
        assert_eq!(reasons.next(), None);
        drop(reasons);
        statistics.resume(HostTicks(5000));
        statistics.count_exit(basic::CPUID, HostTicks(5020));
        assert_eq!(statistics.cpu_ticks(), 129, "but not what lies between");
    }
}
