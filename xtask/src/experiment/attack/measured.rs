//! What a phase of the attack was like, from what the client and the infected VM said meanwhile.

use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde_json::json;

use super::{CLIENT, FLOODER, HONEST, INFECTED};
use crate::experiment::common::reports::{Report, Speeds};

/// The latencies of some requests, in microseconds of the client's time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Latencies {
    ascending: Vec<u64>,
}

impl Latencies {
    fn of(mut latencies: Vec<u64>) -> Self {
        latencies.sort_unstable();
        Self {
            ascending: latencies,
        }
    }

    /// Returns the latency that so many percent of the requests did not exceed. Zero without a request.
    pub(super) fn percentile(&self, percent: usize) -> u64 {
        let rank = (self.ascending.len() * percent).div_ceil(100).max(1);
        self.ascending.get(rank - 1).copied().unwrap_or(0)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "requests": self.ascending.len(),
            "p50": self.percentile(50),
            "p90": self.percentile(90),
            "p99": self.percentile(99),
            "max": self.percentile(100),
        })
    }
}

/// A moment of a phase, for the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moment {
    /// Host seconds since tarpit started.
    pub at: f64,
    pub requests_per_second: f64,
    /// The median and the 99th percentile of the latencies that were told until then, in milliseconds;
    /// nothing where none was.
    pub latency_ms: Option<[f64; 2]>,
    pub honest_per_second: f64,
}

/// A phase.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub seconds: f64,
    pub requests_per_second: f64,
    pub latencies: Latencies,
    /// Requests that failed or were refused.
    pub failures: usize,
    /// Units of the honest process's work a second.
    pub honest_per_second: f64,
    /// Units of the flooder's work a second; zero where there is none.
    pub flood_per_second: f64,
    pub moments: Vec<Moment>,
}

impl Measured {
    /// Reads a phase from all that was said in it.
    ///
    /// # Errors
    /// When one of the VMs did not report twice.
    pub(super) fn read(said: &str) -> Result<Self> {
        let client = Report::all_in(said, CLIENT);
        let infected = Report::all_in(said, INFECTED);
        let requests = Speeds::over(&client).context("the client")?;
        let work = Speeds::over(&infected).context("the infected VM")?;
        let speed = |speeds: &Speeds, process: usize| speeds.per_second.get(process).copied();
        let told = told(said);
        let latencies: Vec<u64> = told.iter().flat_map(|(_, times)| times).copied().collect();
        ensure!(!latencies.is_empty(), "the client tells no latency");
        Ok(Self {
            seconds: requests.host_seconds,
            requests_per_second: speed(&requests, 0).context("the client does not count")?,
            latencies: Latencies::of(latencies),
            failures: said.matches("workload: fetch failed").count()
                + said.matches("workload: fetch refused").count(),
            honest_per_second: speed(&work, HONEST).context("nobody works")?,
            flood_per_second: speed(&work, FLOODER).unwrap_or(0.0),
            moments: moments(&client, &infected, &told),
        })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let moments = self.moments.iter().map(|moment| {
            json!({
                "at": moment.at,
                "requests_per_second": moment.requests_per_second,
                "p50_p99_ms": moment.latency_ms,
                "honest_units_per_second": moment.honest_per_second,
            })
        });
        json!({
            "seconds": self.seconds,
            "requests_per_second": self.requests_per_second,
            "latency_us": self.latencies.json(),
            "failures": self.failures,
            "honest_units_per_second": self.honest_per_second,
            "flood_units_per_second": self.flood_per_second,
            "over_time": moments.collect::<Vec<_>>(),
        })
    }
}

/// Returns the latencies that the client has told, with the host time of each line in seconds.
fn told(said: &str) -> Vec<(f64, Vec<u64>)> {
    static LINE: LazyLock<Regex> = LazyLock::new(|| {
        let line = format!(r"(?m)^\[{CLIENT} +(\d+\.\d{{6}})\] workload: fetched us=([\d,]+)$");
        Regex::new(&line).expect("a valid expression")
    });
    let line = |line: regex::Captures<'_>| {
        let times = line[2].split(',').map(|time| time.parse().ok());
        Some((line[1].parse().ok()?, times.collect::<Option<_>>()?))
    };
    LINE.captures_iter(said).filter_map(line).collect()
}

