//! Every timer against the TSC: no interrupt early, none later than a bound, and no drift.
//!
//! `slack_us=N` on the command line says how late an interrupt may be, in microseconds.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod arrivals;
mod hpet;
mod lapic;
mod pit;
mod pm_timer;
mod rtc;
mod tiny;

use kernels::{Report, ioapic, multiboot, println, tsc};

use arrivals::Time;

fn run(report: &mut Report) {
    ioapic::mask_all();
    let measured = tsc::measured_hertz();
    let told = tsc::cpuid_hertz();
    let hertz = told.unwrap_or(measured);
    println!("TSC: {hertz} Hz, measured {measured} Hz");
    if told.is_some() {
        report.near("the TSC's frequency is what CPUID says", measured, hertz, 2);
    } else {
        report.skip("the TSC's frequency is what CPUID says", "CPUID does not");
    }
    let time = Time::new(hertz, multiboot::number("slack_us").unwrap_or(100));
    lapic::test(report, time);
    pit::test(report, time);
    hpet::test(report, time);
    rtc::test(report, time);
    pm_timer::test(report, time);
    tiny::test(report);
}

kernels::kernel!(run);
