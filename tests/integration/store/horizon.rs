//! The settled horizon on a real server: many writers at once, and the schedules that matter, forced.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use espd::embedded::{EmbeddedPostgres, StopMode};
use espd::event::Position;
use espd::internals::horizon::{Horizon, Observer, Rule, Writer, observe_once};
use espd::schema::migrate_event_store;
use espd::store::Layout;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};
use tokio::sync::watch;

use crate::support::{self, SCHEMA};

/// Ends only in a test that fails: nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// For observations that cannot settle, as the test knows.
const NO_PATIENCE: Duration = Duration::ZERO;

const INSERT: &str = "insert into espd.events (aggregate_id, type, version, body)
                      values (gen_random_uuid(), 'Tested', 1, '{}')";

fn layout() -> Layout {
    Layout::espd(SCHEMA).unwrap()
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

/// Inserts one event in the open transaction, if there is one, and returns its id.
async fn insert(connection: &mut PgConnection) -> Position {
    let sql = format!("{INSERT} returning id");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}

async fn ids_between(connection: &mut PgConnection, after: Position, upto: Position) -> Vec<Position> {
    sqlx::query_scalar("select id from espd.events where id > $1 and id <= $2 order by id")
        .bind(after)
        .bind(upto)
        .fetch_all(connection)
        .await
        .unwrap()
}

async fn look(connection: &mut PgConnection) -> Horizon {
    look_at(connection, &layout()).await
}

async fn look_at(connection: &mut PgConnection, layout: &Layout) -> Horizon {
    let look = observe_once(connection, layout, NO_PATIENCE);
    tokio::time::timeout(PATIENCE, look).await.expect("a look must not wait for locks").unwrap()
}

// ---- The experiment ---------------------------------------------------------------------------

/// Writers of the experiment, and transactions of each.
const WRITERS: u64 = 10;
const TRANSACTIONS: u64 = 250;

/// What a reader of the experiment got, held against what is in the table.
#[derive(Debug)]
struct Outcome {
    committed: usize,
    lost: usize,
    doubled: usize,
    inverted: usize,
    phantom: usize,
}

impl Outcome {
    fn of(delivered: &[Position], committed: &[Position]) -> Self {
        let expected: BTreeSet<_> = committed.iter().collect();
        let got: BTreeSet<_> = delivered.iter().collect();
        Self {
            committed: expected.len(),
            lost: expected.difference(&got).count(),
            doubled: delivered.len() - got.len(),
            inverted: delivered.windows(2).filter(|pair| pair[1] < pair[0]).count(),
            phantom: got.difference(&expected).count(),
        }
    }
}

/// The whole argument at once. Ten writers insert one row or many, by `INSERT` and by `COPY`, pause
/// between insert and commit, roll back, roll back to savepoints, and are prepared. One stays open
/// while hundreds commit, another stays prepared. All the while there is a writer in another
/// database, whose table has the very same oid, and a reader that is idle in its transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_inverted_while_writers_do_everything() {
    let database = support::database().await;
    let elsewhere = support::database().await;
    let mut stranger = connect(&elsewhere.url).await;
    run(&mut stranger, "begin").await;
    insert(&mut stranger).await;
    let mut idle = connect(&database.url).await;
    run(&mut idle, "begin isolation level repeatable read; select count(*) from espd.events").await;

    let (done, writers_done) = watch::channel(false);
    let safe = tokio::spawn(follow_the_horizon(database.url.clone(), writers_done.clone()));
    let naive = tokio::spawn(follow_the_last_id(database.url.clone(), writers_done));

    let committed = Arc::new(AtomicU64::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for number in 1..=WRITERS {
        writers.spawn(write_at_random(database.url.clone(), number, committed.clone()));
    }
    writers.spawn(stay_open_for_long(database.url.clone(), committed.clone()));
    writers.spawn(stay_prepared_for_long(database.url.clone(), committed.clone()));
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    done.send_replace(true);
    let (safe, naive) = (safe.await.unwrap(), naive.await.unwrap());

    // The stranger and the idle reader are still there: neither has held anything back.
    let in_table: Vec<Position> =
        sqlx::query_scalar("select id from espd.events").fetch_all(&database.pool).await.unwrap();
    let (safe, naive) = (Outcome::of(&safe, &in_table), Outcome::of(&naive, &in_table));
    println!("by the horizon: {safe:?}\nby the last id: {naive:?}");
    assert!(safe.committed > 2000, "too few events to mean anything");
    assert_eq!((safe.lost, safe.doubled, safe.inverted, safe.phantom), (0, 0, 0, 0));
    assert!(naive.lost > 0, "the naive reader lost nothing, so the experiment proves nothing");
    run(&mut stranger, "rollback").await;
    run(&mut idle, "rollback").await;
}

/// Reads in batches, each up to the horizon, each in a snapshot newer than the observation.
async fn follow_the_horizon(url: String, writers_done: watch::Receiver<bool>) -> Vec<Position> {
    let (mut watching, mut reading) = (connect(&url).await, connect(&url).await);
    let mut observer = Observer::new(&layout()).preparing();
    let (mut position, mut delivered) = (Position::START, Vec::new());
    loop {
        let last_round = *writers_done.borrow();
        observer.observe(&mut watching).await.unwrap();
        let settled = observer.horizon().settled;
        delivered.extend(ids_between(&mut reading, position, settled).await);
        position = settled;
        if last_round {
            assert_eq!(settled, observer.horizon().head, "without writers nothing is held back");
            return delivered;
        }
    }
}

/// Reads as one does without a horizon.
async fn follow_the_last_id(url: String, writers_done: watch::Receiver<bool>) -> Vec<Position> {
    let mut connection = connect(&url).await;
    let mut delivered = Vec::new();
    loop {
        let last_round = *writers_done.borrow();
        let position = delivered.last().copied().unwrap_or_default();
        delivered.extend(ids_between(&mut connection, position, Position::MAX).await);
        if last_round {
            return delivered;
        }
    }
}

async fn write_at_random(url: String, number: u64, committed: Arc<AtomicU64>) {
    let mut connection = connect(&url).await;
    let mut chance = Chance(number * 7919);
    for turn in 0..TRANSACTIONS {
        run(&mut connection, "begin").await;
        match chance.below(5) {
            0 => copy_rows(&mut connection, chance.below(4) + 1).await,
            1 => insert_rows(&mut connection, chance.below(5) + 1).await,
            2 => {
                run(&mut connection, "savepoint s").await;
                insert(&mut connection).await;
                run(&mut connection, "rollback to s").await;
                chance.pause().await;
                insert(&mut connection).await;
            }
            _ => drop(insert(&mut connection).await),
        }
        chance.pause().await;
        let commits = chance.below(100) >= 15;
        if chance.below(20) == 0 {
            let gid = format!("{number}-{turn}");
            run(&mut connection, &format!("prepare transaction '{gid}'")).await;
            chance.pause().await;
            let verb = if commits { "commit" } else { "rollback" };
            run(&mut connection, &format!("{verb} prepared '{gid}'")).await;
        } else {
            run(&mut connection, if commits { "commit" } else { "rollback" }).await;
        }
        committed.fetch_add(u64::from(commits), Ordering::Relaxed);
    }
}

/// Inserts, and ends when a third of all transactions have come and gone.
async fn stay_open_for_long(url: String, committed: Arc<AtomicU64>) {
    let mut connection = connect(&url).await;
    run(&mut connection, "begin").await;
    insert(&mut connection).await;
    others_commit(&committed, WRITERS * TRANSACTIONS / 3).await;
    insert(&mut connection).await;
    run(&mut connection, "commit").await;
}

/// Inserts and prepares while others hold the lock, and commits when half of them are through.
async fn stay_prepared_for_long(url: String, committed: Arc<AtomicU64>) {
    let mut connection = connect(&url).await;
    others_commit(&committed, WRITERS * TRANSACTIONS / 6).await;
    run(&mut connection, "begin").await;
    insert(&mut connection).await;
    others_commit(&committed, 10).await;
    run(&mut connection, "prepare transaction 'long'").await;
    others_commit(&committed, WRITERS * TRANSACTIONS / 3).await;
    run(&mut connection, "commit prepared 'long'").await;
}

async fn others_commit(committed: &AtomicU64, transactions: u64) {
    let enough = committed.load(Ordering::Relaxed) + transactions;
    while committed.load(Ordering::Relaxed) < enough {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn insert_rows(connection: &mut PgConnection, rows: u64) {
    let sql = format!(
        "insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), 'Tested', 1, '{{}}' from generate_series(1, {rows})"
    );
    run(connection, &sql).await;
}

async fn copy_rows(connection: &mut PgConnection, rows: u64) {
    let mut copy = connection
        .copy_in_raw("copy espd.events (aggregate_id, type, version, body) from stdin")
        .await
        .unwrap();
    for _ in 0..rows {
        let line = format!("{}\tTested\t1\t{{}}\n", uuid::Uuid::new_v4());
        copy.send(line.into_bytes()).await.unwrap();
    }
    copy.finish().await.unwrap();
}

/// Random numbers that are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// What a writer does between its statements, at most 10 ms.
    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.below(11))).await;
    }
}

