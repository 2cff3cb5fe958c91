//! Experiments: what tarpit does to a real guest, measured from outside.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::paths;

mod address_space;
mod batch;
mod countdown;
pub mod dmesg;
pub mod figure1;
mod font;
pub mod guest;
pub mod neighbours;
mod picture;
pub mod quick;
pub mod reports;
pub mod section5;
pub mod timekeeping;

pub use countdown::Countdown;

/// Which one.
#[derive(Subcommand, Clone, Debug)]
pub enum Experiment {
    /// Suppress one of several processes and release it: is it slow, do the others gain?
    ///
    /// Exit status 1 where a requirement is missed: with N = 1000, the target at most at 1/100 of
    /// its speed, the others together at nine tenths or more of what it leaves them, the target
    /// after its release within a tenth of its speed before, and a kernel log without complaints.
    Quick(quick::Options),
    /// The paper's Figure 1: two processes in turn, and one of them suppressed with N = 2, traced
    ///
    /// Exit status 1 where a requirement is missed: in the small guest, the suppressed process's
    /// slices of 20 ms instead of 40 and the other's of 40, each within 1 ms; in Linux, half the
    /// other's CPU time and slices, within 0.05.
    Figure1(figure1::Options),
    /// Suppress and release in Linux's every mode of timekeeping, on three kernels
    ///
    /// Each case is an experiment `quick` of its own and takes minutes. It passes with that
    /// experiment's requirements met, its clock right within 0.1 % while nothing is suppressed, and
    /// the kernel using the clocks that the mode is about. Exit status 1 where a case fails.
    Timekeeping(timekeeping::Options),
    /// The paper's Section 5: how slow the target gets, by N, VCPUs and physical CPUs
    ///
    /// Four CPU-bound processes a VCPU in a guest with 512 MB; one of them is suppressed with each N
    /// in turn. The VCPUs are pinned to one CPU, then spread over as many. Exit status 1 where a
    /// requirement is missed: with N = 1000 or more, the target at most at 1/1000 of its speed and
    /// the others together at 0.97 or more of what they do when there is no target; and a kernel
    /// log without complaints.
    Section5(section5::Options),
    /// Two VMs on one CPU, one with a hog: what do others get back when it is suppressed?
    ///
    /// Tells the time that goes to the hog's own VM from what goes to the neighbour. Exit status 1
    /// where the neighbour loses by the suppression, or a kernel's log has complaints.
    Neighbours(neighbours::Options),
}

/// Prints what came out of the experiment `name`, writes it to `target/experiments/NAME.json`, and
/// names the requirements that it missed. True if it missed none.
fn conclude(
    name: &str,
    outcome: &impl std::fmt::Display,
    json: &serde_json::Value,
    misses: &[String],
) -> Result<bool> {
    println!("{outcome}");
    let path = write_json(name, json)?;
    println!("Written to {}", paths::shown(&path));
    for miss in misses {
        println!("MISSED: {miss}");
    }
    Ok(misses.is_empty())
}

/// Makes an experiment. True if it met its requirements.
///
/// # Errors
/// When it cannot be made.
pub fn run(experiment: &Experiment) -> Result<bool> {
    match experiment {
        Experiment::Quick(options) => quick::run(options),
        Experiment::Figure1(options) => figure1::run(options),
        Experiment::Timekeeping(options) => timekeeping::run(options),
        Experiment::Section5(options) => section5::run(options),
        Experiment::Neighbours(options) => neighbours::run(options),
    }
}

/// Where results go: `target/experiments`.
fn directory() -> Result<PathBuf> {
    let directory = paths::target().join("experiments");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Writes `target/experiments/NAME.json`.
fn write_json(name: &str, value: &serde_json::Value) -> Result<PathBuf> {
    let path = directory()?.join(format!("{name}.json"));
    std::fs::write(&path, format!("{value:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
