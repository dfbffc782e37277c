//! How long the first event after a quiet time takes from its commit to the commit of its row, when it is appended by the
//! SQL function `espd.append`, beside a bare LISTEN loop whose writers notify after each commit.
//!
//! `cargo bench --bench first_after_quiet`; docs/benchmarks.md says what the figures mean. Many stores are quiet side by
//! side and get their events one after another, so that 200 trials do not take 200 quiet times.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use espd::schema::{migrate_event_store, migrate_processing};
use sqlx::postgres::{PgConnection, PgListener};
use sqlx::{AssertSqlSafe, Connection as _, PgPool};
use support::{Arguments, Daemon, Installation, Report, SCHEMA, Server, Spread, percentile};
use tokio::time::sleep;

/// Between the events of two stores.
const PAUSE: Duration = Duration::from_millis(50);

const PATIENCE: Duration = Duration::from_secs(60);

const PROJECTOR: &str = r#"
[[projector]]
name   = "arrivals"
tables = { arrivals = "id bigint primary key" }

[[projector.on]]
events = ["Ticked"]
sql    = "insert into arrivals values (event.id)"
"#;

const APPEND: &str = r#"select max(id) from espd.append(jsonb_build_object(
  'aggregate_id', gen_random_uuid(), 'type', 'Ticked', 'body', '{}'::jsonb))"#;

/// One store and who follows it.
struct Store {
    connection: PgConnection,
    /// None where a bare loop follows, which is notified by its writer.
    daemon: Option<(Daemon, Installation)>,
    /// The first event waits for processes and plans and does not count.
    first: i64,
    last: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (pairs, trials) = (arguments.size(20, 4), arguments.size(10, 2));
    let quiet = arguments.size(Duration::from_secs(10), Duration::from_secs(3));
    let server = Server::start(&[("track_commit_timestamp", "on"), ("max_connections", "400")]).await?;
    let mut stores = Vec::new();
    for number in 0..pairs {
        stores.push(Store::followed_by_daemon(&server, number).await?);
        stores.push(Store::followed_by_loop(&server, number).await?);
    }
    for _ in 0..trials {
        sleep(quiet).await;
        for store in &mut stores {
            store.append().await?;
            sleep(PAUSE).await;
        }
    }
    let (mut daemon, mut bare) = (Vec::new(), Vec::new());
    for store in &mut stores {
        let latencies = store.latencies().await?;
        if store.daemon.is_some() { daemon.extend(latencies) } else { bare.extend(latencies) }
    }
    let title = format!(
        "commit of the first event after {quiet:?} to commit of its row, {} events, flush {:.1?}",
        daemon.len(),
        server.flush_time()
    );
    let report = Report::begin(&title, "ms");
    let at = |latencies: &[f64], percent| Spread::of(&[percentile(latencies, percent)]);
    report.row("p50; a bare LISTEN loop", at(&daemon, 50.0), at(&bare, 50.0), "");
    report.row("p99; a bare LISTEN loop", at(&daemon, 99.0), at(&bare, 99.0), "<= 2 x");
    report.row("most; a bare LISTEN loop", at(&daemon, 100.0), at(&bare, 100.0), "");
    drop(report);
    for store in stores {
        store.daemon.map_or(Ok(()), |(daemon, _installation)| daemon.stop())?;
    }
    server.stop().await;
    Ok(())
}

impl Store {
    async fn followed_by_daemon(server: &Server, number: usize) -> anyhow::Result<Self> {
        let url = migrated(server, &format!("daemon_{number}")).await?;
        let installation = Installation::new(&url, "warn", PROJECTOR)?;
        let daemon = installation.start()?;
        Self::begin(&url, Some((daemon, installation))).await
    }

    async fn followed_by_loop(server: &Server, number: usize) -> anyhow::Result<Self> {
        let url = migrated(server, &format!("loop_{number}")).await?;
        let mut connection = PgConnection::connect(&url).await?;
        sqlx::raw_sql("create table arrivals (id bigint primary key)").execute(&mut connection).await?;
        let listener = listen(&url).await?;
        tokio::spawn(follow_barely(listener, connection));
        Self::begin(&url, None).await
    }

    /// Appends the first event and waits for its row.
    async fn begin(url: &str, daemon: Option<(Daemon, Installation)>) -> anyhow::Result<Self> {
        let connection = PgConnection::connect(url).await?;
        let mut store = Self { connection, daemon, first: 0, last: 0 };
        store.append().await?;
        store.first = store.last;
        store.wait_for_last().await?;
        Ok(store)
    }

    async fn append(&mut self) -> anyhow::Result<()> {
        self.last = sqlx::query_scalar(APPEND).fetch_one(&mut self.connection).await?;
        if self.daemon.is_none() {
            sqlx::query("notify bare").execute(&mut self.connection).await?;
        }
        Ok(())
    }

    async fn wait_for_last(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // The daemon makes its table.
        let exists = "select to_regclass('arrivals') is not null".to_owned();
        let arrived = format!("select exists (select from arrivals where id = {})", self.last);
        for question in [exists, arrived] {
            let ask = || AssertSqlSafe(question.as_str());
            while !sqlx::query_scalar::<_, bool>(ask()).fetch_one(&mut self.connection).await? {
                ensure!(Instant::now() < deadline, "event {} has no row", self.last);
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Of each event but the first, in milliseconds, by the server's own record of commits.
    async fn latencies(&mut self) -> anyhow::Result<Vec<f64>> {
        self.wait_for_last().await?;
        let statement =
            "select (extract(epoch from pg_xact_commit_timestamp(a.xmin) - pg_xact_commit_timestamp(e.xmin)) * 1000)::float8
             from espd.events as e join arrivals as a using (id) where id > $1";
        let latencies: Vec<Option<f64>> =
            sqlx::query_scalar(statement).bind(self.first).fetch_all(&mut self.connection).await?;
        latencies.into_iter().collect::<Option<_>>().context("the server has forgotten when it committed")
    }
}

/// A database with an empty store.
async fn migrated(server: &Server, name: &str) -> anyhow::Result<String> {
    let url = server.create_database(name).await?;
    let pool = PgPool::connect(&url).await?;
    migrate_event_store(&pool, SCHEMA).await?;
    migrate_processing(&pool, SCHEMA).await?;
    pool.close().await;
    Ok(url)
}

async fn listen(url: &str) -> anyhow::Result<PgListener> {
    let mut listener = PgListener::connect(url).await?;
    listener.listen("bare").await?;
    Ok(listener)
}

/// What one would write without a care: it forgets what commits out of order, and what ends badly.
async fn follow_barely(mut listener: PgListener, mut connection: PgConnection) -> anyhow::Result<()> {
    let mut position = 0_i64;
    loop {
        listener.recv().await?;
        let select = "select id from espd.events where id > $1 order by id";
        let ids: Vec<i64> = sqlx::query_scalar(select).bind(position).fetch_all(&mut connection).await?;
        position = ids.last().copied().unwrap_or(position);
        let insert = "insert into arrivals select unnest($1::bigint[])";
        sqlx::query(insert).bind(ids).execute(&mut connection).await?;
    }
}
