//! Triggers that somebody has disabled, dropped, or made again, and what they have not met meanwhile.

use serde_json::Value;

use super::*;

const TRIGGER: &str = "seen_v1 on espd.events";

async fn append_one(pool: &PgPool) -> i64 {
    store(pool).append(&[a()]).await.unwrap()[0].id.get()
}

async fn diverges(installation: &Installation, kind: &str) -> Value {
    eventually(kind, async || {
        let status = installation.status("seen").await;
        (status["state"] == "diverged" && status["diverged"]["kind"] == kind).then_some(status)
    })
    .await
}

/// The findings of `espctl doctor` about something.
async fn doctor(installation: &Installation, check: &str) -> Vec<Value> {
    let found: Vec<Value> =
        serde_json::from_str(&installation.espctl(&["doctor", "--json"]).await.stdout).unwrap();
    found.into_iter().filter(|finding| finding["check"] == check && finding["level"] != "ok").collect()
}

#[tokio::test]
async fn doctor_advises_against_triggers_of_others_only() {
    let (db, installation) = declared("total_order").await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "total_order").await;
    execute(&db.pool, "select espd.archive_changes()").await;
    assert_eq!(triggers(&db.pool).await, 4);
    assert_eq!(doctor(&installation, "triggers").await, Vec::<Value>::new());
    execute(
        &db.pool,
        "create function public.take_turn() returns trigger language plpgsql as 'begin return null; end';
         create trigger seen_v2 after insert on espd.events for each statement execute function public.take_turn()",
    )
    .await;
    let found = doctor(&installation, "triggers").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0]["message"].as_str().unwrap().starts_with("trigger seen_v2 on "), "{found:?}");
    daemon.stop().await;
}

/// In each case one event is appended while the trigger does not meet it.
#[tokio::test]
async fn a_trigger_that_may_have_missed_events_stops_the_projector_until_it_is_reset() {
    let (db, installation) = declared("aggregate_order").await;
    let daemon = installation.start_daemon();
    let disable = format!("alter table espd.events disable trigger {}", "seen_v1");
    let cases = [
        (disable.clone(), "alter table espd.events enable trigger all", "trigger_disabled"),
        (disable.clone(), "alter table espd.events enable always trigger seen_v1", "trigger_changed"),
        (disable, "select 1", "trigger_disabled"),
        (format!("drop trigger {TRIGGER}"), "select 1", "trigger_missing"),
    ];
    for (before, after, kind) in cases {
        is_synchronous(&installation, "aggregate_order").await;
        let last = append_one(&db.pool).await;
        reaches(&db.pool, "seen", last).await;
        let handled = count(&db.pool).await;
        execute(&db.pool, &before).await;
        let missed = append_one(&db.pool).await;
        execute(&db.pool, after).await;
        let status = diverges(&installation, kind).await;
        assert_eq!(
            (&status["position"], &status["diverged"]["last_common"]),
            (&last.into(), &last.into()),
            "{status}"
        );
        assert_eq!(count(&db.pool).await, handled, "{kind}");
        let waited = installation.espctl(&["wait", "seen", "--timeout", "1s"]).await.complained(65);
        assert!(waited.contains(&format!("Events from {missed} on")), "{waited}");
        installation.espctl(&["reset", "seen", "--yes"]).await.printed();
        is_synchronous(&installation, "aggregate_order").await;
        is_exact(&db.pool).await;
    }
    append_one(&db.pool).await;
    is_exact(&db.pool).await;
    daemon.stop().await;
}

