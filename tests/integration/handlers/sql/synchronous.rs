//! Projectors whose handlers run in the transaction that appends.

mod unmet;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espd::embedded::StopMode;
use espd::event::{ExpectedVersion, NewEvent};
use espd::internals::declaration::Synchronous;
use espd::internals::processor::Events;
use espd::internals::sql::SqlProcessor;
use espd::store::{AppendError, EventSourceryNames, EventStore as _, Layout, PostgresEventStore};
use serde_json::value::to_raw_value;
use sqlx::{AssertSqlSafe, Connection as _, PgPool};
use uuid::Uuid;

use crate::support::facts::{append, append_typed, eventually, reaches};
use crate::support::program::Installation;
use crate::support::projectors::{declare, numbers};
use crate::support::{self, Database};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n[retry]\ninitial = '50ms'\nmax = '100ms'\n";

/// Notes each A in a table that takes an event twice; fails at one whose body has no `n`.
fn seen(order: &str) -> String {
    format!(
        "[projector]\nname = 'seen'\nsynchronous = '{order}'\n\
         [projector.tables]\nseen = 'place bigint generated always as identity, event_id bigint, aggregate_id uuid, n bigint not null'\n\
         [[projector.on]]\nevents = ['A']\n\
         sql = \"insert into seen (event_id, aggregate_id, n) values (event.id, event.aggregate_id, (event.body->>'n')::bigint)\"\n"
    )
}

fn a() -> NewEvent {
    NewEvent::new(Uuid::new_v4(), "A", to_raw_value(&HashMap::from([("n", 1)])).unwrap())
}

/// An event that the handler cannot handle.
fn bad() -> NewEvent {
    NewEvent::new(Uuid::new_v4(), "A", to_raw_value("no n").unwrap())
}

fn store(pool: &PgPool) -> PostgresEventStore {
    PostgresEventStore::new(pool.clone(), Layout::espd("espd").unwrap())
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn count(pool: &PgPool) -> i64 {
    numbers(pool, "select count(*) from seen").await[0]
}

/// Each A is in the table once, and nothing else.
async fn is_exact(pool: &PgPool) {
    let query = "select id from espd.events where type = 'A' order by id";
    let ids = numbers(pool, query).await;
    assert_eq!(numbers(pool, "select event_id from seen order by event_id").await, ids);
}

async fn is_synchronous(installation: &Installation, order: &str) {
    eventually("the projector is synchronous", async || {
        let status = installation.status("seen").await;
        (status["synchronous"] == order && status["state"] == "live").then_some(())
    })
    .await;
}

async fn triggers(pool: &PgPool) -> i64 {
    let query = "select count(*) from pg_trigger where tgrelid = 'espd.events'::regclass and not tgisinternal and tgenabled <> 'D'";
    numbers(pool, query).await[0]
}

async fn declared(order: &str) -> (Database, Installation) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("seen", &seen(order));
    (db, installation)
}

