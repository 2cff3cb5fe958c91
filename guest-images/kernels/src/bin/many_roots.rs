//! Has thousands of address spaces, all in use: each CPU loads one of its own after the other, and halts in each for a
//! moment.
//!
//! `roots=N` (512) says how many each CPU has, and `others=N` how many other CPUs there are. When each CPU has had all of
//! its own, a line `many_roots: N in use` says how many that are; from then on it halts for longer.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::paging::ENTRIES;
use kernels::lapic::{Lapic, Mode};
use kernels::memory::{self, PRESENT, USER, WRITABLE};
use kernels::smp::MAX_CPUS;
use kernels::{Report, interrupts, multiboot, println, sleep, smp, tsc};

/// The most address spaces that a CPU has.
const MOST: usize = 512;
/// The halts in a second at first, and later.
const HALTS_PER_SECOND: [u64; 2] = [5000, 100];
/// Ticks of the TSC in a second; zero until it is known.
static HERTZ: AtomicU64 = AtomicU64::new(0);
/// Address spaces that have been in use.
static USED: AtomicU64 = AtomicU64::new(0);

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; ENTRIES]>);

// SAFETY: each is one CPU's.
unsafe impl Sync for Table {}

/// The root of each address space, by CPUs, and the one table that it has of its own.
static TABLES: [[[Table; 2]; MOST]; MAX_CPUS as usize] =
    [const { [const { [const { Table(UnsafeCell::new([0; ENTRIES])) }; 2] }; MOST] };
        MAX_CPUS as usize];

/// Makes an address space of these tables, with the one-to-one map, and an empty table for user mode.
fn make(tables: &[Table; 2]) -> u64 {
    let [root, own] = tables.each_ref().map(|table| table.0.get().cast::<u64>());
    // SAFETY: what is loaded is a root in the one-to-one map, whose first entry is that map; the tables are this CPU's,
    // and not in use.
    unsafe {
        root.write(*(memory::root() as *const u64));
        root.add(1).write(own as u64 | PRESENT | WRITABLE | USER);
    }
    root as u64
}

/// Switches between the address spaces of CPU `number` for ever.
fn switch(number: u32) -> ! {
    let roots = multiboot::number("roots").map_or(MOST, |roots| (roots as usize).min(MOST));
    let hertz = HERTZ.load(Ordering::SeqCst);
    let all = roots as u64 * (multiboot::number("others").unwrap_or(0) + 1);
    let tables = &TABLES[number as usize][..roots];
    let [first, later] = HALTS_PER_SECOND.map(|halts| hertz / halts);
    let mut halt = first;
    loop {
        for tables in tables {
            let root = make(tables);
            // SAFETY: it has the one-to-one map.
            unsafe { memory::load_root(root) };
            sleep::until(tsc::now() + halt);
            if halt == first && USED.fetch_add(1, Ordering::SeqCst) + 1 == all {
                println!("many_roots: {all} in use");
            }
        }
        halt = later;
    }
}

fn other(number: u32) {
    interrupts::load();
    while HERTZ.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    if sleep::prepare() {
        switch(number);
    }
}

fn run(report: &mut Report) {
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let can_sleep = sleep::prepare();
    report.holds("the timer has TSC-deadline mode", can_sleep);
    if can_sleep {
        smp::start_others(Lapic::enable(Mode::XApic), hertz, other);
        HERTZ.store(hertz, Ordering::SeqCst);
        switch(0);
    }
}

kernels::kernel!(run);
