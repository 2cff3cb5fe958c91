//! `cargo xtask fuzz`: the targets for fuzzing among the tests, each for a time, guided by what they cover.
//!
//! A target is a test in a module called `fuzz`. Among the other tests it has a few inputs that
//! are the same each time; here libFuzzer makes the inputs, from those that led somewhere new.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::testbed::paths;
use crate::testbed::progress::Step;
use crate::testbed::provision;

/// The part of a test's name that makes it a target.
const MODULE: &str = "fuzz::";
/// The crates that have targets.
const PACKAGES: [&str; 3] = ["devices", "hypervisor", "xtask"];
/// The flags that make the compiler tell libFuzzer which code was reached, and what was compared with what.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "--cfg=fuzzing_libfuzzer",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-sanitizer-coverage-stack-depth",
];
/// The longest that one input may take, in seconds.
const LONGEST: u32 = 20;
/// The lines that are kept of what a target says, to be shown if it fails.
const KEPT_LINES: usize = 60;

/// What to fuzz.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// Only targets with one of these in their names
    target: Vec<String>,
    /// How long each target runs
    #[arg(long, short, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Print the targets' names, and run none
    #[arg(long)]
    list: bool,
}

/// A target, and the test program that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    program: PathBuf,
    /// The folder of its crate, in which tests run.
    folder: PathBuf,
    /// The crate and the name of the test.
    package: String,
    name: String,
}

impl Target {
    /// Returns where its inputs are that led somewhere new, and those that it failed on.
    fn inputs(&self) -> PathBuf {
        let name = format!("{}::{}", self.package, self.name);
        paths::target()
            .join("fuzz-inputs")
            .join(name.replace("::", "."))
    }
}

/// Runs the targets that the options name, and shows what they find. True if no target failed.
///
/// # Errors
/// When they cannot be compiled, or there is no such target.
pub(super) fn run(options: &Options) -> Result<bool> {
    provision::ensure_packages(provision::FUZZ_PACKAGES)?;
    let mut targets = Vec::new();
    for (program, folder) in programs()? {
        targets.extend(targets_in(&program, &folder)?);
    }
    targets.retain(|target| {
        let name = format!("{}::{}", target.package, target.name);
        options.target.is_empty() || options.target.iter().any(|part| name.contains(part))
    });
    ensure!(
        !targets.is_empty(),
        "no target for fuzzing has this in its name: `cargo xtask fuzz --list` lists them"
    );
    if options.list {
        for target in &targets {
            println!("{}::{}", target.package, target.name);
        }
        return Ok(true);
    }
    let count = targets.len();
    let mut failed = 0;
    for (index, target) in targets.iter().enumerate() {
        let what = format!("{}/{count} {}::{}", index + 1, target.package, target.name);
        if !fuzz(target, &what, options.seconds)? {
            failed += 1;
        }
    }
    println!("{} passed, {failed} failed, 0 skipped", count - failed);
    Ok(failed == 0)
}

/// Compiles the tests for fuzzing. Returns the programs, with the folders of their crates.
fn programs() -> Result<Vec<(PathBuf, PathBuf)>> {
    let _step = Step::begin("Compiling the targets");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["test", "--quiet", "--lib", "--no-run", "--profile", "fuzz"]);
    // By its name, so that the flags are not for build scripts, too.
    cargo.args(["--target", "host-tuple", "--message-format", "json"]);
    cargo
        .arg("--target-dir")
        .arg(paths::target().join("fuzz-build"));
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .current_dir(paths::workspace())
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        for message in said.lines().filter_map(rendered) {
            eprint!("{message}");
        }
        bail!("the targets cannot be compiled");
    }
    Ok(said.lines().filter_map(program).collect())
}

/// Returns the test program that a line of cargo's tells of, if it does, and its crate's folder.
fn program(line: &str) -> Option<(PathBuf, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    Some((message["executable"].as_str()?.into(), folder.into()))
}

/// Returns what the compiler says in a line of cargo's, for people.
fn rendered(line: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    Some(message["message"]["rendered"].as_str()?.to_owned())
}

