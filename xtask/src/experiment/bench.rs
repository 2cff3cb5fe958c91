//! `cargo xtask bench`: what operations cost that a hypervisor may have to handle, as a guest of
//! ours measures it from inside, beside what Linux KVM takes for the same in the same emulator. The guest has a
//! disk, and a network with another one that sends back what it receives; of these operations the exits are counted,
//! too.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::common::exits::Exits;
use super::exits;
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::{Guest, Module};
use crate::testbed::progress::Step;
use crate::testbed::serial::Session;
use crate::testbed::verdict::VmEnd;
use crate::testbed::{Setup, options, paths};

/// The guest kernel's name, and the VM's.
const GUEST: &str = "bench";
/// The VM at the other end of its network, with the same kernel.
const ECHO: &str = "echo";
/// The guest's name for the count of exits of asking for it.
const NOTHING: &str = "nothing";

/// A disk's sector, and the disk's size, in bytes.
const SECTOR: usize = 512;
const DISK: usize = 1 << 20;

/// Emulated seconds of this many instructions: the guest waits for hardly anything.
const IPS: u64 = 100_000_000;

/// How often each operation is measured where nobody says otherwise.
pub(super) const ROUNDS: u32 = 100;

/// The facts about an operation that are known beside our own measurement.
struct Known {
    /// The guest's name for it.
    name: &'static str,
    /// Linux 6.1 KVM with QEMU 7.2 as its device model, in Bochs, in ticks.
    kvm: Option<u64>,
    /// The most ticks that tarpit may take.
    most: Option<u64>,
    /// The most exits that it may take, of all guests that have to do with it: a packet's of one side.
    most_exits: Option<f64>,
}

const fn known(name: &'static str, kvm: Option<u64>, most: Option<u64>) -> Known {
    Known {
        name,
        kvm,
        most,
        most_exits: None,
    }
}

/// The same of an operation whose exits are counted.
const fn with_exits(name: &'static str, kvm: Option<u64>, most: u64, most_exits: f64) -> Known {
    Known {
        most_exits: Some(most_exits),
        ..known(name, kvm, Some(most))
    }
}

/// The operations of which something is known. Their bounds are a few percent above what was measured, so
/// that it is seen when an exit gets slower.
const KNOWN: [Known; 20] = [
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
    with_exits("virtio_blk_read", None, 6_500, 2.0),
    with_exits("virtio_blk_read_batched", None, 2_250, 0.2),
    with_exits("virtio_net_packet", None, 18_000, 2.0),
    with_exits("virtio_net_packet_batched", None, 3_500, 0.2),
];

/// On what to measure, and how often.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    /// How often each operation is measured
    #[arg(long, value_name = "N", default_value_t = ROUNDS, value_parser = clap::value_parser!(u32).range(1..=1000))]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The guest's name for it.
    pub name: String,
    /// The least.
    pub least: u64,
    /// The median.
    pub median: u64,
    /// The exits that it takes, where they are counted.
    pub exits: Option<f64>,
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
            exits: None,
        })
    }

    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.name == self.name)
    }

    /// Returns what it takes more than it may.
    fn misses(&self) -> impl Iterator<Item = String> {
        let known = self.known();
        let too_long = known
            .and_then(|known| known.most)
            .filter(|&most| self.median > most)
            .map(|_| format!("{} takes {} ticks", self.name, self.median));
        let most_exits = known.and_then(|known| known.most_exits);
        let too_many = most_exits.and_then(|most| match self.exits {
            Some(exits) if exits <= most => None,
            Some(exits) => Some(format!("{} takes {exits:.2} exits", self.name)),
            None => Some(format!("the exits of {} were not counted", self.name)),
        });
        [too_long, too_many].into_iter().flatten()
    }
}

