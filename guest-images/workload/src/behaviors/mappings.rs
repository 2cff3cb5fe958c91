//! Maps memory, touches it and unmaps it, all the time: page faults and changes of page tables.

use super::Behavior;
use crate::system::{Errno, memory};
use crate::work::Work;

const PAGES: usize = 64;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "mappings",
    unit: "64 pages mapped, touched and unmapped",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    while work.goes_on() {
        memory::with_private(PAGES * memory::PAGE, |pages| {
            for byte in pages.iter_mut().step_by(memory::PAGE) {
                *byte = 1;
            }
            core::hint::black_box(pages);
        })?;
        work.count();
    }
    Ok(())
}
