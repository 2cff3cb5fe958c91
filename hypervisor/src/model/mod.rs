//! Models: small scenarios of a few CPUs that are run in many orders of what they do, by `cargo test -p hypervisor
//! --features model model::`.
//!
//! A scenario is code of the hypervisor's, on the locks and atomics of [`sync`](crate::sync), and CPUs that are tasks. All
//! of them are run by turns on one thread; where a task accesses what others may, another one may go
//! on. A scenario in which nobody comes any further, or that never ends, is a failure. So is a panic.
//!
//! Orders are chosen in two ways. [`Delays`] goes through *all* in which few of the tasks' turns come at other times
//! than they would if each went on for as long as it can. Others come by chance.
#![forbid(unsafe_code)]

pub(crate) mod mutex;

use std::vec::Vec;

use devices::time::HostTicks;
use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, MaxSteps, Runner};

use crate::machine::host_time::fake;

/// The accesses after which a scenario is taken to go on for ever.
const MAX_STEPS: usize = 20_000;

/// The ticks of host time that pass from one look at it to the next.
const LOOK: u64 = 100;

/// Runs `scenario` in all orders with no more than `delays` delays, and in `others` by chance.
///
/// # Panics
/// If it fails in any.
pub(crate) fn check(delays: usize, others: usize, scenario: fn()) {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    let scenario = move || {
        fake::set(HostTicks(1_000_000));
        fake::let_looks_take(LOOK);
        scenario();
    };
    let orders = Runner::new(Delays::new(delays), config.clone()).run(scenario);
    std::println!("{orders} orders with up to {delays} delays, {others} by chance");
    Runner::new(RandomScheduler::new_from_seed(1, others), config).run(scenario);
}

/// A choice that an order has: by how many tasks the one that would have come next is delayed.
struct Choice {
    taken: usize,
    most: usize,
}

/// A search through all orders with a bounded number of delays. Without any, a task goes on until it waits for
/// another one, and then the next one of a circle does. A delay is that the one after it comes first.
/// (Emmi, Qadeer and Rakamaric, "Delay-bounded scheduling", POPL 2011: few delays show most bugs.)
///
/// As those who wait for something in a loop pass the turn on, each order is fair, and comes to an end if all such do.
struct Delays {
    bound: usize,
    /// The choices of the present order, as far as they are made.
    choices: Vec<Choice>,
    /// The number of those that have been come by.
    step: usize,
    spent: usize,
    has_begun: bool,
}

impl Delays {
    const fn new(bound: usize) -> Self {
        Self {
            bound,
            choices: Vec::new(),
            step: 0,
            spent: 0,
            has_begun: false,
        }
    }
}

impl Scheduler for Delays {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.has_begun {
            // The last choice that can be made in yet another way is.
            while self
                .choices
                .pop_if(|last| last.taken == last.most)
                .is_some()
            {}
            self.choices.last_mut()?.taken += 1;
        }
        self.has_begun = true;
        self.step = 0;
        self.spent = 0;
        Some(Schedule::new(0))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let next = current.map_or(0, |current| {
            let first = runnable
                .iter()
                .position(|task| task.id() > current || task.id() == current && !is_yielding);
            first.unwrap_or(0)
        });
        if self.step == self.choices.len() {
            let most = (runnable.len() - 1).min(self.bound - self.spent);
            self.choices.push(Choice { taken: 0, most });
        }
        let taken = self.choices[self.step].taken;
        self.step += 1;
        self.spent += taken;
        Some(runnable[(next + taken) % runnable.len()].id())
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}

mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use shuttle::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use shuttle::thread;

    use super::*;

    static ENDS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

    /// Two that count to two each, and may overwrite what the other one has counted.
    fn count() {
        let counter = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2 {
                        let count = counter.load(SeqCst);
                        counter.store(count + 1, SeqCst);
                    }
                });
            }
        });
        ENDS.lock().unwrap().insert(counter.load(SeqCst));
    }

    #[test]
    fn all_orders_are_found() {
        check(0, 0, count);
        assert_eq!(*ENDS.lock().unwrap(), BTreeSet::from([4]));
        check(4, 0, count);
        assert_eq!(*ENDS.lock().unwrap(), BTreeSet::from([2, 3, 4]));
    }

    #[test]
    #[should_panic(expected = "max_steps")]
    fn a_wait_without_an_end_is_found() {
        check(0, 0, || {
            loop {
                crate::sync::spin_loop();
            }
        });
    }
}
