//! Two processes, of which one traces the other: it lets it go on from one system call to the next.
//! Both compute between.

use super::Behavior;
use crate::system::tracing::{Tracee, be_traced};
use crate::system::{self, Errno, Fork, parent_pid};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "ptraces",
    unit: "the computation of `unit` steps, in either of a process and the one that it traces",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let tracee = match system::fork()? {
        Fork::Child => system::exit(i32::from(traced(work).is_err())),
        Fork::Parent(child) => Tracee::new(child),
    };
    let mut computation = work.computation(0);
    // It has stopped for the first time when it may be let go.
    let mut stopped = tracee.wait();
    while stopped && work.goes_on() {
        tracee.resume();
        computation.do_unit();
        // The call's beginning, and its end.
        stopped = tracee.wait() && {
            tracee.resume();
            tracee.wait()
        };
    }
    tracee.end()
}

/// Does what the traced process does.
fn traced(work: Work) -> Result<(), Errno> {
    be_traced()?;
    let mut computation = work.computation(1);
    while work.goes_on() {
        computation.do_unit();
        core::hint::black_box(parent_pid());
    }
    Ok(())
}
