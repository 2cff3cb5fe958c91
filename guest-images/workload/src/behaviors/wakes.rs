//! Sleeps, but for a moment now and then.

use super::Behavior;
use crate::system::Errno;
use crate::system::time::sleep_for;
use crate::work::Work;

/// The default length of a sleep, in milliseconds.
const PERIOD: u32 = 100;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "wakes",
    unit: "a sleep of n (100) ms and the computation of `unit` steps",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let period = u64::from(work.number().unwrap_or(PERIOD)) * 1_000_000;
    let mut computation = work.computation(0);
    while work.goes_on() {
        sleep_for(period);
        computation.do_unit();
    }
    Ok(())
}
