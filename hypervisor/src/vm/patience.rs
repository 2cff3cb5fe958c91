//! The patience with a VCPU that has been kicked and does not come out of the guest.
//!
//! A kick brings a VCPU, whatever its guest does: interrupts of the host exit even when the guest's RFLAGS.IF
//! is clear (SDM vol. 3C, 26.2). In Bochs (2.7 and later) they do not if the guest was entered with the flag
//! clear and has left it alone since: they stay pending, and the guest stays until the end of its slice. NMIs
//! do exit there. So a VCPU that does not come soon gets one, and another one if that came between its last look
//! at its requests and its entry, where an NMI, other than an interrupt, passes without a trace.
#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::host::Waker;
use crate::machine::host_time::host_now;
use crate::sync;

/// The time after which a VCPU that has not come is called by other means, in host ticks, at first: some
/// exits. Later it is twice as long each time, as exits may take longer elsewhere.
pub(super) const PATIENCE: u64 = 10_000;

/// The patience with one VCPU.
#[derive(Debug)]
pub(super) struct Patience {
    ticks: u64,
    called_at: HostTicks,
}

impl Patience {
    /// Begins to wait for a VCPU that has just been kicked.
    pub(super) fn new() -> Self {
        Self {
            ticks: PATIENCE,
            called_at: host_now(),
        }
    }

    /// Goes on waiting for it, a little, while it is on `cpu`; calls it by other means if that has been long.
    pub(super) fn wait(&mut self, cpu: u32, waker: &dyn Waker) {
        if host_now().since(self.called_at) > self.ticks {
            waker.insist(cpu);
            self.called_at = host_now();
            self.ticks = self.ticks.saturating_mul(2);
        }
        sync::spin_loop();
    }
}
