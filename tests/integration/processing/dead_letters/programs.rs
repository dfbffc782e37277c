//! Dead letters of processors whose handlers are outside of the database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use espd::Program;
use espd::internals::processor::{BatchRequest, Events, Outcome, Processor, ProcessorBase, ProcessorError};
use espd::internals::retry::OnFailure;
use espd::internals::sql::SqlProcessor;
use espd::internals::tracker::Claim;
use espd::native::Start;
use espd::native::{Delivery, EventType, HandlerError, Reactor, ReactorContext, Registration};
use espd::store::Layout;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use super::{add, dead_letters, failed, noted, setting_aside, waiting};
use crate::processing::runner::{DIVIDE, Life, notes, row_with, set_n};
use crate::support::facts::{eventually, reaches};
use crate::support::program::Installation;
use crate::support::{self, SCHEMA};

#[derive(Debug, Serialize, Deserialize)]
struct A {
    n: i64,
}

impl EventType for A {
    const NAME: &'static str = "A";
}

/// Notes each event whose `n` is not 0, with whether it is handled for the first time.
struct Noting;

#[async_trait]
impl Reactor for Noting {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let a: A = event.read()?.ok_or("it handles nothing else")?;
        if a.n == 0 {
            return Err("n is 0".into());
        }
        let note = sqlx::query("insert into notes (event_id, replaying) values ($1, $2)");
        let note = note.bind(event.id).bind(context.is_replaying());
        note.execute(context.connection().await?).await?;
        Ok(())
    }
}

fn noting() -> Box<dyn Processor> {
    let table = "place bigint generated always as identity, event_id bigint, replaying boolean";
    let declaration =
        Registration::reactor("notes").handles::<A>().start(Start::Beginning).table("notes", table);
    let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap());
    Program::new().reactor(declaration, || Noting).processor("notes", SCHEMA, "public", events).unwrap()
}

async fn replays(pool: &PgPool) -> Vec<(i64, bool)> {
    sqlx::query_as("select event_id, replaying from notes order by place").fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn a_processor_in_rust_keeps_the_order_and_tells_a_first_time_from_a_repetition() {
    let db = support::database().await;
    let (x1, y1, x2) = (add(&db.pool, 1, 0).await, add(&db.pool, 2, 1).await, add(&db.pool, 1, 2).await);
    let life = Life::begin_with(&db, noting(), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", x2).await;
    assert_eq!(dead_letters(&db.pool).await, [failed(x1, 1), waiting(x2)]);

    // What was handled before a reset, and fails now; and what never was.
    set_n(&db.pool, y1, 0).await;
    let espctl = Installation::new(&db.url, "");
    espctl.espctl(&["reset", "notes", "--to", "0", "--yes"]).await.printed();
    eventually("the failure of what was handled", async || {
        (dead_letters(&db.pool).await.len() == 3).then_some(())
    })
    .await;
    reaches(&db.pool, "notes", x2).await;
    assert_eq!(replays(&db.pool).await, [(y1, false)]);
    set_n(&db.pool, x1, 1).await;
    set_n(&db.pool, y1, 1).await;
    let retry = ["dead-letters", "retry", "notes", "--all", "--yes"];
    assert_eq!(espctl.espctl(&retry).await.printed(), "3 dead letters of notes handled\n");
    assert_eq!(replays(&db.pool).await, [(y1, false), (x1, false), (y1, true), (x2, false)]);
    assert_eq!(dead_letters(&db.pool).await, []);
    life.end().await;
}

/// A processor that needs something beside the database for its dead letters.
struct Needy {
    processor: SqlProcessor,
    is_there: Arc<AtomicBool>,
    tries: Arc<Mutex<Vec<Instant>>>,
}

#[async_trait]
impl Processor for Needy {
    fn base(&self) -> &ProcessorBase {
        self.processor.base()
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        self.processor.prepare(connection, claim).await
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        if request.dead_letter().is_some() && !self.is_there.load(Ordering::Relaxed) {
            self.tries.lock().unwrap().push(Instant::now());
            return Err(ProcessorError::Unavailable { message: "nobody answers".into(), wait: None });
        }
        self.processor.process(connection, request).await
    }
}

#[tokio::test]
async fn a_retry_waits_for_what_the_handler_needs_and_counts_against_no_dead_letter() {
    let db = support::database().await;
    let x1 = add(&db.pool, 1, 0).await;
    let (is_there, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap());
    let processor = SqlProcessor::new(notes(DIVIDE), SCHEMA, "public", events).unwrap();
    let needy = Needy { processor, is_there: is_there.clone(), tries: tries.clone() };
    let life = Life::begin_with(&db, Box::new(needy), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", x1).await;
    set_n(&db.pool, x1, 1).await;
    let espctl = Installation::new(&db.url, "");
    espctl.espctl(&["dead-letters", "retry", "notes", "--all", "--wait", "0s"]).await.printed();
    let row = row_with(&db.pool, "the outage", |row| row.outage.is_some()).await;
    assert_eq!(
        (row.outage.unwrap().0.message.as_str(), row.attempts, row.dead_letters),
        ("nobody answers", 0, 1)
    );
    let tried = eventually("four tries", async || {
        let tries = tries.lock().unwrap().clone();
        (tries.len() >= 4).then_some(tries)
    })
    .await;
    // 100 ms doubling, a fifth shorter at most.
    assert!(tried[3] - tried[0] >= Duration::from_millis(560), "{:?}", tried[3] - tried[0]);
    assert_eq!(dead_letters(&db.pool).await, [failed(x1, 1)]);

    is_there.store(true, Ordering::Relaxed);
    eventually("the retry", async || dead_letters(&db.pool).await.is_empty().then_some(())).await;
    assert_eq!(noted(&db.pool).await, [x1]);
    row_with(&db.pool, "the end of the outage", |row| row.outage.is_none()).await;
    life.end().await;
}
