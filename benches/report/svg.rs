//! Pictures.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::results::{Outcome, Spread, number};

const LABELS: f64 = 270.0;
const WIDTH: f64 = 400.0;
const ROW: f64 = 20.0;

/// Whose figure a bar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// Measured in the same run.
    Reference,
    /// Not measured beside ours.
    MeasuredOnce,
}

pub(crate) struct Bar {
    label: String,
    spread: Spread,
    kind: Kind,
}

impl Bar {
    pub(crate) fn of(label: &str, spread: Spread, kind: Kind) -> Self {
        Self { label: label.to_owned(), spread, kind }
    }

    pub(crate) fn measured_once(label: &str, figure: f64) -> Self {
        Self::of(&format!("{label} (measured once)"), Spread::of(&[figure]), Kind::MeasuredOnce)
    }
}

/// Horizontal bars on one scale, which begins at nothing.
pub(crate) fn bars(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.spread.highest).fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * bars.len() as f64;
    let mut text = open(LABELS + WIDTH + 90.0, height);
    text.push_str(
        "<defs><pattern id='once' width='6' height='6' patternUnits='userSpaceOnUse' patternTransform='rotate(45)'>\
         <rect width='6' height='6' fill='#eee'/><line x1='0' y1='0' x2='0' y2='6' stroke='#999' stroke-width='3'/></pattern></defs>",
    );
    for (place, bar) in bars.iter().enumerate() {
        let (y, x) = (place as f64 * ROW, |value: f64| LABELS + value / most * WIDTH);
        let fill = match bar.kind {
            Kind::Ours => "#3367d6",
            Kind::Reference => "#9aa0a6",
            Kind::MeasuredOnce => "url(#once)",
        };
        let Spread { median, lowest, highest, .. } = bar.spread;
        let _ = write!(
            text,
            "<text x='{:.1}' y='{:.1}' text-anchor='end'>{}</text>\
             <rect x='{LABELS}' y='{:.1}' width='{:.1}' height='14' fill='{fill}'/>\
             <line x1='{:.1}' x2='{:.1}' y1='{mid:.1}' y2='{mid:.1}' stroke='#222'/>\
             <text x='{:.1}' y='{:.1}'>{}</text>",
            LABELS - 6.0,
            y + 14.0,
            escape(&bar.label),
            y + 3.0,
            x(median) - LABELS,
            x(lowest),
            x(highest),
            x(highest) + 6.0,
            y + 14.0,
            number(median),
            mid = y + 10.0,
        );
    }
    text + "</svg>\n"
}

/// For each bench whose figures have places on a scale, a line of them: the name of the bench and the picture.
pub(crate) fn lines_of(outcomes: &[Outcome]) -> Vec<(String, String)> {
    let placed = || outcomes.iter().filter(|outcome| outcome.at.is_some());
    let benches: BTreeSet<&str> = placed().map(|outcome| &*outcome.bench).collect();
    let draw = |bench: &str| {
        let points: Vec<&Outcome> = placed().filter(|outcome| outcome.bench == bench).collect();
        (bench.to_owned(), line(&points))
    };
    benches.into_iter().map(draw).collect()
}

/// A line over a logarithmic scale, and the reference of its points dashed.
fn line(points: &[&Outcome]) -> String {
    let places = || points.iter().filter_map(|point| point.at);
    let (first, last) = (places().fold(f64::MAX, f64::min), places().fold(f64::MIN_POSITIVE, f64::max));
    let most = points
        .iter()
        .flat_map(|point| [Some(point.figure.highest), point.reference.as_ref().map(|of| of.spread.highest)])
        .flatten()
        .fold(f64::MIN_POSITIVE, f64::max);
    let range = (last / first).ln().max(f64::MIN_POSITIVE);
    let x = |at: f64| 70.0 + (at / first).ln() / range * 560.0;
    let y = |value: f64| 200.0 - value / most * 180.0;
    let mut text = open(700.0, 240.0);
    let _ = write!(
        text,
        "<path d='M60 10V200H660' fill='none' stroke='#222'/><text x='56' y='24' text-anchor='end'>{}</text>\
         <text x='56' y='204' text-anchor='end'>0</text><text x='660' y='24' text-anchor='end'>{}</text>",
        number(most),
        escape(points.first().map_or("", |point| &point.unit)),
    );
    let path = |pick: &dyn Fn(&Outcome) -> Option<f64>| {
        let pairs = points.iter().filter_map(|point| Some((point.at?, pick(point)?)));
        pairs.map(|(at, value)| format!("{:.1},{:.1} ", x(at), y(value))).collect::<String>()
    };
    let _ = write!(
        text,
        "<polyline points='{}' fill='none' stroke='#9aa0a6' stroke-dasharray='4'/>\
         <polyline points='{}' fill='none' stroke='#3367d6' stroke-width='2'/>",
        path(&|point| point.reference.as_ref().map(|of| of.spread.median)),
        path(&|point| Some(point.figure.median)),
    );
    for point in points {
        let at = point.at.unwrap_or(first);
        let (x, top, bottom) = (x(at), y(point.figure.highest), y(point.figure.lowest));
        let _ = write!(
            text,
            "<line x1='{x:.1}' x2='{x:.1}' y1='{top:.1}' y2='{bottom:.1}' stroke='#3367d6'/>\
             <circle cx='{x:.1}' cy='{:.1}' r='4' fill='#3367d6'/><text x='{x:.1}' y='222' text-anchor='middle'>{}</text>",
            y(point.figure.median),
            scale(at),
        );
    }
    text + "</svg>\n"
}

/// A place on a scale: whole numbers have no decimals.
fn scale(at: f64) -> String {
    if at.fract() == 0.0 && at < 100.0 { format!("{at:.0}") } else { number(at) }
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
         font-family='system-ui, sans-serif' font-size='12'>"
    )
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
