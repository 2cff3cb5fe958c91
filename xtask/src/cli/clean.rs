//! `cargo xtask clean`: removes what xtask made.

use anyhow::{Context, Result};
use clap::Args;

use crate::testbed::paths;

/// What to remove.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Options {
    /// Also the downloaded kernels: the next command fetches the newest
    #[arg(long)]
    downloads: bool,
}

/// Removes images and logs.
///
/// # Errors
/// When something cannot be removed.
pub(super) fn run(options: Options) -> Result<()> {
    let mut directories = vec![paths::images(), paths::logs()];
    if options.downloads {
        directories.push(paths::downloads());
    }
    for directory in directories {
        match std::fs::remove_dir_all(&directory) {
            Ok(()) => eprintln!("Removed {}", paths::shown(&directory)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot remove {}", directory.display()));
            }
        }
    }
    Ok(())
}
