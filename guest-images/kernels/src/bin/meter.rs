//! Counts units of work: how fast it gets on is what its neighbors leave it.
//!
//! A unit is a thousand instructions, none of which exits. Every `interval_ms=N` (50) a line
//! `meter: units=N` says how many there have been. With `every_ms=N` it works for one unit only
//! and then halts until the next multiple of N, by the local APIC's timer; so units count how often
//! it has been woken, and the line ends with ` late_us=N`: the longest that it has been woken late
//! since the last line.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;

use arch::apic::{Register, lvt};
use arch::msr::IA32_TSC_DEADLINE;
use kernels::interrupts::{Frame, set_handler};
use kernels::lapic::{self, Lapic, Mode};
use kernels::{Report, multiboot, print, tsc};
use x86_64::registers::model_specific::Msr;

/// Turns of a loop of two instructions.
const TURNS: u32 = 500;
const TIMER_VECTOR: u8 = 0x40;

fn on_timer(_: &mut Frame) {
    Lapic::current().end();
}

fn unit() {
    // SAFETY: counts in a register.
    unsafe { asm!("2: dec {0:e}", "jnz 2b", inout(reg) TURNS => _, options(nomem, nostack)) }
}

/// Sets the local APIC's timer up for [`sleep_until`].
fn prepare_sleep() {
    set_handler(TIMER_VECTOR, on_timer);
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(
        Register::LVT_TIMER,
        lvt::TIMER_TSC_DEADLINE | u32::from(TIMER_VECTOR),
    );
}

/// Halts until the TSC is at `wake_at`. Returns how much later it was woken, in ticks.
fn sleep_until(wake_at: u64) -> u64 {
    // SAFETY: the timer's handler keeps all registers. STI lets HLT begin before anything comes
    // in; should the time be over already, the interrupt ends HLT at once.
    unsafe {
        Msr::new(IA32_TSC_DEADLINE).write(wake_at);
        asm!("sti", "hlt", "cli");
    }
    tsc::now().saturating_sub(wake_at)
}

fn run(report: &mut Report) {
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let ticks = |milliseconds: u64| hertz / 1000 * milliseconds;
    let interval = ticks(multiboot::number("interval_ms").unwrap_or(50).max(1));
    let every = multiboot::number("every_ms").map(|every| ticks(every.max(1)));
    if every.is_some() {
        if !lapic::has_tsc_deadline() {
            report.holds("the timer has TSC-deadline mode", false);
            return;
        }
        prepare_sleep();
    }
    let mut units = 0_u64;
    let mut latest = 0;
    let mut next_line = tsc::now() + interval;
    loop {
        unit();
        units += 1;
        let now = tsc::now();
        if now >= next_line {
            print!("meter: units={units}");
            if every.is_some() {
                print!(" late_us={}", latest * 1_000_000 / hertz);
                latest = 0;
            }
            print!("\n");
            next_line = now + interval;
        }
        if let Some(every) = every {
            latest = latest.max(sleep_until((now / every + 1) * every));
        }
    }
}

kernels::kernel!(run);
