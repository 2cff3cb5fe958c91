//! `cargo xtask bench`: what operations cost that a hypervisor may have to handle, as a guest of
//! ours measures it from inside, beside what Linux KVM takes for the same in the same emulator. The guest has a
//! disk, and a network with another one that sends back what it receives; of these operations the exits are counted,
//! too. KVM's numbers are those of `cargo xtask nested --bare`.

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
pub(super) const GUEST: &str = "bench";
/// The VM at the other end of its network, with the same kernel.
pub(super) const ECHO: &str = "echo";
/// The guest's name for the count of exits of asking for it.
const NOTHING: &str = "nothing";

/// A disk's sector, and the disk's size, in bytes.
const SECTOR: usize = 512;
const DISK: usize = 1 << 20;

/// Emulated seconds of this many instructions: the guest waits for hardly anything.
pub(super) const IPS: u64 = 100_000_000;

/// The number of times that each operation is measured where nobody says otherwise.
pub(super) const ROUNDS: u32 = 100;

/// The facts about an operation that are known beside our own measurement.
struct Known {
    /// The guest's name for it.
    name: &'static str,
    /// Linux 6.1 KVM with QEMU 7.2 as its device model, in Bochs, in ticks, by `cargo xtask nested --bare`.
    kvm: Option<u64>,
    /// The exits that it takes there.
    kvm_exits: Option<f64>,
    /// The most ticks that tarpit may take.
    most: Option<u64>,
    /// The most exits that it may take, of all guests that have to do with it: a packet's of one side.
    most_exits: Option<f64>,
}

const fn known(name: &'static str, kvm: Option<u64>, most: Option<u64>) -> Known {
    Known {
        name,
        kvm,
        kvm_exits: None,
        most,
        most_exits: None,
    }
}

/// Makes the same of an operation whose exits are counted.
const fn with_exits(
    name: &'static str,
    (kvm, kvm_exits): (u64, f64),
    most: u64,
    most_exits: f64,
) -> Known {
    Known {
        kvm_exits: Some(kvm_exits),
        most_exits: Some(most_exits),
        ..known(name, Some(kvm), Some(most))
    }
}

