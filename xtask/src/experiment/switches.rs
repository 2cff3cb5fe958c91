//! Switches between address spaces, by a guest of ours that counts them: is each one to a target seen,
//! and does none between others exit that would not without the target?

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::common::exits::Exits;
use super::common::{record, results};
use crate::testbed::claim::Claim;
use crate::testbed::findings::Findings;
use crate::testbed::machine::Kind;
use crate::testbed::module::Guest;
use crate::testbed::progress::Step;
use crate::testbed::serial::Session;
use crate::testbed::verdict::VmEnd;
use crate::testbed::{Setup, options};

/// The guest kernel's name, and the VM's.
const GUEST: &str = "switches";
/// Emulated seconds of this many instructions: the guest waits for the operator only.
const IPS: u64 = 100_000_000;
/// The words behind `suppress`: no budget, or the guest would stand still most of the time.
const ORDER: &str = "1000 --policy paper";
/// The number of times that the VCPU is moved from one CPU to the other.
const MOVES: u32 = 10;

/// Switch to a target in every way there is: is each switch seen, and do others pay nothing?
///
/// A guest of ours switches between address spaces, by MOV to CR3 with and without PCIDs, second roots,
/// hardware tasks, on two CPUs, while it is moved from CPU to CPU, and counts. Exit status 1 where
/// tarpit has seen another number of switches to the target, or where others exit more often beside a
/// target that sleeps than without one.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Switches in each way; between others, as many and ten times as many
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    pub switches: u32,
    /// The cost of an exit.
    #[command(flatten)]
    pub exit_cost: options::ExitCost,
    /// The emulator.
    #[command(flatten)]
    pub machine: options::Machine,
    /// The tables to be updated.
    #[command(flatten)]
    pub results: options::Results,
}

/// A part of the measurements, each of which has a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Switches between others, without a target and beside one that sleeps.
    Bystanders,
    /// Switches to a target in all ways.
    Ways,
    /// The same by two CPUs.
    Company,
}

impl Part {
    fn words(self) -> &'static str {
        match self {
            Self::Bystanders => "bystanders",
            Self::Ways => "ways tasks moving",
            Self::Company => "company others=1",
        }
    }
}

/// The switches of the guest between two halts, and those that tarpit saw.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Phase {
    name: String,
    /// Whether something was suppressed.
    with_target: bool,
    /// Switches to the target, as the guest counted them.
    switched: u64,
    /// The same, as tarpit did.
    seen: u64,
    exits: Exits,
}

/// The results of a guest's run.
#[derive(Clone, Debug)]
pub struct Outcome {
    part: Part,
    machine: Kind,
    exit_cost: u64,
    switches: u32,
    phases: Vec<Phase>,
    findings: Findings,
}

impl Outcome {
    /// Returns each phase without a target, with the same one beside it.
    fn pairs(&self) -> impl Iterator<Item = (&Phase, &Phase)> {
        let without = self.phases.iter().filter(|phase| !phase.with_target);
        without.filter_map(|phase| {
            let is_same = |other: &&Phase| other.with_target && other.name == phase.name;
            Some((phase, self.phases.iter().find(is_same)?))
        })
    }

