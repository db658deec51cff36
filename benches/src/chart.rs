//! The report's drawing for the README: how much of the limit promptq reaches, and how many times it is ahead of the peers.
//! Dark on a white card, so that it can be read on a page of either colour.

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::account::{Figure, short};
use crate::report::Report;

const WIDTH: i32 = 860;
const ROW: i32 = 22;
/// Where bars begin and how far they may go; what is left is for words.
const LEFT: i32 = 250;
const RIGHT: i32 = 690;

const INK: RGBColor = RGBColor(31, 35, 40);
const PALE: RGBColor = RGBColor(101, 109, 118);
const OURS: RGBColor = RGBColor(9, 105, 218);
const THEIRS: RGBColor = RGBColor(26, 127, 55);
const EDGE: RGBColor = RGBColor(208, 215, 222);

const CONTESTS: [(&str, &str); 4] = [
    ("redis", "Redis, everysec"),
    ("quorum", "RabbitMQ, quorum"),
    ("classic", "RabbitMQ, classic"),
    ("sqlite", "SQLite, FULL"),
];

/// One bar.
struct Bar {
    name: String,
    figure: Figure,
}

/// The drawing, as SVG.
///
/// # Errors
/// When the report has nothing to be drawn.
pub fn svg(report: &Report) -> anyhow::Result<String> {
    let (limits, peers) = (limits(report), peers(report));
    anyhow::ensure!(!limits.is_empty() || !peers.is_empty(), "the report has no drain to draw");
    let rows = i32::try_from(limits.len() + peers.len())?;
    let height = 156 + rows * ROW;
    let mut text = String::new();
    {
        let area =
            SVGBackend::with_string(&mut text, (WIDTH.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
        let canvas = Canvas { area: &area };
        canvas.card(height)?;
        let scale = limits.iter().map(|bar| bar.figure.high).fold(1.0, f64::max);
        let mut y = canvas.heading(24, "Jobs per second as a share of the limit program with the same writes", PALE)?;
        for bar in &limits {
            canvas.bar(y, bar, (bar.figure.median / scale, OURS), &format!("{}", bar.figure))?;
            y += ROW;
        }
        canvas.mark(y - ROW * i32::try_from(limits.len())?, y, 0.85 / scale)?;
        y = canvas.heading(y + 18, "Drain: how many times as many jobs per second as (logarithmic)", PALE)?;
        let most = peers.iter().map(|bar| bar.figure.median).fold(2.0, f64::max).ln();
        for bar in &peers {
            let share = (bar.figure.median.max(1.0).ln() / most).max(0.004);
            canvas.bar(y, bar, (share, THEIRS), &format!("{} x", bar.figure))?;
            y += ROW;
        }
        let [made, read] = caption(report);
        canvas.words(made, (16, height - 34), (14, PALE), HPos::Left)?;
        canvas.words(read, (16, height - 16), (14, PALE), HPos::Left)?;
        area.present().map_err(wrong)?;
    }
    Ok(text)
}

fn limits(report: &Report) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (contest, name) in CONTESTS {
        for measure in ["enqueue", "drain", "live"] {
            let figure = report.ratio(contest, measure, "promptq", "limit");
            bars.extend(figure.map(|figure| Bar { name: format!("{name}: {measure}"), figure }));
        }
    }
    bars
}

fn peers(report: &Report) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (contest, name) in CONTESTS {
        for peer in report.contestants(contest, "drain") {
            if !matches!(peer, "promptq" | "limit" | "bare" | "raw") {
                let figure = report.ratio(contest, "drain", "promptq", peer);
                bars.extend(figure.map(|figure| Bar { name: format!("{name}: {peer}"), figure }));
            }
        }
    }
    bars
}

/// When and on what, and what the figures are.
fn caption(report: &Report) -> [String; 2] {
    let day = report.date.split('T').next().unwrap_or_default();
    let machine = &report.machine;
    let rounds = report.samples.iter().map(|sample| sample.round).max().unwrap_or(0);
    let (form, processors) = (&report.form, machine.processors);
    [
        format!("{day}, {form} run, up to {rounds} rounds; {processors} x {}, {}", machine.processor, machine.kernel),
        "Medians of ratios taken round by round, with their intervals".to_owned(),
    ]
}

struct Canvas<'a, 'b> {
    area: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
}

impl Canvas<'_, '_> {
    fn card(&self, height: i32) -> anyhow::Result<()> {
        let corners = [(0, 0), (WIDTH - 1, height - 1)];
        self.area.draw(&Rectangle::new(corners, WHITE.filled())).map_err(wrong)?;
        self.area.draw(&Rectangle::new(corners, EDGE.stroke_width(1))).map_err(wrong)
    }

    /// Where the rows below it begin.
    fn heading(&self, y: i32, text: &str, color: RGBColor) -> anyhow::Result<i32> {
        self.words(text.to_owned(), (16, y), (17, color), HPos::Left)?;
        Ok(y + 22)
    }

    fn bar(&self, y: i32, bar: &Bar, (share, color): (f64, RGBColor), words: &str) -> anyhow::Result<()> {
        let middle = y + ROW / 2;
        self.words(bar.name.clone(), (LEFT - 8, middle), (16, INK), HPos::Right)?;
        self.area.draw(&Rectangle::new([(LEFT, y + 4), (along(share), y + ROW - 4)], color.filled())).map_err(wrong)?;
        self.words(words.to_owned(), (along(share) + 8, middle), (16, INK), HPos::Left)
    }

    /// The goal, across all bars.
    fn mark(&self, top: i32, bottom: i32, share: f64) -> anyhow::Result<()> {
        let x = along(share);
        self.area.draw(&PathElement::new(vec![(x, top), (x, bottom)], PALE.stroke_width(1))).map_err(wrong)?;
        self.words(short(0.85), (x, top - 8), (14, PALE), HPos::Center)
    }

    fn words(&self, text: String, at: (i32, i32), (points, color): (u32, RGBColor), side: HPos) -> anyhow::Result<()> {
        let style = ("sans-serif", points).into_font().color(&color).pos(Pos::new(side, VPos::Center));
        self.area.draw(&Text::new(text, at, style)).map_err(wrong)
    }
}

fn wrong(why: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the chart cannot be drawn: {why}")
}

/// So far along from where bars begin.
fn along(share: f64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most the card's width")]
    let width = (f64::from(RIGHT - LEFT) * share.clamp(0.0, 1.0)).round() as i32;
    LEFT + width
}
