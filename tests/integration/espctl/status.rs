//! `espctl status`: the state of every processor, what is wrong with it, and what holds the horizon back.

use std::process::Stdio;

use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

use crate::support;
use crate::support::facts::{append, append_typed, eventually, reaches};
use crate::support::program::{Installation, Talker};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

/// What a program may rely on.
const FIELDS: [&str; 22] = [
    "name",
    "kind",
    "version",
    "state",
    "position",
    "head",
    "horizon",
    "lag_events",
    "lag_seconds",
    "epoch",
    "owner",
    "attempts",
    "last_error",
    "failing_events",
    "next_retry_at",
    "updated_at",
    "rate",
    "dead_letters",
    "oldest_dead_letter_at",
    "pending_emissions",
    "next_emission_at",
    "advice",
];

const INSERT: &str =
    "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')";

#[tokio::test]
async fn the_lag_is_no_guess_while_the_planner_knows_nothing_of_the_events() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let many = "alter table espd.events set (autovacuum_enabled = off);
        insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), 'A', 1, '{}' from generate_series(1, 30000)";
    sqlx::raw_sql(many).execute(&db.pool).await.unwrap();
    assert_eq!(installation.status("notes").await["lag_events"], 30_000);
    sqlx::raw_sql("analyze espd.events").execute(&db.pool).await.unwrap();
    let estimated = installation.status("notes").await["lag_events"].as_i64().unwrap();
    assert!((29_000..=30_000).contains(&estimated), "{estimated}");
}

#[tokio::test]
async fn statistics_of_before_do_not_hide_how_many_events_there_are() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let insert = "insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), 'A', 1, '{}' from generate_series(1, ";
    let many = format!(
        "alter table espd.events set (autovacuum_enabled = off); {insert}100); analyze espd.events; {insert}30000)"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(many)).execute(&db.pool).await.unwrap();
    eventually("the server counts what was inserted since", async || {
        let lag = installation.status("notes").await["lag_events"].as_i64().unwrap();
        (29_000..=30_100).contains(&lag).then_some(())
    })
    .await;
}

/// Whoever appends may say when an event has happened.
#[tokio::test]
async fn an_event_of_the_future_does_not_hide_the_age_of_those_behind_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let events = "insert into espd.events (aggregate_id, type, version, body, created_at)
        values (gen_random_uuid(), 'A', 1, '{}', '2099-01-01'), (gen_random_uuid(), 'A', 1, '{}', now() - interval '1 hour')";
    sqlx::raw_sql(events).execute(&db.pool).await.unwrap();
    let age = installation.status("notes").await["lag_seconds"].as_f64().unwrap();
    assert!(age >= 3_600.0, "{age}");
}

#[tokio::test]
async fn the_status_has_every_promised_field_before_during_and_after_a_run() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    assert_eq!(installation.espctl(&["status", "--json"]).await.json(), serde_json::json!([]));
    installation.declare_notes("notes", "");
    append(&db.pool, 10).await;
    let last = append_typed(&db.pool, "B", 5).await;
    let complete = |status: &Value| FIELDS.iter().all(|field| status.get(field).is_some());

    let before = installation.status("notes").await;
    assert!(complete(&before), "{before}");
    assert_eq!((&before["state"], &before["lag_events"]), (&"stopped".into(), &15.into()), "{before}");
    assert!(before["updated_at"].is_null() && before["lag_seconds"].as_f64().unwrap() > 0.0, "{before}");

    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    let during = installation.status("notes").await;
    assert!(complete(&during), "{during}");
    let expected = serde_json::json!({
        "name": "notes", "kind": "projector", "version": 1, "state": "live", "position": 15, "head": 15, "horizon": 15,
        "lag_events": 0, "lag_seconds": 0.0, "attempts": 0, "last_error": null, "next_retry_at": null, "handled": 10,
        "epoch": 1, "held_by": [], "advice": [],
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&during[field], value, "{field}");
    }
    assert!(during["owner"].as_str().unwrap().ends_with(&format!(":{}", daemon.pid())), "{during}");

    daemon.stop().await;
    let after = installation.status("notes").await;
    assert!(complete(&after), "{after}");
    assert_eq!((&after["state"], after["owner"].is_null()), (&"stopped".into(), true), "{after}");
    let complaint = installation.espctl(&["status", "nots"]).await.complained(1);
    assert!(complaint.contains("no processor nots"), "{complaint}");
}

