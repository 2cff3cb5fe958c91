//! A guest that does at random all that a kernel can do, or all that a driver may not, beside a neighbor that
//! measures itself: does tarpit survive it, and does the neighbor keep its share?

use std::fmt;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::common::{record, results};
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::Module;
use crate::testbed::progress::Step;
use crate::testbed::serial::Session;
use crate::testbed::{Setup, build, options, paths};

/// The guest that does what it likes, the one that measures itself, and one that computes with interrupts off,
/// beside which the second has exactly its share of the CPU.
const GUEST: &str = "guest";
const METER: &str = "meter";
const HANG: &str = "hang";
/// The part of the CPU that is the second one's share: one of so many.
const SHARES: u32 = 10;
/// The guests' weights.
const NEIGHBOR_WEIGHT: u32 = 100;
const WEIGHT: u32 = NEIGHBOR_WEIGHT * (SHARES - 1);
/// Emulated seconds of this many instructions.
const IPS: u64 = 100_000_000;
/// The most that the neighbor may miss of its share.
const LOSS: f64 = 0.01;
/// Host seconds without an action after which the guest is taken to stand still.
const STILL: f64 = 1.0;
/// Host seconds for which the neighbor is measured beside the guest that computes.
const CALIBRATION: f64 = 2.0;

/// The guest that acts by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Actor {
    /// Does all that a kernel can do: instructions, registers, ports, device memory, page tables, modes
    Kernel,
    /// Does what no driver may: virtio devices are told anything, in registers, rings and buffers
    Driver,
}

impl Actor {
    /// Returns the kernel's name.
    const fn program(self) -> &'static str {
        match self {
            Self::Kernel => "fuzz",
            Self::Driver => "hostile_driver",
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Driver => "driver",
        })
    }
}

/// Let a guest do at random all that a kernel can do, or a driver may not, beside one that measures itself.
///
/// Both share a CPU. Exits are counted by tarpit's own books. A guest that has crashed, or that stands still,
/// is started again with the next seed. Exit status 1 where the neighbor has had less than 0.99 of its share; a
/// fatal error of tarpit's ends it, and tells the seed.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The guest
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Actor::Kernel)]
    guest: Actor,
    /// What is done follows from it; the guest that is started again takes the next number
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u32,
    /// Host seconds that it takes, in the emulated machine
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Go on until there have been so many exits, however long that takes
    #[arg(long, value_name = "N")]
    exits: Option<u64>,
    /// Go on until so many actions have been told of, however long that takes
    #[arg(long, value_name = "N", conflicts_with = "exits")]
    actions: Option<u64>,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    machine: options::Machine,
    #[command(flatten)]
    results: options::Results,
}

/// The amount of what is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// The first seed.
    pub seed: u32,
    /// Host seconds.
    pub seconds: f64,
    /// Exits, which go before the seconds.
    pub exits: Option<u64>,
    /// Actions, which go before the seconds as well.
    pub actions: Option<u64>,
}

/// A life of the guest, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Life {
    seed: u32,
    /// The actions that it told of.
    actions: u64,
    /// The exits, by tarpit's books.
    exits: u64,
    /// The way in which it ended.
    end: String,
}

/// The guest's lives so far, and the failures that it told of.
#[derive(Clone, Debug, Default)]
struct Done {
    lives: Vec<Life>,
    failures: Vec<String>,
}

impl Done {
    /// Returns the exits of all lives that are over.
    fn exits(&self) -> u64 {
        self.lives.iter().map(|life| life.exits).sum()
    }

    /// Returns the actions of all lives.
    fn actions(&self) -> u64 {
        self.lives.iter().map(|life| life.actions).sum()
    }

    /// Ends the present life.
    fn end_life(&mut self, operator: &mut Operator, how: String) -> Result<()> {
        let exits = operator.exits()?;
        if let Some(life) = self.lives.last_mut() {
            life.exits = exits;
            life.end = how;
        }
        Ok(())
    }
}

/// The neighbor at some time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Neighbor {
    /// Host seconds.
    at: f64,
    /// Seconds of CPU time that it has had.
    received: f64,
    /// Units of work that it has done.
    units: f64,
}

