//! Forks workers at the start, each of which computes all the time: many processes at once.

use super::Behavior;
use crate::system::{self, Errno, Fork, families};
use crate::work::Work;

/// The default number of workers.
const WORKERS: u32 = 8;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "storm",
    unit: "the computation of `unit` steps, in any of n (8) processes, whose parent waits",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    for number in 1..=work.number().unwrap_or(WORKERS) {
        // Should one fail, those that are there end with this process.
        if let Fork::Child = system::fork()? {
            let mut computation = work.computation(number);
            while work.goes_on() {
                computation.do_unit();
            }
            system::exit(0)
        }
    }
    families::wait_for_all();
    Ok(())
}