    /// Returns each requirement that was missed, in words.
    pub fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        if !self.findings.are_good() {
            misses.push(format!("the guest's own checks: {}", self.findings));
        }
        for phase in &self.phases {
            if phase.seen != phase.switched {
                misses.push(format!(
                    "{}: {} switches to the target, {} seen",
                    phase.name, phase.switched, phase.seen
                ));
            }
        }
        for (without, with) in self.pairs() {
            if with.exits.of_guest() != without.exits.of_guest() {
                misses.push(format!(
                    "{}: {:?} without a target, {:?} beside one that sleeps",
                    with.name,
                    without.exits.by_reason(),
                    with.exits.by_reason()
                ));
            }
        }
        let has_measured = match self.part {
            Part::Bystanders => self.pairs().count() >= 3,
            Part::Ways | Part::Company => self.phases.iter().any(|phase| phase.switched > 0),
        };
        if !has_measured {
            misses.push("nothing was measured".to_owned());
        }
        misses
    }

    /// Returns it as JSON, for programs.
    fn json(&self) -> serde_json::Value {
        let phases = self.phases.iter().map(|phase| {
            json!({
                "name": phase.name,
                "with_target": phase.with_target,
                "switched": phase.switched,
                "seen": phase.seen,
                "exits": phase.exits.json(),
                "ticks": phase.exits.ticks,
            })
        });
        json!({
            "machine": self.machine.to_string(),
            "exit_cost": self.exit_cost,
            "switches": self.switches,
            "guest": self.findings.to_string(),
            "phases": phases.collect::<Vec<_>>(),
            "misses": self.misses(),
        })
    }

    /// Returns the cells of the table's rows.
    fn rows(&self) -> Vec<Vec<String>> {
        fn cells(cells: &[&dyn fmt::Display]) -> Vec<String> {
            cells.iter().map(ToString::to_string).collect()
        }
        match self.part {
            Part::Bystanders => {
                let row = |(without, with): (&Phase, &Phase)| {
                    cells(&[
                        &with.name,
                        &self.switches,
                        &without.exits.of_guest(),
                        &with.exits.of_guest(),
                        &verdict(without.exits.of_guest() == with.exits.of_guest()),
                    ])
                };
                self.pairs().map(row).collect()
            }
            Part::Ways | Part::Company => {
                let each = |phase: &Phase, number: u64| number as f64 / phase.switched as f64;
                let row = |phase: &Phase| {
                    cells(&[
                        &phase.name,
                        &phase.switched,
                        &phase.seen,
                        &format!("{:.2}", each(phase, phase.exits.all())),
                        &format!("{:.0}", each(phase, phase.exits.ticks)),
                        &verdict(phase.seen == phase.switched),
                    ])
                };
                self.phases.iter().map(row).collect()
            }
        }
    }

    /// Returns the table of docs/results.md that the rows are for.
    fn table(&self) -> results::Table<'static> {
        match self.part {
            Part::Bystanders => results::Table {
                name: "sleeping-target",
                title: "Others beside a target that sleeps",
                heading: "| Others do | Times | Exits without a target | Exits beside one | |\n\
                          | --- | --- | --- | --- | --- |",
                keys: 1,
            },
            Part::Ways | Part::Company => results::Table {
                name: "switches",
                title: "Switches to a target",
                heading: "| Way | Switches | Seen | Exits each | Ticks in tarpit each | |\n\
                          | --- | --- | --- | --- | --- | --- |",
                keys: 1,
            },
        }
    }
}

fn verdict(good: bool) -> &'static str {
    if good { "passed" } else { "missed" }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: &[&str] = match self.part {
            Part::Bystanders => &["Others do", "times", "exits without", "beside target", ""],
            Part::Ways | Part::Company => {
                &["Way", "switches", "seen", "exits each", "ticks each", ""]
            }
        };
        let heading = titles.iter().map(|&title| title.to_owned()).collect();
        let rows = std::iter::once(heading).chain(self.rows());
        for row in rows {
            let (name, rest) = row.split_first().ok_or(fmt::Error)?;
            write!(f, "{name:<34}")?;
            for cell in rest {
                write!(f, " {cell:>14}")?;
            }
            writeln!(f)?;
        }
        write!(f, "{}", self.findings)
    }
}

/// The console, as the guest's operator.
struct Operator {
    session: Session,
    /// The root of the first target; `None` while nothing is suppressed.
    target: Option<String>,
    is_attached: bool,
}

