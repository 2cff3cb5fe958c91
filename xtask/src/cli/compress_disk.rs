//! `cargo xtask compress-disk`: makes a compressed disk image of a raw one.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::testbed::{paths, qcow2};

/// What to compress.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// The raw disk image
    #[arg(value_name = "IN")]
    from: PathBuf,
    /// Where to write the compressed one
    #[arg(value_name = "OUT")]
    to: PathBuf,
}

/// Makes the image, and prints how much smaller it is.
///
/// # Errors
/// When the files cannot be read and written, or the first is no raw image.
pub(super) fn run(options: &Options) -> Result<()> {
    let sizes = qcow2::compress(&options.from, &options.to)?;
    println!(
        "{}: {:.1} MiB for a disk of {:.1} MiB",
        paths::shown(&options.to),
        mebibytes(sizes.image),
        mebibytes(sizes.disk)
    );
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
