//! A record of what happens in a VM, in host time: switches of address spaces, timer
//! interrupts, rates of its clock.
//!
//! A [`Trace`] is a ring of fixed size: recording overwrites the oldest event, and neither
//! allocates nor waits for anything but another VCPU's recording. While it is off, it costs
//! one look at a flag where something could be recorded.
#![forbid(unsafe_code)]

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use devices::clock::Rates;
use devices::time::HostTicks;
use spin::Mutex;

use crate::suppression::address_space::Root;
use crate::suppression::notice::Notice;

/// The events that a trace holds: those of some seconds of a busy guest.
pub(crate) const CAPACITY: usize = 8192;

/// Something that happened to a VCPU, or its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The loading of this address space, or its presence when tracing began.
    SwitchIn(Root),
    /// The replacement of this address space by another.
    SwitchOut(Root),
    /// An interrupt of a timer that is on its way to the guest.
    Timer,
    /// A change of the rates of the guest's clock to these.
    Rates(Rates),
    /// The start of the VCPU's wait for an interrupt.
    Halt,
    /// The end of its wait by an interrupt.
    Wake,
    /// Something that the operator is told of a target.
    Notice(Notice),
}

/// An event with its circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The time at which it happened, by the host's TSC.
    pub at: HostTicks,
    /// The number of the VCPU that it happened to; `None` if to the VM.
    pub vcpu: Option<u32>,
    /// The event.
    pub event: Event,
}

/// The events of one VM.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    on: AtomicBool,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The recorded events, up to [`CAPACITY`], for which there is room once tracing has begun.
    entries: Vec<Entry>,
    /// The index of the next one when there are that many: the oldest.
    next: usize,
}

impl Trace {
    /// Returns whether events are recorded.
    #[must_use]
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Begins to record, or goes on with it.
    ///
    /// # Errors
    /// If there is no memory for the ring.
    pub(crate) fn start(&self) -> Result<(), TryReserveError> {
        let mut ring = self.ring.lock();
        let missing = CAPACITY - ring.entries.len();
        ring.entries.try_reserve_exact(missing)?;
        self.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Stops recording; what there is stays.
    pub(crate) fn stop(&self) {
        self.on.store(false, Ordering::Relaxed);
    }

    /// Forgets all events.
    pub(crate) fn clear(&self) {
        let mut ring = self.ring.lock();
        ring.entries.clear();
        ring.next = 0;
    }

    /// Records that `event` has happened to `vcpu`; `now` reads the time, so that events are
    /// in its order, whoever records them.
    pub(crate) fn record(&self, vcpu: Option<u32>, event: Event, now: impl FnOnce() -> HostTicks) {
        let mut ring = self.ring.lock();
        let entry = Entry {
            at: now(),
            vcpu,
            event,
        };
        if ring.entries.len() < CAPACITY {
            // Never allocates: there is room since tracing began.
            if ring.entries.len() < ring.entries.capacity() {
                ring.entries.push(entry);
            }
            return;
        }
        let next = ring.next;
        ring.entries[next] = entry;
        ring.next = (next + 1) % CAPACITY;
    }

    /// Returns the number of events kept.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.ring.lock().entries.len()
    }

    /// Returns the events, the oldest first; of more than `limit` the latest.
    #[must_use]
    pub(crate) fn latest(&self, limit: usize) -> Vec<Entry> {
        let ring = self.ring.lock();
        let (newer, older) = ring.entries.split_at(ring.next.min(ring.entries.len()));
        let skipped = ring.entries.len().saturating_sub(limit);
        older.iter().chain(newer).skip(skipped).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suppression::address_space::RootFormat;

    fn record(trace: &Trace, at: u64) {
        trace.record(Some(0), Event::Timer, || HostTicks(at));
    }

    fn times(trace: &Trace, limit: usize) -> Vec<u64> {
        let entries = trace.latest(limit);
        entries.iter().map(|entry| entry.at.0).collect()
    }

    #[test]
    fn events_come_back_in_their_order() {
        let trace = Trace::default();
        trace.start().unwrap();
        let root = Root::new(0x5000, RootFormat::Long);
        trace.record(Some(1), Event::SwitchIn(root), || HostTicks(7));
        trace.record(Some(0), Event::Halt, || HostTicks(9));
        assert_eq!(
            trace.latest(usize::MAX),
            [
                Entry {
                    at: HostTicks(7),
                    vcpu: Some(1),
                    event: Event::SwitchIn(root)
                },
                Entry {
                    at: HostTicks(9),
                    vcpu: Some(0),
                    event: Event::Halt
                },
            ]
        );
    }

    #[test]
    fn the_oldest_events_make_way_and_nothing_is_allocated() {
        let trace = Trace::default();
        trace.start().unwrap();
        let room = trace.ring.lock().entries.capacity();
        for at in 0..CAPACITY as u64 + 10 {
            record(&trace, at);
        }
        let times = times(&trace, usize::MAX);
        assert_eq!(times.len(), CAPACITY);
        assert!(times.is_sorted());
        assert_eq!(times.first(), Some(&10));
        assert_eq!(trace.ring.lock().entries.capacity(), room);
    }

    #[test]
    fn a_limit_leaves_the_latest() {
        let trace = Trace::default();
        trace.start().unwrap();
        (0..5).for_each(|at| record(&trace, at));
        assert_eq!(times(&trace, 2), [3, 4]);
        (5..CAPACITY as u64 + 3).for_each(|at| record(&trace, at));
        let last = CAPACITY as u64 + 2;
        assert_eq!(times(&trace, 2), [last - 1, last]);
    }

    #[test]
    fn a_stopped_trace_keeps_its_events_until_it_is_cleared() {
        let trace = Trace::default();
        trace.start().unwrap();
        record(&trace, 1);
        trace.stop();
        assert!(!trace.is_on());
        assert_eq!(times(&trace, usize::MAX), [1]);
        trace.clear();
        assert_eq!(trace.len(), 0);
        trace.start().unwrap();
        record(&trace, 2);
        assert_eq!(times(&trace, usize::MAX), [2]);
    }

    #[test]
    fn before_it_is_started_there_is_no_room() {
        let trace = Trace::default();
        record(&trace, 1);
        assert_eq!(trace.len(), 0);
    }
}
