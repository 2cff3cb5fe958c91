//! Linux in every mode of timekeeping: does each keep time, and can each be suppressed?

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::common::results::Table;
use super::common::{batch, record};
use super::quick::{self, Outcome};
use crate::testbed::claim::Claim;
use crate::testbed::kernel::{self, Series};
use crate::testbed::machine::Kind;
use crate::testbed::{options, paths};

/// A way in which Linux can tell the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    name: &'static str,
    /// The kernel parameters that choose it.
    parameters: &'static str,
    /// The clock source that the kernel must say it reads, if the mode is about that.
    source: Option<&'static str>,
    /// The clock event device that the kernel must say interrupts it, if the mode is about that.
    events: Option<&'static str>,
}

/// The modes. Those with the PIT as the only timer need `lapic=notscdeadline`: on a processor whose
/// LAPIC timer has the TSC-deadline mode, Linux never starts the PIT, since it expects not to need
/// it, even where `nolapic_timer` then takes the LAPIC timer away (`apic_needs_pit` in
/// arch/x86/kernel/apic/apic.c looks at the processor first). It gets no tick from anywhere then,
/// on a real machine as on a virtual one.
const MODES: [Mode; 10] = [
    Mode {
        name: "default",
        parameters: "",
        source: Some("tsc"),
        events: Some("lapic-deadline"),
    },
    Mode {
        name: "hpet",
        parameters: "clocksource=hpet",
        source: Some("hpet"),
        events: None,
    },
    Mode {
        name: "acpi_pm",
        parameters: "clocksource=acpi_pm",
        source: Some("acpi_pm"),
        events: None,
    },
    Mode {
        name: "lapic-oneshot",
        parameters: "lapic=notscdeadline",
        source: None,
        events: Some("lapic"),
    },
    Mode {
        name: "deadline-ticks",
        parameters: "nohz=off highres=off",
        source: None,
        events: Some("lapic-deadline"),
    },
    Mode {
        name: "lapic-periodic",
        parameters: "nohz=off highres=off lapic=notscdeadline",
        source: None,
        events: Some("lapic"),
    },
    Mode {
        name: "hpet-events",
        parameters: "nolapic_timer",
        source: None,
        events: Some("hpet"),
    },
    Mode {
        name: "pit-events",
        parameters: "nolapic_timer hpet=disable lapic=notscdeadline",
        source: None,
        events: Some("pit"),
    },
    Mode {
        name: "noapic",
        parameters: "noapic",
        source: None,
        events: None,
    },
    Mode {
        name: "noapic-pit",
        parameters: "noapic nolapic_timer hpet=disable lapic=notscdeadline",
        source: None,
        events: Some("pit"),
    },
];

/// Instructions a second that let all cases pass in half an hour.
const IPS: &str = "250000000";

const KERNELS: [Series; 3] = [Series::V6_1, Series::V6_12, Series::Rt];

/// Suppress and release in Linux's every mode of timekeeping, on three kernels
///
/// Each case is an experiment `quick` of its own and takes minutes. It passes with that
/// experiment's requirements met, its clock right within 0.1 % while nothing is suppressed, and
/// the kernel using the clocks that the mode is about. Exit status 1 where a case fails.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS)))]
pub struct Options {
    /// Only cases with these names, KERNEL/MODE as in `6.1/hpet`, or with these words in them
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// List the cases and run none
    #[arg(long)]
    list: bool,
    /// Host seconds to measure for before, during and after, each
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
    #[command(flatten)]
    jobs: options::Jobs,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    machine: options::Machine,
    #[command(flatten)]
    results: options::Results,
}

/// A kernel in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    series: Series,
    mode: Mode,
}

impl Case {
    fn name(self) -> String {
        format!("{}/{}", self.series.name(), self.mode.name)
    }
}

/// A case's result: what came out, or why nothing did.
struct Verdict {
    case: Case,
    result: Result<Outcome, String>,
}

impl Verdict {
    /// Returns what was missed. Empty: it passed.
    fn misses(&self) -> Vec<String> {
        let outcome = match &self.result {
            Ok(outcome) => outcome,
            Err(error) => return vec![error.clone()],
        };
        let mut misses = outcome.misses();
        let mut demand = |what: &str, wanted: Option<&str>, is: &str| {
            if wanted.is_some_and(|wanted| wanted != is) {
                misses.push(format!(
                    "{what} is {is}, not {}",
                    wanted.unwrap_or_default()
                ));
            }
        };
        let clocks = outcome.clocks();
        demand("clock source", self.case.mode.source, &clocks.source);
        demand("clock event device", self.case.mode.events, &clocks.events);
        misses
    }

    fn json(&self) -> serde_json::Value {
        let mut json = match &self.result {
            Ok(outcome) => outcome.json(),
            Err(error) => json!({ "error": error }),
        };
        json["case"] = self.case.name().into();
        json["parameters"] = self.case.mode.parameters.into();
        json["misses"] = self.misses().into();
        json["passed"] = self.misses().is_empty().into();
        json
    }

    /// Returns a row of [`TABLE`].
    fn row(&self) -> String {
        let Case { series, mode } = self.case;
        let parameters = match mode.parameters {
            "" => "(none)".to_owned(),
            words => format!("`{words}`"),
        };
        let verdict = if self.misses().is_empty() {
            "passed"
        } else {
            "FAILED"
        };
        let kernel = series.name();
        match &self.result {
            Ok(outcome) => {
                let phases = outcome.phases();
                format!(
                    "| {kernel} | {parameters} | {} | {} | {:.0} ppm | {} | {:.2} | {:.2} | {} | {verdict} |",
                    outcome.clocks().source,
                    outcome.clocks().events,
                    outcome.clock_error() * 1e6,
                    phases.target_text(),
                    phases.others_gain(),
                    phases.after_ratio(),
                    if outcome.is_log_clean() {
                        "clean"
                    } else {
                        "complaints"
                    },
                )
            }
            Err(_) => format!("| {kernel} | {parameters} | | | | | | | | {verdict} |"),
        }
    }
}

