//! The guest's clock against the host's: how far off, how fast, and whether two sources agree.
//!
//! One source is tarpit's answer to `vms`, which gives both clocks of the same moment, with the largest
//! lead in between that `targets` tells. The other does not depend on what tarpit believes: the guest
//! prints what its clock shows, and the line is stamped with host time when its first character comes out. Such a line is late by what the guest needs to
//! print it, never early: it shows the clock ahead by at most as much as it is.

use serde_json::{Value, json};

use super::observation::{ClockSample, Observation, Span};

/// The error of the guest's clock while something was suppressed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ClockError {
    /// The largest of its errors, in milliseconds of guest time, ahead if positive; by `vms`.
    pub largest_ms: f64,
    /// The most that it is ahead by the guest's own lines, in milliseconds.
    pub reported_ms: f64,
    /// The most that it is ahead by what tarpit remembers, in milliseconds.
    pub counted_ms: f64,
    /// The speed of the clock over the whole span, as a multiple of real time's.
    pub rate: f64,
    /// The average by which it was further ahead in the last third of the span than in the first,
    /// in milliseconds.
    pub drift_ms: f64,
    /// Its error one second after the release, in milliseconds.
    pub released_ms: f64,
    /// The length of the suppression, in seconds.
    pub suppressed_seconds: f64,
    /// Times since the beginning of the suppression in seconds, and errors in milliseconds: by `vms`.
    pub curve: Vec<(f64, f64)>,
    /// The same by the guest's own lines.
    pub reported_curve: Vec<(f64, f64)>,
}

/// The difference of the two clocks where the guest's is right: by `vms`, and by the guest's lines.
#[derive(Clone, Copy, Debug)]
struct Origin {
    answered_ms: f64,
    reported_ms: f64,
}

impl ClockError {
    /// Makes it from what was seen `before` the suppression, while it was on (`during`), and up to
    /// the second after the release (`released`); `None` where something was not sampled.
    pub(super) fn of(
        seen: &Observation,
        before: Span,
        during: Span,
        released: Span,
    ) -> Option<Self> {
        let origin = Origin {
            answered_ms: mean(differences(seen, before).map(|(_, ms)| ms))?,
            // The line that was least late.
            reported_ms: reported(seen, before)
                .map(|(_, ms)| ms)
                .max_by(f64::total_cmp)?,
        };
        let since = |host_us: u64| (host_us as f64 - during.from as f64) / 1e6;
        let all = Span {
            from: before.from,
            to: released.to,
        };
        let curve: Vec<(f64, f64)> = differences(seen, all)
            .map(|(host_us, ms)| (since(host_us), ms - origin.answered_ms))
            .collect();
        let reported_curve: Vec<(f64, f64)> = reported(seen, all)
            .map(|(host_us, ms)| (since(host_us), ms - origin.reported_ms))
            .collect();
        let length = during.seconds();
        let within = |curve: &[(f64, f64)], from: f64, to: f64| -> Vec<(f64, f64)> {
            let points = curve.iter().copied();
            points.filter(|(at, _)| (from..=to).contains(at)).collect()
        };
        let suppressed = within(&curve, 0.0, length);
        let (first, last) = suppressed.first().zip(suppressed.last())?;
        let errors = |points: &[(f64, f64)]| points.iter().map(|&(_, ms)| ms).collect::<Vec<_>>();
        let third = length / 3.0;
        Some(Self {
            largest_ms: errors(&suppressed)
                .into_iter()
                .max_by(|a, b| a.abs().total_cmp(&b.abs()))?,
            reported_ms: errors(&within(&reported_curve, 0.0, length))
                .into_iter()
                .max_by(f64::total_cmp)?,
            counted_ms: seen.highest_lead_ms(during),
            rate: 1.0 + (last.1 - first.1) / 1000.0 / (last.0 - first.0),
            drift_ms: mean(errors(&within(&curve, length - third, length)).into_iter())?
                - mean(errors(&within(&curve, 0.0, third)).into_iter())?,
            released_ms: curve.last()?.1,
            suppressed_seconds: length,
            curve,
            reported_curve,
        })
    }

    /// Returns how far it was off at most, ahead or behind, by any of the sources, in milliseconds.
    pub(super) fn most_off_ms(&self) -> f64 {
        let ahead = self.reported_ms.max(self.counted_ms);
        self.largest_ms.abs().max(ahead)
    }

