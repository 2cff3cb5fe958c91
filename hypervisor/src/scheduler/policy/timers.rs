//! VCPUs that wake by their timers, and when a CPU has to look at its queue again.

use devices::time::HostTicks;

use super::CpuQueue;
use crate::ids::{VcpuId, VmId};

impl CpuQueue {
    /// Wakes the VCPUs whose timers are due.
    pub(super) fn wake_due(&mut self, now: HostTicks) {
        while let Some((due, target)) = self.first_timer()
            && due <= now
        {
            self.make_runnable(target, due);
        }
    }

    /// Wakes the VCPU whose timer is due first, if that is in no more than `lead` ticks. Returns when.
    pub(super) fn wake_first(&mut self, now: HostTicks, lead: u64) -> Option<HostTicks> {
        let (due, target) = self.first_timer()?;
        if due.since(now) > lead {
            return None;
        }
        self.make_runnable(target, due.min(now));
        Some(due)
    }

    /// Returns the blocked VCPU whose timer is due first, and when.
    fn first_timer(&self) -> Option<(HostTicks, VcpuId)> {
        let (due, vm) = self.timers.first()?;
        let vm = VmId(vm);
        let index = self.vm(vm)?.timers.first()?.1 as u32;
        Some((due, VcpuId { vm, index }))
    }

    /// Returns when the first timer of a blocked VCPU is due.
    pub(super) fn next_timer(&self) -> HostTicks {
        self.timers
            .first()
            .map_or(HostTicks(u64::MAX), |(due, _)| due)
    }

    /// Returns when an idle CPU has to look again: `lead` ticks before a timer is due, or for a VM whose
    /// budget is renewed.
    pub(super) fn next_event(&self, lead: u64) -> HostTicks {
        let mut timer = self.next_timer();
        if timer.0 != u64::MAX {
            timer = HostTicks(timer.0.saturating_sub(lead));
        }
        if self.throttled.is_empty() {
            timer
        } else {
            timer.min(self.throttled_until)
        }
    }
}
