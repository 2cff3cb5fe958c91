//! How far an experiment is, and how much longer it takes: emulated time passes at about the same
//! pace all along, so what was measured so far tells about the rest.

use std::time::{Duration, Instant};

use crate::testbed::progress::Step;

/// An experiment that is under way.
pub struct Countdown {
    name: String,
    step: Step,
    began: Instant,
    /// Host seconds that it takes in all.
    whole: f64,
    /// Host seconds that have passed.
    passed: f64,
    phase: String,
}

impl Countdown {
    /// Makes an experiment that takes about `whole` host seconds; `name` is put before what it
    /// says.
    pub fn begin(name: &str, what: &str, whole: f64) -> Self {
        Self {
            name: name.to_owned(),
            step: Step::begin(what),
            began: Instant::now(),
            whole,
            passed: 0.0,
            phase: String::new(),
        }
    }

    /// Begins tarpit's time now.
    pub fn restart(&mut self) {
        self.began = Instant::now();
    }

    /// Begins a phase.
    pub fn phase(&mut self, what: &str) {
        what.clone_into(&mut self.phase);
        self.show();
        let left = self.left_text();
        self.step.note(&format!("{}: {what}{left}", self.name));
    }

    /// Sets what host time is now, in seconds since tarpit started.
    pub fn at(&mut self, host_seconds: f64) {
        self.passed = host_seconds;
        self.show();
    }

    /// Shows for a while something that has happened.
    pub fn detail(&self, what: &str) {
        self.step.detail(what);
    }

    fn show(&self) {
        let left = self.left_text();
        self.step.detail(format!("{}{left}", self.phase));
    }

    fn left_text(&self) -> String {
        left(self.began.elapsed(), self.passed, self.whole).map_or_else(String::new, |left| {
            format!(" (about {} s left)", left.as_secs())
        })
    }
}

/// Returns how much longer it takes, where so much of the host time that it takes has passed.
fn left(elapsed: Duration, passed: f64, whole: f64) -> Option<Duration> {
    let pace = elapsed.as_secs_f64() / passed;
    Duration::try_from_secs_f64(pace * (whole - passed).max(0.0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_what_has_passed() {
        let left = left(Duration::from_secs(40), 4.0, 14.0);
        assert_eq!(left, Some(Duration::from_secs(100)));
    }

    #[test]
    fn before_anything_has_passed_nothing_is_promised() {
        assert_eq!(left(Duration::from_secs(1), 0.0, 10.0), None);
        assert_eq!(left(Duration::from_secs(9), 9.0, 5.0), Some(Duration::ZERO));
    }
}
