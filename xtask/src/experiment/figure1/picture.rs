//! The two rows of Figure 1, as measured: who had the VCPU, and when its timer ticked.

use std::path::Path;

use anyhow::Result;
use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::drawing::DrawingArea;
use plotters::element::{PathElement, Polygon, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::timeline::Timeline;
use crate::experiment::common::font::FONT;
use crate::experiment::common::picture::{self, Picture};

const SIZE: (u32, u32) = (1120, 470);
/// The ends of the time axis, left and right.
const LEFT: i32 = 150;
const RIGHT: i32 = 1080;
/// The tops of the rows' blocks, and their height.
const TOPS: [i32; 2] = [120, 280];
const HEIGHT: i32 = 56;
/// The height of a tick's arrow above the blocks.
const ARROW: i32 = 30;

const INK: RGBColor = RGBColor(40, 40, 40);
const FILLS: [RGBColor; 2] = [RGBColor(244, 177, 131), RGBColor(189, 215, 238)];

/// A row: its caption, in two lines, and what was measured.
pub(super) struct Row<'a> {
    pub caption: [String; 2],
    pub timeline: &'a Timeline,
}

/// Draws the rows over `window` milliseconds from the first slice of A on, as SVG and PNG:
/// `base` with these endings.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn draw(base: &Path, title: &str, rows: &[Row<'_>; 2], window: f64) -> Result<()> {
    let figure = Figure {
        title,
        rows,
        window,
    };
    picture::draw(&figure, base)
}

/// All that is drawn.
struct Figure<'a> {
    title: &'a str,
    rows: &'a [Row<'a>; 2],
    window: f64,
}

impl Picture for Figure<'_> {
    fn size(&self) -> (u32, u32) {
        SIZE
    }

    fn draw_on<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()>
    where
        B::ErrorType: 'static,
    {
        area.draw(&Text::new(
            self.title.to_owned(),
            (SIZE.0 as i32 / 2, 28),
            text(20, HPos::Center, VPos::Center),
        ))?;
        for (row, top) in self.rows.iter().zip(TOPS) {
            draw_row(area, row, top, self.window)?;
        }
        draw_legend(area)
    }
}

fn text(size: u32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    (FONT, size)
        .into_font()
        .color(&INK)
        .pos(Pos::new(horizontal, vertical))
}

fn line(width: u32) -> ShapeStyle {
    INK.stroke_width(width)
}

fn draw_row<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    row: &Row<'_>,
    top: i32,
    window: f64,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let timeline = row.timeline;
    let bottom = top + HEIGHT;
    // Not one that another process cut short.
    let whole = timeline.mean(0) / 2.0;
    let first = timeline
        .slices
        .iter()
        .find(|slice| slice.process == 0 && slice.length() > whole);
    let start = first.map_or(0.0, |slice| slice.from);
    let x = |ms: f64| {
        let part = ((ms - start) / window).clamp(0.0, 1.0);
        LEFT + (part * f64::from(RIGHT - LEFT)).round() as i32
    };
    let end = start + window;

    for (caption, down) in row.caption.iter().zip([-11, 11]) {
        area.draw(&Text::new(
            caption.clone(),
            (LEFT - 14, top + HEIGHT / 2 + down),
            text(15, HPos::Right, VPos::Center),
        ))?;
    }
    for slice in &timeline.slices {
        if slice.to <= start || slice.from >= end {
            continue;
        }
        let (left, right) = (x(slice.from), x(slice.to));
        let corners = [(left, top), (right, bottom)];
        area.draw(&Rectangle::new(corners, FILLS[slice.process].filled()))?;
        area.draw(&Rectangle::new(corners, line(1)))?;
        let name = ["A", "B"][slice.process];
        let middle = (left + right) / 2;
        if right - left > 16 {
            area.draw(&Text::new(
                name,
                (middle, top + HEIGHT / 2 - 9),
                text(18, HPos::Center, VPos::Center),
            ))?;
        }
        // What is cut off by a pixel or so is seen whole.
        if slice.to <= end + window / 500.0 && right - left > 50 {
            area.draw(&Text::new(
                format!("{:.1} ms", slice.length()),
                (middle, top + HEIGHT / 2 + 14),
                text(13, HPos::Center, VPos::Center),
            ))?;
        }
    }
    for &tick in &timeline.ticks {
        // The one just before the first slice is the one that began it.
        if tick >= start - window / 200.0 && tick <= end {
            draw_arrow(area, x(tick), top)?;
        }
    }
    draw_axis(area, bottom + 10, window, &|ms| x(start + ms))
}

/// Returns an arrow from above onto a block.
fn draw_arrow<B: DrawingBackend>(area: &DrawingArea<B, Shift>, x: i32, top: i32) -> Result<()>
where
    B::ErrorType: 'static,
{
    let point = top - 2;
    area.draw(&PathElement::new(
        vec![(x, top - ARROW), (x, point - 4)],
        line(1),
    ))?;
    let head = vec![(x, point), (x - 4, point - 9), (x + 4, point - 9)];
    area.draw(&Polygon::new(head, INK.filled()))?;
    Ok(())
}

fn draw_axis<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    y: i32,
    window: f64,
    x: &impl Fn(f64) -> i32,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    area.draw(&PathElement::new(vec![(LEFT, y), (RIGHT + 14, y)], line(1)))?;
    let head = vec![(RIGHT + 22, y), (RIGHT + 13, y - 4), (RIGHT + 13, y + 4)];
    area.draw(&Polygon::new(head, INK.filled()))?;
    let step = window / 8.0;
    for mark in 0..=8 {
        let ms = f64::from(mark) * step;
        area.draw(&PathElement::new(
            vec![(x(ms), y - 3), (x(ms), y + 4)],
            line(1),
        ))?;
        let unit = if mark == 8 { " ms" } else { "" };
        area.draw(&Text::new(
            format!("{ms:.0}{unit}"),
            (x(ms), y + 14),
            text(13, HPos::Center, VPos::Center),
        ))?;
    }
    Ok(())
}

fn draw_legend<B: DrawingBackend>(area: &DrawingArea<B, Shift>) -> Result<()>
where
    B::ErrorType: 'static,
{
    let y = SIZE.1 as i32 - 36;
    draw_arrow(area, LEFT + 6, y + ARROW / 2)?;
    area.draw(&Text::new(
        "timer interrupt; time is the host's, from the first switch to A on, as traced by tarpit",
        (LEFT + 22, y),
        text(14, HPos::Left, VPos::Center),
    ))?;
    Ok(())
}