impl Operator {
    /// Goes back from the guest's console to tarpit's.
    fn detach(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_attached) {
            self.session.detach()?;
        }
        Ok(())
    }

    /// Lets the guest go on, from its console.
    fn let_go_on(&mut self) -> Result<()> {
        self.detach()?;
        self.session.attach(GUEST)?;
        self.is_attached = true;
        self.session.send(b"\r")
    }

    /// Has tarpit carry out `command`, which has to succeed.
    fn order(&mut self, command: &str) -> Result<()> {
        let answer = self.session.query(command)?;
        match answer.as_slice() {
            [done] if done.get("error").is_none() => Ok(()),
            _ => bail!("`{command}` was answered with {answer:?}"),
        }
    }

    /// Returns how often the first target has been seen to come in.
    fn switches_seen(&mut self) -> Result<u64> {
        let Some(root) = self.target.clone() else {
            return Ok(0);
        };
        let targets = self.session.query("targets")?;
        let target = targets.iter().find(|target| target["cr3"] == root.as_str());
        let count = target.and_then(|target| target["switch_ins"].as_u64());
        count.with_context(|| format!("`targets` does not tell of {root}: {targets:?}"))
    }

    /// Moves VCPU 0 from CPU to CPU.
    fn move_about(&mut self) -> Result<()> {
        self.detach()?;
        for turn in 0..MOVES {
            let cpu = turn % 2;
            self.order(&format!("pin {GUEST} 0 {cpu}"))?;
            self.wait_until_on(cpu)?;
        }
        Ok(())
    }

    /// Waits until `stats` shows VCPU 0 on this CPU.
    fn wait_until_on(&mut self, cpu: u32) -> Result<()> {
        const ATTEMPTS: u32 = 50;
        let place = format!("vcpu0-on-cpu{cpu}-pinned");
        for _ in 0..ATTEMPTS {
            let stats = self.session.query(&format!("stats {GUEST}"))?;
            if stats.iter().any(|line| line["what"] == place.as_str()) {
                return Ok(());
            }
        }
        bail!("VCPU 0 does not come to CPU {cpu}")
    }
}

/// A phase that has begun: what was counted until then.
type Begun = (u64, Exits);

/// Boots the guest, does what it asks for, and compares counts. `name` names the run's files.
///
/// # Errors
/// When something cannot be built or started, or the guest does not get to its end.
pub fn measure(
    name: &str,
    kind: Kind,
    part: Part,
    switches: u32,
    exit_cost: u64,
) -> Result<Outcome> {
    let guest = Guest {
        vcpus: 2,
        // Away from the CPU that serves the console.
        pins: vec![1, 0],
        ..Guest::new(GUEST).command_line(&format!("switches={switches} {}", part.words()))
    };
    let setup = Setup::new(name).on(kind).ips(IPS).exit_cost(exit_cost);
    let setup = setup
        .cpus(2)
        .options("on-end=poweroff")
        .kernel(GUEST, &guest)?;
    let step = Step::begin(format!("Switching in {kind}"));
    let mut operator = Operator {
        session: setup.boot()?.patience(Duration::from_secs(1800)),
        target: None,
        is_attached: false,
    };
    let mut phases = Vec::new();
    let mut begun: Option<Begun> = None;
    let findings = loop {
        let line = operator.session.wait_for_match(
            r"^(?:\[switches .*\] )?(?:switches: (\S+)(?: (\S+))?(?: switched=(\d+))?|((?:PASS|FAIL|SKIP) .*)|(vm switches ended: .*))$",
        )?;
        let [_, request, argument, switched, check, end] = line.as_slice() else {
            bail!("not what was looked for: {line:?}");
        };
        if !end.is_empty() {
            break end.clone();
        }
        if !check.is_empty() {
            step.detail(check.clone());
            if check.starts_with("FAIL") {
                bail!("the guest has found a failure: {check}");
            }
            continue;
        }
        operator.detach()?;
        match request.as_str() {
            "suppress" => {
                operator.order(&format!("suppress {GUEST} {argument} {ORDER}"))?;
                operator.target.get_or_insert_with(|| argument.clone());
                operator.let_go_on()?;
            }
            "release" => {
                operator.order(&format!("release {GUEST} all"))?;
                operator.target = None;
                operator.let_go_on()?;
            }
            "ready" => {
                step.detail(argument.clone());
                begun = Some((
                    operator.switches_seen()?,
                    Exits::of(&mut operator.session, GUEST)?,
                ));
                operator.let_go_on()?;
                if argument == "moved" {
                    operator.move_about()?;
                    operator.let_go_on()?;
                }
            }
            "done" => {
                let (seen_before, before) = begun.take().context("done before it was ready")?;
                phases.push(Phase {
                    name: argument.clone(),
                    with_target: operator.target.is_some(),
                    switched: switched.parse()?,
                    seen: operator.switches_seen()? - seen_before,
                    exits: Exits::of(&mut operator.session, GUEST)?.since(&before),
                });
                operator.let_go_on()?;
            }
            _ => bail!("the guest asks for something unknown: {line:?}"),
        }
    };
    let end = VmEnd::from_line(&findings, GUEST).context("no end")?;
    ensure!(end == VmEnd::DebugExit(0), "the guest ended: {end}");
    Ok(Outcome {
        part,
        machine: kind,
        exit_cost,
        switches,
        phases,
        findings: Findings {
            failures: Vec::new(),
            tally: None,
            end,
        },
    })
}

