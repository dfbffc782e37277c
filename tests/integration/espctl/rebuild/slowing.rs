//! A build works less while commits of others take longer beside it, and says why.

use tokio::time::sleep;

use super::shortage::rests;
use super::*;
use crate::support::facts::within;

/// A commit waits for a tenth of a second while another transaction writes, as on a disk that is busy.
const SLOWED: [(&str, &str); 4] =
    [("fsync", "on"), ("synchronous_commit", "on"), ("commit_siblings", "1"), ("commit_delay", "100000")];

#[tokio::test]
async fn a_build_works_less_while_commits_are_slowed_by_it_and_as_before_when_they_are_not() {
    let server = support::server_with(&SLOWED).await;
    let db = support::database_on(&server).await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nshare = 0.5\n";
    let fixture = Fixture { installation: Installation::new(&db.url, settings), db };
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 3_000).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 3_000).await;

    let slow =
        "perform pg_sleep(0.02); insert into orders values (event.id, event.id % 3, 'a', 2 * event.id)";
    fixture.declare(2, (WIDER.0, slow));
    let outcome = fixture.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let scene = async {
        rests(&fixture, "half of the commits took 1").await;
        let status = fixture.espctl(&["status"]).await.printed();
        assert!(status.contains("instead of 50 % (`share` in [rebuild])"), "{status}");
        fixture.run("alter system set commit_delay = 0").await;
        // Other tests use the disk as well.
        fixture.run("alter system set fsync = off").await;
        fixture.run("select pg_reload_conf()").await;
        // Anything may slow commits a little, but nothing for ever.
        let mut least = share(&fixture).await;
        within(Duration::from_secs(400), "the build works more again", async || {
            let now = share(&fixture).await;
            let has_grown = now > least;
            least = least.min(now);
            has_grown.then_some(())
        })
        .await;
    };
    tokio::select! {
        () = scene => {}
        () = keep_appending(&fixture.db.pool) => {}
    }
    let last = append(&fixture.db.pool, 1).await;
    reaches(&fixture.db.pool, "orders", last).await;
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'orders'").await, "1");
    daemon.stop().await;
}

/// How much of the time the build works, in percent, as status has it.
async fn share(fixture: &Fixture) -> f64 {
    let status = fixture.installation.status("orders").await;
    let because = status["rebuild"]["rests_because"].as_str().unwrap_or_default().to_owned();
    let (_, told) = because.split_once("so it works ").unwrap_or_default();
    told.split(' ').next().and_then(|share| share.parse().ok()).unwrap_or(f64::MAX)
}

/// Slowly, so that hardly anything is written while the build rests.
async fn keep_appending(pool: &PgPool) {
    loop {
        append(pool, 1).await;
        sleep(Duration::from_millis(200)).await;
    }
}