impl Neighbor {
    /// Returns its part of the CPU since `before`.
    fn part_since(self, before: Self) -> f64 {
        (self.received - before.received) / (self.at - before.at)
    }

    /// Returns its units of work a second since `before`.
    fn speed_since(self, before: Self) -> f64 {
        (self.units - before.units) / (self.at - before.at)
    }
}

/// The outcome of the whole.
#[derive(Clone, Debug)]
pub struct Outcome {
    actor: Actor,
    machine: Kind,
    exit_cost: u64,
    commit: String,
    done: Done,
    /// Host seconds in the emulated machine, and seconds here.
    host_seconds: f64,
    seconds: f64,
    /// The neighbor's part of the CPU, beside the guest that computes and beside the other.
    part_beside_hang: f64,
    part: f64,
    /// Its speed beside the second, in parts of that beside the first.
    speed: f64,
}

impl Outcome {
    /// Returns the exits of all lives.
    pub fn exits(&self) -> u64 {
        self.done.exits()
    }

    /// Returns the neighbor's part of the CPU, in parts of its share.
    pub fn share(&self) -> f64 {
        self.part * f64::from(SHARES)
    }

    /// Returns the same beside the guest that computes.
    fn share_beside_hang(&self) -> f64 {
        self.part_beside_hang * f64::from(SHARES)
    }

    /// Returns each requirement that was missed, in words.
    pub fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let has_its_share = self.share() >= 1.0 - LOSS;
        if !has_its_share {
            misses.push(format!("the neighbor had {:.4} of its share", self.share()));
        }
        misses.extend(self.done.failures.iter().cloned());
        if self.exits() == 0 {
            misses.push("there were no exits".to_owned());
        }
        misses
    }

    fn json(&self) -> Value {
        let lives = self.done.lives.iter().map(|life| {
            json!({
                "seed": life.seed,
                "actions": life.actions,
                "exits": life.exits,
                "end": life.end,
            })
        });
        json!({
            "guest": self.actor.to_string(),
            "machine": self.machine.to_string(),
            "exit_cost": self.exit_cost,
            "commit": self.commit,
            "exits": self.exits(),
            "actions": self.done.actions(),
            "host_seconds": self.host_seconds,
            "seconds": self.seconds,
            "exits_per_second": self.exits() as f64 / self.seconds,
            "neighbor_share": self.share(),
            "neighbor_share_beside_hang": self.share_beside_hang(),
            "neighbor_speed": self.speed,
            "lives": lives.collect::<Vec<_>>(),
            "misses": self.misses(),
            "passed": self.misses().is_empty(),
        })
    }

    /// Returns the row of the table.
    fn row(&self) -> String {
        let first = self.done.lives.first().map_or(0, |life| life.seed);
        format!(
            "| {} | {} | {first} | {} | {} | {:.0} | {} | {:.4} | {:.4} |",
            self.commit,
            self.actor,
            self.done.actions(),
            self.exits(),
            self.exits() as f64 / self.seconds,
            self.done.lives.len(),
            self.share(),
            self.speed,
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} exits of {} actions in {:.0} s ({:.1} s in {}): {:.0} exits a second",
            self.exits(),
            self.done.actions(),
            self.seconds,
            self.host_seconds,
            self.machine,
            self.exits() as f64 / self.seconds,
        )?;
        for life in &self.done.lives {
            writeln!(
                f,
                "  seed {:<10} {:>10} actions {:>10} exits  {}",
                life.seed, life.actions, life.exits, life.end
            )?;
        }
        write!(
            f,
            "The neighbor had {:.4} of its share, {:.4} beside a VM that computes; its speed was {:.4} of that there",
            self.share(),
            self.share_beside_hang(),
            self.speed,
        )
    }
}

/// The console, as the guests' operator.
struct Operator {
    session: Session,
    /// The units of work that the neighbor told of last.
    units: f64,
}

