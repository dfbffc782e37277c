//! How fast a SQL projector catches up on a store of event_sourcery-postgres, whose bodies are `json`, beside the same on
//! espd's own table.
//!
//! `cargo bench --bench catch_up_layouts`; docs/benchmarks.md says what the figures mean.

mod support;

use anyhow::{Context as _, ensure};
use sqlx::{AssertSqlSafe, PgPool};
use support::{Arguments, Installation, Report, Server, Spread};

const PROJECTOR: &str = include_str!("../config/processors/outstanding_todos.toml");

const NAME: &str = "outstanding_todos";

/// The framework's table with its seven indexes.
const FRAMEWORK: &str = "create table events (
  id             bigserial primary key,
  uuid           uuid not null default gen_random_uuid(),
  aggregate_id   uuid not null,
  type           varchar(255) not null,
  body           json not null,
  version        bigint not null,
  correlation_id uuid,
  causation_id   uuid,
  created_at     timestamp without time zone not null default (now() at time zone 'utc')
);
create unique index on events (aggregate_id, version);
create unique index on events (uuid);
create index on events (type);
create index on events (correlation_id);
create index on events (causation_id);
create index on events (created_at);";

/// Each type as the framework stores it.
const TYPES: [(&str, &str); 4] = [
    ("TodoAdded", "todo_added"),
    ("TodoAmended", "todo_amended"),
    ("TodoCompleted", "todo_completed"),
    ("TodoAbandoned", "todo_abandoned"),
];

/// A store, and the projector that follows it.
struct Contestant {
    installation: Installation,
    pool: PgPool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(200_000, 20_000), arguments.rounds(5));
    let server = Server::start(&[]).await?;
    server.load_todo_history(events).await?;
    let flush = server.flush_time();
    let contestants = [of_framework(&server).await?, own(&server)?];
    let mut rates: [Vec<f64>; 2] = Default::default();
    let mut rows = None;
    for number in 0..=rounds {
        for turn in 0..contestants.len() {
            // Nobody always comes after the same one.
            let index = (number + turn) % contestants.len();
            server.settle().await?;
            let (rate, left) = contestants[index].run(events as i64, number > 0).await?;
            ensure!(*rows.get_or_insert(left.clone()) == left, "the two left different rows");
            // The first time, tables and functions are made.
            if number > 0 {
                rates[index].push(rate);
            }
        }
    }
    let title = format!("catch-up of {events} events in each layout, {rounds} rounds, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    let [framework, own] = rates.map(|rates| Spread::of(&rates));
    report.row("layout event_sourcery, body json; espd's own layout", framework, own, ">= 0.9");
    server.stop().await;
    Ok(())
}

fn own(server: &Server) -> anyhow::Result<Contestant> {
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", PROJECTOR)?;
    Ok(Contestant { installation, pool: server.pool.clone() })
}

/// The same events in a database of the framework.
async fn of_framework(server: &Server) -> anyhow::Result<Contestant> {
    let url = server.create_database("framework").await?;
    let pool = PgPool::connect(&url).await?;
    sqlx::raw_sql(FRAMEWORK).execute(&pool).await?;
    copy_events(server, &pool).await?;
    let mut declared = PROJECTOR.to_owned();
    for (own, framework) in TYPES {
        declared = declared.replace(own, framework);
    }
    let log = "warn,espd::processing::runner=debug";
    let installation = Installation::of_layout(&url, "event_sourcery", log, &declared)?;
    installation.espctl(&["migrate"])?;
    Ok(Contestant { installation, pool })
}

async fn copy_events(server: &Server, pool: &PgPool) -> anyhow::Result<()> {
    let mut after = 0_i64;
    loop {
        let select = "select id, aggregate_id::text, type, version, body::text from espd.events where id > $1 order by id limit 5000";
        let rows: Vec<(i64, String, String, i64, String)> =
            sqlx::query_as(select).bind(after).fetch_all(&server.pool).await?;
        let Some(last) = rows.last() else { break };
        after = last.0;
        let name = |own: &str| TYPES.iter().find(|pair| pair.0 == own).map_or(own, |pair| pair.1).to_owned();
        sqlx::query(
            "insert into events (aggregate_id, type, version, body)
             select aggregate_id::uuid, type, version, body::json
             from unnest($1::text[], $2::text[], $3::bigint[], $4::text[])
               with ordinality as e (aggregate_id, type, version, body, place)
             order by place",
        )
        .bind(rows.iter().map(|row| row.1.clone()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| name(&row.2)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.3).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.4.clone()).collect::<Vec<_>>())
        .execute(pool)
        .await?;
    }
    sqlx::raw_sql("vacuum analyze events").execute(pool).await?;
    Ok(())
}

impl Contestant {
    /// Events per second from the first batch to the last, and what is in the table then.
    async fn run(&self, head: i64, again: bool) -> anyhow::Result<(f64, String)> {
        if again {
            self.installation.espctl(&["reset", NAME, "--in-place", "--yes"])?;
        }
        let mut daemon = self.installation.start()?;
        let batches = daemon.wait_for_position(head).await?;
        daemon.stop()?;
        let (first, last) = (batches.first().context("a batch")?, batches.last().context("a batch")?);
        let rate = (head - first.position) as f64 / (last.at - first.at).as_seconds_f64();
        let rows = format!(
            "select count(*) || ' rows, ' || md5(string_agg(t::text, '' order by todo_id)) from {NAME} t"
        );
        Ok((rate, sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&self.pool).await?))
    }
}
