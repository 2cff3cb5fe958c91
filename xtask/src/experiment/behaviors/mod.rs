//! Suppression of processes of every kind: whatever the target does, is it bounded, do the others get
//! what it gives up, and does the guest's clock stay right?

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use self::case::{Case, Relation};
use self::measure::{Bench, Length, PAPER, Suppression};
use self::outcome::{COLUMNS, Outcome};
use super::common::cells::Cells;
use super::common::countdown::Countdown;
use super::common::made::{self, Failure, Results};
use super::common::place::Place;
use super::common::{batch, font, record, results};
use crate::testbed::claim::Claim;
use crate::testbed::kernel::Series;
use crate::testbed::machine::Kind;
use crate::testbed::{Setup, build, kernel, options, paths, provision};

mod case;
mod clock;
mod latency;
mod measure;
mod observation;
mod outcome;
mod picture;

/// Instructions a second that let all cases pass in an hour.
const IPS: &str = "250000000";

/// Host seconds until a guest has booted.
const BOOT: f64 = 3.0;

/// Suppress processes of every kind: is each bounded, and its guest's clock right all the while?
///
/// Targets of high priority, alone, in the kernel, asleep, interrupted, in several threads: each case
/// is measured without the target, before, during and after its suppression, and with a process
/// that sleeps 10 ms at a time. Exit status 1 where a requirement is missed: CPU time of the target
/// over any second, what the others get, the clock's error and drift, how late the sleeper wakes,
/// and the kernel's log.
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
    /// The targets are to run at 1/N of a CPU
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=65535))]
    n: u32,
    /// How to suppress: `paper`, or another policy that tarpit knows [default: tarpit's]
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// More options for the command `suppress`
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    suppress_options: String,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    /// Host seconds of suppression that are measured; before and after, a third of it, from one to four
    /// [default: 4; 30 where the clock may get far ahead once, and is not to drift]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: Option<u32>,
    /// Boot anew for each case
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    jobs: options::Jobs,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    machine: options::Machine,
    /// Put the table into docs/results.md
    #[arg(long)]
    update_results: bool,
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
    /// Returns the machines, one of which is made for each kernel and number of VCPUs.
    fn places(&self) -> Vec<Place> {
        let mut places = Place::all(&self.kernels, &self.vcpus);
        places.retain(|place| !self.cases(*place).is_empty());
        places
    }

    fn cases(&self, place: Place) -> Vec<Case> {
        case::chosen(&self.cases, place.vcpus)
    }

    fn length(&self, case: &Case) -> Length {
        let usual = match case.relation {
            Relation::Equal => 4,
            Relation::Preferred | Relation::Alone => 30,
        };
        let during = f64::from(self.seconds.unwrap_or(usual));
        Length {
            around: (during / 3.0).clamp(1.0, 4.0),
            during,
        }
    }

    fn suppression(&self) -> Suppression {
        Suppression {
            n: self.n,
            policy: self.policy.clone(),
            options: self.suppress_options.clone(),
        }
    }

    /// Returns what the results are called: those of another policy, of dearer exits and of another processor are others.
    fn name(&self) -> String {
        let mut name = "behaviours".to_owned();
        if self.policy.as_deref() == Some(PAPER) {
            name.push_str("-paper");
        }
        if self.exit_cost.ticks > 0 {
            name.push_str(&format!("-exit-cost-{}", self.exit_cost.ticks));
        }
        let ips = self.speed.ips.to_string();
        if ips != IPS {
            name.push_str(&format!("-ips-{ips}"));
        }
        name
    }

    fn setup(&self, name: &str, kind: Kind) -> Setup {
        let setup = Setup::new(name).on(kind).ips(self.speed.ips);
        setup.exit_cost(self.exit_cost.ticks)
    }
}

type Made = made::Made<Outcome>;

/// Measures all cases on a machine; boots it again where a case leaves a guest that is of no more
/// use.
fn measure_all(place: Place, options: &Options, kind: Kind, add: impl Fn(Made)) {
    let cases = options.cases(place);
    let mut bench = None;
    for at in 0..cases.len() {
        let left = &cases[at..];
        let made = measure(left, place, &mut bench, options, kind);
        let is_spoiled = made
            .as_ref()
            .map_or(true, |outcome| !outcome.complaints.is_empty());
        add(made.map_err(|error| Failure {
            case: cases[at].name,
            place,
            error,
        }));
        if (is_spoiled || options.fresh || left.len() == 1)
            && let Some((bench, ..)) = bench.take()
            && let Err(error) = Bench::shut_down(bench)
        {
            eprintln!("{error:#}");
        }
    }
}

/// A guest, how long it takes, and the claim to its name.
type Booted = (Bench, Countdown, Claim);

/// Measures the first of the cases that are `left`.
fn measure(
    left: &[Case],
    place: Place,
    bench: &mut Option<Booted>,
    options: &Options,
    kind: Kind,
) -> Result<Outcome> {
    let case = left[0];
    let length = options.length(&case);
    let (mut booted, mut countdown, claim) = match bench.take() {
        Some(booted) => booted,
        None => {
            let name = format!("{}-{}-{}", options.name(), place.series.name(), place.vcpus);
            let claim = Claim::new(&name)?;
            let what = format!(
                "Behaviors in {kind}, Linux {}, VCPUs: {}",
                place.series.name(),
                place.vcpus
            );
            let cases = left.iter().map(|case| options.length(case).of_case());
            let whole = BOOT + cases.sum::<f64>();
            let mut countdown = Countdown::begin(claim.name(), &what, whole);
            let setup = options.setup(claim.name(), kind);
            let with_neighbor = left.iter().any(|case| case.neighbor);
            let booted = Bench::boot(setup, place, with_neighbor, &mut countdown)?;
            (booted, countdown, claim)
        }
    };
    let outcome = booted.measure(case, &options.suppression(), length, &mut countdown)?;
    *bench = Some((booted, countdown, claim));
    Ok(outcome)
}

