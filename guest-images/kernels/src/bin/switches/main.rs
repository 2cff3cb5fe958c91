//! Switches between address spaces in every way that there is, one of which the operator may make a
//! target, and counts its own switches to that one. The operator is asked for all that it is to do by
//! the lines of `operator`.
//!
//! The command line says what is to be done: `bystanders` (nobody switches to the target), `ways` (all
//! ways of one CPU to switch to it), `tasks` (hardware tasks), `company` (another CPU does so, too),
//! `moving` (until the operator has moved this CPU about often enough); and `switches=N` how often.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod bystanders;
mod company;
mod operator;
mod space;
#[cfg(target_os = "none")]
mod tasks;
mod ways;

use kernels::{Report, multiboot};

/// Switches of each kind, where the command line says nothing.
const SWITCHES: u64 = 10_000;

fn run(report: &mut Report) {
    let count = multiboot::number("switches").unwrap_or(SWITCHES);
    if multiboot::has_word("bystanders") {
        bystanders::run(report, count);
    }
    if multiboot::has_word("ways") {
        ways::run(report, count);
    }
    if multiboot::has_word("moving") {
        ways::run_while_moved(report);
    }
    #[cfg(target_os = "none")]
    if multiboot::has_word("tasks") {
        tasks::run(report, count);
    }
    if multiboot::has_word("company") {
        company::run(report, count);
    }
}

kernels::kernel!(run);
