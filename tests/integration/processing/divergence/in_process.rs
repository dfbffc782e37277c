//! The events go back under a runner of this process: what it notices, and what it does not mind.

use espd::Program;
use espd::internals::processor::{Events, Processor};
use espd::internals::sql::SqlProcessor;
use espd::internals::tracker::DivergenceKind;
use espd::native::{Delivery, HandlerError, Projector, ProjectorContext, Registration};
use espd::store::Layout;
use sqlx::PgPool;

use super::{NOTES, execute, numbers, range};
use crate::handlers::native::A;
use crate::processing::runner::{Life, lease_renewed_twice, notes as notes_in_sql, row_with, settings};
use crate::support::facts::{append, append_typed, eventually, reaches};
use crate::support::{self, SCHEMA};

struct Notes;

#[async_trait::async_trait]
impl Projector for Notes {
    async fn project(
        &mut self,
        events: &[Delivery],
        context: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            let note = sqlx::query("insert into notes (event_id) values ($1)").bind(event.id);
            note.execute(context.connection()).await?;
        }
        Ok(())
    }
}

fn same_database() -> Events {
    Events::SameDatabase(Layout::espd(SCHEMA).unwrap())
}

pub fn in_sql() -> Box<dyn Processor> {
    Box::new(SqlProcessor::new(notes_in_sql(""), SCHEMA, "public", same_database()).unwrap())
}

pub fn in_rust() -> Box<dyn Processor> {
    let table = "place bigint generated always as identity, event_id bigint";
    let declaration = Registration::projector("notes").handles::<A>().table("notes", table);
    let program = Program::new().projector(declaration, || Notes);
    program.processor("notes", SCHEMA, "public", same_database()).unwrap()
}

/// Waits until the processor has stopped because of its store; returns what was found, and the last common event.
pub async fn divergence(pool: &PgPool) -> (DivergenceKind, i64) {
    let row = row_with(pool, "a divergence", |row| row.diverged.is_some()).await;
    row.diverged.map(|found| (found.kind, found.last_common.get())).unwrap()
}

/// As if the last events had never been, and others had come since.
async fn replace_tail(pool: &PgPool, common: i64, others: i64) {
    let statement = format!(
        "begin; lock table espd.events; delete from espd.events where id > {common};
         select setval('espd.events_id_seq', {common});
         insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), 'A', 1, jsonb_build_object('n', n) from generate_series(1, {others}) as n; commit"
    );
    execute(pool, &statement).await;
}

#[tokio::test]
async fn other_events_with_the_same_ids_are_not_taken_for_those_that_were_handled() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        let life = Life::begin_with(&db, make(), settings(&db));
        for _ in 0..4 {
            reaches(&db.pool, "notes", append(&db.pool, 5).await).await;
        }
        // The head is beyond the position at once, so that the next batch has something to do.
        replace_tail(&db.pool, 10, 15).await;
        assert_eq!(divergence(&db.pool).await, (DivergenceKind::EventReplaced, 10));
        append(&db.pool, 5).await;
        lease_renewed_twice(&db.pool).await;
        assert_eq!(numbers(&db.pool, NOTES).await, range(1, 20));
        life.end().await;
    }
}

/// What vanished need not have been of a type that the processor handles: the position has passed it.
#[tokio::test]
async fn events_of_other_types_bear_witness_too() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        let life = Life::begin_with(&db, make(), settings(&db));
        reaches(&db.pool, "notes", append(&db.pool, 5).await).await;
        reaches(&db.pool, "notes", append_typed(&db.pool, "Rare", 5).await).await;
        replace_tail(&db.pool, 5, 10).await;
        assert_eq!(divergence(&db.pool).await, (DivergenceKind::EventReplaced, 5));
        assert_eq!(numbers(&db.pool, NOTES).await, range(1, 5));
        life.end().await;
    }
}

