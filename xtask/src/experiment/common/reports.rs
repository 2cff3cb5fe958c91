//! The workload's reports, with the host time that tarpit puts in front of them; and what two of
//! them tell about speeds and clocks.

use std::sync::LazyLock;

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;

use crate::testbed::serial::Session;

/// The time between two reports of the workload, in seconds of guest time (its default).
pub const INTERVAL: f64 = 0.2;

/// A line `[debian   4.209327] workload: t=6416014944 counts=22974,40333,40150`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Host time of the line's first character, in microseconds since tarpit started.
    pub host_us: u64,
    /// The guest's `CLOCK_MONOTONIC`, in nanoseconds.
    pub guest_ns: u64,
    /// Units of work that each process has done.
    pub counts: Vec<u64>,
}

/// Returns a regular expression for the reports of VMs whose names match `names`. Its groups: the
/// name, seconds and microseconds of host time, the guest's time, the counts.
fn pattern(names: &str) -> String {
    format!(r"^\[({names}) +(\d+)\.(\d{{6}})\] workload: t=(\d+) counts=([\d,]+)$")
}

impl Report {
    /// Waits for the next report of the VM.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn next(session: &mut Session, vm: &str) -> Result<Self> {
        Ok(Self::next_of(session, &[vm])?.1)
    }

    /// Waits for the next report of any of these VMs, and tells the VM's index among them.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn next_of(session: &mut Session, vms: &[&str]) -> Result<(usize, Self)> {
        let names: Vec<String> = vms.iter().map(|vm| regex::escape(vm)).collect();
        let mut groups = session.wait_for_match(&pattern(&names.join("|")))?;
        let name = groups.remove(1);
        let vm = vms.iter().position(|vm| *vm == name);
        vm.zip(Self::from_groups(&groups))
            .with_context(|| format!("not a report: {groups:?}"))
    }

    /// Returns the reports of this VM in what was said.
    pub fn all_in(said: &str, vm: &str) -> Vec<Self> {
        static LINE: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(&format!("(?m){}", pattern(r"\S+"))).expect("a valid expression")
        });
        let lines = LINE.captures_iter(said).filter(|line| &line[1] == vm);
        lines
            .filter_map(|line| {
                let groups = [0, 2, 3, 4, 5].map(|group| line[group].to_owned());
                Self::from_groups(&groups)
            })
            .collect()
    }

    fn from_groups(groups: &[String]) -> Option<Self> {
        let [_, seconds, micros, guest, counts] = groups else {
            return None;
        };
        let seconds: u64 = seconds.parse().ok()?;
        Some(Self {
            host_us: seconds
                .checked_mul(1_000_000)?
                .checked_add(micros.parse().ok()?)?,
            guest_ns: guest.parse().ok()?,
            counts: counts
                .split(',')
                .map(|count| count.parse().ok())
                .collect::<Option<_>>()?,
        })
    }

    /// Returns the host seconds since tarpit started.
    pub fn host_seconds(&self) -> f64 {
        self.host_us as f64 / 1e6
    }
}

/// The speed of each process.
#[derive(Clone, Debug, PartialEq)]
pub struct Speeds {
    /// The host time over which they are measured, in seconds.
    pub host_seconds: f64,
    /// Units of work in a second of host time, by process.
    pub per_second: Vec<f64>,
}

impl Speeds {
    /// Returns the speeds between two reports.
    ///
    /// # Errors
    /// When no time lies between them, or they are of different processes.
    pub fn between(first: &Report, last: &Report) -> Result<Self> {
        let micros = last.host_us.saturating_sub(first.host_us);
        ensure!(micros > 0, "no time between two reports");
        if first.counts.len() != last.counts.len() {
            bail!("processes came or went: {first:?}, {last:?}");
        }
        let host_seconds = micros as f64 / 1e6;
        let done = first.counts.iter().zip(&last.counts);
        Ok(Self {
            host_seconds,
            per_second: done
                .map(|(&before, &after)| after.saturating_sub(before) as f64 / host_seconds)
                .collect(),
        })
    }

