//! The target's speed, drawn against N and against the number of VCPUs.

use std::path::Path;

use anyhow::Result;
use plotters::backend::DrawingBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, PathElement};
use plotters::prelude::LogCoord;
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::{BLACK, Color, RGBColor, WHITE};

use super::outcome::{Outcome, PAPER, Placement};
use crate::experiment::common::font::FONT;
use crate::experiment::common::picture::{self, Picture};

const SIZE: (u32, u32) = (1160, 520);

const COLORS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
];
const REFERENCE: RGBColor = RGBColor(110, 110, 110);

/// Draws the outcomes as SVG and PNG: `base` with these endings.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn draw(base: &Path, outcomes: &[Outcome]) -> Result<()> {
    picture::draw(&Charts { outcomes }, base)
}

/// The two charts.
struct Charts<'a> {
    outcomes: &'a [Outcome],
}

/// A line of a chart.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
    is_reference: bool,
}

impl Curve {
    fn reference(name: &str, points: [(f64, f64); 2]) -> Self {
        Self {
            name: name.to_owned(),
            points: points.to_vec(),
            is_reference: true,
        }
    }
}

/// A chart's words, and what its horizontal axis shows.
struct Axes {
    title: &'static str,
    x: &'static str,
    /// Largest and smallest.
    range: (f64, f64),
}

/// Returns the ratio to draw: where not one unit of work was done, what half of one would make.
fn drawn_ratios(outcome: &Outcome) -> impl Iterator<Item = (u32, f64)> {
    outcome.suppressed.iter().map(|strength| {
        let least = outcome.resolution(strength) / 2.0;
        (strength.n, outcome.target_ratio(strength).max(least))
    })
}

/// Returns the ratio against N, a curve for each case.
fn by_n(outcomes: &[Outcome], most: f64) -> Vec<Curve> {
    let cases = outcomes.iter().map(|outcome| {
        let ratios = drawn_ratios(outcome).map(|(n, ratio)| (f64::from(n), ratio));
        Curve {
            name: outcome.case.to_string(),
            points: std::iter::once((1.0, 1.0)).chain(ratios).collect(),
            is_reference: false,
        }
    });
    let ideal = Curve::reference("1/N", [(1.0, 1.0), (most, 1.0 / most)]);
    let paper = Curve::reference("paper, N = 1000: 1/4000", [(1.0, PAPER), (most, PAPER)]);
    cases.chain([ideal, paper]).collect()
}

/// Returns the ratio against the number of VCPUs, a curve for each N and placement. A single VCPU
/// belongs to both placements.
fn by_vcpus(outcomes: &[Outcome], most: f64) -> Vec<Curve> {
    let mut strengths: Vec<u32> = outcomes
        .iter()
        .flat_map(|outcome| outcome.suppressed.iter().map(|strength| strength.n))
        .collect();
    strengths.sort_unstable();
    strengths.dedup();
    let mut curves = Vec::new();
    for n in strengths {
        for (placement, name) in [
            (Placement::Pinned, "one CPU"),
            (Placement::Spread, "a CPU each"),
        ] {
            if !outcomes.iter().any(|it| it.case.placement == placement) {
                continue;
            }
            let of_case = outcomes
                .iter()
                .filter(|outcome| outcome.case.placement == placement || outcome.case.vcpus == 1);
            let points = of_case.flat_map(|outcome| {
                let vcpus = f64::from(outcome.case.vcpus);
                drawn_ratios(outcome)
                    .filter(move |&(strength, _)| strength == n)
                    .map(move |(_, ratio)| (vcpus, ratio))
            });
            curves.push(Curve {
                name: format!("N = {n}, {name}"),
                points: points.collect(),
                is_reference: false,
            });
        }
    }
    curves.push(Curve::reference(
        "paper, N = 1000: 1/4000",
        [(1.0, PAPER), (most, PAPER)],
    ));
    curves
}

