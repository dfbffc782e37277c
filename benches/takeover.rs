//! How long it takes until a standby daemon has taken a processor over: from an owner that stops, one that is
//! killed with its workers, and one that is frozen with them in the middle of a batch.
//!
//! `cargo bench --bench takeover`; with 100 rounds it takes about 25 minutes, `-- --quick` one. Everything is measured from
//! outside, on real processes: from the signal until the new owner is handling events.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use sqlx::{Connection as _, PgConnection};
use support::{Arguments, Daemon, Installation, Limits, Server, Spread, percentile};

/// Between two looks at the tracker.
const POLL: Duration = Duration::from_millis(2);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The advisory lock that the handler of `Gated` waits for.
const GATE: i64 = 4_680;

const PROJECTOR: &str = r#"
[[projector]]
name = "arrivals"

[projector.tables]
arrivals = "id bigint primary key"

[[projector.on]]
events = ["Ticked"]
sql    = "insert into arrivals values (event.id)"

[[projector.on]]
events = ["Gated"]
sql    = "perform pg_advisory_xact_lock_shared(4680)"
"#;

/// What happens to the owner.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is asked to stop.
    Stopped,
    /// It and its workers are killed at once.
    Killed,
    /// It and its workers are suspended while the database handles a batch of theirs.
    Frozen,
}

const FATES: [(Fate, &str, f64); 3] = [
    (Fate::Stopped, "the owner is stopped", 0.5),
    (Fate::Killed, "the owner and its workers are killed", 6.5),
    (Fate::Frozen, "they are frozen in the middle of a batch", 6.5),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let rounds = arguments.rounds(100).max(arguments.size(1, 3));
    let server = Server::start(&[]).await?;
    let title = format!("from the signal until the new owner handles events, {rounds} rounds each");
    let limits = Limits::begin(&title);
    let mut theatre = Theatre::open(&server).await?;
    for (fate, what, target) in FATES {
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            seconds.push(theatre.play(fate).await?.as_secs_f64());
        }
        let limit = format!("< {target} s");
        limits.row(&format!("{what}, p50"), Spread::of(&[percentile(&seconds, 50.0)]), "s", &limit);
        limits.row(&format!("{what}, p99"), Spread::of(&[percentile(&seconds, 99.0)]), "s", &limit);
    }
    theatre.close()?;
    server.stop().await;
    Ok(())
}

/// An owner, a standby, and the place of the next one.
struct Theatre<'s> {
    server: &'s Server,
    /// A daemon's log is in its folder, so two daemons need two.
    owner: (Installation, Daemon),
    standby: (Installation, Daemon),
}

impl<'s> Theatre<'s> {
    async fn open(server: &'s Server) -> anyhow::Result<Self> {
        let install = || Installation::new(&server.url, "info", PROJECTOR);
        let (one, other) = (install()?, install()?);
        let owner = one.start()?;
        let first = append(server, "Ticked").await?;
        until(async || Ok(position(server).await? >= first)).await.context("the first owner")?;
        let standby = other.start()?;
        let theatre = Self { server, owner: (one, owner), standby: (other, standby) };
        theatre.standby_is_ready().await?;
        Ok(theatre)
    }

    /// Lets the owner meet its fate, and returns how long it took until the other one had replaced it.
    async fn play(&mut self, fate: Fate) -> anyhow::Result<Duration> {
        let took = match fate {
            Fate::Stopped => {
                let begun = Instant::now();
                self.send(Signal::SIGTERM, 1)?;
                self.until_replaced().await?;
                begun.elapsed()
            }
            Fate::Killed => {
                let begun = Instant::now();
                self.send(Signal::SIGKILL, usize::MAX)?;
                self.until_replaced().await?;
                begun.elapsed()
            }
            Fate::Frozen => self.freeze().await?,
        };
        self.recast().await?;
        Ok(took)
    }

