//! The patience with a VCPU that has been kicked and does not come out of the guest.
//!
//! A kick brings a VCPU, whatever its guest does: interrupts of the host exit even when the guest's RFLAGS.IF
//! is clear (SDM vol. 3C, 26.2). In Bochs (2.7 and later) they do not if the guest was entered with the flag
//! clear and has left it alone since: they stay pending, and the guest stays until the end of its slice. NMIs
//! do exit there. So a VCPU that does not come soon gets one, and another one if that came between its last look
//! at its requests and its entry, where an NMI, other than an interrupt, passes without a trace.
//!
//! What is soon is measured: kicks take some hundred ticks in an emulator, some thousand on a processor, and some
//! ten thousand where another hypervisor is below. Whoever waits may do so with a clock that is fast, which goes on
//! meanwhile for those that are still in the guest.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use devices::time::HostTicks;

use super::host::Waker;
use crate::machine::host_time::host_now;

/// The time that a kick is taken to take before any was measured, in host ticks.
const USUAL_AT_FIRST: u64 = 2_500;
/// The time after which a VCPU that has not come is called by other means, as a multiple of what kicks usually take.
/// Later it is twice as long each time.
const TIMES_USUAL: u64 = 4;
/// The bounds of that time, in host ticks.
const LEAST: u64 = 1_000;
const MOST: u64 = 200_000;

/// The time that kicks take on this machine, from the kick to the answer, in host ticks.
#[derive(Debug)]
pub(crate) struct KickTime(AtomicU64);

impl Default for KickTime {
    fn default() -> Self {
        Self(AtomicU64::new(USUAL_AT_FIRST))
    }
}

impl KickTime {
    /// Takes note that a kick has taken `ticks`.
    pub(super) fn note(&self, ticks: u64) {
        // Of two that note at once one may be lost.
        let usual = self.0.load(Ordering::Relaxed);
        self.0
            .store(usual - usual / 8 + ticks / 8, Ordering::Relaxed);
    }

    /// Returns for how long a VCPU that has been kicked is waited for.
    pub(super) fn patience(&self) -> u64 {
        let usual = self.0.load(Ordering::Relaxed);
        usual.saturating_mul(TIMES_USUAL).clamp(LEAST, MOST)
    }
}

/// The patience with one VCPU.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    kicks: &'a KickTime,
    began: HostTicks,
    /// The time since which it has been waited for since it was called last, and for how long it is.
    called_at: HostTicks,
    ticks: u64,
    has_waited: bool,
    has_insisted: bool,
}

impl<'a> Patience<'a> {
    /// Begins to wait for a VCPU that has just been kicked.
    pub(super) fn new(kicks: &'a KickTime) -> Self {
        let now = host_now();
        Self {
            kicks,
            began: now,
            called_at: now,
            ticks: kicks.patience(),
            has_waited: false,
            has_insisted: false,
        }
    }

    /// Goes on waiting for it, a little, while it is on `cpu`; calls it by other means if that has been long.
    pub(super) fn wait(&mut self, cpu: u32, waker: &dyn Waker) {
        self.has_waited = true;
        if host_now().since(self.called_at) > self.ticks {
            self.has_insisted = true;
            waker.insist(cpu);
            self.called_at = host_now();
            self.ticks = self.ticks.saturating_mul(2);
        }
        core::hint::spin_loop();
    }

    /// Takes note that it has come, or is on no CPU.
    pub(super) fn end(self) {
        if self.has_waited && !self.has_insisted {
            self.kicks.note(host_now().since(self.began));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_is_waited_for_for_some_times_as_long_as_kicks_take_here() {
        let kicks = KickTime::default();
        assert_eq!(kicks.patience(), 4 * USUAL_AT_FIRST);
        for (takes, patience) in [
            (200, 1_000..=1_000),
            (3_000, 11_000..=12_000),
            (30_000, 110_000..=120_000),
            (1_000_000, 200_000..=200_000),
        ] {
            for _ in 0..100 {
                kicks.note(takes);
            }
            assert!(patience.contains(&kicks.patience()), "{takes}: {kicks:?}");
        }
    }
}
