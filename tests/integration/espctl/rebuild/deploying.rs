//! Daemons with different declarations of one version, as in a deploy, and one that is frozen.

use super::unattended::{CHANGED, SLOW, building};
use super::*;

#[tokio::test]
async fn a_corrected_declaration_of_the_same_version_is_built_after_a_restart_also_where_the_wrong_one_was_approved()
 {
    for is_approved in [false, true] {
        let (fixture, daemon) = building().await;
        fixture.declare(2, CHANGED);
        fixture.reload().await;
        fixture.waits("of 5 rows of orders").await;
        daemon.stop().await;
        if is_approved {
            fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
        }
        fixture.declare(2, WIDER);
        let said = fixture.espctl(&["status"]).await.printed();
        assert!(said.contains("from other tables or handlers than this configuration declares"), "{said}");
        let refused = fixture.espctl(&["rebuild", "approve", "orders"]).await.complained(1);
        assert!(refused.contains("not as this configuration declares version 2"), "{refused}");
        let daemon = fixture.installation.start_daemon();
        fixture.serves(2).await;
        assert_eq!(fixture.fact("select array_agg(twice order by id) from orders").await, "{2,4,6,8,10}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn of_two_daemons_that_declare_one_version_otherwise_the_second_builds_once_the_first_has_ended() {
    let (fixture, first) = building().await;
    fixture.declare(2, CHANGED);
    fixture.reload().await;
    let other = Installation::new(&fixture.db.url, "[runner]\npoll_interval_max = '50ms'\n");
    other.declare("orders", &declaration(2, WIDER.0, WIDER.1));
    let waiting = fixture.waits("of 5 rows of orders").await;
    let second = other.start_daemon();
    eventually("it has looked several times", async || {
        (second.logged("looked for versions to build").len() > 3).then_some(())
    })
    .await;
    assert_eq!(
        fixture.installation.status("orders").await["rebuild"]["started_at"],
        waiting["rebuild"]["started_at"]
    );
    let refused = other.espctl(&["rebuild", "approve", "orders"]).await.complained(1);
    assert!(refused.contains("not as this configuration declares version 2"), "{refused}");
    first.stop().await;
    fixture.serves(2).await;
    assert_eq!(fixture.fact("select array_agg(twice order by id) from orders").await, "{2,4,6,8,10}");
    second.stop().await;
}

#[tokio::test]
async fn who_watches_is_told_that_the_version_has_gone_live_from_another_declaration() {
    let (fixture, daemon) = building().await;
    fixture.declare(2, CHANGED);
    fixture.reload().await;
    fixture.waits("of 5 rows of orders").await;
    fixture.espctl(&["rebuild", "approve", "orders"]).await.printed();
    fixture.serves(2).await;
    let watch = fixture.espctl(&["rebuild", "orders", "--watch"]).await.printed();
    assert!(watch.ends_with("version 2 of orders is live\n"), "{watch}");
    let other = Installation::new(&fixture.db.url, "");
    other.declare("orders", &declaration(2, CHANGED.0, &CHANGED.1.replace("% 2", "% 3")));
    let watch = other.espctl(&["rebuild", "orders", "--watch"]).await.complained(1);
    assert!(watch.contains("is live, and was built from another declaration"), "{watch}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_frozen_while_it_builds_keeps_no_version_from_going_live() {
    let (fixture, first) = building().await;
    fixture.declare(2, (WIDER.0, &SLOW.replace("0.3", "2")));
    fixture.reload().await;
    eventually("it is built", async || {
        (fixture.installation.status("orders").await["rebuild"]["is_running"] == true).then_some(())
    })
    .await;
    first.signal(Signal::SIGSTOP);
    let second = fixture.installation.start_daemon();
    // Its row is not renewed any more.
    let is_silent = format!(
        "update espd.workers set updated_at = updated_at - interval '1 minute' where owner_label like '%:{}'",
        first.pid()
    );
    eventually("the second one ends its session", async || {
        fixture.run(&is_silent).await;
        second
            .log()
            .iter()
            .any(|line| line.to_string().contains("has ended the session of a daemon"))
            .then_some(())
    })
    .await;
    fixture.serves(2).await;
    first.signal(Signal::SIGCONT);
    eventually("the first one has noticed", async || {
        let log = first.log();
        let has_noticed = |line: &serde_json::Value| {
            let line = line.to_string();
            line.contains("a version could not be built") || line.contains("somebody has given up a version")
        };
        log.iter().any(has_noticed).then_some(())
    })
    .await;
    let status = fixture.installation.status("orders").await;
    assert!(status["rebuild"].is_null(), "nothing is told of what is over: {status}");
    first.stop().await;
    second.stop().await;
}
