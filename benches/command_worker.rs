//! How fast a worker in Python catches up, beside the SQL projector that makes the same table of the same events.
//!
//! `cargo bench --bench command_worker`; docs/benchmarks.md says what the figures mean.

mod support;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use support::{Arguments, Installation, Report, Server, Spread};

/// The reference: declared SQL.
const BY_SQL: &str = include_str!("../config/processors/outstanding_todos.toml");

/// The worker of the examples, and the loop that it stands on.
const WORKER: &str = include_str!("../examples/workers/python/outstanding_todos.py");
const LOOP: &str = include_str!("../examples/workers/python/espd_worker.py");

/// The same projector, handled by the worker.
const BY_WORKER: &str = r#"
[projector]
name    = "worker_todos"
events  = ["TodoAdded", "TodoAmended", "TodoCompleted", "TodoAbandoned"]
command = ["python3", "worker_todos.py"]

[projector.tables]
worker_todos = """
  todo_id           uuid primary key,
  title             text not null,
  description       text,
  due_date          date,
  stakeholder_email text
"""
"#;

const BATCH_EVENTS: i64 = 1_000;

/// One way to have the events handled.
struct Contestant {
    installation: Installation,
    /// Its processor, and the table of that.
    name: &'static str,
}

/// When one round's batches were committed.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Before the process was started.
    started: DateTime<Utc>,
    /// When the first batch of full size was, and its position.
    full: (DateTime<Utc>, i64),
    last: DateTime<Utc>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(200_000, 20_000), arguments.rounds(5));
    let server = Server::start(&[]).await?;
    server.load_todo_history(events).await?;
    let flush = server.flush_time();
    let head = events as i64;

    let contestants = [worker(&server)?, sql(&server)?];
    let mut results: [Vec<Round>; 2] = Default::default();
    for number in 0..rounds {
        for turn in 0..contestants.len() {
            // Nobody always comes after the same one.
            let index = (number + turn) % contestants.len();
            results[index].push(contestants[index].run(&server, head, number > 0).await?);
        }
        compare(&server).await?;
    }

    let title = format!(
        "catch-up of {events} events by a worker in Python and by SQL, batches of {BATCH_EVENTS}, {rounds} rounds, flush {flush:.1?}"
    );
    let report = Report::begin(&title, "events/s");
    let [worker, sql] = results;
    let running = |rounds: &[Round]| rates(rounds, |round| round.full, head);
    let starting = |rounds: &[Round]| rates(rounds, |round| (round.started, 0), head);
    report.row("from the first full batch; SQL", running(&worker), running(&sql), ">= 15000/s");
    report.row("from the process' start; SQL", starting(&worker), starting(&sql), "");
    server.stop().await;
    Ok(())
}

/// Events per second of each round.
fn rates(rounds: &[Round], begin: impl Fn(&Round) -> (DateTime<Utc>, i64), head: i64) -> Spread {
    let rate = |round: &Round| {
        let (at, position) = begin(round);
        (head - position) as f64 / (round.last - at).as_seconds_f64()
    };
    Spread::of(&rounds.iter().map(rate).collect::<Vec<_>>())
}

fn sql(server: &Server) -> anyhow::Result<Contestant> {
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", BY_SQL)?;
    Ok(Contestant { installation, name: "outstanding_todos" })
}

fn worker(server: &Server) -> anyhow::Result<Contestant> {
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", BY_WORKER)?;
    installation.write("espd_worker.py", LOOP)?;
    installation.write("worker_todos.py", &WORKER.replace("outstanding_todos", "worker_todos"))?;
    Ok(Contestant { installation, name: "worker_todos" })
}

impl Contestant {
    /// Handles all events from the first on.
    async fn run(&self, server: &Server, head: i64, again: bool) -> anyhow::Result<Round> {
        if again {
            self.installation.espctl(&["reset", self.name, "--yes"])?;
        }
        server.settle().await?;
        let mut daemon = self.installation.start()?;
        let batches = daemon.wait_for_position(head).await?;
        let started = daemon.started;
        daemon.stop()?;
        let full =
            batches.iter().find(|batch| batch.handled == BATCH_EVENTS).context("there is a full batch")?;
        let last = batches.iter().find(|batch| batch.position == head).context("the head is reached")?;
        Ok(Round { started, full: (full.at, full.position), last: last.at })
    }
}

/// Requires that both have left the same rows.
async fn compare(server: &Server) -> anyhow::Result<()> {
    let differing: i64 = sqlx::query_scalar(
        "select count(*) from ((table outstanding_todos except table worker_todos)
           union all (table worker_todos except table outstanding_todos)) as differing",
    )
    .fetch_one(&server.pool)
    .await?;
    ensure!(differing == 0, "{differing} rows differ");
    Ok(())
}
