//! apt-get, which never removes anything for us, and what it says when it therefore refuses.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The options with which we install packages: without questions, without what they only recommend,
/// and without ever removing a package to make room for another.
pub(super) const INSTALL: [&str; 4] =
    ["install", "--yes", "--no-remove", "--no-install-recommends"];

/// The reason why apt-get would not install packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The installed packages that would have to go.
    Removals(Vec<String>),
    /// Dependencies that cannot be met, a package a line, in apt's words.
    Unmet(Vec<String>),
    /// The packages that the package lists do not know.
    Unknown(Vec<String>),
    /// Something else, in apt's words.
    Other(String),
}

impl Refusal {
    /// Returns whether newer package lists may help: old ones name versions that the archive has
    /// replaced since.
    pub(super) fn may_be_about_lists(&self) -> bool {
        !matches!(self, Self::Removals(_))
    }

    /// Makes it from all that `apt-get install` said (in English) when it failed.
    fn from_output(said: &str) -> Self {
        const UNKNOWN: [&str; 2] = [
            "E: Unable to locate package ",
            "E: Couldn't find any package by glob ",
        ];
        let removals: Vec<String> = section(said, "The following packages will be REMOVED:")
            .flat_map(str::split_whitespace)
            // Purged ones have an asterisk.
            .map(|package| package.trim_end_matches('*').to_owned())
            .collect();
        if !removals.is_empty() {
            return Self::Removals(removals);
        }
        let unmet: Vec<String> = section(said, "The following packages have unmet dependencies:")
            .map(|line| line.trim().to_owned())
            .collect();
        if !unmet.is_empty() {
            return Self::Unmet(unmet);
        }
        let unknown: Vec<String> = said
            .lines()
            .filter_map(|line| {
                let found = UNKNOWN.iter().find_map(|words| line.strip_prefix(words))?;
                Some(found.trim_matches('\'').to_owned())
            })
            .collect();
        if !unknown.is_empty() {
            return Self::Unknown(unknown);
        }
        Self::Other(said.trim().to_owned())
    }

    /// Returns what to tell the user who wanted these packages.
    pub(super) fn explain(&self, wanted: &[&str]) -> String {
        let wanted = wanted.join(" ");
        let mut text = format!("apt-get does not install {wanted}: {self}");
        if let Self::Removals(packages) = self {
            let packages = packages.join(" ");
            let _ = write!(
                text,
                "\nNothing was changed. Either remove what is in the way yourself, if you can do \
                 without it:\n  sudo apt-get remove {packages}\nor install our packages from the \
                 release that yours are from (`apt-cache policy {packages}` names it):\n  \
                 sudo apt-get {} --target-release RELEASE {wanted}",
                INSTALL.join(" "),
            );
        }
        text
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removals(packages) => write!(
                f,
                "they conflict with packages of yours, which would have to be removed: {}",
                packages.join(" ")
            ),
            Self::Unmet(lines) => write!(
                f,
                "there are dependencies that cannot be met:\n  {}",
                lines.join("\n  ")
            ),
            Self::Unknown(packages) => {
                write!(f, "it does not know {}", packages.join(" "))
            }
            Self::Other(said) => write!(f, "it said:\n{said}"),
        }
    }
}

/// Returns the indented lines below this one.
fn section<'a>(said: &'a str, heading: &str) -> impl Iterator<Item = &'a str> {
    let lines = said.lines().skip_while(move |line| *line != heading);
    lines.skip(1).take_while(|line| line.starts_with(' '))
}

/// Runs `apt-get install` with these packages, or names of package files.
///
/// # Errors
/// When apt-get cannot be run. `Err` inside is its refusal.
fn run(options: &[&str], packages: &[&str]) -> Result<Result<(), Refusal>> {
    let output = Command::new("apt-get")
        // Another apt may be at work.
        .args(["--option", "DPkg::Lock::Timeout=600"])
        .args(INSTALL)
        .args(options)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    Ok(Err(Refusal::from_output(&said)))
}

/// Installs packages. Nothing is changed where it fails, unless it fails in the middle.
///
/// # Errors
/// As [`run`].
pub(super) fn install(packages: &[&str]) -> Result<Result<(), Refusal>> {
    run(&[], packages)
}

/// Asks whether packages could be installed, which needs no rights and changes nothing.
///
/// # Errors
/// As [`run`].
pub(super) fn simulate(packages: &[&str]) -> Result<Result<(), Refusal>> {
    run(&["--simulate"], packages)
}

