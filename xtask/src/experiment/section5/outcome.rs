//! What came out of a case, and what it had to be.

use std::fmt;

use serde_json::json;

use crate::experiment::common::reports::Speeds;
use crate::experiment::common::results::Table;

/// The paper's result: the target's speed with N = 1000, of that before.
pub(super) const PAPER: f64 = 1.0 / 4000.0;

/// The least N for which the target's ratio is held to [`MOST_FOR_THE_TARGET`].
const STRONG: u32 = 1000;
const MOST_FOR_THE_TARGET: f64 = 0.001;
const LEAST_FOR_THE_OTHERS: f64 = 0.97;

/// The table of the results. Its first three columns say what a row is about.
pub(super) const TABLE: Table<'static> = Table {
    name: "section5",
    title: "Section 5 of the paper",
    heading: "\
| VCPUs | CPUs | N | Target | Others | After | dmesg |
| --- | --- | --- | --- | --- | --- | --- |",
    keys: 3,
};

/// The placement of a VM's VCPUs on physical CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// All on one physical CPU.
    Pinned,
    /// Each on a physical CPU of its own.
    Spread,
}

/// The number of VCPUs, and their placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub vcpus: u32,
    pub placement: Placement,
}

impl Case {
    /// Returns the number of physical CPUs.
    pub(super) fn cpus(self) -> u32 {
        match self.placement {
            Placement::Pinned => 1,
            Placement::Spread => self.vcpus,
        }
    }

    pub(super) fn name(self) -> String {
        let placement = match self.placement {
            Placement::Pinned => "pinned",
            Placement::Spread => "spread",
        };
        format!("{}-{placement}", self.vcpus)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        let (vcpus, cpus) = (self.vcpus, self.cpus());
        write!(
            f,
            "{vcpus} VCPU{} on {cpus} CPU{}",
            plural(vcpus),
            plural(cpus)
        )
    }
}

/// The speeds under suppression with one N.
#[derive(Clone, Debug)]
pub(super) struct Strength {
    pub n: u32,
    pub speeds: Speeds,
}

/// The outcome of a case.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub case: Case,
    pub cr3: String,
    /// The target's index among the processes.
    pub target: usize,
    pub before: Speeds,
    pub suppressed: Vec<Strength>,
    pub after: Speeds,
    /// The speeds when the target had ended.
    pub without: Speeds,
    /// The kernel's release.
    pub kernel: String,
    pub complaints: Vec<String>,
}

/// Returns the process that was slowed most under the largest N. (tarpit knows it by its CR3, the
/// workload by its number.)
pub(super) fn most_slowed(before: &Speeds, suppressed: &[Strength]) -> Option<usize> {
    let strongest = suppressed.iter().max_by_key(|strength| strength.n)?;
    strongest.speeds.most_slowed_since(before)
}

impl Outcome {
    /// Units of work that the target did while suppressed.
    pub(super) fn target_units(&self, strength: &Strength) -> f64 {
        let speeds = &strength.speeds;
        speeds.per_second[self.target] * speeds.host_seconds
    }

    /// Returns the target's speed, of that before.
    pub(super) fn target_ratio(&self, strength: &Strength) -> f64 {
        strength.speeds.ratio(self.target, &self.before)
    }

    /// Returns the ratio that one unit of work makes.
    pub(super) fn resolution(&self, strength: &Strength) -> f64 {
        strength.speeds.resolution(self.target, &self.before)
    }

    /// Returns [`Self::target_ratio`] for a table.
    pub(super) fn target_text(&self, strength: &Strength) -> String {
        strength.speeds.ratio_text(self.target, &self.before)
    }

