//! What other CPUs ask of a VCPU, and where it runs.
//!
//! Whoever has something for a VCPU makes a request and kicks the CPU that it runs on, if it
//! does; see [`Vm::request`](super::Vm::request).
#![forbid(unsafe_code)]

use bitflags::bitflags;
use devices::time::HostTicks;

use crate::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Release, Ordering::SeqCst,
};

bitflags! {
    /// Things for a VCPU to look at before it enters the guest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Requests: u32 {
        /// Incoming interrupts at its local APIC, or a change of the 8259 pair's output.
        const EVENT = 1 << 0;
        /// A change of the first deadline of the devices that it keeps time for.
        const TIMERS = 1 << 1;
        /// A request to leave its CPU, so that this one asks the scheduler.
        const YIELD = 1 << 2;
        /// A change of the clock that is about to happen.
        const CLOCK = 1 << 3;
        /// A change of the memory map.
        const MEMORY = 1 << 4;
        /// A change of what is suppressed or traced.
        const SUPPRESSION = 1 << 5;
        /// Something has come from outside for one of the devices that it keeps time for.
        const INPUT = 1 << 6;
        /// A clock that is to become fast, of which the VCPU has been told last.
        const FAST_CLOCK = 1 << 7;
        /// A wish for a copy of its registers.
        const REGISTERS = 1 << 8;
        /// A wish to know which root it has now.
        const ROOT = 1 << 9;
    }
}

/// The CPU number of a VCPU that does not run.
const NOWHERE: u32 = u32::MAX;

/// The part of a VCPU that other CPUs see. In a cache line of its own, and the next one, which
/// prefetchers fetch along.
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct VcpuRequests {
    pending: AtomicU32,
    running_on: AtomicU32,
    /// The state of the VM's clock that the VCPU has last seen, out of the guest.
    acknowledged: AtomicU64,
    /// The latest host time for which it has used the VM's clock.
    clock_used_at: AtomicU64,
}

impl Default for VcpuRequests {
    fn default() -> Self {
        Self {
            pending: AtomicU32::new(0),
            running_on: AtomicU32::new(NOWHERE),
            acknowledged: AtomicU64::new(0),
            clock_used_at: AtomicU64::new(0),
        }
    }
}

impl VcpuRequests {
    /// Adds `requests`. Returns whether there were none before: otherwise the VCPU has been
    /// kicked already, and has not looked since.
    pub(crate) fn make(&self, requests: Requests) -> bool {
        self.pending.fetch_or(requests.bits(), SeqCst) == 0
    }

    /// Takes all requests.
    #[inline]
    pub(crate) fn take(&self) -> Requests {
        Requests::from_bits_retain(self.pending.swap(0, SeqCst))
    }

    /// Takes some requests back, right before what they stand for is looked at.
    #[inline]
    pub(crate) fn clear(&self, requests: Requests) {
        self.pending.fetch_and(!requests.bits(), SeqCst);
    }

    /// Returns whether there are requests.
    #[inline]
    #[must_use]
    pub(crate) fn are_pending(&self) -> bool {
        self.pending.load(SeqCst) != 0
    }

    /// Returns whether any of these requests has not been taken.
    #[must_use]
    pub(super) fn has(&self, requests: Requests) -> bool {
        self.pending.load(SeqCst) & requests.bits() != 0
    }

    /// Returns the CPU that the VCPU runs on: from before it looks at its requests for the
    /// first time until after it has left the guest for the last time.
    #[must_use]
    pub(crate) fn running_on(&self) -> Option<u32> {
        match self.running_on.load(SeqCst) {
            NOWHERE => None,
            cpu => Some(cpu),
        }
    }

    /// Says that the VCPU runs on `cpu`, or does not run.
    pub(crate) fn set_running_on(&self, cpu: Option<u32>) {
        self.running_on.store(cpu.unwrap_or(NOWHERE), SeqCst);
    }

    /// Says that the VCPU is out of the guest and knows of the clock's state `state`.
    pub(super) fn acknowledge(&self, state: u64) {
        self.acknowledged.store(state, SeqCst);
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    /// Says that the VCPU has used the VM's clock for `host`: its guest was left then, or its timers were
    /// looked at. It never says an earlier time than before.
    #[inline]
    pub(crate) fn note_clock_use(&self, host: HostTicks) {
        self.clock_used_at.store(host.0, Release);
    }

    /// Returns the latest host time for which the VCPU, which is out of the guest, has used the VM's
    /// clock.
    pub(super) fn clock_used_at(&self) -> HostTicks {
        HostTicks(self.clock_used_at.load(Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_of_several_requests_kicks() {
        let requests = VcpuRequests::default();
        assert!(requests.make(Requests::EVENT));
        assert!(!requests.make(Requests::TIMERS));
        assert_eq!(requests.take(), Requests::EVENT | Requests::TIMERS);
        assert!(!requests.are_pending());
        assert!(requests.make(Requests::EVENT));
    }

    #[test]
    fn vcpus_share_no_cache_line() {
        assert_eq!(align_of::<VcpuRequests>(), 128);
        assert_eq!(size_of::<VcpuRequests>(), 128);
    }
}
