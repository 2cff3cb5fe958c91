//! What checks and tests came to, added up.

use std::fmt;
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;

/// The numbers of checks that passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) skipped: u32,
}

impl Tally {
    /// One that passed.
    pub(super) const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    /// One that failed.
    pub(super) const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    /// Makes one that was skipped, which the user is told with the reason.
    pub(super) fn skipped(name: &str, why: &str) -> Self {
        eprintln!("{name}: skipped, {why}");
        Self {
            skipped: 1,
            ..Self::default()
        }
    }

    /// Adds what something else came to.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Returns the counts in a line of libtest's that begins with "test result:".
    pub(super) fn from_line(line: &str) -> Option<Self> {
        static RESULT: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"^test result: .* (\d+) passed; (\d+) failed; (\d+) ignored")
                .expect("a valid expression")
        });
        let (_, [passed, failed, skipped]) = RESULT.captures(line)?.extract();
        Some(Self {
            passed: passed.parse().ok()?,
            failed: failed.parse().ok()?,
            skipped: skipped.parse().ok()?,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Returns a check that passes or fails as a whole.
pub(super) fn check(name: &str, command: &mut Command) -> Result<Tally> {
    eprintln!("== {name}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(if status.success() {
        Tally::PASSED
    } else {
        eprintln!("{name}: FAILED");
        Tally::FAILED
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let output = "\
running 3 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.0s
";
        let mut total = Tally::default();
        output
            .lines()
            .filter_map(Tally::from_line)
            .for_each(|tally| total.add(tally));
        assert_eq!(total.to_string(), "12 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn a_check_counts_as_one_test() -> Result<()> {
        assert_eq!(check("true", &mut Command::new("true"))?.passed, 1);
        assert_eq!(check("false", &mut Command::new("false"))?.failed, 1);
        Ok(())
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::test_text::text;

    #[test]
    fn summaries_of_tests() {
        fuzzing::check!()
            .with_type::<(Vec<u8>, u32, u32, u32)>()
            .for_each(|(bytes, passed, failed, skipped)| {
                let words = ["test result: ", "ok. ", "12 passed; ", "3 failed; ", "99999999999999999999", "1 ignored"];
                let _ = Tally::from_line(&text(bytes, &words));
                let line = format!("test result: ok. {passed} passed; {failed} failed; {skipped} ignored; 0 measured");
                let tally = Tally::from_line(&line).unwrap();
                assert_eq!(tally.to_string(), format!("{passed} passed, {failed} failed, {skipped} skipped"));
            });
    }
}