#[tokio::test]
async fn a_truncated_store_is_another_one() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        let life = Life::begin_with(&db, make(), settings(&db));
        reaches(&db.pool, "notes", append(&db.pool, 20).await).await;
        execute(&db.pool, "truncate espd.events restart identity").await;
        assert_eq!(divergence(&db.pool).await, (DivergenceKind::EventGone, 0));
        append(&db.pool, 25).await;
        lease_renewed_twice(&db.pool).await;
        assert_eq!(numbers(&db.pool, NOTES).await, range(1, 20));
        life.end().await;
    }
}

/// The position has moved over ids that no event has; nothing was ever handled, or nothing of it is left.
#[tokio::test]
async fn that_there_was_no_event_is_remembered_too() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        let life = Life::begin_with(&db, make(), settings(&db));
        execute(&db.pool, "select nextval('espd.events_id_seq') from generate_series(1, 50)").await;
        reaches(&db.pool, "notes", 50).await;
        lease_renewed_twice(&db.pool).await;
        let again = "begin; alter sequence espd.events_id_seq restart with 1;
                     insert into espd.events (aggregate_id, type, version, body)
                     select gen_random_uuid(), 'A', 1, '{}' from generate_series(1, 60); commit";
        execute(&db.pool, again).await;
        assert_eq!(divergence(&db.pool).await, (DivergenceKind::EventsAppeared, 0));
        assert!(numbers(&db.pool, NOTES).await.is_empty());
        life.end().await;
    }
}

/// The last event stays, so every witness stands; but the next ids are below the position.
#[tokio::test]
async fn a_sequence_that_is_set_back_below_the_position_stops_before_its_ids_are_drawn() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    reaches(&db.pool, "notes", append(&db.pool, 20).await).await;
    execute(&db.pool, "delete from espd.events where id in (10, 11); select setval('espd.events_id_seq', 9)")
        .await;
    assert_eq!(divergence(&db.pool).await.0, DivergenceKind::BeyondHead);
    execute(&db.pool, "select setval('espd.events_id_seq', 20)").await;
    append(&db.pool, 3).await;
    lease_renewed_twice(&db.pool).await;
    assert_eq!(numbers(&db.pool, NOTES).await, range(1, 20));
    life.end().await;
}

/// Nobody wrote them late: they have ids that the position has passed as holes.
#[tokio::test]
async fn events_that_appear_behind_the_position_are_not_left_out_in_silence() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    append(&db.pool, 5).await;
    let holes = "select nextval('espd.events_id_seq') from generate_series(1, 4)";
    execute(&db.pool, holes).await;
    reaches(&db.pool, "notes", 9).await;
    let behind = "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
                  values (7, gen_random_uuid(), 'A', 1, '{\"n\": 1}')";
    execute(&db.pool, behind).await;
    assert_eq!(divergence(&db.pool).await, (DivergenceKind::EventsAppeared, 5));
    life.end().await;
}

#[tokio::test]
async fn a_sequence_that_is_set_back_over_holes_skips_nothing() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    append(&db.pool, 5).await;
    execute(&db.pool, "select nextval('espd.events_id_seq') from generate_series(1, 10)").await;
    reaches(&db.pool, "notes", 15).await;
    execute(&db.pool, "select setval('espd.events_id_seq', 5)").await;
    assert_eq!(divergence(&db.pool).await, (DivergenceKind::BeyondHead, 5));
    life.end().await;
}

/// The one event that a processor has read last may be deleted for good reasons; espd cannot know them.
#[tokio::test]
async fn the_last_event_that_is_deleted_is_told_and_can_be_accepted() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    reaches(&db.pool, "notes", append(&db.pool, 3).await).await;
    reaches(&db.pool, "notes", append(&db.pool, 1).await).await;
    execute(&db.pool, "delete from espd.events where id = 4").await;
    assert_eq!(divergence(&db.pool).await, (DivergenceKind::EventGone, 3));
    life.end().await;
}

