//! Processes that try to slip away: are they followed? And is everybody else left alone?

use anyhow::Result;
use clap::Args;
use serde_json::json;

use self::case::Case;
use self::measure::{Bench, Length};
use self::outcome::{COLUMNS, Outcome};
use super::common::cells::Cells;
use super::common::countdown::Countdown;
use super::common::made::{self, Failure, Results};
use super::common::place::Place;
use super::common::{batch, record, results};
use crate::testbed::claim::Claim;
use crate::testbed::kernel::Series;
use crate::testbed::machine::Kind;
use crate::testbed::{Setup, build, kernel, options};

mod case;
mod measure;
mod outcome;

/// Instructions a second with which a fork and a unit of 2 ms are what they are on hardware.
const IPS: &str = "250000000";

/// Host seconds until a guest has booted.
const BOOT: f64 = 3.0;

/// Suppress processes that fork, become others, and move: does their family stay slow?
///
/// Each is named once, by a rule on a text in its memory (`watch`), while it does what it does, and
/// measured from 2 s later on. Then busy systems beside a suppressed family, none of which may be taken in
/// or slowed down, and beside 16 rules. Exit status 1 where a requirement is missed.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS)))]
pub struct Options {
    /// Just these cases: names, or beginnings of names with a `*` behind
    #[arg(value_name = "CASE", value_parser = case_name)]
    cases: Vec<String>,
    /// Debian kernels
    #[arg(
        long,
        value_name = "SERIES,...",
        value_delimiter = ',',
        default_value = "6.1,6.12"
    )]
    kernels: Vec<Series>,
    /// Numbers of VCPUs, each of which has a physical CPU
    #[arg(long, value_name = "V,...", value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u32).range(1..=2))]
    vcpus: Vec<u32>,
    /// The families are to run at 1/N of a CPU
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=65535))]
    n: u32,
    /// Host seconds of suppression that are measured; before, half of it
    #[arg(long, value_name = "S", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
    /// What an exit costs.
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

/// Returns a case's name, as the command line gives it.
fn case_name(name: &str) -> Result<String, String> {
    if case::is_known(name) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = case::CASES.iter().map(|case| case.name).collect();
    Err(format!("there are: {}", names.join(", ")))
}

impl Options {
    fn places(&self) -> Vec<Place> {
        Place::all(&self.kernels, &self.vcpus)
    }

    fn length(&self) -> Length {
        let during = f64::from(self.seconds);
        Length {
            before: during / 2.0,
            during,
        }
    }

    fn setup(&self, name: &str, kind: Kind) -> Setup {
        let setup = Setup::new(name).on(kind).ips(self.speed.ips).busybox();
        setup.exit_cost(self.exit_cost.ticks)
    }
}

type Made = made::Made<Outcome>;

/// Measures all cases on a machine; boots it again where a case could not be measured.
fn measure_all(place: Place, options: &Options, kind: Kind, add: impl Fn(Made)) {
    let cases = case::chosen(&options.cases);
    let mut bench = None;
    for (at, &case) in cases.iter().enumerate() {
        let left = cases.len() - at;
        let made = measure(case, place, &mut bench, left, options, kind);
        add(made.map_err(|error| Failure {
            case: case.name,
            place,
            error,
        }));
        if left == 1
            && let Some((bench, ..)) = bench.take()
            && let Err(error) = Bench::shut_down(bench)
        {
            eprintln!("{error:#}");
        }
    }
}

/// A guest, how long it takes, and the claim to its name.
type Booted = (Bench, Countdown, Claim);

/// Measures a case in `bench`, which is left empty if that fails.
fn measure(
    case: Case,
    place: Place,
    bench: &mut Option<Booted>,
    left: usize,
    options: &Options,
    kind: Kind,
) -> Result<Outcome> {
    let length = options.length();
    let (mut booted, mut countdown, claim) = match bench.take() {
        Some(booted) => booted,
        None => {
            let name = format!("evasion-{}-{}", place.series.name(), place.vcpus);
            let claim = Claim::new(&name)?;
            let what = format!(
                "Evasion in {kind}, Linux {}, VCPUs: {}",
                place.series.name(),
                place.vcpus
            );
            let whole = BOOT + left as f64 * length.of_case();
            let mut countdown = Countdown::begin(claim.name(), &what, whole);
            let setup = options.setup(claim.name(), kind);
            let booted = Bench::boot(setup, place, &mut countdown)?;
            (booted, countdown, claim)
        }
    };
    let outcome = booted.measure(case, options.n, length, &mut countdown)?;
    *bench = Some((booted, countdown, claim));
    Ok(outcome)
}

fn table(made: &[Made]) -> Cells<{ COLUMNS.len() }> {
    Cells {
        titles: COLUMNS,
        rows: made.iter().flatten().map(Outcome::cells).collect(),
    }
}

/// Makes the measurements, prints the table and writes `target/experiments/evasion.json`. True if the
/// requirements were met.
///
/// # Errors
/// When they cannot be made: a requirement that is missed is no error.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    let places = options.places();
    // Before they start, several at a time: they would all build and fetch the same.
    build::all()?;
    for place in &places {
        kernel::fetch(place.series)?;
    }
    let results = Results::new(|made: &[Made]| write(options, kind, made));
    let cost = |place: Place| f64::from(place.vcpus);
    let one = |place| measure_all(place, options, kind, |made| results.add(made));
    // Each case is saved when it is made.
    let (_, saved) = batch::run(&places, options.jobs.jobs, cost, one, |_| Ok(()));
    saved?;
    let made = results.into_made();
    println!("{}", table(&made));
    write(options, kind, &made)?;
    Ok(made::print_misses(&made))
}

/// Writes what there is: the file, and the table if it is wanted.
fn write(options: &Options, kind: Kind, made: &[Made]) -> Result<()> {
    let cases: Vec<_> = made.iter().map(made::json_of).collect();
    let passed = cases.iter().all(|case| case["passed"] == true);
    record::write_json(
        "evasion",
        &json!({
            "machine": kind.to_string(),
            "ips": options.speed.ips,
            "exit_cost": options.exit_cost.ticks,
            "n": options.n,
            "passed": passed,
            "cases": cases,
        }),
    )?;
    if options.results.update {
        let cells = table(made);
        let table = results::Table {
            name: "evasion",
            title: "Processes that try to slip away, and others",
            heading: &cells.heading(),
            keys: 3,
        };
        table.update(&cells.lines())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Option<Options> {
        let words = std::iter::once("evasion").chain(line.split_whitespace());
        Some(Line::try_parse_from(words).ok()?.options)
    }

    #[test]
    fn each_kernel_has_one_and_two_vcpus() {
        let places = options("").expect("options").places();
        let places: Vec<_> = places
            .iter()
            .map(|it| (it.series.name(), it.vcpus))
            .collect();
        assert_eq!(places, [("6.1", 1), ("6.12", 1), ("6.1", 2), ("6.12", 2)]);
    }

    #[test]
    fn an_unknown_case_is_refused() {
        assert!(options("forks storm*").is_some());
        assert!(options("storm").is_none());
        assert!(options("--n 1").is_none());
    }

    #[test]
    fn a_case_that_could_not_be_measured_has_not_passed() {
        let place = Place {
            series: Series::V6_1,
            vcpus: 2,
        };
        let made: Made = Err(Failure {
            case: case::CASES[0].name,
            place,
            error: anyhow::Error::msg("no boot"),
        });
        let json = made::json_of(&made);
        assert_eq!(json["passed"], false);
        assert_eq!(json["error"], "no boot");
    }
}