/// The table of the results. Kernel and parameters name a case.
const TABLE: Table<'static> = Table {
    name: "timekeeping",
    title: "Linux in its modes of timekeeping",
    heading: "\
| Kernel | Parameters | Clock source | Events | Clock off by | Target | Others | After | dmesg | |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    keys: 2,
};

fn table(verdicts: &[Verdict]) -> String {
    let rows = verdicts.iter().map(Verdict::row);
    let lines: Vec<String> = std::iter::once(TABLE.heading.to_owned())
        .chain(rows)
        .collect();
    lines.join("\n")
}

/// Returns the cases of these names, or else with one of these words in their names; all, if there
/// are none.
fn cases(names: &[String]) -> Vec<Case> {
    let all: Vec<Case> = KERNELS
        .into_iter()
        .flat_map(|series| MODES.into_iter().map(move |mode| Case { series, mode }))
        .collect();
    let is_meant = |case: &Case, name: &String| {
        if all.iter().any(|case| case.name() == *name) {
            case.name() == *name
        } else {
            case.name().contains(name.as_str())
        }
    };
    let chosen = |case: &&Case| names.is_empty() || names.iter().any(|name| is_meant(case, name));
    all.iter().filter(chosen).copied().collect()
}

fn one(case: Case, kind: Kind, options: &Options) -> Result<Outcome> {
    let claim = Claim::new(&format!("timekeeping-{}", case.name().replace('/', "-")))?;
    let quick = quick::Options {
        seconds: options.seconds,
        kernel: options::Kernel {
            series: case.series,
        },
        speed: options.speed,
        exit_cost: options.exit_cost,
        append: case.mode.parameters.to_owned(),
        ..quick::Options::default()
    };
    quick::measure(claim.name(), kind, &quick)
}

fn say(verdict: &Verdict) {
    let name = verdict.case.name();
    match verdict.misses().as_slice() {
        [] => eprintln!("{name}: passed"),
        misses => {
            eprintln!("{name}: FAILED");
            for miss in misses {
                eprintln!("  {miss}");
            }
        }
    }
}

/// Runs the cases, prints the table and writes `target/experiments/timekeeping.json`. True if all
/// passed.
///
/// # Errors
/// When nothing can be run, or a file cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let cases = cases(&options.names);
    if options.list {
        cases.iter().for_each(|case| println!("{}", case.name()));
        return Ok(true);
    }
    if cases.is_empty() {
        bail!("no case of such a name; --list shows them");
    }
    let kind = options.machine.pick()?;
    // Before they start, several at a time: they would all fetch the same.
    for series in KERNELS {
        if cases.iter().any(|case| case.series == series) {
            kernel::fetch(series)?;
        }
    }
    let verdict = |case| {
        let verdict = Verdict {
            case,
            result: one(case, kind, options).map_err(|error| format!("{error:#}")),
        };
        say(&verdict);
        verdict
    };
    let save = |verdicts: &[&Verdict]| write(options, kind, verdicts);
    let (verdicts, saved) = batch::run(&cases, options.jobs.jobs, |_| 1.0, verdict, save);
    let table = table(&verdicts);
    println!("{table}");
    let passed = verdicts
        .iter()
        .filter(|verdict| verdict.misses().is_empty())
        .count();
    println!("{passed} of {} passed", verdicts.len());
    saved?;
    let path = record::directory()?.join("timekeeping.json");
    println!("Written to {}", paths::shown(&path));
    Ok(passed == verdicts.len())
}

/// Writes what there is: the file, and the table of the results if it is wanted.
fn write(options: &Options, kind: Kind, verdicts: &[&Verdict]) -> Result<()> {
    let cases: Vec<_> = verdicts.iter().map(|verdict| verdict.json()).collect();
    record::write_json(
        "timekeeping",
        &json!({
            "machine": kind.to_string(),
            "ips": options.speed.ips,
            "exit_cost": options.exit_cost.ticks,
            "cases": cases,
        }),
    )?;
    if options.results.update {
        let rows: Vec<String> = verdicts.iter().map(|verdict| verdict.row()).collect();
        TABLE.update(&rows)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_chosen_by_a_part_of_its_name() {
        assert_eq!(cases(&[]).len(), KERNELS.len() * MODES.len());
        let chosen = cases(&["6.12/pit".to_owned(), "rt/default".to_owned()]);
        let names: Vec<_> = chosen.into_iter().map(Case::name).collect();
        assert_eq!(names, ["6.12/pit-events", "rt/default"]);
        assert_eq!(cases(&["7.0".to_owned()]), []);
        let whole = cases(&["rt/noapic".to_owned()]);
        assert_eq!(whole.len(), 1, "and not rt/noapic-pit");
    }

    #[test]
    fn no_two_cases_have_the_same_name() {
        let mut names: Vec<_> = cases(&[]).into_iter().map(Case::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cases(&[]).len());
    }

    #[test]
    fn a_case_that_did_not_run_has_failed_and_has_a_row() {
        let verdict = Verdict {
            case: cases(&[])[0],
            result: Err("no boot".to_owned()),
        };
        assert_eq!(verdict.misses(), ["no boot"]);
        assert_eq!(verdict.json()["passed"], false);
        let columns = |line: &str| line.matches('|').count();
        let heading = TABLE.heading.lines().next().unwrap_or_default();
        assert_eq!(columns(&verdict.row()), columns(heading));
    }
}
