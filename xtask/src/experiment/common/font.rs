//! The font of the pictures: one file, from a Debian package, for SVG and PNG alike.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use plotters::style::{FontStyle, register_font};

/// Its name in the pictures.
pub(in crate::experiment) const FONT: &str = "sans-serif";
/// The packages that it is from.
pub(in crate::experiment) const PACKAGES: &[&str] = &["fonts-dejavu-core"];

/// The path of the font's file.
pub(in crate::experiment) const FILE: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// Makes the font known to the drawing library; more than once does no harm.
///
/// # Errors
/// When its file cannot be read, or is no font.
pub(in crate::experiment) fn load() -> Result<()> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || {
        let bytes = std::fs::read(FILE).map_err(|error| format!("{FILE}: {error}"))?;
        // For as long as the program runs, and once.
        register_font(FONT, FontStyle::Normal, bytes.leak())
            .map_err(|_| format!("{FILE} is no font"))
    };
    LOADED
        .get_or_init(load)
        .clone()
        .map_err(|error| anyhow!(error))
}
