//! A failover to a standby, after which the former primary comes back as one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use espd::Config;
use espd::embedded::{EmbeddedPostgres, Options};
use espd::event::NewEvent;
use espd::store::{EventStore as _, PostgresEventStore};
use nix::sys::signal::{Signal, kill};
use serde_json::value::RawValue;
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;

async fn start(folder: &Path) -> EmbeddedPostgres {
    let options = Options { durable: false, max_connections: 100, ..Options::default() };
    EmbeddedPostgres::start_at(folder, options).await.unwrap()
}

/// A copy of the data of a server that has ended, as a standby.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let copy = |from: &Path, to: &Path| {
        let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(copied.success());
    };
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    copy(&from.join("data"), &to.join("data"));
    // It belongs to whom the data belong to.
    let signal = to.join("data/standby.signal");
    copy(&to.join("data/PG_VERSION"), &signal);
    std::fs::write(signal, "").unwrap();
}

fn socket(server: &EmbeddedPostgres) -> String {
    server.url("shop").split_once("?host=").unwrap().1.to_owned()
}

const SETTINGS: &str = "[runner]\npoll_interval_max = '50ms'\n";

#[tokio::test]
async fn a_former_primary_that_comes_back_is_used_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let former = start(&one).await;
    former.create_database("shop", None).await.unwrap();
    let installation = Installation::new(&former.url("shop"), "");
    installation.declare_notes("notes", "");
    installation.espctl(&["migrate"]).await.printed();
    former.stop().await;
    copy(&one, &two);
    let (former, promoted) = (start(&one).await, start(&two).await);
    let pool = PgPool::connect(&promoted.url("shop")).await.unwrap();
    sqlx::query("select pg_promote()").execute(&pool).await.unwrap();

    // Both are there and take writes, and the former one is named first.
    let url = format!("{},{}", former.url("shop"), socket(&promoted));
    let installation = Installation::new(&url, SETTINGS);
    installation.declare_notes("notes", "");
    let config = Config::load(&installation.path().join("espd.toml")).unwrap();
    let store = PostgresEventStore::from_config(&config).unwrap();
    let body = || RawValue::from_string("{}".to_owned()).unwrap();
    store.append(&[NewEvent::new(Uuid::new_v4(), "A", body())]).await.unwrap();
    let last = append(&pool, 5).await;
    assert_eq!(last, 6, "the one of the application is among them");
    let daemon = installation.start_daemon();
    reaches(&pool, "notes", last).await;
    assert_eq!(installation.status("notes").await["position"], last);
    let doctor = installation.espctl(&["doctor", "--json"]).await;
    let told = doctor.stdout.contains("takes writes as well: it was the primary before a failover");
    assert!(told, "{doctor:?}");
    // So does a worker that starts anew.
    kill(daemon.child("notes", 1).await, Signal::SIGKILL).unwrap();
    let last = append(&pool, 5).await;
    reaches(&pool, "notes", last).await;

    // Nor while the new one is gone.
    let dead = PgPool::connect(&former.url("shop")).await.unwrap();
    append(&dead, 5).await;
    let promoted = {
        pool.close().await;
        promoted.stop().await;
        eventually("the reason", async || {
            let told =
                |line: &serde_json::Value| line.to_string().contains("it was the primary before a failover");
            daemon.log().iter().any(told).then_some(())
        })
        .await;
        start(&two).await
    };
    let pool = PgPool::connect(&promoted.url("shop")).await.unwrap();
    let last = append(&pool, 5).await;
    reaches(&pool, "notes", last).await;
    let of_former: i64 =
        sqlx::query_scalar("select count(*) from espd.trackers").fetch_one(&dead).await.unwrap();
    assert_eq!(of_former, 0, "nothing was handled there");
    dead.close().await;
    daemon.stop().await;
    former.stop().await;
    promoted.stop().await;
}
