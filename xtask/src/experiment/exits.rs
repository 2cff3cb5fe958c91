//! `cargo xtask bench --exits`: which exits a stock Linux has, and how many, by what it does.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::common::cells::Cells;
use super::common::countdown::Countdown;
use super::common::exits::Exits;
use super::common::reports::Report;
use super::common::subject::{Linux, Subject, VM, expected_host_seconds};
use super::common::{dmesg, record, results};
use crate::testbed::Setup;
use crate::testbed::kernel::Series;
use crate::testbed::machine::Kind;

/// Instructions a second: a slow processor's.
const IPS: u64 = 250_000_000;
/// Host seconds for each activity.
const SECONDS: f64 = 2.0;
/// Reasons that are named in a row: those behind have few exits.
const REASONS: usize = 4;

/// A kind of event that an activity is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A halt that has ended.
    WakeUp,
    /// A unit of the workload's process.
    Unit,
    /// An interrupt of the kernel's clock tick, of which it has so many a second.
    Tick(u32),
    /// A byte on the console.
    Byte,
}

/// Something that a Linux does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Activity {
    name: &'static str,
    /// The operands of the workload's `start`.
    start: &'static [&'static str],
    event: Event,
    event_name: &'static str,
}

/// The ticks in a second of Debian's kernels (CONFIG_HZ).
const TICKS: u32 = 250;

const ACTIVITIES: [Activity; 5] = [
    Activity {
        name: "idle",
        start: &["wakes n=1000 unit=1"],
        event: Event::WakeUp,
        event_name: "wake-up",
    },
    // With two that want the CPU, no tick is left out.
    Activity {
        name: "computes, takes ticks",
        start: &["hog", "hog"],
        event: Event::Tick(TICKS),
        event_name: "tick",
    },
    Activity {
        name: "system calls",
        start: &["calls"],
        event: Event::Unit,
        event_name: "getppid",
    },
    Activity {
        name: "context switches",
        start: &["ping-pong"],
        event: Event::Unit,
        event_name: "two switches",
    },
    Activity {
        name: "page faults",
        start: &["mappings"],
        event: Event::Unit,
        event_name: "64 page faults",
    },
];

/// The activity that writes the console: the kernel's log is read out.
const PRINTS: Activity = Activity {
    name: "serial output",
    start: &[],
    event: Event::Byte,
    event_name: "byte",
};

/// The exits of a Linux while it did something.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    activity: Activity,
    seconds: f64,
    events: f64,
    exits: Exits,
}

impl Row {
    fn cells(&self, series: Series) -> [String; COLUMNS.len()] {
        let Self {
            activity,
            seconds,
            events,
            exits,
        } = self;
        let reasons = exits.by_reason();
        let reasons: Vec<String> = reasons
            .iter()
            .take(REASONS)
            .map(|(reason, count)| format!("{reason} {:.0}", *count as f64 / seconds))
            .collect();
        let all = exits.all() as f64;
        [
            series.name().to_owned(),
            activity.name.to_owned(),
            format!("{:.0}", all / seconds),
            activity.event_name.to_owned(),
            format!("{:.0}", events / seconds),
            format!("{:.4}", all / events),
            format!("{:.0}", exits.ticks as f64 / all.max(1.0)),
            reasons.join(", "),
        ]
    }
}

const COLUMNS: [&str; 8] = [
    "Kernel",
    "It does",
    "Exits a second",
    "An event is a",
    "Events a second",
    "Exits an event",
    "Ticks in tarpit an exit",
    "Reasons (a second)",
];

/// The exits of a Linux.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    machine: Kind,
    exit_cost: u64,
    series: Series,
    rows: Vec<Row>,
    complaints: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exits of Linux {}", self.series.name())?;
        for row in &self.rows {
            let cells = row.cells(self.series);
            for (column, cell) in COLUMNS.iter().zip(cells).skip(1) {
                write!(f, "\n  {column:<24} {cell}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Outcome {
    fn json(&self) -> serde_json::Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "does": row.activity.name,
                "event": row.activity.event_name,
                "seconds": row.seconds,
                "events": row.events,
                "exits": row.exits.json(),
                "ticks": row.exits.ticks,
            })
        });
        json!({
            "machine": self.machine.to_string(),
            "ips": IPS,
            "exit_cost": self.exit_cost,
            "kernel": self.series.name(),
            "activities": rows.collect::<Vec<_>>(),
            "dmesg_complaints": self.complaints,
        })
    }

    fn misses(&self) -> Vec<String> {
        let complaints = self.complaints.iter();
        complaints
            .map(|line| format!("dmesg complains: {line}"))
            .collect()
    }

    fn update_results(&self) -> Result<()> {
        let cells = Cells {
            titles: COLUMNS,
            rows: self.rows.iter().map(|row| row.cells(self.series)).collect(),
        };
        let table = results::Table {
            name: "exits",
            title: "Exits of a Linux, by what it does",
            heading: &cells.heading(),
            keys: 2,
        };
        table.update(&cells.lines())
    }
}

