//! The paper's Section 5, measured: how much one of several CPU-bound processes is slowed, by N, by
//! the number of VCPUs, and by whether they share a physical CPU.

use std::fmt;

use anyhow::{Context, Error, Result, ensure};
use clap::Args;
use serde_json::json;

use self::outcome::{Case, Outcome, Placement, Strength};
use super::common::countdown::Countdown;
use super::common::reports::Speeds;
use super::common::subject::{Linux, Subject, VM, expected_host_seconds};
use super::common::{batch, dmesg, font, record};
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::Guest;
use crate::testbed::{Setup, build, kernel, options, paths, provision};

mod outcome;
mod picture;

/// CPU-bound processes for each VCPU, one of all of them the target.
const PROCESSES_PER_VCPU: u32 = 4;

/// Rounds of the computation in one unit of work. Small, so that the little that a target still
/// does can be counted.
const UNIT: u32 = 500;

/// Instructions a second that let all cases pass in minutes. A tick of 4 ms shortened to 1/1000 is
/// a thousand of them then, less than its handler takes.
const IPS: &str = "250000000";
const IPS_HELP: &str = "\
Bochs: instructions that make a second of emulated time

A second on four CPUs takes four times as many: more than the default takes long.";

/// The RAM of the VM in MiB, as in the paper.
const MEMORY_MIB: u32 = 512;

/// The paper's Section 5: how slow the target gets, by N, VCPUs and physical CPUs
///
/// Four CPU-bound processes a VCPU in a guest with 512 MB; one of them is suppressed with each N
/// in turn. The VCPUs are pinned to one CPU, then spread over as many. Exit status 1 where a
/// requirement is missed: with N = 1000 or more, the target at most at 1/1000 of its speed and
/// the others together at 0.97 or more of what they do when there is no target; and a kernel
/// log without complaints.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS).long_help(IPS_HELP)))]
pub struct Options {
    /// Numbers of VCPUs
    #[arg(long, value_name = "V,...", value_delimiter = ',', default_value = "1,2,4", value_parser = clap::value_parser!(u32).range(1..=8))]
    vcpus: Vec<u32>,
    /// Divisors of timer intervals and multipliers of clocks
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "2,10,100,1000", value_parser = clap::value_parser!(u32).range(2..=65535))]
    n: Vec<u32>,
    /// Only with all VCPUs on one physical CPU
    #[arg(long, conflicts_with = "spread")]
    pinned: bool,
    /// Only with each VCPU on a physical CPU of its own
    #[arg(long)]
    spread: bool,
    /// Host seconds to measure for in each phase
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    #[command(flatten)]
    jobs: options::Jobs,
    #[command(flatten)]
    kernel: options::Kernel,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    machine: options::Machine,
    #[command(flatten)]
    results: options::Results,
}

impl Options {
    /// Returns the Ns, each once, in order.
    fn strengths(&self) -> Vec<u32> {
        let mut strengths = self.n.clone();
        strengths.sort_unstable();
        strengths.dedup();
        strengths
    }

    /// Returns the cases, the cheap ones first. A single VCPU is on one CPU either way.
    fn cases(&self) -> Vec<Case> {
        let mut vcpus = self.vcpus.clone();
        vcpus.sort_unstable();
        vcpus.dedup();
        let of = |placement| vcpus.iter().map(move |&vcpus| Case { vcpus, placement });
        let pinned = of(Placement::Pinned).filter(|_| !self.spread);
        let spread = of(Placement::Spread).filter(|case| !self.pinned && case.vcpus > 1);
        let single = of(Placement::Pinned).filter(|case| self.spread && case.vcpus == 1);
        single.chain(pinned).chain(spread).collect()
    }

    /// Returns the host seconds that a case takes: before, each N, after, and without the target.
    fn host_seconds(&self) -> f64 {
        let phases = self.strengths().len() as u32 + 3;
        expected_host_seconds(phases, f64::from(self.seconds))
    }

