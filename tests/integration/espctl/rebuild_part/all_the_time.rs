//! `[verify]`: slices are verified all the time, and what is not verified is told.

use super::*;
use crate::support::proxy::Proxy;

impl Fixture {
    /// Has whoever reads the configuration of the installation verify all aggregates in a day.
    fn verifies(&self) {
        let path = self.installation.path().join("espd.toml");
        let settings = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{settings}\n[verify]\nshare = 1.0\n")).unwrap();
    }

    /// Sets an event of account 2 aside that no handler can handle, and has a later one wait behind it.
    async fn set_aside(&self) {
        let bad = format!(
            "insert into espd.events (aggregate_id, type, version, body) values
               ('{two}', 'Paid', 5, '{{\"n\": \"x\"}}'), ('{two}', 'Paid', 6, '{{\"n\": 7}}')",
            two = id(2)
        );
        self.run(&bad).await;
        eventually("it fails", async || {
            (self.installation.status("accounts").await["state"] == "retrying").then_some(())
        })
        .await;
        let park = ["dead-letters", "park", "accounts", "--event", "21"];
        self.installation.espctl(&park).await.printed();
        reaches(&self.projections, "accounts", 22).await;
    }
}

#[tokio::test]
async fn of_two_daemons_that_find_the_same_slice_due_one_verifies_it() {
    let (fixture, daemon) = Fixture::running(false).await;
    daemon.stop().await;
    fixture.verifies();
    let proxy = Proxy::start(&fixture._databases[0].url).await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[verify]\nshare = 1.0\n";
    let behind = Installation::new(&proxy.url(), settings);
    behind.declare("accounts", &declaration("", HANDLERS));
    let held = || proxy.tally().held;

    proxy.hold(Some("-- lock_rebuild"));
    let second = behind.start_daemon();
    proxy.wait_until(|tally| tally.held > 0).await;
    let first = fixture.installation.start_daemon();
    first.says("verified a slice: the rows are what their events say").await;
    let recorded = "select verified_at from espd.verifications";
    let at = fixture.fact(recorded).await;
    // It looks once more under the lock, lets go of that, and looks again after a pause.
    for text in ["-- list_verifications", "-- unlock_rebuild", "-- list_verifications"] {
        let before = held();
        proxy.hold(Some(text));
        proxy.wait_until(|tally| tally.held > before).await;
        assert_eq!(fixture.fact(recorded).await, at, "{text}");
    }
    assert_eq!(second.logged("verified a slice: the rows are what their events say").len(), 0);
    proxy.hold(None);
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn what_the_serving_version_has_set_aside_keeps_nobody_from_verifying_the_rest() {
    let (fixture, daemon) = Fixture::running(false).await;
    fixture.set_aside().await;
    for selection in [vec![], vec!["--sample", "100"], vec!["--aggregate", &id(2)]] {
        let arguments: Vec<&str> = ["verify", "accounts"].into_iter().chain(selection).collect();
        let said = fixture.installation.espctl(&arguments).await.printed();
        assert!(said.contains("accounts: nothing differs, "), "{said}");
    }
    // What is looked at before a version is raised sets the event aside as well.
    fixture.installation.espctl(&["rebuild", "accounts", "--dry-run"]).await.printed();
    fixture.run(&format!("update accounts set total = 1 where id = '{}'", id(3))).await;
    let outcome = fixture.installation.espctl(&["verify", "accounts"]).await;
    assert!(
        outcome.code == Some(1) && outcome.stdout.contains("0 added, 0 gone, 1 changed (total in 1)"),
        "{outcome:?}"
    );
    daemon.stop().await;
    fixture.verifies();
    let daemon = fixture.installation.start_daemon();
    let told = daemon.says("rows are not what their events say: `espctl verify accounts` shows them").await;
    assert!(told["differing"] == 1 && told["keys"].as_str().unwrap().contains(&id(3)), "{told}");
    assert_eq!(fixture.fact("select count(*) from espd.dead_letters").await, "2", "they are as they were");
    daemon.stop().await;
}

#[tokio::test]
async fn rows_without_an_aggregate_are_verified_with_all_others() {
    let (fixture, daemon) = Fixture::running(false).await;
    let notes = "[projector]\nname = 'notes'\n[projector.tables]\nnotes = 'account uuid, n bigint'\n\
        [[projector.on]]\nevents = ['Paid']\n\
        sql = \"insert into notes values (event.aggregate_id, (event.body->>'n')::bigint)\"\n";
    fixture.installation.declare("notes", notes);
    fixture.installation.espctl(&["reload"]).await.printed();
    reaches(&fixture.projections, "notes", 20).await;
    fixture.run("insert into notes values (null, 77)").await;
    let sampled = fixture.installation.espctl(&["verify", "notes", "--sample", "100"]).await;
    assert!(sampled.code == Some(1) && sampled.stdout.contains("(,77)"), "{sampled:?}");
    daemon.stop().await;
    fixture.verifies();
    let daemon = fixture.installation.start_daemon();
    let told = daemon.says("rows are not what their events say: `espctl verify notes` shows them").await;
    assert!(told["keys"].as_str().unwrap().contains("(,77)"), "{told}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_not_verified_is_told_by_the_log_the_doctor_the_status_and_the_metrics() {
    let (fixture, daemon) = Fixture::running(false).await;
    daemon.stop().await;
    let by_amount = "[projector]\nname = 'by_amount'\n\
        [projector.tables]\nby_amount = 'n bigint primary key, events bigint not null'\n\
        [[projector.on]]\nevents = ['Paid']\n\
        sql = \"insert into by_amount values ((event.body->>'n')::bigint, 1)\"\n";
    fixture.installation.declare("by_amount", by_amount);
    let path = fixture.installation.path().join("espd.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{settings}\n[admin]\nlisten = '127.0.0.1:0'\n")).unwrap();
    fixture.verifies();
    // An event that the serving version has handled, and nobody could handle again.
    fixture.run("alter table espd.events disable trigger user; update espd.events set body = '{\"n\": \"x\"}' where id = 20").await;
    let daemon = fixture.installation.start_daemon();
    let told = daemon.says("`[verify]` does not verify this projector").await;
    assert!(told["level"] == "INFO" && told["processor"] == "by_amount", "{told}");
    let failed = daemon.says("could not verify a slice").await;
    assert!(failed["error"].as_str().unwrap().contains("fails at event 20"), "{failed}");
    let unverified =
        "select string_agg(processor || ' ' || lasting, ', ' order by processor) from espd.unverified";
    eventually("both are recorded", async || {
        (fixture.fact(unverified).await == "accounts false, by_amount true").then_some(())
    })
    .await;
    let doctor = fixture.installation.espctl(&["doctor"]).await;
    let said = doctor.stdout + &doctor.stderr;
    assert!(
        said.contains(
            "does not verify by_amount: the rows of single aggregates of by_amount cannot be told apart"
        ) && said.contains("does not verify accounts: version 1 of accounts fails at event 20"),
        "{said}"
    );
    fixture.run("update espd.unverified set since = since - interval '2 hours'").await;
    let said = fixture.installation.espctl(&["status"]).await.printed();
    assert!(
        said.contains("`[verify]` stands still for accounts: version 1 of accounts fails at event 20")
            && !said.contains("for by_amount"),
        "{said}"
    );
    let listens = daemon.says("the admin endpoint listens").await;
    let client = crate::admin::client::Client::new(listens["url"].as_str().unwrap());
    let metrics = client.get("/metrics").await.body;
    for sample in [
        "espd_verify_blocked{processor=\"accounts\"} 1",
        "espd_verify_blocked{processor=\"by_amount\"} 0",
        "espd_verify_unsuitable{processor=\"by_amount\"} 1",
    ] {
        assert!(metrics.contains(sample), "{metrics}");
    }
    daemon.stop().await;
}
