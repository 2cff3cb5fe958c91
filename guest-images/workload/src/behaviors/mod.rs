//! What processes do with their time. One file a behavior, one line of [`ALL`] each.
//!
//! A behavior repeats something until it is asked to end, and counts each time that it did it: a
//! *unit*. How the kernel schedules the process is no part of it: see [`crate::schedule`].

mod calls;
pub mod execs;
mod forks;
mod hog;
mod interrupted_call;
mod mappings;
mod naps;
mod page_cache;
mod ping_pong;
mod random;
mod signals;
mod sleeper;
mod spawns;
mod threads;
mod wakes;
mod yields;
mod zeros;

use crate::system::Errno;
use crate::work::Work;

/// The behavior of a process.
#[derive(Debug)]
pub struct Behavior {
    /// The name of the behavior.
    pub name: &'static str,
    /// The description of one unit of work.
    pub unit: &'static str,
    /// The function that does it, until [`Work::goes_on`] says no; or says why the kernel does not
    /// let it.
    pub run: fn(Work) -> Result<(), Errno>,
}

/// A behavior is known by its name.
impl PartialEq for Behavior {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Behavior {}

/// All there are. The first is that of processes that are asked for nothing else.
pub const ALL: [&Behavior; 17] = [
    &hog::BEHAVIOR,
    &naps::BEHAVIOR,
    &wakes::BEHAVIOR,
    &sleeper::BEHAVIOR,
    &threads::BEHAVIOR,
    &signals::BEHAVIOR,
    &yields::BEHAVIOR,
    &random::BEHAVIOR,
    &zeros::BEHAVIOR,
    &interrupted_call::BEHAVIOR,
    &mappings::BEHAVIOR,
    &page_cache::BEHAVIOR,
    &calls::BEHAVIOR,
    &ping_pong::BEHAVIOR,
    &spawns::BEHAVIOR,
    &forks::BEHAVIOR,
    &execs::BEHAVIOR,
];

/// Returns the behavior of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Behavior> {
    ALL.into_iter().find(|behavior| behavior.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::system::memory::shared_counters;
    use crate::system::time::{Clock, now, sleep_for};
    use crate::system::{self, Fork, files};

    const MS: u64 = 1_000_000;

    /// Runs a behavior in a process of its own for `ms` milliseconds at least, and until it has
    /// done a unit. Gives its units, how it ended, and after how many milliseconds.
    fn try_out(behavior: &Behavior, number: Option<u32>, ms: u64) -> (u64, i32, u64) {
        const PATIENCE: u64 = 20_000 * MS;
        let counters: &'static Counters = shared_counters().expect("a shared page");
        let slot = &counters[0];
        let work = Work::new(slot, 0, 500, number);
        let child = match system::fork().expect("a process") {
            Fork::Child => {
                let _ = files::open_as_console(c"/dev/null");
                system::exit(match (behavior.run)(work) {
                    Ok(()) => i32::from(slot.wrong() != 0),
                    Err(error) => error.into_raw(),
                })
            }
            Fork::Parent(child) => child,
        };
        let began = now(Clock::Monotonic);
        loop {
            sleep_for(MS);
            let passed = now(Clock::Monotonic) - began;
            assert!(passed < PATIENCE, "{} does not end", behavior.name);
            if let Some(ended) = system::ended(child) {
                return (slot.finished(), ended.status, passed.div_ceil(MS));
            }
            if passed >= ms * MS && slot.finished() > 0 {
                slot.ask_to_end();
            }
        }
    }

    #[test]
    fn each_behavior_does_units_and_ends_when_it_is_asked() {
        for behavior in ALL {
            let (units, status, _) = try_out(behavior, None, 30);
            assert!(units > 0, "{} did nothing", behavior.name);
            assert_eq!(status, 0, "{}", behavior.name);
        }
    }

    #[test]
    fn a_sleeper_ends_after_as_many_wakes_as_it_is_told() {
        let (wakes, status, ms) = try_out(&sleeper::BEHAVIOR, Some(3), 10_000);
        assert_eq!((wakes, status), (3, 0));
        assert!(
            (30..10_000).contains(&ms),
            "three sleeps of 10 ms took {ms} ms"
        );
    }

    #[test]
    fn a_process_that_naps_works_less_than_one_that_does_not() {
        let (busy, ..) = try_out(&hog::BEHAVIOR, None, 200);
        assert!(busy > 100, "{busy} units of 2,000 instructions in 200 ms");
        let (naps, _, ms) = try_out(&naps::BEHAVIOR, Some(20_000), 200);
        assert!(naps <= ms / 20 + 1, "{naps} naps of 20 ms in {ms} ms");
    }

    #[test]
    fn no_two_behaviors_have_the_same_name() {
        for behavior in ALL {
            assert_eq!(
                by_name(behavior.name).map(|it| it.unit),
                Some(behavior.unit)
            );
        }
        assert_eq!(by_name("nothing"), None);
    }
}
