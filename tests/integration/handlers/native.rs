//! Processors written in Rust, on a real database: what they write, emit and survive.

mod codec;
mod commands;
mod effects;
mod emitting;
mod folding;
mod huge;
mod in_process;
mod not_returning;
mod parking;
mod personal_data;
mod renamed;
mod settings;
mod transactions;
mod upcasts;
mod workflows;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use espd::Program;
use espd::internals::dead_letters::DeadLetter;
use espd::internals::processor::{Events, Processor};
use espd::internals::retry::{OnFailure, RetryPolicy};
use espd::internals::runner::RunnerContext;
use espd::native::{Delivery, EventType, HandlerError, Projector, ProjectorContext, Registration};
use espd::store::Layout;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow as _, PgPool};

use crate::processing::runner::{Life, row, row_with, settings};
use crate::support::facts::{append, append_typed, assert_exactly_once, eventually, reaches};
use crate::support::{self, SCHEMA};

#[derive(Debug, Serialize, Deserialize)]
pub struct A {
    pub n: i64,
}

impl EventType for A {
    const NAME: &'static str = "A";
}

/// What a handler does with an event whose `n` is 0.
#[derive(Debug, Clone, Copy)]
enum Poison {
    /// Says which event it is.
    Named,
    /// Says nothing of it.
    Unnamed,
    Panics,
    /// Is refused by the database.
    Sql,
}

/// Notes each event of type A in order; nothing keeps it from noting one twice.
struct Notes {
    poison: Poison,
    projected: Arc<AtomicU32>,
}

#[async_trait]
impl Projector for Notes {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        self.projected.fetch_add(1, Ordering::Relaxed);
        for event in events {
            let a: A = event.read()?.ok_or("it handles nothing else")?;
            if a.n == 0 {
                match self.poison {
                    Poison::Named => return Err(event.failed("n is 0")),
                    Poison::Unnamed => return Err("n is 0".into()),
                    Poison::Panics => panic!("n is 0"),
                    Poison::Sql => {}
                }
            }
            let note = sqlx::query("insert into notes (event_id) select $1 where 1 / $2::bigint is not null");
            let noted = note.bind(event.id).bind(a.n).execute(context.connection()).await;
            noted.map_err(|error| event.failed(error))?;
        }
        Ok(())
    }
}

fn notes(poison: Poison) -> Box<dyn Processor> {
    notes_counting(poison, Arc::default())
}

fn notes_counting(poison: Poison, projected: Arc<AtomicU32>) -> Box<dyn Processor> {
    let table = "place bigint generated always as identity, event_id bigint";
    let declaration = Registration::projector("notes").handles::<A>().table("notes", table);
    let program =
        Program::new().projector(declaration, move || Notes { poison, projected: projected.clone() });
    make(&program, "notes")
}

pub fn make(program: &Program, name: &str) -> Box<dyn Processor> {
    let events = Events::SameDatabase(Layout::espd(SCHEMA).unwrap());
    program.processor(name, SCHEMA, "public", events).unwrap()
}

async fn poison(pool: &PgPool, id: i64) {
    let poison = sqlx::query("update espd.events set body = '{\"n\": 0}' where id = $1").bind(id);
    poison.execute(pool).await.unwrap();
}

pub async fn dead_letters(pool: &PgPool) -> Vec<DeadLetter> {
    let rows =
        sqlx::query("select * from espd.dead_letters order by event_id").fetch_all(pool).await.unwrap();
    rows.iter().map(|row| DeadLetter::from_row(row).unwrap()).collect()
}

#[tokio::test]
async fn rows_and_position_commit_together_and_past_other_types() {
    let db = support::database().await;
    append(&db.pool, 250).await;
    let last = append_typed(&db.pool, "B", 30).await;
    let life = Life::begin_with(&db, notes(Poison::Named), settings(&db));
    reaches(&db.pool, "notes", last).await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    assert_eq!(row(&db.pool).await.unwrap().handled, 255);
    life.end().await;
}

