//! What is seen of a guest while time passes: its own lines, and tarpit's answers.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;
use serde_json::Value;

use crate::experiment::common::reports::{Report, Speeds};

/// A `sleeper`'s line: it has woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wake {
    /// Host time of the line's first character, in microseconds.
    pub host_us: u64,
    /// The guest's `CLOCK_MONOTONIC` when it woke, in nanoseconds.
    pub guest_ns: u64,
    /// The lateness of the wake, in nanoseconds of guest time.
    pub late_ns: u64,
}

/// The time that the guest's clock has come to, as tarpit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClockSample {
    /// Host time, in microseconds.
    pub host_us: u64,
    /// The guest's counter, in microseconds of guest time.
    pub guest_us: u64,
}

impl ClockSample {
    /// Reads it from the line of this VM that `vms` answers.
    fn read(answer: &[Value], vm: &str) -> Option<Self> {
        let line = answer.iter().find(|line| line["vm"] == vm)?;
        Some(Self {
            host_us: line["host_us"].as_u64()?,
            guest_us: line["guest_us"].as_u64()?,
        })
    }

    /// Returns guest time minus host time, in milliseconds, from an origin of its own.
    pub(super) fn difference_ms(&self) -> f64 {
        (self.guest_us as f64 - self.host_us as f64) / 1000.0
    }
}

/// The CPU time that the targets have used so far, as tarpit counts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CpuSample {
    /// Host time, in microseconds.
    pub host_us: u64,
    /// CPU time of all targets together, in microseconds.
    pub cpu_us: f64,
    /// The most that the guest's clock was ahead while it was to be fast, in milliseconds, if it is told.
    pub highest_lead_ms: Option<f64>,
    /// The most CPU time that any of the targets has had in any second of its suppression, as a part of a CPU,
    /// if tarpit tells.
    pub highest_share: Option<f64>,
}

/// A neighbor VM's line: units of work done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MeterReading {
    /// Host time of the line's first character, in microseconds.
    pub host_us: u64,
    /// Units of work done so far.
    pub units: u64,
}

/// All that was seen, in the order of host time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Observation {
    pub reports: Vec<Report>,
    pub wakes: Vec<Wake>,
    pub meter: Vec<MeterReading>,
    pub clock: Vec<ClockSample>,
    pub cpu: Vec<CpuSample>,
    /// The workload's processes that have ended, by index.
    pub ended: Vec<usize>,
}

/// Some host time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub from: u64,
    pub to: u64,
}

impl Span {
    /// Returns whether `host_us` lies in it.
    pub(super) fn has(self, host_us: u64) -> bool {
        (self.from..=self.to).contains(&host_us)
    }

    /// Returns its length in seconds.
    pub(super) fn seconds(self) -> f64 {
        self.to.saturating_sub(self.from) as f64 / 1e6
    }
}

