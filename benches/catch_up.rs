//! How fast one SQL projector catches up, beside the same PL/pgSQL called in a loop from psql.
//!
//! `cargo bench --bench catch_up`; docs/benchmarks.md says what the figures mean.

mod support;

use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use espd::embedded::find_binaries;
use support::{Arguments, Installation, Report, Server, Spread};

/// The reference workload: one table, a row from TodoAdded until TodoCompleted or TodoAbandoned.
const PROJECTOR: &str = include_str!("../config/processors/outstanding_todos.toml");

const BATCH_EVENTS: i64 = 1_000;

/// The two references. Both commit once per batch, and say when the first and the last commit were over.
const REFERENCES: &str = include_str!("catch_up.sql");

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Daemon,
    /// The function that espd has generated, called by a procedure.
    SameFunction,
    /// What one would write by hand for this workload alone.
    BareLoop,
}

/// When one round's batches were committed.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Before the process was started.
    started: DateTime<Utc>,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(200_000, 20_000), arguments.rounds(5));
    let server = Server::start(&[]).await?;
    server.load_todo_history(events).await?;
    let flush = server.flush_time();
    let bench = Bench::prepare(&server, events as i64).await?;

    let contestants = [Contestant::Daemon, Contestant::SameFunction, Contestant::BareLoop];
    let mut results: [Vec<Round>; 3] = Default::default();
    for number in 0..rounds {
        for turn in 0..contestants.len() {
            // Nobody always comes after the same one.
            let index = (number + turn) % contestants.len();
            results[index].push(bench.run(contestants[index]).await?);
        }
    }

    let title = format!(
        "catch-up of {events} events by one projector, batches of {BATCH_EVENTS}, {rounds} rounds, flush {flush:.1?}"
    );
    let report = Report::begin(&title, "events/s");
    let [daemon, function, bare] = results;
    let running = |rounds: &[Round]| rates(rounds, |round| round.first, events as i64 - BATCH_EVENTS);
    let starting = |rounds: &[Round]| rates(rounds, |round| round.started, events as i64);
    report.row("from the first batch; the same function", running(&daemon), running(&function), ">= 0.90");
    report.row("from the first batch; a bare loop", running(&daemon), running(&bare), ">= 0.90");
    report.row("from the process' start; the same function", starting(&daemon), starting(&function), "");
    report.row("from the process' start; a bare loop", starting(&daemon), starting(&bare), "");
    server.stop().await;
    Ok(())
}

/// Events per second of each round.
fn rates(rounds: &[Round], begin: impl Fn(&Round) -> DateTime<Utc>, events: i64) -> Spread {
    let rate = |round: &Round| events as f64 / (round.last - begin(round)).as_seconds_f64();
    Spread::of(&rounds.iter().map(rate).collect::<Vec<_>>())
}

struct Bench<'a> {
    server: &'a Server,
    installation: Installation,
    head: i64,
    /// What every contestant has to leave behind.
    rows: String,
}

impl<'a> Bench<'a> {
    /// Lets the daemon make the table and the function, and the rows that all others are compared with.
    async fn prepare(server: &'a Server, head: i64) -> anyhow::Result<Self> {
        let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", PROJECTOR)?;
        let mut bench = Self { server, installation, head, rows: String::new() };
        bench.run_daemon().await?;
        bench.server.execute(REFERENCES).await?;
        bench.rows = bench.fingerprint("outstanding_todos").await?;
        Ok(bench)
    }

    async fn run(&self, contestant: Contestant) -> anyhow::Result<Round> {
        self.installation.espctl(&["reset", "outstanding_todos", "--yes"])?;
        self.server.execute("truncate bare_todos").await?;
        self.server.settle().await?;
        let round = match contestant {
            Contestant::Daemon => self.run_daemon().await?,
            Contestant::SameFunction => self.call("same_function")?,
            Contestant::BareLoop => self.call("bare_loop")?,
        };
        let table = if contestant == Contestant::BareLoop { "bare_todos" } else { "outstanding_todos" };
        ensure!(self.fingerprint(table).await? == self.rows, "{contestant:?} left other rows");
        Ok(round)
    }

    async fn run_daemon(&self) -> anyhow::Result<Round> {
        let mut daemon = self.installation.start()?;
        let batches = daemon.wait_for_position(self.head).await?;
        let started = daemon.started;
        daemon.stop()?;
        let first = batches.first().context("there is a batch")?;
        let last = batches.iter().find(|batch| batch.position == self.head).context("the head is reached")?;
        ensure!(first.handled == BATCH_EVENTS, "the first batch has {} events", first.handled);
        Ok(Round { started, first: first.at, last: last.at })
    }

    /// Calls one of the procedures of [`REFERENCES`] from psql.
    fn call(&self, procedure: &str) -> anyhow::Result<Round> {
        let beside_server = find_binaries()?.folder().join("psql");
        let psql = if beside_server.is_file() { beside_server } else { "psql".into() };
        let statement = format!("call {procedure}({}, {BATCH_EVENTS}, null, null)", self.head);
        let started = Utc::now();
        let output = Command::new(psql)
            .args(["-X", "-q", "-A", "-t", "-F", " ", "-v", "ON_ERROR_STOP=1", "-d", &self.server.url])
            .args(["-c", "set time zone 'utc'", "-c", "set jit = off", "-c", "set enable_seqscan = off"])
            .args(["-c", &statement])
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        let answer = String::from_utf8(output.stdout)?;
        let (first, last) = answer.trim().split_once(' ').context("two times")?;
        Ok(Round { started, first: first.parse()?, last: last.parse()? })
    }

    /// The rows of a table, in few letters.
    async fn fingerprint(&self, table: &str) -> anyhow::Result<String> {
        let statement = format!(
            "select count(*) || ' rows, ' || md5(string_agg(t::text, '' order by todo_id)) from {table} t"
        );
        Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&self.server.pool).await?)
    }
}