    /// Returns the speeds from the first of these reports to the last.
    ///
    /// # Errors
    /// As [`Self::between`], or when there are no reports.
    pub fn over(reports: &[Report]) -> Result<Self> {
        let (first, last) = reports.first().zip(reports.last()).context("no reports")?;
        Self::between(first, last)
    }

    /// Returns a process's speed, of that before.
    pub fn ratio(&self, process: usize, before: &Self) -> f64 {
        self.per_second[process] / before.per_second[process]
    }

    /// Returns the ratio that one unit of work makes: less cannot be told from nothing.
    pub fn resolution(&self, process: usize, before: &Self) -> f64 {
        1.0 / (self.host_seconds * before.per_second[process])
    }

    /// Returns [`Self::ratio`] for a table: where not a unit of work was done, what one would make.
    pub fn ratio_text(&self, process: usize, before: &Self) -> String {
        match self.ratio(process, before) {
            0.0 => format!("< {:.6}", self.resolution(process, before)),
            ratio => format!("{ratio:.6}"),
        }
    }

    /// Returns the process that has slowed down most since.
    pub fn most_slowed_since(&self, before: &Self) -> Option<usize> {
        let count = self.per_second.len().min(before.per_second.len());
        (0..count).min_by(|&a, &b| self.ratio(a, before).total_cmp(&self.ratio(b, before)))
    }

    /// Returns all processes together.
    pub fn sum(&self) -> f64 {
        self.per_second.iter().sum()
    }

    /// Returns all processes together but this one.
    pub fn sum_without(&self, process: usize) -> f64 {
        let others = self.per_second.iter().enumerate();
        others
            .filter(|&(index, _)| index != process)
            .map(|(_, speed)| speed)
            .sum()
    }
}