    /// The new owner has replaced the old one when it waits at the same gate.
    async fn freeze(&self) -> anyhow::Result<Duration> {
        let mut keeper = PgConnection::connect(&self.server.url).await?;
        sqlx::query("select pg_advisory_lock($1)").bind(GATE).execute(&mut keeper).await?;
        append(self.server, "Gated").await?;
        until(async || Ok(visitor(self.server).await?.is_some())).await.context("a batch at the gate")?;
        let frozen = visitor(self.server).await?;
        let begun = Instant::now();
        self.send(Signal::SIGSTOP, usize::MAX)?;
        let next = async || Ok(visitor(self.server).await?.is_some_and(|visitor| Some(visitor) != frozen));
        until(next).await.context("the next owner at the gate")?;
        let took = begun.elapsed();
        keeper.close().await?;
        self.send(Signal::SIGCONT, usize::MAX)?;
        self.send(Signal::SIGTERM, 1)?;
        self.until_replaced().await?;
        Ok(took)
    }

    /// Sends the owner's first processes a signal: itself comes first, then its workers.
    fn send(&self, signal: Signal, processes: usize) -> anyhow::Result<()> {
        for pid in self.owner.1.processes()?.into_iter().take(processes) {
            kill(pid, signal)?;
        }
        Ok(())
    }

    /// Waits until the standby owns the processor and has handled an event that was appended afterwards.
    async fn until_replaced(&self) -> anyhow::Result<()> {
        let pid = self.standby.1.processes()?[0];
        until(async || {
            let owns: bool =
                sqlx::query_scalar("select coalesce(owner_label like '%:' || $1, false) from espd.trackers")
                    .bind(pid.to_string())
                    .fetch_one(&self.server.pool)
                    .await?;
            Ok(owns)
        })
        .await
        .context("the standby's claim")?;
        let id = append(self.server, "Ticked").await?;
        until(async || Ok(position(self.server).await? >= id)).await.context("the next event")
    }

    /// The standby is the owner now, and a new daemon stands by.
    async fn recast(&mut self) -> anyhow::Result<()> {
        std::mem::swap(&mut self.owner, &mut self.standby);
        let next = &mut self.standby;
        let started = next.0.start()?;
        std::mem::replace(&mut next.1, started).wait()?;
        self.standby_is_ready().await
    }

    async fn standby_is_ready(&self) -> anyhow::Result<()> {
        let pid = self.standby.1.processes()?[0];
        until(async || {
            let ready: bool = sqlx::query_scalar(
                "select exists (select from espd.signs_of_life where epoch is null and owner_label like '%:' || $1)",
            )
            .bind(pid.to_string())
            .fetch_one(&self.server.pool)
            .await?;
            Ok(ready)
        })
        .await
        .context("the next standby")
    }

    fn close(self) -> anyhow::Result<()> {
        self.standby.1.stop()?;
        self.owner.1.stop()
    }
}

async fn append(server: &Server, event_type: &str) -> anyhow::Result<i64> {
    let id = sqlx::query_scalar(
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), $1, 1, '{}') returning id",
    )
    .bind(event_type)
    .fetch_one(&server.pool)
    .await?;
    Ok(id)
}

async fn position(server: &Server) -> anyhow::Result<i64> {
    let statement = "select coalesce(max(position), 0) from espd.trackers";
    Ok(sqlx::query_scalar(statement).fetch_one(&server.pool).await?)
}

/// The backend that waits at the gate.
async fn visitor(server: &Server) -> anyhow::Result<Option<i32>> {
    let statement =
        "select pid from pg_locks where locktype = 'advisory' and objid::bigint = $1 and not granted";
    Ok(sqlx::query_scalar(statement).bind(GATE).fetch_optional(&server.pool).await?)
}

async fn until(mut fact: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !fact().await? {
        ensure!(Instant::now() < deadline, "waited {PATIENCE:?} in vain");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
