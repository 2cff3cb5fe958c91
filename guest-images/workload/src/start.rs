//! What the command `start` asks for.

use crate::behaviors::{self, Behavior};
use crate::schedule::Schedule;

/// A process to be started: `BEHAVIOR [NAME=VALUE]...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The behavior of the process.
    pub behavior: &'static Behavior,
    /// The scheduling of the process: `sched=`, `nice=`, `cpu=`.
    pub schedule: Schedule,
    /// `n=N`: a number for the behavior; its own default if not given.
    pub number: Option<u32>,
    /// `unit=N`: rounds of the computation in one unit of work, where not as for all.
    pub unit: Option<u64>,
}

impl Start {
    /// Returns a process with this behavior, and nothing special about it.
    #[must_use]
    pub fn new(behavior: &'static Behavior) -> Self {
        Self {
            behavior,
            schedule: Schedule::default(),
            number: None,
            unit: None,
        }
    }

    /// Parses the words behind `start`; `None` where one is not understood.
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut start = Self::new(behaviors::by_name(words.next()?)?);
        for word in words {
            let (name, value) = word.split_once('=')?;
            match name {
                "n" => start.number = Some(value.parse().ok()?),
                "unit" => start.unit = Some(value.parse().ok().filter(|unit| *unit > 0)?),
                _ => start.schedule.set(name, value)?,
            }
        }
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Class;

    fn parse(line: &str) -> Option<Start> {
        Start::parse(line.split_whitespace())
    }

    #[test]
    fn a_behavior_may_have_settings() {
        let plain = Start::new(behaviors::by_name("yields").unwrap());
        assert_eq!(parse("yields"), Some(plain));
        let expected = Start {
            schedule: Schedule {
                class: Class::RoundRobin(9),
                nice: -3,
                cpu: Some(0),
            },
            number: Some(5),
            unit: Some(700),
            ..Start::new(behaviors::by_name("threads").unwrap())
        };
        let line = "threads cpu=0 n=5 sched=rr:9 unit=700 nice=-3";
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn what_is_not_understood_starts_nothing() {
        for line in ["", "none", "hog n=", "hog unit=0", "hog fast", "hog nice=x"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