#[tokio::test]
async fn whatever_a_handler_fails_by_the_event_is_found_and_those_before_it_are_committed() {
    for how in [Poison::Named, Poison::Unnamed, Poison::Panics, Poison::Sql] {
        let db = support::database().await;
        let last = append(&db.pool, 150).await;
        poison(&db.pool, 73).await;
        let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Stop, ..settings(&db).retry };
        let life = Life::begin_with(&db, notes(how), RunnerContext { retry, ..settings(&db) });
        let row = row_with(&db.pool, "stopped", |row| row.failed_at.is_some()).await;
        let failure = row.last_error.unwrap().0;
        assert_eq!(
            (row.position, failure.event_id(), row.attempts),
            (72.into(), Some(73.into()), 2),
            "{how:?}"
        );
        assert_eq!(failure.event_type(), Some("A"));
        let said = if matches!(how, Poison::Sql) { "division by zero" } else { "n is 0" };
        assert!(failure.message.contains(said), "{how:?}: {}", failure.message);
        sqlx::query("delete from espd.events where id > 72").execute(&db.pool).await.unwrap();
        assert_exactly_once(&db.pool, &db.pool, "notes").await;
        assert_eq!(last, 150);
        life.end().await;
    }
}

#[tokio::test]
async fn a_poison_event_is_found_in_few_steps() {
    let db = support::database().await;
    append(&db.pool, 1_000).await;
    poison(&db.pool, 500).await;
    let projected = Arc::new(AtomicU32::new(0));
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Stop, ..settings(&db).retry };
    let limits = espd::internals::declaration::BatchLimits::default();
    let life = Life::begin_with(
        &db,
        notes_counting(Poison::Unnamed, projected.clone()),
        RunnerContext { retry, limits, ..settings(&db) },
    );
    row_with(&db.pool, "stopped", |row| row.failed_at.is_some()).await;
    // Ten times halved, and what is before it is handled in growing batches.
    assert!(projected.load(Ordering::Relaxed) <= 30, "{projected:?}");
    life.end().await;
}

#[tokio::test]
async fn a_parked_event_lets_other_aggregates_continue() {
    let db = support::database().await;
    append(&db.pool, 100).await;
    poison(&db.pool, 40).await;
    // 60 and 61 are of the aggregate of 40.
    let same = "update espd.events set version = id, aggregate_id = (select aggregate_id from espd.events where id = 40)
                where id in (60, 61)";
    sqlx::query(same).execute(&db.pool).await.unwrap();
    let retry = RetryPolicy { max_attempts: Some(2), on_failure: OnFailure::Park, ..settings(&db).retry };
    let life = Life::begin_with(&db, notes(Poison::Named), RunnerContext { retry, ..settings(&db) });
    reaches(&db.pool, "notes", 100).await;
    let found: Vec<_> =
        dead_letters(&db.pool).await.into_iter().map(|one| (one.event_id, one.reason)).collect();
    let expected = [(40, "failed"), (60, "waiting"), (61, "waiting")];
    assert_eq!(found, expected.map(|(id, reason)| (id.into(), reason.to_owned())));
    let noted = support::projectors::numbers(&db.pool, "select count(*) from notes").await;
    assert_eq!(noted, [97]);

    // Fixed, all three are handled, in order.
    sqlx::query("update espd.events set body = '{\"n\": 40}' where id = 40").execute(&db.pool).await.unwrap();
    let request = "update espd.dead_letters set retry_requested_at = now()";
    sqlx::query(request).execute(&db.pool).await.unwrap();
    sqlx::query("select pg_notify('espd_events', 'control')").execute(&db.pool).await.unwrap();
    eventually("no dead letter is left", async || dead_letters(&db.pool).await.is_empty().then_some(()))
        .await;
    let last =
        support::projectors::numbers(&db.pool, "select event_id from notes order by place desc limit 3");
    assert_eq!(last.await, [61, 60, 40]);
    life.end().await;
}