/// The table's columns as words, without the header.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().skip(1).take_while(|line| !line.is_empty());
    rows.map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn the_status_is_a_table_with_advice() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "").declare_notes("more", "");
    append(&db.pool, 1_234).await;
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.trim_start().starts_with("NAME") && !table.contains('\x1b'), "{table}");
    let words = rows(&table);
    assert_eq!(
        (words.len(), &words[0][..6]),
        (2, &["more", "projector", "stopped", "0", "1,234", "1,234"][..])
    );
    assert!(table.contains("Start `espd run` with a configuration that declares it."), "{table}");
    let one = installation.espctl(&["status", "notes"]).await.printed();
    assert_eq!(rows(&one).len(), 1);
}

#[tokio::test]
async fn a_failing_event_is_shown_with_its_cause_and_the_next_try() {
    let db = support::database().await;
    let installation =
        Installation::new(&db.url, &format!("{RUNNER}[retry]\ninitial = '100ms'\nmax = '1h'\n"));
    installation.declare_notes("notes", "perform 1 / (event.body->>'n')::bigint;");
    append(&db.pool, 10).await;
    let broken: uuid::Uuid =
        sqlx::query_scalar("update espd.events set body = '{\"n\": 0}' where id = 6 returning uuid")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    let daemon = installation.start_daemon();
    // A try that is due already is no longer announced.
    let status = eventually("three attempts, and a next one later", async || {
        let status = installation.status("notes").await;
        (status["attempts"].as_i64() >= Some(3) && status["advice"][0]["next_try_at"].is_string())
            .then_some(status)
    })
    .await;
    assert_eq!((&status["state"], &status["position"]), (&"retrying".into(), &5.into()), "{status}");
    let error = &status["last_error"];
    assert_eq!((&error["event_id"], &error["event_type"]), (&6.into(), &"A".into()), "{error}");
    assert_eq!((&error["event_uuid"], &error["sqlstate"]), (&broken.to_string().into(), &"22012".into()));
    assert!(error["place"].as_str().unwrap().contains("notes.toml:"), "{error}");
    assert!(status["next_retry_at"].is_string(), "{status}");
    let advice = &status["advice"][0];
    assert_eq!((&advice["topic"], &advice["since"]), (&"retrying".into(), &error["at"]), "{status}");
    assert_eq!(advice["next_try_at"], status["next_retry_at"], "{status}");
    assert!(advice["problem"].as_str().unwrap().starts_with("notes cannot handle event 6 (A): "), "{advice}");
    assert!(advice["remedy"].as_str().unwrap().contains("`espctl retry notes`"), "{advice}");
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("notes cannot handle event 6 (A): division by zero [22012] at "), "{table}");

    // A restarted worker continues to count and to wait. Once the event can be handled, the processor continues by itself.
    let child = daemon.child("notes", 1).await;
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    daemon.child("notes", 2).await;
    let resumed = eventually("the next claim", async || {
        let status = installation.status("notes").await;
        (status["epoch"].as_i64() >= Some(2)).then_some(status)
    })
    .await;
    assert!(resumed["attempts"].as_i64() >= Some(3), "{resumed}");
    sqlx::query("update espd.events set body = '{\"n\": 6}' where id = 6").execute(&db.pool).await.unwrap();
    reaches(&db.pool, "notes", 10).await;
    let fixed = installation.status("notes").await;
    assert_eq!((&fixed["state"], &fixed["attempts"]), (&"live".into(), &0.into()), "{fixed}");
    assert!(fixed["last_error"].is_null() && fixed["next_retry_at"].is_null(), "{fixed}");
    daemon.stop().await;
}

