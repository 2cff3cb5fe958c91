//! What the tests that boot machines have in common: the machine that each needs, and the list of
//! cases.
//!
//! A case boots tarpit with its modules and then talks to the console as an operator would:
//!
//! ```no_run
//! # fn case(case: &tests::Case) -> anyhow::Result<()> {
//! let mut session = tests::tarpit(case).options("on-end=poweroff").boot()?;
//! session.wait_for("tarpit: version")?;
//! session.wait_for_end()?;
//! # Ok(())
//! # }
//! ```

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use xtask::testbed::machine::Kind;
use xtask::testbed::{Setup, choice, paths};

/// Emulated seconds of this many instructions: a fast boot, with room for Linux's own ticks.
pub const IPS: u64 = 100_000_000;

/// The machine that a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Bochs, always: the case asserts ticks, or shares of the CPU, which are exact and the same
    /// everywhere only where time is the count of instructions.
    Bochs,
    /// Any on which tarpit can run guests: QEMU/KVM where that works, else Bochs.
    Any,
    /// QEMU's own emulation, always: the case is about what tarpit says before it needs VMX.
    QemuTcg,
}

/// A case that runs.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    needs: Needs,
}

impl Case {
    /// Returns its name as a file's.
    pub fn file_name(&self) -> String {
        self.name.replace("::", "-")
    }

    /// Returns what it runs on.
    ///
    /// # Errors
    /// When packages that it takes to find out are missing and cannot be installed.
    pub fn kind(&self) -> Result<Kind> {
        match self.needs {
            Needs::Bochs => Ok(Kind::Bochs),
            Needs::Any => choice::for_tests(),
            Needs::QemuTcg => Ok(Kind::QemuTcg),
        }
    }
}

/// Returns the machine that the case needs, with tarpit and no guest. The case names the log files.
///
/// # Errors
/// As [`Case::kind`] and [`choice::exit_cost_for_tests`].
pub fn tarpit(case: &Case) -> Result<Setup> {
    Ok(Setup::new(&case.file_name())
        .on(case.kind()?)
        .ips(IPS)
        .exit_cost(choice::exit_cost_for_tests()?))
}

/// Returns a file of a case's own, below `target/images`, as a boot module needs it.
///
/// # Errors
/// When it cannot be written.
pub fn file(case: &Case, name: &str, content: &[u8]) -> Result<PathBuf> {
    let directory = paths::images();
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{}-{name}", case.file_name()));
    std::fs::write(&path, content)?;
    Ok(path)
}

/// An entry of the list of cases.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name of the case.
    pub name: &'static str,
    /// The machine that it needs.
    pub needs: Needs,
    /// The case.
    pub run: fn(&Case) -> Result<()>,
}

/// Lists cases by the machines that they need and their paths: `cases![Any: boot::greets]` is the
/// case `boot::greets`, which runs on any machine.
#[macro_export]
macro_rules! cases {
    ($($needs:ident: $case:path),* $(,)?) => {
        &[$($crate::Entry {
            name: stringify!($case),
            needs: $crate::Needs::$needs,
            run: $case,
        }),*]
    };
}

/// Runs the cases as the command line says (see `--help`), and exits.
pub fn run(cases: &[Entry]) -> ! {
    let arguments = Arguments::from_args();
    let trials = cases
        .iter()
        .map(|&Entry { name, needs, run }| {
            Trial::test(name, move || {
                let begun = Instant::now();
                let result = run(&Case { name, needs });
                // So that whoever looks for what takes long finds it in any run's output.
                eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
                Ok(result?)
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit()
}
