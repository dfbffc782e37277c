//! Handlers of a program and in Rust in shares: each worker has a child process, or instances, of its own.

use super::shares::EVENTS;
use super::*;

const SETTINGS: &str = "[runner]\npoll_interval_max = '50ms'\n[rebuild]\nparallelism = 0\nworkers = 2\n";

async fn begin() -> Fixture {
    let db = support::database().await;
    let fixture = Fixture { installation: Installation::new(&db.url, SETTINGS), db };
    fixture.append_all().await;
    fixture
}

/// One share is where the serving version is, and the other one has not come to event 6,000.
async fn halfway(fixture: &Fixture) {
    let halfway = format!(
        "select (select count(*) = 1 from espd.trackers where name = 'totals$next' and position = {EVENTS})
           and (select count(*) = 1 from espd.trackers where name = 'totals$next' and partition > 0 and position < 6000)"
    );
    eventually("one worker is ready, and the other one is not", async || {
        (fixture.fact(&halfway).await == "true").then_some(())
    })
    .await;
}

#[tokio::test]
async fn several_workers_make_the_tables_of_one_by_handlers_in_rust_also_after_a_kill_in_the_middle() {
    let fixture = begin().await;
    let version = |version| fixture.version(version, 1).with("KEYED", "yes");
    let daemon = version(1).start();
    reaches(&fixture.db.pool, "totals", EVENTS).await;
    let expected = fixture.outcome().await;
    let mut blocker = sqlx::PgConnection::connect(&fixture.db.url).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(88)").execute(&mut blocker).await.unwrap();
    let mut rebuild = Program::start(version(2).command(&["rebuild", "totals", "--yes"]));
    halfway(&fixture).await;
    rebuild.kill().await;
    end_waiting(&fixture, 88).await;
    sqlx::raw_sql("select pg_advisory_unlock(88)").execute(&mut blocker).await.unwrap();
    assert!(fixture.shares().await.starts_with("1 ") && fixture.shares().await.contains(";2 "));
    assert_eq!(fixture.outcome().await, expected, "the old version serves as before");

    // Whoever goes on takes the shares as they are.
    let said = eventually("the next one goes on", async || {
        let outcome = version(2).run(&["rebuild", "totals", "--yes", "--workers", "1"]).await;
        (outcome.code == Some(0)).then_some(outcome.stderr)
    })
    .await;
    assert!(said.contains("2 workers handle events at once"), "{said}");
    assert_eq!(fixture.shares().await, "");
    assert_eq!(fixture.outcome().await, expected);
    assert_eq!(fixture.fact("select version from espd.trackers where name = 'totals'").await, "2");

    // From the beginning to the end, and as a comparison.
    let said = version(3).run(&["rebuild", "totals", "--yes", "--workers", "3"]).await;
    assert!(said.code == Some(0) && said.stderr.contains("3 workers handle events at once"), "{said:?}");
    assert_eq!(fixture.outcome().await, expected);
    let verified = version(3).run(&["verify", "totals"]).await;
    assert!(verified.code == Some(0) && verified.stderr.contains("2 workers"), "{verified:?}");
    // Nobody but the author knows which rows a handler writes.
    let said = fixture.version(4, 1).run(&["rebuild", "totals", "--yes"]).await;
    assert!(said.code == Some(0) && said.stderr.contains("one worker handles all events"), "{said:?}");
    assert!(said.stderr.contains("which rows the handlers of totals write, only they know"), "{said:?}");
    assert_eq!(fixture.outcome().await, expected);
    daemon.stop().await;
}

/// What becomes of an aggregate depends on the order of its events. Some of them fail, and one waits for as long as there is a file.
const PROGRAM: &str = r#"
import json, os, sys, time

def say(message):
    print(json.dumps(message))
    sys.stdout.flush()

totals = {}

def total(event):
    id, n = event["aggregate_id"], event["body"]["n"]
    if id not in totals:
        say({"read": "totals", "key": {"id": id}})
        totals[id] = json.loads(sys.stdin.readline())["row"] or {"id": id, "events": 0, "total": 0}
    while n == 6001 and os.path.exists("blocked"):
        time.sleep(0.02)
    row = totals[id]
    row["events"] += 1
    row["last_event"] = event["id"]
    row["total"] = row["total"] * 3 % 1000003 + n
    return {"upsert": "totals", "row": row}

json.loads(sys.stdin.readline())
say({"ready": 1})
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        if event["body"]["n"] in (777, 781, 785, 789):
            say({"failed": event["id"], "error": "not this one"})
            sys.exit(0)
        answer = {"done": event["id"], "actions": [total(event)]}
        print(json.dumps(answer))
    say({"end": batch["batch"]})
"#;

fn declare(fixture: &Fixture, version: i32) {
    fixture.installation.declare(
        "totals",
        &format!(
            "[projector]\nname = 'totals'\nversion = {version}\nevents = ['A']\ncommand = ['python3', 'totals.py']\naggregate_column = 'id'\n\
             approve = 'manual'\n[projector.retry]\nmax_attempts = 1\non_failure = 'park'\n\
             [projector.tables]\ntotals = 'id uuid primary key, events bigint, last_event bigint, total bigint'\n\
             [[projector.check]]\nname = 'every total has events'\nsql = 'select id from totals where events < 1'\n"
        ),
    );
}

#[tokio::test]
async fn several_workers_make_the_tables_of_one_by_programs_also_after_a_kill_in_the_middle() {
    let fixture = begin().await;
    std::fs::write(fixture.installation.path().join("processors/totals.py"), PROGRAM).unwrap();
    declare(&fixture, 1);
    let daemon = fixture.installation.start_daemon();
    reaches(&fixture.db.pool, "totals", EVENTS).await;
    let expected = fixture.outcome().await;
    let blocked = fixture.installation.path().join("processors/blocked");
    std::fs::write(&blocked, "").unwrap();
    declare(&fixture, 2);
    let mut rebuild = Program::start(fixture.installation.espctl_command(&["rebuild", "totals", "--yes"]));
    halfway(&fixture).await;
    rebuild.kill().await;
    std::fs::remove_file(&blocked).unwrap();
    assert_eq!(fixture.outcome().await, expected, "the old version serves as before");

    let said = eventually("the next one goes on", async || {
        let outcome = fixture.espctl(&["rebuild", "totals", "--yes"]).await;
        (outcome.code == Some(0)).then_some(outcome.stderr)
    })
    .await;
    assert!(said.contains("2 workers handle events at once"), "{said}");
    assert_eq!(fixture.shares().await, "");
    assert_eq!(fixture.outcome().await, expected);
    let verified = fixture.espctl(&["verify", "totals"]).await;
    assert!(verified.code == Some(0) && verified.stderr.contains("2 workers"), "{verified:?}");
    daemon.stop().await;
}