/// Writers that draw their ids first, as some libraries do, and lock the table only when they insert.
const FIRST_DRAWERS: u64 = 8;
const FIRST_DRAWS: u64 = 120;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_draw_first_and_insert_later_lose_nothing() {
    let database = support::database().await;
    let (done, writers_done) = watch::channel(false);
    let safe = tokio::spawn(follow_the_horizon(database.url.clone(), writers_done.clone()));
    let tables_only = tokio::spawn(follow_the_table_locks(database.url.clone(), writers_done));
    let mut writers = tokio::task::JoinSet::new();
    for number in 1..=FIRST_DRAWERS {
        writers.spawn(draw_first(database.url.clone(), number));
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    done.send_replace(true);
    let (safe, tables_only) = (safe.await.unwrap(), tables_only.await.unwrap());
    let in_table: Vec<Position> =
        sqlx::query_scalar("select id from espd.events").fetch_all(&database.pool).await.unwrap();
    let (safe, tables_only) = (Outcome::of(&safe, &in_table), Outcome::of(&tables_only, &in_table));
    println!("by the horizon: {safe:?}\nby the locks on the table alone: {tables_only:?}");
    assert!(tables_only.lost > 0, "the control lost nothing, so the experiment proves nothing");
    assert_eq!((safe.lost, safe.doubled, safe.inverted, safe.phantom), (0, 0, 0, 0));
}

/// Draws an id, takes its time, inserts with that id, takes its time, and commits or rolls back.
async fn draw_first(url: String, number: u64) {
    let mut connection = connect(&url).await;
    let mut chance = Chance(number * 104_729);
    for _ in 0..FIRST_DRAWS {
        run(&mut connection, "begin").await;
        let drawn: i64 = sqlx::query_scalar("select nextval(pg_get_serial_sequence('espd.events', 'id'))")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        chance.pause().await;
        let sql = format!(
            "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
             values ({drawn}, gen_random_uuid(), 'Tested', 1, '{{}}')"
        );
        run(&mut connection, &sql).await;
        chance.pause().await;
        run(&mut connection, if chance.below(100) >= 15 { "commit" } else { "rollback" }).await;
    }
}

/// Reads by the rule, and counts the locks on the table only.
async fn follow_the_table_locks(url: String, writers_done: watch::Receiver<bool>) -> Vec<Position> {
    let (mut watching, mut reading) = (connect(&url).await, connect(&url).await);
    let mut rule = Rule::new();
    let (mut position, mut delivered) = (Position::START, Vec::new());
    loop {
        let last_round = *writers_done.borrow();
        let drawn = last_value(&mut watching).await;
        let settled = rule.observe(drawn, lock_holders(&mut watching).await);
        delivered.extend(ids_between(&mut reading, position, settled).await);
        position = settled;
        if last_round {
            return delivered;
        }
    }
}

// ---- Forced schedules -------------------------------------------------------------------------

#[tokio::test]
async fn a_writer_holds_back_its_event_and_those_after_it() {
    let database = support::database().await;
    let (mut slow, mut quick) = (connect(&database.url).await, connect(&database.url).await);
    assert_eq!(insert(&mut quick).await, 1);
    run(&mut slow, "begin").await;
    assert_eq!(insert(&mut slow).await, 2);
    assert_eq!(insert(&mut quick).await, 3);
    let horizon = look(&mut quick).await;
    assert_eq!((horizon.head, horizon.settled), (3.into(), 1.into()));
    run(&mut slow, "commit").await;
    let horizon = look(&mut quick).await;
    assert_eq!((horizon.head, horizon.settled), (3.into(), 3.into()));
}

#[tokio::test]
async fn rolled_back_ids_hold_nothing_back() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(&mut connection, "begin").await;
    insert_rows(&mut connection, 100).await;
    run(&mut connection, "rollback").await;
    assert_eq!(look(&mut connection).await.settled, 100);
}

