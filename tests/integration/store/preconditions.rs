//! The preconditions of the settled horizon: every one broken once, and repaired as the message says.

use espd::internals::preconditions::{PreconditionError, Unmet, UnmetKind, check};
use espd::store::Layout;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{self, SCHEMA};

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

async fn append(connection: &mut PgConnection) {
    let sql = "insert into espd.events (aggregate_id, type, version, body)
               values (gen_random_uuid(), 'Tested', 1, '{}')";
    run(connection, sql).await;
}

async fn unmet_of(connection: &mut PgConnection, layout: &Layout) -> Vec<Unmet> {
    match check(connection, layout).await {
        Ok(()) => Vec::new(),
        Err(PreconditionError::Unmet(unmet)) => unmet,
        Err(PreconditionError::Database(error)) => panic!("{error}"),
    }
}

async fn unmet(connection: &mut PgConnection) -> Vec<Unmet> {
    unmet_of(connection, &Layout::espd(SCHEMA).unwrap()).await
}

fn kinds(unmet: &[Unmet]) -> Vec<UnmetKind> {
    unmet.iter().map(|one| one.kind).collect()
}

/// Breaks a sound store, expects one unmet precondition, and repairs the store by the command in the message.
async fn breaks_and_repairs(sql: &str, kind: UnmetKind) {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    append(&mut connection).await;
    assert_eq!(kinds(&unmet(&mut connection).await), []);
    run(&mut connection, sql).await;
    let found = unmet(&mut connection).await;
    assert_eq!(kinds(&found), [kind], "{found:?}");
    run(&mut connection, &found[0].repair).await;
    assert_eq!(kinds(&unmet(&mut connection).await), [], "after {:?}", found[0].repair);
}

#[tokio::test]
async fn a_fresh_store_is_sound() {
    let database = support::database().await;
    assert_eq!(kinds(&unmet(&mut connect(&database.url).await).await), []);
}

/// PostgreSQL reads the text of a default under a lock on its table (from 14 on).
#[tokio::test]
async fn a_lock_on_another_table_holds_no_check_up() {
    let database = support::database().await;
    let (mut connection, mut other) = (connect(&database.url).await, connect(&database.url).await);
    run(&mut other, "create table other (n int default 1)").await;
    run(&mut other, "begin; lock table other, espd.trackers in access exclusive mode").await;
    run(&mut connection, "set lock_timeout = '1s'").await;
    assert_eq!(kinds(&unmet(&mut connection).await), []);
}

#[tokio::test]
async fn a_cached_sequence_is_refused() {
    breaks_and_repairs("alter sequence espd.events_id_seq cache 50", UnmetKind::SequenceCached).await;
}

#[tokio::test]
async fn a_sequence_that_skips_is_refused() {
    breaks_and_repairs("alter sequence espd.events_id_seq increment by 2", UnmetKind::SequenceIncrement)
        .await;
}

#[tokio::test]
async fn a_sequence_that_begins_again_is_refused() {
    breaks_and_repairs("alter sequence espd.events_id_seq cycle", UnmetKind::SequenceCycles).await;
}

#[tokio::test]
async fn a_store_that_was_restored_without_its_sequence_is_refused() {
    let sql = "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
               values (1000, gen_random_uuid(), 'Restored', 1, '{}')";
    breaks_and_repairs(sql, UnmetKind::SequenceBehindEvents).await;
}

#[tokio::test]
async fn an_unlogged_table_is_refused() {
    breaks_and_repairs("alter table espd.events set unlogged", UnmetKind::Unlogged).await;
}

#[tokio::test]
async fn an_id_that_is_not_drawn_by_the_insert_is_refused() {
    let sql = "alter table espd.events alter column id drop identity;
               create sequence espd.events_id_seq start 2 owned by espd.events.id;";
    breaks_and_repairs(sql, UnmetKind::IdNotDrawn).await;
}

#[tokio::test]
async fn a_default_that_draws_from_another_sequence_is_refused() {
    let sql = "alter table espd.events alter column id drop identity;
               create sequence espd.events_id_seq start 2 owned by espd.events.id;
               create sequence espd.other;
               alter table espd.events alter column id set default nextval('espd.other');";
    breaks_and_repairs(sql, UnmetKind::IdNotDrawn).await;
}

#[tokio::test]
async fn a_sequence_without_an_owning_column_is_refused() {
    let sql = "alter table espd.events alter column id drop identity;
               create sequence espd.events_id_seq start 2;
               alter table espd.events alter column id set default nextval('espd.events_id_seq');";
    breaks_and_repairs(sql, UnmetKind::SequenceNotOwned).await;
}

#[tokio::test]
async fn a_serial_column_is_as_good_as_an_identity() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(
        &mut connection,
        "create schema old; create table old.events (like espd.events);
         create sequence old.events_id_seq owned by old.events.id;
         alter table old.events alter column id set default nextval('old.events_id_seq')",
    )
    .await;
    assert_eq!(unmet_of(&mut connection, &Layout::espd("old").unwrap()).await, []);
}

#[tokio::test]
async fn a_sequence_that_was_set_to_give_out_the_next_id_is_sound() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    append(&mut connection).await;
    run(&mut connection, "select setval('espd.events_id_seq', 2, false)").await;
    assert_eq!(kinds(&unmet(&mut connection).await), []);
    run(&mut connection, "select setval('espd.events_id_seq', 1, false)").await;
    assert_eq!(kinds(&unmet(&mut connection).await), [UnmetKind::SequenceBehindEvents]);
}