impl Operator {
    /// Asks for the time and the neighbor's books.
    fn neighbor(&mut self) -> Result<Neighbor> {
        let books = self.stats(METER)?;
        let received = books.iter().find_map(|line| {
            let is_vcpu = line["what"].as_str()?.starts_with("vcpu0-on-");
            is_vcpu.then(|| line["ticks"].as_u64())?
        });
        let vms = self.session.query("vms")?;
        let at = vms.iter().find_map(|line| line["host_us"].as_u64());
        Ok(Neighbor {
            at: at.context("`vms` tells no time")? as f64 / 1e6,
            received: received.context("`stats` tells no time")? as f64 / IPS as f64,
            units: self.units,
        })
    }

    fn stats(&mut self, vm: &str) -> Result<Vec<Value>> {
        self.session.query(&format!("stats {vm}"))
    }

    /// Returns the state of a VM.
    fn state(&mut self, vm: &str) -> Result<String> {
        let vms = self.session.query("vms")?;
        let line = vms.iter().find(|line| line["vm"] == vm);
        let state = line.and_then(|line| line["state"].as_str());
        Ok(state.context("`vms` tells no state")?.to_owned())
    }

    /// Returns the exits of the guest's present life.
    fn exits(&mut self) -> Result<u64> {
        let books = self.stats(GUEST)?;
        let line = books.iter().find(|line| line["what"] == "all-exits");
        let count = line.and_then(|line| line["count"].as_u64());
        Ok(count.unwrap_or(0))
    }

    /// Types the seed that the guest has asked for.
    fn tell_seed(&mut self, seed: u32) -> Result<()> {
        self.session.attach(GUEST)?;
        self.session.send(format!("{seed}\r").as_bytes())?;
        self.session.wait_for(&format!("random: seed={seed}"))?;
        self.session.detach()?;
        Ok(())
    }

    /// Waits for the next thing that the guest or its neighbor says.
    fn next(&mut self) -> Result<Said> {
        let line = self.session.wait_for_match(
            r"^(?:\[guest .*\] (?:random: (?:(seed\?)|actions=(\d+) .*|(FAILED: .*))|(PANIC|UNEXPECTED) .*)|\[meter +(\d+\.\d+)\] meter: units=(\d+)|vm guest ended: (.*))$",
        )?;
        let [_, question, actions, failure, _, at, units, end] = line.as_slice() else {
            bail!("not what was looked for: {line:?}");
        };
        if !units.is_empty() {
            self.units = units.parse()?;
            return Ok(Said::Time(at.parse()?));
        }
        Ok(if !question.is_empty() {
            Said::Asks
        } else if !actions.is_empty() {
            Said::Actions(actions.parse()?)
        } else if !failure.is_empty() {
            Said::Failed(failure.clone())
        } else if !end.is_empty() {
            Said::Ended(end.clone())
        } else {
            // It is about to end by itself, where it has the device for that; else it stands still.
            Said::Nothing
        })
    }

    /// Waits until the neighbor has told of its work.
    fn next_units(&mut self) -> Result<f64> {
        loop {
            if let Said::Time(at) = self.next()? {
                return Ok(at);
            }
        }
    }

    /// Lets so much host time pass, and tells what the neighbor had at its beginning and its end.
    fn measure_neighbor(&mut self, seconds: f64) -> Result<[Neighbor; 2]> {
        self.next_units()?;
        let begun = self.neighbor()?;
        while self.next_units()? < begun.at + seconds {}
        Ok([begun, self.neighbor()?])
    }
}

/// A line that a guest says.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Asks,
    Actions(u64),
    Failed(String),
    Ended(String),
    Time(f64),
    Nothing,
}

/// Makes a module of a guest kernel of ours, as a VM on the CPU that all share.
fn module(vm: &str, program: &str, weight: u32, options: &str) -> Result<Module> {
    Ok(Module {
        file: build::all()?.kernel(program)?.to_owned(),
        command_line: format!(
            "kernel vm={vm} mem=16M pin=0 weight={weight} {options} on-reset=stop -- interval_ms=200"
        ),
    })
}

