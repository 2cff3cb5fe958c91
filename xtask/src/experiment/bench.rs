//! `cargo xtask bench`: what operations cost that a hypervisor may have to handle, as a guest of
//! ours measures it from inside, beside what Linux KVM takes for the same in the same emulator.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::exits;
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::Guest;
use crate::testbed::progress::Step;
use crate::testbed::serial::Session;
use crate::testbed::verdict::VmEnd;
use crate::testbed::{Setup, options, paths};

/// The guest kernel's name, and the VM's.
const GUEST: &str = "bench";

/// Emulated seconds of this many instructions: the guest waits for hardly anything.
const IPS: u64 = 100_000_000;

/// The facts about an operation that are known beside our own measurement.
struct Known {
    /// The guest's name for it.
    name: &'static str,
    /// Linux 6.1 KVM with QEMU 7.2 as its device model, in Bochs, in ticks.
    kvm: Option<u64>,
    /// The most ticks that tarpit may take.
    most: Option<u64>,
}

const fn known(name: &'static str, kvm: Option<u64>, most: Option<u64>) -> Known {
    Known { name, kvm, most }
}

/// The operations of which something is known. Their bounds are a few percent above what was measured, so
/// that it is seen when an exit gets slower.
const KNOWN: [Known; 16] = [
    known("cpuid", Some(1_164), Some(220)),
    known("vmcall", Some(3_273), Some(200)),
    known("pm_timer_read", Some(5_393), Some(300)),
    known("ioapic_read", None, Some(900)),
    known("hpet_read", None, Some(900)),
    known("xapic_self_ipi", Some(5_698), Some(20)),
    known("xapic_icr_write", Some(2_117), None),
    known("xapic_eoi", Some(1_664), None),
    known("x2apic_self_ipi", None, Some(700)),
    known("tsc_adjust_write", Some(1_750), Some(330)),
    known("cr8_read", Some(7), Some(7)),
    known("deadline_arm", None, Some(480)),
    known("deadline_arm_and_interrupt", None, Some(750)),
    known("deadline_lateness", None, Some(640)),
    known("context_switch", None, Some(2)),
    known("context_switch_beside_target", None, Some(2)),
];

/// On what to measure, and how often.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    /// How often each operation is measured
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Count the exits of a Linux instead, by what it does
    #[arg(long)]
    pub exits: bool,
    /// Which Linux, for --exits.
    #[command(flatten)]
    pub kernel: options::Kernel,
    /// What becomes of the table of --exits.
    #[command(flatten)]
    pub results: options::Results,
    /// What an exit costs.
    #[command(flatten)]
    pub exit_cost: options::ExitCost,
    /// On which emulator.
    #[command(flatten)]
    pub machine: options::Machine,
}

/// An operation's cost in ticks of the TSC, with what measuring costs taken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The guest's name for it.
    pub name: String,
    /// The least.
    pub least: u64,
    /// The median.
    pub median: u64,
}

impl Measured {
    /// Reads a line `bench: cpuid=213 median=215` of the guest's, with or without tarpit's prefix.
    fn from_line(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("bench: ")?;
        let (result, median) = rest.split_once(" median=")?;
        let (name, least) = result.split_once('=')?;
        Some(Self {
            name: name.to_owned(),
            least: least.parse().ok()?,
            median: median.trim().parse().ok()?,
        })
    }

    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.name == self.name)
    }

    /// Returns whether it costs more than it may.
    pub fn is_too_much(&self) -> bool {
        self.known()
            .and_then(|known| known.most)
            .is_some_and(|most| self.median > most)
    }
}

/// All operations' costs.
#[derive(Clone, Debug)]
pub struct Costs {
    machine: Kind,
    /// The extra cost that each exit was given: no bound holds with it.
    exit_cost: u64,
    measured: Vec<Measured>,
}

impl Costs {
    /// Returns those that cost more than they may. An operation with a bound that was not measured
    /// is one of them, without a cost.
    pub fn misses(&self) -> Vec<String> {
        if self.exit_cost > 0 {
            return Vec::new();
        }
        let too_much = self.measured.iter().filter(|cost| cost.is_too_much());
        let mut misses: Vec<String> = too_much
            .map(|cost| format!("{} takes {} ticks", cost.name, cost.median))
            .collect();
        let is_measured = |name: &str| self.measured.iter().any(|cost| cost.name == name);
        for Known { name, most, .. } in &KNOWN {
            if most.is_some() && !is_measured(name) {
                misses.push(format!("{name} was not measured"));
            }
        }
        misses
    }

