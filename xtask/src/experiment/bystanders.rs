//! What others pay for a target that sleeps, on a Linux whose exits cost what they do on hardware:
//! processes that make system calls, and that switch to each other, beside it and without it.

use anyhow::{Context, Error, Result};
use clap::Args;
use serde_json::json;

use super::common::cells::Cells;
use super::common::countdown::Countdown;
use super::common::exits::Exits;
use super::common::reports::{Report, Speeds};
use super::common::subject::{Linux, Subject, VM, expected_host_seconds};
use super::common::{batch, dmesg, record, results};
use crate::testbed::claim::Claim;
use crate::testbed::kernel::Series;
use crate::testbed::machine::Kind;
use crate::testbed::{Setup, build, kernel, options};

/// Instructions a second that let all cases pass in some minutes.
const IPS: &str = "250000000";
/// Ticks that an exit takes on top: as on a processor.
const EXIT_COST: &str = "1500";

/// The target's behavior: it sleeps for a second, computes for some thousand instructions, and so on.
const TARGET: &str = "wakes n=1000 unit=1000";
const N: u32 = 1000;

/// The behaviors of others: the name in tables, and the operand of the workload's `start`.
const OTHERS: [(&str, &str); 2] = [
    ("getppid, all the time", "calls"),
    ("ping-pong over pipes", "ping-pong"),
];

/// The least speed of the others beside the target, of that without it.
const LEAST_SPEED: f64 = 0.99;
/// The most exits by loads of CR3 and by accesses to roots for each time that the target runs: in, out,
/// and between its own roots while they are new.
const MOST_EXITS_OF_TARGET: u64 = 20;

/// Let processes make system calls and switch beside a target that sleeps: do they pay for it?
///
/// Each exit is made to cost as much as on hardware. Exit status 1 where others run at less than 0.99
/// of their speed, where loads of CR3 exit that are not the target's, or a kernel's log has complaints.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS)))]
#[command(mut_arg("ticks", |ticks| ticks.default_value(EXIT_COST)))]
pub struct Options {
    /// Debian kernels
    #[arg(
        long,
        value_name = "SERIES,...",
        value_delimiter = ',',
        default_value = "6.1,6.12"
    )]
    kernels: Vec<Series>,
    /// Host seconds to measure for, in each phase
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    jobs: options::Jobs,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    machine: options::Machine,
    #[command(flatten)]
    results: options::Results,
}

/// A guest that is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    series: Series,
    /// Whether its kernel isolates its page tables, so that system calls load CR3 twice.
    isolation: bool,
}

impl Place {
    fn isolation(self) -> &'static str {
        if self.isolation { "on" } else { "off" }
    }

    fn name(self) -> String {
        format!("{}-pti-{}", self.series.name(), self.isolation())
    }
}

/// The events of a phase.
#[derive(Clone, Debug, PartialEq)]
struct Phase {
    /// Units of the others' work in a second of host time.
    speed: f64,
    /// Units in all.
    units: u64,
    exits: Exits,
    /// The number of times that the target was seen to come in.
    switch_ins: u64,
}

/// The result for some others.
#[derive(Clone, Debug, PartialEq)]
struct Measured {
    others: &'static str,
    /// The phase without a target.
    without: Phase,
    /// The phase beside one.
    with: Phase,
    /// The kind of exits by which switches to the target were seen.
    seen_by: String,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.with.speed / self.without.speed
    }

    /// Returns the exits by which a target is followed.
    fn tracking_exits(&self) -> [u64; 2] {
        ["cr-access", "ept-violation"].map(|reason| self.with.exits.by(reason))
    }

    fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        if self.ratio().is_nan() || self.ratio() < LEAST_SPEED {
            misses.push(format!(
                "they run at {:.4} of their speed beside the target",
                self.ratio()
            ));
        }
        let most = (self.with.switch_ins + 1) * MOST_EXITS_OF_TARGET;
        let [loads, accesses] = self.tracking_exits();
        // Exits that are no answer to a target are there without it, too.
        let before = self.without.exits.by("ept-violation");
        if loads > most || accesses > most + 2 * before {
            misses.push(format!(
                "{loads} loads of CR3 and {accesses} accesses exit while the target comes in {} times",
                self.with.switch_ins
            ));
        }
        if self.with.switch_ins == 0 {
            misses.push("the target has not been seen".to_owned());
        }
        misses
    }
}

/// The results in a guest.
#[derive(Clone, Debug)]
struct Outcome {
    place: Place,
    kernel: String,
    exit_cost: u64,
    measured: Vec<Measured>,
    complaints: Vec<String>,
}

