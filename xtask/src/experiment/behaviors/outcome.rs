//! What came out of a case, and what was asked of it.

use serde_json::{Value, json};

use super::case::{Case, Relation};
use super::clock::ClockError;
use super::latency::Latency;
use crate::experiment::common::made::CaseOutcome;
use crate::experiment::common::place::Place;
use crate::experiment::common::reports::Speeds;

/// The most CPU time that a target may get over any second, in parts of 1/N of one CPU.
const MOST_CPU: f64 = 1.1;
/// The most that a CPU-bound process beside equals may do, of what it did before, with N = 1000.
const MOST_SPEED: f64 = 0.001;
/// The least that others get of what they have without the target: beside an equal, and where the
/// scheduler prefers the target.
const LEAST_BESIDE_EQUAL: f64 = 0.99;
const LEAST_BESIDE_PREFERRED: f64 = 0.97;
/// The least of the speed before that one process may have during the suppression: a little less
/// than all of it, as a scheduler with more processes than CPUs is not fair at every moment.
const LEAST_OF_BEFORE: f64 = 0.95;
/// The most that the clock may be off, in milliseconds: beside equals; elsewhere while another VM
/// wants the CPU, and while none does.
const MOST_OFF_BESIDE_EQUAL: f64 = 15.0;
const MOST_OFF_WITH_NEIGHBOR: f64 = 250.0;
const MOST_OFF: f64 = 1000.0;
/// The same a second after the release.
const MOST_OFF_RELEASED: f64 = 1.0;
/// The most that the clock may drift over the suppression, in parts of how far it may be off.
const MOST_DRIFT: f64 = 0.25;
/// The most by which the guest's own lines may show the clock further ahead than tarpit says, in
/// milliseconds.
const MOST_DISAGREEMENT: f64 = 2.0;
/// The most by which a process may wake later than without suppression, in milliseconds.
const MOST_LATER_MEDIAN: f64 = 1.0;
const MOST_LATER: f64 = 20.0;
/// The most by which the target's speed after the release may miss that before, in parts of it.
const MOST_AFTER: f64 = 0.1;

/// A neighbor VM's units a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Neighbor {
    /// The speed when it has the CPU to itself.
    pub alone: f64,
    /// The speed while the target runs freely.
    pub before: f64,
    /// The speed while the target is suppressed.
    pub during: f64,
}

/// The measurements of a case.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub case: Case,
    pub place: Place,
    pub n: u32,
    /// The policy, as tarpit calls it.
    pub policy: String,
    /// The others' speeds without the targets; `None` where there are no others.
    pub without: Option<Speeds>,
    /// All speeds: first the others', then the targets'.
    pub before: Speeds,
    pub during: Speeds,
    pub after: Speeds,
    /// The targets' part of one CPU before.
    pub cpu_before: f64,
    /// The same during the suppression.
    pub cpu_during: f64,
    /// The most of a CPU that one of the targets had over a second of the suppression.
    pub worst_cpu: f64,
    /// The limits that applied to the target, as tarpit says: each once.
    pub limits: Vec<String>,
    pub clock: ClockError,
    pub latency_before: Option<Latency>,
    pub latency_during: Option<Latency>,
    pub neighbor: Option<Neighbor>,
    /// The complaints of the kernel's log since the suppression began.
    pub complaints: Vec<String>,
    /// The kernel's release.
    pub kernel: String,
}

impl Outcome {
    /// Returns how many others there are.
    fn others(&self) -> usize {
        self.case.others.count(self.place.vcpus)
    }

    /// Returns the sum of the targets' speeds.
    fn targets(&self, speeds: &Speeds) -> f64 {
        let targets = speeds.per_second.iter().skip(self.others());
        targets.take(self.case.targets.len()).sum()
    }

    fn sum_of_others(&self, speeds: &Speeds) -> f64 {
        speeds.per_second.iter().take(self.others()).sum()
    }

    /// Returns the targets' speed during the suppression, of that before.
    pub(super) fn target_ratio(&self) -> f64 {
        self.targets(&self.during) / self.targets(&self.before)
    }

    /// Returns the ratio that one unit of the targets' work makes.
    fn resolution(&self) -> f64 {
        1.0 / (self.during.host_seconds * self.targets(&self.before))
    }

