//! What processes do with their time. One file a behavior, one line of [`ALL`] each.
//!
//! A behavior repeats something until it is asked to end, and counts each time that it did it: a
//! *unit*. Many processes may come of one. Whichever of them does a unit, it is counted for the process
//! that was started, and each of them ends when that is asked to. How the kernel schedules the process
//! is no part of it: see [`crate::schedule`].

mod blocks;
mod builds;
mod calls;
mod clones;
mod daemons;
mod execs;
mod fetches;
mod floods;
mod forks;
mod halves;
mod hog;
mod interrupted_call;
mod mappings;
mod movers;
mod naps;
mod page_cache;
mod ping_pong;
pub mod program;
mod ptraces;
mod random;
mod script;
mod serves;
pub mod shell;
mod shells;
mod signals;
mod sleeper;
mod spawns;
mod storm;
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
pub const ALL: [&Behavior; 30] = [
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
    &storm::BEHAVIOR,
    &daemons::BEHAVIOR,
    &shells::BEHAVIOR,
    &ptraces::BEHAVIOR,
    &movers::BEHAVIOR,
    &clones::BEHAVIOR,
    &halves::BEHAVIOR,
    &script::BEHAVIOR,
    &builds::BEHAVIOR,
    &serves::BEHAVIOR,
    &fetches::BEHAVIOR,
    &floods::BEHAVIOR,
    &blocks::BEHAVIOR,
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
    use crate::system::memory::{self, shared_counters};
    use crate::system::time::{Clock, now, sleep_for};
    use crate::system::{self, Fork, families, files, top_level};

    const MS: u64 = 1_000_000;

    /// The behaviors that start this program anew, which here is the tests' and not the workload.
    const NEEDS_PROGRAM: [&str; 4] = ["shells", "script", "builds", "serves"];

    /// The behaviors that need a network, with a server in it.
    const NEEDS_NETWORK: [&str; 2] = ["fetches", "floods"];

    /// The behavior that writes all over a disk.
    const NEEDS_DISK: &str = "blocks";

    /// Runs a behavior in a process of its own for `ms` milliseconds at least, and until it has
    /// done a unit; asks it to end, and waits until all that have come of the process have ended. Gives
    /// its units, how the process ended, and after how many milliseconds all were gone.
    fn try_out(behavior: &Behavior, number: Option<u32>, ms: u64) -> (u64, i32, u64) {
        const PATIENCE: u64 = 20_000 * MS;
        let counters: &'static Counters = shared_counters().expect("a shared page");
        let slot = &counters[0];
        let work = Work::new(slot, 0, 500, number);
        let keeper = match system::fork().expect("a process") {
            Fork::Child => keep(behavior, work),
            Fork::Parent(child) => child,
        };
        let began = now(Clock::Monotonic);
        loop {
            sleep_for(MS);
            let passed = now(Clock::Monotonic) - began;
            assert!(passed < PATIENCE, "{} does not end", behavior.name);
            if let Some(ended) = system::ended(keeper) {
                return (slot.finished(), ended.status, passed.div_ceil(MS));
            }
            if passed >= ms * MS && slot.finished() > 0 {
                slot.ask_to_end();
            }
        }
    }

    /// Stops the kernel from writing to the C library's memory whenever it schedules this process (rseq(2)): the
    /// tests have a C library, and the workload has none.
    fn leave_c_library() {
        const UNREGISTER: i32 = 1;
        const SIGNATURE: u32 = 0x5305_3053;
        unsafe extern "C" {
            static __rseq_offset: isize;
        }
        // SAFETY: the library's constant, and the thread pointer's own address, which is where it points to.
        let area = unsafe {
            let thread: isize;
            core::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly));
            thread + __rseq_offset
        };
        // The length is the library's choice: the kernel refuses all others.
        for length in (32..=256).step_by(32) {
            // SAFETY: the kernel only forgets the area; who reads it reads a CPU's number that is old.
            let _ = unsafe {
                syscalls::syscall!(syscalls::Sysno::rseq, area, length, UNREGISTER, SIGNATURE)
            };
        }
    }

    /// Runs a behavior in a child of this process, and ends as it does when nobody lives who has come of it.
    fn keep(behavior: &Behavior, work: Work) -> ! {
        families::adopt_orphans();
        let first = match system::fork() {
            Ok(Fork::Child) => {
                let _ = files::open_as_console(c"/dev/null");
                leave_c_library();
                system::exit(match (behavior.run)(work) {
                    Ok(()) => i32::from(work.slot().wrong() != 0),
                    Err(error) => error.into_raw(),
                })
            }
            Ok(Fork::Parent(child)) => child,
            Err(error) => system::exit(error.into_raw()),
        };
        let mut status = -1;
        while families::has_children() {
            match system::ended_child() {
                Some(ended) if ended.pid == first => status = ended.status,
                Some(_) => {}
                None => sleep_for(MS / 10),
            }
        }
        // What a process ends with, or the signal that has ended it.
        system::exit(status >> 8 | status & 0xff)
    }

    #[test]
    fn each_behavior_does_units_and_ends_with_all_its_processes_when_it_is_asked() {
        for behavior in ALL {
            let needs = NEEDS_PROGRAM.iter().chain(&NEEDS_NETWORK);
            if needs
                .chain([&NEEDS_DISK])
                .any(|name| *name == behavior.name)
            {
                continue;
            }
            let (units, status, _) = try_out(behavior, None, 30);
            assert!(units > 0, "{} did nothing", behavior.name);
            assert_eq!(status, 0, "{}", behavior.name);
        }
    }

    #[test]
    fn a_hopper_without_units_before_counts_where_the_process_counted_that_was_started() {
        for name in ["forks", "daemons", "clones", "movers"] {
            let (units, status, _) = try_out(by_name(name).expect(name), Some(0), 100);
            assert!(units > 5, "{name}: {units} units");
            assert_eq!(status, 0, "{name}");
        }
    }

    #[test]
    fn a_storm_has_as_many_workers_as_it_is_told() {
        let counters: &'static Counters = shared_counters().expect("a shared page");
        let work = Work::new(&counters[0], 0, 500, Some(64));
        let storm = match system::fork().expect("a process") {
            Fork::Child => system::exit(i32::from((storm::BEHAVIOR.run)(work).is_err())),
            Fork::Parent(child) => child,
        };
        let children = format!("/proc/{storm}/task/{storm}/children");
        let count = || {
            let children = std::fs::read_to_string(&children).expect("its children");
            children.split_whitespace().count()
        };
        let began = now(Clock::Monotonic);
        while count() < 64 {
            assert!(now(Clock::Monotonic) - began < 10_000 * MS, "{}", count());
            sleep_for(MS);
        }
        work.slot().ask_to_end();
        system::wait_for(storm);
    }

    #[test]
    fn a_mover_has_nothing_but_its_two_pages() {
        let counters: &'static Counters = shared_counters().expect("a shared page");
        // Long units: it is looked at while it computes.
        let work = Work::new(&counters[0], 7, 20_000_000, None);
        let mover = match system::fork().expect("a process") {
            Fork::Child => {
                leave_c_library();
                system::exit(i32::from((movers::BEHAVIOR.run)(work).is_err()))
            }
            Fork::Parent(child) => child,
        };
        let slots = || {
            let maps = std::fs::read_to_string(format!("/proc/{mover}/maps")).expect("its memory");
            let starts = maps.lines().filter(|line| !line.ends_with("[vsyscall]"));
            let starts = starts.map(|line| line.split('-').next().unwrap_or_default());
            let starts = starts.map(|start| usize::from_str_radix(start, 16).expect("an address"));
            starts.collect::<Vec<_>>()
        };
        let mut seen = std::collections::BTreeSet::new();
        let began = now(Clock::Monotonic);
        while seen.len() < 3 {
            assert!(
                now(Clock::Monotonic) - began < 20_000 * MS,
                "{:x?}",
                slots()
            );
            if let [code, counters] = slots()[..]
                && counters == code + memory::PAGE
                && code % (1 << top_level::SHIFT) == 0
            {
                let pages = std::fs::File::open(format!("/proc/{mover}/mem")).expect("its memory");
                let mut page = [0; memory::PAGE];
                // It has moved on where it is not there any more.
                if std::os::unix::fs::FileExt::read_at(&pages, &mut page, code as u64).is_ok() {
                    let text = b"workload-process-7.";
                    assert!(page.windows(text.len()).any(|window| window == text));
                    seen.insert(code);
                }
            }
            sleep_for(MS);
        }
        work.slot().ask_to_end();
        system::wait_for(mover);
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
