//! Emissions that do not go into the event store at once, because it is in another database, or because their time has
//! not come: each arrives once, whatever happens to the daemons that move them.

use std::collections::HashSet;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::support;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::{Installation, Program};
use crate::support::projectors::numbers;

const RUNNER: &str = "[runner]\nbatch_size = 50\npoll_interval_max = '50ms'\n";

/// A reactor that answers every A with what `sql` emits.
fn reactor(sql: &str) -> String {
    format!(
        "[reactor]\nname = 'answering'\nemits = ['Answered']\nstart = 'beginning'\n\
         [[reactor.on]]\nevents = ['A']\nsql = '''{sql}'''\n"
    )
}

/// A configuration whose projections, and with them the reactor, are in another database than the events.
fn apart(store: &str, projections: &str, sql: &str) -> Installation {
    let installation = Installation::new(store, &format!("{RUNNER}[projections]\nurl = '{projections}'\n"));
    installation.declare("answering", &reactor(sql));
    installation
}

/// How many answers there are, to how many events, and whether they are in order.
async fn answers(store: &PgPool) -> (usize, usize, bool) {
    let query =
        "select causation_id, (body->>'to')::bigint from espd.events where type = 'Answered' order by id";
    let answers: Vec<(Uuid, i64)> = sqlx::query_as(query).fetch_all(store).await.unwrap();
    let distinct: HashSet<Uuid> = answers.iter().map(|(cause, _)| *cause).collect();
    let in_order = answers.is_sorted_by_key(|(_, to)| *to);
    (answers.len(), distinct.len(), in_order)
}

async fn kept(projections: &PgPool) -> i64 {
    numbers(projections, "select count(*) from espd.emissions").await[0]
}

#[tokio::test]
async fn a_store_in_another_database_gets_each_emission_once_and_in_order() {
    let (store, projections) = (support::database().await, support::database().await);
    let sql = "perform espd.emit('Answered', event.aggregate_id, jsonb_build_object('to', event.id))";
    let installation = apart(&store.url, &projections.url, sql);
    let daemon = installation.start_daemon();
    let mut last = 0;
    for life in 1..=5 {
        last = append(&store.pool, 200).await;
        let before = position(&projections.pool, "answering").await;
        let moved = async || position(&projections.pool, "answering").await > before;
        eventually("some progress", async || moved().await.then_some(())).await;
        kill(daemon.child("answering", life).await, Signal::SIGKILL).unwrap();
    }
    reaches(&projections.pool, "answering", last).await;
    eventually("all have arrived", async || (kept(&projections.pool).await == 0).then_some(())).await;
    assert_eq!(answers(&store.pool).await, (1_000, 1_000, true));
    daemon.stop().await;
}

#[tokio::test]
async fn an_expected_version_is_refused_where_it_cannot_be_checked() {
    let (store, projections) = (support::database().await, support::database().await);
    let sql = "perform espd.emit('Answered', event.aggregate_id, '{}', 1)";
    let installation = apart(&store.url, &projections.url, sql);
    append(&store.pool, 1).await;
    let daemon = installation.start_daemon();
    let message = eventually("the failure", async || {
        let message: Option<Option<String>> =
            sqlx::query_scalar("select last_error->>'message' from espd.trackers")
                .fetch_optional(&projections.pool)
                .await
                .unwrap();
        message.flatten()
    })
    .await;
    assert!(message.contains("the event store is in another database"), "{message}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_due_is_moved_once_by_several_daemons_that_die() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let sql =
        "perform espd.emit_after('Answered', event.aggregate_id, jsonb_build_object('to', event.body->'n'),
                 (event.body->>'n')::int * interval '5 milliseconds')";
    installation.declare("answering", &reactor(sql));
    let mut daemons: Vec<Program> = (0..3).map(|_| installation.start_daemon()).collect();
    let last = append(&db.pool, 400).await;
    for mut daemon in daemons.drain(..2) {
        let before = answers(&db.pool).await.0;
        eventually("some more", async || (answers(&db.pool).await.0 > before).then_some(())).await;
        daemon.kill().await;
    }
    reaches(&db.pool, "answering", last).await;
    eventually("all have arrived", async || (kept(&db.pool).await == 0).then_some(())).await;
    let (all, distinct, _) = answers(&db.pool).await;
    assert_eq!((all, distinct), (400, 400));
    for daemon in daemons {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn what_is_emitted_later_in_sql_can_be_replaced_and_cancelled_by_key() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let sql = r#"
      case (event.body->>'n')::int
        when 1 then perform espd.emit_at('Answered', event.aggregate_id, '{"to": 1}', now() + interval '1 hour', 'a');
        when 2 then perform espd.emit_at('Answered', event.aggregate_id, '{"to": 2}', now() + interval '1 hour', 'b');
        when 3 then perform espd.emit_at('Answered', event.aggregate_id, '{"to": 3}', now(), 'a');
        when 4 then if not espd.cancel('b') then raise 'there is nothing to cancel'; end if;
        else if espd.cancel('b') then raise 'it was cancelled before'; end if;
      end case"#;
    installation.declare("answering", &reactor(sql));
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 5).await;
    reaches(&db.pool, "answering", last).await;
    eventually("the replacement", async || (answers(&db.pool).await.0 == 1).then_some(())).await;
    let emitted: (Value, Value) =
        sqlx::query_as("select body, metadata from espd.events where type = 'Answered'")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    let metadata = serde_json::json!({ "espd": { "reactor": "answering", "depth": 1 } });
    assert_eq!(emitted, (serde_json::json!({ "to": 3 }), metadata));
    assert_eq!(kept(&db.pool).await, 0);
    daemon.stop().await;
}
