//! SeaBIOS as Debian builds it: fetched and unpacked but never installed.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::testbed::progress::Step;
use crate::testbed::{paths, provision};

/// The package.
const PACKAGE: &str = "seabios";
/// The image in it: the larger one, which has drivers for all that can be booted from.
const IMAGE: &str = "usr/share/seabios/bios-256k.bin";

/// Returns the image of SeaBIOS, from `target/downloads` or else from Debian's archive.
///
/// # Errors
/// When the archive has none or cannot be reached.
pub fn fetch() -> Result<PathBuf> {
    let directory = paths::downloads().join("firmware");
    let kept = directory.join("bios-256k.bin");
    if kept.exists() {
        return Ok(kept);
    }
    let _step = Step::begin(format!("Fetching {PACKAGE} from Debian's archive"));
    let unpacked = match provision::unpack(&[PACKAGE], &directory) {
        Ok(unpacked) => unpacked,
        Err(_) => {
            // The archive has moved on from the version that apt's lists name.
            provision::update_package_lists()?;
            provision::unpack(&[PACKAGE], &directory)?
        }
    };
    // Under its name only when it is whole: other runs use it, too.
    std::fs::rename(unpacked.path().join(IMAGE), &kept)
        .with_context(|| format!("{PACKAGE} holds no {IMAGE}"))?;
    Ok(kept)
}
