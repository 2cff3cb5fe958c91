//! A VM's exits, as `stats` counts them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::testbed::serial::Session;

/// Exits that come from outside the guest: the end of a VCPU's turn, and interrupts of the host.
const NOT_THE_GUESTS: [&str; 2] = ["preemption-timer", "external-interrupt"];

/// Exits by reason, and the ticks that tarpit has spent on all of them.
///
/// What a VCPU counts is published when it comes off its CPU: right for one that is halted, and up to
/// the end of its last turn for one that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::experiment) struct Exits {
    counts: BTreeMap<String, u64>,
    /// Ticks of the host's TSC.
    pub ticks: u64,
}

impl Exits {
    /// Asks tarpit how often `vm` has exited so far.
    ///
    /// # Errors
    /// When the answer is not that of `stats`.
    pub(in crate::experiment) fn of(session: &mut Session, vm: &str) -> Result<Self> {
        Self::from_answer(&session.query(&format!("stats {vm}"))?)
    }

    /// Makes some of one reason.
    #[cfg(test)]
    pub(in crate::experiment) fn with(reason: &str, count: u64) -> Self {
        Self {
            counts: [(reason.to_owned(), count)].into(),
            ticks: 0,
        }
    }

    fn from_answer(answer: &[Value]) -> Result<Self> {
        let mut exits = Self::default();
        for line in answer {
            let number = |name: &str| line[name].as_u64();
            let (what, count) = line["what"]
                .as_str()
                .zip(number("count"))
                .with_context(|| format!("not a line of `stats`: {line}"))?;
            if what == "all-exits" {
                exits.ticks = number("ticks").context("ticks are no number")?;
                // What is no reason comes behind the sum.
                return Ok(exits);
            }
            exits.counts.insert(what.to_owned(), count);
        }
        anyhow::bail!("`stats` tells no sum: {answer:?}")
    }

    /// Returns those since `before`.
    #[must_use]
    pub(in crate::experiment) fn since(&self, before: &Self) -> Self {
        let counts = self.counts.iter();
        Self {
            counts: counts
                .map(|(reason, count)| (reason.clone(), count - before.by(reason)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            ticks: self.ticks - before.ticks,
        }
    }

    /// Returns how many there are of this reason.
    pub(in crate::experiment) fn by(&self, reason: &str) -> u64 {
        self.counts.get(reason).copied().unwrap_or(0)
    }

    /// Returns how many there are.
    pub(in crate::experiment) fn all(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Returns how many the guest has caused.
    pub(in crate::experiment) fn of_guest(&self) -> u64 {
        let others = NOT_THE_GUESTS.iter().map(|reason| self.by(reason));
        self.all() - others.sum::<u64>()
    }

    /// Returns the counts by reason, the largest first.
    pub(in crate::experiment) fn by_reason(&self) -> Vec<(&str, u64)> {
        let counts = self.counts.iter();
        let mut all: Vec<_> = counts
            .map(|(reason, &count)| (reason.as_str(), count))
            .collect();
        all.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        all
    }

    /// Returns the counts as JSON.
    pub(in crate::experiment) fn json(&self) -> Value {
        serde_json::json!(self.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(io: u64, timer: u64, ticks: u64) -> Exits {
        let line = |what: &str, count: u64, ticks: u64| serde_json::json!({ "vm": "a", "what": what, "count": count, "ticks": ticks });
        let answer = [
            line("io-instruction", io, 1),
            line("preemption-timer", timer, 1),
            line("all-exits", io + timer, ticks),
            line("guest", io + timer, 7),
            line("vcpu0-on-cpu0", 3, 7),
        ];
        Exits::from_answer(&answer).expect("an answer")
    }

    #[test]
    fn what_is_no_reason_is_left_out() {
        let exits = exits(5, 9, 100);
        assert_eq!(
            exits.by_reason(),
            [("preemption-timer", 9), ("io-instruction", 5)]
        );
        assert_eq!((exits.all(), exits.ticks), (14, 100));
        assert!(Exits::from_answer(&[]).is_err());
    }

    #[test]
    fn only_what_the_guest_causes_is_its_own() {
        let since = exits(12, 9, 130).since(&exits(5, 2, 100));
        assert_eq!((since.all(), since.of_guest(), since.ticks), (14, 7, 30));
        assert_eq!(
            exits(5, 9, 1).since(&exits(5, 2, 0)).by("io-instruction"),
            0
        );
    }
}
