//! Other processors that Bochs models: do our guest kernels pass on them, and what do operations cost there?

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::bench;
use super::common::cells::Cells;
use super::common::{record, results};
use crate::testbed::Setup;
use crate::testbed::choice;
use crate::testbed::claim::Claim;
use crate::testbed::findings::Findings;
use crate::testbed::machine::Kind;
use crate::testbed::module::Guest;
use crate::testbed::progress::Step;

/// Bochs's models of processors on which tarpit runs, the oldest first.
const MODELS: [&str; 9] = [
    "corei5_arrandale_m520",
    "corei7_sandy_bridge_2600k",
    "corei7_ivy_bridge_3770k",
    "corei7_haswell_4770",
    "broadwell_ult",
    "corei7_skylake_x",
    "corei3_cnl",
    "corei7_icelake_u",
    "tigerlake",
];

/// The guest kernels that check a processor's side of a virtual machine from inside.
const KERNELS: [&str; 5] = ["exits", "modes", "tasks", "apic", "timers"];

/// The time that a kernel may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// The facts that tarpit tells of the processor, with what a processor lacks that does not have it.
const FACTS: [(&str, &str); 3] = [
    ("TSC scaling no", "TSC scaling"),
    ("virtual APIC no", "APIC virtualization"),
    ("EPT pages up to 2 MiB", "1 GiB pages"),
];

/// The operations whose costs are shown.
const OPERATIONS: [&str; 5] = [
    "cpuid",
    "x2apic_self_ipi",
    "deadline_lateness",
    "virtio_blk_read",
    "context_switch_beside_target",
];

/// The processor, what it lacks, the kernels and the operations.
const COLUMNS: usize = 2 + KERNELS.len() + OPERATIONS.len();

/// Other processors, as Bochs models them: do our kernels pass, and what do operations cost?
///
/// Boots guest kernels of ours under tarpit on each, and the benchmark. Exit status 1 where a check of a kernel's fails, or an
/// operation costs more than it may on a processor that lacks nothing.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Which processors; all if none is named
    #[arg(value_name = "MODEL", value_parser = PossibleValuesParser::new(MODELS))]
    models: Vec<String>,
    #[command(flatten)]
    results: crate::testbed::options::Results,
}

/// The facts that were found about a processor.
#[derive(Clone, Debug)]
struct Row {
    model: &'static str,
    lacks: Vec<&'static str>,
    /// The kernels' names, and what they have found.
    findings: Vec<(&'static str, Findings)>,
    costs: bench::Costs,
}

impl Row {
    fn measure(claim: &Claim, model: &'static str, step: &Step) -> Result<Self> {
        let mut facts = None;
        let mut findings = Vec::new();
        for kernel in KERNELS {
            step.detail(format!("{model}: {kernel}"));
            let mut session = Setup::new(claim.name())
                .processor(model)
                .ips(bench::IPS)
                .options("on-end=poweroff")
                .kernel(kernel, &Guest::new(kernel))?
                .boot()?
                .patience(PATIENCE);
            session.wait_for("VMX: ")?;
            facts = Some(session.wait_for("\n")?);
            findings.push((kernel, Findings::follow(&mut session, kernel)?));
        }
        step.detail(format!("{model}: bench"));
        Ok(Self {
            model,
            lacks: lacking(&facts.context("no kernel has run")?),
            findings,
            costs: bench::measure(claim.name(), Kind::Bochs, Some(model), bench::ROUNDS, 0)?,
        })
    }

    fn misses(&self) -> Vec<String> {
        let failed = self.findings.iter().filter(|(_, it)| !it.are_good());
        let mut misses: Vec<String> = failed
            .map(|(kernel, findings)| format!("{}: {kernel}: {findings}", self.model))
            .collect();
        if self.lacks.is_empty() {
            let costs = self.costs.misses();
            misses.extend(costs.iter().map(|miss| format!("{}: {miss}", self.model)));
        }
        misses
    }

