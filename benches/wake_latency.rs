//! How long it takes from the commit of an event to the commit of its projected row, while events arrive one
//! by one, beside a bare LISTEN loop.
//!
//! `cargo bench --bench wake_latency`; docs/benchmarks.md says what the figures mean.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use espd::event::NewEvent;
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnection, PgListener};
use sqlx::{AssertSqlSafe, Connection as _};
use support::{Arguments, Daemon, Installation, Report, SCHEMA, Server, Spread, percentile};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Events per second, on average; the times between them are exponentially distributed.
const RATE: f64 = 200.0;

/// How long events arrive before any is measured. A daemon goes on starting for half a second after its first row: it opens its other
/// connections, and the server makes the plans of the first calls.
const WARM_UP: Duration = Duration::from_secs(2);

const EVENT_TYPE: &str = "Ticked";

/// The channel of the bare loop.
const BARE_CHANNEL: &str = "bare";

const PROJECTOR: &str = r#"
[[projector]]
name    = "arrivals"
version = 1

[projector.tables]
arrivals = "id bigint primary key, handled_at timestamptz not null"

[[projector.on]]
events = ["Ticked"]
sql    = "insert into arrivals values (event.id, clock_timestamp())"
"#;

/// Who makes the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    /// `espd run`, and a store that notifies.
    Daemon,
    /// `espd run`, and writers that do not notify.
    SilentWriters,
    /// Nothing but LISTEN, and writers that notify after each commit.
    BareLoop,
}

/// Milliseconds of one round.
#[derive(Debug, Clone, Copy)]
struct Latency {
    p50: f64,
    p99: f64,
    /// From the event's commit to its handler, half of them below it.
    handled_p50: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let time = arguments.size(Duration::from_secs(10), Duration::from_secs(1));
    let rounds = arguments.rounds(3);
    let server = Server::start(&[("track_commit_timestamp", "on")]).await?;
    server
        .execute("create table bare_arrivals (id bigint primary key, handled_at timestamptz not null)")
        .await?;
    let flush = server.flush_time();

    let contestants = [Contestant::Daemon, Contestant::SilentWriters, Contestant::BareLoop];
    let mut results: [Vec<Latency>; 3] = Default::default();
    for number in 0..rounds {
        for turn in 0..contestants.len() {
            let index = (number + turn) % contestants.len();
            results[index].push(run(&server, contestants[index], time).await?);
        }
    }

    let title = format!(
        "commit of an event to commit of its row, {RATE} events/s, {rounds} rounds of {time:?}, flush {flush:.1?}"
    );
    let report = Report::begin(&title, "ms");
    let [daemon, silent, bare] = results;
    let of = |latencies: &[Latency], pick: fn(&Latency) -> f64| {
        Spread::of(&latencies.iter().map(pick).collect::<Vec<_>>())
    };
    let p50 = |latencies| of(latencies, |latency| latency.p50);
    let p99 = |latencies| of(latencies, |latency| latency.p99);
    let handled = |latencies| of(latencies, |latency| latency.handled_p50);
    report.row("p50; a bare LISTEN loop", p50(&daemon), p50(&bare), "<= 1.25 x");
    report.row("p99; a bare LISTEN loop", p99(&daemon), p99(&bare), "<= 2 x");
    report.row("p50 to the handler; a bare LISTEN loop", handled(&daemon), handled(&bare), "");
    report.row("p50, without notifications; a bare LISTEN loop", p50(&silent), p50(&bare), "");
    report.row("p99, without notifications; a bare LISTEN loop", p99(&silent), p99(&bare), "");
    server.stop().await;
    Ok(())
}

/// Lets events arrive for this time and measures each.
async fn run(server: &Server, contestant: Contestant, time: Duration) -> anyhow::Result<Latency> {
    server.settle().await?;
    let store = PostgresEventStore::new(server.pool.clone(), Layout::espd(SCHEMA)?);
    let appender = match contestant {
        Contestant::Daemon => Appender { store, notify: None },
        Contestant::SilentWriters => Appender { store: store.without_notifications(), notify: None },
        Contestant::BareLoop => {
            Appender { store: store.without_notifications(), notify: Some(server.pool.clone()) }
        }
    };
    let (table, follower) = match contestant {
        Contestant::BareLoop => ("bare_arrivals", Follower::bare(server).await?),
        Contestant::Daemon | Contestant::SilentWriters => ("arrivals", Follower::daemon(server)?),
    };
    // The first events wait for processes, connections and plans, so they do not count.
    let begun = appender.append().await?;
    wait_for(server, table, begun).await?;
    let first = append_for(&appender, WARM_UP).await?;
    wait_for(server, table, first).await?;
    let last = append_for(&appender, time).await?;
    wait_for(server, table, last).await?;
    follower.stop()?;
    latency(server, table, first).await
}