    /// Returns [`Self::target_ratio`] for a table.
    pub(super) fn target_text(&self) -> String {
        match self.target_ratio() {
            0.0 => format!("< {:.6}", self.resolution()),
            ratio if ratio < 0.01 => format!("{ratio:.6}"),
            ratio => format!("{ratio:.3}"),
        }
    }

    /// Returns the targets' speed after their release, of that before.
    pub(super) fn after_ratio(&self) -> f64 {
        self.targets(&self.after) / self.targets(&self.before)
    }

    /// Returns what the others gain: their speed during the suppression, of that before; and the
    /// most that they could gain.
    pub(super) fn gain(&self) -> Option<[f64; 2]> {
        let without = self.without.as_ref()?;
        let before = self.sum_of_others(&self.before);
        Some([&self.during, without].map(|speeds| self.sum_of_others(speeds) / before))
    }

    /// Returns the others' speed during the suppression, of that without the targets.
    fn of_ideal(&self) -> Option<f64> {
        let without = self.without.as_ref()?;
        Some(self.sum_of_others(&self.during) / self.sum_of_others(without))
    }

    /// Returns the part of all CPUs that the others and a neighbor have together.
    fn used_by_others(&self) -> Option<f64> {
        let cpus = f64::from(self.place.vcpus);
        let neighbor = self.neighbor?;
        Some(self.of_ideal()? + neighbor.during / neighbor.alone / cpus)
    }

    /// Returns the speed during the suppression of the process among the others that lost most, of
    /// that before.
    fn least_of_before(&self) -> Option<f64> {
        let both = self.during.per_second.iter().zip(&self.before.per_second);
        let ratios = both
            .take(self.others())
            .map(|(during, before)| during / before);
        ratios.min_by(f64::total_cmp)
    }

    /// Returns how far off the clock may be, in milliseconds.
    fn most_off(&self) -> f64 {
        match self.case.relation {
            Relation::Equal => MOST_OFF_BESIDE_EQUAL,
            Relation::Preferred | Relation::Alone if self.case.neighbor => MOST_OFF_WITH_NEIGHBOR,
            Relation::Preferred | Relation::Alone => MOST_OFF,
        }
    }