#[tokio::test]
async fn reading_the_locks_before_the_sequence_would_lose_an_event() {
    let database = support::database().await;
    let (mut writer, mut reader) = (connect(&database.url).await, connect(&database.url).await);
    // The wrong order: the writer comes between the two reads.
    let no_writers = lock_holders(&mut reader).await;
    run(&mut writer, "begin").await;
    let id = insert(&mut writer).await;
    let mut wrong = Rule::new();
    assert_eq!(
        wrong.observe(last_value(&mut reader).await, no_writers),
        id,
        "the reader moves past the event"
    );
    assert!(ids_between(&mut reader, Position::START, id).await.is_empty(), "and has not seen it");
    // The right order in the same place.
    let mut right = Rule::new();
    let drawn = last_value(&mut reader).await;
    assert_eq!(right.observe(drawn, lock_holders(&mut reader).await), 0);
    run(&mut writer, "commit").await;
    let drawn = last_value(&mut reader).await;
    assert_eq!(right.observe(drawn, lock_holders(&mut reader).await), id);
    assert_eq!(ids_between(&mut reader, Position::START, id).await, [id]);
}

#[tokio::test]
async fn reading_the_batch_in_an_old_snapshot_would_lose_an_event() {
    let database = support::database().await;
    let (mut writer, mut reader) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut reader, "begin isolation level repeatable read; select 1").await;
    let id = insert(&mut writer).await;
    assert_eq!(look(&mut writer).await.settled, id);
    assert!(
        ids_between(&mut reader, Position::START, id).await.is_empty(),
        "the snapshot is older than the observation"
    );
    run(&mut reader, "rollback").await;
    assert_eq!(ids_between(&mut reader, Position::START, id).await, [id]);
}

