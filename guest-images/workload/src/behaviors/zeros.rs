//! Reads /dev/zero all the time: system calls that write memory.

use super::Behavior;
use crate::system::files::File;
use crate::system::{Errno, memory};
use crate::work::Work;

const LENGTH: usize = 64 << 10;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "zeros",
    unit: "a read of 64 KiB of /dev/zero",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let zero = File::open(c"/dev/zero")?;
    let buffer = memory::private(LENGTH)?;
    while work.goes_on() {
        zero.read(buffer)?;
        work.count();
    }
    Ok(())
}
