//! Sleeps 10 ms at a time, and tells how late it wakes.

use super::Behavior;
use crate::say;
use crate::system::Errno;
use crate::system::time::{Clock, now, sleep_until, tsc};
use crate::work::Work;

/// The length of a sleep, in nanoseconds.
const SLEEP: u64 = 10_000_000;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "sleeper",
    unit: "a sleep of 10 ms, told by a line `woke`; ends after n of them",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut left = work.number().unwrap_or(u32::MAX);
    let mut latest_tsc = 0;
    while work.goes_on() && left > 0 {
        let due = now(Clock::Monotonic).saturating_add(SLEEP);
        sleep_until(due);
        let woke = now(Clock::Monotonic);
        // First of all: the host's time of the line is to be that of waking.
        say!("woke t={woke} late={}", woke.saturating_sub(due));
        work.count();
        left -= 1;
        let tsc = tsc();
        if tsc < latest_tsc {
            say!("TSC {tsc} after {latest_tsc}: WRONG");
        }
        latest_tsc = tsc;
    }
    Ok(())
}
