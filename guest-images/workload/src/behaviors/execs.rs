//! Computes, and becomes a new program after each unit: this one, which goes on.
//!
//! The units before the first time are for whoever wants to find the process first.

use super::{Behavior, program};
use crate::system::Errno;
use crate::work::Work;

/// The default number of units before it becomes a new program for the first time.
const UNITS_BEFORE: u32 = 1_000_000;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "execs",
    unit: "the computation of `unit` steps, each behind the first n (1,000,000) as a new program",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut computation = work.computation(0);
    computation.do_units(work.number().unwrap_or(UNITS_BEFORE));
    if work.goes_on() {
        computation.do_unit();
        return Err(program::become_new(work));
    }
    Ok(())
}

/// Goes on as the new program. Returns whether it has ended as it was asked to.
pub(super) fn go_on(work: Work) -> bool {
    run(work).is_ok()
}