/// Makes the measurements, prints the tables and writes `target/experiments/switches-*.json`. True if
/// the requirements were met.
///
/// # Errors
/// As [`measure`], or when a file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    /// Switches between others cost no exits.
    const TIMES_BETWEEN_OTHERS: u32 = 10;
    let kind = options.machine.pick()?;
    let claim = Claim::new("switches")?;
    let mut passed = true;
    for (part, times) in [
        (Part::Bystanders, TIMES_BETWEEN_OTHERS),
        (Part::Ways, 1),
        (Part::Company, 1),
    ] {
        let switches = options.switches.saturating_mul(times);
        let outcome = measure(claim.name(), kind, part, switches, options.exit_cost.ticks)?;
        let table = outcome.table();
        let name = format!("switches-{part:?}").to_lowercase();
        passed &= record::conclude(&name, &outcome, &outcome.json(), &outcome.misses())?;
        if options.results.update {
            let rows = outcome.rows();
            let rows: Vec<String> = rows
                .iter()
                .map(|row| format!("| {} |", row.join(" | ")))
                .collect();
            table.update(&rows)?;
        }
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, with_target: bool, switched: u64, seen: u64, io: u64) -> Phase {
        Phase {
            name: name.to_owned(),
            with_target,
            switched,
            seen,
            exits: Exits::with("io-instruction", io),
        }
    }

    fn outcome(part: Part, phases: Vec<Phase>) -> Outcome {
        Outcome {
            part,
            machine: Kind::Bochs,
            exit_cost: 0,
            switches: 10,
            phases,
            findings: Findings {
                failures: Vec::new(),
                tally: None,
                end: VmEnd::DebugExit(0),
            },
        }
    }

    #[test]
    fn a_switch_that_was_not_seen_is_a_miss() {
        let good = vec![phase("mov-cr3", true, 10, 10, 3)];
        assert_eq!(outcome(Part::Ways, good).misses(), Vec::<String>::new());
        let missed = outcome(Part::Ways, vec![phase("mov-cr3", true, 10, 9, 3)]).misses();
        assert_eq!(missed, ["mov-cr3: 10 switches to the target, 9 seen"]);
        assert_eq!(outcome(Part::Ways, Vec::new()).misses().len(), 1);
    }

    #[test]
    fn an_exit_beside_a_target_that_is_not_there_without_it_is_a_miss() {
        let phases = |io| {
            let both = |name| [phase(name, false, 0, 0, 30), phase(name, true, 0, 0, io)];
            [both("a"), both("b"), both("c")].concat()
        };
        let good = outcome(Part::Bystanders, phases(30));
        assert_eq!(good.misses(), Vec::<String>::new());
        assert_eq!(good.rows()[0], ["a", "10", "30", "30", "passed"]);
        assert_eq!(outcome(Part::Bystanders, phases(31)).misses().len(), 3);
    }
}
