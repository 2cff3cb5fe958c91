//! Gives the CPU away all the time.

use super::Behavior;
use crate::system::Errno;
use crate::system::scheduling::yield_now;
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "yields",
    unit: "a sched_yield",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    while work.goes_on() {
        yield_now();
        work.count();
    }
    Ok(())
}
