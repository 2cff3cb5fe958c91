//! The documents: the files that they send their readers to are there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use regex::Regex;

/// Returns all files below `folder` but those that are built.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "target" && name != ".git" {
                found.extend(files(&entry.path())?);
            }
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Returns the paths of source files that `text` names in backticks, as in `vm/mod.rs`.
fn named_sources(text: &str) -> Result<Vec<&str>> {
    let pattern = Regex::new(r"`([\w./-]+\.rs)`")?;
    let names = pattern.captures_iter(text).filter_map(|found| found.get(1));
    Ok(names.map(|name| name.as_str()).collect())
}

#[test]
fn files_that_documents_name_exist() -> Result<()> {
    let workspace = xtask::testbed::paths::workspace();
    let all = files(workspace)?;
    let mut missing = Vec::new();
    for document in all
        .iter()
        .filter(|file| file.extension().is_some_and(|it| it == "md"))
    {
        let text = fs::read_to_string(document)?;
        for name in named_sources(&text)? {
            if !all.iter().any(|file| file.ends_with(name)) {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "no such files: {missing:#?}");
    Ok(())
}

#[test]
fn names_of_source_files_are_found_in_a_text() -> Result<()> {
    let text = "See `vm/mod.rs` and `docs/x.md`, not a.rs; `b-c.rs`.";
    assert_eq!(named_sources(text)?, ["vm/mod.rs", "b-c.rs"]);
    Ok(())
}
