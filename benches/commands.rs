//! Commands through a repository, which loads, decides and appends, beside bare appends of the same events in the same run;
//! and loading a long aggregate with and without a snapshot.
//!
//! `cargo bench --bench commands`; docs/benchmarks.md says what the figures mean.

mod support;

use std::time::{Duration, Instant};

use espd::aggregate::{PostgresSnapshots, SnapshotFormat};
use espd::prelude::*;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use support::{Arguments, Report, SCHEMA, Server, Spread};

/// Callers at the same time, each with a connection.
const CALLERS: [u32; 3] = [1, 8, 32];

/// Commands on one aggregate before the caller goes on to the next one.
const COMMANDS_PER_AGGREGATE: i64 = 10;

/// Events of the long aggregate.
const LONG: usize = 10_000;

espd::event_set! {
    /// What happens to an account.
    pub enum AccountEvent {
        /// Somebody has put money in.
        MoneyAdded { amount: u32, note: String },
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Account {
    balance: u64,
}

impl Aggregate for Account {
    type Event = AccountEvent;

    fn snapshots() -> Option<SnapshotFormat<Self>> {
        Some(SnapshotFormat::json("account", 1))
    }

    fn evolve(&mut self, event: &AccountEvent) {
        let AccountEvent::MoneyAdded(added) = event;
        self.balance += u64::from(added.amount);
    }
}

struct AddMoney;

impl Decide<AddMoney> for Account {
    type Refusal = std::convert::Infallible;

    fn decide(&self, _: &AddMoney, _: &Context) -> Result<Vec<AccountEvent>, Self::Refusal> {
        Ok(espd::events![added()])
    }
}

fn added() -> MoneyAdded {
    MoneyAdded { amount: 7, note: "the rent of the third quarter".into() }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let time = arguments.size(Duration::from_secs(2), Duration::from_millis(200));
    let server = Server::start(&[]).await?;
    let report = Report::begin("Commands beside bare appends", "commands/s");
    for callers in CALLERS {
        let pool = PgPoolOptions::new().max_connections(callers).connect(&server.url).await?;
        let (mut bare, mut commands) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds(5) {
            bare.push(run(&pool, Way::Append, callers, time).await?);
            commands.push(run(&pool, Way::Execute, callers, time).await?);
        }
        let what = format!("{callers} callers; bare appends");
        report.row(&what, Spread::of(&commands), Spread::of(&bare), ">= 0.6");
        pool.close().await;
    }
    load_long(&server, arguments).await?;
    server.stop().await;
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    Append,
    Execute,
}

/// Events stored per second.
async fn run(pool: &PgPool, way: Way, callers: u32, time: Duration) -> anyhow::Result<f64> {
    let repository = Repository::new(PostgresEventStore::new(pool.clone(), Layout::espd(SCHEMA)?));
    let begin = Instant::now();
    let tasks = (0..callers).map(|_| {
        let repository = repository.clone();
        tokio::spawn(async move {
            let mut stored = 0;
            while begin.elapsed() < time {
                let id = Id::<Account>::generate();
                for version in 0..COMMANDS_PER_AGGREGATE {
                    match way {
                        Way::Append => append(&repository, &id, version).await?,
                        Way::Execute => drop(repository.execute(&id, &AddMoney).await?),
                    }
                    stored += 1;
                }
            }
            anyhow::Ok(stored)
        })
    });
    let stored: Vec<i64> = try_join_all(tasks).await?.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(stored.iter().sum::<i64>() as f64 / begin.elapsed().as_secs_f64())
}

/// The same event by somebody who knows the version.
async fn append(
    repository: &Repository<PostgresEventStore>,
    id: &Id<Account>,
    version: i64,
) -> anyhow::Result<()> {
    let event = NewEvent::of(id.get(), &added())?.expecting(ExpectedVersion::exactly(version));
    repository.store().append(&[event]).await?;
    Ok(())
}

async fn load_long(server: &Server, arguments: Arguments) -> anyhow::Result<()> {
    let store = PostgresEventStore::new(server.pool.clone(), Layout::espd(SCHEMA)?);
    let plain = Repository::new(store.clone());
    let with_snapshots = Repository::new(store.clone()).with_snapshots(PostgresSnapshots::of(&store)?);
    let id = Id::<Account>::generate();
    plain
        .decide(&id, |_: &Account, _| Ok::<_, ()>(vec![added().into(); LONG]))
        .await
        .expect("nothing refuses it");
    with_snapshots.take_snapshot(&id).await?;
    let report = Report::begin("Loading an aggregate of 10,000 events", "ms");
    let (mut whole, mut tail) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds(20) {
        whole.push(time_load(&plain, &id).await?);
        tail.push(time_load(&with_snapshots, &id).await?);
    }
    report.row(
        "an aggregate of 10,000 events, with a snapshot; all events",
        Spread::of(&tail),
        Spread::of(&whole),
        "",
    );
    Ok(())
}

async fn time_load(repository: &Repository<PostgresEventStore>, id: &Id<Account>) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let loaded = repository.load(id).await?;
    anyhow::ensure!(loaded.state.balance == 7 * LONG as u64, "the state is wrong");
    Ok(begin.elapsed().as_secs_f64() * 1_000.0)
}