#[tokio::test]
async fn events_are_handled_in_the_transaction_that_inserts_them_whoever_that_is() {
    let (db, installation) = declared("aggregate_order").await;
    append(&db.pool, 5).await;
    let mut daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    assert_eq!(count(&db.pool).await, 5, "it has caught up before");

    let mut transaction = db.pool.begin().await.unwrap();
    let other = NewEvent::new(Uuid::new_v4(), "B", to_raw_value(&1).unwrap());
    let appended = store(&db.pool).append_in(&mut transaction, &[a(), other, a()]).await.unwrap();
    let here: i64 =
        sqlx::query_scalar("select count(*) from seen").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!((here, count(&db.pool).await), (7, 5), "the rows commit with the events");
    appended.rolled_back();
    transaction.rollback().await.unwrap();
    is_exact(&db.pool).await;

    store(&db.pool).append(&[a(), a()]).await.unwrap();
    let plain = "insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), case n % 2 when 0 then 'A' else 'B' end, 1, '{\"n\": 2}' from generate_series(1, 4) as n";
    execute(&db.pool, plain).await;
    let mut connection = db.pool.acquire().await.unwrap();
    let copy = "copy espd.events (aggregate_id, type, version, body) from stdin";
    let mut copying = connection.copy_in_raw(copy).await.unwrap();
    let line = format!("{}\tA\t1\t{{\"n\": 3}}\n", Uuid::new_v4());
    copying.send(line.as_bytes()).await.unwrap();
    copying.finish().await.unwrap();
    // Nothing hides the trigger from a session that takes its events for those of a replica.
    execute(
        &db.pool,
        &format!("set session_replication_role = replica; {plain}; reset session_replication_role"),
    )
    .await;
    assert_eq!(count(&db.pool).await, 12);
    is_exact(&db.pool).await;

    // The position follows, so that everybody sees that nothing is left, and the count is that of a projector in batches.
    let last = numbers(&db.pool, "select max(id) from espd.events").await[0];
    reaches(&db.pool, "seen", last).await;
    eventually("all are counted", async || {
        (installation.status("seen").await["handled"] == 12).then_some(())
    })
    .await;

    daemon.kill().await;
    store(&db.pool).append(&[a()]).await.unwrap();
    is_exact(&db.pool).await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    installation.espctl(&["reset", "seen", "--yes"]).await.printed();
    store(&db.pool).append(&[a()]).await.unwrap();
    is_synchronous(&installation, "aggregate_order").await;
    is_exact(&db.pool).await;

    // Without the key it is a projector as any other, and leaves nothing behind.
    daemon.stop().await;
    installation.declare("seen", &seen("aggregate_order").replace("synchronous = 'aggregate_order'\n", ""));
    let daemon = installation.start_daemon();
    eventually("it is asynchronous", async || {
        (installation.status("seen").await["synchronous"].is_null()).then_some(())
    })
    .await;
    let last = store(&db.pool).append(&[a(), bad()]).await.unwrap()[0].id.get();
    reaches(&db.pool, "seen", last).await;
    assert_eq!((count(&db.pool).await, triggers(&db.pool).await), (15, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_handler_that_fails_fails_the_append_until_an_operator_pauses_the_projector() {
    let (db, installation) = declared("aggregate_order").await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    let before = numbers(&db.pool, "select count(*) from espd.events").await;
    let AppendError::Database(error) = store(&db.pool).append(&[a(), bad()]).await.unwrap_err() else {
        panic!("another error");
    };
    let answer = error.as_database_error().unwrap();
    assert_eq!(answer.code().as_deref(), Some("23502"), "it stays what it is: {answer}");
    assert_eq!(answer.table(), Some("seen"));
    let said = answer.message();
    assert!(said.starts_with("projector seen cannot handle event 2 (A), which is not stored"), "{said}");
    let line = r#"{"aggregate_id":"149d5c70-a373-4857-91e2-1d5ea90c27e4","type":"A","body":1}"#;
    let complaint = installation.espctl_fed(&["append"], line).await.complained(1);
    assert!(complaint.contains("projector seen cannot handle event"), "{complaint}");
    assert_eq!(numbers(&db.pool, "select count(*) from espd.events").await, before);
    is_exact(&db.pool).await;

    installation.espctl(&["pause", "seen"]).await.printed();
    assert_eq!(triggers(&db.pool).await, 0);
    store(&db.pool).append(&[a(), bad(), a()]).await.unwrap();
    installation.espctl(&["resume", "seen"]).await.printed();
    let status = eventually("the failure", async || {
        let status = installation.status("seen").await;
        (status["state"] == "retrying").then_some(status)
    })
    .await;
    assert!(status["synchronous"].is_null(), "{status}");
    // While something is set aside, it stays asynchronous.
    installation.espctl(&["dead-letters", "skip", "seen", "--yes"]).await.printed();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "seen", last).await;
    assert_eq!((count(&db.pool).await, triggers(&db.pool).await), (3, 0));
    installation.espctl(&["dead-letters", "discard", "seen", "--all", "--yes"]).await.printed();
    is_synchronous(&installation, "aggregate_order").await;
    daemon.stop().await;
}

/// Appends until it is told to stop, now in this way, now in that.
async fn write(pool: PgPool, number: usize, stop: Arc<AtomicBool>) -> usize {
    let store = store(&pool);
    let plain = "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{\"n\": 1}')";
    let mut stored = 0;
    while !stop.load(Ordering::Relaxed) {
        match (stored + number) % 4 {
            0 => drop(
                store.append(&[NewEvent { expected_version: ExpectedVersion::Absent, ..a() }]).await.unwrap(),
            ),
            1 => execute(&pool, plain).await,
            2 => {
                // Its snapshot is older than whatever happens to the projector meanwhile.
                let mut connection = pool.acquire().await.unwrap();
                let mut transaction =
                    connection.begin_with("begin isolation level repeatable read").await.unwrap();
                sqlx::query("select 1 from espd.trackers").execute(&mut *transaction).await.unwrap();
                tokio::task::yield_now().await;
                sqlx::query(plain).execute(&mut *transaction).await.unwrap();
                transaction.commit().await.unwrap();
            }
            _ => {
                // Draws an id long before it is inserted, and sometimes rolls back.
                let mut transaction = pool.begin().await.unwrap();
                let id: i64 = sqlx::query_scalar("select nextval('espd.events_id_seq')")
                    .fetch_one(&mut *transaction)
                    .await
                    .unwrap();
                tokio::task::yield_now().await;
                let insert =
                    "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
                    values ($1, gen_random_uuid(), 'A', 1, '{\"n\": 1}')";
                sqlx::query(insert).bind(id).execute(&mut *transaction).await.unwrap();
                if stored % 3 == 0 {
                    transaction.rollback().await.unwrap()
                } else {
                    transaction.commit().await.unwrap()
                }
            }
        }
        stored += 1;
    }
    stored
}

#[tokio::test]
async fn while_it_becomes_synchronous_and_asynchronous_writers_lose_and_double_nothing() {
    let (db, installation) = declared("aggregate_order").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..4).map(|number| tokio::spawn(write(db.pool.clone(), number, Arc::clone(&stop)))).collect();
    let daemon = installation.start_daemon();
    for _ in 0..3 {
        eventually("the trigger", async || (triggers(&db.pool).await == 1).then_some(())).await;
        let before = numbers(&db.pool, "select count(*) from espd.events").await[0];
        eventually("more events", async || {
            (numbers(&db.pool, "select count(*) from espd.events").await[0] > before + 20).then_some(())
        })
        .await;
        // A transaction that has drawn an id may be in the way.
        eventually("the pause", async || {
            installation.espctl(&["pause", "seen"]).await.code.filter(|code| *code == 0)
        })
        .await;
        installation.espctl(&["resume", "seen"]).await.printed();
    }
    is_synchronous(&installation, "aggregate_order").await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 10);
    }
    is_exact(&db.pool).await;
    daemon.stop().await;
}

