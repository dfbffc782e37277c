//! The preconditions of the settled horizon: every one broken once, and repaired as the message says.

use espd::event::Position;
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

async fn unmet_of(connection: &mut PgConnection, layout: &Layout, position: Position) -> Vec<Unmet> {
    match check(connection, layout, position).await {
        Ok(()) => Vec::new(),
        Err(PreconditionError::Unmet(unmet)) => unmet,
        Err(PreconditionError::Database(error)) => panic!("{error}"),
    }
}

async fn unmet(connection: &mut PgConnection) -> Vec<Unmet> {
    unmet_of(connection, &Layout::espd(SCHEMA).unwrap(), 0.into()).await
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
    run(&mut connection, "create schema old; create table old.events (id bigserial primary key)").await;
    assert_eq!(unmet_of(&mut connection, &Layout::espd("old").unwrap(), 0.into()).await, []);
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
async fn a_processor_beyond_the_store_followed_another_one() {
    let database = support::database().await;
    let mut connection = connect(&database.url).await;
    append(&mut connection).await;
    let layout = Layout::espd(SCHEMA).unwrap();
    assert_eq!(unmet_of(&mut connection, &layout, 1.into()).await, []);
    let found = unmet_of(&mut connection, &layout, 2.into()).await;
    assert_eq!(kinds(&found), [UnmetKind::SequenceBehindPosition]);
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
    assert_eq!(kinds(&unmet_of(&mut connection, &layout, 0.into()).await), [UnmetKind::TableMissing]);
    run(&mut connection, "create schema elsewhere; create table elsewhere.events (id bigint)").await;
    assert_eq!(kinds(&unmet_of(&mut connection, &layout, 0.into()).await), [UnmetKind::SequenceMissing]);
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
    let error =
        check(&mut connection, &Layout::espd(SCHEMA).unwrap(), 7.into()).await.unwrap_err().to_string();
    println!("{error}");
    for part in
        ["cache 50", "counts by 2", "begins again", "unlogged", "has reached 7", "repair: alter sequence"]
    {
        assert!(error.contains(part), "{part:?} is missing in {error}");
    }
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
