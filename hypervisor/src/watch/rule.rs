//! What a rule says.

use alloc::vec::Vec;
use core::fmt;

use crate::numbers::decimal;
use crate::search::pattern::Pattern;
use crate::suppression::Factor;

/// The condition of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// A pattern in the memory of a process.
    Holds(Pattern),
    /// More CPU time than this, for so long.
    Hogs(Hog),
}

/// The CPU time that a process may have, and for how long it may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hog {
    /// The share, in percent of one CPU.
    pub percent: u32,
    /// The time, in seconds.
    pub seconds: u32,
}

impl Hog {
    /// The largest share, in percent.
    pub(crate) const MOST_PERCENT: u32 = 100 * crate::ids::MAX_VCPUS as u32;
    /// The longest time, in seconds.
    pub(crate) const MOST_SECONDS: u32 = 86_400;

    /// Returns one of numbers in digits.
    #[must_use]
    pub(crate) fn parse(percent: &str, seconds: &str) -> Option<Self> {
        let number =
            |digits: &str, most: u32| decimal(digits).filter(|number| (1..=most).contains(number));
        let percent = percent.strip_suffix('%').unwrap_or(percent);
        Some(Self {
            percent: number(percent, Self::MOST_PERCENT)?,
            seconds: number(seconds, Self::MOST_SECONDS)?,
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds(pattern) => write!(f, "{pattern}"),
            Self::Hogs(Hog { percent, seconds }) => write!(f, "hog {percent} % for {seconds} s"),
        }
    }
}

/// The consequence of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A message and an event.
    Tell,
    /// The suppression of the process, told as well.
    Suppress(Factor),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tell => f.write_str("tell"),
            Self::Suppress(factor) => write!(f, "suppress {}", factor.get()),
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The condition.
    pub condition: Condition,
    /// The consequence.
    pub action: Action,
    /// The values of CR3 of processes that it does not hold for.
    pub exceptions: Vec<u64>,
}

/// The reason why a word is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRule;

impl Rule {
    /// Returns the pattern that is looked for, if one is.
    #[must_use]
    pub(crate) const fn pattern(&self) -> Option<&Pattern> {
        match &self.condition {
            Condition::Holds(pattern) => Some(pattern),
            Condition::Hogs(_) => None,
        }
    }

    /// Parses the value of `watch=`: a pattern, and perhaps a comma and the factor of suppression.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn watch(value: &str) -> Result<Self, NoRule> {
        let (pattern, action) = match value.rsplit_once(',') {
            Some((pattern, factor)) => (pattern, suppress(factor)?),
            None => (value, Action::Tell),
        };
        Ok(Self {
            condition: Condition::Holds(Pattern::parse(pattern).map_err(|_| NoRule)?),
            action,
            exceptions: Vec::new(),
        })
    }

    /// Parses the value of `hog=`: percent, seconds, and perhaps the factor of suppression, separated by
    /// commas.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn hog(value: &str) -> Result<Self, NoRule> {
        let mut parts = value.splitn(3, ',');
        let percent = parts.next().ok_or(NoRule)?;
        let hog = Hog::parse(percent, parts.next().ok_or(NoRule)?).ok_or(NoRule)?;
        Ok(Self {
            condition: Condition::Hogs(hog),
            action: parts.next().map_or(Ok(Action::Tell), suppress)?,
            exceptions: Vec::new(),
        })
    }
}

fn suppress(factor: &str) -> Result<Action, NoRule> {
    let number = decimal(factor).ok_or(NoRule)?;
    Factor::new(number)
        .map(Action::Suppress)
        .map_err(|_| NoRule)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn shown(rule: Result<Rule, NoRule>) -> alloc::string::String {
        rule.map_or_else(
            |_| "no rule".into(),
            |rule| alloc::format!("{}: {}", rule.condition, rule.action),
        )
    }

    #[test]
    fn a_factor_has_no_sign() {
        assert_eq!(Rule::watch("EVIL,+5"), Err(NoRule));
        assert_eq!(Rule::hog("90,30,+5"), Err(NoRule));
    }

    #[test]
    fn rules_of_a_command_line() {
        for (value, expected) in [
            ("EVIL-42", "EVIL-42: tell"),
            ("EVIL-42,1000", "EVIL-42: suppress 1000"),
            ("0x4556494c,50", "EVIL: suppress 50"),
            ("a,b,7", "0x612c62: suppress 7"),
            ("", "no rule"),
            (",1000", "no rule"),
            ("x,0", "no rule"),
            ("x,", "no rule"),
            ("0x1", "no rule"),
        ] {
            assert_eq!(shown(Rule::watch(value)), expected, "{value}");
        }
        for (value, expected) in [
            ("90,30", "hog 90 % for 30 s: tell"),
            ("90%,30,1000", "hog 90 % for 30 s: suppress 1000"),
            ("90", "no rule"),
            ("0,30", "no rule"),
            ("+9,30", "no rule"),
            ("90,0", "no rule"),
            ("90,30,70000", "no rule"),
            ("801,1", "no rule"),
            ("1,86401", "no rule"),
        ] {
            assert_eq!(shown(Rule::hog(value)), expected, "{value}");
        }
        assert_eq!(Action::Tell.to_string(), "tell");
    }
}

#[cfg(test)]
mod fuzz {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;
    use crate::test_text::{Piece, line};

    #[test]
    fn rules_of_a_command_line() {
        fuzzing::check!()
            .with_type::<Vec<Piece>>()
            .for_each(|pieces| {
                let words = ["EVIL", ",", "%", "0x7f", "1000", "90", "+5", "-", "\"", "'"];
                let value = line(pieces, &words);
                if let Ok(rule) = Rule::watch(&value) {
                    let pattern = rule.pattern().unwrap();
                    // What is shown can be given again.
                    let again = match rule.action {
                        Action::Tell => format!("{pattern}"),
                        Action::Suppress(factor) => format!("{pattern},{}", factor.get()),
                    };
                    assert_eq!(Rule::watch(&again), Ok(rule.clone()), "{value}");
                    is_written_in_digits(&value, rule.action);
                }
                if let Ok(rule) = Rule::hog(&value) {
                    let Condition::Hogs(hog) = rule.condition else {
                        panic!("{value}: {rule:?}");
                    };
                    assert!((1..=Hog::MOST_PERCENT).contains(&hog.percent));
                    assert!((1..=Hog::MOST_SECONDS).contains(&hog.seconds));
                    is_written_in_digits(&value, rule.action);
                }
            });
    }

    fn is_written_in_digits(value: &str, action: Action) {
        if action != Action::Tell {
            let (_, factor) = value.rsplit_once(',').unwrap();
            assert!(
                factor.bytes().all(|digit| digit.is_ascii_digit()),
                "{value}"
            );
        }
    }
}