    /// Returns each requirement that was missed, in words.
    pub(super) fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        self.check_bound(&mut misses);
        self.check_others(&mut misses);
        self.check_clock(&mut misses);
        self.check_latency(&mut misses);
        let complaints = self.complaints.iter();
        misses.extend(complaints.map(|line| format!("dmesg complains: {line}")));
        misses
    }

    fn check_bound(&self, misses: &mut Vec<String>) {
        let most = MOST_CPU / f64::from(self.n);
        if self.worst_cpu > most {
            misses.push(format!(
                "bound: the target had {:.6} of a CPU over a second, not {most} or less",
                self.worst_cpu
            ));
        }
        // Of a process that sleeps, 1/N of a CPU may be all that it wants.
        if self.case.is_busy() {
            // A unit that was begun before, and one of which most was done then.
            let counted = (self.target_ratio() - self.resolution()) * self.cpu_before;
            let counted = counted / self.case.targets.len() as f64;
            if counted > most {
                misses.push(format!(
                    "bound: by its own counter a target had {counted:.6} of a CPU, not {most} or less"
                ));
            }
        }
        let beside_equals = self.case.relation == Relation::Equal && self.case.is_plain_hog();
        let ratio = self.target_ratio();
        if beside_equals && self.n >= 1000 && ratio > MOST_SPEED {
            misses.push(format!(
                "bound: the target ran at {ratio:.6} of its speed, not {MOST_SPEED} or less"
            ));
        }
        let after = self.after_ratio();
        if self.case.is_busy() && (after - 1.0).abs() > MOST_AFTER {
            misses.push(format!(
                "released, the target runs at {after:.3} of its speed before"
            ));
        }
    }

    fn check_others(&self, misses: &mut Vec<String>) {
        let least = match self.case.relation {
            Relation::Preferred => LEAST_BESIDE_PREFERRED,
            Relation::Equal | Relation::Alone => LEAST_BESIDE_EQUAL,
        };
        let (what, share) = match self.used_by_others() {
            Some(share) => ("the others and the neighbor together", Some(share)),
            None => ("the others", self.of_ideal()),
        };
        if let Some(share) = share.filter(|share| *share < least) {
            misses.push(format!(
                "lost: {what} had {share:.4} of what there is without the target, not {least} or more"
            ));
        }
        if let (Relation::Alone, Some(neighbor)) = (self.case.relation, self.neighbor) {
            let share = neighbor.during / neighbor.alone;
            if share < LEAST_BESIDE_PREFERRED {
                misses.push(format!(
                    "lost: the neighbor had {share:.4} of the CPU, not {LEAST_BESIDE_PREFERRED} or more"
                ));
            }
        }
        if let Some(ratio) = self.least_of_before().filter(|it| *it < LEAST_OF_BEFORE) {
            misses.push(format!(
                "harm: another process ran at {ratio:.4} of its speed before"
            ));
        }
    }

    fn check_clock(&self, misses: &mut Vec<String>) {
        let clock = &self.clock;
        let most = self.most_off();
        if clock.most_off_ms() > most {
            misses.push(format!(
                "time: the clock was off by {:.1} ms, not {most} or less",
                clock.most_off_ms()
            ));
        }
        let told = clock.largest_ms.max(clock.counted_ms);
        if clock.reported_ms > told + MOST_DISAGREEMENT {
            misses.push(format!(
                "time: the guest's own lines show the clock {:.1} ms ahead, tarpit says {told:.1}",
                clock.reported_ms
            ));
        }
        if clock.drift_ms.abs() > MOST_DRIFT * most {
            misses.push(format!(
                "time: the clock drifted by {:.1} ms (it ran at {:.4} x)",
                clock.drift_ms, clock.rate
            ));
        }
        if clock.released_ms.abs() > MOST_OFF_RELEASED {
            misses.push(format!(
                "time: a second after the release the clock was off by {:.1} ms",
                clock.released_ms
            ));
        }
    }

    fn check_latency(&self, misses: &mut Vec<String>) {
        if self.case.relation != Relation::Equal {
            return;
        }
        let Some((before, during)) = self.latency_before.zip(self.latency_during) else {
            misses.push("latency: the sleeper did not wake often enough to tell".to_owned());
            return;
        };
        let mut demand = |what: &str, before: f64, during: f64, most: f64| {
            if during - before > most {
                misses.push(format!(
                    "latency: {what} {during:.2} ms late, {before:.2} without suppression"
                ));
            }
        };
        let (before, during) = (before.guest, during.guest);
        demand(
            "the median wake is",
            before.median,
            during.median,
            MOST_LATER_MEDIAN,
        );
        demand("one wake was", before.largest, during.largest, MOST_LATER);
    }

    /// Returns it as JSON, for programs.
    pub(super) fn json(&self) -> Value {
        let misses = self.misses();
        json!({
            "case": self.case.name,
            "kernel_series": self.place.series.name(),
            "kernel": self.kernel,
            "vcpus": self.place.vcpus,
            "n": self.n,
            "policy": self.policy,
            "target_ratio": self.target_ratio(),
            "after_ratio": self.after_ratio(),
            "target_cpu": {
                "before": self.cpu_before,
                "during": self.cpu_during,
                "worst_second": self.worst_cpu,
                "limits": self.limits,
            },
            "others_gain": self.gain().map(|[gain, _]| gain),
            "others_ideal_gain": self.gain().map(|[_, ideal]| ideal),
            "others_of_ideal": self.of_ideal(),
            "others_least_of_before": self.least_of_before(),
            "neighbor": self.neighbor.map(|neighbor| json!({
                "before": neighbor.before / neighbor.alone,
                "during": neighbor.during / neighbor.alone,
            })),
            "clock": self.clock.json(),
            "latency": {
                "before": self.latency_before.map(|latency| latency.json()),
                "during": self.latency_during.map(|latency| latency.json()),
            },
            "units_per_second": {
                "without": self.without.as_ref().map(|speeds| &speeds.per_second),
                "before": self.before.per_second,
                "during": self.during.per_second,
                "after": self.after.per_second,
            },
            "dmesg_complaints": self.complaints,
            "misses": misses,
            "passed": misses.is_empty(),
        })
    }

    /// Returns the cells of a table's row.
    pub(super) fn cells(&self) -> [String; 12] {
        let wakes = |latency: Option<Latency>| {
            latency.map_or("-".to_owned(), |latency| {
                let spread = latency.guest;
                format!("{:.1}, {:.1}", spread.median, spread.largest)
            })
        };
        let misses = self.misses();
        let kinds: Vec<&str> = misses
            .iter()
            .filter_map(|miss| Some(miss.split_once(':')?.0))
            .collect();
        let mut kinds: Vec<&str> = kinds;
        kinds.dedup();
        [
            self.place.series.name().to_owned(),
            self.place.vcpus.to_string(),
            self.case.title.to_owned(),
            self.target_text(),
            format!("{:.6}", self.worst_cpu),
            self.gain().map_or("-".to_owned(), |[gain, ideal]| {
                format!("{gain:.3} of {ideal:.3}")
            }),
            self.neighbor.map_or("-".to_owned(), |neighbor| {
                format!("{:.3}", neighbor.during / neighbor.alone)
            }),
            format!("{:.1} ms", self.clock.most_off_ms()),
            format!("{:.4} x", self.clock.rate),
            format!(
                "{} ({})",
                wakes(self.latency_during),
                wakes(self.latency_before)
            ),
            if self.complaints.is_empty() {
                "clean".to_owned()
            } else {
                "complaints".to_owned()
            },
            if misses.is_empty() {
                "passed".to_owned()
            } else if kinds.is_empty() {
                "missed".to_owned()
            } else {
                format!("missed: {}", kinds.join(", "))
            },
        ]
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

/// The table's heading, for [`Outcome::cells`].
pub(super) const COLUMNS: [&str; 12] = [
    "Kernel",
    "VCPUs",
    "Target",
    "Its speed",
    "Its CPU, worst second",
    "Others' gain",
    "Neighbor",
    "Clock off by",
    "Clock runs at",
    "Wakes late by, ms: median, largest (without)",
    "dmesg",
    "",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::behaviors::case::CASES;
    use crate::testbed::kernel::Series;

    fn case(name: &str) -> Case {
        let found = CASES.into_iter().find(|case| case.name == name);
        found.expect("a case of this name")
    }

    fn speeds(per_second: &[f64]) -> Speeds {
        Speeds {
            host_seconds: 4.0,
            per_second: per_second.to_vec(),
        }
    }

    fn clock() -> ClockError {
        ClockError {
            largest_ms: 4.0,
            reported_ms: 3.0,
            counted_ms: 0.0,
            rate: 1.0,
            drift_ms: 0.0,
            released_ms: 0.0,
            suppressed_seconds: 4.0,
            curve: Vec::new(),
            reported_curve: Vec::new(),
        }
    }

    /// One of three equals, as it should come out.
    fn good() -> Outcome {
        Outcome {
            case: case("equal"),
            place: Place {
                series: Series::V6_1,
                vcpus: 1,
            },
            n: 1000,
            policy: "true-time".to_owned(),
            without: Some(speeds(&[1500.0, 1500.0])),
            before: speeds(&[1000.0, 1000.0, 1000.0]),
            during: speeds(&[1499.0, 1499.0, 0.5]),
            after: speeds(&[1000.0, 1000.0, 1000.0]),
            cpu_before: 0.333,
            cpu_during: 0.0003,
            worst_cpu: 0.0004,
            limits: Vec::new(),
            clock: clock(),
            latency_before: None,
            latency_during: None,
            neighbor: None,
            complaints: Vec::new(),
            kernel: "6.1".to_owned(),
        }
        .with_latencies(0.1, 5.0)
    }

    impl Outcome {
        fn with_latencies(mut self, median: f64, largest: f64) -> Self {
            use crate::experiment::behaviors::latency::Spread;
            let latency = |median, largest| Latency {
                wakes: 100,
                guest: Spread { median, largest },
                host: Spread { median, largest },
            };
            self.latency_before = Some(latency(0.1, 5.0));
            self.latency_during = Some(latency(median, largest));
            self
        }
    }

    fn kinds(outcome: &Outcome) -> Vec<String> {
        let misses = outcome.misses();
        let kind = |miss: &String| miss.split(':').next().unwrap_or_default().to_owned();
        misses.iter().map(kind).collect()
    }

    #[test]
    fn what_is_as_it_should_be_misses_nothing() {
        assert_eq!(good().misses(), Vec::<String>::new());
        assert_eq!(good().json()["passed"], true);
        assert_eq!(good().gain(), Some([1.499, 1.5]));
    }

    #[test]
    fn a_second_with_too_much_cpu_time_is_a_miss_even_if_the_rest_is_well() {
        let outcome = Outcome {
            worst_cpu: 0.00111,
            ..good()
        };
        assert_eq!(kinds(&outcome), ["bound"]);
    }

    #[test]
    fn the_targets_own_counter_must_agree() {
        let mut outcome = good();
        outcome.case = case("random");
        outcome.during.per_second[2] = 5.0;
        // A third of a CPU before: 0.0017 of one now.
        assert_eq!(kinds(&outcome), ["bound"]);
        outcome.case = case("asleep");
        assert_eq!(outcome.misses(), Vec::<String>::new());
    }

    #[test]
    fn a_plain_hog_beside_equals_has_a_bound_of_its_own() {
        let mut outcome = good();
        outcome.during.per_second[2] = 1.5;
        assert_eq!(kinds(&outcome), ["bound"]);
        outcome.case = case("batch");
        assert_eq!(outcome.misses(), Vec::<String>::new());
    }

    #[test]
    fn others_must_get_what_the_target_gives_up() {
        let mut outcome = good();
        outcome.during.per_second[..2].fill(1470.0);
        assert_eq!(kinds(&outcome), ["lost"]);
        outcome.case = case("nice");
        assert_eq!(
            outcome.misses(),
            Vec::<String>::new(),
            "0.98 is enough there"
        );
    }

    #[test]
    fn a_process_that_loses_is_a_miss() {
        let mut outcome = good();
        outcome.during.per_second[0] = 940.0;
        outcome.during.per_second[1] = 2060.0;
        assert_eq!(kinds(&outcome), ["harm"]);
    }

    #[test]
    fn with_a_neighbor_what_both_have_counts_and_beside_one_alone_what_it_has() {
        let neighbor = |during| {
            Some(Neighbor {
                alone: 100.0,
                before: 33.0,
                during,
            })
        };
        let mut outcome = Outcome {
            case: case("nice-neighbor"),
            neighbor: neighbor(60.0),
            ..good()
        };
        outcome.before.per_second.fill(100.0);
        outcome.during.per_second[..2].fill(570.0);
        outcome.during.per_second[2] = 0.05;
        assert_eq!(
            outcome.misses(),
            ["released, the target runs at 10.000 of its speed before"]
        );
        outcome.neighbor = neighbor(58.0);
        assert_eq!(outcome.misses().len(), 2);

        let mut outcome = Outcome {
            case: case("alone-neighbor"),
            without: None,
            neighbor: neighbor(97.5),
            before: speeds(&[1000.0]),
            during: speeds(&[0.5]),
            after: speeds(&[1000.0]),
            ..good()
        };
        assert_eq!(outcome.misses(), Vec::<String>::new());
        outcome.neighbor = neighbor(96.0);
        assert_eq!(kinds(&outcome), ["lost"]);
    }

    #[test]
    fn how_far_the_clock_may_be_off_depends_on_who_is_there() {
        let off = |name: &str, largest_ms| {
            let outcome = Outcome {
                case: case(name),
                clock: ClockError {
                    largest_ms,
                    ..clock()
                },
                ..good()
            };
            kinds(&outcome).iter().any(|kind| kind == "time")
        };
        assert!(!off("equal", 15.0) && off("equal", 15.1));
        assert!(!off("nice", 990.0) && off("nice", 1010.0));
        assert!(!off("fifo-neighbor", 250.0) && off("fifo-neighbor", 251.0));
    }

    #[test]
    fn a_clock_that_drifts_or_stays_off_or_is_not_what_tarpit_says_is_a_miss() {
        for clock in [
            ClockError {
                drift_ms: 4.0,
                ..clock()
            },
            ClockError {
                released_ms: -1.1,
                ..clock()
            },
            ClockError {
                reported_ms: 6.5,
                ..clock()
            },
        ] {
            assert_eq!(kinds(&Outcome { clock, ..good() }), ["time"]);
        }
    }

    #[test]
    fn wakes_may_be_little_later_than_without_suppression() {
        assert_eq!(kinds(&good().with_latencies(1.2, 5.0)), ["latency"]);
        assert_eq!(kinds(&good().with_latencies(0.1, 25.5)), ["latency"]);
        assert_eq!(kinds(&good().with_latencies(1.0, 24.0)), [""; 0]);
        let mut outcome = good();
        outcome.latency_during = None;
        assert_eq!(kinds(&outcome), ["latency"]);
    }

    #[test]
    fn a_row_has_as_many_cells_as_the_heading() {
        assert_eq!(good().cells().len(), COLUMNS.len());
        let mut outcome = good();
        outcome.complaints.push("BUG: soft lockup".to_owned());
        assert_eq!(outcome.cells()[10], "complaints");
        assert_eq!(outcome.cells()[11], "missed: dmesg complains");
    }
}
