//! Processors as tasks of the application's own process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use espd::native::{
    Delivery, EventType, HandlerError, Projector, ProjectorContext, Reactor, ReactorContext, Registration,
    Start,
};
use espd::store::EventStore as _;
use espd::{Config, Program, Running, WaitError};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::A;
use crate::support::facts::{PATIENCE, append, append_typed, eventually, position};
use crate::support::{self, Database};

/// Notes every event of every type; fails at an A whose `n` is 0.
struct Notes;

#[async_trait]
impl Projector for Notes {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            if event.read::<A>()?.is_some_and(|a| a.n == 0) {
                return Err(event.failed("n is 0"));
            }
            let note = sqlx::query("insert into notes (event_id, type) values ($1, $2)");
            note.bind(event.id).bind(&event.event_type).execute(context.connection()).await?;
        }
        Ok(())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Soon;

impl EventType for Soon {
    const NAME: &'static str = "Soon";
}

#[derive(Debug, Serialize, Deserialize)]
struct MuchLater;

impl EventType for MuchLater {
    const NAME: &'static str = "MuchLater";
}

/// Emits an event after a moment, and one that is for next week.
struct Reminders;

#[async_trait]
impl Reactor for Reminders {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        context.emit_after(Duration::from_millis(1), None, &event.aggregate_id, &Soon)?;
        let week = Duration::from_secs(7 * 86_400);
        context.emit_after(week, Some("week"), &event.aggregate_id, &MuchLater)
    }
}

fn notes() -> Registration {
    Registration::projector("notes")
        .table("notes", "place bigint generated always as identity, event_id bigint, type text")
}

fn program() -> Program {
    let reminders = Registration::reactor("reminders").handles::<A>().emits::<Soon>().emits::<MuchLater>();
    Program::new().projector(notes(), || Notes).reactor(reminders.start(Start::Beginning), || Reminders)
}

fn config(db: &Database) -> Config {
    Config::for_database(&db.url).unwrap()
}

async fn start(program: Program, db: &Database) -> Running {
    program.start(&config(db)).await.unwrap()
}

async fn noted(pool: &PgPool) -> HashMap<String, i64> {
    let counts = sqlx::query_as("select type, count(*) from notes group by type");
    let counts: Vec<(String, i64)> = counts.fetch_all(pool).await.unwrap();
    counts.into_iter().collect()
}

#[tokio::test]
async fn what_a_reactor_emits_later_moves_and_idle_waits_for_what_is_due() {
    let db = support::empty_database().await;
    Program::migrate(&config(&db)).await.unwrap();
    let last = append(&db.pool, 3).await;
    let running = start(program(), &db).await;
    let idle = running.idle(PATIENCE).await.unwrap();
    assert_eq!(noted(&db.pool).await, HashMap::from([("A".to_owned(), 3), ("Soon".to_owned(), 3)]));
    assert!(idle.position >= last.into(), "{idle:?}");
    let later: Vec<_> = idle.later.iter().map(|one| (one.event_type.as_str(), one.key.as_deref())).collect();
    assert_eq!(later, [("MuchLater", Some("week"))], "a key names one of them: {idle:?}");
    running.stop().await.unwrap();
}

/// What a session holds while it appends scheduled events; others wait for their turn.
const TURN: &str = "hashtextextended('espd: scheduled events of espd', 0)";

#[tokio::test]
async fn what_an_application_has_scheduled_is_appended_and_told_in_its_own_process() {
    let db = support::database().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let program = Program::new().projector(notes(), || Notes).on_appended(move |events| {
        tell.lock().unwrap().extend(events.iter().map(|event| event.event_type.clone()));
    });
    let running = start(program, &db).await;
    let event = |name: &str| {
        let body = serde_json::value::to_raw_value("b").unwrap();
        [espd::event::NewEvent::new(uuid::Uuid::new_v4(), name, body)]
    };
    let mut holder = db.pool.acquire().await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("select pg_advisory_lock({TURN})")))
        .execute(&mut *holder)
        .await
        .unwrap();
    let store = running.event_store();
    store.append_at(Duration::ZERO, None, &event("Due")).await.unwrap();
    store.append_at(Duration::from_secs(3_600), None, &event("Later")).await.unwrap();
    let appended = store.append(&event("B")).await.unwrap();
    running.wait("notes", appended[0].id, PATIENCE).await.unwrap();
    let late = running.idle(Duration::from_millis(200)).await.unwrap_err();
    assert!(late.to_string().contains("1 scheduled events are due"), "{late}");
    holder.close().await.unwrap();

    running.idle(PATIENCE).await.unwrap();
    assert_eq!(noted(&db.pool).await, HashMap::from([("B".to_owned(), 1), ("Due".to_owned(), 1)]));
    eventually("the closure is called", async || (told.lock().unwrap().len() == 2).then_some(())).await;
    assert_eq!(*told.lock().unwrap(), ["B", "Due"]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_appended_behind_the_start_is_handled_also_by_who_begins_then() {
    let db = support::database().await;
    append(&db.pool, 3).await;
    let mut writing = db.pool.begin().await.unwrap();
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'B', 1, '0')",
    )
    .execute(&mut *writing)
    .await
    .unwrap();
    let reminders = || Registration::reactor("reminders").handles::<A>().emits::<Soon>().emits::<MuchLater>();
    let first = Program::new().reactor(reminders(), || Reminders);
    let config = config(&db);
    let mut starting = Box::pin(first.start(&config));
    let waited = tokio::time::timeout(Duration::from_millis(500), &mut starting).await;
    assert!(waited.is_err(), "it does not begin before who writes now has ended");
    writing.commit().await.unwrap();
    let running = starting.await.unwrap();
    let last = append(&db.pool, 1).await;
    running.wait("reminders", last, PATIENCE).await.unwrap();
    running.idle(PATIENCE).await.unwrap();
    let emitted: i64 = sqlx::query_scalar("select count(*) from espd.events where type = 'Soon'")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(emitted, 1);
    running.stop().await.unwrap();

    // One that has begun under another version has begun.
    let second = Program::new().reactor(reminders().version(2), || Reminders);
    start(second, &db).await.stop().await.unwrap();
}

