//! Whether the crates that we depend on are what `deny.toml` allows: by cargo-deny, where it is.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::tally::{self, Tally};
use crate::testbed::paths;

/// The path of the cargo-deny that `.ci/run` installs, below the target directory.
const OURS: &str = "tools/bin/cargo-deny";

/// Looks at licenses, duplicates and sources, and at advisories where their database can be had.
///
/// # Errors
/// When a command that is there cannot be run.
pub(super) fn check() -> Result<Tally> {
    const NAME: &str = "Dependencies";
    let ours = paths::target().join(OURS);
    let Some(program) = [ours, PathBuf::from("cargo-deny")]
        .into_iter()
        .find(|program| succeeds(Command::new(program).arg("--version")))
    else {
        let why = "there is no cargo-deny (`.ci/run` installs it; \
                   or do `cargo install cargo-deny --locked`)";
        return Ok(Tally::skipped(NAME, why));
    };
    // cargo-deny wants to see all crates in Cargo.lock, those for other systems too.
    let mut fetch = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    if !succeeds(fetch.arg("fetch").current_dir(paths::workspace())) {
        let why = "crates for other systems are not here and cannot be fetched";
        return Ok(Tally::skipped(NAME, why));
    }
    check_with(|| Command::new(&program))
}

/// Does the same with the cargo-deny that such commands run, to which arguments are added.
fn check_with(program: impl Fn() -> Command) -> Result<Tally> {
    let deny = |arguments: &[&str]| {
        let mut command = program();
        command.args(arguments).current_dir(paths::workspace());
        // A network that swallows everything is not to hold up the rest.
        command
            .env("GIT_HTTP_LOW_SPEED_LIMIT", "1")
            .env("GIT_HTTP_LOW_SPEED_TIME", "20");
        command
    };
    let mut total = tally::check(
        "Licenses, duplicates and sources",
        &mut deny(&["check", "licenses", "bans", "sources"]),
    )?;
    total.add(if succeeds(&mut deny(&["fetch", "db"])) {
        tally::check("Advisories", &mut deny(&["check", "advisories"]))?
    } else {
        Tally::skipped("Advisories", "their database cannot be fetched here")
    });
    Ok(total)
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a cargo-deny that is this script.
    ///
    /// The shell is given it as an argument: a file that has just been written cannot be run while
    /// a child that another test is starting still has it open for writing.
    fn with(script: &str) -> Result<String> {
        let tally = check_with(|| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script, "cargo-deny"]);
            shell
        })?;
        Ok(tally.to_string())
    }

    #[test]
    fn without_the_database_advisories_are_skipped_and_the_rest_is_checked() -> Result<()> {
        let script = "case \"$*\" in 'fetch db'|*advisories*) exit 1;; *) exit 0;; esac";
        assert_eq!(with(script)?, "1 passed, 0 failed, 1 skipped");
        Ok(())
    }

    #[test]
    fn a_license_or_an_advisory_that_is_not_allowed_is_a_failure() -> Result<()> {
        let script = "case \"$*\" in *licenses*) exit 1;; *) exit 0;; esac";
        assert_eq!(with(script)?, "1 passed, 1 failed, 0 skipped");
        let script = "case \"$*\" in 'check advisories') exit 1;; *) exit 0;; esac";
        assert_eq!(with(script)?, "1 passed, 1 failed, 0 skipped");
        Ok(())
    }
}
