//! The attack over time: what the server answers, how fast, and what the honest process does.

use std::path::Path;

use anyhow::Result;
use plotters::backend::DrawingBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{Rectangle, Text};
use plotters::series::LineSeries;
use plotters::style::{Color, RGBColor};

use super::measured::{Measured, Moment};
use super::outcome::{Outcome, PHASES};
use crate::experiment::common::font::FONT;
use crate::experiment::common::picture::{self, Picture};

/// The size of a panel.
const PANEL: (u32, u32) = (560, 210);
/// The panels of an outcome, one below the other.
const ROWS: usize = 3;

const LINE: RGBColor = RGBColor(31, 119, 180);
const WORST: RGBColor = RGBColor(214, 39, 40);
/// The backgrounds of the phases.
const GROUNDS: [RGBColor; PHASES.len()] = [
    RGBColor(255, 255, 255),
    RGBColor(250, 226, 222),
    RGBColor(226, 240, 226),
    RGBColor(250, 226, 222),
];

/// Draws the outcomes beside each other as SVG and PNG: `base` with these endings.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn draw(base: &Path, outcomes: &[&Outcome]) -> Result<()> {
    if outcomes.is_empty() {
        return Ok(());
    }
    picture::draw(&Panels { outcomes }, base)
}

/// A column of panels for each outcome.
struct Panels<'a> {
    outcomes: &'a [&'a Outcome],
}

impl Picture for Panels<'_> {
    fn size(&self) -> (u32, u32) {
        (PANEL.0 * self.outcomes.len() as u32, PANEL.1 * ROWS as u32)
    }

    fn draw_on<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let columns = area.split_evenly((1, self.outcomes.len()));
        for (column, outcome) in columns.iter().zip(self.outcomes) {
            let panels = column.split_evenly((ROWS, 1));
            for (panel, quantity) in panels.iter().zip(&QUANTITIES) {
                draw_panel(panel, outcome, quantity)?;
            }
        }
        Ok(())
    }
}

/// A quantity of a moment. There may be a second line: the worst that some saw.
struct Quantity {
    title: &'static str,
    of: fn(&Moment) -> Option<f64>,
    worst: fn(&Moment) -> Option<f64>,
}

const QUANTITIES: [Quantity; ROWS] = [
    Quantity {
        title: "requests/s",
        of: |moment| Some(moment.requests_per_second),
        worst: |_| None,
    },
    Quantity {
        title: "ms: median, p99",
        of: |moment| Some(moment.latency_ms?[0]),
        worst: |moment| Some(moment.latency_ms?[1]),
    },
    Quantity {
        title: "honest units/s",
        of: |moment| Some(moment.honest_per_second),
        worst: |_| None,
    },
];

/// Returns where a phase begins and ends on the axis of time, whose origin is `start`.
fn span(phase: &Measured, start: f64) -> Option<[f64; 2]> {
    let (first, last) = phase.moments.first().zip(phase.moments.last())?;
    Some([first.at - start, last.at - start])
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    outcome: &Outcome,
    quantity: &Quantity,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let moments = || outcome.phases.iter().flat_map(|phase| &phase.moments);
    let start = moments().next().map_or(0.0, |moment| moment.at);
    let end = moments().last().map_or(1.0, |moment| moment.at - start);
    let values = moments().flat_map(|moment| [(quantity.of)(moment), (quantity.worst)(moment)]);
    let top = values.flatten().fold(0.0, f64::max) * 1.15;
    let title = format!("{} CPU: {}", outcome.cpus, quantity.title);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 14))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..end.max(0.1), 0.0..top.max(0.1))?;
    for ((phase, name), ground) in outcome.phases.iter().zip(PHASES).zip(GROUNDS) {
        if let Some([from, to]) = span(phase, start) {
            let corners = [(from, 0.0), (to, top)];
            chart.draw_series([Rectangle::new(corners, ground.filled())])?;
            let label = Text::new(name, (from, top), (FONT, 12));
            chart.draw_series([label])?;
        }
    }
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(8)
        .y_labels(5)
        .x_desc("host time, s")
        .label_style((FONT, 11))
        .draw()?;
    for phase in &outcome.phases {
        for (value, color) in [(quantity.of, LINE), (quantity.worst, WORST)] {
            let points = phase.moments.iter();
            let points = points.filter_map(|moment| Some((moment.at - start, value(moment)?)));
            chart.draw_series(LineSeries::new(points, color.stroke_width(1)))?;
        }
    }
    Ok(())
}
