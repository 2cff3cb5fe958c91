//! Becomes a shell that starts a program for each unit, one after the other.

use super::{Behavior, shell};
use crate::system::Errno;
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "shells",
    unit: "a program that computes `unit` steps, started by a shell; needs busybox",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    work.computation(0).do_units(work.number().unwrap_or(0));
    shell::run(cr#"while "$1" once "$2" "$3"; do :; done"#, work)
}
