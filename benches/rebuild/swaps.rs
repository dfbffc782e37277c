//! How long readers wait while two versions change places, and what they see.

use std::time::{Duration, Instant};

use super::reader::{Habit, Reader, Seen};
use super::support::{Arguments, Installation, Limits, Report, Server, Spread, percentile};
use super::{SETTINGS, wait_until_position};

/// Events, and rows of the table.
const EVENTS: usize = 200;

/// Every other version has a column more, so each swap changes the shape. Operators build.
const PROJECTOR: &str = r#"
[rebuild]
parallelism = 0

[[projector]]
name    = "numbers"
version = {version}
tables  = { numbers = "id bigint primary key, n bigint not null{column}" }

[[projector.on]]
events = ["T"]
sql    = "insert into numbers (id, n) values (event.id, (event.body->>'n')::bigint)"
"#;

/// An application that names its columns, as fast as it goes.
const NAMED: Habit = Habit { query: "select id, n from numbers", rows: EVENTS, pause: Duration::ZERO };

/// One that takes what comes; it takes little of the processor away from the other one.
const STAR: Habit = Habit { query: "select * from numbers", rows: EVENTS, pause: Duration::from_millis(2) };

type Window = (Instant, Instant);

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let swaps = arguments.size(50, 5);
    let server = Server::start(SETTINGS).await?;
    server.load_small_events(EVENTS).await?;
    let installation = Installation::new(&server.url, "warn", &declaration(1))?;
    let daemon = installation.start()?;
    wait_until_position(&server, EVENTS as i64).await?;
    let (named, star) = (Reader::start(&server.url, NAMED), Reader::start(&server.url, STAR));
    let (mut swapped, mut beside) = (Vec::new(), Vec::new());
    for number in 0..swaps {
        // The same work without the swap, before it or after it.
        for turn in 0..2 {
            if (number + turn) % 2 == 0 {
                beside.push(build_only(&installation)?);
            } else {
                swapped.push(swap(&installation, number + 2)?);
            }
        }
    }
    let (named, star) = (named.stop().await?, star.stop().await?);
    daemon.stop()?;
    print(swaps, &named, &star, (&swapped, &beside), server.flush_time());
    server.stop().await;
    Ok(())
}

fn declaration(version: usize) -> String {
    let column = if version.is_multiple_of(2) { ", twice bigint" } else { "" };
    PROJECTOR.replace("{version}", &version.to_string()).replace("{column}", column)
}

/// Builds the version that serves once more, and drops that.
fn build_only(installation: &Installation) -> anyhow::Result<Window> {
    let begun = Instant::now();
    installation.espctl(&["rebuild", "numbers", "--dry-run"])?;
    Ok((begun, Instant::now()))
}

/// Builds a version with another shape, and swaps it in.
fn swap(installation: &Installation, version: usize) -> anyhow::Result<Window> {
    installation.declare(&declaration(version))?;
    installation.espctl(&["reload"])?;
    let begun = Instant::now();
    installation.espctl(&["rebuild", "numbers", "--yes", "--go-live", "swap"])?;
    Ok((begun, Instant::now()))
}

fn print(swaps: usize, named: &Seen, star: &Seen, windows: (&[Window], &[Window]), flush: Duration) {
    let title = format!(
        "readers in a loop during {swaps} rebuilds that swap, {} queries beside {}, flush {flush:.1?}",
        named.number(),
        star.number()
    );
    let longest = |seen: &Seen, windows: &[Window]| -> Vec<f64> {
        windows.iter().map(|(from, to)| seen.longest_wait(*from, *to)).collect()
    };
    let (swapped, beside) = (longest(named, windows.0), longest(named, windows.1));
    let report = Report::begin(&title, "ms");
    report.row(
        "longest wait during a rebuild; one that is not swapped in",
        Spread::of(&swapped),
        Spread::of(&beside),
        "",
    );
    let p99 = |waits: &[f64]| Spread::of(&[percentile(waits, 99.0)]);
    report.row(
        "longest wait during a rebuild, p99; one that is not swapped in",
        p99(&swapped),
        p99(&beside),
        "<= 50 ms",
    );
    drop(report);
    count(swaps, &title, named, star);
}

fn count(swaps: usize, title: &str, named: &Seen, star: &Seen) {
    let limits = Limits::begin(title);
    let row = |what: &str, number: usize, limit: &str| {
        limits.row(what, Spread::of(&[number as f64]), "", limit);
    };
    let all = |seen: &Seen| seen.errors.values().sum::<usize>();
    let replanned = star.errors.get("0A000").copied().unwrap_or(0);
    row("wrong answers, both readers", named.wrong + star.wrong, "<= 0");
    row("errors of a reader that names its columns", all(named), "<= 0");
    row("errors 0A000 of a prepared `select *`", replanned, &format!("<= {swaps}"));
    row("other errors of it", all(star) - replanned, "<= 0");
}
