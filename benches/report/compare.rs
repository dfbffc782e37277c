//! Two sets of results beside each other.

use std::fmt::Write as _;

use super::results::{Outcome, Spread, number};

/// What has become of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Better,
    Worse,
    /// The rounds of both overlap.
    WithinSpread,
    /// One round has no spread: whether this is a change cannot be said.
    OneRound,
}

/// What has changed beyond the spread of the rounds. Where both have a reference it is the ratio to it that counts, since
/// machines drift and the reference drifts with them.
pub(crate) fn change(before: &Outcome, after: &Outcome) -> Change {
    let (one, other) = (relative(before), relative(after));
    if one.rounds < 2 || other.rounds < 2 {
        Change::OneRound
    } else if one.highest < other.lowest {
        if before.more_is_better() { Change::Better } else { Change::Worse }
    } else if other.highest < one.lowest {
        if before.more_is_better() { Change::Worse } else { Change::Better }
    } else {
        Change::WithinSpread
    }
}

/// The rounds, divided by the median of the reference.
fn relative(outcome: &Outcome) -> Spread {
    let by = outcome.reference.as_ref().map_or(1.0, |reference| reference.spread.median);
    let Spread { median, lowest, highest, rounds } = outcome.figure;
    Spread { median: median / by, lowest: lowest / by, highest: highest / by, rounds }
}

/// A table of all figures that are in both, and what is in one only.
pub(crate) fn table(before: &[Outcome], after: &[Outcome]) -> String {
    let mut text = format!(
        "{:<70} {:>22} {:>22} {:>9} {:>9}  beyond the spread\n",
        "", "before", "after", "after/", "of the"
    );
    let _ = writeln!(
        text,
        "{:<70} {:>22} {:>22} {:>9} {:>9}",
        "",
        commits(before),
        commits(after),
        "before",
        "ratios"
    );
    for old in before {
        let Some(new) = after.iter().find(|new| new.is_of(old)) else { continue };
        let ratio = new.figure.median / old.figure.median;
        let ratios = old.ratio.zip(new.ratio).map_or(String::new(), |(old, new)| format!("{:.2}", new / old));
        let verdict = match change(old, new) {
            Change::Better => "better",
            Change::Worse => "WORSE",
            Change::WithinSpread => "",
            Change::OneRound => "(one round)",
        };
        let (was, is) = (cell(old), cell(new));
        let _ = writeln!(text, "{:<70} {was:>22} {is:>22} {ratio:>9.2} {ratios:>9}  {verdict}", title(old));
    }
    for (these, others, which) in [(before, after, "before"), (after, before, "after")] {
        for only in these.iter().filter(|this| !others.iter().any(|other| other.is_of(this))) {
            let _ = writeln!(text, "only {which}: {}", title(only));
        }
    }
    text
}

fn title(outcome: &Outcome) -> String {
    let beside =
        outcome.reference.as_ref().map_or(String::new(), |reference| format!("; {}", reference.name));
    format!("{}: {}{beside} [{}]", outcome.bench, outcome.name, outcome.unit)
}

fn cell(outcome: &Outcome) -> String {
    number(outcome.figure.median)
}

fn commits(outcomes: &[Outcome]) -> String {
    let mut commits: Vec<&str> = outcomes.iter().map(|outcome| &*outcome.machine.commit).collect();
    commits.dedup();
    match commits[..] {
        [one] => one.to_owned(),
        _ => format!("{} commits", commits.len()),
    }
}
