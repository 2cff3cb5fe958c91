//! Pictures of results, as SVG and as PNG.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::style::WHITE;

use super::font;

/// A picture that can be drawn, whatever the file's format.
pub(in crate::experiment) trait Picture {
    /// Returns width and height, in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws it on a white area of that size.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn draw_on<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static;
}

/// Draws `picture` as SVG and PNG: `base` with these endings.
///
/// # Errors
/// When a file cannot be read or written.
pub(in crate::experiment) fn draw<P: Picture>(picture: &P, base: &Path) -> Result<()> {
    font::load()?;
    let svg = base.with_extension("svg");
    let png = base.with_extension("png");
    draw_with(picture, SVGBackend::new(&svg, picture.size()))
        .with_context(|| format!("cannot draw {}", svg.display()))?;
    draw_with(picture, BitMapBackend::new(&png, picture.size()))
        .with_context(|| format!("cannot draw {}", png.display()))
}

fn draw_with<P: Picture, B: DrawingBackend>(picture: &P, backend: B) -> Result<()>
where
    B::ErrorType: 'static,
{
    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    picture.draw_on(&area)?;
    area.present()?;
    Ok(())
}