/// What an instance knows may not be in the database any more, as after a crash of the server.
#[tokio::test]
async fn an_instance_does_not_outlive_the_session_that_it_has_written_in() {
    let db = support::database().await;
    let (instances, projected) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&instances);
    let table = "place bigint generated always as identity, event_id bigint";
    let declaration = Registration::projector("notes").handles::<A>().table("notes", table);
    let program = Program::new().projector(declaration, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Notes { poison: Poison::Named, projected: projected.clone() }
    });
    let life = Life::begin_with(&db, make(&program, "notes"), settings(&db));
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(instances.load(Ordering::Relaxed), 1);
    let session = "select pid from pg_stat_activity
                   where application_name = 'espd: notes' and datname = current_database()";
    let first: i32 = sqlx::query_scalar(session).fetch_one(&db.pool).await.unwrap();
    sqlx::query("select pg_terminate_backend($1)").bind(first).execute(&db.pool).await.unwrap();
    // The renewal of the lease has met the end of the session, and no batch.
    eventually("another session", async || {
        let found: Option<i32> = sqlx::query_scalar(session).fetch_optional(&db.pool).await.unwrap();
        found.filter(|pid| *pid != first)
    })
    .await;
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(instances.load(Ordering::Relaxed), 2);
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

/// Reads a table of the user's with a statement that stays prepared.
struct Copies;

#[async_trait]
impl Projector for Copies {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let connection = context.connection();
            let read = sqlx::query("select * from rates").fetch_all(&mut *connection).await;
            read.map_err(|error| event.failed(error))?;
            let note = sqlx::query("insert into notes (event_id) values ($1)").bind(event.id);
            note.execute(connection).await.map_err(|error| event.failed(error))?;
        }
        Ok(())
    }
}

/// The plan of the session is to blame, and no event.
#[tokio::test]
async fn a_plan_that_a_change_of_a_table_has_outdated_is_no_failure_of_an_event() {
    let db = support::database().await;
    sqlx::query("create table public.rates (rate int)").execute(&db.pool).await.unwrap();
    let table = "place bigint generated always as identity, event_id bigint";
    let declaration = Registration::projector("notes").handles::<A>().table("notes", table);
    let program = Program::new().projector(declaration, || Copies);
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Skip, ..settings(&db).retry };
    let life = Life::begin_with(&db, make(&program, "notes"), RunnerContext { retry, ..settings(&db) });
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "notes", last).await;
    sqlx::query("alter table public.rates add column since date").execute(&db.pool).await.unwrap();
    let last = append(&db.pool, 12).await;
    reaches(&db.pool, "notes", last).await;
    let failures: Vec<_> = dead_letters(&db.pool).await.into_iter().map(|one| one.failure).collect();
    assert_eq!(failures, []);
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    life.end().await;
}

/// As `dead_letters/policies.rs` for declared SQL and `program/policies.rs` for programs.
#[tokio::test]
async fn under_each_policy_the_others_of_a_thousand_are_there() {
    for on_failure in [OnFailure::Retry, OnFailure::Stop, OnFailure::Park, OnFailure::Skip] {
        let db = support::database().await;
        append(&db.pool, 1_000).await;
        poison(&db.pool, 500).await;
        let retry = RetryPolicy { max_attempts: Some(2), on_failure, ..settings(&db).retry };
        let limits = espd::internals::declaration::BatchLimits::default();
        let life =
            Life::begin_with(&db, notes(Poison::Named), RunnerContext { retry, limits, ..settings(&db) });
        let goes_on = matches!(on_failure, OnFailure::Park | OnFailure::Skip);
        let row = row_with(&db.pool, "the policy has decided", |row| match on_failure {
            OnFailure::Retry => row.attempts > 2,
            OnFailure::Stop => row.failed_at.is_some(),
            OnFailure::Park | OnFailure::Skip => row.position == 1_000,
        })
        .await;
        let noted = support::projectors::numbers(&db.pool, "select event_id from notes order by place").await;
        let dead_letters: Vec<_> =
            dead_letters(&db.pool).await.iter().map(|one| (one.event_id, one.blocks)).collect();
        if goes_on {
            assert_eq!(noted, (1..=1_000).filter(|id| *id != 500).collect::<Vec<i64>>(), "{on_failure:?}");
            assert_eq!(dead_letters, [(500.into(), on_failure == OnFailure::Park)]);
            assert!(row.last_error.is_none(), "{row:?}");
        } else {
            assert_eq!(
                (row.position, noted.len(), dead_letters.len()),
                (499.into(), 499, 0),
                "{on_failure:?}"
            );
            assert_eq!(row.last_error.unwrap().0.event_id(), Some(500.into()));
        }
        life.end().await;
    }
}
