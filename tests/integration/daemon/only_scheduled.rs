//! A daemon of a store whose events are scheduled, and that has no processors.

use nix::sys::signal::Signal;

use crate::support;
use crate::support::facts::eventually;
use crate::support::program::Installation;

const LOG: &str = "[log]\nformat = 'json'\nlevel = 'info,espd=debug'\n";

const EVENT: &str = "{\"aggregate_id\":\"00000000-0000-0000-0000-000000000001\",\"type\":\"A\",\"body\":1}\n";

#[tokio::test]
async fn a_daemon_without_processors_appends_what_is_scheduled() {
    let db = support::database().await;
    let installation = Installation::without_database("");
    let store = format!("{LOG}[event_store]\nurl = '{}'\n", db.url);
    let configure = |text: &str| std::fs::write(installation.path().join("espd.toml"), text).unwrap();
    configure(&store);
    let printed = installation.espctl(&["check"]).await.printed();
    assert!(printed.contains("a daemon appends scheduled events only"), "{printed}");
    installation.espctl_fed(&["append", "--at", "2020-01-01T00:00:00Z"], EVENT).await.printed();

    let daemon = installation.start_daemon();
    let said =
        "no processor is declared: the daemon appends the events that are scheduled, and does nothing else";
    daemon.says(said).await;
    eventually("the scheduled event", async || {
        let query = sqlx::query_scalar::<_, i64>("select count(*) from espd.events");
        (query.fetch_one(&db.pool).await.unwrap() == 1).then_some(())
    })
    .await;
    daemon.signal(Signal::SIGHUP);
    daemon.says("the configuration was read again: nothing has changed").await;

    // It may get processors, and does not lose them by a mistake.
    installation.declare_notes("notes", "");
    configure(&format!("include = ['processors/*.toml']\n{store}"));
    daemon.signal(Signal::SIGHUP);
    daemon.child("notes", 1).await;
    configure(&store);
    daemon.signal(Signal::SIGHUP);
    let refused = daemon.says("the configuration was read again and is wrong, keeping the old one").await;
    assert!(refused["fault"].as_str().unwrap().contains("no processor is declared"), "{refused}");
    daemon.stop().await;
}