/// Returns the targets in a test program.
fn targets_in(program: &Path, folder: &Path) -> Result<Vec<Target>> {
    let mut list = Command::new(program);
    let output = list.args(["--list", "--format", "terse"]).output()?;
    let package = folder.file_name().unwrap_or_default().to_string_lossy();
    let said = String::from_utf8_lossy(&output.stdout);
    let names = said.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names
        .filter(|name| is_target(name))
        .map(|name| Target {
            program: program.into(),
            folder: folder.into(),
            package: package.clone().into_owned(),
            name: name.to_owned(),
        })
        .collect())
}

/// Returns whether the test of this name is in a module called `fuzz`.
fn is_target(name: &str) -> bool {
    name.rsplit_once(MODULE).is_some_and(|(before, test)| {
        (before.is_empty() || before.ends_with("::")) && !test.contains("::")
    })
}

/// Runs a target for a time, and shows how far it gets. False if it failed.
fn fuzz(target: &Target, what: &str, seconds: u32) -> Result<bool> {
    let inputs = target.inputs();
    std::fs::create_dir_all(&inputs)?;
    let step = Step::begin(what);
    // An input that fails is put among the others: the next run begins with it.
    let arguments = format!(
        "{0} -max_total_time={seconds} -timeout={LONGEST} -artifact_prefix={0}/ -print_final_stats=1",
        inputs.display()
    );
    let mut child = Command::new(&target.program)
        .args([&target.name, "--exact", "--nocapture", "--test-threads=1"])
        .env("BOLERO_LIBFUZZER_ARGS", arguments)
        .current_dir(&target.folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", target.program.display()))?;
    let mut last = VecDeque::new();
    let mut reached = String::new();
    let said = child.stderr.take().context("no output")?;
    for line in BufReader::new(said).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if let Some(progress) = progress(&line) {
            reached = progress;
            step.detail(&reached);
            continue;
        }
        if last.len() == KEPT_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    let passed = child.wait()?.success();
    step.note(&format!("{what}: {reached}"));
    if !passed {
        last.iter().for_each(|line| step.note(line));
        step.note(&format!(
            "{what}: FAILED; the input is in {}, and the next run begins with it",
            paths::shown(&inputs)
        ));
    }
    Ok(passed)
}

/// Returns how far libFuzzer has got, if it says so in this line: `#8192 pulse cov: 71 ft: 148 ...`.
fn progress(line: &str) -> Option<String> {
    let runs = line.strip_prefix('#')?.split_ascii_whitespace().next()?;
    let (_, rest) = line.split_once("cov: ")?;
    let places = rest.split(' ').next()?;
    runs.parse::<u64>().ok()?;
    Some(format!("{runs} inputs, {places} places reached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_test_in_a_module_called_fuzz() {
        assert!(is_target("vm_config::fuzz::command_lines_of_modules"));
        assert!(is_target("fuzz::all"));
        assert!(!is_target("cli::fuzz_helpers::a_test"));
        assert!(!is_target("cli::prefuzz::a_test"));
        assert!(!is_target("vm_config::tests::fuzz"));
        assert!(!is_target("experiment::fuzz::tests::a_test"));
    }

    #[test]
    fn how_far_it_is_comes_from_libfuzzers_lines() {
        assert_eq!(
            progress("#610388\tNEW    cov: 72 ft: 151 corp: 29/319b lim: 4096 exec/s: 610388"),
            Some("610388 inputs, 72 places reached".into())
        );
        assert_eq!(progress("#0: 0x55"), None);
        assert_eq!(progress("INFO: seed corpus"), None);
    }

    #[test]
    fn programs_are_those_that_cargo_tells_of() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/devices/Cargo.toml","executable":"/t/devices-1"}"#;
        assert_eq!(
            program(line),
            Some(("/t/devices-1".into(), "/w/devices".into()))
        );
        assert_eq!(
            program(r#"{"manifest_path":"/w/a/Cargo.toml","executable":null}"#),
            None
        );
        assert_eq!(program("warning: unused"), None);
    }
}