    fn json(&self) -> serde_json::Value {
        let operations: serde_json::Map<_, _> = self
            .measured
            .iter()
            .map(|cost| {
                let known = cost.known();
                let value = json!({
                    "least": cost.least,
                    "median": cost.median,
                    "kvm": known.and_then(|known| known.kvm),
                    "at_most": known.and_then(|known| known.most),
                });
                (cost.name.clone(), value)
            })
            .collect();
        json!({
            "machine": self.machine.to_string(),
            "exit_cost": self.exit_cost,
            "unit": "ticks of the TSC",
            "operations": operations,
            "misses": self.misses(),
        })
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Operation (ticks)             least   median      KVM  at most"
        )?;
        for cost in &self.measured {
            let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
            let known = cost.known();
            write!(
                f,
                "\n{:<26} {:>8} {:>8} {:>8} {:>8}{}",
                cost.name,
                cost.least,
                cost.median,
                number(known.and_then(|known| known.kvm)),
                number(known.and_then(|known| known.most)),
                if self.exit_cost == 0 && cost.is_too_much() {
                    "  MISSED"
                } else {
                    ""
                }
            )?;
        }
        Ok(())
    }
}

/// Boots the guest and reads what it measures. `name` names the run's files.
///
/// # Errors
/// When something cannot be built or started, or the guest does not get to its end.
pub fn measure(name: &str, kind: Kind, rounds: u32, exit_cost: u64) -> Result<Costs> {
    let guest = Guest {
        memory_mib: 64,
        ..Guest::new(GUEST).command_line(&format!("rounds={rounds} operator=1"))
    };
    let setup = Setup::new(name).on(kind).ips(IPS).exit_cost(exit_cost);
    let setup = setup.options("on-end=poweroff").kernel(GUEST, &guest)?;
    let _step = Step::begin(format!("Measuring in {kind}"));
    let mut session = setup.boot()?.patience(Duration::from_secs(600));
    let mut measured = Vec::new();
    loop {
        let line = session.wait_for_match(r"^((\[bench .*\] )?bench: .*|vm bench ended: .*)$")?;
        let line = line.first().context("no line")?;
        if let Some(end) = VmEnd::from_line(line, GUEST) {
            ensure!(end == VmEnd::DebugExit(0), "the guest ended: {end:?}");
            break;
        }
        if let Some((_, root)) = line.split_once("bench: to be suppressed ") {
            suppress(&mut session, root)?;
        }
        measured.extend(Measured::from_line(line));
    }
    if measured.is_empty() {
        bail!("the guest measured nothing");
    }
    Ok(Costs {
        machine: kind,
        exit_cost,
        measured,
    })
}

/// Does what the guest asks its operator for: suppresses an address space of its, and lets it know.
/// Stays attached to it.
fn suppress(session: &mut Session, root: &str) -> Result<()> {
    let command = format!("suppress {GUEST} {root}");
    let answer = session.query(&command)?;
    if !matches!(answer.as_slice(), [done] if done.get("error").is_none()) {
        bail!("`{command}` was answered with {answer:?}");
    }
    session.attach(GUEST)?;
    session.send(b"\r")
}

/// Measures, prints the table and writes `target/bench.json`; or counts exits. True if nothing costs
/// more than it may.
///
/// # Errors
/// As [`measure`], or when the file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    let claim = Claim::new("bench")?;
    if options.exits {
        return exits::run(
            claim.name(),
            kind,
            options.kernel.series,
            options.exit_cost.ticks,
            options.results.update,
        );
    }
    let costs = measure(claim.name(), kind, options.rounds, options.exit_cost.ticks)?;
    println!("{costs}");
    let path = paths::target().join("bench.json");
    std::fs::write(&path, format!("{:#}\n", costs.json()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("Written to {}", paths::shown(&path));
    let misses = costs.misses();
    misses.iter().for_each(|miss| println!("MISSED: {miss}"));
    Ok(misses.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(name: &str, median: u64) -> Measured {
        Measured {
            name: name.to_owned(),
            least: median,
            median,
        }
    }

    #[test]
    fn a_line_of_the_guests_is_read_with_tarpits_prefix() {
        let line = "[bench   1.234567] bench: cpuid=213 median=215";
        let expected = Measured {
            name: "cpuid".to_owned(),
            least: 213,
            median: 215,
        };
        assert_eq!(Measured::from_line(line).as_ref(), Some(&expected));
        let attached = "bench: cpuid=213 median=215";
        assert_eq!(Measured::from_line(attached), Some(expected));
        assert_eq!(Measured::from_line("[bench 1.2] bench: tsc_hz=100"), None);
    }

    #[test]
    fn what_costs_too_much_or_is_not_measured_is_missed() {
        let mut costs = Costs {
            machine: Kind::Bochs,
            exit_cost: 0,
            measured: vec![cost("cpuid", 301), cost("xapic_eoi", 9_999)],
        };
        let misses = costs.misses();
        assert_eq!(misses[0], "cpuid takes 301 ticks");
        let bounds = KNOWN.iter().filter(|known| known.most.is_some());
        assert_eq!(misses.len(), bounds.count(), "all but one are not measured");
        assert!(misses.contains(&"deadline_lateness was not measured".to_owned()));
        costs.measured = KNOWN.map(|known| cost(known.name, 2)).to_vec();
        assert_eq!(costs.misses(), Vec::<String>::new());
        assert_eq!(costs.json()["operations"]["cpuid"]["kvm"], 1_164);
    }
}