/// The operations of which something is known. Their bounds are a few percent above what was measured, so
/// that it is seen when an exit gets slower. KVM's numbers are of Debian's Bochs, whose processor has no posted interrupts:
/// KVM uses no virtual APIC without them.
const KNOWN: [Known; 22] = [
    known("cpuid", Some(1_068), Some(220)),
    known("vmcall", Some(1_092), Some(200)),
    known("pm_timer_read", Some(5_920), Some(300)),
    known("ioapic_read", Some(3_928), Some(900)),
    known("hpet_read", Some(7_779), Some(900)),
    known("xapic_self_ipi", Some(11_773), Some(20)),
    known("xapic_icr_write", Some(4_982), None),
    known("xapic_eoi", Some(4_330), None),
    known("x2apic_self_ipi", Some(5_780), Some(700)),
    known("x2apic_icr_write", Some(2_249), None),
    known("x2apic_eoi", Some(1_700), None),
    known("tsc_adjust_write", Some(1_742), Some(330)),
    known("cr8_read", Some(1), Some(7)),
    known("deadline_arm", Some(1_841), Some(480)),
    known("deadline_arm_and_interrupt", Some(4_371), Some(750)),
    known("deadline_lateness", Some(218), Some(640)),
    known("context_switch", Some(1), Some(2)),
    known("context_switch_beside_target", None, Some(2)),
    with_exits("virtio_blk_read", (65_255, 4.0), 6_500, 2.0),
    with_exits("virtio_blk_read_batched", (10_386, 0.25), 2_250, 0.2),
    with_exits("virtio_net_packet", (27_694, 2.0), 18_000, 2.0),
    with_exits("virtio_net_packet_batched", (7_806, 0.125), 3_500, 0.2),
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

    /// Returns whether it is off from what is recorded of KVM by more than runs differ: by an eighth, and some ticks.
    fn differs_from_record(&self) -> bool {
        let differs =
            |measured: f64, recorded: f64| (measured - recorded).abs() > recorded / 8.0 + 10.0;
        let Some(known) = self.known() else {
            return false;
        };
        let in_ticks = known
            .kvm
            .is_some_and(|kvm| differs(self.median as f64, kvm as f64));
        let in_exits = known.kvm_exits.zip(self.exits);
        in_ticks
            || in_exits.is_some_and(|(recorded, exits)| (exits - recorded).abs() > recorded / 8.0)
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

/// A line by which the guest asks its operator for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question<'a> {
    /// The wish that the address space with this root be suppressed.
    Suppress(&'a str),
    /// The wish that exits be counted from now on: those of this operation, and so many of it.
    Count(&'a str, u64),
    /// The end of that.
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

/// The hypervisor that the guest runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hypervisor {
    /// tarpit.
    Tarpit {
        /// The machine that it runs on.
        machine: Kind,
        /// The extra cost that each exit was given: no bound holds with one.
        exit_cost: u64,
    },
    /// KVM, in Bochs.
    Kvm,
}

/// All operations' costs.
#[derive(Clone, Debug)]
pub struct Costs {
    pub(super) hypervisor: Hypervisor,
    pub(super) measured: Vec<Measured>,
}

impl Costs {
    /// Returns whether the bounds hold for them.
    fn are_bound(&self) -> bool {
        matches!(self.hypervisor, Hypervisor::Tarpit { exit_cost: 0, .. })
    }

    /// Returns those that cost more than they may. An operation with a bound that was not measured
    /// is one of them, without a cost.
    pub fn misses(&self) -> Vec<String> {
        if !self.are_bound() {
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

    /// Returns what the table says of an operation that is not as it should be, or as it is recorded.
    fn remark(&self, cost: &Measured) -> &'static str {
        if self.are_bound() && cost.misses().next().is_some() {
            "  MISSED"
        } else if self.hypervisor == Hypervisor::Kvm && cost.differs_from_record() {
            "  RECORDED OTHERWISE"
        } else {
            ""
        }
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
                    "kvm_exits": known.and_then(|known| known.kvm_exits),
                    "at_most": known.and_then(|known| known.most),
                    "exits_at_most": known.and_then(|known| known.most_exits),
                });
                (cost.name.clone(), value)
            })
            .collect();
        let (machine, exit_cost) = match self.hypervisor {
            Hypervisor::Tarpit { machine, exit_cost } => (machine.to_string(), exit_cost),
            Hypervisor::Kvm => (format!("KVM in {}", Kind::Bochs), 0),
        };
        json!({
            "machine": machine,
            "exit_cost": exit_cost,
            "unit": "ticks of the TSC",
            "operations": operations,
            "misses": self.misses(),
        })
    }

    /// Prints the table and writes it to this file below `target`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn conclude(&self, file: &str) -> Result<()> {
        println!("{self}");
        let path = paths::target().join(file);
        std::fs::write(&path, format!("{:#}\n", self.json()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("Written to {}", paths::shown(&path));
        Ok(())
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Operation (ticks)             least   median      KVM  at most    exits      KVM  at most"
        )?;
        let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        let exits = |exits: Option<f64>| exits.map_or_else(String::new, |n| format!("{n:.2}"));
        for cost in &self.measured {
            let known = cost.known();
            // They are tarpit's.
            let bounds = known.filter(|_| self.hypervisor != Hypervisor::Kvm);
            write!(
                f,
                "\n{:<26} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}{}",
                cost.name,
                cost.least,
                cost.median,
                number(known.and_then(|known| known.kvm)),
                number(bounds.and_then(|known| known.most)),
                exits(cost.exits),
                exits(known.and_then(|known| known.kvm_exits)),
                exits(bounds.and_then(|known| known.most_exits)),
                self.remark(cost)
            )?;
        }
        Ok(())
    }
}

