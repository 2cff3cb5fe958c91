//! Makes one process after the other, each of which computes a little and ends: as a shell does that runs
//! a script.

use super::Behavior;
use crate::system::{self, Errno, Fork};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "spawns",
    unit: "a process that computes `unit` steps and ends",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    while work.goes_on() {
        match system::fork()? {
            Fork::Child => {
                work.computation(0).do_unit();
                system::exit(0)
            }
            Fork::Parent(child) => system::wait_for(child),
        }
    }
    Ok(())
}
