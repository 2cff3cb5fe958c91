//! One clock for all CPUs: each reads the TSC and compares it with the latest reading of all.
//!
//! The first CPU goes to and fro between two address spaces meanwhile, whose roots it prints, so
//! that one of them can be suppressed: then time runs fast whenever that one is loaded. Ends
//! after `comparisons=N` of them (ten million); a line for each tenth.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kernels::lapic::{Lapic, Mode};
use kernels::memory::{self, PRESENT, UNMAPPED, USER, WRITABLE};
use kernels::{Report, multiboot, println, smp, tsc};

/// Comparisons between two looks at anything else.
const BATCH: u64 = 200;

/// The latest time that any CPU has read.
static LATEST: AtomicU64 = AtomicU64::new(0);
/// Comparisons that all have made.
static COMPARED: AtomicU64 = AtomicU64::new(0);
/// Readings that were before one that had been told.
static BACKWARDS: AtomicU64 = AtomicU64::new(0);
/// The most ticks by which a reading was before one that had been told.
static WORST: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn compare_batch() {
    for _ in 0..BATCH {
        let told = LATEST.load(Ordering::SeqCst);
        let read = tsc::now();
        if read < told {
            BACKWARDS.fetch_add(1, Ordering::SeqCst);
            WORST.fetch_max(told - read, Ordering::SeqCst);
        }
        LATEST.fetch_max(read, Ordering::SeqCst);
    }
    COMPARED.fetch_add(BATCH, Ordering::SeqCst);
}

fn other(_: u32) {
    while !STOP.load(Ordering::SeqCst) {
        compare_batch();
    }
}

/// An address space with a user page, which makes it a process's.
fn process() -> u64 {
    let root = memory::new_root();
    // SAFETY: a fresh page in a fresh address space, at an address that is not mapped.
    unsafe {
        memory::map(
            root,
            UNMAPPED,
            memory::allocate() as u64,
            PRESENT | USER | WRITABLE,
        );
    }
    root
}

fn run(report: &mut Report) {
    let total = multiboot::number("comparisons").unwrap_or(10_000_000);
    let roots = [process(), process()];
    println!("smp_clock: roots {:#x} {:#x}", roots[0], roots[1]);
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let others = smp::start_others(Lapic::enable(Mode::XApic), hertz, other);
    println!("smp_clock: {} CPUs", others + 1);
    if let Some(wanted) = multiboot::number("others") {
        report.equal("all other CPUs have started", u64::from(others), wanted);
    }
    let mut tenths = 0;
    let mut turn = 0;
    loop {
        // SAFETY: both address spaces have all that the kernel needs.
        unsafe { memory::load_root(roots[turn]) };
        turn ^= 1;
        compare_batch();
        let compared = COMPARED.load(Ordering::SeqCst);
        if compared >= total {
            break;
        }
        if compared * 10 / total > tenths {
            tenths = compared * 10 / total;
            println!("smp_clock: {compared} comparisons, tsc {}", tsc::now());
        }
    }
    STOP.store(true, Ordering::SeqCst);
    println!("smp_clock: worst {}", WORST.load(Ordering::SeqCst));
    report.equal(
        "no CPU reads a time before one that another has read",
        BACKWARDS.load(Ordering::SeqCst),
        0,
    );
}

kernels::kernel!(run);