#[tokio::test]
async fn a_writer_that_is_prepared_between_two_observations_is_still_waited_for() {
    let database = support::database().await;
    let (mut writer, mut reader) = (connect(&database.url).await, connect(&database.url).await);
    let mut observer = Observer::new(&layout());
    run(&mut writer, "begin").await;
    insert(&mut writer).await;
    observer.observe(&mut reader).await.unwrap();
    assert_eq!(insert(&mut reader).await, 2);
    run(&mut writer, "prepare transaction 'renamed'").await;
    observer.observe(&mut reader).await.unwrap();
    assert_eq!(observer.horizon().settled, 0, "event 1 is still to come");
    run(&mut writer, "commit prepared 'renamed'").await;
    observer.observe(&mut reader).await.unwrap();
    assert_eq!(observer.horizon().settled, 2);
}

#[tokio::test]
async fn a_rolled_back_savepoint_releases_the_table_and_not_the_sequence() {
    let database = support::database().await;
    let (mut writer, mut reader) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut writer, "begin; savepoint s").await;
    insert(&mut writer).await;
    run(&mut writer, "rollback to s").await;
    assert_eq!(look(&mut reader).await.settled, 0, "the transaction knows id 1 and may still use it");
    assert_eq!(insert(&mut writer).await, 2);
    assert_eq!(look(&mut reader).await.settled, 0);
    run(&mut writer, "commit").await;
    assert_eq!(look(&mut reader).await.settled, 2);
}

#[tokio::test]
async fn who_has_drawn_and_not_inserted_yet_is_waited_for_and_named() {
    let database = support::database().await;
    let (mut slow, mut quick) = (connect(&database.url).await, connect(&database.url).await);
    insert(&mut quick).await;
    run(&mut slow, "set application_name = 'allocator'; begin; savepoint s").await;
    run(&mut slow, "select nextval('espd.events_id_seq')").await;
    // A sequence stays locked to the end of the transaction, and the id may still be used.
    run(&mut slow, "rollback to s").await;
    insert(&mut quick).await;
    let horizon = look(&mut quick).await;
    assert_eq!((horizon.head, horizon.settled), (3.into(), 1.into()));
    assert_eq!(horizon.held_by[0].application_name.as_deref(), Some("allocator"));
    let said = horizon.held_by[0].to_string();
    assert!(said.contains("the sequence of the ids"), "{said}");
    run(
        &mut slow,
        "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
         values (2, gen_random_uuid(), 'Tested', 1, '{}'); commit",
    )
    .await;
    assert_eq!(look(&mut quick).await.settled, 3);
}

