//! Makes system calls all the time that do nothing: what is measured is the way in and out.

use super::Behavior;
use crate::system::{Errno, parent_pid};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "calls",
    unit: "a getppid",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    while work.goes_on() {
        core::hint::black_box(parent_pid());
        work.count();
    }
    Ok(())
}