/// Boots a Linux and counts. `name` names the run's files.
fn measure(name: &str, kind: Kind, series: Series, exit_cost: u64) -> Result<Outcome> {
    let phases = ACTIVITIES.len() as u32 + 1;
    let mut countdown = Countdown::begin(
        name,
        &format!("Exits of Linux {} in {kind}", series.name()),
        expected_host_seconds(phases, SECONDS),
    );
    countdown.phase("booting");
    let setup = Setup::new(name).on(kind).ips(IPS).exit_cost(exit_cost);
    let mut subject = Subject::boot(setup, series, &[Linux::new(0)], &mut countdown)?;
    let mut rows = Vec::new();
    for activity in ACTIVITIES {
        countdown.phase(activity.name);
        for (index, start) in activity.start.iter().enumerate() {
            subject.start_process(index, start)?;
        }
        rows.push(watch(&mut subject, activity, &mut countdown)?);
        subject.ask("forget", "workload: forgotten\n")?;
    }
    countdown.phase(PRINTS.name);
    let log = {
        // Reports tell how long it takes.
        subject.start_process(0, "wakes n=1000 unit=1")?;
        let first = subject.report()?;
        let before = Exits::of(subject.session(), VM)?;
        let log = subject.dmesg()?;
        let exits = Exits::of(subject.session(), VM)?.since(&before);
        let last = subject.report()?;
        rows.push(Row {
            activity: PRINTS,
            seconds: last.host_seconds() - first.host_seconds(),
            events: log.len() as f64,
            exits,
        });
        log
    };
    subject.shut_down()?;
    Ok(Outcome {
        machine: kind,
        exit_cost,
        series,
        rows,
        complaints: dmesg::complaints(&log),
    })
}

/// Counts the exits between the reports of some seconds.
fn watch(subject: &mut Subject, activity: Activity, countdown: &mut Countdown) -> Result<Row> {
    let before = (subject.report()?, Exits::of(subject.session(), VM)?);
    subject.watch(SECONDS, countdown)?;
    let after = (subject.report()?, Exits::of(subject.session(), VM)?);
    let seconds = after.0.host_seconds() - before.0.host_seconds();
    ensure!(seconds > 0.0, "no time between two reports");
    let exits = after.1.since(&before.1);
    let units = |report: &Report| report.counts.iter().sum::<u64>();
    let events = match activity.event {
        Event::WakeUp => exits.by("hlt") as f64,
        Event::Unit => (units(&after.0) - units(&before.0)) as f64,
        Event::Tick(in_second) => f64::from(in_second) * seconds,
        Event::Byte => anyhow::bail!("bytes are not counted here"),
    };
    ensure!(events > 0.0, "{}: no event in {seconds} s", activity.name);
    Ok(Row {
        activity,
        seconds,
        events,
        exits,
    })
}

/// Counts, prints the table and writes `target/experiments/exits.json`. True if the kernel's log has no
/// complaints.
///
/// # Errors
/// When it cannot be measured, or a file cannot be written.
pub(super) fn run(
    name: &str,
    kind: Kind,
    series: Series,
    exit_cost: u64,
    update_results: bool,
) -> Result<bool> {
    let outcome = measure(name, kind, series, exit_cost).context("counting exits")?;
    if update_results {
        outcome.update_results()?;
    }
    record::conclude("exits", &outcome, &outcome.json(), &outcome.misses())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_exits_by_second_and_by_event() {
        let row = Row {
            activity: ACTIVITIES[0],
            seconds: 2.0,
            events: 50.0,
            exits: Exits::with("hlt", 100),
        };
        let cells = row.cells(Series::default());
        assert_eq!(cells.len(), COLUMNS.len());
        assert_eq!(cells[2..6], ["50", "wake-up", "25", "2.0000"]);
        assert_eq!(cells[7], "hlt 50");
    }
}
