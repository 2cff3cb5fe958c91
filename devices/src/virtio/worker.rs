//! A device at work on its queues, apart from the registers by which its driver sets it up.
//!
//! To move data takes long, and is done by whichever processor has notified the device; the others use the
//! chipset meanwhile, and with it the registers of this device. So the device and its queues have a lock of their own,
//! which is held for one turn of work; and a notification is a bit, which is set without it. A processor that finds the
//! lock taken goes on, but leaves a bit that asks to look again: what it has notified the device of, or has for it, is
//! done after the turn that is under way, as whoever makes that looks at the bits when it has let go of the lock. So it
//! is with all that the chipset is to know of the device: it is [told](Worker::tell) when nobody works.
//!
//! Who holds the chipset may wait for the lock, as for a reset, after which nothing more may happen in the driver's
//! memory; who holds the lock never waits for the chipset.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use spin::{Mutex, MutexGuard};

use super::device::{DeviceError, HostFailure, Progress, VirtioDevice};
use super::queue::Queue;
use crate::chipset::pci::Work;
use crate::guest_memory::GuestMemory;
use crate::time::HostTicks;

/// The most queues that a device has.
const MAX_QUEUES: usize = u32::BITS as usize - 1;
/// The bit, behind those of the queues, by which whoever holds the lock is asked to look again.
const LOOK_AGAIN: u32 = 1 << MAX_QUEUES;

/// A device with its queues.
#[derive(Debug)]
pub(super) struct Worker {
    /// The queues of which the driver has notified the device since it was last looked: a bit for each; and
    /// [`LOOK_AGAIN`].
    notified: AtomicU32,
    inner: Mutex<Inner>,
}

/// The part of it that works.
#[derive(Debug)]
pub(super) struct Inner {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    queues: Vec<WorkQueue>,
    /// Whether the driver is ready: DRIVER_OK.
    pub is_driver_ready: bool,
    /// Whether the guest lets it be a bus master.
    pub is_master: bool,
    /// Whether the driver did what no driver may, so that nothing is done before a reset.
    pub has_failed: bool,
    /// The offense, before it has been told.
    error: Option<DeviceError>,
    /// The cause of an error that is none of the driver's making, before it has been told.
    failure: Option<HostFailure>,
    /// The queues for which the driver is to be interrupted, for what was given back: a bit for each.
    interrupts: u32,
    /// The times at which there is more to do, as the chipset knows them.
    told: Due,
}

/// A queue at work.
#[derive(Clone, Debug, Default)]
struct WorkQueue {
    queue: Option<Queue>,
    /// The driver has notified the device, or it has not finished.
    is_pending: bool,
    /// The host time before which the device can do nothing more for it, if there is one.
    waits_until: Option<HostTicks>,
}

/// The things that the chipset is to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The queues for which the driver is to be interrupted: a bit for each.
    pub interrupts: u32,
    /// The offense of the driver's for which the device needs a reset.
    pub error: Option<DeviceError>,
    /// The cause of an error that the driver has been told of, if that is none of its making.
    pub failure: Option<HostFailure>,
    /// The times at which there is more to do.
    pub due: Due,
}

/// The times at which there is more to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Whether there is something to do now.
    pub now: bool,
    /// The host time from which on there is.
    pub at: Option<HostTicks>,
}

