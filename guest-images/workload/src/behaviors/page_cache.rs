//! Writes a file in memory all the time: page-cache pages are filled, and given back.

use super::Behavior;
use crate::system::files::File;
use crate::system::{Errno, memory};
use crate::work::Work;

const LENGTH: usize = 64 << 10;
/// The length of the file at which it begins anew.
const FILE: usize = 4 << 20;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "page-cache",
    unit: "a write of 64 KiB to a file of up to 4 MiB",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let file = File::in_memory()?;
    let data = memory::private(LENGTH)?;
    let mut offset = 0;
    while work.goes_on() {
        offset += file.write_at(offset, data)?;
        if offset >= FILE {
            file.clear()?;
            offset = 0;
        }
        work.count();
    }
    Ok(())
}