    fn cells(&self) -> [String; COLUMNS] {
        let lacks = if self.lacks.is_empty() {
            "nothing".to_owned()
        } else {
            self.lacks.join(", ")
        };
        let mut cells = vec![self.model.to_owned(), lacks];
        cells.extend(self.findings.iter().map(|(_, findings)| {
            let verdict = if findings.are_good() { "" } else { "FAILED: " };
            format!(
                "{verdict}{}",
                findings.tally.as_deref().unwrap_or("no result")
            )
        }));
        cells.extend(OPERATIONS.iter().map(|operation| {
            let median = self.costs.median(operation);
            median.map_or_else(|| "-".to_owned(), |ticks| ticks.to_string())
        }));
        core::array::from_fn(|column| core::mem::take(&mut cells[column]))
    }
}

/// Returns what the processor lacks of which tarpit has said `facts`.
fn lacking(facts: &str) -> Vec<&'static str> {
    let said = FACTS.iter().filter(|(fact, _)| facts.contains(fact));
    said.map(|(_, lack)| *lack).collect()
}

/// The processors.
struct Outcome(Vec<Row>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cells().fmt(f)
    }
}

impl Outcome {
    fn cells(&self) -> Cells<COLUMNS> {
        let mut titles = ["Processor", "Lacks"]
            .into_iter()
            .chain(KERNELS)
            .chain(OPERATIONS);
        Cells {
            titles: core::array::from_fn(|_| titles.next().unwrap_or_default()),
            rows: self.0.iter().map(Row::cells).collect(),
        }
    }

    fn misses(&self) -> Vec<String> {
        self.0.iter().flat_map(Row::misses).collect()
    }

    fn json(&self) -> serde_json::Value {
        let rows = self.0.iter().map(|row| {
            let kernels: serde_json::Map<_, _> = row
                .findings
                .iter()
                .map(|(kernel, it)| {
                    let said = json!({ "good": it.are_good(), "tally": it.tally });
                    ((*kernel).to_owned(), said)
                })
                .collect();
            json!({
                "processor": row.model,
                "lacks": row.lacks,
                "kernels": kernels,
                "costs": row.costs.json(),
            })
        });
        json!({ "processors": rows.collect::<Vec<_>>(), "misses": self.misses() })
    }

    fn update_results(&self) -> Result<()> {
        let cells = self.cells();
        let table = results::Table {
            name: "processors",
            title: "Other processors",
            heading: &cells.heading(),
            keys: 1,
        };
        table.update(&cells.lines())
    }
}

/// Boots the kernels and the benchmark on each processor. True if nothing was missed.
///
/// # Errors
/// When a machine cannot be started, or ends before its time.
pub fn run(options: &Options) -> Result<bool> {
    choice::ensure_installed(Kind::Bochs)?;
    let claim = Claim::new("processors")?;
    let step = Step::begin("Trying processors in Bochs");
    let wanted = |model: &&'static str| {
        options.models.is_empty() || options.models.iter().any(|it| it == model)
    };
    let mut rows = Vec::new();
    for model in MODELS.into_iter().filter(|model| wanted(model)) {
        rows.push(Row::measure(&claim, model, &step).with_context(|| model.to_owned())?);
    }
    drop(step);
    if rows.is_empty() {
        bail!("no processor was chosen");
    }
    let outcome = Outcome(rows);
    if options.results.update {
        outcome.update_results()?;
    }
    record::conclude("processors", &outcome, &outcome.json(), &outcome.misses())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_processor_lacks_is_read_from_what_tarpit_says() {
        let all = "TSC scaling yes, virtual APIC yes, EPT pages up to 1 GiB, preemption timer every 1 ticks";
        assert_eq!(lacking(all), Vec::<&str>::new());
        let old = "TSC scaling no, virtual APIC no, EPT pages up to 2 MiB, preemption timer every 32 ticks";
        assert_eq!(
            lacking(old),
            ["TSC scaling", "APIC virtualization", "1 GiB pages"]
        );
    }

    #[test]
    fn each_operation_that_is_shown_is_one_of_the_benchmarks() {
        for operation in OPERATIONS {
            assert!(bench::has_bound(operation), "{operation}");
        }
    }
}
