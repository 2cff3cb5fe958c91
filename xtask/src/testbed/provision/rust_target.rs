//! The Rust target of tarpit and of its guests, or a toolchain that can build it from source.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::ensure_packages;

/// The target of tarpit and of its guests.
pub const TARGET: &str = "x86_64-unknown-none";

/// Debian's newest Rust, with the standard library's source: the way out where rustup's
/// server cannot be reached.
const DEBIAN_RUST: &[&str] = &["cargo-web", "rust-web-src", "rustc-web"];

/// The toolchain that compiles for [`TARGET`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The cargo that runs us, which has the target's libraries.
    Installed,
    /// Debian's compiler, which builds `core` and `alloc` itself.
    BuildStd,
}

impl Toolchain {
    /// Finds one, installing what is missing.
    ///
    /// # Errors
    /// When neither rustup nor Debian can give us the target.
    pub fn ensure() -> Result<Self> {
        if target_is_installed(&rustc()) {
            return Ok(Self::Installed);
        }
        eprintln!("The Rust target {TARGET} is missing: running `rustup target add {TARGET}`");
        let added = Command::new("rustup")
            .args(["target", "add", TARGET])
            .status();
        if added.is_ok_and(|status| status.success()) && target_is_installed(&rustc()) {
            return Ok(Self::Installed);
        }
        eprintln!("rustup cannot add it: building core and alloc with Debian's Rust instead");
        ensure_packages(DEBIAN_RUST)
            .context("no Rust target: neither rustup nor Debian's packages can provide it")?;
        Ok(Self::BuildStd)
    }

    /// Returns a cargo command for [`TARGET`]: the sub-command and the target are set.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Installed => Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into())),
            Self::BuildStd => {
                let mut command = Command::new("/usr/bin/cargo");
                // -Z options are for nightly compilers, unless one insists.
                command
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", "/usr/bin/rustc");
                command.env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        };
        command.args([subcommand, "--target", TARGET]);
        if *self == Self::BuildStd {
            command.args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        command
    }
}

fn rustc() -> PathBuf {
    std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from)
}

fn target_is_installed(rustc: &Path) -> bool {
    let Ok(output) = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
    else {
        return false;
    };
    output.status.success()
        && holds_core(Path::new(
            String::from_utf8_lossy(&output.stdout).trim_end(),
        ))
}

/// Returns whether there is `core`: rustc names the directory of a target's libraries whether or
/// not they are there.
fn holds_core(libraries: &Path) -> bool {
    std::fs::read_dir(libraries).is_ok_and(|files| {
        files
            .flatten()
            .any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_its_core_library_is_not_installed() -> Result<()> {
        let directory = tempfile::tempdir()?;
        assert!(!holds_core(&directory.path().join("lib")));
        assert!(!holds_core(directory.path()));
        std::fs::write(directory.path().join("libcore-0123.rlib"), [])?;
        assert!(holds_core(directory.path()));
        Ok(())
    }

    #[test]
    fn without_the_target_cargo_builds_the_standard_library() {
        let command = Toolchain::BuildStd.cargo("build");
        let arguments: Vec<_> = command.get_args().collect();
        assert!(arguments.contains(&"-Zbuild-std=core,alloc,compiler_builtins".as_ref()));
        let command = Toolchain::Installed.cargo("build");
        assert!(
            !command
                .get_args()
                .any(|argument| argument.to_string_lossy().contains("-Z"))
        );
    }

    #[test]
    fn a_compiler_that_is_not_there_has_no_target() {
        assert!(!target_is_installed(Path::new("/no/such/rustc")));
    }
}