/// Returns the content of a disk each of whose sectors begins with its number, as the guest expects it.
pub(super) fn disk_content() -> Vec<u8> {
    let mut content = vec![0; DISK];
    for (number, sector) in (0_u64..).zip(content.chunks_exact_mut(SECTOR)) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
    }
    content
}

/// Returns such a disk.
fn disk(name: &str) -> Result<Module> {
    let file = paths::images().join(format!("{name}.disk"));
    std::fs::create_dir_all(paths::images())?;
    std::fs::write(&file, disk_content())
        .with_context(|| format!("cannot write {}", file.display()))?;
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
    let mut is_attached = false;
    let measured = follow(&mut session, |session, question| {
        // It says nothing until it is answered, so that nothing is missed while attaching and detaching.
        if is_attached {
            session.detach()?;
        }
        if let Question::Suppress(root) = question {
            suppress(session, root)?;
        }
        let exits = exits(session)?;
        session.attach(GUEST)?;
        is_attached = true;
        session.send(b"\r")?;
        Ok(exits)
    })?;
    Ok(Costs {
        hypervisor: Hypervisor::Tarpit {
            machine: kind,
            exit_cost,
        },
        measured,
    })
}

/// Follows the guest to its end and reads what it measures. `answer` does what it asks for, and returns how often the
/// guests have exited so far.
///
/// # Errors
/// As `answer`, or when the guest does not get to its end, or does not tell what it should.
pub(super) fn follow(
    session: &mut Session,
    mut answer: impl FnMut(&mut Session, Question) -> Result<u64>,
) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let mut counted = BTreeMap::new();
    let mut count = None;
    loop {
        let line = session.wait_for_match(r"^((\[bench .*\] )?bench: .*|vm bench ended: .*)$")?;
        let line = line.first().context("no line")?;
        if let Some(end) = VmEnd::from_line(line, GUEST) {
            ensure!(end == VmEnd::DebugExit(0), "the guest ended: {end}");
            break;
        }
        let Some(question) = Question::from_line(line) else {
            measured.extend(Measured::from_line(line));
            continue;
        };
        let exits = answer(session, question)?;
        match question {
            Question::Suppress(_) => {}
            Question::Count(name, operations) => count = Some((name.to_owned(), operations, exits)),
            Question::Counted => {
                let (name, operations, before) = count.take().context("counted what?")?;
                let exits = exits
                    .checked_sub(before)
                    .context("fewer exits than before: has the other VM ended?")?;
                counted.insert(name, (exits, operations));
            }
        }
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
    Ok(measured)
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
    costs.conclude("bench.json")?;
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
            hypervisor: Hypervisor::Tarpit {
                machine: Kind::Bochs,
                exit_cost: 0,
            },
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
        assert!(costs.json()["operations"]["cpuid"]["kvm"].is_u64());
    }

    #[test]
    fn kvm_is_held_to_what_is_recorded_of_it_not_to_tarpits_bounds() {
        let recorded = KNOWN.iter().find(|known| known.kvm_exits.is_some());
        let recorded = recorded.expect("an operation whose exits are counted");
        let ticks = recorded.kvm.expect("ticks");
        let mut costs = Costs {
            hypervisor: Hypervisor::Kvm,
            measured: vec![cost(recorded.name, ticks)],
        };
        costs.measured[0].exits = recorded.kvm_exits;
        assert_eq!(costs.misses(), Vec::<String>::new());
        assert_eq!(costs.remark(&costs.measured[0]), "");
        costs.measured[0].median = ticks + ticks / 20;
        assert_eq!(costs.remark(&costs.measured[0]), "");
        costs.measured[0].median = ticks + ticks / 5;
        assert!(costs.to_string().contains("RECORDED OTHERWISE"));
        assert_eq!(costs.misses(), Vec::<String>::new());
        costs.measured[0].median = ticks;
        costs.measured[0].exits = Some(99.5);
        assert!(costs.to_string().contains("RECORDED OTHERWISE"));
    }
}
