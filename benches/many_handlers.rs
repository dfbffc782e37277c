//! How fast a SQL projector catches up that has many handlers, beside one that has four: what an event costs should not grow
//! with the handlers that are not for it. At 100 and 400 handlers the target is not reached yet.
//!
//! `cargo bench --bench many_handlers`; docs/benchmarks.md says what the figures mean.

mod support;

use std::fmt::Write as _;

use anyhow::Context as _;
use support::{Arguments, Installation, Report, Server, Spread};

/// The numbers of handlers, the reference first. Each handler inserts a row for events of a type of its own.
const HANDLERS: [usize; 4] = [4, 20, 100, 400];

const NAME: &str = "handled";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(100_000, 10_000), arguments.rounds(3));
    let server = Server::start(&[]).await?;
    let load = format!(
        "insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), 'T', 1, jsonb_build_object('n', n) from generate_series(1, {events}) as n"
    );
    server.execute(&load).await?;
    let mut rates: [Vec<f64>; HANDLERS.len()] = Default::default();
    for round in 0..rounds {
        for turn in 0..HANDLERS.len() {
            // Nobody always comes after the same one.
            let index = (round + turn) % HANDLERS.len();
            rates[index].push(measure(&server, HANDLERS[index], events).await?);
        }
    }
    let report = Report::begin(&format!("catch-up of {events} events, {rounds} rounds"), "events/s");
    let [reference, others @ ..] = rates.map(|rates| Spread::of(&rates));
    for (count, rate) in HANDLERS[1..].iter().zip(others) {
        report.row(&format!("{count} handlers; {} handlers", HANDLERS[0]), rate, reference, ">= 0.85");
    }
    server.stop().await;
    Ok(())
}

/// Events per second of a projector with this many handlers, from its first batch on.
async fn measure(server: &Server, handlers: usize, events: usize) -> anyhow::Result<f64> {
    let spread = format!("update espd.events set type = 'T' || id % {handlers}");
    server.execute(&spread).await?;
    server.execute("vacuum analyze espd.events").await?;
    let installation =
        Installation::new(&server.url, "warn,espd::processing::runner=debug", &declare(handlers))?;
    let known: bool =
        sqlx::query_scalar("select exists (select from espd.trackers)").fetch_one(&server.pool).await?;
    if known {
        installation.espctl(&["reset", NAME, "--yes"])?;
    }
    server.settle().await?;
    let mut daemon = installation.start()?;
    let head = events as i64;
    let batches = daemon.wait_for_position(head).await?;
    daemon.stop()?;
    let first = batches.first().context("there is a batch")?;
    let last = batches.iter().find(|batch| batch.position >= head).context("the head is reached")?;
    Ok((last.position - first.position) as f64 / (last.at - first.at).as_seconds_f64())
}

fn declare(handlers: usize) -> String {
    let mut declaration = format!(
        "[projector]\nname = \"{NAME}\"\n[projector.tables]\n{NAME} = \"id bigint primary key, handler int not null, n int\"\n"
    );
    for handler in 0..handlers {
        // Writing to a String cannot fail.
        let _ = writeln!(
            declaration,
            "[[projector.on]]\nevents = [\"T{handler}\"]\n\
             sql = \"insert into {NAME} values (event.id, {handler}, (event.body->>'n')::int)\""
        );
    }
    declaration
}