/// Returns how far the guest's clock runs from the host's, as a part of it: 0.001 is one
/// millisecond too fast a second. Reports are printed late by what the guest's scheduler and
/// console take, so the least late one at either end of the time counts.
///
/// # Errors
/// When there are fewer than two reports at either end.
pub fn clock_error(reports: &[Report]) -> Result<f64> {
    let quarter = reports.len() / 4;
    ensure!(quarter >= 2, "too few reports: {}", reports.len());
    let lateness = |report: &Report| report.host_us as f64 / 1e6 - report.guest_ns as f64 / 1e9;
    let least_late = |part: &[Report]| {
        let late = part.iter().map(|report| (lateness(report), report));
        late.min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(lateness, report)| (lateness, report.host_seconds()))
            .context("no reports")
    };
    let (early, from) = least_late(&reports[..quarter])?;
    let (late, to) = least_late(&reports[reports.len() - quarter..])?;
    Ok((early - late) / (to - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(host_us: u64, guest_ns: u64, counts: &[u64]) -> Report {
        Report {
            host_us,
            guest_ns,
            counts: counts.to_vec(),
        }
    }

    #[test]
    fn a_report_is_read_with_its_host_time() {
        let groups = ["", "4", "209327", "6416014944", "22974,40333"].map(str::to_owned);
        assert_eq!(
            Report::from_groups(&groups),
            Some(report(4_209_327, 6_416_014_944, &[22974, 40333]))
        );
        let bad = ["", "4", "209327", "6416014944", "22974,"].map(str::to_owned);
        assert_eq!(Report::from_groups(&bad), None);
    }

    #[test]
    fn all_reports_of_a_vm_are_found_among_other_lines() {
        let said = "[debian   1.000002] workload: t=5 counts=1\ntarpit> vms\n\
                    [other   1.000003] workload: t=6 counts=2\n\
                    [debian   2.500000] workload: t=7 counts=3,4\n";
        let expected = [report(1_000_002, 5, &[1]), report(2_500_000, 7, &[3, 4])];
        assert_eq!(Report::all_in(said, "debian"), expected);
    }

    #[test]
    fn speeds_are_by_host_time_not_by_the_guests_clock() -> Result<()> {
        let speeds = Speeds::between(
            &report(1_000_000, 0, &[100, 200, 300]),
            &report(3_000_000, 500, &[100, 260, 340]),
        )?;
        assert_eq!(speeds.per_second, [0.0, 30.0, 20.0]);
        assert_eq!(speeds.sum(), 50.0);
        assert_eq!(speeds.sum_without(1), 20.0);
        Ok(())
    }

    #[test]
    fn a_speed_is_told_in_parts_of_that_before_and_no_work_as_less_than_a_unit() {
        let speeds = |per_second: [f64; 2]| Speeds {
            host_seconds: 2.0,
            per_second: per_second.to_vec(),
        };
        let (before, during) = (speeds([1000.0, 1000.0]), speeds([0.0, 1250.0]));
        assert_eq!(during.most_slowed_since(&before), Some(0));
        assert_eq!(during.ratio_text(0, &before), "< 0.000500");
        assert_eq!(during.ratio_text(1, &before), "1.250000");
    }

    #[test]
    fn speeds_need_time_and_the_same_processes() {
        let first = report(5, 5, &[1, 2]);
        assert!(Speeds::between(&first, &first).is_err());
        assert!(Speeds::between(&first, &report(9, 9, &[1, 2, 3])).is_err());
    }

    /// Reports every 200 ms from a guest whose clock runs at `rate`, each late by what `lateness`
    /// gives in microseconds.
    fn reports(rate: f64, lateness: impl Fn(u64) -> u64) -> Vec<Report> {
        let one = |index: u64| {
            let host_us = 4_000_000 + index * 200_000;
            let guest_ns = (host_us as f64 * 1000.0 * rate) as u64;
            report(host_us + lateness(index), guest_ns, &[])
        };
        (0..20).map(one).collect()
    }

    #[test]
    fn a_clock_that_runs_wrong_is_found_out_however_late_the_reports_are() -> Result<()> {
        let jitter = |index: u64| [300, 9_000, 25_000, 700][index as usize % 4];
        for error in [0.0, 0.01, -0.002] {
            let found = clock_error(&reports(1.0 + error, jitter))?;
            assert!((found - error).abs() < 0.0003, "{found} for {error}");
        }
        Ok(())
    }

    #[test]
    fn too_few_reports_tell_no_clock_error() {
        assert!(clock_error(&reports(1.0, |_| 0)[..7]).is_err());
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::experiment::common::dmesg;
    use crate::test_text::text;

    #[test]
    fn reports_of_the_workload() {
        fuzzing::check!()
            .with_type::<(Vec<u8>, Vec<(u32, u64, Vec<u64>)>)>()
            .for_each(|(bytes, reports)| {
                let words = [
                    "[web  1.000000] ",
                    "workload: ",
                    "t=",
                    "counts=",
                    ",",
                    "\n",
                    "12",
                    "<4>",
                    "BUG:",
                ];
                let noise = text(bytes, &words);
                let line = |(us, ns, counts): &(u32, u64, Vec<u64>)| {
                    let counts: Vec<_> = counts.iter().map(u64::to_string).collect();
                    let (seconds, micros) = (us / 1_000_000, us % 1_000_000);
                    format!(
                        "[web {seconds:>3}.{micros:06}] workload: t={ns} counts={}\n",
                        counts.join(",")
                    )
                };
                let right: Vec<_> = reports
                    .iter()
                    .filter(|(_, _, counts)| !counts.is_empty())
                    .collect();
                let said: String = right.iter().map(|report| line(report)).collect();
                let found = Report::all_in(&said, "web");
                assert_eq!(found.len(), right.len());
                for (found, (us, ns, counts)) in found.iter().zip(right) {
                    assert_eq!((found.host_us, found.guest_ns), (u64::from(*us), *ns));
                    assert_eq!(found.counts, *counts);
                }
                assert!(Report::all_in(&said, "db").is_empty());
                let more = Report::all_in(&(said + "\n" + &noise), "web");
                assert!(more.len() >= found.len());
                for line in dmesg::complaints(&noise) {
                    assert!(noise.contains(&line));
                }
            });
    }
}
