//! Computes, and is a daemon's daemon after each unit: the process forks, the child begins a session,
//! forks again and ends, and its child goes on.

use super::Behavior;
use crate::system::{self, Errno, Fork, families};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "daemons",
    unit: "the computation of `unit` steps, each behind the first n (0) as a new daemon: fork, setsid, fork",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut computation = work.computation(0);
    computation.do_units(work.number().unwrap_or(0));
    while work.goes_on() {
        computation.do_unit();
        if let Fork::Parent(_) = system::fork_to_outlive()? {
            system::exit(0);
        }
        families::begin_session()?;
        if let Fork::Parent(_) = system::fork_to_outlive()? {
            system::exit(0);
        }
    }
    Ok(())
}
