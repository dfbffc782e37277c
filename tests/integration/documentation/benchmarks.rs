//! The page of benchmarks is written from results, by the modules of the benches that are tried here: each figure has one place,
//! what is written by hand stays, and two commits are compared by what is beyond the spread of their rounds.

#[path = "../../../benches/report/compare.rs"]
mod compare;
#[path = "../../../benches/support/results.rs"]
#[expect(dead_code, reason = "only the benches know their folder")]
mod results;
#[path = "../../../benches/report/tables.rs"]
#[expect(dead_code, reason = "the report prints what is missed")]
mod tables;

use std::collections::BTreeSet;

use chrono::Utc;

use self::compare::{Change, change};
use self::results::{Machine, Outcome, Reference, Spread, is_met, number, percentile};
use super::read;

const PAGE: &str = "By hand.\n\n<!-- figures: catch_up -->\n\nOld.\n\n<!-- end of figures -->\n\nBetween.\n\n\
                    <!-- figures: append webhook -->\n\nAlso old.\n\n<!-- end of figures -->\n\nThe end.\n";

/// A figure beside a reference of 100 events/s.
fn outcome(bench: &str, rounds: &[f64]) -> Outcome {
    let figure = Spread::of(rounds);
    let ratio = Some(figure.median / 100.0);
    let reference = Reference { name: "a bare loop".to_owned(), spread: Spread::of(&[100.0]) };
    Outcome {
        bench: bench.to_owned(),
        name: "whole".to_owned(),
        unit: "events/s".to_owned(),
        figure,
        reference: Some(reference),
        ratio,
        target: ">= 0.9".to_owned(),
        met: is_met(">= 0.9", figure.median, ratio),
        at: None,
        conditions: "200,000 events".to_owned(),
        when: Utc::now(),
        machine: Machine { cores: 2, ..Machine::default() },
    }
}

#[test]
fn every_bench_has_one_table_on_the_page() {
    let manifest = read("Cargo.toml");
    let benches = manifest.split("[[bench]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
    let measuring: BTreeSet<&str> = benches.filter(|bench| *bench != "report").collect();
    let page = read("docs/benchmarks.md");
    let shown = tables::shown(&page);
    assert_eq!(shown.iter().copied().collect::<BTreeSet<_>>(), measuring);
    assert_eq!(shown.len(), measuring.len(), "a bench has two tables: {shown:?}");
}

#[test]
fn tables_are_written_and_everything_else_stays() {
    let outcomes = [outcome("catch_up", &[80.0, 85.0, 88.0])];
    let page = tables::fill_in(PAGE, &outcomes).unwrap();
    assert!(
        page.contains(
            "| whole | 85.00 events/s (80.00 to 88.00) | a bare loop: 100 | 0.85 | >= 0.9, **missed** |"
        ),
        "{page}"
    );
    assert!(!page.contains("\nOld."), "{page}");
    for kept in ["By hand.\n", "\nBetween.\n", "\nAlso old.\n", "\nThe end.\n"] {
        assert!(page.contains(kept), "{kept:?} is not in {page}");
    }
    assert_eq!(tables::fill_in(&page, &outcomes).unwrap(), page);
}

#[test]
fn nothing_has_two_tables_or_none() {
    let twice = format!("{PAGE}\n<!-- figures: webhook -->\n<!-- end of figures -->\n");
    let error = tables::fill_in(&twice, &[]).unwrap_err().to_string();
    assert_eq!(error, "the page has two tables of webhook");
    let error = tables::fill_in(PAGE, &[outcome("takeover", &[1.0])]).unwrap_err().to_string();
    assert_eq!(error, "the page has no table of takeover");
}

#[test]
fn a_change_is_what_lies_beyond_the_spread() {
    let before = outcome("catch_up", &[80.0, 85.0, 88.0]);
    for (rounds, expected) in [
        (&[90.0, 91.0, 99.0][..], Change::Better),
        (&[60.0, 65.0, 79.0], Change::Worse),
        (&[87.0, 91.0, 99.0], Change::WithinSpread),
        (&[200.0], Change::OneRound),
    ] {
        assert_eq!(change(&before, &outcome("catch_up", rounds)), expected, "{rounds:?}");
    }
}

#[test]
fn less_is_better_for_times_and_a_machine_that_has_become_slower_is_no_change() {
    let of = |rounds: &[f64], reference: f64| {
        let mut outcome = outcome("wake_latency", rounds);
        "ms".clone_into(&mut outcome.unit);
        outcome.reference.as_mut().unwrap().spread = Spread::of(&[reference]);
        outcome
    };
    let before = of(&[2.0, 2.1, 2.2], 1.0);
    assert_eq!(change(&before, &of(&[1.0, 1.1, 1.2], 1.0)), Change::Better);
    assert_eq!(change(&before, &of(&[4.0, 4.2, 4.4], 1.0)), Change::Worse);
    assert_eq!(change(&before, &of(&[4.0, 4.2, 4.4], 2.0)), Change::WithinSpread);
    let table = compare::table(
        std::slice::from_ref(&before),
        &[of(&[4.0, 4.2, 4.4], 1.0), outcome("catch_up", &[1.0])],
    );
    assert!(table.contains("WORSE") && table.contains("only after: catch_up: whole"), "{table}");
}

#[test]
fn targets_are_of_the_ratio_or_of_the_figure() {
    for (target, figure, ratio, expected) in [
        (">= 0.9", 70_000.0, Some(0.95), Some(true)),
        ("<= 1.25 x", 2.2, Some(1.7), Some(false)),
        (">= 15000/s", 26_000.0, Some(0.4), Some(true)),
        ("< 0.5 s", 0.7, None, Some(false)),
        ("<= 0.4 /s", 0.3, None, Some(true)),
        ("", 1.0, Some(1.0), None),
        ("(floor)", 1.0, Some(1.0), None),
    ] {
        assert_eq!(is_met(target, figure, ratio), expected, "{target:?}");
    }
}

#[test]
fn a_later_run_replaces_its_figure_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = results::newest(folder.path(), false);
    for outcome in [outcome("catch_up", &[1.0]), outcome("append", &[2.0]), outcome("catch_up", &[3.0])] {
        results::put(&path, outcome).unwrap();
    }
    let kept = results::read(&path).unwrap();
    let medians: Vec<_> = kept.iter().map(|outcome| (&*outcome.bench, outcome.figure.median)).collect();
    assert_eq!(medians, [("catch_up", 3.0), ("append", 2.0)]);
    assert_ne!(results::newest(folder.path(), true), path);
}

#[test]
fn figures_are_readable() {
    let numbers = [0.017, 2.2, 99.994, 123.4, 1_234.5, 1_234_567.0].map(number);
    assert_eq!(numbers, ["0.017", "2.20", "99.99", "123", "1,234", "1,234,567"]);
    assert_eq!(percentile(&[3.0, 1.0, 2.0], 50.0), 2.0);
}