impl Observation {
    /// Takes note of what the console said: lines of guests, whatever else lies between them.
    pub(super) fn hear(&mut self, said: &str, vm: &str, meter: &str) {
        static LINE: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(
                r"(?m)^\[(\S+) +(\d+)\.(\d{6})\] (?:workload: woke t=(\d+) late=(\d+)|meter: units=(\d+)|workload: process (\d+) pid \d+ ended .*)$",
            )
            .expect("a valid expression")
        });
        self.reports.extend(Report::all_in(said, vm));
        for line in LINE.captures_iter(said) {
            let number = |group: usize| line.get(group)?.as_str().parse::<u64>().ok();
            let Some((seconds, micros)) = number(2).zip(number(3)) else {
                continue;
            };
            let host_us = seconds * 1_000_000 + micros;
            if let (Some((guest_ns, late_ns)), true) = (number(4).zip(number(5)), &line[1] == vm) {
                self.wakes.push(Wake {
                    host_us,
                    guest_ns,
                    late_ns,
                });
            }
            if let (Some(index), true) = (number(7), &line[1] == vm) {
                self.ended.push(index as usize);
            }
            if let (Some(units), true) = (number(6), &line[1] == meter) {
                self.meter.push(MeterReading { host_us, units });
            }
        }
    }

    /// Takes note of what `vms` answered, and gives the host time of it.
    ///
    /// # Errors
    /// When the answer lacks the VM or its clock.
    pub(super) fn take_vms(&mut self, answer: &[Value], vm: &str) -> Result<u64> {
        let sample = ClockSample::read(answer, vm)
            .with_context(|| format!("`vms` does not tell {vm}'s clock: {answer:?}"))?;
        self.clock.push(sample);
        Ok(sample.host_us)
    }

    /// Returns the speeds of the workload's processes over a span.
    ///
    /// # Errors
    /// When it has not two reports of the same processes.
    pub(super) fn speeds(&self, span: Span) -> Result<Speeds> {
        let within: Vec<&Report> = self
            .reports
            .iter()
            .filter(|report| span.has(report.host_us))
            .collect();
        let (first, last) = within.first().zip(within.last()).context("no reports")?;
        Speeds::between(first, last)
    }

    /// Returns the neighbor's units a second over a span; `None` without two of its lines.
    pub(super) fn neighbor_speed(&self, span: Span) -> Option<f64> {
        let mut within = self.meter.iter().filter(|it| span.has(it.host_us));
        let first = within.next()?;
        let last = within.next_back()?;
        let seconds = last.host_us.saturating_sub(first.host_us) as f64 / 1e6;
        (seconds > 0.0).then(|| last.units.saturating_sub(first.units) as f64 / seconds)
    }

    /// Returns the targets' part of a CPU over a span; `None` without two samples.
    pub(super) fn cpu_share(&self, span: Span) -> Option<f64> {
        let mut within = self.cpu.iter().filter(|it| span.has(it.host_us));
        let first = within.next()?;
        share_between(first, within.next_back()?)
    }

    /// Returns the largest part of a CPU that a target had over any second of a span: as tarpit has counted, whose
    /// seconds begin everywhere and include up to a sixteenth before them, or else as the samples lie,
    /// over a little more than a second, or all of the span where it is shorter; then of all targets together.
    pub(super) fn worst_cpu_share(&self, span: Span) -> Option<f64> {
        const SECOND: u64 = 1_000_000;
        let within: Vec<&CpuSample> = self.cpu.iter().filter(|it| span.has(it.host_us)).collect();
        let counted = within.iter().filter_map(|it| it.highest_share);
        if let Some(highest) = counted.max_by(f64::total_cmp) {
            return Some(highest);
        }
        let over_a_second = within.iter().enumerate().filter_map(|(at, first)| {
            let is_over = |later: &&&CpuSample| later.host_us >= first.host_us + SECOND;
            share_between(first, within[at..].iter().find(is_over)?)
        });
        over_a_second
            .max_by(f64::total_cmp)
            .or_else(|| self.cpu_share(span))
    }

    /// Returns the most that the guest's clock was ahead by a span's samples, in milliseconds; zero where
    /// that is not told.
    pub(super) fn highest_lead_ms(&self, span: Span) -> f64 {
        let within = self.cpu.iter().filter(|it| span.has(it.host_us));
        within
            .filter_map(|it| it.highest_lead_ms)
            .fold(0.0, f64::max)
    }

    /// Returns the wakes in a span.
    pub(super) fn wakes_in(&self, span: Span) -> Vec<Wake> {
        let wakes = self.wakes.iter().copied();
        wakes.filter(|wake| span.has(wake.host_us)).collect()
    }
}

