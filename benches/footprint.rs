//! What a daemon costs: at rest, in memory, at its start and its stop.
//!
//! `cargo bench --bench footprint`; docs/benchmarks.md says what the figures mean. Reads `/proc`: Linux only.

mod support;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use espd::event::NewEvent;
use espd::schema::migrate_processing;
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use serde_json::value::RawValue;
use sqlx::PgPool;
use support::processes::{Family, peak, proportional, resident};
use support::{Arguments, Installation, Limits, SCHEMA, Server, Spread};
use tokio::time::sleep;
use uuid::Uuid;

/// How long a daemon has nothing to do before it counts as idle: looks become rarer after half a minute.
const REST: Duration = Duration::from_secs(45);

const PROCESSORS: usize = 10;

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(2);

const PATIENCE: Duration = Duration::from_secs(120);

const MEBIBYTE: f64 = 1_048_576.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let server = Server::start(&[]).await?;
    let bench = Bench { server: &server, arguments };
    let limits = Limits::begin(&format!("what a daemon costs, {} rounds", arguments.rounds(5)));
    bench.start_and_stop(&limits).await?;
    bench.idle(&limits).await?;
    bench.full_speed(&limits).await?;
    bench.large_events(&limits).await?;
    server.stop().await;
    Ok(())
}

/// What a daemon and its workers cost while they have nothing to do.
struct Idle {
    /// In percent of a core.
    processor: f64,
    /// Statements per second.
    statements: f64,
    /// Memory of each worker with its part of what it shares, and all that is resident of it, in MiB.
    proportional: Vec<f64>,
    resident: Vec<f64>,
    /// Memory of all processes, in MiB.
    together: f64,
}

struct Bench<'a> {
    server: &'a Server,
    arguments: Arguments,
}

