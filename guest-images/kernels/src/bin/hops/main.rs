//! Processes under 32-bit paging, one of which hops: it goes on in another process, or in a new program,
//! after each few units of work.
//!
//! Two processes compute and never change. The third, the hopper, does the same, and every
//! [`UNITS_PER_HOP`](layout::UNITS_PER_HOP) units it asks the kernel to be somebody else, in the way that the
//! operator has chosen by a byte on the serial line (`console`):
//!
//! - `f`: it forks and ends; the child goes on. Private pages are copied on write.
//! - `e`: it becomes a new program, on the kernel stack that it has.
//! - `n`: it stays what it is, as at the start.
//! - `q`: the kernel ends.
//!
//! The kernel is what 32-bit kernels are: two levels of page tables, the kernel in the upper half of each address space
//! for itself alone, a kernel stack for each process, and a timer that takes the processor from processes by
//! turns. Freed frames are given away again at once, the last one first, so that roots are soon somebody else's.
//!
//! `trap` has the ways into the kernel and the scheduler, `space` the address spaces, `program` what the processes execute,
//! `journey` the way from long mode down and back up, and `prepare` makes the first processes.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod journey;
mod layout;
#[cfg(target_os = "none")]
mod prepare;
#[cfg(target_os = "none")]
mod program;
#[cfg(target_os = "none")]
mod space;
#[cfg(target_os = "none")]
mod trap;

use kernels::Report;

#[cfg(target_os = "none")]
fn run(report: &mut Report) {
    use arch::apic::{Register, delivery_mode, lvt};
    use kernels::lapic::{Lapic, Mode};
    use kernels::{pic, pit, println};

    let shared = prepare::processes();
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    pic::unmask(0);
    pit::start(
        0,
        2,
        (pit::HERTZ / u64::from(layout::TICKS_PER_SECOND)) as u16,
    );
    println!("hops: ready");
    let end = journey::make();
    pic::mask_all();
    lapic.write(Register::LVT_LINT0, lvt::MASKED);

    // SAFETY: nobody runs any more.
    let shared = unsafe { shared.read_volatile() };
    report.equal("faults of the kernel's", end.fault, 0);
    report.equal(
        "private memory that is not what it should be",
        shared.wrong,
        0,
    );
    report.holds(
        "all have computed",
        shared.units.iter().all(|&units| units > 0),
    );
    report.holds("there were hops", shared.hops > 0);
    report.holds("pages were copied on write", end.copies > 0);
    report.holds("pages were given to their last owners", end.last_owners > 0);
    report.equal("frames that are lost", end.lost_frames(), 0);
}

/// Nothing to run on a hosted target.
#[cfg(not(target_os = "none"))]
fn run(_: &mut Report) {
    let _ = layout::expected_result(0);
}

kernels::kernel!(run);
