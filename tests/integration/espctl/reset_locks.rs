//! `espctl reset` while somebody else holds a lock on a table: it says for whom it waits, and holds nothing meanwhile.

use std::process::Stdio;
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::{Installation, Program};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

async fn running() -> (Database, Installation, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", 3).await;
    (db, installation, daemon)
}

/// A session that has the table for itself.
async fn holder(db: &Database) -> (PgConnection, i32) {
    let named = format!("{}&application_name=maintenance", db.url);
    let mut holder = PgConnection::connect(&named).await.unwrap();
    let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    sqlx::raw_sql("begin; lock table public.notes in access exclusive mode")
        .execute(&mut holder)
        .await
        .unwrap();
    (holder, pid)
}

#[tokio::test]
async fn a_reset_behind_a_lock_names_the_holder_and_leaves_the_tracker_alone() {
    let (db, installation, daemon) = running().await;
    let (_holder, pid) = holder(&db).await;
    let resetting = tokio::process::Command::from(installation.espctl_command(&[
        "reset",
        "notes",
        "--in-place",
        "--yes",
        "--wait",
        "8s",
    ]))
    .stdin(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();

    let told = eventually("what the reset waits for", async || {
        let status = installation.status("notes").await;
        let advice = status["advice"].as_array().unwrap().iter();
        let told = advice
            .filter_map(|advice| advice["problem"].as_str())
            .find(|said| said.contains("reset of notes"));
        told.map(str::to_owned)
    })
    .await;
    assert!(told.contains("public.notes") && told.contains(&format!("Process {pid} (maintenance")), "{told}");
    let ended = tokio::spawn(resetting.wait_with_output());
    while !ended.is_finished() {
        // Its owner is alive all the time, and is seen to be.
        let status = installation.status("notes").await;
        assert!(!["stopped", "standby"].contains(&status["state"].as_str().unwrap()), "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ended = ended.await.unwrap().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    for part in [
        "public.notes",
        &format!("Process {pid} (maintenance, user espd)"),
        "open for",
        "nothing was done",
        &format!("pg_terminate_backend({pid})"),
    ] {
        assert!(error.contains(part), "{part}: {said}");
    }
    // It was told before as well.
    assert!(said.lines().next().unwrap().contains("waits"), "{said}");
    assert_eq!(position(&db.pool, "notes").await, 3);
    daemon.stop().await;
}

#[tokio::test]
async fn a_reset_goes_on_when_the_lock_is_gone() {
    let (db, installation, daemon) = running().await;
    let (mut holder, _) = holder(&db).await;
    // The daemon waits for the table as well.
    append(&db.pool, 1).await;
    let mut resetting = tokio::process::Command::from(installation.espctl_command(&[
        "reset",
        "notes",
        "--in-place",
        "--yes",
    ]))
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    use tokio::io::AsyncBufReadExt as _;
    let mut lines = tokio::io::BufReader::new(resetting.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("maintenance"), "{line}");
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    assert!(resetting.wait().await.unwrap().success());
    let resets = "select count(*) from espd.operator_log where action = 'reset'";
    let resets: i64 = sqlx::query_scalar(resets).fetch_one(&db.pool).await.unwrap();
    assert_eq!(resets, 1);
    eventually("all events again", async || {
        let count = "select count(*) from public.notes";
        let count: i64 = sqlx::query_scalar(count).fetch_one(&db.pool).await.unwrap();
        (count == 4).then_some(())
    })
    .await;
    daemon.stop().await;
}
