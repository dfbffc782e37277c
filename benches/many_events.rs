//! Whether the cost of an event depends on how many there are: how fast a SQL projector is from one number of events to the
//! next, up to ten million.
//!
//! `cargo bench --bench many_events`; docs/benchmarks.md has the picture. Takes ten minutes and 8 GB of disk; `-- --quick` has
//! 100,000 events.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use support::{Arguments, Installation, Report, Server, Spread};
use tokio::time::sleep;

const PROJECTOR: &str = include_str!("../config/processors/outstanding_todos.toml");

const PATIENCE: Duration = Duration::from_secs(1_800);

/// Sizes of the log between which the speed is told, the first after the start.
const FULL: &[i64] = &[100_000, 300_000, 1_000_000, 3_000_000, 10_000_000];
const QUICK: &[i64] = &[10_000, 30_000, 100_000];

/// The history of the first events happens again to other aggregates.
const AGAIN: &str = "
  insert into espd.events (uuid, aggregate_id, type, version, body)
  select gen_random_uuid(), md5(aggregate_id::text || '{{number}}')::uuid, type, version, body
  from espd.events where id <= {{events}} order by id";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (sizes, rounds) = (arguments.size(FULL, QUICK), arguments.rounds(1));
    let server = Server::start(&[("max_wal_size", "4GB")]).await?;
    load(&server, sizes).await?;
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); sizes.len()];
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", PROJECTOR)?;
    for round in 0..rounds {
        if round > 0 {
            installation.espctl(&["reset", "outstanding_todos", "--in-place", "--yes"])?;
        }
        server.settle().await?;
        for (rate, rates) in run(&server, &installation, sizes).await?.into_iter().zip(&mut rates) {
            rates.push(rate);
        }
    }
    let title = format!("catch-up by one projector, rounds: {rounds}, flush {:.1?}", server.flush_time());
    let report = Report::begin(&title, "events/s");
    let first = Spread::of(&rates[0]);
    for (size, rates) in sizes.iter().zip(&rates) {
        let what = format!("up to {size} events; up to {}", sizes[0]);
        report.point(&what, Some(*size as f64), Spread::of(rates), first, ">= 0.9");
    }
    server.stop().await;
    Ok(())
}

/// Fills the store with as many events as the last size.
async fn load(server: &Server, sizes: &[i64]) -> anyhow::Result<()> {
    let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
    server.load_todo_history(usize::try_from(first)?).await?;
    for number in 1..last / first {
        let again = AGAIN.replace("{{number}}", &number.to_string());
        server.execute(&again.replace("{{events}}", &first.to_string())).await?;
    }
    server.execute("vacuum analyze espd.events").await
}

/// Events per second between one size and the next.
async fn run(server: &Server, installation: &Installation, sizes: &[i64]) -> anyhow::Result<Vec<f64>> {
    let daemon = installation.start()?;
    let last = sizes[sizes.len() - 1];
    let deadline = Instant::now() + PATIENCE;
    let position = "select coalesce(max(position), 0) from espd.trackers";
    // The log is long: it is read when all is done.
    while sqlx::query_scalar::<_, i64>(position).fetch_one(&server.pool).await? < last {
        ensure!(Instant::now() < deadline, "the daemon has not reached {last}");
        sleep(Duration::from_millis(200)).await;
    }
    let batches = daemon.batches()?;
    daemon.stop()?;
    let mut from = *batches.first().context("there is a batch")?;
    let mut rates = Vec::new();
    for size in sizes {
        let upto = *batches.iter().find(|batch| batch.position >= *size).context("a batch at each size")?;
        rates.push((upto.position - from.position) as f64 / (upto.at - from.at).as_seconds_f64());
        from = upto;
    }
    Ok(rates)
}