impl Outcome {
    fn misses(&self) -> Vec<String> {
        let of = |measured: &Measured| {
            let misses = measured.misses().into_iter();
            let others = measured.others;
            misses
                .map(move |miss| format!("{others}: {miss}"))
                .collect::<Vec<_>>()
        };
        let mut misses: Vec<String> = self.measured.iter().flat_map(of).collect();
        let complaints = self.complaints.iter();
        misses.extend(complaints.map(|line| format!("dmesg complains: {line}")));
        misses
    }

    /// Returns the rows of the table, by cell.
    fn rows(&self) -> Vec<[String; COLUMNS.len()]> {
        let row = |measured: &Measured| {
            let [loads, accesses] = measured.tracking_exits();
            let is_good = measured.misses().is_empty() && self.complaints.is_empty();
            [
                self.place.series.name().to_owned(),
                self.place.isolation().to_owned(),
                measured.others.to_owned(),
                self.exit_cost.to_string(),
                measured.with.units.to_string(),
                format!("{:.4}", measured.ratio()),
                loads.to_string(),
                accesses.to_string(),
                format!("{} ({})", measured.with.switch_ins, measured.seen_by),
                if is_good { "passed" } else { "missed" }.to_owned(),
            ]
        };
        self.measured.iter().map(row).collect()
    }

    fn json(&self) -> serde_json::Value {
        let phase = |phase: &Phase| {
            json!({
                "units_per_second": phase.speed,
                "units": phase.units,
                "exits": phase.exits.json(),
                "switch_ins": phase.switch_ins,
            })
        };
        let measured = self.measured.iter().map(|measured| {
            json!({
                "others": measured.others,
                "ratio": measured.ratio(),
                "without": phase(&measured.without),
                "with": phase(&measured.with),
                "seen_by": measured.seen_by,
            })
        });
        json!({
            "kernel": self.kernel,
            "pti": self.place.isolation,
            "exit_cost": self.exit_cost,
            "measured": measured.collect::<Vec<_>>(),
            "dmesg_complaints": self.complaints,
            "misses": self.misses(),
        })
    }
}

const COLUMNS: [&str; 10] = [
    "Kernel",
    "PTI",
    "Others do",
    "Exit cost",
    "Units",
    "Speed beside the target",
    "Loads of CR3 that exit",
    "EPT violations",
    "Target came in (seen by)",
    "",
];

fn table<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Cells<{ COLUMNS.len() }> {
    Cells {
        titles: COLUMNS,
        rows: outcomes.flat_map(Outcome::rows).collect(),
    }
}

/// Measures in one guest.
fn measure(place: Place, options: &Options, kind: Kind) -> Result<Outcome> {
    let seconds = f64::from(options.seconds);
    let claim = Claim::new(&format!("bystanders-{}", place.name()))?;
    let phases = 2 * OTHERS.len() as u32;
    let mut countdown = Countdown::begin(
        claim.name(),
        &format!("Others beside a target, Linux {}", place.name()),
        expected_host_seconds(phases, seconds),
    );
    countdown.phase("booting");
    let setup = Setup::new(claim.name())
        .on(kind)
        .ips(options.speed.ips)
        .exit_cost(options.exit_cost.ticks);
    let mut linux = Linux::new(0);
    linux.guest.command_line = format!("pti={} workload.priority=99", place.isolation());
    let mut subject = Subject::boot(setup, place.series, &[linux], &mut countdown)?;
    let mut measured = Vec::new();
    for (name, start) in OTHERS {
        countdown.phase(&format!("{name}, without a target"));
        subject.start_process(0, TARGET)?;
        // While nobody else runs, the idle processor keeps its root: it is seen.
        let root = subject.find_process(0)?;
        subject.start_process(1, start)?;
        let without = watch(&mut subject, seconds, &mut countdown)?;
        countdown.phase(&format!("{name}, beside a target"));
        subject.suppress(&root, N, N)?;
        let with = watch(&mut subject, seconds, &mut countdown)?;
        let targets = subject.session().query(&format!("targets {VM}"))?;
        let seen_by = targets
            .first()
            .and_then(|target| target["seen_by"].as_str());
        measured.push(Measured {
            others: name,
            without,
            with,
            seen_by: seen_by.context("the target is gone")?.to_owned(),
        });
        subject.release()?;
        subject.ask("forget", "workload: forgotten\n")?;
    }
    countdown.phase("reading the kernel's log");
    let log = subject.dmesg()?;
    let outcome = Outcome {
        place,
        kernel: dmesg::release(&log)
            .context("the log names no kernel")?
            .to_owned(),
        exit_cost: options.exit_cost.ticks,
        measured,
        complaints: dmesg::complaints(&log),
    };
    subject.shut_down()?;
    Ok(outcome)
}