    fn machine(&self, case: Case, name: &str, kind: Kind) -> Setup {
        let setup = Setup::new(name).on(kind);
        setup
            .cpus(case.cpus())
            .ips(self.speed.ips)
            .exit_cost(self.exit_cost.ticks)
    }
}

/// Returns the guest of a case.
fn linux(case: Case) -> Linux {
    Linux {
        guest: Guest {
            memory_mib: MEMORY_MIB,
            vcpus: case.vcpus,
            pins: (0..case.cpus()).collect(),
            ..Guest::new(VM).command_line(&format!("workload.unit={UNIT}"))
        },
        processes: (case.vcpus * PROCESSES_PER_VCPU) as usize,
    }
}

/// Makes one case's measurements.
fn measure(case: Case, kind: Kind, options: &Options) -> Result<Outcome> {
    let claim = Claim::new(&format!("section5-{}", case.name()))?;
    let seconds = f64::from(options.seconds);
    let what = format!("Section 5 in {kind}, {case}");
    let mut countdown = Countdown::begin(claim.name(), &what, options.host_seconds());
    let countdown = &mut countdown;
    countdown.phase("Booting");
    let setup = options.machine(case, claim.name(), kind);
    let series = options.kernel.series;
    let mut subject = Subject::boot(setup, series, &[linux(case)], countdown)?;

    countdown.phase("Measuring before");
    let before = Speeds::over(&subject.watch(seconds, countdown)?)?;
    let cr3 = subject.processes()?.swap_remove(0).cr3;

    let mut suppressed = Vec::new();
    for n in options.strengths() {
        countdown.phase(&format!("Suppressing {cr3} with N = {n}"));
        subject.suppress(&cr3, n, n)?;
        let speeds = Speeds::over(&subject.watch(seconds, countdown)?)?;
        subject.release()?;
        suppressed.push(Strength { n, speeds });
    }
    countdown.phase("Released");
    let after = Speeds::over(&subject.watch(seconds, countdown)?)?;

    let target = outcome::most_slowed(&before, &suppressed).context("nothing was suppressed")?;
    countdown.phase("Without the target");
    subject.end_processes([target])?;
    let without = Speeds::over(&subject.watch(seconds, countdown)?)?;

    countdown.phase("Reading the kernel's log");
    // It is slow enough on a serial line: nothing should run meanwhile that Bochs has to emulate.
    subject.end_processes((0..before.per_second.len()).filter(|&index| index != target))?;
    let log = subject.dmesg()?;
    subject.shut_down()?;
    Ok(Outcome {
        case,
        cr3,
        target,
        before,
        suppressed,
        after,
        without,
        kernel: dmesg::release(&log)
            .context("the log names no kernel")?
            .to_owned(),
        complaints: dmesg::complaints(&log),
    })
}

/// The outcome of a case, or the reason why it could not run.
type Made = Result<Outcome, (Case, Error)>;

/// All cases' outcomes.
struct Table<'a>(&'a [Outcome]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "VCPUs  CPUs      N    target/before  others/without  after/before  dmesg"
        )?;
        for outcome in self.0 {
            for strength in &outcome.suppressed {
                write!(
                    f,
                    "\n{:>5} {:>5} {:>6}   {:>14}  {:>14.4}  {:>12.3}  {}",
                    outcome.case.vcpus,
                    outcome.case.cpus(),
                    strength.n,
                    outcome.target_text(strength),
                    outcome.others_ratio(strength),
                    outcome.after_ratio(),
                    outcome.log_text(),
                )?;
            }
        }
        Ok(())
    }
}