/// No event need come.
#[tokio::test]
async fn an_idle_projector_is_looked_after_as_well() {
    let (db, installation) = declared("total_order").await;
    append(&db.pool, 2).await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "total_order").await;
    execute(&db.pool, "alter table espd.events disable trigger seen_v1_t").await;
    daemon.says("stopped: events may not have met the trigger that handles them").await;
    diverges(&installation, "trigger_disabled").await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_missed_while_no_daemon_runs_is_told_and_left_out_only_by_an_operator() {
    let (db, installation) = declared("aggregate_order").await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    append_one(&db.pool).await;
    reaches(&db.pool, "seen", 1).await;
    daemon.stop().await;
    append_one(&db.pool).await;
    execute(&db.pool, "alter table espd.events disable trigger all").await;
    append_one(&db.pool).await;
    execute(&db.pool, "alter table espd.events enable always trigger seen_v1").await;
    append_one(&db.pool).await;
    assert_eq!(numbers(&db.pool, "select event_id from seen order by 1").await, [1, 2, 4]);

    diverges(&installation, "trigger_changed").await;
    let found = doctor(&installation, "running").await;
    assert!(
        found
            .iter()
            .any(|one| one["level"] == "failure" && one["message"].as_str().unwrap().contains("from 2 on")),
        "{found:?}"
    );
    let checked = installation.espctl(&["check"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stderr.contains("Events from 2 on may have been inserted without it"), "{checked:?}");
    installation.espctl(&["wait", "seen", "--timeout", "1s"]).await.complained(65);

    // What ends it otherwise passes over nothing either.
    installation.espctl(&["pause", "seen"]).await.printed();
    let status = diverges(&installation, "trigger_changed").await;
    assert!(status["synchronous"].is_null(), "{status}");
    assert_eq!(triggers(&db.pool).await, 0);
    let daemon = installation.start_daemon();
    let refused = installation.espctl(&["resume", "seen"]).await.complained(1);
    assert!(refused.contains("Events from 2 on"), "{refused}");
    let accepted = installation.espctl(&["resume", "seen", "--accept-history"]).await;
    assert!(accepted.stderr.contains("3 events beyond 1 count as handled"), "{accepted:?}");
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    is_synchronous(&installation, "aggregate_order").await;
    append_one(&db.pool).await;
    assert_eq!(numbers(&db.pool, "select event_id from seen order by 1").await, [1, 2, 4, 5]);

    // So does an operator who accepts at once.
    execute(&db.pool, "drop trigger seen_v1 on espd.events").await;
    append_one(&db.pool).await;
    diverges(&installation, "trigger_missing").await;
    installation.espctl(&["resume", "seen", "--accept-history"]).await.printed();
    is_synchronous(&installation, "aggregate_order").await;
    append_one(&db.pool).await;
    assert_eq!(numbers(&db.pool, "select event_id from seen order by 1").await, [1, 2, 4, 5, 7]);
    daemon.stop().await;
}

/// The triggers of a restored dump are others, and its rows are those of its events.
#[tokio::test]
async fn triggers_that_came_with_a_dump_are_taken_as_they_are() {
    let (db, installation) = declared("aggregate_order").await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    append_one(&db.pool).await;
    reaches(&db.pool, "seen", 1).await;
    daemon.stop().await;
    execute(
        &db.pool,
        "update espd.trackers set synchronous_triggers = synchronous_triggers || '{\"database\": \"1 2\"}';
         alter table espd.events disable trigger all; alter table espd.events enable always trigger seen_v1",
    )
    .await;
    assert_eq!(installation.status("seen").await["diverged"], Value::Null);
    let daemon = installation.start_daemon();
    let last = append_one(&db.pool).await;
    reaches(&db.pool, "seen", last).await;
    is_synchronous(&installation, "aggregate_order").await;
    is_exact(&db.pool).await;
    let remembered = "select (synchronous_triggers->>'database' = espd.identify_database())::int::bigint from espd.trackers";
    assert_eq!(numbers(&db.pool, remembered).await, [1]);
    daemon.stop().await;
}

/// It has handled events, and has never moved.
#[tokio::test]
async fn a_reset_at_the_beginning_is_one() {
    let (db, installation) = declared("aggregate_order").await;
    let daemon = installation.start_daemon();
    is_synchronous(&installation, "aggregate_order").await;
    daemon.stop().await;
    store(&db.pool).append(&[a(), a(), a()]).await.unwrap();
    is_exact(&db.pool).await;
    installation.espctl(&["reset", "seen", "--yes"]).await.printed();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "seen", 3).await;
    is_synchronous(&installation, "aggregate_order").await;
    is_exact(&db.pool).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_deferred_constraint_is_examined_after_each_event_and_none_of_the_appenders() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let lines = "[projector]\nname = 'lines'\nsynchronous = 'aggregate_order'\n[projector.tables]\n\
         orders = 'id uuid primary key'\n\
         lines = 'id uuid primary key, twin uuid, foreign key (id) references orders deferrable initially deferred'\n\
         [[projector.on]]\nevents = ['Line']\nsql = 'insert into lines values (event.aggregate_id)'\n\
         [[projector.on]]\nevents = ['Order']\nsql = 'insert into orders values (event.aggregate_id)'\n\
         [[projector.on]]\nevents = ['Both']\n\
         sql = 'insert into lines values (event.aggregate_id); insert into orders values (event.aggregate_id)'\n";
    installation.declare("lines", lines);
    let daemon = installation.start_daemon();
    eventually("synchronous", async || {
        (installation.status("lines").await["synchronous"] == "aggregate_order").then_some(())
    })
    .await;
    execute(
        &db.pool,
        "create table public.parents (id int primary key);
         create table public.children (id int references public.parents deferrable initially deferred)",
    )
    .await;
    let of = |event_type: &str, aggregate: Uuid| NewEvent {
        event_type: event_type.into(),
        ..NewEvent::new(aggregate, "A", to_raw_value(&1).unwrap())
    };
    let mut transaction = db.pool.begin().await.unwrap();
    sqlx::query("insert into public.children values (1)").execute(&mut *transaction).await.unwrap();
    let both = [of("Both", Uuid::new_v4()), of("Both", Uuid::new_v4())];
    let appended = store(&db.pool).append_in(&mut transaction, &both).await.unwrap();
    sqlx::query("insert into public.parents values (1)").execute(&mut *transaction).await.unwrap();
    appended.commit(transaction).await.unwrap();

    let aggregate = Uuid::new_v4();
    let refused = store(&db.pool).append(&[of("Line", aggregate), of("Order", aggregate)]).await.unwrap_err();
    let AppendError::Database(refused) = refused else { panic!("{refused}") };
    let answer = refused.as_database_error().unwrap();
    assert_eq!((answer.code().as_deref(), answer.table()), (Some("23503"), Some("lines")), "{answer}");
    assert!(answer.message().starts_with("projector lines cannot handle event"), "{answer}");
    store(&db.pool).append(&[of("Order", aggregate), of("Line", aggregate)]).await.unwrap();
    assert_eq!(numbers(&db.pool, "select count(*) from lines").await, [3]);
    daemon.stop().await;
}
