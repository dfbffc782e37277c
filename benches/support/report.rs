//! Numbers for people: medians, how far the rounds lay apart, and a table.

use std::fmt;

/// The middle and the ends of some measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Spread {
    /// Of at least one measurement.
    pub(crate) fn of(values: &[f64]) -> Self {
        let (median, lowest, highest) =
            (percentile(values, 50.0), percentile(values, 0.0), percentile(values, 100.0));
        Self { median, lowest, highest }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, lowest, highest } = self;
        write!(f, "{} ({}–{})", number(*median), number(*lowest), number(*highest))
    }
}

/// The value that `percent` of the values do not exceed; not a number where there are no values.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = percent / 100.0 * sorted.len().saturating_sub(1) as f64;
    sorted.get(place.round() as usize).copied().unwrap_or(f64::NAN)
}

/// Large numbers as integers, small ones with three digits.
fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// A table, printed row by row.
pub(crate) struct Report {
    unit: &'static str,
}

impl Report {
    /// Prints the title and the heads of the columns. Figures are in `unit`.
    pub(crate) fn begin(title: &str, unit: &'static str) -> Self {
        println!("\n{title}\n");
        println!("{:<46} {:>26} {:>26} {:>6}  target", unit, "figure", "reference", "ratio");
        Self { unit }
    }

    /// A figure beside its reference.
    pub(crate) fn row(&self, what: &str, figure: Spread, reference: Spread, target: &str) {
        let ratio = figure.median / reference.median;
        let (figure, reference) = (figure.to_string(), reference.to_string());
        println!("{what:<46} {figure:>26} {reference:>26} {ratio:>6.2}  {target}");
    }
}

/// A table of figures that have a limit instead of a reference.
pub(crate) struct Limits;

impl Limits {
    /// Prints the title and the heads of the columns.
    pub(crate) fn begin(title: &str) -> Self {
        println!("\n{title}\n");
        println!("{:<64} {:>26}  limit", "", "figure");
        Self
    }

    /// A figure with its unit, and what it must not exceed.
    pub(crate) fn row(&self, what: &str, figure: Spread, unit: &str, limit: &str) {
        let figure = format!("{figure} {unit}");
        println!("{what:<64} {figure:>26}  {limit}");
    }
}