fn share_between(first: &CpuSample, last: &CpuSample) -> Option<f64> {
    let micros = last.host_us.checked_sub(first.host_us)?;
    (micros > 0).then(|| (last.cpu_us - first.cpu_us) / micros as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SAID: &str = "\
[debian   1.000100] workload: t=500000000 counts=10,20
vms --json
[meter   1.050000] meter: units=7
[debian   1.100000] workload: woke t=600000000 late=52000
[debian   1.100400] workload: process 3 pid 78 ended status 0
[other   1.100500] workload: woke t=600000000 late=52000
{\"vm\":\"debian\"}
[debian   2.000100] workload: t=1500000000 counts=30,70
[meter   2.050000] meter: units=107
";

    fn seen() -> Observation {
        let mut seen = Observation::default();
        seen.hear(SAID, "debian", "meter");
        seen
    }

    #[test]
    fn lines_of_both_vms_are_read_with_their_host_times() {
        let seen = seen();
        assert_eq!(seen.reports.len(), 2);
        let wake = Wake {
            host_us: 1_100_000,
            guest_ns: 600_000_000,
            late_ns: 52_000,
        };
        assert_eq!(seen.wakes, [wake], "and not the other VM's");
        assert_eq!(seen.ended, [3]);
        let all = Span {
            from: 0,
            to: 3_000_000,
        };
        assert_eq!(seen.neighbor_speed(all), Some(100.0));
        assert_eq!(seen.speeds(all).expect("speeds").per_second, [20.0, 50.0]);
        let early = Span {
            from: 0,
            to: 1_500_000,
        };
        assert!(seen.speeds(early).is_err());
        assert_eq!(seen.neighbor_speed(early), None);
    }

    #[test]
    fn the_clock_is_that_of_the_vm_that_is_asked_about() -> Result<()> {
        let answer = [
            json!({"vm": "meter", "host_us": 5, "guest_us": 1}),
            json!({"vm": "debian", "host_us": 2_000_000, "guest_us": 1_950_000}),
        ];
        let mut seen = Observation::default();
        assert_eq!(seen.take_vms(&answer, "debian")?, 2_000_000);
        assert_eq!(seen.clock[0].difference_ms(), -50.0);
        assert!(seen.take_vms(&answer[..1], "debian").is_err());
        Ok(())
    }

    /// A target that uses `per_ms` microseconds in each millisecond, but five times as many from
    /// 1.0 to 1.2 s.
    fn usage(per_ms: f64) -> Observation {
        let mut cpu_us = 0.0;
        let cpu = (0..=30).map(|step| {
            let sample = CpuSample {
                host_us: step * 100_000,
                cpu_us,
                highest_lead_ms: Some(cpu_us / 100.0),
                highest_share: None,
            };
            cpu_us += 100.0 * per_ms * if (10..12).contains(&step) { 5.0 } else { 1.0 };
            sample
        });
        Observation {
            cpu: cpu.collect(),
            ..Observation::default()
        }
    }

    #[test]
    fn the_worst_second_is_found_wherever_it_begins() {
        let all = Span {
            from: 0,
            to: 3_000_000,
        };
        let seen = usage(1.0);
        let worst = seen.worst_cpu_share(all).expect("samples");
        assert!((worst - 0.0018).abs() < 1e-9, "{worst}");
        let whole = seen.cpu_share(all).expect("samples");
        assert!((whole - 0.0038 / 3.0).abs() < 1e-9, "{whole}");
        let short = Span {
            from: 0,
            to: 500_000,
        };
        assert_eq!(seen.worst_cpu_share(short), seen.cpu_share(short));
        assert_eq!(seen.cpu_share(Span { from: 0, to: 0 }), None);
    }

    #[test]
    fn the_worst_second_is_what_tarpit_has_counted_if_it_tells() {
        let all = Span {
            from: 0,
            to: 3_000_000,
        };
        let mut seen = usage(1.0);
        for (sample, highest) in seen.cpu.iter_mut().zip(0_u32..) {
            sample.highest_share = Some(f64::from(highest.min(4)) / 1000.0);
        }
        assert_eq!(seen.worst_cpu_share(all), Some(0.004));
    }
}
