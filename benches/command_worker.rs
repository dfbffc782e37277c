//! How fast a worker in Python catches up, beside the SQL projector that makes the same table of the same events, and beside
//! a bare loop in Python over the same lines of JSON from a file, without a database.
//!
//! `cargo bench --bench command_worker`; docs/benchmarks.md says what the figures mean.

mod support;

use std::fs::File;
use std::process::{Command, Stdio};

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

/// What one would write for these lines alone. It prints how many events it has handled in a second.
const BARE_LOOP: &str = include_str!("command_worker.py");

/// Between espd and the worker: keeps what the worker is told.
const KEEPING: &str = r#"command = ["sh", "-c", "tee lines.jsonl | python3 worker_todos.py"]"#;

/// What it replaces.
const PLAIN: &str = r#"command = ["python3", "worker_todos.py"]"#;

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
    /// When the first batch was, and its position.
    first: (DateTime<Utc>, i64),
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
    let lines = keep_lines(&server, head).await?;
    let mut results: [Vec<Round>; 2] = Default::default();
    let mut bare = Vec::new();
    for number in 0..rounds {
        for turn in 0..contestants.len() {
            // Nobody always comes after the same one.
            let index = (number + turn) % contestants.len();
            results[index].push(contestants[index].run(&server, head, true).await?);
        }
        compare(&server).await?;
        bare.push(loop_barely(&lines)?);
    }

    let title = format!(
        "catch-up of {events} events by a worker in Python and by SQL, {rounds} rounds, flush {flush:.1?}"
    );
    let report = Report::begin(&title, "events/s");
    let [worker, sql] = results;
    let running = |rounds: &[Round]| rates(rounds, |round| round.first, head);
    let starting = |rounds: &[Round]| rates(rounds, |round| (round.started, 0), head);
    let bare = Spread::of(&bare);
    report.row("from the first batch; a bare loop over the lines", running(&worker), bare, ">= 0.5");
    report.row("from the first batch; SQL", running(&worker), running(&sql), "");
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
    Ok(Contestant { installation: install(server, BY_WORKER)?, name: "worker_todos" })
}

fn install(server: &Server, processor: &str) -> anyhow::Result<Installation> {
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", processor)?;
    installation.write("espd_worker.py", LOOP)?;
    installation.write("worker_todos.py", &WORKER.replace("outstanding_todos", "worker_todos"))?;
    Ok(installation)
}

/// What the worker is told when it handles all events; both have their tables afterwards.
async fn keep_lines(server: &Server, head: i64) -> anyhow::Result<Installation> {
    sql(server)?.run(server, head, false).await?;
    let keeping = Contestant {
        installation: install(server, &BY_WORKER.replace(PLAIN, KEEPING))?,
        name: "worker_todos",
    };
    keeping.run(server, head, false).await?;
    keeping.installation.write("bare_loop.py", BARE_LOOP)?;
    Ok(keeping.installation)
}

/// Events per second of the bare loop.
fn loop_barely(lines: &Installation) -> anyhow::Result<f64> {
    let output = Command::new("python3")
        .current_dir(lines.folder())
        .arg("bare_loop.py")
        .stdin(File::open(lines.folder().join("lines.jsonl"))?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the bare loop: {told}");
    told.trim().parse().with_context(|| format!("the bare loop tells {told}"))
}

impl Contestant {
    /// Handles all events from the first on.
    async fn run(&self, server: &Server, head: i64, again: bool) -> anyhow::Result<Round> {
        if again {
            self.installation.espctl(&["reset", self.name, "--in-place", "--yes"])?;
        }
        server.settle().await?;
        let mut daemon = self.installation.start()?;
        let batches = daemon.wait_for_position(head).await?;
        let started = daemon.started;
        daemon.stop()?;
        let first = batches.first().context("there is a batch")?;
        let last = batches.iter().find(|batch| batch.position == head).context("the head is reached")?;
        Ok(Round { started, first: (first.at, first.position), last: last.at })
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
