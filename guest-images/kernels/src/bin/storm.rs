//! Interrupts itself as fast as it can, on all its CPUs: what that costs its neighbors is the
//! question.
//!
//! Each CPU sends, over and over, an interrupt to all CPUs, itself included; one to itself alone;
//! one to the next CPU; and an NMI to all others. All but the first halt after each round, so that
//! the others' interrupts wake them. `others=N` says how many others there are, `x2apic` has
//! interrupts sent by MSR. Every `interval_ms=N` (200) a line `storm: taken=N` says how many
//! interrupts the CPUs have taken together.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::apic::{delivery_mode, icr};
use kernels::interrupts::{self, Frame, NMI, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, multiboot, println, smp, tsc};

const VECTOR: u8 = 0x40;
const FIXED: u32 = icr::ASSERT | VECTOR as u32;

/// Interrupts that all CPUs have taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// Other CPUs that can take interrupts.
static READY: AtomicU32 = AtomicU32::new(0);
/// The number of CPUs; zero until all are ready.
static CPUS: AtomicU32 = AtomicU32::new(0);

fn on_interrupt(_: &mut Frame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    Lapic::current().end();
}

fn on_nmi(_: &mut Frame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

fn mode() -> Mode {
    if multiboot::has_word("x2apic") {
        Mode::X2Apic
    } else {
        Mode::XApic
    }
}

/// One of each kind, on CPU `number`.
fn send_round(lapic: Lapic, number: u32) {
    let next = (number + 1) % CPUS.load(Ordering::SeqCst);
    lapic.send(0, icr::TO_ALL | FIXED);
    lapic.send_self(VECTOR);
    lapic.send(next, FIXED);
    lapic.send(0, icr::TO_OTHERS | icr::ASSERT | delivery_mode::NMI);
}

fn other(number: u32) {
    interrupts::load();
    let lapic = Lapic::enable(mode());
    READY.fetch_add(1, Ordering::SeqCst);
    // An NMI would find a CPU that has no IDT yet.
    while CPUS.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    loop {
        // SAFETY: the handlers keep all registers. What has come in the meantime does not end
        // HLT, what comes next does: the first CPU never stops.
        unsafe { asm!("sti") };
        send_round(lapic, number);
        // SAFETY: as above.
        unsafe { asm!("hlt") };
    }
}

fn run(_: &mut Report) {
    set_handler(VECTOR, on_interrupt);
    set_handler(NMI, on_nmi);
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let interval = hertz / 1000 * multiboot::number("interval_ms").unwrap_or(200).max(1);
    let lapic = Lapic::enable(mode());
    let others = smp::start_others(lapic, hertz, other);
    while READY.load(Ordering::SeqCst) < others {
        core::hint::spin_loop();
    }
    CPUS.store(others + 1, Ordering::SeqCst);
    println!("storm: {} CPUs", others + 1);
    let mut next_line = tsc::now() + interval;
    loop {
        // SAFETY: the handlers keep all registers.
        unsafe { asm!("sti") };
        send_round(lapic, 0);
        // SAFETY: nothing is to come between the parts of a line.
        unsafe { asm!("cli") };
        let now = tsc::now();
        if now >= next_line {
            println!("storm: taken={}", TAKEN.load(Ordering::Relaxed));
            next_line = now + interval;
        }
    }
}

kernels::kernel!(run);
