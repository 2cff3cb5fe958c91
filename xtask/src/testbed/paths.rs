//! Where things are: the workspace and what lies under its `target/`.

use std::path::{Path, PathBuf};

/// The root of the workspace: the folder of the top `Cargo.toml`.
pub fn workspace() -> &'static Path {
    // The crate lies one level below the root, wherever the repository was cloned to.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Cargo's target directory. Everything that xtask makes or fetches is below it.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Downloads, which outlive `cargo xtask clean`.
pub fn downloads() -> PathBuf {
    target().join("downloads")
}

/// Bootable images and initramfs archives.
pub fn images() -> PathBuf {
    target().join("images")
}

/// Console transcripts and emulator logs, one set a run.
pub fn logs() -> PathBuf {
    target().join("logs")
}

/// `path` as a person in the workspace would type it.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(workspace()).unwrap_or(path).display()
}
