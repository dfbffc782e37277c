//! The endpoint while the daemon starts, while the database does not answer, and while the daemon stops.

use espd::embedded::StopMode;
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpStream;

use super::{OPERATE, endpoint, parse_metrics, refused, running, settings};
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_daemon_without_its_database_lives_and_is_not_ready() {
    let db = support::database().await;
    let proxy = Proxy::start(&db.url).await;
    let installation = Installation::new(&proxy.url(), &settings(""));
    installation.declare_notes("notes", "");
    proxy.refuse(true);
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    daemon.says("the database does not answer").await;
    assert_eq!(client.get("/livez").await.json(200), json!({ "live": true, "starting": true }));
    let checks = client.get("/readyz").await.json(503)["checks"].clone();
    assert_eq!((&checks["database"]["ok"], &checks["workers"]["ok"]), (&json!(false), &json!(false)));
    assert!(checks["database"]["remedy"].is_string(), "{checks}");

    proxy.refuse(false);
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    proxy.refuse(true);
    proxy.reset();
    let ready = eventually("the outage", async || {
        let reply = client.get("/readyz").await;
        (reply.status == 503).then(|| reply.json(503))
    })
    .await;
    assert_eq!(ready["checks"]["database"]["ok"], false, "{ready}");
    assert_eq!(client.get("/livez").await.json(200), json!({ "live": true }));
    refused(&client.get("/api/v1/processors").await.json(503), "");
    let metrics = parse_metrics(&client.get("/metrics").await.body);
    assert!(metrics.contains(&("espd_database_up".into(), 0.0)), "{metrics:?}");
    assert!(metrics.iter().any(|(sample, _)| sample.starts_with("espd_worker_up")), "{metrics:?}");
    assert!(!metrics.iter().any(|(sample, _)| sample.starts_with("espd_processor_")), "{metrics:?}");

    proxy.refuse(false);
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_restart_of_the_server_is_survived() {
    let server = support::server().await;
    server.create_database("shop", None).await.unwrap();
    let url = server.url("shop");
    let pool = PgPool::connect(&url).await.unwrap();
    let installation = Installation::new(&url, &settings(""));
    installation.declare_notes("notes", "");
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    reaches(&pool, "notes", 0).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    let server = server.restart(StopMode::Immediate).await.unwrap();
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    daemon.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_an_error_of_the_start() {
    let db = support::database().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let installation = Installation::new(&db.url, &settings("").replace("127.0.0.1:0", &address));
    installation.declare_notes("notes", "");
    let outcome = installation.espd(&["run"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let wanted =
        format!("the admin endpoint cannot listen on {address}; choose another `listen` under [admin]");
    assert!(outcome.stderr.contains(&wanted), "{outcome:?}");
    assert!(!outcome.stderr.contains("worker started"), "{outcome:?}");
}

#[tokio::test]
async fn an_answer_under_way_is_completed_before_the_daemon_ends() {
    let (db, _installation, mut daemon, client) = running(&format!("operator_token = '{OPERATE}'")).await;
    sqlx::query(
        "insert into espd.trackers (name, kind, version, position) values ('old', 'projector', 1, 3)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("select from espd.trackers where name = 'old' for update")
        .execute(&mut *holder)
        .await
        .unwrap();
    let asked = client.clone();
    let reset =
        tokio::spawn(async move { asked.post("/api/v1/processors/old/reset", OPERATE, "{\"to\": 1}").await });
    eventually("a reset that waits for the tracker", async || {
        let query = "select 1 from pg_stat_activity where application_name = 'espd admin' and wait_event_type = 'Lock'
                       and datname = current_database()";
        sqlx::query(query).fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    daemon.signal(Signal::SIGTERM);
    eventually("the end of listening", async || TcpStream::connect(&client.address).await.err()).await;
    holder.rollback().await.unwrap();
    assert_eq!(reset.await.unwrap().json(200)["position"], 1);
    assert_eq!(daemon.ended().await.code(), Some(0));
}

/// Ends all sessions of the database but those of the test: what a session begins with, it keeps.
async fn end_sessions(pool: &PgPool) {
    let statement = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                     where datname = current_database() and application_name like 'espd%'";
    sqlx::query(statement).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_database_that_may_only_be_read_is_not_ready_and_the_reason_is_told_everywhere() {
    let (db, installation, daemon, client) = running("").await;
    let set = |to: &str| {
        let statement = format!(
            "begin read write; alter database {} set default_transaction_read_only = {to}; commit",
            db.name
        );
        AssertSqlSafe(statement)
    };
    sqlx::raw_sql(set("on")).execute(&db.pool).await.unwrap();
    end_sessions(&db.pool).await;
    let reason = "may only read, because default_transaction_read_only is on";
    let checks = eventually("the reason", async || {
        let reply = client.get("/readyz").await;
        (reply.status == 503).then(|| reply.json(503)["checks"].clone())
    })
    .await;
    // It answers, and the schema is as it has to be.
    assert_eq!(checks["schema"], json!({ "ok": true }));
    let checks = &checks["database"];
    assert!(checks["error"].as_str().unwrap().contains(reason), "{checks}");
    let undo = format!("alter database {} set default_transaction_read_only = off", db.name);
    assert!(checks["remedy"].as_str().unwrap().contains(&undo), "{checks}");
    assert_eq!(client.get("/livez").await.json(200), json!({ "live": true }));
    let metrics = parse_metrics(&client.get("/metrics").await.body);
    assert!(metrics.contains(&("espd_database_up".into(), 0.0)), "{metrics:?}");
    let doctor = installation.espctl(&["doctor"]).await;
    assert!(doctor.code == Some(1) && doctor.stdout.contains(reason), "{doctor:?}");
    let status = eventually("the end of the lease", async || {
        let status = installation.status("notes").await;
        status["owner"].is_null().then_some(status)
    })
    .await;
    let problem = status["advice"][0]["problem"].as_str().unwrap();
    assert!(problem.starts_with("No daemon can run notes: ") && problem.contains(reason), "{status}");

    sqlx::raw_sql(set("off")).execute(&db.pool).await.unwrap();
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    let metrics = parse_metrics(&client.get("/metrics").await.body);
    assert!(metrics.contains(&("espd_database_up".into(), 1.0)), "{metrics:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_standby_is_not_ready_until_it_is_promoted_and_the_daemon_lives_on() {
    let server = support::server().await;
    let db = support::database_on(&server).await;
    let installation = Installation::new(&db.url, &settings(""));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    std::fs::write(server.folder().join("data/standby.signal"), "").unwrap();
    let server = server.restart(StopMode::Fast).await.unwrap();
    let is_told = |check: &serde_json::Value| {
        check["error"].as_str().is_some_and(|error| error.contains("the server is a standby"))
    };
    eventually("the reason", async || {
        let reply = client.get("/readyz").await;
        (reply.status == 503 && is_told(&reply.json(503)["checks"]["database"])).then_some(())
    })
    .await;
    assert_eq!(client.get("/livez").await.json(200), json!({ "live": true }));
    let metrics = parse_metrics(&client.get("/metrics").await.body);
    assert!(metrics.contains(&("espd_database_up".into(), 0.0)), "{metrics:?}");
    let pool = PgPool::connect(&db.url).await.unwrap();
    sqlx::query("select pg_promote()").execute(&pool).await.unwrap();
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    let last = append(&pool, 1).await;
    reaches(&pool, "notes", last).await;
    daemon.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn why_there_is_no_connection_is_told() {
    let db = support::database().await;
    let role = format!("limited_{}", db.name);
    let make = format!("create role {role} superuser login; grant all on database {} to {role}", db.name);
    sqlx::raw_sql(AssertSqlSafe(make)).execute(&db.pool).await.unwrap();
    let url = db.url.replace("//espd@", &format!("//{role}@"));
    let installation = Installation::new(&url, &settings(""));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    // The limit of a role does not hold for superusers.
    let limit = format!("alter role {role} nosuperuser connection limit 0");
    sqlx::raw_sql(AssertSqlSafe(limit)).execute(&db.pool).await.unwrap();
    end_sessions(&db.pool).await;
    let check = eventually("the reason", async || {
        let reply = client.get("/readyz").await;
        let check = (reply.status == 503).then(|| reply.json(503)["checks"]["database"].clone())?;
        check["error"].as_str()?.contains("too many connections for role").then_some(check)
    })
    .await;
    assert!(check["remedy"].as_str().unwrap().contains("connection limit"), "{check}");
    refused(&client.get("/api/v1/processors").await.json(503), "too many connections for role");
    // Whoever still gets a session is told of the daemon.
    let stale = "update espd.workers set updated_at = clock_timestamp() - interval '1 minute'";
    sqlx::query(stale).execute(&db.pool).await.unwrap();
    let operator = Installation::new(&db.url, "");
    let status = eventually("the end of the lease", async || {
        let status = operator.status("notes").await;
        (status["state"] == "stopped").then_some(status)
    })
    .await;
    let problem = status["advice"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("which ran notes, gives no sign of life any more"), "{status}");
    let limit = format!("alter role {role} superuser");
    sqlx::raw_sql(AssertSqlSafe(limit)).execute(&db.pool).await.unwrap();
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    daemon.stop().await;
}

/// A role may have it from a setting of its own, which need not be the daemon's.
#[tokio::test]
async fn a_role_of_the_daemon_that_may_only_read_is_named() {
    let (db, installation, daemon, _) = running("").await;
    let role: String = sqlx::query_scalar("select current_user::text").fetch_one(&db.pool).await.unwrap();
    let set = |to: &str| {
        let (database, setting) = (&db.name, "default_transaction_read_only");
        AssertSqlSafe(format!(
            "begin read write; alter role {role} in database {database} set {setting} = {to}; commit"
        ))
    };
    sqlx::raw_sql(set("on")).execute(&db.pool).await.unwrap();
    end_sessions(&db.pool).await;
    eventually("the reason", async || {
        let status = installation.status("notes").await;
        let problem = status["advice"][0]["problem"].as_str()?.to_owned();
        (problem.starts_with("No daemon can run notes: ") && problem.contains("may only read")).then_some(())
    })
    .await;
    sqlx::raw_sql(set("off")).execute(&db.pool).await.unwrap();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn commits_that_wait_for_a_standby_that_is_away_are_named_everywhere() {
    let server = support::server().await;
    let db = support::database_on(&server).await;
    let installation = Installation::new(&db.url, &settings(""));
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    let first = append(&db.pool, 1).await;
    reaches(&db.pool, "notes", first).await;
    let set = async |names: &str| {
        let statement = format!("alter system set synchronous_standby_names = '{names}'");
        sqlx::query(AssertSqlSafe(statement)).execute(&db.pool).await.unwrap();
        sqlx::query("select pg_reload_conf()").execute(&db.pool).await.unwrap();
    };
    set("nobody").await;
    let pool = db.pool.clone();
    let appending = tokio::spawn(async move { append(&pool, 1).await });
    let reason = "commits wait for a synchronous standby that does not answer";
    eventually("the reason", async || {
        let reply = client.get("/readyz").await;
        (reply.status == 503 && reply.body.contains(reason)).then_some(())
    })
    .await;
    let doctor = installation.espctl(&["doctor"]).await;
    assert!(doctor.code == Some(1) && doctor.stdout.contains(reason), "{doctor:?}");
    eventually("the reason in the status", async || {
        let status = installation.status("notes").await;
        let advice = status["advice"].as_array()?.clone();
        // Whoever ends one of them has it commit without the standby.
        assert!(!status.to_string().contains("pg_terminate_backend"), "{status}");
        advice.iter().any(|one| one.to_string().contains(reason)).then_some(())
    })
    .await;
    set("").await;
    let last = appending.await.unwrap();
    reaches(&db.pool, "notes", last).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    daemon.stop().await;
    server.stop().await;
}