/// The look itself takes the lock of `nextval` for a moment.
#[tokio::test]
async fn an_observer_does_not_wait_for_itself() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    insert(&mut connection).await;
    run(&mut connection, "begin; select pg_sequence_last_value('espd.events_id_seq')").await;
    insert(&mut connect(&database.url).await).await;
    assert_eq!(look(&mut connection).await.settled, 2);
    run(&mut connection, "rollback").await;
}

#[tokio::test]
async fn a_lock_without_ids_does_not_hold_back_what_is_visible() {
    let database = support::database().await;
    let (mut locker, mut writer) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut locker, "begin; lock table espd.events in row exclusive mode").await;
    insert_rows(&mut writer, 5).await;
    assert_eq!(look(&mut writer).await.settled, 5);
    run(&mut locker, "rollback").await;
}

/// Only what was observed is known: what was settled before a writer came stays settled, and a look that comes later than
/// the writer knows nothing but what it sees.
#[tokio::test]
async fn what_was_settled_before_a_writer_came_is_known_to_who_has_observed_it() {
    let database = support::database().await;
    let (mut slow, mut quick) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut quick, "begin").await;
    insert(&mut quick).await;
    run(&mut quick, "rollback").await;
    insert(&mut quick).await;
    let mut observer = Observer::new(&layout());
    observer.observe(&mut quick).await.unwrap();
    run(&mut slow, "begin").await;
    insert(&mut slow).await;
    observer.observe(&mut quick).await.unwrap();
    assert_eq!(observer.horizon().settled, 2, "id 1 was gone before the writer came");
    assert_eq!(look(&mut quick).await.settled, 0, "any hole may be the slow writer's");
    run(&mut slow, "commit").await;
    assert_eq!(look(&mut quick).await.settled, 3);
}

#[tokio::test]
async fn a_store_that_begins_again_is_followed_from_its_beginning() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    let mut observer = Observer::new(&layout());
    insert_rows(&mut connection, 10).await;
    observer.observe(&mut connection).await.unwrap();
    assert_eq!(observer.horizon().settled, 10);
    run(&mut connection, "truncate espd.events restart identity").await;
    observer.observe(&mut connection).await.unwrap();
    assert_eq!((observer.horizon().head, observer.horizon().settled), (0.into(), 0.into()));
    insert(&mut connection).await;
    observer.observe(&mut connection).await.unwrap();
    assert_eq!(observer.horizon().settled, 1);
}

#[tokio::test]
async fn writers_of_partitions_are_waited_for() {
    let database = support::database().await;
    let (mut writer, mut reader) = (connect(&database.url).await, connect(&database.url).await);
    run(
        &mut reader,
        "create schema parted;
         create table parted.events (id bigint not null) partition by range (id);
         create sequence parted.events_id_seq owned by parted.events.id;
         alter table parted.events alter column id set default nextval('parted.events_id_seq');
         create table parted.low partition of parted.events for values from (1) to (3) partition by range (id);
         create table parted.lowest partition of parted.low for values from (1) to (3)",
    )
    .await;
    let parted = Layout::espd("parted").unwrap();
    let settled = async |connection: &mut PgConnection| look_at(connection, &parted).await.settled;
    run(&mut writer, "begin; insert into parted.lowest values (default)").await;
    run(&mut reader, "insert into parted.events default values").await;
    assert_eq!(settled(&mut reader).await, 0, "id 1 is in a partition of a partition");
    run(&mut writer, "commit").await;
    assert_eq!(settled(&mut reader).await, 2);
    // A partition that no other session can see yet.
    run(
        &mut writer,
        "begin;
         create table parted.high partition of parted.events for values from (3) to (100);
         insert into parted.high values (default)",
    )
    .await;
    assert_eq!(settled(&mut reader).await, 0);
    run(&mut writer, "commit").await;
    assert_eq!(settled(&mut reader).await, 3);
}

