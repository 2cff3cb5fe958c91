//! What came of the attack on some CPUs, and what is required of it.

use serde_json::json;

use super::measured::Measured;
use crate::experiment::common::cells::Cells;

/// The phases, in their order.
pub(super) const PHASES: [&str; 4] = ["before", "attack", "suppressed", "released"];
const BEFORE: usize = 0;
const SUPPRESSED: usize = 2;

/// The least throughput of the server while the attacker is suppressed, of that before the attack.
const LEAST_THROUGHPUT: f64 = 0.95;
/// The largest 99th percentile of the latency then, of that before.
const LARGEST_LATENCY: f64 = 1.2;
/// The least speed of the honest process beside the attacker then, of that before: its full speed.
const LEAST_SPEED: f64 = 0.99;

/// The outcome.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub cpus: u32,
    pub n: u32,
    /// The release of the kernel in all VMs.
    pub kernel: String,
    /// The measurements, by phase.
    pub phases: [Measured; PHASES.len()],
    /// Complaints of the kernels, with the VM's name in front.
    pub complaints: Vec<String>,
}

impl Outcome {
    /// Returns the server's throughput, the 99th percentile of its latency and the honest process's speed in
    /// a phase, of those before the attack.
    fn ratios(&self, phase: usize) -> [f64; 3] {
        let (now, before) = (&self.phases[phase], &self.phases[BEFORE]);
        let p99 = |measured: &Measured| measured.latencies.percentile(99) as f64;
        [
            now.requests_per_second / before.requests_per_second,
            p99(now) / p99(before),
            now.honest_per_second / before.honest_per_second,
        ]
    }

    pub(super) fn misses(&self) -> Vec<String> {
        let [throughput, latency, speed] = self.ratios(SUPPRESSED);
        let mut misses = Vec::new();
        // Said so that what is no number is a miss.
        let mut require = |is_met: bool, miss: String| {
            if !is_met {
                misses.push(miss);
            }
        };
        require(
            throughput >= LEAST_THROUGHPUT,
            format!("the server's throughput under suppression is {throughput:.3} of that before"),
        );
        require(
            latency <= LARGEST_LATENCY,
            format!("the 99th percentile under suppression is {latency:.3} times that before"),
        );
        require(
            speed >= LEAST_SPEED,
            format!("the honest process has {speed:.4} of its speed under suppression"),
        );
        let failures = self.phases[SUPPRESSED].failures;
        require(
            failures == 0,
            format!("{failures} requests fail under suppression"),
        );
        let complaints = self.complaints.iter();
        misses.extend(complaints.map(|line| format!("dmesg complains: {line}")));
        misses
    }

    /// Returns the rows of the table, one for each phase.
    fn rows(&self) -> Vec<[String; COLUMNS.len()]> {
        let row = |(phase, measured): (usize, &Measured)| {
            let [throughput, latency, speed] = self.ratios(phase);
            let ms = |percent| measured.latencies.percentile(percent) as f64 / 1e3;
            let verdict = match phase {
                SUPPRESSED if self.misses().is_empty() => "passed",
                SUPPRESSED => "missed",
                _ => "",
            };
            [
                self.cpus.to_string(),
                PHASES[phase].to_owned(),
                format!("{:.0}", measured.requests_per_second),
                format!("{throughput:.3}"),
                format!("{:.2}", ms(50)),
                format!("{:.2}", ms(99)),
                format!("{latency:.2}"),
                format!("{speed:.4}"),
                format!("{:.0}", measured.flood_per_second),
                measured.failures.to_string(),
                verdict.to_owned(),
            ]
        };
        self.phases.iter().enumerate().map(row).collect()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let phases = PHASES.iter().zip(&self.phases);
        let phases = phases.map(|(name, measured)| ((*name).to_owned(), measured.json()));
        let [throughput, latency, speed] = self.ratios(SUPPRESSED);
        json!({
            "cpus": self.cpus,
            "n": self.n,
            "kernel": self.kernel,
            "phases": phases.collect::<serde_json::Map<_, _>>(),
            "suppressed_of_before": {
                "throughput": throughput,
                "p99": latency,
                "honest_speed": speed,
            },
            "dmesg_complaints": self.complaints,
            "misses": self.misses(),
        })
    }
}

const COLUMNS: [&str; 11] = [
    "CPUs",
    "Phase",
    "Requests/s",
    "of before",
    "Median, ms",
    "p99, ms",
    "of before",
    "Honest process",
    "Flood, units/s",
    "Failed",
    "",
];

/// Returns the table.
pub(super) fn table<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Cells<{ COLUMNS.len() }> {
    Cells {
        titles: COLUMNS,
        rows: outcomes.flat_map(Outcome::rows).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(requests: u64, us: u64, honest: u64) -> Measured {
        let said = format!(
            "[client 1.000000] workload: t=5 counts=0\n\
             [infected 1.000000] workload: t=5 counts=0,0\n\
             [client 1.500000] workload: fetched us={us}\n\
             [client 2.000000] workload: t=6 counts={requests}\n\
             [infected 2.000000] workload: t=6 counts={honest},0\n"
        );
        Measured::read(&said).expect("a phase")
    }

    fn outcome(suppressed: Measured) -> Outcome {
        Outcome {
            cpus: 1,
            n: 1000,
            kernel: "6.1".to_owned(),
            phases: [
                phase(1000, 1000, 10_000),
                phase(300, 9000, 5000),
                suppressed,
                phase(300, 9000, 5000),
            ],
            complaints: Vec::new(),
        }
    }

    #[test]
    fn an_attack_that_nobody_feels_under_suppression_passes() {
        let outcome = outcome(phase(950, 1200, 9900));
        assert_eq!(outcome.misses(), Vec::<String>::new());
        assert_eq!(outcome.rows()[SUPPRESSED][10], "passed");
        assert_eq!(outcome.rows()[1][3], "0.300");
    }

    #[test]
    fn each_requirement_is_missed_by_itself() {
        for (suppressed, word) in [
            (phase(940, 1000, 10_000), "throughput"),
            (phase(1000, 1201, 10_000), "percentile"),
            (phase(1000, 1000, 9800), "honest"),
        ] {
            let misses = outcome(suppressed).misses();
            assert_eq!(misses.len(), 1, "{misses:?}");
            assert!(misses[0].contains(word), "{misses:?}");
        }
        let mut complains = outcome(phase(1000, 1000, 10_000));
        complains.complaints.push("web: BUG".to_owned());
        assert_eq!(complains.misses(), ["dmesg complains: web: BUG"]);
    }
}
