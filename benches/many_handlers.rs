//! How fast a SQL projector catches up that has many handlers, beside one that has four, and beside the same statements in
//! loops that are written by hand.
//!
//! Hundreds of statements cost more than four even where nothing decides between them: each has a plan, which has left the
//! processor's caches when its turn comes again. That floor is stated as well, so that what is left is the dispatch.
//!
//! `cargo bench --bench many_handlers`; docs/benchmarks.md says what the figures mean.

mod support;

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use support::{Arguments, Installation, Report, Server, Spread};

/// The numbers of handlers, the reference first. Each handler inserts a row for events of a type of its own.
const HANDLERS: [usize; 4] = [4, 20, 100, 400];

/// Beside the loops: a multiple of each of [`HANDLERS`], so that the types begin anew with each batch.
const BATCH_EVENTS: usize = 1_200;

const NAME: &str = "handled";

/// Two loops by hand, whose conditions and statements are filled in.
const REFERENCES: &str = include_str!("many_handlers.sql");

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    /// Its batches grow, as they do by default.
    Daemon,
    /// It has batches as the loops.
    SmallBatches,
    /// A loop by hand, with the cheapest conditions.
    ByHand,
    /// The statements one after another, with no condition.
    InSequence,
}

const CONTESTANTS: [Contestant; 4] =
    [Contestant::Daemon, Contestant::SmallBatches, Contestant::ByHand, Contestant::InSequence];

/// Events per second, by the number of handlers and the contestant.
type Rates = [[Vec<f64>; CONTESTANTS.len()]; HANDLERS.len()];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let (events, rounds) = (arguments.size(240_000, 60_000), arguments.rounds(3));
    let server = Server::start(&[]).await?;
    let load = format!(
        "insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), 'T', 1, jsonb_build_object('n', n) from generate_series(1, {events}) as n"
    );
    server.execute(&load).await?;
    let mut rates = Rates::default();
    for round in 0..rounds {
        for turn in 0..HANDLERS.len() {
            // Nobody always comes after the same one.
            let index = (round + turn) % HANDLERS.len();
            measure(&server, HANDLERS[index], events, &mut rates[index]).await?;
        }
    }
    print(&format!("catch-up of {events} events, {rounds} rounds"), &rates);
    server.stop().await;
    Ok(())
}

fn print(title: &str, rates: &Rates) {
    let report = Report::begin(title, "events/s");
    let spreads = rates.each_ref().map(|rates| rates.each_ref().map(|rates| Spread::of(rates)));
    let [few, ..] = spreads;
    for (count, [_, small, by_hand, _]) in HANDLERS.iter().zip(spreads) {
        let what = format!("{count} handlers, batches of {BATCH_EVENTS}; a loop by hand");
        report.row(&what, small, by_hand, ">= 0.65");
    }
    for (count, [daemon, small, by_hand, in_sequence]) in HANDLERS.iter().zip(spreads).skip(1) {
        let target = if *count == 400 { ">= 0.85" } else { "" };
        report.row(&format!("{count} handlers; {} handlers", HANDLERS[0]), daemon, few[0], target);
        report.row(
            &format!("{count} handlers, batches of {BATCH_EVENTS}; {}", HANDLERS[0]),
            small,
            few[1],
            "",
        );
        report.row(&format!("{count} in a loop by hand; {}", HANDLERS[0]), by_hand, few[2], "");
        report.row(&format!("{count} in sequence; {}", HANDLERS[0]), in_sequence, few[3], "(floor)");
    }
}

/// Lets each contestant handle all events, each of which is for one of so many handlers.
async fn measure(
    server: &Server,
    handlers: usize,
    events: usize,
    rates: &mut [Vec<f64>; CONTESTANTS.len()],
) -> anyhow::Result<()> {
    server.execute(&format!("update espd.events set type = 'T' || id % {handlers}")).await?;
    server.execute("vacuum analyze espd.events").await?;
    server.execute(&references(handlers)).await?;
    for (contestant, rates) in CONTESTANTS.iter().zip(rates) {
        rates.push(match contestant {
            Contestant::Daemon => run_daemon(server, handlers, events, "").await?,
            Contestant::SmallBatches => {
                run_daemon(server, handlers, events, &format!("batch_size = {BATCH_EVENTS}\n")).await?
            }
            Contestant::ByHand => call(server, "loop_by_hand", events).await?,
            Contestant::InSequence => call(server, "in_sequence", events).await?,
        });
        let table = match contestant {
            Contestant::Daemon | Contestant::SmallBatches => NAME,
            Contestant::ByHand | Contestant::InSequence => "by_hand",
        };
        ensure!(is_right(server, table).await?, "{contestant:?} left other rows with {handlers} handlers");
    }
    Ok(())
}

/// From the daemon's first batch on; `keys` are further lines of the declaration.
async fn run_daemon(server: &Server, handlers: usize, events: usize, keys: &str) -> anyhow::Result<f64> {
    let declaration = declare(handlers, keys);
    let installation = Installation::new(&server.url, "warn,espd::processing::runner=debug", &declaration)?;
    let known: bool =
        sqlx::query_scalar("select exists (select from espd.trackers)").fetch_one(&server.pool).await?;
    if known {
        installation.espctl(&["reset", NAME, "--in-place", "--yes"])?;
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

/// Calls one of the procedures in a session of its own, which makes its plans as the daemon's does.
async fn call(server: &Server, procedure: &str, events: usize) -> anyhow::Result<f64> {
    server.execute("truncate by_hand").await?;
    server.settle().await?;
    let mut session = PgConnection::connect(&server.url).await?;
    sqlx::raw_sql("set jit = off; set enable_seqscan = off").execute(&mut session).await?;
    let statement = format!("call {procedure}({events}, {BATCH_EVENTS}, null)");
    let seconds: f64 = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut session).await?;
    session.close().await?;
    Ok((events - BATCH_EVENTS) as f64 / seconds)
}

/// Whether each event has been handled by its handler.
async fn is_right(server: &Server, table: &str) -> anyhow::Result<bool> {
    let statement = format!(
        "select count(*) = (select count(*) from espd.events) and bool_and(h.n = (e.body->>'n')::int)
         from espd.events as e join {table} as h on h.id = e.id and 'T' || h.handler = e.type"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&server.pool).await?)
}

fn declare(handlers: usize, keys: &str) -> String {
    let mut declaration = format!(
        "[projector]\nname = \"{NAME}\"\n{keys}\
         [projector.tables]\n{NAME} = \"id bigint primary key, handler int not null, n int\"\n"
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

/// The loops by hand with so many statements.
fn references(handlers: usize) -> String {
    REFERENCES
        .replace("{{count}}", &handlers.to_string())
        .replace("{{tree}}", &tree(0, handlers))
        .replace("{{sequence}}", &sequence(handlers))
}

/// Finds the statement of a number from `from` to `upto`, exclusive, by halving.
fn tree(from: usize, upto: usize) -> String {
    if upto - from == 1 {
        return format!("insert into by_hand values (event.id, {from}, (event.body->>'n')::int);\n");
    }
    let half = from.midpoint(upto);
    format!("if handler < {half} then\n{}else\n{}end if;\n", tree(from, half), tree(half, upto))
}

/// The statements for events whose ids begin behind a multiple of `handlers`.
fn sequence(handlers: usize) -> String {
    let statement = |place| {
        let handler = place % handlers;
        format!(
            "insert into by_hand values (ids[at + {place}], {handler}, (bodies[at + {place}]->>'n')::int);\n"
        )
    };
    (1..=handlers).map(statement).collect()
}
