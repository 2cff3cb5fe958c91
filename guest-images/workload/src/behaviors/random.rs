//! Calls getrandom for 64 KiB all the time: long system calls that compute.

use super::Behavior;
use crate::system::{Errno, files, memory};
use crate::work::Work;

const LENGTH: usize = 64 << 10;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "random",
    unit: "a getrandom of 64 KiB",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let buffer = memory::private(LENGTH)?;
    while work.goes_on() {
        files::random(buffer)?;
        work.count();
    }
    Ok(())
}
