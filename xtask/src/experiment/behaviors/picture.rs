//! Guest time against real time: how far the guest's clock is off, over the time of each case.

use std::path::Path;

use anyhow::Result;
use plotters::backend::DrawingBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, Rectangle};
use plotters::series::LineSeries;
use plotters::style::{Color, RGBColor};

use super::outcome::Outcome;
use crate::experiment::common::font::FONT;
use crate::experiment::common::picture::{self, Picture};

/// Panels beside each other, and the size of each.
const COLUMNS: usize = 4;
const PANEL: (u32, u32) = (420, 240);

const ANSWERED: RGBColor = RGBColor(31, 119, 180);
const REPORTED: RGBColor = RGBColor(214, 39, 40);
const SUPPRESSED: RGBColor = RGBColor(235, 235, 235);

/// Draws the outcomes as SVG and PNG: `base` with these endings.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn draw(base: &Path, outcomes: &[&Outcome]) -> Result<()> {
    if outcomes.is_empty() {
        return Ok(());
    }
    picture::draw(&Panels { outcomes }, base)
}

/// A panel for each outcome.
struct Panels<'a> {
    outcomes: &'a [&'a Outcome],
}

impl Picture for Panels<'_> {
    fn size(&self) -> (u32, u32) {
        let count = self.outcomes.len();
        let columns = count.clamp(1, COLUMNS) as u32;
        let rows = count.div_ceil(COLUMNS).max(1) as u32;
        (PANEL.0 * columns, PANEL.1 * rows)
    }

    fn draw_on<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let (width, height) = self.size();
        let grid = ((height / PANEL.1) as usize, (width / PANEL.0) as usize);
        for (area, outcome) in area.split_evenly(grid).iter().zip(self.outcomes) {
            draw_panel(area, outcome)?;
        }
        Ok(())
    }
}

/// Returns what the axes have to reach, with some room.
fn ranges(outcome: &Outcome) -> [(f64, f64); 2] {
    let points = || {
        let clock = &outcome.clock;
        clock.curve.iter().chain(&clock.reported_curve).copied()
    };
    let range = |values: &mut dyn Iterator<Item = f64>, least: f64| {
        let (low, high) = values.fold((0.0_f64, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let room = ((high - low) * 0.08).max(least);
        (low - room, high + room)
    };
    [
        range(&mut points().map(|(at, _)| at), 0.0),
        range(&mut points().map(|(_, ms)| ms), 0.5),
    ]
}

fn draw_panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, outcome: &Outcome) -> Result<()>
where
    B::ErrorType: 'static,
{
    let [(first, last), (low, high)] = ranges(outcome);
    let title = format!(
        "{} ({}, {} VCPU)",
        outcome.case.title,
        outcome.place.series.name(),
        outcome.place.vcpus
    );
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 14))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(62)
        .build_cartesian_2d(first..last, low..high)?;
    let released = outcome.clock.suppressed_seconds;
    chart.draw_series([Rectangle::new(
        [(0.0, low), (released, high)],
        SUPPRESSED.filled(),
    )])?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(6)
        .y_labels(5)
        .x_desc("real time, s")
        .y_desc("guest time ahead, ms")
        .label_style((FONT, 11))
        .draw()?;
    let curve = outcome.clock.curve.iter().copied();
    chart.draw_series(LineSeries::new(curve, ANSWERED.stroke_width(1)))?;
    let reported = outcome.clock.reported_curve.iter();
    chart.draw_series(reported.map(|&point| Circle::new(point, 2, REPORTED.filled())))?;
    Ok(())
}
