//! Computes, and is another process after each unit: it forks, the parent ends, and the child goes on.
//!
//! The units before the first fork are for whoever wants to find the process first.

use super::Behavior;
use crate::system::{self, Errno, Fork};
use crate::work::Work;

/// The default number of units before the first fork.
const UNITS_BEFORE: u32 = 1_000_000;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "forks",
    unit: "the computation of `unit` steps, each behind the first n (1,000,000) in a process of its own",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut before = work.number().unwrap_or(UNITS_BEFORE);
    let mut computation = work.computation(0);
    while work.goes_on() {
        computation.do_unit();
        if before > 0 {
            before -= 1;
        } else if let Fork::Parent(_) = system::fork_to_outlive()? {
            system::exit(0);
        }
    }
    Ok(())
}