impl Worker {
    /// Makes one of a device whose driver has not begun.
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let queues = device.queues();
        debug_assert!(queues <= MAX_QUEUES, "a bit for each queue");
        Self {
            notified: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                device,
                queues: alloc::vec![WorkQueue::default(); queues],
                is_driver_ready: false,
                is_master: true,
                has_failed: false,
                error: None,
                failure: None,
                interrupts: 0,
                told: Due::default(),
            }),
        }
    }

    /// Takes note that the driver has something for queue `index`.
    pub(super) fn notify(&self, index: usize) {
        if index < MAX_QUEUES {
            self.notified.fetch_or(1 << index, Ordering::SeqCst);
        }
    }

    /// Waits until nobody works, for a turn at most, and keeps everybody from it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Locks it and follows the notifications that have come. Where somebody works, asks them to look again.
    fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        let ask = || {
            self.notified.fetch_or(LOOK_AGAIN, Ordering::SeqCst);
            // Either they see it, or they had let go of the lock before, and then it is free here.
            fence(Ordering::SeqCst);
            self.inner.try_lock()
        };
        let mut inner = self.inner.try_lock().or_else(ask)?;
        let notified = match self.notified.load(Ordering::SeqCst) {
            0 => 0,
            _ => self.notified.swap(0, Ordering::SeqCst),
        };
        for index in bits(notified & !LOOK_AGAIN) {
            if let Some(queue) = inner.queues.get_mut(index) {
                queue.is_pending = true;
            }
        }
        Some(inner)
    }

    /// Forgets all that the driver has said.
    pub(super) fn reset(&self) {
        let mut inner = self.inner.lock();
        self.notified.store(0, Ordering::SeqCst);
        inner.device.reset();
        inner.queues.fill(WorkQueue::default());
        inner.is_driver_ready = false;
        inner.has_failed = false;
        inner.error = None;
        inner.interrupts = 0;
        inner.told = Due::default();
    }

    /// Follows that host time has come to `now`, unless somebody works: then it is to be told again after that.
    pub(super) fn follow_host_time(&self, now: HostTicks) {
        let Some(mut inner) = self.try_lock() else {
            return;
        };
        for queue in &mut inner.queues {
            if queue.waits_until.is_some_and(|at| at <= now) {
                queue.waits_until = None;
                queue.is_pending = true;
            }
        }
    }

    /// Returns what the chipset is to know. `None` while somebody works, who will tell afterwards if it is not as it was
    /// told before.
    pub(super) fn tell(&self) -> Option<News> {
        let mut inner = self.try_lock()?;
        inner.told = inner.due();
        Some(News {
            interrupts: core::mem::take(&mut inner.interrupts),
            error: inner.error.take(),
            failure: inner.failure.take(),
            due: inner.told,
        })
    }
}

impl Work for Worker {
    fn run(&self, memory: &dyn GuestMemory) -> bool {
        let Some(mut inner) = self.try_lock() else {
            // It may be held to tell the chipset something only: nobody looks again after that.
            return true;
        };
        inner.work(memory);
        let has_news = inner.interrupts != 0
            || inner.error.is_some()
            || inner.failure.is_some()
            || inner.due() != inner.told;
        drop(inner);
        // Who has found the lock taken has set a bit before: see `try_lock`.
        fence(Ordering::SeqCst);
        has_news || self.notified.load(Ordering::SeqCst) != 0
    }
}

impl Inner {
    /// Puts queue `index` into operation.
    pub(super) fn enable(&mut self, index: usize, queue: Queue) {
        if let Some(slot) = self.queues.get_mut(index) {
            slot.queue = Some(queue);
        }
    }

    const fn may_work(&self) -> bool {
        self.is_driver_ready && !self.has_failed
    }

    fn due(&self) -> Due {
        if !self.may_work() || !self.is_master {
            return Due::default();
        }
        let mut queues = self.queues.iter().enumerate();
        let has_work = |(index, slot): (usize, &WorkQueue)| {
            slot.queue.is_some() && (slot.is_pending || self.device.has_input(index))
        };
        Due {
            now: queues.any(has_work),
            at: self.queues.iter().filter_map(|slot| slot.waits_until).min(),
        }
    }

    /// Works on the queues that have something to do, each for as long as the device works at a
    /// time.
    fn work(&mut self, memory: &dyn GuestMemory) {
        for index in 0..self.queues.len() {
            if !self.may_work() {
                return;
            }
            let slot = &mut self.queues[index];
            if !self.is_master {
                // It can only forget that it was notified.
                slot.is_pending = false;
                continue;
            }
            let has_work = slot.is_pending || self.device.has_input(index);
            let (true, Some(queue)) = (has_work, &mut slot.queue) else {
                continue;
            };
            let result = self.device.work(index, queue, memory);
            match (result, queue.wants_interrupt(memory)) {
                (Ok(progress), Ok(wanted)) => {
                    slot.is_pending = progress == Progress::Busy;
                    slot.waits_until = match progress {
                        Progress::Until(at) => Some(at),
                        Progress::Idle | Progress::Busy => None,
                    };
                    self.interrupts |= u32::from(wanted) << index;
                }
                (Err(error), _) => self.error = Some(error),
                (_, Err(error)) => self.error = Some(error.into()),
            }
            self.failure = self.failure.or(self.device.take_failure());
            self.has_failed = self.error.is_some();
        }
    }
}