/// The control: what happens in the ordinary life of a store stops nothing.
#[tokio::test]
async fn holes_deleted_old_events_and_slow_writers_stop_nothing() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        let life = Life::begin_with(&db, make(), settings(&db));
        reaches(&db.pool, "notes", append(&db.pool, 20).await).await;
        execute(&db.pool, "delete from espd.events where id in (1, 7, 19)").await;
        let mut slow = db.pool.begin().await.unwrap();
        let insert = "insert into espd.events (aggregate_id, type, version, body)
                      values (gen_random_uuid(), 'A', 1, '{\"n\": 1}')";
        sqlx::query(insert).execute(&mut *slow).await.unwrap();
        let mut rolled_back = db.pool.begin().await.unwrap();
        sqlx::query(insert).execute(&mut *rolled_back).await.unwrap();
        append(&db.pool, 3).await;
        rolled_back.rollback().await.unwrap();
        lease_renewed_twice(&db.pool).await;
        slow.commit().await.unwrap();
        execute(&db.pool, "select nextval('espd.events_id_seq') from generate_series(1, 7)").await;
        reaches(&db.pool, "notes", 32).await;
        reaches(&db.pool, "notes", append(&db.pool, 2).await).await;
        let handled = [range(1, 21), range(23, 25), range(33, 34)].concat();
        eventually("all of them", async || (numbers(&db.pool, NOTES).await == handled).then_some(())).await;
        lease_renewed_twice(&db.pool).await;
        let stopped =
            "select count(*) from espd.trackers where diverged is not null or failed_at is not null";
        assert_eq!(numbers(&db.pool, stopped).await, [0]);
        life.end().await;
    }
}

/// A tracker of before has none; it gets one although no event comes.
#[tokio::test]
async fn a_tracker_without_a_witness_gets_one_while_nothing_happens() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    reaches(&db.pool, "notes", append(&db.pool, 5).await).await;
    life.end().await;
    execute(&db.pool, "update espd.trackers set witness_at = null, witness_id = null, witness_uuid = null")
        .await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    let witness = "select witness_id from espd.trackers where witness_id is not null";
    eventually("a witness", async || (numbers(&db.pool, witness).await == [5]).then_some(())).await;
    execute(&db.pool, "delete from espd.events where id > 3; select setval('espd.events_id_seq', 3)").await;
    assert_eq!(divergence(&db.pool).await.0, DivergenceKind::EventGone);
    life.end().await;
}

#[tokio::test]
async fn earlier_witnesses_are_few_and_the_more_the_nearer_they_are() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    reaches(&db.pool, "notes", append(&db.pool, 1).await).await;
    life.end().await;
    // As daemons do, in a transaction for each.
    let log = "do $$ begin
                 for n in 2..20000 loop perform espd.log_witness('notes', 1, 0, n, gen_random_uuid()); commit; end loop;
               end $$";
    execute(&db.pool, log).await;
    let ids = numbers(&db.pool, "select id from espd.witnesses order by id desc").await;
    assert!(ids.len() <= 128 && ids[..10] == (19_991..=20_000).rev().collect::<Vec<_>>()[..], "{ids:?}");
    for (near, far) in ids.iter().zip(&ids[1..]) {
        assert!(near - far <= 1 + (20_000 - near) / 2, "between {far} and {near}: {ids:?}");
    }
}

/// An earlier program knows no divergence: where it gets no row, it claims again at once.
#[tokio::test]
async fn an_earlier_program_takes_a_diverged_tracker_for_an_outage() {
    let db = support::database().await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    reaches(&db.pool, "notes", append(&db.pool, 3).await).await;
    replace_tail(&db.pool, 1, 1).await;
    divergence(&db.pool).await;
    let lock = "select * from espd.lock_tracker('notes', 1, 0, at_position => 3)";
    let refused = sqlx::query(lock).execute(&db.pool).await.unwrap_err();
    let code = refused.as_database_error().and_then(|error| error.code()).unwrap().into_owned();
    assert!(code == "57ES1" && espd::internals::failure::is_infrastructure(&code), "{refused}");
    // Whoever prepares or resets the processor gets the row.
    let lock = "select * from espd.lock_tracker('notes', 1, 0, even_paused => true)";
    assert_eq!(sqlx::query(lock).execute(&db.pool).await.unwrap().rows_affected(), 1);
    life.end().await;
}
