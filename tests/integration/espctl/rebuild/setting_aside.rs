//! Events that a new version sets aside, and the one that serves does not.

use serde_json::Value;

use super::*;

/// Opens an account, or gives it a nickname, which version 1 knows nothing of.
const OPENED: &str = "insert into people (id, name) values (event.aggregate_id, event.body->>'name')";
const NAMED: &str = "update people set nick = (event.body->>'name')::int where id = event.aggregate_id";

fn declared(version: i32, more: &str) -> String {
    let named = if version == 1 {
        String::new()
    } else {
        format!("[[projector.on]]\nevents = ['Named']\nsql = \"{NAMED}\"\n")
    };
    format!(
        "[projector]\nname = 'people'\nversion = {version}\n{more}\n\
         [projector.retry]\ninitial = '50ms'\nmax_attempts = 1\non_failure = 'park'\n\
         [projector.tables]\npeople = 'id uuid primary key, name text, nick int'\n\
         [[projector.on]]\nevents = ['Opened']\nsql = \"{OPENED}\"\n\
         [[projector.on]]\nevents = ['Paid']\nsql = \"update people set name = 'paid' where id = event.aggregate_id\"\n{named}"
    )
}

/// Four people, of whom the first so many have a nickname, which is no number.
async fn running(settings: &str, named: i64) -> (Fixture, Program) {
    let db = support::database().await;
    let settings = format!("[runner]\npoll_interval_max = '50ms'\n{settings}");
    let fixture = Fixture { installation: Installation::new(&db.url, &settings), db };
    fixture.installation.declare("people", &declared(1, ""));
    happens(&fixture, "Opened", 4, 1).await;
    happens(&fixture, "Named", named, 2).await;
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "people", 4 + named).await;
    (fixture, daemon)
}

/// Something happens to the first so many people.
async fn happens(fixture: &Fixture, event_type: &str, people: i64, version: i64) {
    let sql = format!(
        "insert into espd.events (aggregate_id, type, version, body)
         select md5(n::text)::uuid, '{event_type}', {version}, jsonb_build_object('name', 'abc')
         from generate_series(1, {people}) as n order by n"
    );
    fixture.run(&sql).await;
}

const SERVES: &str = "select version from espd.trackers where name = 'people'";
const LETTERS: &str = "select count(*) from espd.dead_letters where processor = 'people'";

impl Fixture {
    async fn deploys_people(&self, text: &str) {
        self.installation.declare("people", text);
        self.espctl(&["reload"]).await.printed();
    }

    async fn becomes(&self, query: &str, wanted: &str) {
        eventually(&format!("{query} is {wanted}"), async || {
            (self.fact(query).await == wanted).then_some(())
        })
        .await;
    }

    async fn waits_because(&self, because: &str) -> Value {
        eventually("the version waits", async || {
            let status = self.installation.status("people").await;
            let told =
                status["rebuild"]["blocked_because"].as_str().is_some_and(|told| told.contains(because));
            told.then_some(status)
        })
        .await
    }
}