/// Adds the guest to a machine: a driver has a device of each kind.
fn add_guest(setup: Setup, name: &str, actor: Actor) -> Result<Setup> {
    const DISK_BYTES: u64 = 256 << 10;
    let program = actor.program();
    match actor {
        Actor::Kernel => Ok(setup.module(module(GUEST, program, WEIGHT, "")?)),
        Actor::Driver => {
            let images = paths::images();
            std::fs::create_dir_all(&images)?;
            let disk = images.join(format!("{name}.disk"));
            File::create(&disk)?.set_len(DISK_BYTES)?;
            setup
                .module(module(GUEST, program, WEIGHT, "rng hvc")?)
                .module(Module::disk(&disk, GUEST, ""))
                .nic(GUEST, "lan0", "")
        }
    }
}

/// Returns the commit that the work tree is at.
fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short", "HEAD"])
        .current_dir(paths::workspace());
    let output = git.output().ok().filter(|output| output.status.success());
    let name = output.and_then(|output| String::from_utf8(output.stdout).ok());
    name.map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// Has the guest do what it likes. `name` names the run's files.
///
/// # Errors
/// When something cannot be built or started, or tarpit dies: then with the seed.
pub fn measure(
    name: &str,
    kind: Kind,
    actor: Actor,
    amount: Amount,
    exit_cost: u64,
) -> Result<Outcome> {
    let setup = Setup::new(name)
        .on(kind)
        .ips(IPS)
        .exit_cost(exit_cost)
        // A warning in the middle of what is typed would be taken for an answer.
        .options("quiet");
    let session = add_guest(setup, name, actor)?
        .module(module(METER, METER, NEIGHBOR_WEIGHT, "")?)
        .module(module(HANG, HANG, WEIGHT, "")?)
        .boot()?
        .patience(Duration::from_secs(600));
    let step = Step::begin(format!("Fuzzing in {kind}"));
    let mut operator = Operator {
        session,
        units: 0.0,
    };
    operator.session.wait_for("hanging now")?;
    operator.session.command(&format!("pause {GUEST}"))?;
    let [first, last] = operator.measure_neighbor(CALIBRATION)?;
    operator.session.command(&format!("stop {HANG}"))?;
    operator.session.command(&format!("restart {GUEST}"))?;
    let part_beside_hang = last.part_since(first);
    let speed_beside_hang = last.speed_since(first);

    let began = Instant::now();
    let mut done = Done::default();
    let [begun, end] =
        follow(&mut operator, &mut done, amount, began, &step).with_context(|| {
            let seed = done.lives.last().map_or(amount.seed, |life| life.seed);
            format!(
                "with seed {seed}: `cargo xtask experiment fuzz --guest {actor} --seed {seed}` does the same again"
            )
        })?;
    Ok(Outcome {
        actor,
        machine: kind,
        exit_cost,
        commit: commit(),
        done,
        host_seconds: end.at - begun.at,
        seconds: began.elapsed().as_secs_f64(),
        part_beside_hang,
        part: end.part_since(begun),
        speed: end.speed_since(begun) / speed_beside_hang,
    })
}

