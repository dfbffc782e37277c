//! The admin endpoint of a real daemon, over real connections.

mod actions;
pub mod client;
mod clients;
mod doctor;
mod events;
mod guard;
mod life;
mod metrics;

use serde_json::{Value, json};

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};
use client::Client;

const READ: &str = "0123456789abcdef0123456789abcdef";
const OPERATE: &str = "fedcba9876543210fedcba9876543210";

/// The sections of a configuration with an endpoint on a free port and `keys` under `[admin]`.
fn settings(keys: &str) -> String {
    format!("[runner]\npoll_interval_max = '50ms'\n[admin]\nlisten = '127.0.0.1:0'\n{keys}\n")
}

/// The endpoint of a daemon that has just been started.
pub async fn endpoint(daemon: &Program) -> Client {
    let line = daemon.says("the admin endpoint listens").await;
    Client::new(line["url"].as_str().unwrap())
}

/// A daemon with an endpoint, and its projector `notes` that has handled ten events.
async fn running(keys: &str) -> (Database, Installation, Program, Client) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &settings(keys));
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    let client = endpoint(&daemon).await;
    (db, installation, daemon, client)
}

#[tokio::test]
async fn a_running_daemon_is_alive_and_ready() {
    let (_db, _installation, daemon, client) = running("").await;
    assert_eq!(client.get("/livez").await.json(200), json!({ "live": true }));
    let ready = client.get("/readyz").await.json(200);
    let checks = json!({ "database": { "ok": true }, "schema": { "ok": true }, "workers": { "ok": true, "running": 1 } });
    assert_eq!(ready, json!({ "ready": true, "checks": checks }));
    let reply = client.send("HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    daemon.stop().await;
}

#[tokio::test]
async fn statuses_are_the_very_objects_of_espctl() {
    let (_db, installation, daemon, client) = running("").await;
    // Its state settles, its rate falls to 0.
    let same = eventually("a quiet processor", async || {
        let of_espctl = installation.espctl(&["status", "--json"]).await.json();
        let all = client.get("/api/v1/processors").await.json(200);
        (of_espctl[0]["rate"] == 0.0 && all == of_espctl).then_some(all)
    })
    .await;
    assert_eq!(same[0]["name"], "notes");
    assert_eq!((&same[0]["state"], &same[0]["position"]), (&json!("live"), &json!(10)));
    assert_eq!(client.get("/api/v1/processors/notes").await.json(200), same[0]);
    daemon.stop().await;
}

#[tokio::test]
async fn metrics_are_what_the_statuses_say() {
    let (_db, _installation, daemon, client) = running("").await;
    let metrics = eventually("a live processor", async || {
        let reply = client.get("/metrics").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let metrics = parse_metrics(&reply.body);
        metrics
            .contains(&("espd_processor_state{processor=\"notes\",state=\"live\"}".into(), 1.0))
            .then_some(metrics)
    })
    .await;
    for (sample, value) in [
        ("espd_database_up", 1.0),
        ("espd_worker_up{worker=\"notes\"}", 1.0),
        ("espd_worker_restarts_total{worker=\"notes\"}", 0.0),
        ("espd_worker_crash_looping{worker=\"notes\"}", 0.0),
        ("espd_store_head_position", 10.0),
        ("espd_store_settled_position", 10.0),
        ("espd_store_holders", 0.0),
        ("espd_processor_position{processor=\"notes\"}", 10.0),
        ("espd_processor_lag_events{processor=\"notes\"}", 0.0),
        ("espd_processor_lag_seconds{processor=\"notes\"}", 0.0),
        ("espd_processor_attempts{processor=\"notes\"}", 0.0),
        ("espd_processor_owned{processor=\"notes\"}", 1.0),
        ("espd_processor_state{processor=\"notes\",state=\"paused\"}", 0.0),
        ("espd_events_processed_total{processor=\"notes\"}", 10.0),
    ] {
        assert!(metrics.contains(&(sample.into(), value)), "{sample} {value}\n{metrics:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_unknown_route_or_processor_is_refused_with_a_remedy() {
    let (_db, _installation, daemon, client) = running("").await;
    for (request, status) in [
        ("GET / HTTP/1.1", 404),
        ("GET /api/v1/processors/nots HTTP/1.1", 404),
        ("GET /api/v1/processors/notes/rename HTTP/1.1", 404),
        ("GET /api/v1/processors/notes/pause HTTP/1.1", 405),
        ("DELETE /api/v1/processors/notes HTTP/1.1", 405),
    ] {
        let refusal = client.send(&format!("{request}\r\nHost: localhost\r\n\r\n")).await.json(status);
        assert!(refusal["error"].is_string() && refusal["remedy"].is_string(), "{request} {refusal}");
    }
    daemon.stop().await;
}

/// The samples of a text in Prometheus' format, in which every metric is announced before its samples.
fn parse_metrics(text: &str) -> Vec<(String, f64)> {
    let mut family = "";
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some(announced) = line.strip_prefix("# TYPE ") {
            let (name, kind) = announced.split_once(' ').unwrap();
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = name;
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(sample.split('{').next(), Some(family), "{line}");
            samples.push((sample.to_owned(), value.parse().unwrap()));
        }
    }
    samples
}

/// What operators have done through the endpoint: what, from where, to where.
async fn operator_log(db: &Database) -> Vec<(String, i64, i64)> {
    let log: Vec<(String, String, i64, i64)> = sqlx::query_as(
        "select operator, action, from_position, to_position from espd.operator_log order by id",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert!(log.iter().all(|(operator, ..)| operator == "admin endpoint, 127.0.0.1"), "{log:?}");
    log.into_iter().map(|(_, action, from, to)| (action, from, to)).collect()
}

/// A refusal with this status, whose `error` contains `words` and that says what to do.
fn refused(refusal: &Value, words: &str) {
    let error = refusal["error"].as_str().unwrap();
    assert!(error.contains(words) && !refusal["remedy"].as_str().unwrap().is_empty(), "{refusal}");
}

#[tokio::test]
async fn a_client_reads_what_it_has_written() {
    let (db, installation, daemon, client) = running("").await;
    let wait = async |query: &str| client.get(&format!("/api/v1/processors/{query}")).await;
    let last = append(&db.pool, 5).await;
    let reached = wait(&format!("notes/wait?position={last}")).await.json(200);
    assert_eq!(reached, json!({ "name": "notes", "reached": true, "position": last }));
    let beyond = format!("notes/wait?position={}&timeout=20ms", last + 1);
    refused(&wait(&beyond).await.json(504), "has not reached");
    refused(&wait("nots/wait?position=1").await.json(404), "no processor nots");
    refused(&wait("notes/wait").await.json(400), "no `position`");

    // More than sixteen at a time are refused, and cost the others nothing.
    let beyond = format!("notes/wait?position={}&timeout=5s", last + 1);
    let waiting: Vec<_> = (0..24).map(|_| wait(&beyond)).collect();
    let replies = futures_util::future::join_all(waiting);
    let seeing = async {
        let seen = client.get("/api/v1/processors").await.json(200);
        installation.espctl(&["pause", "notes"]).await.printed();
        seen
    };
    let (replies, seen) = tokio::join!(replies, seeing);
    assert_eq!(seen[0]["name"], "notes");
    let count = |status| replies.iter().filter(|reply| reply.status == status).count();
    assert!(count(503) >= 1 && count(503) <= 8, "{replies:?}");
    assert_eq!(count(409) + count(503) + count(504), 24, "{replies:?}");
    daemon.stop().await;
}
