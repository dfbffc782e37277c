//! The events are on another server than the projections, and that server fails over to a copy that lacks the last events.

use std::path::Path;
use std::process::Command;

use espd::embedded::{EmbeddedPostgres, Options};
use espd::schema::migrate_event_store;
use sqlx::PgPool;

use super::{ALL, LISTED, NOTES, declare_all, diverges, numbers, range};
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::receiver::{Receiver, Reply};

async fn start(folder: &Path) -> EmbeddedPostgres {
    let options = Options { durable: false, max_connections: 100, ..Options::default() };
    EmbeddedPostgres::start_at(folder, options).await.unwrap()
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Puts the copy in place of the data, as a standby that is promoted.
async fn fail_over(folder: &Path, copy: &Path) -> EmbeddedPostgres {
    std::fs::rename(folder.join("data"), folder.join("lost")).unwrap();
    std::fs::rename(copy, folder.join("data")).unwrap();
    let signal = folder.join("data/standby.signal");
    copy_owner(&folder.join("data/PG_VERSION"), &signal);
    let server = start(folder).await;
    let pool = PgPool::connect(&server.url("postgres")).await.unwrap();
    let promoted: bool = sqlx::query_scalar("select pg_promote()").fetch_one(&pool).await.unwrap();
    assert!(promoted);
    pool.close().await;
    server
}

/// Creates a file that belongs to whom the other belongs to.
fn copy_owner(like: &Path, file: &Path) {
    copy(like, file);
    std::fs::write(file, "").unwrap();
}

#[tokio::test]
async fn after_a_failover_that_lost_events_nothing_is_skipped_and_nothing_repeated() {
    let (folder, projections) = (tempfile::tempdir().unwrap(), support::database().await);
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let place = folder.path().join("events");
    let server = start(&place).await;
    server.create_database("shop", None).await.unwrap();
    let url = server.url("shop");
    let events = PgPool::connect_lazy(&url).unwrap();
    migrate_event_store(&events, support::SCHEMA).await.unwrap();

    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let elsewhere = format!("[projections]\nurl = '{}'\n", projections.url);
    let installation = Installation::new(&url, &elsewhere);
    declare_all(&installation, &receiver);
    let daemon = installation.start_daemon();
    reach(&projections.pool, append(&events, 33).await).await;
    server.stop().await;
    copy(&place.join("data"), &folder.path().join("copy"));
    let server = start(&place).await;
    reach(&projections.pool, append(&events, 97).await).await;

    server.stop().await;
    let server = fail_over(&place, &folder.path().join("copy")).await;
    for name in ALL {
        let status = diverges(&installation, name).await;
        assert_eq!(status["diverged"]["last_common"], 33, "{status}");
        assert_eq!(status["position"], 130);
    }
    // The head passes the positions. Ids may have been lost with the old server.
    while append(&events, 50).await < 200 {}
    assert_eq!(numbers(&projections.pool, NOTES).await, range(1, 130));
    assert_eq!(receiver.numbers().len(), 130);

    installation.espctl(&["reset", "notes", "--yes"]).await.printed();
    installation.espctl(&["reset", "listed", "--yes"]).await.printed();
    installation.espctl(&["reset", "hook", "--to", "33", "--yes"]).await.printed();
    let appended = numbers(&events, "select id from espd.events order by id").await;
    for name in ALL {
        installation.espctl(&["wait", name, "--timeout", "60s"]).await.printed();
    }
    assert_eq!(numbers(&projections.pool, NOTES).await, appended);
    assert_eq!(numbers(&projections.pool, LISTED).await, appended);
    let sent = 130 + appended.len() - 33;
    eventually("all of them", async || (receiver.numbers().len() == sent).then_some(())).await;
    daemon.stop().await;
    server.stop().await;
}

async fn reach(projections: &PgPool, last: i64) {
    for name in ALL {
        reaches(projections, name, last).await;
    }
}
