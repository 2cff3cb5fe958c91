//! QEMU: as Debian packages it, installed or, where another package is in its way, unpacked.

use std::env::consts::ARCH;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::apt::{self, Refusal};
use crate::testbed::paths;
use crate::testbed::progress::Step;

/// The Debian packages.
const PACKAGES: &[&str] = &["qemu-system-x86", "seabios"];

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

/// The directories with firmware, below the root.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU of this machine's.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The directory in which its files are as packages have them in `/`.
    root: PathBuf,
}

impl Qemu {
    /// Sees to it that there is one.
    ///
    /// It is installed if it is missing. Where a package of this machine's would have to be removed for
    /// that, such as a newer release's `qemu-utils`, its own packages are unpacked below `target/`
    /// instead, with what they depend on: nothing of it is installed.
    ///
    /// # Errors
    /// When it can neither be installed nor fetched; without root, the error is the command to run.
    pub fn ensure() -> Result<Self> {
        let missing = super::missing_packages(PACKAGES)?;
        if missing.is_empty() {
            return Ok(Self::at("/"));
        }
        let unpacked = Self::at(paths::downloads().join("qemu"));
        if unpacked.program().exists() {
            return Ok(unpacked);
        }
        match super::install(&missing)? {
            Ok(()) => Ok(Self::at("/")),
            Err(Refusal::Removals(in_the_way)) => {
                eprintln!(
                    "{} cannot be installed beside {}: unpacked below {} instead",
                    missing.join(" "),
                    in_the_way.join(" "),
                    paths::shown(&unpacked.root),
                );
                unpacked.unpack()?;
                Ok(unpacked)
            }
            Err(refusal) => bail!("{}", refusal.explain(&missing)),
        }
    }

    fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Puts its packages into its root.
    fn unpack(&self) -> Result<()> {
        let unpacked = match Self::fetch() {
            Ok(unpacked) => unpacked,
            // The archive has moved on from the versions that apt's lists name.
            Err(_) => {
                super::update_package_lists()?;
                Self::fetch()?
            }
        };
        match std::fs::rename(unpacked.path(), &self.root) {
            // Another run was faster.
            Err(_) if self.program().exists() => Ok(()),
            result => {
                result.with_context(|| format!("cannot keep QEMU in {}", self.root.display()))
            }
        }
    }

    /// Fetches its packages and what they depend on, and unpacks them.
    fn fetch() -> Result<TempDir> {
        let packages = apt::with_dependencies(PACKAGES)?;
        let _step = Step::begin(format!("Fetching {} packages of Debian's", packages.len()));
        super::unpack(&packages, &paths::downloads())
    }

    /// Returns its program's file.
    pub fn program(&self) -> PathBuf {
        self.root.join(PROGRAM)
    }

    /// Makes a command that runs it: firmware is found by where the program is.
    pub fn command(&self) -> Command {
        self.with_libraries(self.program())
    }

    /// Makes a command that runs this program and has its libraries at hand.
    fn with_libraries(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        if self.root != Path::new("/") {
            let directories =
                ["usr/lib", "lib"].map(|lib| self.root.join(format!("{lib}/{ARCH}-linux-gnu")));
            // Only a colon cannot be in a name.
            if let Ok(path) = std::env::join_paths(directories) {
                command.env("LD_LIBRARY_PATH", path);
            }
        }
        command
    }

    /// Returns the files that its program needs at run time, itself first, as ldd(1) names them, and
    /// where each belongs.
    ///
    /// # Errors
    /// When ldd does not know.
    pub fn files(&self) -> Result<Vec<(PathBuf, String)>> {
        let program = self.program();
        let output = self
            .with_libraries("ldd")
            .arg(&program)
            .output()
            .context("cannot run ldd")?;
        let listing = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || listing.contains("not found") {
            bail!("{} lacks libraries:\n{listing}", program.display());
        }
        let files = std::iter::once(program).chain(paths_in(&listing));
        Ok(files
            .map(|file| (file.clone(), self.place_of(&file)))
            .collect())
    }

    /// Returns where a file belongs, from `/`.
    fn place_of(&self, file: &Path) -> String {
        let below = file.strip_prefix(&self.root).unwrap_or(file);
        below.to_string_lossy().trim_start_matches('/').to_owned()
    }

    /// Returns the file of a firmware.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn firmware(&self, name: &str) -> Result<PathBuf> {
        FIRMWARE
            .iter()
            .map(|directory| self.root.join(directory).join(name))
            .find(|file| file.exists())
            .with_context(|| format!("QEMU's {name} is nowhere"))
    }
}

/// Returns the paths in what ldd(1) prints.
fn paths_in(listing: &str) -> impl Iterator<Item = PathBuf> {
    listing.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_their_loader() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
             \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert!(paths_in(listing).eq([
            Path::new("/lib/x86_64-linux-gnu/libz.so.1"),
            Path::new("/lib64/ld-linux-x86-64.so.2")
        ]));
    }

    #[test]
    fn files_belong_where_packages_have_them_wherever_those_are_unpacked() {
        let unpacked = Qemu::at("/target/downloads/qemu");
        assert_eq!(unpacked.place_of(&unpacked.program()), PROGRAM);
        // Of this machine's, not unpacked.
        let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
        for qemu in [unpacked, Qemu::at("/")] {
            assert_eq!(qemu.place_of(libc), "lib/x86_64-linux-gnu/libc.so.6");
        }
    }

    #[test]
    fn an_unpacked_program_has_its_own_libraries() {
        let libraries = |qemu: Qemu| {
            let command = qemu.command();
            let mut variables = command.get_envs();
            variables.find_map(|(name, value)| {
                (name == "LD_LIBRARY_PATH")
                    .then_some(value)?
                    .map(OsString::from)
            })
        };
        assert_eq!(libraries(Qemu::at("/")), None);
        let path = libraries(Qemu::at("/target/qemu")).expect("a search path");
        assert_eq!(
            path,
            "/target/qemu/usr/lib/x86_64-linux-gnu:/target/qemu/lib/x86_64-linux-gnu"
        );
    }
}
