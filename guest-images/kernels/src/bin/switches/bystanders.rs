//! Switches between others, first without and then with a target that does not run.

use arch::Cr4Flags;
use arch::paging::CR3_NO_FLUSH;
use kernels::{Report, memory};

use crate::operator;
use crate::space::{Space, wrong_reads};
use crate::ways::{has_pcids, with_features};

/// System calls of a process until the other one's turn comes.
const CALLS_IN_TURN: u64 = 100;

/// Something that others do `count` times, with these bits of CR3 beside a root, of the first process and
/// of the second.
type Activity = fn(&[Space; 2], [u64; 2], u64);

/// The activities, by name.
const ACTIVITIES: [(&str, Activity); 2] = [("switches", switches), ("system-calls", system_calls)];

/// The ways of telling cached translations apart: the end of the name, the bits of CR4 that it needs, and
/// the processes' bits of CR3.
const TAGS: [(&str, Cr4Flags, [u64; 2]); 3] = [
    ("", Cr4Flags::empty(), [0, 0]),
    ("-pcid", Cr4Flags::PCID, [1, 2]),
    (
        "-pcid-kept",
        Cr4Flags::PCID,
        [1 | CR3_NO_FLUSH, 2 | CR3_NO_FLUSH],
    ),
];

/// The PCID bit that tells a process's second root from its first, as Linux has it.
const SECOND: u64 = 0x800;

fn switches(spaces: &[Space; 2], marks: [u64; 2], count: u64) {
    for number in 0..count {
        let which = (number % 2) as usize;
        spaces[which].visit(spaces[which].root | marks[which]);
    }
}

fn system_calls(spaces: &[Space; 2], marks: [u64; 2], count: u64) {
    for number in 0..count {
        let which = (number / CALLS_IN_TURN % 2) as usize;
        let (space, mark) = (spaces[which], marks[which]);
        let second = if mark == 0 { 0 } else { SECOND };
        // In, and out.
        space.visit(space.root | mark);
        space.visit(space.second_root | mark | second);
    }
}

pub(crate) fn run(report: &mut Report, count: u64) {
    let [target, spaces @ ..] = Space::several::<3>();
    let home = memory::root();
    for with_target in [false, true] {
        if with_target {
            operator::suppress(target.root);
            // It has run, and sleeps now.
            target.visit(target.root);
            Space::load(home);
        }
        for (activity, run) in ACTIVITIES {
            for (tags, features, marks) in TAGS {
                if features.contains(Cr4Flags::PCID) && !has_pcids() {
                    continue;
                }
                operator::measure(format_args!("{activity}{tags}"), || {
                    with_features(features, || {
                        run(&spaces, marks, count);
                        Space::load(home);
                    });
                    0
                });
            }
        }
    }
    report.equal(
        "each read finds what its address space has",
        wrong_reads(),
        0,
    );
    if !has_pcids() {
        report.skip("process-context identifiers", "the CPU has none");
    }
}
