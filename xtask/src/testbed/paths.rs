//! Where things are: the workspace and what lies under its `target/`.

use std::path::{Path, PathBuf};

/// Returns the root of the workspace: the folder of the top `Cargo.toml`.
pub fn workspace() -> &'static Path {
    // The crate lies one level below the root, wherever the repository was cloned to.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Returns Cargo's target directory. Everything that xtask makes or fetches is below it.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Returns where downloads are, which outlive `cargo xtask clean`.
pub fn downloads() -> PathBuf {
    target().join("downloads")
}

/// Returns where bootable images and initramfs archives are.
pub fn images() -> PathBuf {
    target().join("images")
}

/// Returns where console transcripts and emulator logs are, one set a run.
pub fn logs() -> PathBuf {
    target().join("logs")
}

/// Shows `path` as a person in the workspace would type it.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(workspace()).unwrap_or(path).display()
}
