//! What must be on this machine before a command can work, and how it gets there.
//!
//! Every command asks for what it needs. What is missing is installed when we are root;
//! otherwise the command ends with the exact line to run. Nothing is ever removed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use self::apt::Refusal;
use crate::testbed::progress::Step;

mod apt;
pub mod disk_space;
mod qemu;
mod rust_target;

pub use qemu::Qemu;
pub use rust_target::{TARGET, Toolchain};

/// Debian packages that make a bootable ISO.
pub const IMAGE_PACKAGES: &[&str] = &["grub-common", "grub-pc-bin", "mtools", "xorriso"];
/// Debian packages that emulate a PC with VMX.
pub const BOCHS_PACKAGES: &[&str] = &["bochs", "bochs-term", "bochsbios", "vgabios"];
/// Debian packages that go into the Linux guest.
pub const INITRAMFS_PACKAGES: &[&str] = &["busybox-static"];
/// Debian packages that make a Debian userland.
pub const USERLAND_PACKAGES: &[&str] = &["e2fsprogs", "fakechroot", "fakeroot", "mmdebstrap"];

/// Debian packages that the tests use and nothing else does.
pub const TEST_PACKAGES: &[&str] = &["cpio"];

/// Debian packages that compile libFuzzer.
pub const FUZZ_PACKAGES: &[&str] = &["g++"];

/// Sees to it that these Debian packages are installed.
///
/// # Errors
/// When one is missing and cannot be installed; without root, the error is the command to run.
pub fn ensure_packages(packages: &[&str]) -> Result<()> {
    let missing = missing_packages(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    if let Err(refusal) = install(&missing)? {
        bail!("{}", refusal.explain(&missing));
    }
    Ok(())
}

/// Installs Debian packages that are missing.
///
/// # Errors
/// When there are no means to; without root, the error is the command to run. `Err` inside is apt's
/// refusal, after which all is as before.
fn install(missing: &[&str]) -> Result<Result<(), Refusal>> {
    let names = missing.join(" ");
    eprintln!("Missing Debian packages: {names}");
    if !is_root() {
        // A command that apt would refuse as well is no help.
        return match apt::simulate(missing)? {
            Err(refusal @ Refusal::Removals(_)) => Ok(Err(refusal)),
            _ => bail!(
                "not root; run this and try again:\n{}",
                install_command(missing)
            ),
        };
    }
    let _step = Step::begin(format!("Installing {names} with apt-get"));
    let mut result = apt::install(missing)?;
    if result.as_ref().is_err_and(Refusal::may_be_about_lists) {
        update_package_lists()?;
        result = apt::install(missing)?;
    }
    if result.is_ok() {
        let still = missing_packages(missing)?;
        if !still.is_empty() {
            bail!("apt-get installed nothing for: {}", still.join(" "));
        }
    }
    Ok(result)
}

/// Fetches Debian packages and unpacks them, without installing them, into a new directory in
/// `parent`.
///
/// # Errors
/// When one cannot be fetched, as where apt's package lists are old, or cannot be unpacked.
pub fn unpack(packages: &[impl AsRef<OsStr>], parent: &Path) -> Result<TempDir> {
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let fetched = tempfile::tempdir_in(parent)?;
    let unpacked = tempfile::tempdir_in(parent)?;
    for package in apt::download(packages, fetched.path())? {
        let status = Command::new("dpkg")
            .arg("-x")
            .args([package.as_path(), unpacked.path()])
            .status()
            .context("cannot run dpkg")?;
        if !status.success() {
            bail!("dpkg does not unpack {}: {status}", package.display());
        }
    }
    Ok(unpacked)
}

/// Runs `apt-get update`.
///
/// # Errors
/// When it fails; without root, the error is the command to run.
pub fn update_package_lists() -> Result<()> {
    if !is_root() {
        bail!("not root, and apt's package lists are missing or old: run `sudo apt-get update`");
    }
    eprintln!("Updating apt's package lists");
    apt::update()
}

/// Returns whether this process may install packages.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn missing_packages<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    // It fails when any of the packages is unknown, and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(wanted)
        .output()
        .with_context(|| {
            format!(
                "no dpkg-query: is this Debian? tarpit's tools need: {}",
                wanted.join(" ")
            )
        })?;
    Ok(not_installed(
        wanted,
        &String::from_utf8_lossy(&output.stdout),
    ))
}

/// Returns those of `wanted` that `listing`, lines of `package status`, does not call installed.
fn not_installed<'a>(wanted: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    wanted
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect()
}

fn install_command(missing: &[&str]) -> String {
    // A fresh machine may have no package lists, or old ones.
    let packages = missing.join(" ");
    let install = apt::INSTALL.join(" ");
    format!("sudo apt-get update && sudo apt-get {install} {packages}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_missing_unless_dpkg_says_installed() {
        let listing = "bochs installed\nxorriso config-files\nmtools not-installed\n";
        assert_eq!(
            not_installed(&["bochs", "xorriso", "mtools", "vgabios"], listing),
            ["xorriso", "mtools", "vgabios"]
        );
    }

    #[test]
    fn a_package_is_not_installed_because_its_name_begins_like_one() {
        assert_eq!(
            not_installed(&["bochs"], "bochs-term installed\n"),
            ["bochs"]
        );
    }

    #[test]
    fn nothing_is_installed_where_dpkg_knows_nothing() {
        assert_eq!(not_installed(&["bochs", "mtools"], ""), ["bochs", "mtools"]);
    }

    #[test]
    fn the_command_to_run_names_every_missing_package() {
        assert_eq!(
            install_command(&["bochs", "vgabios"]),
            "sudo apt-get update && \
             sudo apt-get install --yes --no-remove --no-install-recommends bochs vgabios"
        );
    }
}
