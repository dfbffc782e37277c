//! How fast a version is built beside the one that serves: folded beside one statement over the whole log, and by the loop.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::{AssertSqlSafe, Connection as _};

use super::support::{Arguments, Installation, Report, Server, Spread};
use super::{SETTINGS, fingerprint, follow_to, projector};

/// The one statement is among the references of catch-up.
const REFERENCES: &str = include_str!("../catch_up.sql");

/// What `espctl rebuild` says when the new version is where the serving one is, with statistics.
pub(crate) const CAUGHT_UP: &str = "caught up: comparing";

/// How long each took, in seconds.
#[derive(Default)]
struct Times {
    /// Until the version is where the serving one is, and has statistics.
    caught_up: Vec<f64>,
    /// Until it is live: compared and swapped as well.
    live: Vec<f64>,
    statement: Vec<f64>,
}

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let (events, rounds) = (arguments.size(5_000_000, 20_000), arguments.rounds(3));
    let server = Server::start(SETTINGS).await?;
    server.load_todo_history(events).await?;
    let installation = Installation::new(&server.url, "warn", &projector(1))?;
    follow_to(&server, &installation, events as i64).await?;
    server.execute(REFERENCES).await?;
    let mut times = Times::default();
    for number in 0..rounds {
        for turn in 0..2 {
            if (number + turn) % 2 == 0 {
                let (caught_up, live) = rebuild(&server, &installation).await?;
                times.caught_up.push(caught_up.as_secs_f64());
                times.live.push(live.as_secs_f64());
            } else {
                times.statement.push(one_statement(&server, events).await?.as_secs_f64());
            }
        }
        let (built, stated) =
            (fingerprint(&server, "outstanding_todos").await?, fingerprint(&server, "stated_todos").await?);
        ensure!(built == stated, "the rebuild has left {built}, the statement {stated}");
    }
    print(events, rounds, &times, server.flush_time());
    server.stop().await;
    Ok(())
}

/// Builds the version once more, and swaps it in.
async fn rebuild(server: &Server, installation: &Installation) -> anyhow::Result<(Duration, Duration)> {
    installation.espctl(&["rebuild", "drop", "outstanding_todos", "--yes"])?;
    server.settle().await?;
    installation.espctl_until(&["rebuild", "outstanding_todos", "--yes", "--go-live", "swap"], CAUGHT_UP)
}

async fn one_statement(server: &Server, events: usize) -> anyhow::Result<Duration> {
    server.execute("truncate stated_todos").await?;
    server.settle().await?;
    let mut connection = sqlx::PgConnection::connect(&server.url).await?;
    for setting in ["set time zone 'utc'", "set jit = off"] {
        sqlx::raw_sql(setting).execute(&mut connection).await?;
    }
    // It commits by itself, so nothing else may be in its transaction.
    let call = format!("call one_statement({events}, 0, null, null)");
    let begun = Instant::now();
    sqlx::raw_sql(AssertSqlSafe(call)).execute(&mut connection).await?;
    let took = begun.elapsed();
    connection.close().await?;
    Ok(took)
}

fn print(events: usize, rounds: usize, times: &Times, flush: Duration) {
    let title =
        format!("rebuild of a folded projector, {events} events, rounds: {rounds}, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    let rates = |seconds: &[f64]| {
        Spread::of(&seconds.iter().map(|seconds| events as f64 / seconds).collect::<Vec<_>>())
    };
    let statement = rates(&times.statement);
    let row = |what: &str, seconds: &[f64], target: &str| {
        report.row(&format!("{what}; one statement over the whole log"), rates(seconds), statement, target);
    };
    row("folded, built and with statistics", &times.caught_up, ">= 0.7");
    row("folded, also compared and live", &times.live, "");
}
