//! Computes all the time, in user mode.

use super::Behavior;
use crate::system::Errno;
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "hog",
    unit: "the computation of `unit` steps",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut computation = work.computation(0);
    while work.goes_on() {
        computation.do_unit();
    }
    Ok(())
}