/// What the guest asks its operator for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question<'a> {
    /// To suppress the address space with this root.
    Suppress(&'a str),
    /// To count the exits from now on, of this operation and so many of it.
    Count(&'a str, u64),
    /// To count no more.
    Counted,
}

impl<'a> Question<'a> {
    fn from_line(line: &'a str) -> Option<Self> {
        let (_, question) = line.split_once("bench: ")?;
        if question.trim() == "counted" {
            return Some(Self::Counted);
        }
        let mut words = question.strip_prefix("to be ")?.split_whitespace();
        match [words.next()?, words.next()?] {
            ["suppressed", root] => Some(Self::Suppress(root)),
            ["counted", name] => Some(Self::Count(name, words.next()?.parse().ok()?)),
            _ => None,
        }
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
        let mut misses: Vec<String> = self.measured.iter().flat_map(Measured::misses).collect();
        let is_measured = |name: &str| self.measured.iter().any(|cost| cost.name == name);
        for Known { name, most, .. } in &KNOWN {
            if most.is_some() && !is_measured(name) {
                misses.push(format!("{name} was not measured"));
            }
        }
        misses
    }

    /// Returns the median of an operation's costs, in ticks, if it was measured.
    pub(super) fn median(&self, name: &str) -> Option<u64> {
        let cost = self.measured.iter().find(|cost| cost.name == name)?;
        Some(cost.median)
    }

    /// Returns them as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        let operations: serde_json::Map<_, _> = self
            .measured
            .iter()
            .map(|cost| {
                let known = cost.known();
                let value = json!({
                    "least": cost.least,
                    "median": cost.median,
                    "exits": cost.exits,
                    "kvm": known.and_then(|known| known.kvm),
                    "at_most": known.and_then(|known| known.most),
                    "exits_at_most": known.and_then(|known| known.most_exits),
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
            "Operation (ticks)             least   median      KVM  at most    exits  at most"
        )?;
        for cost in &self.measured {
            let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
            let exits = |exits: Option<f64>| exits.map_or_else(String::new, |n| format!("{n:.2}"));
            let known = cost.known();
            write!(
                f,
                "\n{:<26} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}{}",
                cost.name,
                cost.least,
                cost.median,
                number(known.and_then(|known| known.kvm)),
                number(known.and_then(|known| known.most)),
                exits(cost.exits),
                exits(known.and_then(|known| known.most_exits)),
                if self.exit_cost == 0 && cost.misses().next().is_some() {
                    "  MISSED"
                } else {
                    ""
                }
            )?;
        }
        Ok(())
    }
}

/// Returns a disk each of whose sectors begins with its number, as the guest expects it.
fn disk(name: &str) -> Result<Module> {
    let mut content = vec![0; DISK];
    for (number, sector) in (0_u64..).zip(content.chunks_exact_mut(SECTOR)) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
    }
    let file = paths::images().join(format!("{name}.disk"));
    std::fs::create_dir_all(paths::images())?;
    std::fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Module::disk(&file, GUEST, "ro"))
}

/// Boots the guest and reads what it measures, on Bochs's model `processor` or the usual one. `name` names the run's files.
///
/// # Errors
/// When something cannot be built or started, or the guest does not get to its end.
pub fn measure(
    name: &str,
    kind: Kind,
    processor: Option<&'static str>,
    rounds: u32,
    exit_cost: u64,
) -> Result<Costs> {
    let guest = |name, command_line| Guest {
        memory_mib: 64,
        ..Guest::new(name).command_line(command_line)
    };
    let mut setup = Setup::new(name).on(kind);
    if let Some(model) = processor {
        setup = setup.processor(model);
    }
    let setup = setup
        .ips(IPS)
        .exit_cost(exit_cost)
        .options("on-end=poweroff")
        .kernel(GUEST, &guest(GUEST, &format!("rounds={rounds} operator=1")))?
        .module(disk(name)?)
        .nic(GUEST, "lan0", "")?
        .kernel(GUEST, &guest(ECHO, "echo=1"))?
        .nic(ECHO, "lan0", "")?;
    let _step = Step::begin(format!("Measuring in {kind}"));
    let mut session = setup.boot()?.patience(Duration::from_secs(600));
    let mut measured = Vec::new();
    let mut counted = BTreeMap::new();
    let mut count = None;
    let mut is_attached = false;
    loop {
        let line = session.wait_for_match(r"^((\[bench .*\] )?bench: .*|vm bench ended: .*)$")?;
        let line = line.first().context("no line")?;
        if let Some(end) = VmEnd::from_line(line, GUEST) {
            ensure!(end == VmEnd::DebugExit(0), "the guest ended: {end:?}");
            break;
        }
        let Some(question) = Question::from_line(line) else {
            measured.extend(Measured::from_line(line));
            continue;
        };
        // It says nothing until it is answered, so that nothing is missed while attaching and detaching.
        if is_attached {
            session.detach()?;
        }
        match question {
            Question::Suppress(root) => suppress(&mut session, root)?,
            Question::Count(name, operations) => {
                count = Some((name.to_owned(), operations, exits(&mut session)?));
            }
            Question::Counted => {
                let (name, operations, before) = count.take().context("counted what?")?;
                counted.insert(name, (exits(&mut session)? - before, operations));
            }
        }
        session.attach(GUEST)?;
        is_attached = true;
        session.send(b"\r")?;
    }
    if measured.is_empty() {
        bail!("the guest measured nothing");
    }
    let (nothing, _) = counted.remove(NOTHING).context("nothing was not counted")?;
    for cost in &mut measured {
        let exits = |(exits, operations): &(u64, u64)| {
            exits.saturating_sub(nothing) as f64 / *operations as f64
        };
        cost.exits = counted.get(&cost.name).map(exits);
    }
    Ok(Costs {
        machine: kind,
        exit_cost,
        measured,
    })
}

/// Returns how often the guests have exited so far, of themselves.
fn exits(session: &mut Session) -> Result<u64> {
    [GUEST, ECHO]
        .iter()
        .try_fold(0, |sum, vm| Ok(sum + Exits::of(session, vm)?.of_guest()))
}

/// Suppresses an address space of the guest's.
fn suppress(session: &mut Session, root: &str) -> Result<()> {
    let command = format!("suppress {GUEST} {root}");
    let answer = session.query(&command)?;
    if !matches!(answer.as_slice(), [done] if done.get("error").is_none()) {
        bail!("`{command}` was answered with {answer:?}");
    }
    Ok(())
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
    let costs = measure(
        claim.name(),
        kind,
        None,
        options.rounds,
        options.exit_cost.ticks,
    )?;
    println!("{costs}");
    let path = paths::target().join("bench.json");
    std::fs::write(&path, format!("{:#}\n", costs.json()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("Written to {}", paths::shown(&path));
    let misses = costs.misses();
    misses.iter().for_each(|miss| println!("MISSED: {miss}"));
    Ok(misses.is_empty())
}

/// Returns whether there is a bound for what this operation costs.
#[cfg(test)]
pub(super) fn has_bound(name: &str) -> bool {
    let known = KNOWN.iter().find(|known| known.name == name);
    known.is_some_and(|known| known.most.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(name: &str, median: u64) -> Measured {
        Measured {
            name: name.to_owned(),
            least: median,
            median,
            exits: None,
        }
    }

    #[test]
    fn a_line_of_the_guests_is_read_with_tarpits_prefix() {
        let line = "[bench   1.234567] bench: cpuid=213 median=215";
        let expected = Measured {
            name: "cpuid".to_owned(),
            least: 213,
            median: 215,
            exits: None,
        };
        assert_eq!(Measured::from_line(line).as_ref(), Some(&expected));
        let attached = "bench: cpuid=213 median=215";
        assert_eq!(Measured::from_line(attached), Some(expected));
        assert_eq!(Measured::from_line("[bench 1.2] bench: tsc_hz=100"), None);
    }

    #[test]
    fn what_the_guest_asks_for_is_told_from_what_it_measures() {
        for (line, question) in [
            (
                "[bench 1.2] bench: to be suppressed 0x123000",
                Some(Question::Suppress("0x123000")),
            ),
            (
                "bench: to be counted virtio_blk_read 20",
                Some(Question::Count("virtio_blk_read", 20)),
            ),
            ("bench: counted", Some(Question::Counted)),
            ("bench: to be counted virtio_blk_read", None),
            ("[bench 1.2] bench: cpuid=213 median=215", None),
        ] {
            assert_eq!(Question::from_line(line), question, "{line}");
        }
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
        let counted: Vec<&mut Measured> = costs
            .measured
            .iter_mut()
            .filter(|cost| cost.known().is_some_and(|known| known.most_exits.is_some()))
            .collect();
        assert_eq!(counted.len(), 4);
        for cost in counted {
            assert_eq!(cost.misses().count(), 1, "{cost:?} without its exits");
            cost.exits = Some(99.5);
            let misses: Vec<_> = cost.misses().collect();
            assert_eq!(misses, [format!("{} takes 99.50 exits", cost.name)]);
            cost.exits = Some(0.1);
        }
        assert_eq!(costs.misses(), Vec::<String>::new());
        assert_eq!(costs.json()["operations"]["cpuid"]["kvm"], 1_164);
    }
}