#[tokio::test]
async fn an_id_below_one_is_refused() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(
        &mut connection,
        "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
         values (0, gen_random_uuid(), 'Early', 1, '{}')",
    )
    .await;
    assert_eq!(kinds(&unmet(&mut connection).await), [UnmetKind::IdTooSmall]);
}

#[tokio::test]
async fn a_missing_table_and_a_missing_sequence_are_distinguished() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    let layout = Layout::espd("elsewhere").unwrap();
    assert_eq!(kinds(&unmet_of(&mut connection, &layout).await), [UnmetKind::TableMissing]);
    run(&mut connection, "create schema elsewhere; create table elsewhere.events (id bigint)").await;
    assert_eq!(kinds(&unmet_of(&mut connection, &layout).await), [UnmetKind::SequenceMissing]);
}

#[tokio::test]
async fn a_role_that_does_not_see_everything_is_refused() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    let role = format!("blind_{}", database.name);
    run(&mut connection, &format!("create role {role}; grant usage on schema espd to {role}")).await;
    run(&mut connection, &format!("set role {role}")).await;
    let found = unmet(&mut connection).await;
    assert_eq!(kinds(&found), [UnmetKind::NotReadable, UnmetKind::NotReadable]);
    run(&mut connection, "reset role").await;
    for one in &found {
        run(&mut connection, &one.repair).await;
    }
    run(&mut connection, &format!("alter table espd.events enable row level security; set role {role}"))
        .await;
    let found = unmet(&mut connection).await;
    assert_eq!(kinds(&found), [UnmetKind::RowSecurity]);
    run(&mut connection, &format!("reset role; {}", found[0].repair)).await;
    run(&mut connection, &format!("set role {role}")).await;
    assert_eq!(kinds(&unmet(&mut connection).await), []);
    run(&mut connection, &format!("reset role; drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn everything_unmet_is_reported_together() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(
        &mut connection,
        "alter sequence espd.events_id_seq cache 50 increment by 2 cycle;
         alter table espd.events set unlogged",
    )
    .await;
    let error = check(&mut connection, &Layout::espd(SCHEMA).unwrap()).await.unwrap_err().to_string();
    println!("{error}");
    for part in ["cache 50", "counts by 2", "begins again", "unlogged", "repair: alter sequence"] {
        assert!(error.contains(part), "{part:?} is missing in {error}");
    }
}

#[tokio::test]
async fn a_column_of_another_type_is_named() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(
        &mut connection,
        "alter table espd.events alter column version type int, alter column created_at type timestamp;
         alter table espd.events drop column metadata",
    )
    .await;
    let found = unmet(&mut connection).await;
    assert_eq!(kinds(&found), [UnmetKind::ColumnUnfit]);
    for part in [
        "column version should be bigint, is integer",
        "column created_at should be timestamp with time zone, is timestamp without time zone",
        "column metadata should be jsonb, is missing",
    ] {
        assert!(found[0].problem.contains(part), "{found:?}");
    }
}

#[tokio::test]
async fn a_view_is_no_table_of_events() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    run(&mut connection, "create schema seen; create view seen.events as table espd.events").await;
    let found = unmet_of(&mut connection, &Layout::espd("seen").unwrap()).await;
    assert_eq!(kinds(&found), [UnmetKind::TableMissing]);
    assert!(found[0].problem.contains("\"seen\".\"events\" is a view"), "{found:?}");
}

/// Its ids are drawn on another server, and its own sequence says nothing about them.
#[tokio::test]
async fn a_subscriber_of_logical_replication_is_refused_by_name() {
    let server = support::server_with(&[("wal_level", "logical")]).await;
    for name in ["publisher", "subscriber"] {
        server.create_database(name, None).await.unwrap();
        let pool = sqlx::PgPool::connect(&server.url(name)).await.unwrap();
        espd::schema::migrate_event_store(&pool, SCHEMA).await.unwrap();
        pool.close().await;
    }
    let mut publisher = connect(&server.url("publisher")).await;
    run(&mut publisher, "create publication of_events for table espd.events").await;
    run(&mut publisher, "select pg_create_logical_replication_slot('copies', 'pgoutput')").await;
    let mut subscriber = connect(&server.url("subscriber")).await;
    let address: String = sqlx::query_scalar(
        "select format('host=%s port=%s user=%s dbname=publisher',
                       split_part(current_setting('unix_socket_directories'), ',', 1),
                       current_setting('port'), current_user)",
    )
    .fetch_one(&mut subscriber)
    .await
    .unwrap();
    run(
        &mut subscriber,
        &format!(
            "create subscription copies connection '{address}' publication of_events
             with (create_slot = false, slot_name = 'copies', copy_data = false, enabled = false)"
        ),
    )
    .await;
    let found = unmet(&mut subscriber).await;
    assert_eq!(kinds(&found), [UnmetKind::Replicated], "{found:?}");
    assert!(found[0].problem.contains("subscription copies"), "{found:?}");
    run(&mut subscriber, "alter subscription copies set (slot_name = none); drop subscription copies").await;
    assert_eq!(kinds(&unmet(&mut subscriber).await), []);
    server.stop().await;
}

#[tokio::test]
async fn a_standby_is_refused() {
    let server = support::server().await;
    server.create_database("store", None).await.unwrap();
    std::fs::write(server.folder().join("data/standby.signal"), "").unwrap();
    let server = server.restart(espd::embedded::StopMode::Fast).await.unwrap();
    let mut connection = connect(&server.url("store")).await;
    let found = unmet(&mut connection).await;
    assert_eq!(kinds(&found), [UnmetKind::Standby, UnmetKind::TableMissing]);
    server.stop().await;
}
