//! Room on the disk for all that a command makes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::testbed::paths;

/// The gibibytes below `target/` after every check and every test.
pub const FOR_TESTS: u64 = 7;
/// The gibibytes below `target/` after a run with a guest.
pub const FOR_RUN: u64 = 2;

const GIB: u64 = 1 << 30;

/// Sees to it that `target/` can grow to so many gibibytes.
///
/// # Errors
/// When there is no room for that; the error says how much is missing.
pub fn ensure(gib: u64) -> Result<()> {
    let target = paths::target();
    let disk = existing(&target);
    let state =
        rustix::fs::statvfs(disk).with_context(|| format!("cannot look at {}", disk.display()))?;
    let free = state.f_bavail.saturating_mul(state.f_frsize);
    let wanted = gib * GIB;
    // What is there already need not be made again; it is only looked at where it matters.
    if free >= wanted || free.saturating_add(size_of(target.clone())) >= wanted {
        return Ok(());
    }
    bail!(
        "no room: this needs {gib} GiB below {}, and its disk has {} MiB free; make room (`cargo clean` removes all \
         that was built there), or set CARGO_TARGET_DIR to a folder on another disk",
        target.display(),
        free >> 20
    );
}

/// Returns the nearest folder around `path` that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"))
}

/// Returns the bytes of all files below `folder`; what cannot be read has none.
fn size_of(folder: PathBuf) -> u64 {
    let mut folders = vec![folder];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_disk_has_room_for_is_told_with_what_to_do() {
        let error = ensure(u64::MAX / GIB).unwrap_err().to_string();
        assert!(error.starts_with("no room: this needs "), "{error}");
        assert!(error.contains("CARGO_TARGET_DIR"), "{error}");
    }

    #[test]
    fn the_files_of_a_folder_and_of_those_in_it_are_summed_up() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(folder.path().join("x"), [0; 100]).unwrap();
        fs::write(inner.join("y"), [0; 23]).unwrap();
        assert_eq!(size_of(folder.path().to_owned()), 123);
        assert_eq!(existing(&inner.join("not/there")), inner);
    }
}
