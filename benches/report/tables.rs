//! The tables of docs/benchmarks.md. The text between `<!-- figures: BENCH … -->` and `<!-- end of figures -->` is written
//! from results; all other text is written by hand.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};

use super::results::{Outcome, Spread, number};

const BEGIN: &str = "<!-- figures: ";
const END: &str = "<!-- end of figures -->";

/// The page with the tables of these results. A table whose benches have none stays as it is.
pub(crate) fn fill_in(page: &str, outcomes: &[Outcome]) -> anyhow::Result<String> {
    check(page, outcomes)?;
    let (mut text, mut rest) = (String::new(), page);
    while let Some(at) = rest.find(BEGIN) {
        let line = rest[at..].find('\n').context("a marker ends its line")? + at + 1;
        let end = rest.find(END).with_context(|| format!("{} has no end", rest[at..line].trim()))?;
        let benches = benches(&rest[at..line]);
        let shown: Vec<&Outcome> =
            outcomes.iter().filter(|outcome| benches.contains(&&*outcome.bench)).collect();
        text.push_str(&rest[..line]);
        text.push_str(&if shown.is_empty() { rest[line..end].to_owned() } else { block(&shown) });
        text.push_str(END);
        rest = &rest[end + END.len()..];
    }
    Ok(text + rest)
}

/// The benches whose tables are on a page, in its order.
pub(crate) fn shown(page: &str) -> Vec<&str> {
    page.lines().filter(|line| line.starts_with(BEGIN)).flat_map(benches).collect()
}

/// Each bench has one table, so that nothing has two figures.
fn check(page: &str, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for bench in shown(page) {
        ensure!(seen.insert(bench), "the page has two tables of {bench}");
    }
    for outcome in outcomes {
        ensure!(seen.contains(&*outcome.bench), "the page has no table of {}", outcome.bench);
    }
    Ok(())
}

fn benches(marker: &str) -> Vec<&str> {
    let names = marker.trim().trim_start_matches(BEGIN).trim_end_matches("-->");
    names.split_whitespace().collect()
}

fn block(outcomes: &[&Outcome]) -> String {
    let table = if outcomes.iter().any(|outcome| outcome.reference.is_some()) { beside } else { alone };
    let mut text = format!("\n{}", table(outcomes));
    let lines: BTreeSet<&str> =
        outcomes.iter().filter(|outcome| outcome.at.is_some()).map(|outcome| &*outcome.bench).collect();
    for bench in lines {
        text.push_str(&format!("\n![{bench}](benchmarks/{bench}.svg)\n"));
    }
    text.push_str(&format!("\n{}\n\n", circumstances(outcomes)));
    text
}

fn beside(outcomes: &[&Outcome]) -> String {
    let mut text = "| | espd | beside it | ratio | target |\n|---|---|---|---|---|\n".to_owned();
    for outcome in outcomes {
        let reference = outcome.reference.as_ref().map_or(String::new(), |reference| {
            format!("{}: {}", reference.name, spread(&reference.spread, ""))
        });
        let ratio = outcome.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let figure = spread(&outcome.figure, &outcome.unit);
        text.push_str(&format!(
            "| {} | {figure} | {reference} | {ratio} | {} |\n",
            outcome.name,
            target(outcome)
        ));
    }
    text
}

fn alone(outcomes: &[&Outcome]) -> String {
    let mut text = "| | figure | limit |\n|---|---|---|\n".to_owned();
    for outcome in outcomes {
        let figure = spread(&outcome.figure, &outcome.unit);
        text.push_str(&format!("| {} | {figure} | {} |\n", outcome.name, target(outcome)));
    }
    text
}

fn target(outcome: &Outcome) -> String {
    match outcome.met {
        Some(false) => format!("{}, **missed**", outcome.target),
        _ => outcome.target.clone(),
    }
}

/// The median with its unit, and the ends where there are several rounds.
fn spread(spread: &Spread, unit: &str) -> String {
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    let median = number(spread.median);
    if spread.rounds < 2 {
        return median + &unit;
    }
    format!("{median}{unit} ({} to {})", number(spread.lowest), number(spread.highest))
}

/// How, where and when these were measured.
fn circumstances(outcomes: &[&Outcome]) -> String {
    let distinct = |pick: fn(&Outcome) -> String| {
        let mut parts: Vec<String> = Vec::new();
        for part in outcomes.iter().map(|outcome| pick(outcome)) {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts.join("; ")
    };
    let conditions = distinct(|outcome| outcome.conditions.clone());
    let machine = distinct(in_brief);
    format!("Measured: {conditions}. {machine}.")
}

/// Where and when a figure was measured.
pub(crate) fn in_brief(outcome: &Outcome) -> String {
    let machine = &outcome.machine;
    format!(
        "{} cores, PostgreSQL {}, {} build of {}, {}",
        machine.cores,
        machine.postgresql,
        machine.build,
        machine.commit,
        outcome.when.format("%Y-%m-%d")
    )
}

/// A figure in one line.
pub(crate) fn in_words(outcome: &Outcome) -> String {
    let beside = outcome.reference.as_ref().map_or(String::new(), |reference| {
        let ratio = outcome.ratio.unwrap_or(f64::NAN);
        format!(", {ratio:.2} of {} ({})", reference.name, number(reference.spread.median))
    });
    format!(
        "{}, {}: {} {}{beside}; target {}",
        outcome.bench,
        outcome.name,
        number(outcome.figure.median),
        outcome.unit,
        outcome.target
    )
}