/// Watches process 1 for so long.
fn watch(subject: &mut Subject, seconds: f64, countdown: &mut Countdown) -> Result<Phase> {
    const OTHER: usize = 1;
    let before = (switch_ins(subject)?, Exits::of(subject.session(), VM)?);
    let reports = subject.watch(seconds, countdown)?;
    let exits = Exits::of(subject.session(), VM)?.since(&before.1);
    let units =
        |report: Option<&Report>| report.and_then(|report| report.counts.get(OTHER).copied());
    let (first, last) = units(reports.first())
        .zip(units(reports.last()))
        .context("the other process does not count")?;
    Ok(Phase {
        speed: Speeds::over(&reports)?.per_second[OTHER],
        units: last.saturating_sub(first),
        exits,
        switch_ins: switch_ins(subject)?.saturating_sub(before.0),
    })
}

/// Returns how often a target has come in; 0 without one.
fn switch_ins(subject: &mut Subject) -> Result<u64> {
    let targets = subject.session().query(&format!("targets {VM}"))?;
    match targets.first() {
        None => Ok(0),
        Some(target) => target["switch_ins"]
            .as_u64()
            .with_context(|| format!("no count of switches: {target}")),
    }
}

/// Makes the measurements, prints the table and writes `target/experiments/bystanders.json`. True if
/// the requirements were met.
///
/// # Errors
/// When they cannot be made: a requirement that is missed is no error.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    // Before they start, several at a time: they would all build and fetch the same.
    build::all()?;
    let mut places = Vec::new();
    for &series in &options.kernels {
        kernel::fetch(series)?;
        places.extend([true, false].map(|isolation| Place { series, isolation }));
    }
    let one = |place| measure(place, options, kind);
    let save = |so_far: &[&Result<Outcome>]| save(options, kind, so_far);
    let (made, saved) = batch::run(&places, options.jobs.jobs, |_| 1.0, one, save);
    saved?;
    println!("{}", table(made.iter().flatten()));
    let mut passed = true;
    for (place, made) in places.iter().zip(&made) {
        for miss in misses(made) {
            passed = false;
            println!("MISSED: Linux {}: {miss}", place.name());
        }
    }
    Ok(passed)
}

fn misses(made: &Result<Outcome>) -> Vec<String> {
    match made {
        Ok(outcome) => outcome.misses(),
        Err(error) => vec![failure(error)],
    }
}

fn failure(error: &Error) -> String {
    format!("{error:#}")
}

/// Writes what there is: the file, and the table if it is wanted.
fn save(options: &Options, kind: Kind, made: &[&Result<Outcome>]) -> Result<()> {
    let guests = made.iter().map(|made| match made {
        Ok(outcome) => outcome.json(),
        Err(error) => json!({ "error": failure(error) }),
    });
    record::write_json(
        "bystanders",
        &json!({
            "machine": kind.to_string(),
            "ips": options.speed.ips,
            "guests": guests.collect::<Vec<_>>(),
        }),
    )?;
    if options.results.update {
        let cells = table(made.iter().filter_map(|made| made.as_ref().ok()));
        let table = results::Table {
            name: "bystanders",
            title: "Others beside a target that sleeps, on Linux",
            heading: &cells.heading(),
            keys: 4,
        };
        table.update(&cells.lines())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(speed: f64, loads: u64, switch_ins: u64) -> Phase {
        Phase {
            speed,
            units: 1_000_000,
            exits: Exits::with("cr-access", loads),
            switch_ins,
        }
    }

    fn outcome(with: Phase) -> Outcome {
        Outcome {
            place: Place {
                series: Series::default(),
                isolation: true,
            },
            kernel: "6.1".to_owned(),
            exit_cost: 1500,
            measured: vec![Measured {
                others: "getppid",
                without: phase(1000.0, 0, 0),
                with,
                seen_by: "walks".to_owned(),
            }],
            complaints: Vec::new(),
        }
    }

    #[test]
    fn others_that_keep_their_speed_and_do_not_exit_pass() {
        let outcome = outcome(phase(995.0, 9, 3));
        assert_eq!(outcome.misses(), Vec::<String>::new());
        assert_eq!(outcome.rows()[0][9], "passed");
    }

    #[test]
    fn speed_lost_and_loads_that_exit_are_misses() {
        assert_eq!(outcome(phase(980.0, 9, 3)).misses().len(), 1);
        assert_eq!(outcome(phase(1000.0, 2_000_000, 3)).misses().len(), 1);
        assert_eq!(outcome(phase(1000.0, 0, 0)).misses().len(), 1);
        assert_eq!(outcome(phase(f64::NAN, 0, 3)).misses().len(), 1);
        let mut complains = outcome(phase(1000.0, 0, 3));
        complains.complaints.push("BUG: soft lockup".to_owned());
        assert_eq!(complains.rows()[0][9], "missed");
    }
}
