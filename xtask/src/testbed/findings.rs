//! What a test kernel of ours has found, as it tells it on tarpit's console.

use std::fmt;

use anyhow::Result;

use crate::testbed::serial::Session;
use crate::testbed::verdict::VmEnd;

/// A kernel's checks, and how its VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// The lines about checks that failed.
    pub failures: Vec<String>,
    /// The numbers of checks that passed, failed and were skipped, in the kernel's words, if it
    /// came to that.
    pub tally: Option<String>,
    /// The way in which the VM ended.
    pub end: VmEnd,
}

impl Findings {
    /// Follows the kernel in the VM `vm` to the VM's end.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn follow(session: &mut Session, vm: &str) -> Result<Self> {
        let said = session.wait_for(&format!("vm {vm} ended: "))?;
        let how = session.wait_for("\n")?;
        Ok(Self::from_console(&said, &how))
    }

    /// Makes them from what was said until the VM ended, and how it did.
    fn from_console(said: &str, how: &str) -> Self {
        let tally = said.lines().rev().find(|line| line.contains(" passed, "));
        let failures = said.lines().filter(|line| line.contains("FAIL"));
        Self {
            failures: failures.map(str::to_owned).collect(),
            tally: tally.map(|line| {
                // The console puts the VM's name and the time in front.
                let words = line.split_once("] ").map_or(line, |(_, words)| words);
                words.to_owned()
            }),
            end: VmEnd::from_words(how),
        }
    }

    /// Returns whether the kernel got to its end and no check failed.
    pub fn are_good(&self) -> bool {
        self.failures.is_empty() && self.end == VmEnd::DebugExit(0)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "{failure}")?;
        }
        let tally = self.tally.as_deref().unwrap_or("no result");
        write!(f, "{tally}; ended: {}", self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "tarpit> [apic   0.608282] PASS physical: broadcast\n\
                        tarpit> [apic   0.653451] 304 passed, 0 failed, 1 skipped\n\
                        tarpit> vm apic ended: ";

    #[test]
    fn a_kernel_that_gets_to_its_end_without_a_failure_is_good() {
        let findings = Findings::from_console(GOOD, "debug-exit 0\n");
        assert!(findings.are_good());
        assert_eq!(
            findings.to_string(),
            "304 passed, 0 failed, 1 skipped; ended: debug-exit 0"
        );
    }

    #[test]
    fn a_failure_or_another_end_is_not() {
        let failed = GOOD.replace("PASS", "FAIL");
        let findings = Findings::from_console(&failed, "debug-exit 0\n");
        assert!(!findings.are_good());
        assert!(findings.to_string().contains("FAIL physical: broadcast\n"));

        let findings = Findings::from_console("vm apic ended: ", "triple fault\n");
        assert!(!findings.are_good());
        assert_eq!(findings.to_string(), "no result; ended: triple fault");
        assert!(!Findings::from_console(GOOD, "debug-exit 1\n").are_good());
    }
}
