//! Stock Debian kernels: the newest of a series, fetched and unpacked but never installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::progress::Step;
use crate::{paths, setup};

/// A kernel that Debian builds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Series {
    /// Linux 6.1 for clouds (CFS scheduler)
    #[default]
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12 for clouds (EEVDF scheduler)
    #[value(name = "6.12")]
    V6_12,
    /// Linux 6.1 with PREEMPT_RT
    #[value(name = "rt")]
    Rt,
}

impl Series {
    /// The name that the command line uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Rt => "rt",
        }
    }

    /// A regular expression for the names of its packages.
    fn packages(self) -> &'static str {
        match self {
            Self::V6_1 => r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64-unsigned$",
            Self::V6_12 => r"^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64-unsigned$",
            Self::Rt => r"^linux-image-6\.1\.0-[0-9]+-rt-amd64-unsigned$",
        }
    }
}

/// The kernel image of this series, from `target/downloads` or else from Debian's archive.
///
/// # Errors
/// When the archive has none or cannot be reached.
pub fn fetch(series: Series) -> Result<PathBuf> {
    let directory = paths::downloads().join("kernels").join(series.name());
    fetch_part(series, "boot", &directory)
}

/// A kernel with its modules.
#[derive(Clone, Debug)]
pub struct Package {
    /// The kernel image.
    pub image: PathBuf,
    /// The directory of all modules.
    pub modules: PathBuf,
}

/// As [`fetch`], with the modules of the same build.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_with_modules(series: Series) -> Result<Package> {
    let directory = paths::downloads().join("packages").join(series.name());
    Ok(Package {
        image: fetch_part(series, ".", &directory)?,
        modules: directory.join("lib/modules"),
    })
}

/// The kernel image in this part of a series' package, which is kept in `directory`.
fn fetch_part(series: Series, part: &str, directory: &Path) -> Result<PathBuf> {
    if let Some(image) = image_below(directory) {
        return Ok(image);
    }
    let sh = Shell::new()?;
    let package = match resolve(&sh, series)? {
        Some(package) => package,
        None => {
            setup::update_package_lists()?;
            resolve(&sh, series)?.with_context(|| {
                format!(
                    "no package matches {}: is this Debian 12?",
                    series.packages()
                )
            })?
        }
    };
    if download(&sh, &package, part, directory).is_err() {
        // The archive has moved on from the version that apt's lists name.
        setup::update_package_lists()?;
        let package = resolve(&sh, series)?.context("the package has vanished")?;
        download(&sh, &package, part, directory)?;
    }
    image_below(directory).with_context(|| format!("{package} holds no kernel image"))
}

fn resolve(sh: &Shell, series: Series) -> Result<Option<String>> {
    let pattern = series.packages();
    let listing = cmd!(sh, "apt-cache search --names-only {pattern}")
        .quiet()
        .read()
        .context("apt-cache failed: is this Debian? --kernel FILE takes any bzImage")?;
    Ok(newest(&listing))
}

/// The package with the highest version in apt-cache's lines of `package - description`.
fn newest(listing: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|package| numbers(package))
        .map(str::to_owned)
}

/// The numbers in a package's name: they order as the versions do.
fn numbers(package: &str) -> Vec<u64> {
    package
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Fetches a package and puts this part of it in the place of `directory`.
fn download(sh: &Shell, package: &str, part: &str, directory: &Path) -> Result<()> {
    let _step = Step::begin(format!("Fetching {package} from Debian's archive"));
    let downloads = paths::downloads();
    sh.create_dir(&downloads)?;
    let temporary = tempfile::tempdir_in(&downloads)?;
    let inside = sh.push_dir(temporary.path());
    // apt's own user cannot write here; as anyone but root there is no such user.
    let sandbox: &[&str] = if setup::is_root() {
        &["-o", "APT::Sandbox::User=root"]
    } else {
        &[]
    };
    cmd!(sh, "apt-get {sandbox...} download --quiet {package}")
        .quiet()
        .ignore_stdout()
        .run()?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let Some(file) = sh.read_dir(".")?.into_iter().find(is_package) else {
        bail!("apt-get downloaded no {package}");
    };
    drop(inside);
    let parent = directory.parent().context("no parent directory")?;
    sh.create_dir(parent)?;
    let unpacked = tempfile::tempdir_in(parent)?;
    let to = unpacked.path();
    cmd!(sh, "dpkg -x {file} {to}").quiet().run()?;
    match std::fs::rename(to.join(part), directory) {
        // Another run was faster.
        Err(_) if image_below(directory).is_some() => Ok(()),
        result => Ok(result?),
    }
}

/// The kernel image in this directory, or in `boot` below it.
fn image_below(directory: &Path) -> Option<PathBuf> {
    let mut images: Vec<PathBuf> = [directory, &directory.join("boot")]
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .collect();
    images.sort();
    images.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_has_the_highest_number_not_the_last_name() {
        let listing = "\
linux-image-6.12.9+deb12-cloud-amd64-unsigned - Linux 6.12
linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.88+deb12-cloud-amd64-unsigned - Linux 6.12
";
        assert_eq!(
            newest(listing).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64-unsigned")
        );
    }

    #[test]
    fn an_archive_without_the_series_has_no_newest() {
        assert_eq!(newest(""), None);
    }

    #[test]
    fn each_series_matches_its_own_packages_only() -> Result<()> {
        let names = [
            (Series::V6_1, "linux-image-6.1.0-56-cloud-amd64-unsigned"),
            (
                Series::V6_12,
                "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            ),
            (Series::Rt, "linux-image-6.1.0-56-rt-amd64-unsigned"),
        ];
        for (series, _) in names {
            let pattern = regex::Regex::new(series.packages())?;
            for (other, name) in names {
                assert_eq!(
                    pattern.is_match(name),
                    series == other,
                    "{series:?} and {name}"
                );
            }
        }
        Ok(())
    }
}