    /// Returns it as JSON, for programs.
    pub(super) fn json(&self) -> Value {
        let points = |curve: &[(f64, f64)]| -> Vec<[f64; 2]> {
            let rounded = |value: f64| (value * 1e4).round() / 1e4;
            curve
                .iter()
                .map(|&(at, ms)| [rounded(at), rounded(ms)])
                .collect()
        };
        json!({
            "largest_error_ms": self.largest_ms,
            "furthest_ahead_by_reports_ms": self.reported_ms,
            "furthest_ahead_by_targets_ms": self.counted_ms,
            "rate": self.rate,
            "drift_ms": self.drift_ms,
            "suppressed_seconds": self.suppressed_seconds,
            "error_one_second_after_release_ms": self.released_ms,
            "error_ms_by_seconds": points(&self.curve),
            "error_ms_by_seconds_by_reports": points(&self.reported_curve),
        })
    }
}

/// Returns host times and what the clocks differ by then, as tarpit answers.
fn differences(seen: &Observation, span: Span) -> impl Iterator<Item = (u64, f64)> {
    let samples = seen.clock.iter();
    let within = samples.filter(move |sample| span.has(sample.host_us));
    within.map(|sample| (sample.host_us, ClockSample::difference_ms(sample)))
}

/// Returns the same as the guest reports it.
fn reported(seen: &Observation, span: Span) -> impl Iterator<Item = (u64, f64)> {
    let reports = seen.reports.iter();
    let within = reports.filter(move |report| span.has(report.host_us));
    within.map(|report| {
        let ahead_ns = report.guest_ns as f64 - report.host_us as f64 * 1000.0;
        (report.host_us, ahead_ns / 1e6)
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::common::reports::Report;

    const BEFORE: Span = Span {
        from: 0,
        to: 990_000,
    };
    const DURING: Span = Span {
        from: 1_000_000,
        to: 4_000_000,
    };
    const RELEASED: Span = Span {
        from: 4_000_000,
        to: 5_000_000,
    };

    /// A guest that booted at host time 0.2 s, whose clock is ahead by `lead` (ms) at a host time
    /// (us). Its lines are late by 0 to 8 ms.
    fn seen(lead: impl Fn(u64) -> f64) -> Observation {
        let mut seen = Observation::default();
        for step in 0..=500 {
            let host_us = step * 10_000;
            let guest_us = 50_000_000.0 + host_us as f64 + lead(host_us) * 1000.0;
            seen.clock.push(ClockSample {
                host_us,
                guest_us: guest_us as u64,
            });
            if step % 10 == 0 {
                seen.reports.push(Report {
                    host_us: host_us + [0, 8_000, 300][step as usize / 10 % 3],
                    guest_ns: (guest_us * 1000.0) as u64 - 200_000_000,
                    counts: Vec::new(),
                });
            }
        }
        seen
    }

    fn error(lead: impl Fn(u64) -> f64) -> ClockError {
        ClockError::of(&seen(lead), BEFORE, DURING, RELEASED).expect("samples")
    }

    #[test]
    fn a_clock_that_keeps_time_has_no_error_however_late_the_lines_are() {
        let error = error(|_| 0.0);
        assert!(error.largest_ms.abs() < 0.01, "{error:?}");
        assert!(error.reported_ms.abs() < 0.01, "{error:?}");
        assert!((error.rate - 1.0).abs() < 1e-6);
        assert!(error.released_ms.abs() < 0.01);
    }

    #[test]
    fn a_clock_that_runs_away_is_told_with_its_rate() {
        let lead = |host_us: u64| host_us.clamp(1_000_000, 4_000_000) as f64 / 2000.0;
        let error = error(lead);
        assert!((error.largest_ms - 1500.0).abs() < 0.1, "{error:?}");
        assert!((1440.0..=1500.0).contains(&error.reported_ms), "{error:?}");
        assert!((error.rate - 1.5).abs() < 1e-3);
        assert!((error.drift_ms - 1000.0).abs() < 10.0);
        assert!((error.released_ms - 1500.0).abs() < 0.1);
    }

    #[test]
    fn a_clock_that_swings_has_an_error_but_no_drift() {
        // A saw tooth of 12 ms, 10 high.
        let lead = |host_us: u64| match host_us {
            1_000_000..4_000_000 => 10.0 - (host_us / 1000 % 12) as f64 * 10.0 / 12.0,
            _ => 0.0,
        };
        let error = error(lead);
        assert!((error.largest_ms - 10.0).abs() < 1.0, "{error:?}");
        assert!(error.drift_ms.abs() < 0.5);
        assert!(error.released_ms.abs() < 0.01);
    }

    #[test]
    fn a_clock_behind_has_an_error_too() {
        let lead = |host_us: u64| if host_us > 2_000_000 { -30.0 } else { 3.0 };
        assert!((error(lead).largest_ms + 33.0).abs() < 0.1);
    }

    #[test]
    fn without_samples_nothing_is_claimed() {
        let mut seen = seen(|_| 0.0);
        seen.reports.clear();
        assert_eq!(ClockError::of(&seen, BEFORE, DURING, RELEASED), None);
    }
}