/// What was prepared while a store was one table is of what has its name now.
#[tokio::test]
async fn a_prepared_observer_follows_names_and_new_partitions() {
    let database = support::database().await;
    let (mut writer, mut reader) = (connect(&database.url).await, connect(&database.url).await);
    let (whole, parted) = ("id bigint generated always as identity", "partition by range (id)");
    for (schema, rest) in [("followed", ""), ("other", parted)] {
        let store = format!("create schema {schema}; create table {schema}.events ({whole}) {rest}");
        run(&mut reader, &store).await;
    }
    let mut observer = Observer::new(&Layout::espd("followed").unwrap()).preparing();
    run(&mut reader, "insert into followed.events default values").await;
    observer.observe(&mut reader).await.unwrap();
    assert_eq!(observer.horizon().settled, 1);
    run(&mut writer, "alter schema followed rename to first; alter schema other rename to followed").await;
    run(
        &mut writer,
        "create table followed.low partition of followed.events for values from (1) to (9);
         insert into followed.events default values",
    )
    .await;
    // The parent is not locked by who writes into the partition alone.
    run(&mut writer, "begin; insert into followed.low values (2)").await;
    run(&mut reader, "select setval('followed.events_id_seq', 2)").await;
    run(&mut reader, "insert into followed.events default values").await;
    observer.observe(&mut reader).await.unwrap();
    assert_eq!((observer.horizon().head, observer.horizon().settled), (3.into(), 1.into()));
    run(&mut writer, "commit").await;
    observer.observe(&mut reader).await.unwrap();
    assert_eq!(observer.horizon().settled, 3);
}

/// Draws 40 ids and rolls back: more than the 32 that one record in the server's log covers, and so few bytes
/// in the log that it is not written for their sake. Rows that conflict with the first event need none. A full page of the
/// log would be written at once, so a new one comes first.
const DRAW_IDS_IN_VAIN: &str = "select pg_switch_wal();
     begin;
     insert into espd.events (uuid, aggregate_id, type, version, body)
     select uuid, gen_random_uuid(), 'Tested', 1, '{}'
       from (select uuid from espd.events limit 1) as stored, generate_series(1, 40)
     on conflict do nothing;
     rollback";

/// A store in the database `events` of a server without any other.
async fn store_on_its_own(settings: &[(&str, &str)]) -> EmbeddedPostgres {
    let server = support::server_with(settings).await;
    server.create_database("events", None).await.unwrap();
    let pool = PgPool::connect(&server.url("events")).await.unwrap();
    migrate_event_store(&pool, SCHEMA).await.unwrap();
    pool.close().await;
    server
}

/// Rolled-back ids are in no file yet, and a server that crashes now gives them out again. A position beside
/// the events falls back together with them, a position on another server stays beyond them.
#[tokio::test]
async fn ids_that_a_crash_would_forget_are_not_settled_for_positions_elsewhere() {
    // Left alone, the server would write its log just while we look.
    let server = store_on_its_own(&[("wal_writer_delay", "10s"), ("autovacuum", "off")]).await;
    let url = server.url("events");
    let (mut writer, mut beside, mut elsewhere) =
        (connect(&url).await, connect(&url).await, connect(&url).await);
    let mut plain = Observer::new(&layout());
    let mut durable_only = Observer::new(&layout()).durable_only();
    // A session's first look at the catalog may prune its pages, which fills the log again after the commit. Whether
    // there is something to prune depends on how full the pages are, so on the server's version.
    insert(&mut writer).await;
    plain.observe(&mut beside).await.unwrap();
    durable_only.observe(&mut elsewhere).await.unwrap();
    let committed = insert(&mut writer).await;
    durable_only.observe(&mut elsewhere).await.unwrap();
    assert_eq!(durable_only.horizon().settled, committed, "a commit is durable");

    let mut durable = committed;
    let drawn = loop {
        run(&mut writer, DRAW_IDS_IN_VAIN).await;
        let (drawn, filled) = (last_value(&mut writer).await, log_place(&mut writer, "insert").await);
        plain.observe(&mut beside).await.unwrap();
        durable_only.observe(&mut elsewhere).await.unwrap();
        // Every 10 s the server writes its log; when that was just now, the ids are durable.
        if log_place(&mut writer, "flush").await < filled {
            break drawn;
        }
        durable = drawn;
    };
    assert_eq!(plain.horizon().settled, drawn);
    let settled = durable_only.horizon().settled;
    assert!(
        committed <= settled && settled <= durable,
        "{settled}, but {durable} and not {drawn} is durable"
    );

    let server = server.restart(StopMode::Immediate).await.unwrap();
    let mut writer = connect(&server.url("events")).await;
    let again = insert(&mut writer).await;
    assert!(again <= drawn, "{again} was to be drawn again after {drawn}");
    server.stop().await;
}