fn table(outcomes: &[&Outcome]) -> Cells<{ COLUMNS.len() }> {
    Cells {
        titles: COLUMNS,
        rows: outcomes.iter().map(|outcome| outcome.cells()).collect(),
    }
}

/// Makes the measurements, prints the table, draws the clock's errors, and writes all that as
/// `target/experiments/behaviours.json`, `.svg` and `.png`. True if the requirements were met.
///
/// # Errors
/// When it cannot be made: a requirement that is missed is no error.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    provision::ensure_packages(font::PACKAGES)?;
    let places = options.places();
    ensure!(!places.is_empty(), "no case is left: some need --vcpus 2");
    // Before they start, several at a time: they would all build and fetch the same.
    build::all()?;
    for place in &places {
        kernel::fetch(place.series)?;
    }
    let results = Results::new(|made: &[Made]| write(options, kind, made));
    let cost = |place: Place| {
        let cases = options.cases(place);
        let lengths = cases.iter().map(|case| options.length(case).of_case());
        f64::from(place.vcpus) * lengths.sum::<f64>()
    };
    let one = |place| measure_all(place, options, kind, |made| results.add(made));
    // Each case is saved when it is made.
    let (_, saved) = batch::run(&places, options.jobs.jobs, cost, one, |_| Ok(()));
    saved?;
    let made = results.into_made();
    let outcomes: Vec<&Outcome> = made.iter().flatten().collect();
    println!("{}", table(&outcomes));
    write(options, kind, &made)?;
    let base = record::directory()?.join(options.name());
    for ending in ["json", "svg", "png"] {
        let file = format!("{}.{ending}", base.display());
        println!("Written to {}", paths::shown(file.as_ref()));
    }
    Ok(made::print_misses(&made))
}

/// Writes what there is: the files, and the table if it is wanted.
fn write(options: &Options, kind: Kind, made: &[Made]) -> Result<()> {
    let cases: Vec<_> = made.iter().map(made::json_of).collect();
    let passed = cases.iter().all(|case| case["passed"] == true);
    record::write_json(
        &options.name(),
        &json!({
            "machine": kind.to_string(),
            "ips": options.speed.ips,
            "exit_cost": options.exit_cost.ticks,
            "n": options.n,
            "passed": passed,
            "cases": cases,
        }),
    )?;
    let outcomes: Vec<&Outcome> = made.iter().flatten().collect();
    if options.update_results {
        let cells = table(&outcomes);
        let name = options.name();
        let table = results::Table {
            name: &name,
            title: "Targets of every kind",
            heading: &cells.heading(),
            keys: 3,
        };
        table.update(&cells.lines())?;
    }
    picture::draw(&record::directory()?.join(options.name()), &outcomes)
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
        let words = std::iter::once("behaviours").chain(line.split_whitespace());
        Some(Line::try_parse_from(words).ok()?.options)
    }

    fn places(line: &str) -> Vec<(Series, u32)> {
        let places = options(line).expect("options").places();
        places
            .iter()
            .map(|place| (place.series, place.vcpus))
            .collect()
    }

    #[test]
    fn each_kernel_has_one_and_two_vcpus() {
        use Series::{V6_1, V6_12};
        assert_eq!(places(""), [(V6_1, 1), (V6_12, 1), (V6_1, 2), (V6_12, 2)]);
        assert_eq!(places("--kernels 6.12,6.12 --vcpus 1"), [(V6_12, 1)]);
        assert_eq!(places("apart-one --kernels 6.1"), [(V6_1, 2)]);
        assert_eq!(places("apart* --vcpus 1"), []);
    }

    #[test]
    fn a_clock_that_may_get_far_ahead_once_is_watched_for_long_enough_to_tell_a_drift() {
        let length = |line, name| {
            let case = case::CASES
                .iter()
                .find(|case| case.name == name)
                .expect("a case");
            options(line).expect("options").length(case).during
        };
        assert_eq!(
            (length("", "equal"), length("", "alone"), length("", "nice")),
            (4.0, 30.0, 30.0)
        );
        assert_eq!(
            (
                length("--seconds 8", "equal"),
                length("--seconds 8", "alone")
            ),
            (8.0, 8.0)
        );
    }

    #[test]
    fn an_unknown_case_is_refused() {
        assert!(options("nice apart-two").is_some());
        assert!(options("nicest").is_none());
        assert!(options("--n 1").is_none());
    }

    #[test]
    fn results_of_another_kind_have_another_name() {
        let name = |line| options(line).expect("options").name();
        assert_eq!(name(""), "behaviours");
        assert_eq!(name("--policy paper"), "behaviours-paper");
        assert_eq!(name("--exit-cost 2000"), "behaviours-exit-cost-2000");
        assert_eq!(name("--ips 1000000000"), "behaviours-ips-1000000000");
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
