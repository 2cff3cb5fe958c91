//! What came out of a case, and what was asked of it.

use serde_json::{Value, json};

use super::case::{Case, FAMILY_SIZE, Kind};
use crate::experiment::common::made::CaseOutcome;
use crate::experiment::common::place::Place;
use crate::experiment::common::reports::Speeds;

/// The most speed that a family may have, of that before.
const MOST_OF_FAMILY: f64 = 0.002;
/// The least speed that others may have, of that without a target, and without rules.
const LEAST_OF_OTHERS: f64 = 0.99;

/// The processes that are taken for a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Family {
    /// The number of targets: one, but if a descendant was not known as one, and found by the rule.
    pub targets: usize,
    /// The members that live.
    pub living: usize,
    /// The members that have joined it, as far as tarpit remembers them.
    pub joined: usize,
}

/// The measurements of a case.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub case: Case,
    pub place: Place,
    pub n: u32,
    /// The kernel's release.
    pub kernel: String,
    /// The process that the case is about, among those of the workload.
    pub subject: usize,
    /// The speeds of all processes, by index: with nothing suppressed, and no rules.
    pub before: Speeds,
    /// The same 2 s after the process has been named, or beside a target, or under rules.
    pub during: Speeds,
    /// The units of the process then.
    pub units: u64,
    /// The host seconds after which the rule had found it.
    pub named_after: Option<f64>,
    /// The processes taken for the family in the end.
    pub family: Option<Family>,
    /// The complaints of the kernel's log.
    pub complaints: Vec<String>,
}

impl Outcome {
    /// Returns the speed of the process that the case is about, of that before.
    fn ratio(&self) -> f64 {
        self.during.ratio(self.subject, &self.before)
    }

    /// Returns the others' speed, of that before; `None` where there are none.
    fn others(&self) -> Option<f64> {
        let before = self.before.sum_without(self.subject);
        (before > 0.0).then(|| self.during.sum_without(self.subject) / before)
    }

    /// Returns each requirement that was missed, in words.
    pub(super) fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let mut demand = |name: &str, value: f64, least: f64, most: f64| {
            if !(least..=most).contains(&value) {
                misses.push(format!("{name} is {value:.4}, not {least} to {most}"));
            }
        };
        match self.case.kind {
            Kind::Evader => {
                demand("the family's speed", self.ratio(), 0.0, MOST_OF_FAMILY);
                if let Some(others) = self.others() {
                    demand("the others' speed", others, 1.0, f64::INFINITY);
                }
            }
            Kind::Bystander { units } => {
                demand("its speed", self.ratio(), LEAST_OF_OTHERS, f64::INFINITY);
                demand("its units", self.units as f64, units as f64, f64::INFINITY);
                let members = self.family.map_or(0, |family| family.joined + 1);
                let expected = FAMILY_SIZE as f64;
                demand("the family's size", members as f64, expected, expected);
            }
            Kind::Watched => demand("its speed", self.ratio(), LEAST_OF_OTHERS, f64::INFINITY),
        }
        let complaints = self.complaints.iter();
        misses.extend(complaints.map(|line| format!("dmesg complains: {line}")));
        misses
    }

    /// Returns the row of a table.
    pub(super) fn cells(&self) -> [String; COLUMNS.len()] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let ratio = match self.ratio() {
            ratio if ratio < 0.01 => self.during.ratio_text(self.subject, &self.before),
            ratio => format!("{ratio:.4}"),
        };
        let family = self.family.map(|family| {
            let Family {
                targets,
                living,
                joined,
            } = family;
            let all = format!("{living} of {}", joined + targets);
            if targets == 1 {
                all
            } else {
                format!("{all}, {targets} targets")
            }
        });
        let verdict = if self.misses().is_empty() {
            "passed"
        } else {
            "missed"
        };
        [
            self.place.series.name().to_owned(),
            self.place.vcpus.to_string(),
            self.case.title.to_owned(),
            format!("{:.0}", self.before.per_second[self.subject]),
            or_dash(self.named_after.map(|seconds| format!("{seconds:.1} s"))),
            ratio,
            or_dash(self.others().map(|others| format!("{others:.3}"))),
            or_dash(family),
            verdict.to_owned(),
        ]
    }

    /// Returns it for programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "case": self.case.name,
            "start": self.case.start,
            "kernel_series": self.place.series.name(),
            "kernel": self.kernel,
            "vcpus": self.place.vcpus,
            "n": self.n,
            "speed_ratio": self.ratio(),
            "others_ratio": self.others(),
            "units": self.units,
            "named_after_seconds": self.named_after,
            "targets": self.family.map(|it| it.targets),
            "living": self.family.map(|it| it.living),
            "joined": self.family.map(|it| it.joined),
            "units_per_second": {
                "before": self.before.per_second,
                "during": self.during.per_second,
            },
            "dmesg_complaints": self.complaints,
            "misses": self.misses(),
            "passed": self.misses().is_empty(),
        })
    }
}

