//! How other CPUs call a VCPU.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// There is mail for its local APIC, or the 8259 pair's output has changed.
pub const MAIL: u32 = 1 << 0;
/// The first deadline of the devices that it keeps time for has changed.
pub const TIMERS: u32 = 1 << 1;
/// It is to leave its CPU, so that this one asks the scheduler.
pub const YIELD: u32 = 1 << 2;
/// The clock is about to change.
pub const CLOCK: u32 = 1 << 3;
/// The memory map has changed.
pub const MEMORY: u32 = 1 << 4;

/// A VCPU that is on no CPU.
const NOWHERE: u32 = u32::MAX;

/// What other CPUs see of a VCPU. In a cache line of its own, and the next one, which
/// prefetchers fetch along.
#[repr(align(128))]
#[derive(Debug)]
pub struct Bell {
    rung: AtomicU32,
    place: AtomicU32,
    /// The state of the VM's clock that the VCPU has last seen, out of the guest.
    acknowledged: AtomicU64,
}

impl Default for Bell {
    fn default() -> Self {
        Self {
            rung: AtomicU32::new(0),
            place: AtomicU32::new(NOWHERE),
            acknowledged: AtomicU64::new(0),
        }
    }
}

impl Bell {
    /// Notes `reasons`. True if there were none before: else the VCPU has been called
    /// already, and has not looked since.
    pub fn set(&self, reasons: u32) -> bool {
        self.rung.fetch_or(reasons, SeqCst) == 0
    }

    /// Takes all reasons.
    #[inline]
    pub fn take(&self) -> u32 {
        self.rung.swap(0, SeqCst)
    }

    /// Takes one reason back, right before what it stands for is looked at.
    #[inline]
    pub fn clear(&self, reason: u32) {
        self.rung.fetch_and(!reason, SeqCst);
    }

    /// Whether there are reasons to look.
    #[inline]
    #[must_use]
    pub fn is_rung(&self) -> bool {
        self.rung.load(SeqCst) != 0
    }

    /// The CPU that it is on: from before it looks at the bell for the first time until after
    /// it has left the guest for the last time.
    #[must_use]
    pub fn place(&self) -> Option<u32> {
        match self.place.load(SeqCst) {
            NOWHERE => None,
            cpu => Some(cpu),
        }
    }

    /// Says that the VCPU is on `cpu`, or on none.
    pub fn set_place(&self, cpu: Option<u32>) {
        self.place.store(cpu.unwrap_or(NOWHERE), SeqCst);
    }

    /// Says that the VCPU is out of the guest and knows of the clock's state `state`.
    pub(super) fn acknowledge(&self, state: u64) {
        self.acknowledged.store(state, SeqCst);
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_of_several_rings_calls() {
        let bell = Bell::default();
        assert!(bell.set(MAIL));
        assert!(!bell.set(TIMERS));
        assert_eq!(bell.take(), MAIL | TIMERS);
        assert!(!bell.is_rung());
        assert!(bell.set(MAIL));
    }

    #[test]
    fn bells_share_no_cache_line() {
        assert_eq!(align_of::<Bell>(), 128);
        assert_eq!(size_of::<Bell>(), 128);
    }
}
