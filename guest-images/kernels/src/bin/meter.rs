//! Counts units of work: how fast it gets on is what its neighbors leave it.
//!
//! A unit is a thousand instructions, none of which exits. Every `interval_ms=N` (50) a line
//! `meter: units=N` says how many there have been. With `every_ms=N` it works for one unit only
//! and then halts until the next multiple of N, by the local APIC's timer; so units count how often
//! it has been woken, and the line ends with ` late_us=N`: the longest that it has been woken late
//! since the last line.
#![cfg_attr(target_os = "none", no_std, no_main)]

use kernels::{Report, multiboot, print, sleep, tsc, work};

/// The turns of a unit, of two instructions each.
const TURNS: u32 = 500;

fn run(report: &mut Report) {
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let ticks = |milliseconds: u64| hertz / 1000 * milliseconds;
    let interval = ticks(multiboot::number("interval_ms").unwrap_or(50).max(1));
    let every = multiboot::number("every_ms").map(|every| ticks(every.max(1)));
    if every.is_some() && !sleep::prepare() {
        report.holds("the timer has TSC-deadline mode", false);
        return;
    }
    let tells_pauses = multiboot::has_word("pauses");
    let mut units = 0_u64;
    let mut latest = 0;
    let mut pause = 0;
    let mut next_line = tsc::now() + interval;
    loop {
        let begun = tsc::now();
        work::turn(TURNS);
        units += 1;
        let now = tsc::now();
        pause = pause.max(now - begun);
        if now >= next_line {
            print!("meter: units={units}");
            if every.is_some() {
                print!(" late_us={}", latest * 1_000_000 / hertz);
                latest = 0;
            }
            if tells_pauses {
                // What a unit takes itself is small beside that.
                print!(" pause_us={}", pause * 1_000_000 / hertz);
                pause = 0;
            }
            print!("\n");
            next_line = now + interval;
        }
        if let Some(every) = every {
            latest = latest.max(sleep::until((now / every + 1) * every));
        }
    }
}

kernels::kernel!(run);