#[tokio::test]
async fn transactions_that_hold_the_horizon_back_are_named() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    append(&db.pool, 3).await;
    let named = format!("{}&application_name=slow%20import", db.url);
    let mut writer = PgConnection::connect(&named).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut writer).await.unwrap();
    let mut transaction = writer.begin().await.unwrap();
    sqlx::query(INSERT).execute(&mut *transaction).await.unwrap();
    append(&db.pool, 2).await;

    let status = installation.status("notes").await;
    assert_eq!((&status["head"], status["held_by"].as_array().unwrap().len()), (&6.into(), 1), "{status}");
    assert!(status["horizon"].as_i64() < Some(4), "{status}");
    let holder = &status["held_by"][0];
    assert_eq!(
        (&holder["pid"], &holder["application_name"]),
        (&pid.into(), &"slow import".into()),
        "{holder}"
    );
    let query = holder["query"].as_str().unwrap();
    assert!(
        query.contains("insert into espd.events") && !query.contains('\''),
        "no literal is shown: {holder}"
    );
    assert_eq!(
        (&holder["user"], &holder["state"]),
        (&"espd".into(), &"idle in transaction".into()),
        "{holder}"
    );
    assert!(holder["seconds"].as_f64().is_some() && holder["prepared"].is_null(), "{holder}");
    // Not before it has lasted: other appends take a moment as well.
    let is_told = async || {
        let status = installation.status("notes").await;
        (status["advice"][1]["topic"] == "horizon_held_back").then_some(())
    };
    eventually("advice", is_told).await;
    let table = installation.espctl(&["status"]).await.printed();
    assert!(
        table.contains("slow import") && table.contains(&format!("pg_terminate_backend({pid})")),
        "{table}"
    );

    sqlx::query("prepare transaction 'forgotten'").execute(&mut *transaction).await.unwrap();
    let status = installation.status("notes").await;
    assert_eq!(status["held_by"][0]["prepared"], "forgotten", "{status}");
    assert!(status["held_by"][0]["pid"].is_null(), "{status}");
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("`rollback prepared 'forgotten'` ends it"), "{table}");

    sqlx::query("commit prepared 'forgotten'").execute(&db.pool).await.unwrap();
    let status = installation.status("notes").await;
    assert_eq!((&status["horizon"], &status["held_by"]), (&6.into(), &serde_json::json!([])), "{status}");
}

#[tokio::test]
async fn a_reader_that_closes_the_pipe_is_no_failure() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    append(&db.pool, 100).await;
    for arguments in
        [&["status"][..], &["status", "--json"], &["events"], &["config", "example"], &["config", "show"]]
    {
        let mut command = installation.espctl_command(arguments);
        let mut espctl =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(espctl.stdout.take());
        let output = espctl.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]), "{arguments:?}");
    }
}

#[tokio::test]
async fn watching_shows_every_change_until_interrupted() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let mut lines = Talker::start(installation.espctl_command(&["status", "--watch", "--interval", "50ms"]));
    assert!(lines.next().await.ends_with("notes stopped position=0 head=0 lag=0"));
    append(&db.pool, 3).await;
    // Ids are seen as soon as they are drawn.
    let is_all = |line: &String| line.ends_with("notes stopped position=0 head=3 lag=3");
    eventually("the events", async || lines.printed().filter(is_all)).await;
    let daemon = installation.start_daemon();
    eventually("the end of it", async || {
        lines.printed().filter(|line| line.contains("notes live position=3"))
    })
    .await;
    // A lost connection does not end `--watch`.
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'espctl' and datname = current_database()")
        .execute(&db.pool)
        .await
        .unwrap();
    let last = append(&db.pool, 1).await;
    eventually("more", async || lines.printed().filter(|line| line.contains(&format!("position={last}"))))
        .await;
    nix::sys::signal::kill(lines.pid(), nix::sys::signal::Signal::SIGINT).unwrap();
    let status = eventually("the end", async || lines.process.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
    daemon.stop().await;

    let json = Talker::start(installation.espctl_command(&["status", "--watch", "--json"]));
    let statuses: Value = serde_json::from_str(&json.next().await).unwrap();
    assert_eq!(statuses[0]["name"], "notes");
}

#[tokio::test]
async fn a_worker_that_keeps_ending_is_shown_with_how_it_ended() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("faulty", "perform 'no end;\n").declare_notes("fine", "");
    let daemon = installation.start_daemon();
    let status = eventually("a crash loop", async || {
        let status = installation.status("faulty").await;
        (status["worker"]["state"] == "crash_looping").then_some(status)
    })
    .await;
    assert_eq!((&status["state"], &status["worker"]["pid"]), (&"stopped".into(), &Value::Null), "{status}");
    assert!(status["worker"]["next_start_at"].is_string(), "{status}");
    let fine = installation.status("fine").await;
    assert_eq!((&fine["worker"]["state"], &fine["worker"]["worker"]), (&"running".into(), &"fine".into()));
    assert!(fine["worker"]["pid"].is_i64(), "{fine}");
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("keeps ending: exit code 64 (wrong configuration or declaration)"), "{table}");
    assert!(!table.contains("No daemon runs faulty"), "{table}");
    daemon
        .stop_uncleanly("faulty (exit code 64 (wrong configuration or declaration), again and again)")
        .await;
    let gone = installation.status("faulty").await;
    assert!(gone["worker"].is_null(), "{gone}");
}