/// Makes the cases' measurements, prints the table, draws it, and writes it as
/// `target/experiments/section5.json`, `.svg` and `.png`. True if the requirements were met.
///
/// # Errors
/// When it cannot be made: a requirement that is missed is no error.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    provision::ensure_packages(font::PACKAGES)?;
    let cases = options.cases();
    ensure!(!cases.is_empty(), "no case is left");
    // Before they start, several at a time: they would all build and fetch the same.
    build::all()?;
    kernel::fetch(options.kernel.series)?;
    // An emulator takes as long as all its CPUs' time together.
    let cost = |case: Case| f64::from(case.cpus());
    let one = |case| measure(case, kind, options).map_err(|error| (case, error));
    let save = |results: &[&Made]| write(options, kind, results);
    let (results, saved) = batch::run(&cases, options.jobs.jobs, cost, one, save);
    let (mut outcomes, mut misses) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(outcome) => {
                misses.extend(outcome.misses());
                outcomes.push(outcome);
            }
            Err((case, error)) => misses.push(format!("{case}: {error:#}")),
        }
    }
    println!("{}", Table(&outcomes));
    for miss in &misses {
        println!("MISSED: {miss}");
    }
    saved?;
    let base = record::directory()?.join("section5");
    for ending in ["json", "svg", "png"] {
        println!("Written to {}", paths::shown(&base.with_extension(ending)));
    }
    Ok(misses.is_empty())
}

/// Writes what there is: the files, and the table of the results if it is wanted.
fn write(options: &Options, kind: Kind, results: &[&Made]) -> Result<()> {
    let cases: Vec<_> = results.iter().map(|result| json_of(result)).collect();
    let passed = cases.iter().all(|case| case["passed"] == true);
    let made = results.iter().filter_map(|result| result.as_ref().ok());
    let outcomes: Vec<Outcome> = made.cloned().collect();
    record::write_json(
        "section5",
        &json!({
            "machine": kind.to_string(),
            "ips": options.speed.ips,
            "exit_cost": options.exit_cost.ticks,
            "memory_mib": MEMORY_MIB,
            "processes_per_vcpu": PROCESSES_PER_VCPU,
            "paper_ratio": outcome::PAPER,
            "passed": passed,
            "cases": cases,
        }),
    )?;
    if options.results.update {
        let rows: Vec<_> = outcomes.iter().flat_map(Outcome::rows).collect();
        outcome::TABLE.update(&rows)?;
    }
    picture::draw(&record::directory()?.join("section5"), &outcomes)
}

/// Returns a case, for programs: one that could not run has not passed.
fn json_of(result: &Made) -> serde_json::Value {
    match result {
        Ok(outcome) => outcome.json(),
        Err((case, error)) => json!({
            "case": case.name(),
            "error": format!("{error:#}"),
            "passed": false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, error::ErrorKind};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Result<Options, ErrorKind> {
        let words = std::iter::once("section5").chain(line.split_whitespace());
        match Line::try_parse_from(words) {
            Ok(line) => Ok(line.options),
            Err(error) => Err(error.kind()),
        }
    }

    fn names(line: &str) -> Vec<String> {
        let cases = options(line).expect("options").cases();
        cases.into_iter().map(Case::name).collect()
    }

    #[test]
    fn by_default_each_number_of_vcpus_is_pinned_and_spread() {
        assert_eq!(
            names(""),
            ["1-pinned", "2-pinned", "4-pinned", "2-spread", "4-spread"]
        );
    }

    #[test]
    fn cases_can_be_chosen() {
        assert_eq!(names("--vcpus 4,2,4 --pinned"), ["2-pinned", "4-pinned"]);
        assert_eq!(names("--vcpus 2,1 --spread"), ["1-pinned", "2-spread"]);
        let strengths = options("--n 1000,2,2").expect("options").strengths();
        assert_eq!(strengths, [2, 1000]);
    }

    #[test]
    fn cases_that_make_no_sense_are_refused() {
        for line in ["--vcpus 0", "--n 1", "--vcpus 9", "--pinned --spread"] {
            assert!(options(line).is_err(), "{line}");
        }
    }

    #[test]
    fn spread_vcpus_have_a_cpu_each() {
        let pins = |placement| {
            let case = Case {
                vcpus: 4,
                placement,
            };
            (case.cpus(), linux(case).guest.pins)
        };
        assert_eq!(pins(Placement::Pinned), (1, vec![0]));
        assert_eq!(pins(Placement::Spread), (4, vec![0, 1, 2, 3]));
    }
}
