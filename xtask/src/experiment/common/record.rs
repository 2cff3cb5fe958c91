//! Where results go: to the user, and to files below `target/experiments`.

use std::fmt::Display;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::testbed::paths;

/// Prints what came out of the experiment `name`, writes it to `target/experiments/NAME.json`, and
/// names the requirements that it missed. True if it missed none.
pub(in crate::experiment) fn conclude(
    name: &str,
    outcome: &impl Display,
    json: &serde_json::Value,
    misses: &[String],
) -> Result<bool> {
    println!("{outcome}");
    let path = write_json(name, json)?;
    println!("Written to {}", paths::shown(&path));
    for miss in misses {
        println!("MISSED: {miss}");
    }
    Ok(misses.is_empty())
}

/// Returns the directory `target/experiments`, which is made where it is missing.
pub(in crate::experiment) fn directory() -> Result<PathBuf> {
    let directory = paths::target().join("experiments");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Writes `target/experiments/NAME.json`.
pub(in crate::experiment) fn write_json(name: &str, value: &serde_json::Value) -> Result<PathBuf> {
    let path = directory()?.join(format!("{name}.json"));
    std::fs::write(&path, format!("{value:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
