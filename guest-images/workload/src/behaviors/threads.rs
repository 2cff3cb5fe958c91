//! Computes in several threads: one address space that is on several CPUs at a time.

use super::Behavior;
use crate::system::{Errno, threads};
use crate::work::Work;

const THREADS: u32 = 4;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "threads",
    unit: "the computation of `unit` steps, in any of n (4) threads",
    run,
};

/// One of the threads.
#[derive(Clone, Copy, Debug)]
struct Thread {
    work: Work,
    number: u32,
}

impl Thread {
    fn run(self) {
        let mut computation = self.work.computation(self.number);
        while self.work.goes_on() {
            computation.do_unit();
        }
    }
}

fn run(work: Work) -> Result<(), Errno> {
    for number in 1..work.number().unwrap_or(THREADS) {
        threads::spawn(
            |thread: Thread| {
                thread.run();
                threads::exit()
            },
            Thread { work, number },
        )?;
    }
    Thread { work, number: 0 }.run();
    Ok(())
}