#[tokio::test]
async fn a_dry_run_and_a_rebuild_say_which_events_would_be_dead_letters() {
    let (fixture, daemon) = running("[rebuild]\nparallelism = 0\n", 3).await;
    fixture.installation.declare("people", &declared(2, ""));
    let dry = fixture.espctl(&["rebuild", "people", "--dry-run"]).await;
    assert!(dry.code == Some(1), "{dry:?}");
    for text in [
        "people: no row differs, 4 rows were compared",
        "people: 3 events would be dead letters that are none now (3 of type Named)",
        "! event 5 (Named) of aggregate c4ca4238-a0b9-2382-0dcc-509a6f75849b: invalid input syntax for type integer",
    ] {
        assert!(dry.stdout.contains(text), "{text}: {dry:?}");
    }
    assert!(dry.stderr.contains("version 2 of people would change what version 1 shows"), "{dry:?}");
    let json = fixture.espctl(&["rebuild", "people", "--dry-run", "--json"]).await;
    let found: Value = serde_json::from_str(&json.stdout).unwrap();
    let letters = &found["dead_letters"];
    assert_eq!((&letters["number"], &letters["examples"][2]["event_id"]), (&3.into(), &7.into()), "{found}");
    assert_eq!(json.code, Some(1));

    // Nobody has agreed.
    let asked = fixture.espctl(&["rebuild", "people"]).await;
    assert!(asked.code == Some(1) && asked.stdout.contains("3 events would be dead letters"), "{asked:?}");
    assert_eq!(fixture.fact(SERVES).await, "1");
    assert_eq!(fixture.fact("select state from espd.rebuilds where processor = 'people'").await, "differs");
    fixture.espctl(&["rebuild", "people", "--yes"]).await.printed();
    assert_eq!(fixture.fact(LETTERS).await, "3");

    // What the serving version has set aside as well is no difference, and nor is what it has handled.
    fixture.installation.declare("people", &declared(3, ""));
    let same = fixture.espctl(&["rebuild", "people", "--dry-run"]).await;
    assert!(same.code == Some(0) && same.stdout.starts_with("people: nothing differs"), "{same:?}");
    let verified = fixture.espctl(&["rebuild", "people", "--yes"]).await;
    assert!(verified.code == Some(0), "{verified:?}");
    let verified = fixture.espctl(&["verify", "people"]).await;
    assert!(verified.code == Some(0), "{verified:?}");
    // Nothing goes live here, and those that wait are counted too.
    assert!(
        verified.stderr.contains("3 events cannot be handled, or wait behind such ones")
            && !verified.stderr.contains("once it is live"),
        "{verified:?}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_version_that_sets_events_aside_waits_for_an_approval_which_is_of_those_that_were_found() {
    let (fixture, daemon) = running("", 2).await;
    fixture.deploys_people(&declared(2, "")).await;
    let status =
        fixture.waits_because("2 events would be dead letters that are none now (2 of type Named)").await;
    assert!(status["advice"].to_string().contains("2 of type Named"), "{status}");
    let watch = fixture.espctl(&["rebuild", "people", "--watch"]).await.complained(1);
    assert!(watch.contains("2 of type Named"), "{watch}");
    let found = "select difference #>> '{dead_letters,number}' from espd.rebuilds where processor = 'people'";
    assert_eq!(fixture.fact(found).await, "2");
    // The version that serves handles what comes.
    happens(&fixture, "Paid", 1, 3).await;
    fixture.becomes("select count(*) from people where name = 'paid'", "1").await;
    assert_eq!(fixture.fact(SERVES).await, "1");

    // Somebody agrees to what was found, and then more is, than events explain.
    daemon.stop().await;
    fixture.espctl(&["rebuild", "approve", "people"]).await.printed();
    fixture
        .run(
            "insert into espd.dead_letters (processor, version, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks)
             select 'people$next', 2, 0, id, uuid, type, aggregate_id::text, 'failed', false from espd.events where type = 'Opened'",
        )
        .await;
    let daemon = fixture.installation.start_daemon();
    fixture.waits_because("of type Opened").await;
    let approved = "select approved_at is not null from espd.rebuilds where processor = 'people'";
    assert_eq!(fixture.fact(approved).await, "false");
    fixture.run("delete from espd.dead_letters where event_type = 'Opened'").await;
    fixture.espctl(&["rebuild", "approve", "people"]).await.printed();
    fixture.becomes(SERVES, "2").await;
    // One more waits behind what has failed.
    assert_eq!(fixture.fact(LETTERS).await, "3");

    // Who wants it whatever differs gets it.
    fixture.run("delete from espd.dead_letters").await;
    fixture.deploys_people(&declared(3, "approve = 'always'")).await;
    fixture.becomes(SERVES, "3").await;
    assert_eq!(fixture.fact(LETTERS).await, "3");
    // And who always wants to be asked is told what he is asked.
    fixture.run("delete from espd.dead_letters").await;
    fixture.deploys_people(&declared(4, "approve = 'manual'")).await;
    fixture.waits_because("approve = \"manual\"; 3 events would be dead letters").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_as_old_as_that_of_the_version_before() {
    let (fixture, daemon) = running("[rebuild]\nparallelism = 0\n", 0).await;
    let old = "insert into espd.dead_letters
          (processor, version, partition, event_id, event_uuid, event_type, aggregate_id, reason, blocks, attempts, set_aside_at)
        select 'people', 1, 0, 5, uuid, type, aggregate_id, 'failed', false, 1, '2001-02-03' from espd.events where id = 5";
    for (way, version) in [("swap", 2), ("merge", 3)] {
        if version == 2 {
            happens(&fixture, "Named", 1, 2).await;
            reaches(&fixture.db.pool, "people", 5).await;
            fixture.run(old).await;
        }
        fixture.installation.declare("people", &declared(version, ""));
        fixture.espctl(&["rebuild", "people", "--yes", "--go-live", way]).await.printed();
        let letter = format!(
            "select set_aside_at::date from espd.dead_letters where processor = 'people' and version = {version}"
        );
        assert_eq!(fixture.fact(&letter).await, "2001-02-03", "{way}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_dead_letters_of_a_version_that_does_not_serve_are_shown_to_whoever_asks_for_them_and_stay() {
    let (fixture, daemon) = running("[rebuild]\nparallelism = 0\n", 1).await;
    fixture.installation.declare("people", &declared(2, ""));
    fixture.espctl(&["rebuild", "people", "--yes", "--go-live", "swap"]).await.printed();
    fixture.espctl(&["reload"]).await.printed();
    fixture.espctl(&["rollback", "people", "--yes"]).await.printed();
    let listed = fixture.espctl(&["dead-letters", "list"]).await.printed();
    assert_eq!(listed, "no dead letters\n");
    let listed = fixture.espctl(&["dead-letters", "list", "people$2"]).await.printed();
    assert!(listed.contains("Named"), "{listed}");
    let shown = fixture.espctl(&["dead-letters", "show", "people$2", "5"]).await.printed();
    assert!(
        shown.contains("a version of people that is kept") && !shown.contains("retry people$2"),
        "{shown}"
    );
    let discarded =
        fixture.espctl(&["dead-letters", "discard", "people$2", "5", "--yes"]).await.complained(1);
    assert!(discarded.contains("people$2 is a version of people that is kept or being built"), "{discarded}");
    fixture.espctl(&["rollback", "people", "--yes"]).await.printed();
    assert_eq!(fixture.fact(LETTERS).await, "1");
    daemon.stop().await;
}