/// Follows the guest through its lives until it has done as much as it is to. Returns what the neighbor had at
/// the beginning and at the end.
fn follow(
    operator: &mut Operator,
    done: &mut Done,
    amount: Amount,
    began: Instant,
    step: &Step,
) -> Result<[Neighbor; 2]> {
    const EVERY: Duration = Duration::from_secs(20);
    let mut begun = None;
    // When it did something last, and what it has done before this life.
    let mut active_at = f64::MAX;
    let mut told = began;
    let mut seed = amount.seed;
    loop {
        let said = operator.next()?;
        match said {
            Said::Asks => {
                done.lives.push(Life {
                    seed,
                    actions: 0,
                    exits: 0,
                    end: "goes on".to_owned(),
                });
                operator.tell_seed(seed)?;
                seed = seed.wrapping_add(1);
                operator.next_units()?;
                if begun.is_none() {
                    begun = Some(operator.neighbor()?);
                }
                active_at = 0.0;
            }
            Said::Actions(actions) => {
                if let Some(life) = done.lives.last_mut()
                    && actions > life.actions
                {
                    life.actions = actions;
                    active_at = 0.0;
                }
            }
            Said::Failed(ref what) => {
                let seed = done.lives.last().map_or(amount.seed, |life| life.seed);
                done.failures.push(format!("seed {seed}: {what}"));
            }
            Said::Ended(ref how) => {
                done.end_life(operator, how.clone())?;
                operator.session.command(&format!("start {GUEST}"))?;
                active_at = f64::MAX;
            }
            Said::Time(now) if active_at == 0.0 => active_at = now,
            Said::Time(now) if now > active_at + STILL => {
                // It may have ended while an answer was waited for.
                let is_over = operator.state(GUEST)? == "ended";
                let (how, command) = match is_over {
                    true => ("has ended", "start"),
                    false => ("stands still", "restart"),
                };
                done.end_life(operator, how.to_owned())?;
                operator.session.command(&format!("{command} {GUEST}"))?;
                active_at = f64::MAX;
            }
            Said::Time(_) | Said::Nothing => {}
        }
        let (Some(begun), Said::Time(now)) = (begun, said) else {
            continue;
        };
        let is_enough = match (amount.exits, amount.actions) {
            // Asking takes time that is the boot CPU's.
            (Some(exits), _) => {
                told.elapsed() >= EVERY && {
                    let present = operator.exits()?;
                    done.exits() + present >= exits
                }
            }
            (None, Some(actions)) => done.actions() >= actions,
            (None, None) => now >= begun.at + amount.seconds,
        };
        if told.elapsed() >= EVERY || is_enough {
            told = Instant::now();
            step.note(&format!(
                "{:.0} s in the machine, {} starts, {} actions",
                now - begun.at,
                done.lives.len(),
                done.actions(),
            ));
        }
        if is_enough {
            let end = operator.neighbor()?;
            if done.lives.last().is_some_and(|life| life.exits == 0) {
                done.end_life(operator, "goes on".to_owned())?;
            }
            ensure!(!done.lives.is_empty(), "the guest has not started");
            return Ok([begun, end]);
        }
    }
}

/// Makes the experiment, prints what came out and writes `target/experiments/fuzz.json`. True if the neighbor
/// had its share.
///
/// # Errors
/// As [`measure`], or when a file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    let claim = Claim::new("fuzz")?;
    let amount = Amount {
        seed: options.seed,
        seconds: options.seconds.into(),
        exits: options.exits,
        actions: options.actions,
    };
    let outcome = measure(
        claim.name(),
        kind,
        options.guest,
        amount,
        options.exit_cost.ticks,
    )?;
    if options.results.update {
        let table = results::Table {
            name: "fuzz",
            title: "A guest that acts by chance",
            heading: "| Commit | Guest | First seed | Actions | Exits | A second | Starts | Neighbor's share | Its speed |\n\
                      | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            keys: 3,
        };
        table.update(&[outcome.row()])?;
    }
    record::conclude("fuzz", &outcome, &outcome.json(), &outcome.misses())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(part: f64, exits: u64) -> Outcome {
        Outcome {
            actor: Actor::Kernel,
            machine: Kind::Bochs,
            exit_cost: 0,
            commit: "abc".to_owned(),
            done: Done {
                lives: vec![Life {
                    seed: 7,
                    actions: 10,
                    exits,
                    end: "goes on".to_owned(),
                }],
                failures: Vec::new(),
            },
            host_seconds: 1.0,
            seconds: 2.0,
            part_beside_hang: 0.1,
            part,
            speed: 1.0,
        }
    }

    #[test]
    fn a_neighbor_with_less_than_its_share_is_a_miss_and_one_with_more_is_none() {
        assert_eq!(outcome(0.12, 5).misses(), Vec::<String>::new());
        assert_eq!(outcome(0.098, 5).misses().len(), 1);
        assert_eq!(outcome(0.1, 0).misses().len(), 1);
        let mut failed = outcome(0.1, 5);
        failed.done.failures.push("seed 7: FAILED".to_owned());
        assert_eq!(failed.misses(), ["seed 7: FAILED"]);
    }

    #[test]
    fn a_row_tells_the_commit_the_seed_and_the_exits_a_second() {
        let row = outcome(0.1, 5000).row();
        assert_eq!(
            row,
            "| abc | kernel | 7 | 10 | 5000 | 2500 | 1 | 1.0000 | 1.0000 |"
        );
    }
}