/// Returns the places of the bits that are set.
pub(super) fn bits(mut word: u32) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let lowest = (word != 0).then_some(word.trailing_zeros() as usize);
        word &= word.wrapping_sub(1);
        lowest
    })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::sync::{Barrier, LazyLock};
    use std::thread;

    use arch::addr::GuestPhysAddr;

    use super::super::driver::Ram;
    use super::super::queue::{Placement, QueueFeatures};
    use super::super::scripted::Scripted;
    use super::*;

    fn queue() -> Queue {
        let at = Placement {
            size: 16,
            descriptors: GuestPhysAddr(0x1000),
            available: GuestPhysAddr(0x2000),
            used: GuestPhysAddr(0x3000),
        };
        Queue::new(at, QueueFeatures::default()).unwrap()
    }

    /// What a driver has for two queues, and how much of that the device has seen.
    #[derive(Default)]
    struct Books {
        available: [AtomicU64; 2],
        seen: [AtomicU64; 2],
    }

    impl Books {
        fn has_more(&self, index: usize) -> bool {
            let [seen, available] =
                [&self.seen, &self.available].map(|it| it[index].load(Ordering::SeqCst));
            seen < available
        }
    }

    /// Lets two processors come at the same time, many times: the first notifies a device of its first queue,
    /// the second does what `second` says about the other, and returns whether there is work. Returns how often something
    /// was not seen after the work that was said to be there was done.
    fn rounds(
        books: &'static Books,
        has_input: fn(usize) -> bool,
        second: impl Fn(&Worker, &Ram) -> bool + Sync,
    ) -> usize {
        const ROUNDS: usize = 5000;
        let worker = Worker::new(Box::new(
            Scripted::new(2, |index, _, _| {
                let available = books.available[index].load(Ordering::SeqCst);
                books.seen[index].store(available, Ordering::SeqCst);
                // So long that the other comes meanwhile.
                thread::yield_now();
                Ok(Progress::Idle)
            })
            .with_input(has_input),
        ));
        {
            let mut inner = worker.lock();
            inner.enable(0, queue());
            inner.enable(1, queue());
            inner.is_driver_ready = true;
        }
        let (start, end) = (Barrier::new(3), Barrier::new(3));
        let has_news = AtomicBool::new(false);
        let processor = |act: &dyn Fn(&Ram) -> bool| {
            let ram = Ram::new(0x4000);
            for _ in 0..ROUNDS {
                start.wait();
                if act(&ram) {
                    has_news.store(true, Ordering::SeqCst);
                }
                end.wait();
            }
        };
        // Counted, and asserted when nobody waits for the others any more.
        let mut lost = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                processor(&|ram| {
                    books.available[0].fetch_add(1, Ordering::SeqCst);
                    worker.notify(0);
                    worker.run(ram)
                });
            });
            scope.spawn(|| processor(&|ram| second(&worker, ram)));
            let ram = Ram::new(0x4000);
            for _ in 0..ROUNDS {
                start.wait();
                end.wait();
                // As the chipset does, which asks for nothing if there is nothing new.
                if has_news.swap(false, Ordering::SeqCst) && worker.tell().unwrap().due.now {
                    worker.run(&ram);
                    worker.tell();
                }
                lost += usize::from(books.has_more(0) || books.has_more(1));
            }
        });
        lost
    }

    #[test]
    fn a_notification_while_another_processor_works_is_not_lost() {
        static BOOKS: LazyLock<Books> = LazyLock::new(Books::default);
        let second = |worker: &Worker, ram: &Ram| {
            BOOKS.available[1].fetch_add(1, Ordering::SeqCst);
            worker.notify(1);
            worker.run(ram)
        };
        assert_eq!(rounds(&BOOKS, |_| false, second), 0);
    }

    #[test]
    fn input_that_comes_while_another_processor_works_is_not_lost() {
        static BOOKS: LazyLock<Books> = LazyLock::new(Books::default);
        let second = |worker: &Worker, _: &Ram| {
            BOOKS.available[1].fetch_add(1, Ordering::SeqCst);
            worker.tell().is_some_and(|news| news.due.now)
        };
        // So long that some comes right after it was looked for.
        let has_input = |index| {
            let is_there = BOOKS.has_more(index);
            thread::yield_now();
            is_there
        };
        assert_eq!(rounds(&BOOKS, has_input, second), 0);
    }

    #[test]
    fn bits_are_told_from_the_lowest_on() {
        for (word, places) in [(0, &[][..]), (1, &[0]), (0x8000_0012, &[1, 4, 31])] {
            assert!(bits(word).eq(places.iter().copied()), "{word:#x}");
        }
    }
}
