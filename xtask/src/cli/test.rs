//! `cargo xtask test`: every check there is, and one line that sums them up.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use super::dependencies;
use super::tally::{Tally, check};
use crate::testbed::machine::Kind;
use crate::testbed::progress::Step;
use crate::testbed::provision::{self, Toolchain, disk_space};
use crate::testbed::{build, choice, kernel, options, paths};

/// Emulators that run at the same time.
const MACHINES_AT_A_TIME: &str = "--test-threads=2";

/// rustdoc's warnings are errors. Private items are documented, too, so public ones may link to them.
const DOC_FLAGS: &str = "-D warnings -A rustdoc::private-intra-doc-links";

const MACHINE_HELP: &str = "\
Emulator for the tests that run on any; by default QEMU where KVM really offers nested VMX and tarpit \
comes up under it, else Bochs. Tests that assert ticks or shares of the CPU always run in Bochs";

/// What to test.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("wish", |machine| machine.help(MACHINE_HELP)))]
pub(super) struct Options {
    /// Only tests with this in their names, and no format or lint checks
    filter: Option<String>,
    /// Leave out the tests that boot machines
    #[arg(long)]
    host_only: bool,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    machine: options::Machine,
}

/// Runs the checks and prints the summary. True if nothing failed.
///
/// # Errors
/// When set-up fails: a test that fails is no error.
pub(super) fn run(options: &Options) -> Result<bool> {
    let mut total = Tally::default();
    let filter = options.filter.as_deref();
    let toolchain = Toolchain::ensure()?;
    // Before anything that takes long: what is missing here is told at once.
    disk_space::ensure(disk_space::FOR_TESTS)?;
    provision::ensure_packages(provision::TEST_PACKAGES)?;
    if !options.host_only {
        choice::ensure_installed(Kind::Bochs)?;
        choice::ensure_installed(Kind::QemuTcg)?;
        provision::ensure_packages(provision::IMAGE_PACKAGES)?;
    }
    if filter.is_none() {
        total.add(check("Format", cargo("fmt").args(["--all", "--check"]))?);
        total.add(check(
            "Lints, host",
            cargo("clippy")
                .args(["--workspace", "--all-targets"])
                .args(["--features", "hypervisor/model"])
                .args(["--", "-D", "warnings"]),
        )?);
        total.add(bare_metal_lints(&toolchain)?);
        total.add(check(
            "Documentation",
            cargo("doc")
                .args(["--workspace", "--no-deps", "--document-private-items"])
                .env("RUSTDOCFLAGS", DOC_FLAGS),
        )?);
        total.add(dependencies::check()?);
    }
    let mut host = cargo("test");
    host.args(["--workspace", "--exclude", "tests", "--no-fail-fast"])
        .args(filter);
    total.add(tests("Host tests", &mut host)?);
    if let Some(filter) = models(filter) {
        let mut models = cargo("test");
        models.args(["--package", "hypervisor", "--lib", "--features", "model"]);
        total.add(tests("Models", models.args(["--", filter]))?);
    }

    if !options.host_only {
        // Before the cases start, two at a time: they would all set up the same things.
        kernel::fetch(kernel::Series::default())?;
        kernel::fetch_xen()?;
        build::all()?;
        let machine = options.machine.pick()?;
        let mut emulator = cargo("test");
        emulator.args([
            "--package",
            "tests",
            "--test",
            "emulator",
            "--",
            MACHINES_AT_A_TIME,
        ]);
        emulator.args(filter);
        emulator.env(choice::TEST_MACHINE, choice::test_machine(machine));
        emulator.env(choice::TEST_EXIT_COST, options.exit_cost.ticks.to_string());
        total.add(tests("Emulator tests", &mut emulator)?);
    }
    println!("{total}");
    Ok(total.failed == 0)
}

/// Returns the filter for the tests that are models, if there are any for this one. With the locks of models
/// no others can be run.
fn models(filter: Option<&str>) -> Option<&str> {
    let all = "model::";
    filter.map_or(Some(all), |filter| filter.contains(all).then_some(filter))
}

fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.arg(subcommand).current_dir(paths::workspace());
    command
}

fn bare_metal_lints(toolchain: &Toolchain) -> Result<Tally> {
    const NAME: &str = "Lints, bare metal";
    if *toolchain == Toolchain::BuildStd {
        let why = "Debian's Rust has no clippy that could build the target";
        return Ok(Tally::skipped(NAME, why));
    }
    let mut command = toolchain.cargo("clippy");
    command.arg("--release").current_dir(paths::workspace());
    for package in build::bare_metal_packages()? {
        command.args(["--package", &package]);
    }
    check(NAME, command.args(["--", "-D", "warnings"]))
}

/// Runs something that reports as libtest does, shows what it says and adds up its results.
fn tests(name: &str, command: &mut Command) -> Result<Tally> {
    eprintln!("== {name}");
    let step = Step::begin(name);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut total = Tally::default();
    let output = child.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        let tally = Tally::from_line(&line);
        total.add(tally.unwrap_or_default());
        step.detail(total.to_string());
        // Most crates have some program without tests: not worth five lines each.
        let is_empty = line.is_empty() || line == "running 0 tests";
        if !is_empty && tally != Some(Tally::default()) {
            step.note(&line);
        }
    }
    if !child.wait()?.success() && total.failed == 0 {
        // It did not compile, or died.
        eprintln!("{name}: FAILED");
        total.failed = 1;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_run_with_all_tests_and_on_their_own() {
        assert_eq!(models(None), Some("model::"));
        let gate = "clock_gate::model::";
        assert_eq!(models(Some(gate)), Some(gate));
        assert_eq!(models(Some("clock_gate")), None);
    }

    #[test]
    fn a_test_program_that_dies_before_its_summary_has_failed() -> Result<()> {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'; exit 101",
        ]);
        assert_eq!(
            tests("died", &mut command)?,
            Tally {
                passed: 1,
                failed: 1,
                skipped: 0
            }
        );
        Ok(())
    }
}
