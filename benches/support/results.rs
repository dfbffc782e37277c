//! What benches leave for programs: every figure beside its reference, in one file of JSON.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The middle and the ends of some measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// How many measurements there were.
    pub(crate) rounds: usize,
}

impl Spread {
    /// Of at least one measurement.
    pub(crate) fn of(values: &[f64]) -> Self {
        let (median, lowest, highest) =
            (percentile(values, 50.0), percentile(values, 0.0), percentile(values, 100.0));
        Self { median, lowest, highest, rounds: values.len() }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, lowest, highest, .. } = self;
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

/// Large numbers as integers with groups of three digits, small ones with two or three decimals.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 1.0 {
        return format!("{value:.3}");
    }
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Where something was measured, and what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    /// The version of the server.
    pub(crate) postgresql: String,
    /// The time of a durable commit of one row, in milliseconds.
    pub(crate) flush_ms: f64,
    /// The commit that the programs were built from; `+` at its end says that files had been changed since.
    pub(crate) commit: String,
    /// `release` or `debug`.
    pub(crate) build: String,
}

/// What a figure is judged by, measured in the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) spread: Spread,
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) bench: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) figure: Spread,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<Reference>,
    /// The figure divided by its reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
    /// What has to be reached; empty where nothing has to.
    pub(crate) target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) met: Option<bool>,
    /// The place on a scale, such as a number of events, where a bench draws a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<f64>,
    /// How it was measured: numbers of events, rounds.
    pub(crate) conditions: String,
    pub(crate) when: DateTime<Utc>,
    pub(crate) machine: Machine,
}

impl Outcome {
    /// Whether both are the same figure, of whatever run.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }

    fn identity(&self) -> (&str, &str, &str, Option<&str>) {
        (&self.bench, &self.name, &self.unit, self.reference.as_ref().map(|reference| &*reference.name))
    }

    /// Whether more of it is better.
    pub(crate) fn more_is_better(&self) -> bool {
        more_is_better(&self.unit)
    }
}

/// Throughput is wanted; times, memory, statements and connections are not.
pub(crate) fn more_is_better(unit: &str) -> bool {
    matches!(unit, "events/s" | "deliveries/s" | "appends/s" | "commands/s" | "transactions/s")
}

/// Whether a target such as `>= 0.9`, `<= 2 x`, `>= 15000/s` or `< 3 ms` is met: a bare number and one of times are for the
/// ratio, where there is one, and everything else is for the figure. `None` where there is no target that could be read.
pub(crate) fn is_met(target: &str, figure: f64, ratio: Option<f64>) -> Option<bool> {
    let digits = target.find(|character: char| character.is_ascii_digit())?;
    let (comparison, rest) = target.split_at(digits);
    let end = rest.find(|character: char| !matches!(character, '0'..='9' | '.')).unwrap_or(rest.len());
    let (limit, unit) = rest.split_at(end);
    let limit: f64 = limit.parse().ok()?;
    let value = if matches!(unit.trim(), "" | "x" | "×") { ratio.unwrap_or(figure) } else { figure };
    match comparison.trim() {
        ">=" => Some(value >= limit),
        ">" => Some(value > limit),
        "<=" => Some(value <= limit),
        "<" => Some(value < limit),
        _ => None,
    }
}

/// The figures in a file; none where there is no file yet.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Outcome>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("{} has no figures", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Puts a figure into a file, in the place of the one of an earlier run. Whoever reads meanwhile sees a whole file.
pub(crate) fn put(path: &Path, outcome: Outcome) -> anyhow::Result<()> {
    let mut outcomes = read(path)?;
    match outcomes.iter_mut().find(|earlier| earlier.is_of(&outcome)) {
        Some(earlier) => *earlier = outcome,
        None => outcomes.push(outcome),
    }
    let unfinished = path.with_extension("unfinished");
    std::fs::create_dir_all(path.parent().context("a path of a file")?)?;
    std::fs::write(&unfinished, serde_json::to_string_pretty(&outcomes)?)?;
    std::fs::rename(&unfinished, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The folder of all results, in the target directory.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench")
}

/// Where the newest figures are: those of quick runs apart from those that count.
pub(crate) fn newest(folder: &Path, quick: bool) -> PathBuf {
    folder.join(if quick { "quick.json" } else { "results.json" })
}

/// Where the figures of one commit are.
pub(crate) fn of_commit(folder: &Path, commit: &str) -> PathBuf {
    folder.join("commits").join(format!("{commit}.json"))
}