/// Appends one event at a time, whatever became of the ones before; returns the highest id.
async fn append_for(appender: &Appender, time: Duration) -> anyhow::Result<i64> {
    let mut appends = JoinSet::new();
    let begun = tokio::time::Instant::now();
    let mut next = begun;
    while next < begun + time {
        next += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / RATE);
        tokio::time::sleep_until(next).await;
        let appender = appender.clone();
        appends.spawn(async move { appender.append().await });
    }
    let mut last = 0;
    while let Some(id) = appends.join_next().await {
        last = last.max(id??);
    }
    Ok(last)
}

#[derive(Clone)]
struct Appender {
    store: PostgresEventStore,
    /// Where each append is followed by a notification of its own.
    notify: Option<sqlx::PgPool>,
}

impl Appender {
    async fn append(&self) -> anyhow::Result<i64> {
        let body = RawValue::from_string("{}".to_owned())?;
        let appended = self.store.append(&[NewEvent::new(Uuid::new_v4(), EVENT_TYPE, body)]).await?;
        if let Some(pool) = &self.notify {
            sqlx::query("select pg_notify($1, '')").bind(BARE_CHANNEL).execute(pool).await?;
        }
        Ok(appended[0].id.get())
    }
}

/// Who follows the store during a round.
enum Follower {
    Daemon(Daemon, Installation),
    Bare(oneshot::Sender<()>, std::thread::JoinHandle<anyhow::Result<()>>),
}

impl Follower {
    fn daemon(server: &Server) -> anyhow::Result<Self> {
        let installation = Installation::new(&server.url, "warn", PROJECTOR)?;
        Ok(Self::Daemon(installation.start()?, installation))
    }

    /// The loop runs on a thread of its own, so that it does not take turns with the appender.
    async fn bare(server: &Server) -> anyhow::Result<Self> {
        let head = sqlx::query_scalar("select coalesce(max(id), 0) from espd.events").fetch_one(&server.pool);
        let (url, head) = (server.url.clone(), head.await?);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::select! {
                    result = follow_barely(&url, head) => result,
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self::Bare(stop, thread))
    }

    fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Daemon(daemon, _installation) => daemon.stop(),
            Self::Bare(stop, thread) => {
                let _ = stop.send(());
                thread.join().map_err(|_| anyhow::anyhow!("the bare loop has panicked"))?
            }
        }
    }
}

/// What one would write without a care: it forgets what commits out of order, and what ends badly.
async fn follow_barely(url: &str, mut position: i64) -> anyhow::Result<()> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen(BARE_CHANNEL).await?;
    let mut connection = PgConnection::connect(url).await?;
    loop {
        let select = "select id from espd.events where id > $1 order by id";
        let ids: Vec<i64> = sqlx::query_scalar(select).bind(position).fetch_all(&mut connection).await?;
        let Some(last) = ids.last() else {
            listener.recv().await?;
            continue;
        };
        position = *last;
        let insert = "insert into bare_arrivals select unnest($1::bigint[]), clock_timestamp()";
        sqlx::query(insert).bind(ids).execute(&mut connection).await?;
    }
}

/// Waits until an event has its row.
async fn wait_for(server: &Server, table: &str, id: i64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    // The daemon creates its table.
    let exists = format!("select to_regclass('{table}') is not null");
    let arrived = format!("select exists (select from {table} where id = {id})");
    for question in [exists, arrived] {
        while !sqlx::query_scalar(AssertSqlSafe(question.as_str())).fetch_one(&server.pool).await? {
            ensure!(Instant::now() < deadline, "event {id} has no row in {table}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// The latencies of the events after `first`, by the server's own record of when transactions were committed.
async fn latency(server: &Server, table: &str, first: i64) -> anyhow::Result<Latency> {
    let statement = format!(
        "select (extract(epoch from pg_xact_commit_timestamp(a.xmin) - e.committed) * 1000)::float8,
                (extract(epoch from a.handled_at - e.committed) * 1000)::float8
         from (select id, pg_xact_commit_timestamp(xmin) as committed from espd.events where id > $1) e
           join {table} a using (id)"
    );
    let rows: Vec<(Option<f64>, f64)> =
        sqlx::query_as(AssertSqlSafe(statement)).bind(first).fetch_all(&server.pool).await?;
    let committed: Option<Vec<f64>> = rows.iter().map(|row| row.0).collect();
    let committed = committed.context("the server has forgotten when it committed")?;
    let handled: Vec<f64> = rows.iter().map(|row| row.1).collect();
    Ok(Latency {
        p50: percentile(&committed, 50.0),
        p99: percentile(&committed, 99.0),
        handled_p50: percentile(&handled, 50.0),
    })
}
