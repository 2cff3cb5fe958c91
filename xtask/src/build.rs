//! Compiles tarpit and what runs in its guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::setup::{TARGET, Toolchain};

/// What cargo made.
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
    /// The guest kernel of our own with this name.
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

/// Builds everything that is bootable, in release mode.
///
/// # Errors
/// When there is no toolchain for the target, or cargo fails.
pub fn all() -> Result<Built> {
    let toolchain = Toolchain::ensure()?;
    // Separate runs: cargo would give tarpit the features that the guests ask for.
    let tarpit = release(&toolchain, &["tarpit"])?;
    let kernels = guest_kernels()?;
    let mut guests = vec!["workload"];
    guests.extend(kernels.iter().map(String::as_str));
    let mut guests = release(&toolchain, &guests)?;
    Ok(Built {
        tarpit: tarpit.into_iter().next().context("cargo built no tarpit")?,
        workload: guests.remove(0),
        kernels: guests,
    })
}

/// Builds the Linux guest's program alone.
///
/// # Errors
/// As [`all`].
pub fn workload() -> Result<PathBuf> {
    let toolchain = Toolchain::ensure()?;
    release(&toolchain, &["workload"])?
        .into_iter()
        .next()
        .context("cargo built no workload")
}

/// The packages that are compiled for [`TARGET`].
///
/// # Errors
/// When cargo does not know the workspace.
pub fn bare_metal_packages() -> Result<Vec<String>> {
    let mut packages = vec!["tarpit".to_owned(), "workload".to_owned()];
    packages.extend(guest_kernels()?);
    Ok(packages)
}

/// Builds these packages' binaries, which have the packages' names, and says where they are.
fn release(toolchain: &Toolchain, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = toolchain.cargo("build");
    command.arg("--release").current_dir(paths::workspace());
    for package in packages {
        command.args(["--package", package]);
    }
    command.args(["--bins", "--quiet"]);
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("building {} for {TARGET} failed", packages.join(", "));
    }
    let directory = paths::target().join(TARGET).join("release");
    Ok(packages
        .iter()
        .map(|package| directory.join(package))
        .collect())
}

/// The packages of our own guest kernels: those under `guest-images/kernels` with a program.
fn guest_kernels() -> Result<Vec<String>> {
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

fn programs_below(metadata: &[u8], directory: &Path) -> Result<Vec<String>> {
    let metadata: serde_json::Value = serde_json::from_slice(metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    let mut names = Vec::new();
    for package in packages {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        if !manifest.starts_with(directory) {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_program = target["kind"][0] == "bin";
            if let (true, Some(name)) = (is_program, target["name"].as_str()) {
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_kernels_are_the_programs_in_their_folder() -> Result<()> {
        let metadata = br#"{"packages": [
            {"manifest_path": "/w/boot/Cargo.toml",
             "targets": [{"kind": ["bin"], "name": "tarpit"}]},
            {"manifest_path": "/w/guest-images/kernels/clocks/Cargo.toml",
             "targets": [{"kind": ["custom-build"], "name": "build-script-build"},
                         {"kind": ["bin"], "name": "clocks"}]},
            {"manifest_path": "/w/guest-images/kernels/support/Cargo.toml",
             "targets": [{"kind": ["lib"], "name": "support"}]}]}"#;
        let names = programs_below(metadata, Path::new("/w/guest-images/kernels"))?;
        assert_eq!(names, ["clocks"]);
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