impl CaseOutcome for Outcome {
    fn case(&self) -> (&'static str, Place) {
        (self.case.name, self.place)
    }

    fn row(&self) -> Vec<String> {
        self.cells().into()
    }

    fn misses(&self) -> Vec<String> {
        self.misses()
    }

    fn json(&self) -> Value {
        self.json()
    }
}

/// The titles of the cells.
pub(super) const COLUMNS: [&str; 9] = [
    "Linux",
    "VCPUs",
    "Process",
    "Units a second before",
    "Named after",
    "Its speed",
    "The others'",
    "Members alive",
    "",
];

#[cfg(test)]
mod tests {
    use super::super::case;
    use super::*;
    use crate::testbed::kernel::Series;

    fn speeds(per_second: &[f64]) -> Speeds {
        Speeds {
            host_seconds: 3.0,
            per_second: per_second.to_vec(),
        }
    }

    fn outcome(name: &str, during: [f64; 2]) -> Outcome {
        let case = case::chosen(&[name.to_owned()])[0];
        Outcome {
            case,
            place: Place {
                series: Series::default(),
                vcpus: 1,
            },
            n: 1000,
            kernel: "6.1".to_owned(),
            subject: 1,
            before: speeds(&[500.0, 1000.0]),
            during: speeds(&during),
            units: 20_000,
            named_after: Some(0.5),
            family: Some(Family {
                targets: 1,
                living: 9,
                joined: 8,
            }),
            complaints: Vec::new(),
        }
    }

    #[test]
    fn a_family_is_to_be_slow_and_the_others_are_not() {
        assert_eq!(outcome("forks", [900.0, 1.9]).misses(), [""; 0]);
        assert_eq!(outcome("forks", [900.0, 2.1]).misses().len(), 1);
        assert_eq!(outcome("forks", [499.0, 0.0]).misses().len(), 1);
        assert_eq!(outcome("forks", [900.0, f64::NAN]).misses().len(), 1);
    }

    #[test]
    fn who_is_beside_a_family_keeps_its_speed_and_is_not_taken_in() {
        let mut beside = outcome("spawns", [0.0, 990.0]);
        assert_eq!(beside.misses(), [""; 0]);
        beside.units = 19_999;
        assert_eq!(beside.misses().len(), 1);
        beside.family = Some(Family {
            targets: 1,
            living: 9,
            joined: 9,
        });
        assert_eq!(beside.misses().len(), 2);
        assert_eq!(outcome("spawns", [0.0, 989.0]).misses().len(), 1);
        assert_eq!(outcome("watched-hog", [0.0, 989.0]).misses().len(), 1);
    }

    #[test]
    fn rows_tell_what_cannot_be_told_from_nothing_as_less_than_a_unit() {
        let cells = outcome("forks", [900.0, 0.0]).cells();
        assert_eq!(cells[5], "< 0.000333");
        assert_eq!(cells[7], "9 of 9");
        assert_eq!(cells[8], "passed");
    }
}
