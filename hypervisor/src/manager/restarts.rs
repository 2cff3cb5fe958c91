//! Starting VMs again whose guests reset or crash: as often as their configurations allow, and not for
//! ever.
#![forbid(unsafe_code)]

use devices::time::HostTicks;

use crate::vcpu::StopReason;
use crate::vm_config::RestartPolicy;

/// The most times that a VM is started again of itself within [`PERIOD_SECONDS`].
const MOST: usize = 5;
/// A guest that resets before it has come far does so again: a minute is longer than most boots.
const PERIOD_SECONDS: u64 = 60;

/// The decision on a VM that has come to an end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No restart: the VM stays as it is.
    Stop,
    /// A restart.
    Restart,
    /// No restart although the policy wants one: there have been too many.
    TooOften,
}

/// The times of a VM's automatic restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Restarts {
    /// The last times, the oldest first where all are there.
    times: [Option<HostTicks>; MOST],
}

impl Restarts {
    /// Decides what becomes of a VM with this policy, which ends at `now` for `reason`.
    pub(super) fn after(
        &mut self,
        reason: &StopReason,
        policy: RestartPolicy,
        now: HostTicks,
        ticks_per_second: u64,
    ) -> Next {
        let wanted = match reason {
            StopReason::Reset => policy.after_reset,
            reason if reason.is_orderly() => false,
            _ => policy.after_crash,
        };
        if !wanted {
            return Next::Stop;
        }
        let period = ticks_per_second.saturating_mul(PERIOD_SECONDS);
        let [oldest, ..] = self.times;
        if oldest.is_some_and(|oldest| now.since(oldest) < period) {
            return Next::TooOften;
        }
        self.times.rotate_left(1);
        self.times[MOST - 1] = Some(now);
        Next::Restart
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const SECOND: u64 = 1000;

    fn restarts(policy: RestartPolicy, reason: &StopReason, seconds: &[u64]) -> Vec<Next> {
        let mut restarts = Restarts::default();
        seconds
            .iter()
            .map(|second| restarts.after(reason, policy, HostTicks(second * SECOND), SECOND))
            .collect()
    }

    #[test]
    fn a_reset_and_a_crash_are_told_apart() {
        let both = RestartPolicy {
            after_reset: true,
            after_crash: true,
        };
        let resets = RestartPolicy {
            after_crash: false,
            ..both
        };
        let neither = RestartPolicy {
            after_reset: false,
            ..resets
        };
        let next = |policy, reason: StopReason| restarts(policy, &reason, &[1])[0];
        assert_eq!(next(resets, StopReason::Reset), Next::Restart);
        assert_eq!(next(neither, StopReason::Reset), Next::Stop);
        assert_eq!(next(resets, StopReason::TripleFault), Next::Stop);
        assert_eq!(next(both, StopReason::TripleFault), Next::Restart);
        for orderly in [StopReason::PowerOff, StopReason::DebugExit(0)] {
            assert_eq!(next(both, orderly), Next::Stop);
        }
    }

    #[test]
    fn five_in_a_minute_are_enough() {
        let policy = RestartPolicy {
            after_reset: true,
            after_crash: false,
        };
        let next = restarts(
            policy,
            &StopReason::Reset,
            &[0, 1, 2, 3, 4, 5, 59, 60, 61, 62, 63],
        );
        let ok = Next::Restart;
        let no = Next::TooOften;
        assert_eq!(next, [ok, ok, ok, ok, ok, no, no, ok, ok, ok, ok]);
    }

    #[test]
    fn one_that_resets_now_and_then_goes_on_for_ever() {
        let policy = RestartPolicy {
            after_reset: true,
            after_crash: false,
        };
        let seconds: Vec<u64> = (0..50).map(|n| n * 12).collect();
        let next = restarts(policy, &StopReason::Reset, &seconds);
        assert!(next.iter().all(|next| *next == Next::Restart));
    }
}