impl Bench<'_> {
    /// From the start of the process to the first event handled; from TERM to its end.
    async fn start_and_stop(&self, limits: &Limits) -> anyhow::Result<()> {
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        for round in 0..self.arguments.rounds(5) {
            let installation =
                Installation::new(&self.server.url, "warn", &processors(&format!("starting_{round}"), 1)?)?;
            self.append(1, "{}").await?;
            let begun = Instant::now();
            let daemon = installation.start()?;
            self.wait_until_handled(&self.server.pool, &format!("starting_{round}_0"), 1).await?;
            starts.push(begun.elapsed().as_secs_f64());
            self.wait_until_live(&format!("starting_{round}")).await?;
            let begun = Instant::now();
            daemon.stop()?;
            stops.push(begun.elapsed().as_secs_f64());
        }
        limits.row("start to the first event handled", Spread::of(&starts), "s", "< 1 s");
        limits.row("clean stop when idle", Spread::of(&stops), "s", "< 0.5 s");
        Ok(())
    }

    /// Processor time, statements and memory of processors with nothing to do: of ten, and of one, because the daemon asks the
    /// database as well, however many there are.
    async fn idle(&self, limits: &Limits) -> anyhow::Result<()> {
        let many = self.rest(PROCESSORS).await?;
        let one = self.rest(1).await?;
        let of_worker = (many.statements - one.statements) / (PROCESSORS - 1) as f64;
        let row = |what: &str, figures: &[f64], unit, limit| {
            limits.row(&format!("idle, 10 processors: {what}"), Spread::of(figures), unit, limit);
        };
        row("processor time", &[many.processor], "% of a core", "<= 0.9 %");
        row("statements per worker", &[of_worker], "/s", "<= 0.4 /s");
        row("statements of the daemon itself", &[one.statements - of_worker], "/s", "");
        row("memory per worker, with its part of what all share", &many.proportional, "MiB", "<= 10 MiB");
        row("resident memory per worker", &many.resident, "MiB", "");
        row("the daemon and all workers", &[many.together], "MiB", "");
        Ok(())
    }

    /// What so many processors cost while they have nothing to do.
    async fn rest(&self, processors: usize) -> anyhow::Result<Idle> {
        let time = self.arguments.size(Duration::from_secs(30), Duration::from_secs(2));
        let name = format!("idle_{processors}");
        let installation =
            Installation::new(&self.server.url, "warn", &self::processors(&name, processors)?)?;
        let daemon = installation.start()?;
        self.wait_until_live(&name).await?;
        sleep(self.arguments.size(REST, Duration::from_secs(1))).await;
        let family = Family::of(daemon.pid())?;
        let (statements, processor, begun) =
            (self.statements().await?, family.processor_time()?, Instant::now());
        sleep(time).await;
        let seconds = begun.elapsed().as_secs_f64();
        let of_each = |memory: fn(u32) -> anyhow::Result<u64>| {
            let workers = family.descendants().iter();
            workers.map(|pid| Ok(memory(*pid)? as f64 / MEBIBYTE)).collect::<anyhow::Result<Vec<_>>>()
        };
        let idle = Idle {
            processor: (family.processor_time()? - processor).as_secs_f64() / seconds * 100.0,
            // Less the one that asks.
            statements: (self.statements().await? - statements - 1) as f64 / seconds,
            proportional: of_each(proportional)?,
            resident: of_each(resident)?,
            together: family.memory()? as f64 / MEBIBYTE,
        };
        daemon.stop()?;
        Ok(idle)
    }

    /// Memory of a worker that catches up as fast as it can.
    async fn full_speed(&self, limits: &Limits) -> anyhow::Result<()> {
        let events = self.arguments.size(100_000, 5_000);
        self.server.load_todo_history(events).await?;
        let memory = self.peak_of("full_speed", events as i64, &self.server.url).await?;
        limits.row(
            "at full speed: most resident memory of a worker",
            Spread::of(&[memory]),
            "MiB",
            "<= 64 MiB",
        );
        Ok(())
    }

    /// Memory of a worker that handles large events.
    async fn large_events(&self, limits: &Limits) -> anyhow::Result<()> {
        self.server.execute("truncate espd.events").await?;
        let (events, bytes) = (self.arguments.size(1_000, 50), 1_000_000);
        // What cannot be compressed, so that it is as large on its way.
        let body =
            format!(r#"{{"text": "{}"}}"#, (0..bytes).map(|_| fastrand::alphanumeric()).collect::<String>());
        for _ in 0..events {
            self.append(1, &body).await?;
        }
        for (place, projections) in [("here", &self.server.url), ("elsewhere", &self.elsewhere().await?)] {
            let memory = self.peak_of("large_events", events, projections).await?;
            let what =
                format!("{events} events of 1 MB, projected {place}: most resident memory of a worker");
            limits.row(&what, Spread::of(&[memory]), "MiB", "< 128 MiB");
        }
        Ok(())
    }

    /// Another database, for projections.
    async fn elsewhere(&self) -> anyhow::Result<String> {
        self.server.execute("create database elsewhere").await?;
        let url = self.server.url.replacen("/bench?", "/elsewhere?", 1);
        migrate_processing(&PgPool::connect(&url).await?, SCHEMA).await?;
        Ok(url)
    }

    /// The most memory of a worker that handles all events, in MiB.
    async fn peak_of(&self, name: &str, events: i64, projections: &str) -> anyhow::Result<f64> {
        let elsewhere = if projections == self.server.url {
            String::new()
        } else {
            format!("[projections]\nurl = \"{projections}\"\n")
        };
        let text = elsewhere + &processors(name, 1)?;
        let installation = Installation::new(&self.server.url, "warn", &text)?;
        let daemon = installation.start()?;
        let pool = PgPool::connect(projections).await?;
        self.wait_until_handled(&pool, &format!("{name}_0"), events).await?;
        let family = Family::of(daemon.pid())?;
        let worker = family.descendants().first().context("there is no worker")?;
        let memory = peak(*worker)? as f64 / MEBIBYTE;
        daemon.stop()?;
        Ok(memory)
    }

    async fn append(&self, events: usize, body: &str) -> anyhow::Result<()> {
        let store = PostgresEventStore::new(self.server.pool.clone(), Layout::espd(SCHEMA)?);
        for _ in 0..events {
            let body = RawValue::from_string(body.to_owned())?;
            store.append(&[NewEvent::new(Uuid::new_v4(), "Measured", body)]).await?;
        }
        Ok(())
    }

    async fn wait_until_handled(&self, pool: &PgPool, processor: &str, events: i64) -> anyhow::Result<()> {
        let statement = "select count(*) from espd.trackers where name = $1 and handled >= $2";
        self.wait_for(async || {
            let query = sqlx::query_scalar::<_, i64>(statement).bind(processor).bind(events);
            Ok(query.fetch_one(pool).await? > 0)
        })
        .await
    }

    async fn wait_until_live(&self, prefix: &str) -> anyhow::Result<()> {
        let statement = "select count(*) filter (where not caught_up or owner is null) = 0 and count(*) > 0
                         from espd.trackers where name like $1";
        self.wait_for(async || {
            let query = sqlx::query_scalar::<_, bool>(statement).bind(format!("{prefix}\\_%"));
            Ok(query.fetch_one(&self.server.pool).await?)
        })
        .await
    }

    async fn wait_for(&self, is_there: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_there().await? {
            ensure!(Instant::now() < deadline, "waited too long");
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Statements that the database has run so far: each of ours is a transaction of its own.
    async fn statements(&self) -> anyhow::Result<i64> {
        let statement =
            "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
        Ok(sqlx::query_scalar(statement).fetch_one(&self.server.pool).await?)
    }
}

/// Declarations of processors that write a row for every event.
fn processors(name: &str, number: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..number {
        write!(
            text,
            r#"
[[projector]]
name   = "{name}_{number}"
tables = {{ {name}_{number} = "id bigint primary key, bytes bigint not null" }}

[[projector.on]]
events = ["*"]
sql    = "insert into {name}_{number} values (event.id, length(event.body::text))"
"#
        )?;
    }
    Ok(text)
}