#[tokio::test]
async fn events_come_in_the_order_that_is_declared() {
    for order in ["aggregate_order", "total_order"] {
        let (db, installation) = declared(order).await;
        let daemon = installation.start_daemon();
        is_synchronous(&installation, order).await;
        let aggregates: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
        let writer = |number: usize| {
            let (store, aggregates) = (store(&db.pool), aggregates.clone());
            tokio::spawn(async move {
                for turn in 0..25 {
                    let mut events = [a(), a()];
                    events[0].aggregate_id = aggregates[(turn + number) % 3].into();
                    events[1].aggregate_id = aggregates[(turn + number) % 3].into();
                    store.append(&events).await.unwrap();
                }
            })
        };
        let writers: Vec<_> = (0..4).map(writer).collect();
        for writer in writers {
            writer.await.unwrap();
        }
        is_exact(&db.pool).await;
        let places = match order {
            "total_order" => "select event_id from seen order by place",
            _ => "select event_id from seen order by aggregate_id, place",
        };
        let ids = match order {
            "total_order" => "select event_id from seen order by event_id",
            _ => "select event_id from seen order by aggregate_id, event_id",
        };
        assert_eq!(numbers(&db.pool, places).await, numbers(&db.pool, ids).await, "{order}");
        daemon.stop().await;
    }
}

/// The batch of the reactor writes the table of the projector, because it inserts the event.
#[tokio::test]
async fn what_a_reactor_emits_is_handled_where_it_is_emitted() {
    let (db, installation) = declared("aggregate_order").await;
    let reactor = "[reactor]\nname = 'answering'\nemits = ['A']\nstart = 'beginning'\n[reactor.tables]\nanswers = 'id bigint'\n\
        [[reactor.on]]\nevents = ['B']\nsql = \"insert into answers values (event.id);\n\
        perform espd.emit('A', event.aggregate_id, jsonb_build_object('n', 7))\"\n";
    installation
        .declare("answering", &reactor.replace("sql = \"", "sql = \"\"\"").replace("7))\"", "7))\"\"\""));
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    for _ in 0..2 {
        let last = append_typed(&db.pool, "B", 2).await;
        reaches(&db.pool, "answering", last).await;
    }
    assert_eq!(numbers(&db.pool, "select n from seen").await, [7; 4]);
    is_exact(&db.pool).await;
    assert_eq!(installation.status("answering").await["attempts"], 0);
    daemon.stop().await;
}

/// A program of before handles events in batches, whatever the tracker says.
#[tokio::test]
async fn a_program_that_does_not_know_of_synchronous_projectors_moves_none() {
    let (db, installation) = declared("total_order").await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "total_order").await;
    append(&db.pool, 1).await;
    daemon.stop().await;
    let moved = "update espd.trackers set position = position + 1 where name = 'seen'";
    let refused = sqlx::query(moved).execute(&db.pool).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("57ES1"), "{refused}");
    // Whoever drops it leaves nothing behind.
    std::fs::remove_file(installation.path().join("processors/seen.toml")).unwrap();
    installation.espctl(&["drop", "seen", "--yes"]).await.printed();
    append(&db.pool, 1).await;
    assert_eq!(triggers(&db.pool).await, 0);
    let functions = "select count(*) from pg_proc where proname like 'handle_inserted%'";
    assert_eq!(numbers(&db.pool, functions).await, [0]);
}

