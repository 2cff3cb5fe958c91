//! Makes long system calls, each of them interrupted by a timer soon after it began: the interrupt's
//! handler is over long before the process is back in user mode.

use super::Behavior;
use crate::system::time::OneShot;
use crate::system::{Errno, files, memory};
use crate::work::Work;

const LENGTH: usize = 64 << 10;
/// The default time until the timer fires, in microseconds.
const TIMER: u32 = 20;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "interrupted-call",
    unit: "a getrandom of 64 KiB, a timer of n (20) us armed just before",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let buffer = memory::private(LENGTH)?;
    let timer = OneShot::new()?;
    let ns = u64::from(work.number().unwrap_or(TIMER).max(1)) * 1_000;
    while work.goes_on() {
        timer.arm(ns)?;
        files::random(buffer)?;
        work.count();
    }
    Ok(())
}
