//! One page with bars: every figure beside its reference of the same run, and beside what was measured of others once.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::peers::Peers;
use super::results::Outcome;
use super::svg::{self, Bar, Kind};
use super::tables::in_brief;

const HEAD: &str = r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><title>espd: benchmarks</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.5rem } .how { color: #666; font-size: 13px } .missed { color: #b00020 } svg { max-width: 100% }
</style>
<h1>Benchmarks</h1>
"#;

/// The whole page.
pub(crate) fn write(outcomes: &[Outcome], peers: &Peers) -> String {
    let mut text = HEAD.to_owned();
    let _ = writeln!(
        text,
        "<p>Blue: espd. Grey: its reference in the same run. Hatched: others, {}. Thin lines: the slowest and the fastest round.</p>",
        svg::escape(&peers.source)
    );
    let benches: BTreeSet<&str> = outcomes.iter().map(|outcome| &*outcome.bench).collect();
    let lines = svg::lines_of(outcomes);
    for bench in benches {
        let _ = writeln!(text, "<h2>{}</h2>", svg::escape(bench));
        let of_bench: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.bench == bench).collect();
        for (_, picture) in lines.iter().filter(|line| line.0 == bench) {
            text.push_str(picture);
        }
        for outcome in &of_bench {
            text.push_str(&figure(outcome, peers));
        }
        let how: BTreeSet<String> =
            of_bench.iter().map(|outcome| format!("{}; {}", outcome.conditions, in_brief(outcome))).collect();
        for how in how {
            let _ = writeln!(text, "<p class=how>{}</p>", svg::escape(&how));
        }
    }
    text + "</html>\n"
}

fn figure(outcome: &Outcome, peers: &Peers) -> String {
    let mut bars = vec![Bar::of("espd", outcome.figure, Kind::Ours)];
    if let Some(reference) = &outcome.reference {
        bars.push(Bar::of(&reference.name, reference.spread, Kind::Reference));
    }
    let known = peers.figures.iter().filter(|peer| {
        (&*peer.bench, &*peer.name, &*peer.unit) == (&*outcome.bench, &*outcome.name, &*outcome.unit)
    });
    bars.extend(known.map(|peer| Bar::measured_once(&peer.who, peer.figure)));
    let ratio = outcome.ratio.map_or(String::new(), |ratio| format!(", ratio {ratio:.2}"));
    let target = match (&*outcome.target, outcome.met) {
        ("", _) => String::new(),
        (target, Some(false)) => format!(" <span class=missed>target {}: missed</span>", svg::escape(target)),
        (target, _) => format!(" (target {})", svg::escape(target)),
    };
    format!(
        "<p><b>{}</b>, {}{ratio}{target}</p>\n{}\n",
        svg::escape(&outcome.name),
        svg::escape(&outcome.unit),
        svg::bars(&bars)
    )
}
