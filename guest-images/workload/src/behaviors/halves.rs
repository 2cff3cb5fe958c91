//! Computes, and changes the user half of its top-level page table after each unit: it takes memory in
//! another slot, and gives that in the one before back.

use super::Behavior;
use crate::system::Errno;
use crate::system::top_level::{SLOTS, SlotPage};
use crate::work::Work;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "halves",
    unit: "the computation of `unit` steps, and memory in another top-level slot",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut computation = work.computation(0);
    let mut before = None;
    for slot in SLOTS.cycle() {
        if !work.goes_on() {
            break;
        }
        computation.do_unit();
        let mut page = SlotPage::map(slot)?;
        page.bytes().fill(0x5a);
        drop(before.replace(page));
    }
    Ok(())
}
