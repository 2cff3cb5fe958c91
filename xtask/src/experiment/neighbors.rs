//! Two VMs on one physical CPU, one of them with a hog: what the neighbor and the hog's own VM get
//! back when the hog is suppressed.

use std::fmt;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::common::countdown::Countdown;
use super::common::reports::Speeds;
use super::common::subject::{Linux, Subject, expected_host_seconds};
use super::common::{dmesg, record};
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::Guest;
use crate::testbed::{Setup, options};

/// The VM with the hog, and the other one.
const VMS: [&str; 2] = ["hogged", "neighbor"];
const HOGGED: &str = VMS[0];
const NEIGHBOR: &str = VMS[1];

/// Rounds of the computation in one unit of work, as in Section 5: few, so that the little that a
/// target does can be counted.
const UNIT: u32 = 500;

/// The most that the neighbor may lose by a suppression in the other VM: a part of what it had.
const NEIGHBORS_LOSS: f64 = 0.02;

/// Two VMs on one CPU, one with a hog: what do others get back when it is suppressed?
///
/// Tells the time that goes to the hog's own VM from what goes to the neighbor. Exit status 1
/// where the neighbor loses by the suppression, or a kernel's log has complaints.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// For both knobs: the hog is to run at 1/N of its speed
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=65535))]
    n: u32,
    /// CPU-bound processes in the hog's VM, one of which is the hog
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=16))]
    procs: u32,
    /// CPU-bound processes in the neighbor's VM
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    neighbor_procs: u32,
    /// Host seconds to measure for in each phase
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    #[command(flatten)]
    kernel: options::Kernel,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    machine: options::Machine,
}

impl Options {
    /// Returns the guests, in the order of [`VMS`].
    fn guests(&self) -> [Linux; 2] {
        let vm = |name: &str, processes: u32| Linux {
            guest: Guest {
                pins: vec![0],
                ..Guest::new(name).command_line(&format!("workload.unit={UNIT}"))
            },
            processes: processes as usize,
        };
        [vm(HOGGED, self.procs), vm(NEIGHBOR, self.neighbor_procs)]
    }
}

/// The shares of the CPU, in parts of what the neighbor does when it has all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shares {
    hog: f64,
    /// The other processes in the hog's VM.
    siblings: f64,
    neighbor: f64,
}

impl Shares {
    /// Makes it from units of work a second, `whole` of which a CPU does.
    fn of(hogged: &Speeds, target: usize, neighbor: &Speeds, whole: f64) -> Self {
        Self {
            hog: hogged.per_second[target] / whole,
            siblings: hogged.sum_without(target) / whole,
            neighbor: neighbor.sum() / whole,
        }
    }

    fn json(self) -> serde_json::Value {
        json!({ "hog": self.hog, "siblings": self.siblings, "neighbor": self.neighbor })
    }
}

/// The outcome of the experiment.
#[derive(Clone, Debug)]
struct Outcome {
    n: u32,
    machine: Kind,
    ips: u64,
    exit_cost: u64,
    processes: u32,
    kernel: String,
    /// Units of work that the neighbor does a second when the hog's VM idles.
    alone: f64,
    /// The hog does not exist, its siblings do.
    without_hog: Shares,
    with_hog: Shares,
    suppressed: Shares,
    released: Shares,
    complaints: Vec<String>,
}

impl Outcome {
    /// Returns what suppression took from the hog, gave to its siblings, and to the neighbor, in
    /// parts of the CPU.
    fn given_back(&self) -> [f64; 3] {
        let (before, during) = (self.with_hog, self.suppressed);
        [
            before.hog - during.hog,
            during.siblings - before.siblings,
            during.neighbor - before.neighbor,
        ]
    }

    fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let neighbor = self.suppressed.neighbor / self.with_hog.neighbor;
        let is_enough = neighbor >= 1.0 - NEIGHBORS_LOSS;
        if !is_enough {
            misses.push(format!(
                "the neighbor runs at {neighbor:.4} of its speed while the hog is suppressed"
            ));
        }
        let complaints = self.complaints.iter();
        misses.extend(complaints.map(|line| format!("dmesg complains: {line}")));
        misses
    }

    fn json(&self) -> serde_json::Value {
        let [taken, inside, neighbor] = self.given_back();
        json!({
            "n": self.n,
            "machine": self.machine.to_string(),
            "ips": self.ips,
            "exit_cost": self.exit_cost,
            "kernel": self.kernel,
            "processes": self.processes,
            "unit": "parts of the CPU, by the neighbor's units of work when it has it alone",
            "units_per_second_alone": self.alone,
            "without_hog": self.without_hog.json(),
            "with_hog": self.with_hog.json(),
            "suppressed": self.suppressed.json(),
            "released": self.released.json(),
            "taken_from_hog": taken,
            "given_back_inside_vm": inside,
            "given_back_to_neighbor": neighbor,
            "lost": taken - inside - neighbor,
            "dmesg_clean": self.complaints.is_empty(),
            "dmesg_complaints": self.complaints,
            "misses": self.misses(),
            "passed": self.misses().is_empty(),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Linux {} twice on one CPU of {}, {} instructions a second; hog suppressed with N = {}",
            self.kernel, self.machine, self.ips, self.n
        )?;
        writeln!(f, "Parts of the CPU         neighbor  siblings      hog")?;
        let idle = Shares {
            hog: 0.0,
            siblings: 0.0,
            neighbor: 1.0,
        };
        let rows = [
            ("hog's VM idle", idle),
            ("no hog", self.without_hog),
            ("hog", self.with_hog),
            ("hog suppressed", self.suppressed),
            ("hog released", self.released),
        ];
        for (name, shares) in rows {
            writeln!(
                f,
                "  {name:<22} {:>9.4} {:>9.4} {:>8.5}",
                shares.neighbor, shares.siblings, shares.hog
            )?;
        }
        let [taken, inside, neighbor] = self.given_back();
        write!(
            f,
            "Suppression took {taken:.4} from the hog: gave {inside:.4} inside its VM, \
             {neighbor:.4} to the neighbor; lost {:.4}",
            taken - inside - neighbor
        )
    }
}

/// Returns the speeds in both VMs, in the order of [`VMS`].
fn watch(subject: &mut Subject, seconds: f64, countdown: &mut Countdown) -> Result<[Speeds; 2]> {
    let reports = subject.watch_all(&VMS, seconds, countdown)?;
    let [hogged, neighbor] = reports.as_slice() else {
        anyhow::bail!("reports of {} VMs", reports.len());
    };
    Ok([Speeds::over(hogged)?, Speeds::over(neighbor)?])
}

