//! Computes for 20,000 instructions, and sleeps a little: it is not there when the tick comes.

use super::Behavior;
use crate::system::Errno;
use crate::system::time::sleep_for;
use crate::work::Work;

/// The steps in one unit, of four instructions each.
const STEPS: u64 = 5_000;

/// The default length of a nap, in microseconds.
const NAP: u32 = 50;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "naps",
    unit: "20,000 instructions and a sleep of n (50) us",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let nap = u64::from(work.number().unwrap_or(NAP)) * 1_000;
    let mut computation = work.with_unit(STEPS).computation(0);
    while work.goes_on() {
        computation.do_unit();
        sleep_for(nap);
    }
    Ok(())
}
