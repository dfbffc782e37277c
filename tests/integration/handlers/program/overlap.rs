//! What happens while a program is at work: the next events are read, and what it has answered is carried out.

use std::path::Path;

use sqlx::PgPool;
use uuid::Uuid;

use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::Installation;
use crate::support::{self, Database};

/// Notes each event, and stops before some of them until there is a file of their number.
const HALTING: &str = r#"
import json, os, sys, time

halts = [int(number) for number in sys.argv[1:]]

def say(message):
    print(json.dumps(message))

sys.stdin.readline()
say({"ready": 1})
sys.stdout.flush()
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        if event["id"] in halts:
            sys.stdout.flush()
            open(f"at-{event['id']}", "w").close()
            while not os.path.exists(f"past-{event['id']}"):
                time.sleep(0.005)
        say({"done": event["id"], "actions": [{"upsert": "noted", "row": {"event_id": event["id"]}}]})
    say({"end": batch["batch"]})
    sys.stdout.flush()
"#;

/// A projector whose program stops before these events.
fn declare(db: &Database, keys: &str, halts: &[i64]) -> Installation {
    let installation = Installation::new(&db.url, "");
    std::fs::write(installation.path().join("processors/halting.py"), HALTING).unwrap();
    let halts: String = halts.iter().map(|id| format!(", '{id}'")).collect();
    installation.declare(
        "noted",
        &format!(
            "[projector]\nname = 'noted'\nevents = ['A']\ncommand = ['python3', 'halting.py'{halts}]\n{keys}\n\
             [projector.tables]\nnoted = 'event_id bigint primary key'\n"
        ),
    );
    installation
}

async fn halts_at(installation: &Installation, id: i64) {
    let file = installation.path().join(format!("processors/at-{id}"));
    eventually("a program that waits", async || file.exists().then_some(())).await;
}

fn let_pass(folder: &Path, id: i64) {
    std::fs::write(folder.join(format!("processors/past-{id}")), "").unwrap();
}

/// Waits until the last statement of the batch that is open, and at rest, was one like this.
async fn rests_after(pool: &PgPool, pattern: &str) {
    let statement = "select count(*) = 1 from pg_stat_activity where application_name = 'espd: noted'
                     and datname = current_database() and state = 'idle in transaction' and query like $1";
    let look = async || {
        let rests: bool = sqlx::query_scalar(statement).bind(pattern).fetch_one(pool).await.unwrap();
        rests.then_some(())
    };
    eventually(&format!("a batch that rests after {pattern}"), look).await;
}

async fn noted(pool: &PgPool) -> Vec<i64> {
    sqlx::query_scalar("select event_id from noted order by 1").fetch_all(pool).await.unwrap()
}

/// The batches of a program have 64, 128 and then 256 events.
const SIZE: &str = "batch_size = 256\nbatch_time = '60s'";

#[tokio::test]
async fn the_next_events_are_read_while_the_program_works_and_those_deleted_meanwhile_are_not_handled() {
    let db = support::database().await;
    assert_eq!(append(&db.pool, 1_000).await, 1_000);
    let installation = declare(&db, SIZE, &[400]);
    let daemon = installation.start_daemon();
    halts_at(&installation, 400).await;
    assert_eq!(position(&db.pool, "noted").await, 192);
    // The batch ends at 448. Which event is the last one at or below 704 is what is asked after the next ones were read.
    rests_after(&db.pool, "%-- find_last_events%(2, 704)%").await;
    let gone: Uuid = sqlx::query_scalar("select aggregate_id from espd.events where id = 500")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    let pool = db.pool.clone();
    // It waits for the batch that is open, and no other batch begins before it has ended.
    let deleting = tokio::spawn(async move {
        let delete = sqlx::query("select espd.delete_aggregate($1, 'me', 'a wish')").bind(gone);
        delete.execute(&pool).await.unwrap();
    });
    eventually("a deletion that waits", async || {
        let statement = "select exists (select from pg_stat_activity where wait_event_type = 'Lock'
                         and datname = current_database() and query like '%delete_aggregate%')";
        sqlx::query_scalar::<_, bool>(statement).fetch_one(&db.pool).await.unwrap().then_some(())
    })
    .await;
    let_pass(&installation.path(), 400);
    deleting.await.unwrap();
    reaches(&db.pool, "noted", 1_000).await;
    let expected: Vec<i64> = (1..=1_000).filter(|id| *id != 500).collect();
    assert_eq!(noted(&db.pool).await, expected);
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_read_ahead_is_limited_in_bytes_and_small_batches_read_nothing_ahead() {
    let db = support::database().await;
    let statement = "insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), 'A', 1, jsonb_build_object('n', n, 'text', repeat('x', 50000))
        from generate_series(1, 1000) as n";
    sqlx::query(statement).execute(&db.pool).await.unwrap();
    let installation = declare(&db, SIZE, &[100, 400]);
    let daemon = installation.start_daemon();
    halts_at(&installation, 100).await;
    rests_after(&db.pool, "%-- find_last_events%(2, 192)%").await;
    let_pass(&installation.path(), 100);
    halts_at(&installation, 400).await;
    // 84 events have 4 MiB.
    rests_after(&db.pool, "%-- find_last_events%(2, 532)%").await;
    let_pass(&installation.path(), 400);
    reaches(&db.pool, "noted", 1_000).await;
    assert_eq!(noted(&db.pool).await, (1..=1_000).collect::<Vec<i64>>());
    daemon.stop().await;
}

#[tokio::test]
async fn a_large_batch_is_written_while_the_program_works() {
    let db = support::database().await;
    assert_eq!(append(&db.pool, 6_000).await, 6_000);
    // Batches of 64 and 128, and two each of 256, 512 and 1,024. The next one has 2,048 events, of which the program has answered
    // more than 1,000 when it stops.
    let installation = declare(&db, "batch_size = 5000\nbatch_time = '60s'", &[5_500]);
    let daemon = installation.start_daemon();
    halts_at(&installation, 5_500).await;
    assert_eq!(position(&db.pool, "noted").await, 3_776);
    rests_after(&db.pool, "release savepoint%").await;
    let_pass(&installation.path(), 5_500);
    reaches(&db.pool, "noted", 6_000).await;
    assert_eq!(noted(&db.pool).await, (1..=6_000).collect::<Vec<i64>>());
    daemon.stop().await;
}