#[tokio::test]
async fn an_application_reads_what_it_has_written_and_stops_at_once() {
    let db = support::database().await;
    let running = start(Program::new().projector(notes(), || Notes), &db).await;
    let event =
        espd::event::NewEvent::new(uuid::Uuid::new_v4(), "B", serde_json::value::to_raw_value("b").unwrap());
    let appended = running.event_store().append(&[event]).await.unwrap();
    assert_eq!(running.wait("notes", appended[0].id, PATIENCE).await.unwrap(), appended[0].id);
    assert_eq!(noted(&db.pool).await["B"], 1);
    let unknown = running.wait("nots", 1, PATIENCE).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no processor nots; there are notes");
    let late = running.wait("notes", 1_000, Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(late, WaitError::TimedOut { .. }), "{late}");
    running.stop().await.unwrap();
    let owner: Option<String> =
        sqlx::query_scalar("select owner_label from espd.trackers where lease_until > clock_timestamp()")
            .fetch_optional(&db.pool)
            .await
            .unwrap();
    assert_eq!(owner, None, "the claim is released");
}

#[tokio::test]
async fn whoever_waits_learns_of_the_failure_that_keeps_a_processor_from_there() {
    let db = support::database().await;
    let last = append(&db.pool, 5).await;
    let running = start(Program::new().projector(notes(), || Notes), &db).await;
    running.caught_up().await.unwrap();
    sqlx::query("insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{\"n\": 0}')")
        .execute(&db.pool)
        .await
        .unwrap();
    let blocked = running.caught_up().await.unwrap_err();
    let WaitError::Blocked { processor, reason, event_id } = blocked else { panic!("{blocked}") };
    assert_eq!((processor.as_str(), event_id), ("notes", Some((last + 1).into())));
    assert!(reason.contains("n is 0"), "{reason}");

    // Passed over, it is still not handled.
    sqlx::query(
        "select espd.set_aside_by_operator('notes', 1, 0, failure => last_error, blocks => false, operator => 'test')
         from espd.trackers where name = 'notes'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    eventually("the event is passed", async || (position(&db.pool, "notes").await > last).then_some(()))
        .await;
    let blocked = running.caught_up().await.unwrap_err().to_string();
    assert!(blocked.contains("is a dead letter: n is 0"), "{blocked}");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_dropped_ends_and_another_takes_over() {
    let db = support::database().await;
    let running = start(Program::new().projector(notes(), || Notes), &db).await;
    running.caught_up().await.unwrap();
    drop(running);
    eventually("the claim is released", async || {
        let owned: i64 =
            sqlx::query_scalar("select count(*) from espd.trackers where lease_until > clock_timestamp()")
                .fetch_one(&db.pool)
                .await
                .unwrap();
        (owned == 0).then_some(())
    })
    .await;
    append_typed(&db.pool, "B", 2).await;
    let running = start(Program::new().projector(notes(), || Notes), &db).await;
    running.caught_up().await.unwrap();
    assert_eq!(noted(&db.pool).await["B"], 2);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_run_does_not_start() {
    let db = support::empty_database().await;
    let start =
        async |program: Program, config: &Config| program.start(config).await.unwrap_err().to_string();
    let said = start(program(), &config(&db)).await;
    assert!(said.contains("migrate"), "{said}");
    Program::migrate(&config(&db)).await.unwrap();
    let said = start(Program::new(), &config(&db)).await;
    assert!(said.contains("no processor is registered"), "{said}");
    let twice = Program::new().projector(notes(), || Notes).projector(notes(), || Notes);
    assert!(start(twice, &config(&db)).await.contains("two processors called notes"));
}
