//! Computes, and moves to another top-level slot of its address space after each unit: nothing stays
//! where it was, neither code nor stack nor the kernel's own pages (vDSO).

use super::Behavior;
use crate::system::{Errno, mover};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "movers",
    unit: "the computation of `unit` steps, each behind the first n (0) in another top-level slot, with all there is",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    work.computation(0).do_units(work.number().unwrap_or(0));
    Err(mover::run(work))
}
