//! A hundred processors in one daemon: what each isolation costs, and how far they lag.
//!
//! `cargo bench --bench many_processors`; docs/benchmarks.md has the table. Reads `/proc`: Linux only.

mod support;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use espd::event::NewEvent;
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use serde_json::value::RawValue;
use sqlx::AssertSqlSafe;
use support::processes::Family;
use support::{Arguments, Installation, Limits, SCHEMA, Server, Spread, percentile};
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

const PROCESSORS: usize = 100;

/// Events per second, on average; the times between them are exponentially distributed.
const RATE: f64 = 200.0;

const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(10);

/// Who shares a worker.
#[derive(Debug, Clone, Copy)]
enum Isolation {
    Process,
    GroupsOfTen,
    Task,
}

impl Isolation {
    fn title(self) -> &'static str {
        match self {
            Self::Process => "a process each",
            Self::GroupsOfTen => "groups of 10",
            Self::Task => "tasks of one process",
        }
    }

    /// The isolation of the processor with this number, as the configuration has it.
    fn of(self, number: usize) -> String {
        match self {
            Self::Process => "process".to_owned(),
            Self::GroupsOfTen => format!("group:tens_{}", number / 10),
            Self::Task => "task".to_owned(),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let time = arguments.size(Duration::from_secs(10), Duration::from_secs(2));
    let title = format!("{PROCESSORS} processors, {RATE} events/s for {time:?}, each event for one of them");
    let limits = Limits::begin(&title);
    for isolation in [Isolation::Process, Isolation::GroupsOfTen, Isolation::Task] {
        measure(&limits, isolation, time).await?;
    }
    Ok(())
}

/// Prints the rows of one isolation.
async fn measure(limits: &Limits, isolation: Isolation, time: Duration) -> anyhow::Result<()> {
    let server = Server::start(&[("track_commit_timestamp", "on"), ("max_connections", "300")]).await?;
    let installation = Installation::new(&server.url, "warn", &processors(isolation)?)?;
    let begun = Instant::now();
    let daemon = installation.start()?;
    wait_until(async || all_follow(&server).await).await?;
    let start = begun.elapsed().as_secs_f64();
    // What is only begun when all follow, such as listening, has its time.
    sleep(Duration::from_secs(3)).await;
    let connections = "select count(*) from pg_stat_activity where application_name like 'espd: %'";
    let connections: i64 = sqlx::query_scalar(connections).fetch_one(&server.pool).await?;
    let family = Family::of(daemon.pid())?;
    let load = async |time: Duration| -> anyhow::Result<f64> {
        let (before, begun) = (family.processor_time()?, Instant::now());
        sleep(time).await;
        Ok((family.processor_time()? - before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0)
    };
    let idle = load(time).await?;
    let (appended, busy) = tokio::join!(append_for(&server, time), load(time));
    let (last, busy) = (appended?, busy?);
    wait_until(async || passed(&server, last).await).await?;
    let lags = lags(&server).await?;
    let processes = (family.descendants().len() + 1) as f64;
    let memory = family.memory()? as f64 / 1_048_576.0;
    let row = |what: &str, value: f64, unit: &str| {
        limits.row(&format!("{}: {what}", isolation.title()), Spread::of(&[value]), unit, "");
    };
    row("processes", processes, "processes");
    row("connections", connections as f64, "connections");
    row("memory of all", memory, "MiB");
    row("start until all follow", start, "s");
    row("idle: processor time", idle, "% of a core");
    row("busy: processor time", busy, "% of a core");
    row("event to handler, p50", percentile(&lags, 50.0), "ms");
    row("event to handler, p99", percentile(&lags, 99.0), "ms");
    daemon.stop()?;
    server.stop().await;
    Ok(())
}

fn processors(isolation: Isolation) -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..PROCESSORS {
        let isolation = isolation.of(number);
        write!(
            text,
            r#"
[[projector]]
name      = "arrivals_{number}"
isolation = "{isolation}"
tables    = {{ arrivals_{number} = "id bigint primary key, handled_at timestamptz not null" }}

[[projector.on]]
events = ["Ticked{number}"]
sql    = "insert into arrivals_{number} values (event.id, clock_timestamp())"
"#
        )?;
    }
    Ok(text)
}

/// Appends one event at a time, whatever became of the ones before; returns the highest id.
async fn append_for(server: &Server, time: Duration) -> anyhow::Result<i64> {
    let store = PostgresEventStore::new(server.pool.clone(), Layout::espd(SCHEMA)?);
    let mut appends = JoinSet::new();
    let begun = tokio::time::Instant::now();
    let mut next = begun;
    while next < begun + time {
        next += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / RATE);
        tokio::time::sleep_until(next).await;
        let store = store.clone();
        let event_type = format!("Ticked{}", fastrand::usize(..PROCESSORS));
        appends.spawn(async move {
            let body = RawValue::from_string("{}".to_owned())?;
            let appended = store.append(&[NewEvent::new(Uuid::new_v4(), event_type, body)]).await?;
            anyhow::Ok(appended[0].id.get())
        });
    }
    let mut last = 0;
    while let Some(id) = appends.join_next().await {
        last = last.max(id??);
    }
    Ok(last)
}

async fn all_follow(server: &Server) -> anyhow::Result<bool> {
    let statement = "select count(*) from espd.trackers as t where owner is not null
                     and exists (select from espd.declarations as d where d.processor = t.name and d.version = t.version)";
    let following: i64 = sqlx::query_scalar(statement).fetch_one(&server.pool).await?;
    Ok(usize::try_from(following)? == PROCESSORS)
}

async fn passed(server: &Server, position: i64) -> anyhow::Result<bool> {
    let statement = "select count(*) from espd.trackers where position >= $1";
    let passed: i64 = sqlx::query_scalar(statement).bind(position).fetch_one(&server.pool).await?;
    Ok(usize::try_from(passed)? == PROCESSORS)
}

async fn wait_until(is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await? {
        ensure!(Instant::now() < deadline, "waited too long");
        sleep(POLL).await;
    }
    Ok(())
}

/// From each event's commit to its handler, in milliseconds.
async fn lags(server: &Server) -> anyhow::Result<Vec<f64>> {
    let tables: Vec<String> =
        (0..PROCESSORS).map(|number| format!("select * from arrivals_{number}")).collect();
    let statement = format!(
        "select (extract(epoch from a.handled_at - pg_xact_commit_timestamp(e.xmin)) * 1000)::float8
         from espd.events e join ({}) a using (id)",
        tables.join(" union all ")
    );
    let lags: Vec<Option<f64>> = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(&server.pool).await?;
    lags.into_iter().collect::<Option<_>>().context("the server has forgotten when it committed")
}