#[tokio::test]
async fn what_cannot_be_synchronous_is_refused_where_it_is_declared() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare(
        "program",
        "[projector]\nname = 'program'\ncommand = ['cat']\nevents = ['A']\nsynchronous = 'total_order'\n",
    );
    installation.declare("seen", &seen("some_order"));
    let refused = installation.espctl(&["check"]).await.complained(64);
    assert!(refused.contains("program.toml:5:15: only a projector in SQL can be synchronous"), "{refused}");
    assert!(refused.contains("seen.toml:3:15") && refused.contains("\"aggregate_order\""), "{refused}");

    let other = support::database().await;
    let elsewhere = Installation::new(&db.url, &format!("[projections]\nurl = '{}'\n", other.url));
    elsewhere.declare("seen", &seen("total_order"));
    let refused = elsewhere.espctl(&["check"]).await.complained(64);
    assert!(refused.contains("cannot be synchronous: its tables are in another database"), "{refused}");

    let mut declaration = declare("seen", &[], &[(&["A"], "perform 1")]);
    declaration.synchronous = Some(Synchronous::TotalOrder);
    let foreign = Layout::event_sourcery("espd", &EventSourceryNames::default()).unwrap();
    let refused =
        SqlProcessor::new(declaration, "espd", "public", Events::SameDatabase(foreign)).unwrap_err();
    assert!(refused.to_string().contains("espd only reads this event store"), "{refused}");
}

#[tokio::test]
async fn a_crash_of_the_server_loses_an_event_with_its_row_or_neither() {
    let server = support::server_with(&[("wal_writer_delay", "10s")]).await;
    let db = support::database_on(&server).await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare("seen", &seen("aggregate_order"));
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    store(&db.pool).append(&[a(), a()]).await.unwrap();
    // Nobody has waited for the disk, so these may be lost.
    let mut connection = db.pool.acquire().await.unwrap();
    let hasty = "set synchronous_commit = off; insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), 'A', 1, '{\"n\": 1}' from generate_series(1, 5)";
    sqlx::raw_sql(hasty).execute(&mut *connection).await.unwrap();
    drop(connection);
    let server = server.restart(StopMode::Immediate).await.unwrap();
    eventually("the server", async || store(&db.pool).append(&[a()]).await.ok()).await;
    is_synchronous(&installation, "aggregate_order").await;
    store(&db.pool).append(&[a()]).await.unwrap();
    assert!(count(&db.pool).await >= 4);
    is_exact(&db.pool).await;
    daemon.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn an_append_is_refused_or_not_whatever_the_session_has_appended_before() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let seen = "[projector]\nname = 'seen'\nsynchronous = 'aggregate_order'\n\
         [projector.tables]\nseen = 'id uuid primary key, code varchar(3)'\n\
         [[projector.on]]\nevents = ['A']\n\
         sql = \"update seen set code = event.body->>'code' where id = event.aggregate_id\"\n";
    installation.declare("seen", seen);
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    let mut session = db.pool.acquire().await.unwrap();
    for place in 0..8 {
        let code = if place % 7 == 0 { "too long" } else { "abc" };
        let append = format!(
            "select from espd.append('{{\"aggregate_id\": \"{}\", \"type\": \"A\", \"body\": {{\"code\": \"{code}\"}}}}')",
            Uuid::new_v4()
        );
        sqlx::raw_sql(AssertSqlSafe(append)).execute(&mut *session).await.expect("no row has the value");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_append_that_an_upcast_refuses_names_the_event() {
    let db = support::database().await;
    let upcast = "[[upcast]]\nevents = ['Before']\ntype = 'A'\nbody = \"jsonb_build_object('n', (event.body->>'n')::numeric)\"\n";
    let installation = Installation::new(&db.url, &format!("{RUNNER}{upcast}"));
    installation.declare("seen", &seen("aggregate_order"));
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    let before =
        |n: &str| NewEvent::new(Uuid::new_v4(), "Before", to_raw_value(&HashMap::from([("n", n)])).unwrap());
    let refused =
        store(&db.pool).append(&[a(), before("7"), before("12,35"), a()]).await.unwrap_err().to_string();
    assert!(
        refused.contains("projector seen cannot handle event 3 (Before), which is not stored"),
        "{refused}"
    );
    store(&db.pool).append(&[a(), before("8")]).await.unwrap();
    assert_eq!(count(&db.pool).await, 2);
    daemon.stop().await;
}
