//! Computes, and is another process on the same address space after each unit: it clones itself with
//! shared memory and ends, and the clone goes on.

use super::Behavior;
use crate::system::clones::{self, Stacks};
use crate::system::{self, Errno};
use crate::work::{Computation, Work};

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "clones",
    unit: "the computation of `unit` steps, each behind the first n (0) in another process on the same address space",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut computation = work.computation(0);
    computation.do_units(work.number().unwrap_or(0));
    go_on(Stacks::new()?, Clone { work, computation })
}

/// The state that a process hands on to the next.
#[derive(Clone, Copy, Debug)]
struct Clone {
    work: Work,
    computation: Computation,
}

/// Does a unit, and has another process go on. Returns when asked to end, or where there is none.
fn go_on(stacks: Stacks, mut clone: Clone) -> Result<(), Errno> {
    if !clone.work.goes_on() {
        return Ok(());
    }
    clone.computation.do_unit();
    Err(clones::hop(stacks, begin, clone))
}

fn begin(stacks: Stacks, clone: Clone) -> ! {
    system::exit(i32::from(go_on(stacks, clone).is_err()))
}
