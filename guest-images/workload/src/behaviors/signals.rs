//! Computes, interrupted by a signal each 20 us.

use super::Behavior;
use crate::system::Errno;
use crate::system::time::interrupt_every;
use crate::work::Work;

/// The default time between two signals, in microseconds.
const PERIOD: u32 = 20;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "signals",
    unit: "the computation of `unit` steps, with a signal each n (20) us",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    interrupt_every(work.number().unwrap_or(PERIOD).clamp(1, 999_999))?;
    let mut computation = work.computation(0);
    while work.goes_on() {
        computation.do_unit();
    }
    Ok(())
}
