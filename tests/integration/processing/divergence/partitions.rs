//! Partitions of the table of events are taken out and put back.

use espd::internals::tracker::DivergenceKind;
use sqlx::PgPool;

use super::in_process::{divergence, in_rust, in_sql};
use super::{NOTES, execute, numbers, range};
use crate::processing::runner::{Life, lease_renewed_twice, notes_key, row_with, settings};
use crate::support::facts::{append, eventually, reaches};
use crate::support::{self, SCHEMA};
use espd::internals::tracker::Trackers;

/// The table of events in three partitions of ten ids.
const PARTITIONED: &str = "
alter table espd.events rename to plain;
alter sequence espd.events_id_seq rename to plain_id_seq;
create table espd.events (like espd.plain including defaults including generated, primary key (id)) partition by range (id);
create sequence espd.events_id_seq owned by espd.events.id;
alter table espd.events alter column id set default nextval('espd.events_id_seq');
create table espd.events_1 partition of espd.events for values from (1) to (11);
create table espd.events_2 partition of espd.events for values from (11) to (21);
create table espd.events_3 partition of espd.events for values from (21) to (31);
drop table espd.plain cascade";

async fn pause(pool: &PgPool) {
    let mut connection = pool.acquire().await.unwrap();
    assert!(Trackers::new(SCHEMA).pause(&mut connection, &notes_key(), "test").await.unwrap());
    row_with(pool, "a pause that the runner knows of", |row| row.paused_at.is_some()).await;
    lease_renewed_twice(pool).await;
}

async fn resume(pool: &PgPool) {
    let mut connection = pool.acquire().await.unwrap();
    assert!(Trackers::new(SCHEMA).resume(&mut connection, &notes_key(), "test").await.unwrap());
}

#[tokio::test]
async fn a_partition_that_is_taken_out_before_its_events_were_handled_is_missed() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        execute(&db.pool, PARTITIONED).await;
        let life = Life::begin_with(&db, make(), settings(&db));
        reaches(&db.pool, "notes", append(&db.pool, 5).await).await;
        pause(&db.pool).await;
        append(&db.pool, 20).await;
        execute(&db.pool, "alter table espd.events detach partition espd.events_2").await;
        resume(&db.pool).await;
        assert_eq!(divergence(&db.pool).await, (DivergenceKind::PartitionGone, 5));
        let attach = "alter table espd.events attach partition espd.events_2 for values from (11) to (21)";
        execute(&db.pool, attach).await;
        lease_renewed_twice(&db.pool).await;
        assert_eq!(numbers(&db.pool, NOTES).await, range(1, 5), "until an operator decides");
        life.end().await;
    }
}

#[tokio::test]
async fn a_partition_that_appears_behind_the_position_is_told() {
    let db = support::database().await;
    execute(&db.pool, PARTITIONED).await;
    append(&db.pool, 25).await;
    execute(&db.pool, "alter table espd.events detach partition espd.events_2").await;
    let life = Life::begin_with(&db, in_sql(), settings(&db));
    reaches(&db.pool, "notes", 25).await;
    let attach = "alter table espd.events attach partition espd.events_2 for values from (11) to (21)";
    execute(&db.pool, attach).await;
    assert_eq!(divergence(&db.pool).await, (DivergenceKind::PartitionAdded, 10));
    life.end().await;
}

#[tokio::test]
async fn a_partition_that_is_changed_between_detaching_and_attaching_is_told() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        execute(&db.pool, PARTITIONED).await;
        let life = Life::begin_with(&db, make(), settings(&db));
        reaches(&db.pool, "notes", append(&db.pool, 25).await).await;
        lease_renewed_twice(&db.pool).await;
        execute(
            &db.pool,
            "begin;
             alter table espd.events detach partition espd.events_2;
             update espd.events_2 set uuid = gen_random_uuid() where id = 15;
             alter table espd.events attach partition espd.events_2 for values from (11) to (21);
             commit",
        )
        .await;
        assert_eq!(divergence(&db.pool).await, (DivergenceKind::PartitionAdded, 10));
        append(&db.pool, 3).await;
        lease_renewed_twice(&db.pool).await;
        assert_eq!(numbers(&db.pool, NOTES).await, range(1, 25), "until an operator decides");
        life.end().await;
    }
}

/// The control: a new partition for new events, and an old one whose events are handled.
#[tokio::test]
async fn partitions_come_and_go_without_harm() {
    for make in [in_sql, in_rust] {
        let db = support::database().await;
        execute(&db.pool, PARTITIONED).await;
        let life = Life::begin_with(&db, make(), settings(&db));
        reaches(&db.pool, "notes", append(&db.pool, 25).await).await;
        execute(&db.pool, "create table espd.events_4 partition of espd.events for values from (31) to (41)")
            .await;
        reaches(&db.pool, "notes", append(&db.pool, 10).await).await;
        execute(&db.pool, "alter table espd.events detach partition espd.events_1; drop table espd.events_2")
            .await;
        reaches(&db.pool, "notes", append(&db.pool, 5).await).await;
        lease_renewed_twice(&db.pool).await;
        let handled = range(1, 40);
        eventually("all of them", async || (numbers(&db.pool, NOTES).await == handled).then_some(())).await;
        assert_eq!(
            numbers(&db.pool, "select count(*) from espd.trackers where diverged is not null").await,
            [0]
        );
        life.end().await;
    }
}
