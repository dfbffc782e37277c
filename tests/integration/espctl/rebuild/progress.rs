//! How far a version is that is being built: in `status`, in metrics, and for who watches.

use super::*;

#[tokio::test]
async fn the_progress_of_a_build_is_told_by_status_metrics_and_watch_until_it_is_over() {
    let db = support::database().await;
    let settings =
        "[runner]\npoll_interval_max = '50ms'\n[admin]\nlisten = '127.0.0.1:0'\n[rebuild]\nparallelism = 0\n";
    let fixture = Fixture { installation: Installation::new(&db.url, settings), db };
    fixture.declare(1, FIRST);
    append(&fixture.db.pool, 5).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "orders", 5).await;
    let listens = daemon.says("the admin endpoint listens").await;
    let client = crate::admin::client::Client::new(listens["url"].as_str().unwrap());

    let nothing = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(nothing.contains("no version of orders is being built"), "{nothing}");

    let slow = "perform pg_sleep(0.6); insert into orders values (event.id, event.id % 3, 'a', 2 * event.id)";
    fixture.declare(2, (WIDER.0, slow));
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "orders", "--yes"]));
    let status = eventually("status tells of the build", async || {
        let status = fixture.installation.status("orders").await;
        (status["rebuild"]["version"] == 2 && status["rebuild"]["is_running"] == true).then_some(status)
    })
    .await;
    let build = &status["rebuild"];
    assert_eq!((build["phase"].as_str(), build["target"].as_i64()), (Some("replaying"), Some(5)), "{build}");
    assert!(build["bytes"].as_i64().is_some_and(|bytes| bytes >= 8_192), "{build}");
    let said = fixture.espctl(&["status"]).await.printed();
    assert!(said.contains("Version 2 of orders handles events (by ") && said.contains(" of 5 ("), "{said}");
    let metrics = client.get("/metrics").await.body;
    assert!(metrics.contains("espd_rebuild_running{processor=\"orders\",version=\"2\"} 1"), "{metrics}");
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await;
    assert!(
        watch.code == Some(0)
            && watch.stdout.contains("version 2 of orders ")
            && watch.stdout.contains(" of 5 ("),
        "{watch:?}"
    );
    assert!(watch.stdout.ends_with("version 2 of orders is live\n"), "{watch:?}");
    assert_eq!(rebuild.ended().await.code(), Some(0));
    let after = fixture.installation.status("orders").await;
    assert_eq!((after["version"].as_i64(), after["rebuild"].is_null()), (Some(2), true), "{after}");

    fixture.declare(3, FIRST);
    fixture.rebuild_without_answer().await;
    fixture.espctl(&["rebuild", "abort", "orders"]).await.printed();
    let aborted = fixture.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(aborted.contains("version 3 of orders was given up"), "{aborted}");
    daemon.stop().await;
}
