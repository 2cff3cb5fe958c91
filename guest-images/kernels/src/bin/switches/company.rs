//! Two CPUs, both of which switch to the target, and one of which writes to its root.

use core::sync::atomic::{AtomicU64, Ordering};

use kernels::lapic::{Lapic, Mode};
use kernels::{Report, memory, smp, tsc};

use crate::operator;
use crate::space::{Space, wrong_reads};

/// The roots that the other CPU switches between, its own first, and how often it is to: 0 for not yet.
static OWN: AtomicU64 = AtomicU64::new(0);
static ITS_TARGET: AtomicU64 = AtomicU64::new(0);
static WANTED: AtomicU64 = AtomicU64::new(0);
/// The number of times that it has.
static SWITCHED: AtomicU64 = AtomicU64::new(0);

/// What the other CPU does: switches when it is told to.
fn accompany(_: u32) {
    let home = memory::root();
    loop {
        let wanted = WANTED.swap(0, Ordering::AcqRel);
        if wanted == 0 {
            core::hint::spin_loop();
            continue;
        }
        let roots = [&OWN, &ITS_TARGET].map(|root| root.load(Ordering::Acquire));
        for _ in 0..wanted {
            Space::load(roots[0]);
            Space::load(roots[1]);
        }
        Space::load(home);
        SWITCHED.store(wanted, Ordering::Release);
    }
}

pub(crate) fn run(report: &mut Report, count: u64) {
    let lapic = Lapic::enable(Mode::XApic);
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    report.equal(
        "the other CPU is there",
        smp::start_others(lapic, hertz, accompany),
        1,
    );
    let [other, target, third] = Space::several::<3>();
    let home = memory::root();
    OWN.store(third.root, Ordering::Release);
    ITS_TARGET.store(target.root, Ordering::Release);
    operator::suppress(target.root);
    for (name, writes, switches) in [
        ("another-cpu", false, false),
        ("another-cpu-while-root-is-written", true, false),
        ("both-cpus", false, true),
        ("both-cpus-while-root-is-written", true, true),
    ] {
        operator::measure(name, || {
            let mut switched = 0;
            SWITCHED.store(0, Ordering::Release);
            WANTED.store(count, Ordering::Release);
            while SWITCHED.load(Ordering::Acquire) == 0 {
                other.visit(other.root);
                if writes {
                    target.write_root();
                }
                if switches {
                    target.visit(target.root);
                    switched += 1;
                }
            }
            Space::load(home);
            switched + count
        });
    }
    operator::release();
    report.equal(
        "each read finds what its address space has",
        wrong_reads(),
        0,
    );
}