    /// Returns what the kernel's log is.
    pub(super) const fn log_text(&self) -> &'static str {
        if self.complaints.is_empty() {
            "clean"
        } else {
            "complaints"
        }
    }

    /// Rows of [`TABLE`], a row for each N.
    pub(super) fn rows(&self) -> impl Iterator<Item = String> {
        self.suppressed.iter().map(|strength| {
            format!(
                "| {} | {} | {} | {} | {:.4} | {:.3} | {} |",
                self.case.vcpus,
                self.case.cpus(),
                strength.n,
                self.target_text(strength),
                self.others_ratio(strength),
                self.after_ratio(),
                self.log_text(),
            )
        })
    }

    /// Returns the others' speed together, of what it is when the target does not exist.
    pub(super) fn others_ratio(&self, strength: &Strength) -> f64 {
        strength.speeds.sum_without(self.target) / self.without.sum_without(self.target)
    }

    /// Returns the target's speed after its release, of that before.
    pub(super) fn after_ratio(&self) -> f64 {
        self.after.ratio(self.target, &self.before)
    }

    /// Returns each requirement that was missed, in words.
    pub(super) fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        for strength in &self.suppressed {
            let mut miss = |what: String| {
                misses.push(format!("{}, N = {}: {what}", self.case, strength.n));
            };
            // Comparisons that fail for NaN, too: a run without work does not pass.
            let target = self.target_ratio(strength);
            let is_slow = target <= MOST_FOR_THE_TARGET;
            if strength.n >= STRONG && !is_slow {
                miss(format!(
                    "the target runs at {target:.6} of its speed, not {MOST_FOR_THE_TARGET} or less"
                ));
            }
            let others = self.others_ratio(strength);
            let is_enough = others >= LEAST_FOR_THE_OTHERS;
            // A small N leaves the target a share that the others are bound to miss.
            if strength.n >= STRONG && !is_enough {
                miss(format!(
                    "the others run at {others:.4} of their speed without the target, not \
                     {LEAST_FOR_THE_OTHERS} or more"
                ));
            }
        }
        let complaints = self.complaints.iter();
        misses.extend(complaints.map(|line| format!("{}: dmesg complains: {line}", self.case)));
        misses
    }

    /// Returns it as JSON, for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let strengths: Vec<_> = self
            .suppressed
            .iter()
            .map(|strength| {
                json!({
                    "n": strength.n,
                    "target_ratio": self.target_ratio(strength),
                    "target_units": self.target_units(strength).round(),
                    "resolution": self.resolution(strength),
                    "others_ratio": self.others_ratio(strength),
                    "host_seconds": strength.speeds.host_seconds,
                    "units_per_second": strength.speeds.per_second,
                })
            })
            .collect();
        json!({
            "case": self.case.name(),
            "vcpus": self.case.vcpus,
            "cpus": self.case.cpus(),
            "kernel": self.kernel,
            "target_cr3": self.cr3,
            "target_process": self.target,
            "suppressed": strengths,
            "after_ratio": self.after_ratio(),
            "units_per_second": {
                "before": self.before.per_second,
                "after": self.after.per_second,
                "without_target": self.without.per_second,
            },
            "dmesg_clean": self.complaints.is_empty(),
            "dmesg_complaints": self.complaints,
            "misses": self.misses(),
            "passed": self.misses().is_empty(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn speeds(per_second: &[f64]) -> Speeds {
        Speeds {
            host_seconds: 2.0,
            per_second: per_second.to_vec(),
        }
    }

    /// Four processes at 1000 units a second, of which the third is suppressed, with N = 2 to half.
    pub(in super::super) fn outcome(target: f64, other: f64) -> Outcome {
        let strength = |n, target, other| Strength {
            n,
            speeds: speeds(&[other, other, target, other]),
        };
        let before = speeds(&[1000.0; 4]);
        let suppressed = vec![strength(2, 571.0, 1143.0), strength(1000, target, other)];
        Outcome {
            case: Case {
                vcpus: 1,
                placement: Placement::Pinned,
            },
            cr3: "0x1000".to_owned(),
            target: most_slowed(&before, &suppressed).expect("a target"),
            after: before.clone(),
            before,
            suppressed,
            without: speeds(&[1333.0, 1333.0, 0.0, 1333.0]),
            kernel: "6.1".to_owned(),
            complaints: Vec::new(),
        }
    }

    #[test]
    fn the_target_is_found_and_the_others_compared_with_a_world_without_it() {
        let outcome = outcome(0.5, 1330.0);
        assert_eq!(outcome.target, 2);
        let strong = &outcome.suppressed[1];
        assert!((outcome.target_ratio(strong) - 0.0005).abs() < 1e-9);
        assert!((outcome.others_ratio(strong) - 1330.0 / 1333.0).abs() < 1e-9);
        assert!((outcome.resolution(strong) - 0.0005).abs() < 1e-9);
        assert_eq!(outcome.misses(), Vec::<String>::new());
        assert_eq!(outcome.json()["suppressed"][1]["target_units"], 1.0);
        assert_eq!(outcome.json()["passed"], true);
    }

    #[test]
    fn each_missed_requirement_is_told() {
        let mut outcome = outcome(2.0, 1200.0);
        outcome.complaints.push("Call Trace:".to_owned());
        let misses = outcome.misses();
        assert_eq!(misses.len(), 3, "{misses:?}");
        assert!(misses[0].contains("0.002"), "{misses:?}");
        assert!(misses[1].contains("0.9002"), "{misses:?}");
        assert!(misses[2].contains("Call Trace"), "{misses:?}");
    }

    #[test]
    fn a_row_has_the_headings_columns_and_tells_nothing_done_from_little() {
        let columns = |line: &str| line.matches('|').count();
        let rows: Vec<_> = outcome(0.0, 1330.0).rows().collect();
        assert_eq!(rows.len(), 2);
        for row in &rows {
            assert_eq!(
                columns(row),
                columns(TABLE.heading.lines().next().unwrap_or_default())
            );
        }
        assert!(rows[0].starts_with("| 1 | 1 | 2 | 0.571000 |"), "{rows:?}");
        assert!(
            rows[1].starts_with("| 1 | 1 | 1000 | < 0.000500 |"),
            "{rows:?}"
        );
    }

    #[test]
    fn a_run_without_work_does_not_pass() {
        let mut idle = outcome(0.0, 0.0);
        idle.before = speeds(&[0.0; 4]);
        idle.without = speeds(&[0.0; 4]);
        assert_eq!(idle.misses().len(), 2);
    }
}