/// A transaction that has written to the log and does not end must not hold any reader back.
#[tokio::test]
async fn events_are_settled_for_positions_elsewhere_without_a_later_commit() {
    let server = store_on_its_own(&[]).await;
    let url = server.url("events");
    let (mut writer, mut bystander, mut elsewhere) =
        (connect(&url).await, connect(&url).await, connect(&url).await);
    run(&mut bystander, "create table t (n int)").await;
    let committed = insert(&mut writer).await;
    run(&mut bystander, "begin; insert into t values (1)").await;
    let mut durable_only = Observer::new(&layout()).durable_only();
    durable_only.observe(&mut elsewhere).await.unwrap();
    assert_eq!(
        durable_only.horizon().settled,
        0,
        "the log has more than what is written, or this test tests nothing"
    );
    let settle = async {
        while durable_only.horizon().settled < committed {
            durable_only.observe(&mut elsewhere).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Somebody else has the log written every 15 s.
    tokio::time::timeout(Duration::from_secs(10), settle).await.expect("the observer asks for it");
    server.stop().await;
}

// ---- Who it is --------------------------------------------------------------------------------

#[tokio::test]
async fn a_slow_writer_is_named() {
    let database = support::database().await;
    let (mut slow, mut quick) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut slow, "set application_name = 'importer'").await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut slow).await.unwrap();
    run(&mut slow, "begin").await;
    run(&mut slow, INSERT).await;
    let horizon = look(&mut quick).await;
    let [holder] = horizon.held_by.as_slice() else { panic!("{horizon:?}") };
    assert_eq!(holder.pid, Some(pid));
    assert_eq!(holder.application_name.as_deref(), Some("importer"));
    assert_eq!(holder.user.as_deref(), Some("espd"));
    assert_eq!(holder.state.as_deref(), Some("idle in transaction"));
    assert!(holder.query.as_ref().unwrap().starts_with("insert into"));
    assert!(holder.age.is_some() && holder.prepared.is_none());
    let line = holder.to_string();
    assert!(line.starts_with(&format!("process {pid} of \"importer\", open for ")), "{line}");
    assert!(horizon.held_since.is_some());
    run(&mut slow, "commit").await;
    let horizon = look(&mut quick).await;
    assert_eq!((horizon.held_by.len(), horizon.held_since), (0, None));
}

#[tokio::test]
async fn a_prepared_transaction_is_named() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(&mut connection, "begin").await;
    insert(&mut connection).await;
    run(&mut connection, "savepoint s").await;
    insert(&mut connection).await;
    run(&mut connection, "prepare transaction 'forgotten'").await;
    let horizon = look(&mut connection).await;
    let [holder] = horizon.held_by.as_slice() else { panic!("{horizon:?}") };
    assert_eq!((holder.pid, holder.prepared.as_deref()), (None, Some("forgotten")));
    assert_eq!(holder.user.as_deref(), Some("espd"));
    assert!(holder.to_string().starts_with("prepared transaction \"forgotten\", open for "));
    run(&mut connection, "rollback prepared 'forgotten'").await;
}

#[tokio::test]
async fn one_look_waits_for_writers_that_end_in_time() {
    let database = support::database().await;
    let (mut slow, mut quick) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut slow, "begin").await;
    let id = insert(&mut slow).await;
    let layout = layout();
    let (horizon, ()) = tokio::join!(observe_once(&mut quick, &layout, PATIENCE), run(&mut slow, "commit"));
    assert_eq!(horizon.unwrap().settled, id);
}

async fn last_value(connection: &mut PgConnection) -> Position {
    let sql = "select case when is_called then last_value else 0 end from espd.events_id_seq";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// Up to where the server's log is filled (`insert`) or on disk (`flush`), in bytes.
async fn log_place(connection: &mut PgConnection, of: &str) -> i64 {
    let sql = format!("select (pg_current_wal_{of}_lsn() - '0/0')::bigint");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
}

async fn lock_holders(connection: &mut PgConnection) -> Vec<Writer> {
    let sql = "select virtualtransaction, pid is null from pg_locks
                where relation = 'espd.events'::regclass and mode = 'RowExclusiveLock'
                  and database = (select oid from pg_database where datname = current_database())";
    let rows = sqlx::query(sql).fetch_all(connection).await.unwrap();
    let writer = |row: sqlx::postgres::PgRow| Writer {
        virtual_transaction: row.get::<&str, _>(0).parse().unwrap(),
        prepared: row.get(1),
    };
    rows.into_iter().map(writer).collect()
}
