//! Compiles tarpit and what runs in its guests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

use crate::testbed::paths;
use crate::testbed::progress::Step;
use crate::testbed::provision::{TARGET, Toolchain};

/// The files that cargo built.
#[derive(Clone, Debug)]
pub struct Built {
    /// tarpit: an ELF file that GRUB and QEMU boot by multiboot.
    pub tarpit: PathBuf,
    /// The Linux guest's `/init`.
    pub workload: PathBuf,
    /// Our own guest kernels (multiboot 1), by name.
    pub kernels: Vec<PathBuf>,
}

impl Built {
    /// Returns the guest kernel of our own with this name.
    ///
    /// # Errors
    /// When there is none: the error lists those that there are.
    pub fn kernel(&self, name: &str) -> Result<&Path> {
        let named = |path: &&PathBuf| path.file_name().is_some_and(|file| file == name);
        let known = || {
            self.kernels
                .iter()
                .filter_map(|path| path.file_name()?.to_str())
        };
        match self.kernels.iter().find(named) {
            Some(path) => Ok(path),
            None => bail!(
                "no guest kernel `{name}` (there are: {})",
                known().collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

/// Builds everything that is bootable, in release mode, once in this process.
///
/// # Errors
/// When there is no toolchain for the target, or cargo fails.
pub fn all() -> Result<&'static Built> {
    static BUILT: OnceLock<Result<Built, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|error| anyhow!("{error}"))
}

fn build() -> Result<Built> {
    let toolchain = Toolchain::ensure()?;
    let kernels = guest_kernels()?;
    // Separate runs: cargo would give tarpit the features that the guests ask for.
    release(&toolchain, &["tarpit"])?;
    let mut guests = vec!["workload"];
    guests.extend(kernels.iter().map(|program| program.package.as_str()));
    guests.dedup();
    release(&toolchain, &guests)?;
    Ok(Built {
        tarpit: artifact("tarpit"),
        workload: artifact("workload"),
        kernels: kernels
            .iter()
            .map(|program| artifact(&program.name))
            .collect(),
    })
}

/// Builds the Linux guest's program alone.
///
/// # Errors
/// As [`all`].
pub fn workload() -> Result<PathBuf> {
    release(&Toolchain::ensure()?, &["workload"])?;
    Ok(artifact("workload"))
}

/// Returns the packages that are compiled for [`TARGET`].
///
/// # Errors
/// When cargo does not know the workspace.
pub fn bare_metal_packages() -> Result<Vec<String>> {
    let mut packages = vec!["tarpit".to_owned(), "workload".to_owned()];
    packages.extend(guest_kernels()?.into_iter().map(|program| program.package));
    packages.dedup();
    Ok(packages)
}

fn artifact(program: &str) -> PathBuf {
    paths::target().join(TARGET).join("release").join(program)
}

/// Builds the programs of these packages.
fn release(toolchain: &Toolchain, packages: &[&str]) -> Result<()> {
    let mut command = toolchain.cargo("build");
    command
        .args(["--release", "--bins", "--quiet"])
        .current_dir(paths::workspace());
    for package in packages {
        command.args(["--package", package]);
    }
    let what = packages.join(", ");
    let _step = Step::begin(format!("Building {what} for {TARGET}"));
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("building {what} for {TARGET} failed");
    }
    Ok(())
}

/// A program of a package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    package: String,
    name: String,
}

/// Returns our own guest kernels: all programs under `guest-images/kernels`.
fn guest_kernels() -> Result<Vec<Program>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(paths::workspace())
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    programs_below(
        &output.stdout,
        &paths::workspace().join("guest-images/kernels"),
    )
}

fn programs_below(metadata: &[u8], directory: &Path) -> Result<Vec<Program>> {
    let metadata: serde_json::Value = serde_json::from_slice(metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let mut programs = Vec::new();
    for package in packages {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        if !manifest.starts_with(directory) {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_program = target["kind"][0] == "bin";
            let names = (package["name"].as_str(), target["name"].as_str());
            if let (true, (Some(package), Some(name))) = (is_program, names) {
                programs.push(Program {
                    package: package.to_owned(),
                    name: name.to_owned(),
                });
            }
        }
    }
    programs.sort();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_kernels_are_the_programs_in_their_folder() -> Result<()> {
        let metadata = br#"{"packages": [
            {"name": "tarpit", "manifest_path": "/w/boot/Cargo.toml",
             "targets": [{"kind": ["bin"], "name": "tarpit"}]},
            {"name": "kernels", "manifest_path": "/w/guest-images/kernels/Cargo.toml",
             "targets": [{"kind": ["custom-build"], "name": "build-script-build"},
                         {"kind": ["lib"], "name": "kernels"},
                         {"kind": ["bin"], "name": "lapic"},
                         {"kind": ["bin"], "name": "clocks"}]}]}"#;
        let programs = programs_below(metadata, Path::new("/w/guest-images/kernels"))?;
        let names: Vec<_> = programs
            .iter()
            .map(|program| program.name.as_str())
            .collect();
        assert_eq!(names, ["clocks", "lapic"]);
        assert!(programs.iter().all(|program| program.package == "kernels"));
        Ok(())
    }

    #[test]
    fn an_unknown_guest_kernel_is_answered_with_those_there_are() {
        let built = Built {
            tarpit: "tarpit".into(),
            workload: "workload".into(),
            kernels: vec!["t/clocks".into(), "t/lapic".into()],
        };
        assert_eq!(built.kernel("lapic").ok(), Some(Path::new("t/lapic")));
        let error = built.kernel("hpet").unwrap_err().to_string();
        assert!(error.contains("clocks, lapic"), "{error}");
    }
}
