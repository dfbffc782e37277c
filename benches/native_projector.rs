//! How fast a projector in Rust catches up, beside the same projector declared in SQL.
//!
//! `cargo bench --bench native_projector`; docs/benchmarks.md says what the figures mean.

#[path = "../examples/todo_processors/events.rs"]
mod events;
#[path = "../examples/todo_processors/projections.rs"]
#[expect(dead_code, reason = "the example has another projection, which is not measured")]
mod projections;
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use espd::Program;
use support::processes::{Family, peak};
use support::{Arguments, Installation, Limits, Report, Server, Spread};

use projections::OpenTodos;

const SQL: &str = include_str!("../config/processors/outstanding_todos.toml");

/// The program registers the processor; nothing more is to be said of it.
const RUST: &str = "";

const NAME: &str = "outstanding_todos";

/// The benchmark is also the program that it measures: workers are started as this program once more.
fn main() -> anyhow::Result<ExitCode> {
    if std::env::args().any(|argument| argument == "run" || argument == "worker") {
        let program = Program::new().projector(OpenTodos::registration(NAME), || OpenTodos::new(NAME));
        return Ok(program.main());
    }
    tokio::runtime::Runtime::new()?.block_on(measure())?;
    Ok(ExitCode::SUCCESS)
}

async fn measure() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(200_000, 20_000), arguments.rounds(5));
    let server = Server::start(&[]).await?;
    server.load_todo_history(events).await?;
    let flush = server.flush_time();
    let espd = PathBuf::from(env!("CARGO_BIN_EXE_espd"));
    let contestants = [(RUST, std::env::current_exe()?), (SQL, espd)];
    let (mut results, mut peaks): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    let mut rows: Option<String> = None;
    for number in 0..rounds {
        for turn in 0..2 {
            // Nobody always comes after the same one.
            let index = (number + turn) % 2;
            let (declared, program) = &contestants[index];
            let (rate, peak, left) = run(&server, declared, program, events as i64).await?;
            ensure!(*rows.get_or_insert(left.clone()) == left, "the two left different rows");
            results[index].push(rate);
            peaks[index].push(peak);
        }
    }
    let title = format!("catch-up of {events} events by one projector, {rounds} rounds, flush {flush:.1?}");
    let report = Report::begin(&title, "events/s");
    let [rust, sql] = results.map(|rates| Spread::of(&rates));
    report.row("a projector in Rust; declared in SQL", rust, sql, ">= 0.5");
    drop(report);
    let limits = Limits::begin(&title);
    for (what, memory) in ["a projector in Rust", "declared in SQL"].iter().zip(&peaks) {
        limits.row(&format!("{what}: most memory of the worker"), Spread::of(memory), "MiB", "<= 64 MiB");
    }
    server.stop().await;
    Ok(())
}

/// Events per second from the first batch to the last, the most memory of the worker in MiB, and what is in the table then.
async fn run(
    server: &Server,
    declared: &str,
    program: &std::path::Path,
    events: i64,
) -> anyhow::Result<(f64, f64, String)> {
    // Left behind by the round before.
    server.execute("drop table if exists outstanding_todos").await?;
    server.execute("delete from espd.trackers; delete from espd.projection_tables").await?;
    server.settle().await?;
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", declared)?;
    let mut daemon = installation.start_program(program)?;
    let batches = daemon.wait_for_position(events).await?;
    let family = Family::of(daemon.pid())?;
    let peak = peak(*family.descendants().first().context("there is no worker")?)? as f64 / 1_048_576.0;
    daemon.stop()?;
    let (first, last) = (batches.first().context("a batch")?, batches.last().context("a batch")?);
    let rate = (events - first.position) as f64 / (last.at - first.at).as_seconds_f64();
    let rows = "select count(*) || ' rows, ' || md5(string_agg(t::text, '' order by todo_id)) from outstanding_todos t";
    Ok((rate, peak, sqlx::query_scalar(rows).fetch_one(&server.pool).await?))
}