/// Returns the names of these packages and of all that they depend on and that is not installed.
/// Packages that they conflict with do not matter.
///
/// # Errors
/// When apt-get cannot be run, or does not know one of them.
pub(super) fn with_dependencies(packages: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .args(["-qq", "install", "--yes", "--no-install-recommends"])
        .arg("--print-uris")
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        bail!(
            "apt-get does not tell what {} depend on: {}",
            packages.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(names_in(&String::from_utf8_lossy(&output.stdout)))
}

/// Returns the packages in `apt-get --print-uris`'s lines of `'URI' FILE SIZE HASH`: a file's name is
/// the package, its version and its architecture.
fn names_in(uris: &str) -> Vec<String> {
    let name = |line: &str| {
        let (name, _) = line.split_whitespace().nth(1)?.split_once('_')?;
        Some(name.to_owned())
    };
    uris.lines().filter_map(name).collect()
}

/// Fetches packages into `directory`. Returns their files.
///
/// # Errors
/// When one cannot be fetched.
pub(super) fn download(packages: &[impl AsRef<OsStr>], directory: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("apt-get");
    if super::is_root() {
        // apt's own user cannot write there; as anyone but root there is no such user.
        command.args(["--option", "APT::Sandbox::User=root"]);
    }
    let output = command
        .args(["download", "--quiet"])
        .args(packages)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        bail!(
            "apt-get cannot fetch: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            files.push(file);
        }
    }
    if files.len() != packages.len() {
        bail!(
            "apt-get fetched {} of {} packages",
            files.len(),
            packages.len()
        );
    }
    Ok(files)
}

/// Runs `apt-get update`.
///
/// # Errors
/// When it fails.
pub(super) fn update() -> Result<()> {
    let status = Command::new("apt-get")
        .args(["update", "--quiet"])
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get update failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVAL: &str = "\
Reading package lists...
The following additional packages will be installed:
  libcapstone4 qemu-system-common
The following packages will be REMOVED:
  qemu-utils qemu-block-extra*
The following NEW packages will be installed:
  libcapstone4 qemu-system-common qemu-system-x86
0 upgraded, 3 newly installed, 2 to remove and 0 not upgraded.
E: Packages need to be removed but remove is disabled.
";

    #[test]
    fn packages_in_the_way_are_named_with_what_to_do() {
        let refusal = Refusal::from_output(REMOVAL);
        let expected = ["qemu-utils", "qemu-block-extra"].map(str::to_owned);
        assert_eq!(refusal, Refusal::Removals(expected.to_vec()));
        assert!(!refusal.may_be_about_lists());
        let text = refusal.explain(&["qemu-system-x86", "seabios"]);
        for part in [
            "Nothing was changed",
            "apt-get remove qemu-utils qemu-block-extra",
            "apt-cache policy qemu-utils qemu-block-extra",
            "--no-remove",
            "--target-release RELEASE qemu-system-x86 seabios",
        ] {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }

    #[test]
    fn unmet_dependencies_are_told_in_apts_words() {
        let said = "\
Reading package lists...
The following information may help to resolve the situation:

The following packages have unmet dependencies:
 qemu-system-x86 : Depends: qemu-system-common (= 1:7.2) but 1:9.2 is to be installed
                   Depends: seabios but it is not installable
E: Unable to correct problems, you have held broken packages.
";
        let Refusal::Unmet(lines) = Refusal::from_output(said) else {
            panic!("not unmet")
        };
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("qemu-system-x86 : Depends:"));
    }

    #[test]
    fn unknown_packages_and_files_that_are_gone_ask_for_new_lists() {
        let refusal = Refusal::from_output("E: Unable to locate package bochs\n");
        assert_eq!(refusal, Refusal::Unknown(vec!["bochs".to_owned()]));
        assert!(refusal.may_be_about_lists());
        let refusal = Refusal::from_output("E: Failed to fetch http://x/y.deb  404  Not Found\n");
        assert!(refusal.may_be_about_lists());
        assert!(refusal.to_string().contains("404"));
    }

    #[test]
    fn packages_to_fetch_are_told_from_their_versions() {
        let uris = "\
'http://a/pool/main/libc/libcacard/libcacard0_2.8.0-3_amd64.deb' libcacard0_1%3a2.8.0-3_amd64.deb 9 MD5Sum:4d
'http://a/pool/main/s/seabios/seabios_1.16.2-1_all.deb' seabios_1.16.2-1_all.deb 162656 MD5Sum:e1
";
        assert_eq!(names_in(uris), ["libcacard0", "seabios"]);
    }

    /// apt itself, asked to replace a package that is installed by one that conflicts with it. It is
    /// only a simulation, and needs no rights.
    #[test]
    fn apt_refuses_to_replace_an_installed_package_and_is_understood() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let control = directory.path().join("package/DEBIAN");
        std::fs::create_dir_all(&control)?;
        std::fs::write(
            control.join("control"),
            "Package: tarpit-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b>\n\
             Conflicts: cpio\nDescription: nothing\n",
        )?;
        let status = Command::new("dpkg-deb")
            .args(["--build", "package", "test.deb"])
            .current_dir(directory.path())
            .stdout(std::process::Stdio::null())
            .status()?;
        assert!(status.success());
        let file = directory.path().join("test.deb");
        let file = file.to_string_lossy();
        let result = run(&["--simulate"], &[&file])?;
        assert_eq!(result, Err(Refusal::Removals(vec!["cpio".to_owned()])));
        Ok(())
    }
}