impl Picture for Charts<'_> {
    fn size(&self) -> (u32, u32) {
        SIZE
    }

    fn draw_on<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        let outcomes = self.outcomes;
        let (left, right) = area.split_horizontally(SIZE.0 as i32 / 2);
        let strongest = outcomes.iter().flat_map(|it| &it.suppressed).map(|it| it.n);
        let most_n = f64::from(strongest.max().unwrap_or(1000));
        let most_vcpus = f64::from(outcomes.iter().map(|it| it.case.vcpus).max().unwrap_or(1));
        draw_chart(
            &left,
            &Axes {
                title: "Target's speed by N",
                x: "N (timer intervals 1/N, clock N times as fast)",
                range: (1.0, most_n),
            },
            &by_n(outcomes, most_n),
        )?;
        draw_chart(
            &right,
            &Axes {
                title: "Target's speed by VCPUs",
                x: "VCPUs",
                range: (1.0, most_vcpus.max(2.0)),
            },
            &by_vcpus(outcomes, most_vcpus.max(2.0)),
        )?;
        Ok(())
    }
}

/// Returns a logarithmic axis, with some room at either end.
fn axis(from: f64, to: f64) -> LogCoord<f64> {
    let range: std::ops::Range<f64> = from / 1.15..to * 1.15;
    range.log_scale().into()
}

fn draw_chart<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    axes: &Axes,
    curves: &[Curve],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let ratios = curves.iter().flat_map(|curve| &curve.points);
    let least = ratios.map(|&(_, ratio)| ratio).fold(PAPER, f64::min);
    let mut chart = ChartBuilder::on(area)
        .caption(axes.title, (FONT, 20))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(84)
        // The legend has the room below.
        .build_cartesian_2d(axis(axes.range.0, axes.range.1), axis(least / 30.0, 1.0))?;
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc("speed, of that before")
        .label_style((FONT, 13))
        .light_line_style(WHITE)
        .x_label_formatter(&|x| format!("{}", x.round()))
        .y_label_formatter(&|y| one_in(*y))
        .draw()?;
    for (index, curve) in curves.iter().enumerate() {
        let points = curve.points.iter().copied();
        if curve.is_reference {
            let style = REFERENCE.stroke_width(2);
            let dash = if curve.name == "1/N" { 3 } else { 9 };
            chart
                .draw_series(DashedLineSeries::new(points, dash, 5, style))?
                .label(&curve.name)
                .legend(move |(x, y)| {
                    let mark = vec![(x, y), (x + dash, y)];
                    PathElement::new(mark, style)
                });
        } else {
            let color = COLORS[index % COLORS.len()];
            chart
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
                .label(&curve.name)
                .legend(move |(x, y)| {
                    PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2))
                });
            chart.draw_series(points.map(|point| Circle::new(point, 4, color.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font((FONT, 12))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Returns a ratio as "1/4000".
fn one_in(ratio: f64) -> String {
    if ratio > 0.99 {
        "1".to_owned()
    } else {
        format!("1/{}", (1.0 / ratio).round())
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;
    use crate::experiment::common::font;

    #[test]
    fn a_target_that_did_nothing_is_drawn_at_half_a_unit() {
        let drawn: Vec<_> = drawn_ratios(&outcome(0.0, 1330.0)).collect();
        assert_eq!(drawn[0], (2, 0.571));
        assert_eq!(drawn[1].0, 1000);
        assert!((drawn[1].1 - 0.00025).abs() < 1e-9);
    }

    #[test]
    fn the_picture_has_every_case_and_the_papers_result() -> Result<()> {
        if !Path::new(font::FILE).exists() {
            eprintln!("no {}: not drawn", font::FILE);
            return Ok(());
        }
        let directory = tempfile::tempdir()?;
        let base = directory.path().join("picture");
        let mut spread = outcome(0.3, 1330.0);
        spread.case.vcpus = 4;
        spread.case.placement = Placement::Spread;
        draw(&base, &[outcome(0.5, 1330.0), spread])?;
        let svg = std::fs::read_to_string(base.with_extension("svg"))?;
        for words in [
            "1 VCPU on 1 CPU",
            "4 VCPUs on 4 CPUs",
            "N = 1000, a CPU each",
            "1/4000",
        ] {
            assert!(svg.contains(words), "{words}");
        }
        assert!(std::fs::metadata(base.with_extension("png"))?.len() > 1000);
        Ok(())
    }

    #[test]
    fn ratios_are_read_as_fractions() {
        assert_eq!(one_in(0.001), "1/1000");
        assert_eq!(one_in(1.0), "1");
    }
}