/// Returns a moment for each report of the client but the first.
fn moments(client: &[Report], infected: &[Report], told: &[(f64, Vec<u64>)]) -> Vec<Moment> {
    let moment = |pair: &[Report]| {
        let [first, last] = pair else { return None };
        let (from, at) = (first.host_seconds(), last.host_seconds());
        let requests = Speeds::between(first, last).ok()?;
        // The two reports of the other VM that are about this moment.
        let next = infected
            .iter()
            .position(|report| report.host_seconds() >= at)
            .unwrap_or(infected.len().saturating_sub(1));
        let work = infected.get(next.checked_sub(1)?).zip(infected.get(next))?;
        // The flooder may have come in between.
        let honest = |report: &Report| report.counts.get(HONEST).copied();
        let units = honest(work.1)?.saturating_sub(honest(work.0)?);
        let seconds = work.1.host_seconds() - work.0.host_seconds();
        let times = told.iter().filter(|(told, _)| from < *told && *told <= at);
        let latencies = Latencies::of(times.flat_map(|(_, times)| times).copied().collect());
        let ms = |percent| latencies.percentile(percent) as f64 / 1e3;
        Some(Moment {
            at,
            requests_per_second: requests.per_second.first().copied()?,
            latency_ms: (!latencies.ascending.is_empty()).then(|| [ms(50), ms(99)]),
            honest_per_second: units as f64 / seconds,
        })
    };
    client.windows(2).filter_map(moment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
[client  10.000000] workload: t=5 counts=100
[infected  10.010000] workload: t=5 counts=1000,7
[client  10.100000] workload: fetched us=500,300,400,9000
[infected  10.110000] workload: t=6 counts=2000,17
[client  10.150000] workload: fetch failed: ETIMEDOUT
[client  10.200000] workload: t=6 counts=120
[web  10.205000] workload: t=6 counts=1
[infected  10.210000] workload: t=7 counts=3000,27
tarpit> [client  10.300000] workload: fetched us=1
";

    #[test]
    fn a_phase_is_read_from_what_both_vms_say() -> Result<()> {
        let measured = Measured::read(SAID)?;
        assert!((measured.requests_per_second - 100.0).abs() < 1e-6);
        assert!((measured.honest_per_second - 10_000.0).abs() < 1e-6);
        assert!((measured.flood_per_second - 100.0).abs() < 1e-6);
        assert_eq!(measured.failures, 1);
        assert_eq!(measured.latencies.percentile(50), 400);
        let [moment] = measured.moments[..] else {
            panic!("{:?}", measured.moments)
        };
        assert_eq!(moment.at, 10.2);
        assert_eq!(moment.latency_ms, Some([0.4, 9.0]));
        assert!((moment.honest_per_second - 10_000.0).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn a_percentile_is_the_least_latency_that_so_many_do_not_exceed() {
        let latencies = Latencies::of((1..=200).rev().collect());
        assert_eq!(latencies.percentile(50), 100);
        assert_eq!(latencies.percentile(99), 198);
        assert_eq!(latencies.percentile(100), 200);
        assert_eq!(Latencies::of(vec![7]).percentile(1), 7);
        assert_eq!(Latencies::default().percentile(99), 0);
    }

    #[test]
    fn without_reports_or_latencies_there_is_no_result() {
        assert!(Measured::read("").is_err());
        let silent = SAID.replace("fetched", "forgot");
        assert!(Measured::read(&silent).is_err());
        // One without the flooder is one.
        let before = SAID.replace(",7\n", "\n").replace(",17\n", "\n");
        let before = before.replace(",27\n", "\n");
        assert_eq!(
            Measured::read(&before).map(|it| it.flood_per_second).ok(),
            Some(0.0)
        );
    }
}