/// Makes the experiment. `name` names the run's files.
fn measure(name: &str, kind: Kind, options: &Options) -> Result<Outcome> {
    const PHASES: u32 = 5;
    let seconds = f64::from(options.seconds);
    let mut countdown = Countdown::begin(
        name,
        &format!("Experiment {name} in {kind}"),
        // Two systems boot.
        1.7 + expected_host_seconds(PHASES, seconds),
    );
    let countdown = &mut countdown;
    countdown.phase("Booting");
    let setup = Setup::new(name)
        .on(kind)
        .ips(options.speed.ips)
        .exit_cost(options.exit_cost.ticks);
    let guests = options.guests();
    let mut machine = Subject::boot(setup, options.kernel.series, &guests, countdown)?;
    let subject = &mut machine;

    countdown.phase("Measuring with the hog");
    let with_hog = watch(subject, seconds, countdown)?;
    let cr3 = subject.processes()?.swap_remove(0).cr3;

    countdown.phase(&format!("Suppressing {cr3}"));
    subject.suppress(&cr3, options.n, options.n)?;
    let suppressed = watch(subject, seconds, countdown)?;

    countdown.phase("Released");
    subject.release()?;
    let released = watch(subject, seconds, countdown)?;

    let target = suppressed[0]
        .most_slowed_since(&with_hog[0])
        .context("no process")?;
    let siblings: Vec<usize> = (0..options.procs as usize)
        .filter(|&index| index != target)
        .collect();
    countdown.phase("Without the hog");
    subject.end_processes([target])?;
    let without_hog = watch(subject, seconds, countdown)?;
    subject.end_processes(siblings)?;

    countdown.phase("The neighbor alone");
    subject.turn_to(NEIGHBOR)?;
    let alone = Speeds::over(&subject.watch(seconds, countdown)?)?.sum();

    countdown.phase("Reading the kernels' logs");
    // It is slow enough on a serial line: nothing should run meanwhile that Bochs has to emulate.
    subject.end_processes(0..options.neighbor_procs as usize)?;
    let mut complaints = Vec::new();
    let mut kernel = String::new();
    for vm in VMS {
        subject.turn_to(vm)?;
        let log = subject.dmesg()?;
        dmesg::release(&log)
            .context("the log names no kernel")?
            .clone_into(&mut kernel);
        let found = dmesg::complaints(&log);
        complaints.extend(found.into_iter().map(|line| format!("{vm}: {line}")));
    }
    machine.shut_down()?;
    let shares = |[hogged, neighbor]: &[Speeds; 2]| Shares::of(hogged, target, neighbor, alone);
    Ok(Outcome {
        n: options.n,
        machine: kind,
        ips: options.speed.ips,
        exit_cost: options.exit_cost.ticks,
        processes: options.procs,
        kernel,
        alone,
        without_hog: shares(&without_hog),
        with_hog: shares(&with_hog),
        suppressed: shares(&suppressed),
        released: shares(&released),
        complaints,
    })
}

/// Makes the experiment, prints the table and writes `target/experiments/neighbors.json`. True if
/// it met the requirements.
///
/// # Errors
/// When it cannot be made, or the file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    let claim = Claim::new("neighbors")?;
    let outcome = measure(claim.name(), kind, options)?;
    record::conclude("neighbors", &outcome, &outcome.json(), &outcome.misses())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::machine::DEFAULT_IPS;

    fn outcome(suppressed: Shares) -> Outcome {
        let with_hog = Shares {
            hog: 0.125,
            siblings: 0.375,
            neighbor: 0.5,
        };
        Outcome {
            n: 1000,
            machine: Kind::Bochs,
            ips: DEFAULT_IPS,
            exit_cost: 0,
            processes: 4,
            kernel: "6.1".to_owned(),
            alone: 1000.0,
            without_hog: Shares {
                hog: 0.0,
                ..with_hog
            },
            with_hog,
            suppressed,
            released: with_hog,
            complaints: Vec::new(),
        }
    }

    #[test]
    fn shares_are_parts_of_what_the_neighbor_does_alone() {
        let speeds = |per_second: &[f64]| Speeds {
            host_seconds: 1.0,
            per_second: per_second.to_vec(),
        };
        let shares = Shares::of(
            &speeds(&[200.0, 100.0, 200.0]),
            1,
            &speeds(&[500.0]),
            1000.0,
        );
        let expected = Shares {
            hog: 0.1,
            siblings: 0.4,
            neighbor: 0.5,
        };
        assert_eq!(shares, expected);
    }

    #[test]
    fn what_goes_to_the_own_vm_is_told_from_what_goes_to_the_neighbor() {
        let outcome = outcome(Shares {
            hog: 0.0,
            siblings: 0.4375,
            neighbor: 0.53125,
        });
        assert_eq!(outcome.given_back(), [0.125, 0.0625, 0.03125]);
        assert_eq!(outcome.json()["lost"], 0.03125);
        assert_eq!(outcome.misses(), Vec::<String>::new());
    }

    #[test]
    fn a_neighbor_that_loses_is_a_miss() {
        let outcome = outcome(Shares {
            hog: 0.0,
            siblings: 0.52,
            neighbor: 0.48,
        });
        assert_eq!(outcome.misses().len(), 1);
    }
}
