//! Interrupts come only where they are let in: while another CPU interrupts the first one, none is taken where
//! RFLAGS.IF is clear, and none is lost.
//!
//! At first both CPUs interrupt each other all the time with several vectors, and the first waits for them in turn
//! behind STI, in HLT, and in a loop; handlers end an interrupt before they have come to their own end, so that the
//! next one is pending. That ends after `interrupts=N` that it has taken (30,000). Then, `rounds=N` times (1,000),
//! one more comes while others, which the TPR has held back, are pending and RFLAGS.IF is clear.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::RFlags;
use arch::apic::{Register, icr};
use kernels::interrupts::{self, Frame, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, multiboot, println, smp, tsc};

/// The vectors that are sent, of three priorities.
const VECTORS: [u8; 3] = [0x41, 0x52, 0x63];
/// The most rounds of a loop in a handler.
const LONGEST: u64 = 400;
/// A priority above that of all vectors.
const ABOVE_ALL: u32 = 0xf0;
/// Rounds of a loop in which another CPU's interrupt arrives.
const ARRIVAL: u32 = 2000;

/// Interrupts that the first CPU has taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// Interrupts of either CPU that came where they were not let in.
static MISPLACED: AtomicU64 = AtomicU64::new(0);
/// Whether the two still interrupt each other all the time.
static AT_RANDOM: AtomicBool = AtomicBool::new(true);
/// Times that the first CPU has asked for one of each vector.
static ASKED: AtomicU64 = AtomicU64::new(0);
/// Times that the other one has sent them since.
static SENT: AtomicU64 = AtomicU64::new(0);

fn on_interrupt(frame: &mut Frame) {
    if frame.rflags & RFlags::INTERRUPT_FLAG.bits() == 0 {
        MISPLACED.fetch_add(1, Ordering::SeqCst);
    }
    let lapic = Lapic::current();
    if lapic.id() == 0 {
        TAKEN.fetch_add(1, Ordering::SeqCst);
    }
    lapic.end();
    if AT_RANDOM.load(Ordering::SeqCst) {
        pause();
    }
}

/// Waits for a while that nobody can foresee.
fn pause() {
    for _ in 0..tsc::now() % LONGEST {
        core::hint::spin_loop();
    }
}

/// Lets interrupts in for the one instruction `$between`.
macro_rules! let_in {
    ($between:literal) => {
        // SAFETY: the handlers keep all registers.
        unsafe { asm!("sti", $between, "cli") }
    };
}

/// Sends CPU `target` one of each vector, the most urgent last.
fn send_all(lapic: Lapic, target: u32) {
    for vector in VECTORS {
        lapic.send(target, icr::ASSERT | u32::from(vector));
    }
}

fn other(_: u32) {
    interrupts::load();
    let lapic = Lapic::enable(Mode::XApic);
    while AT_RANDOM.load(Ordering::SeqCst) {
        send_all(lapic, 0);
        let_in!("nop");
        pause();
    }
    let mut sent = 0;
    loop {
        while ASKED.load(Ordering::SeqCst) == sent {
            core::hint::spin_loop();
        }
        send_all(lapic, 0);
        sent += 1;
        SENT.store(sent, Ordering::SeqCst);
    }
}

/// Takes interrupts, and sends some, until there were `total`.
fn take_at_random(lapic: Lapic, total: u64) {
    for round in 0_u64.. {
        match round % 3 {
            0 => let_in!("nop"),
            // The other CPU's interrupts end it.
            1 => let_in!("hlt"),
            _ => {
                // SAFETY: the handlers keep all registers.
                unsafe { asm!("sti") };
                pause();
                // SAFETY: as above.
                unsafe { asm!("cli") };
            }
        }
        if TAKEN.load(Ordering::SeqCst) >= total {
            break;
        }
        if round % 4 == 0 {
            send_all(lapic, 1);
        }
    }
    AT_RANDOM.store(false, Ordering::SeqCst);
}

/// Asks the other CPU for one of each vector.
fn ask() {
    ASKED.fetch_add(1, Ordering::SeqCst);
}

/// Waits until all that was asked for has been sent.
fn await_all() {
    while SENT.load(Ordering::SeqCst) != ASKED.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
}

/// Has interrupts held back by the TPR, then by RFLAGS.IF, while more arrive; then takes them.
fn take_what_was_held_back(lapic: Lapic) {
    lapic.write(Register::TPR, ABOVE_ALL);
    // SAFETY: the handlers keep all registers.
    unsafe { asm!("sti") };
    ask();
    await_all();
    // SAFETY: as above.
    unsafe { asm!("cli") };
    lapic.write(Register::TPR, 0);
    ask();
    for _ in 0..ARRIVAL {
        core::hint::spin_loop();
    }
    await_all();
    let_in!("nop");
}

fn run(report: &mut Report) {
    let total = multiboot::number("interrupts").unwrap_or(30_000);
    let rounds = multiboot::number("rounds").unwrap_or(1_000);
    for vector in VECTORS {
        set_handler(vector, on_interrupt);
    }
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let lapic = Lapic::enable(Mode::XApic);
    let others = smp::start_others(lapic, hertz, other);
    report.equal("the other CPU has started", u64::from(others), 1);
    take_at_random(lapic, total);
    println!("masked: {} taken", TAKEN.load(Ordering::SeqCst));
    report.equal(
        "no interrupt at random is taken where RFLAGS.IF is clear",
        MISPLACED.swap(0, Ordering::SeqCst),
        0,
    );
    for _ in 0..rounds {
        take_what_was_held_back(lapic);
    }
    report.equal(
        "none is where others wait",
        MISPLACED.load(Ordering::SeqCst),
        0,
    );
}

kernels::kernel!(run);
