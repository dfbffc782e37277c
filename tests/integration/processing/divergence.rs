//! An event store that goes back, by a failover, a restore or by hand, is not taken for the one that was followed.

mod elsewhere;
mod in_process;
mod last_common;
mod partitions;
mod same_server;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support::facts::eventually;
use crate::support::program::Installation;
use crate::support::receiver::Receiver;

/// A projector in SQL, one by a program, and a webhook.
const ALL: [&str; 3] = ["notes", "listed", "hook"];

/// What the projectors have handled.
const NOTES: &str = "select event_id from notes order by place";
const LISTED: &str = "select event_id from listed order by event_id";

/// A program that lists the events that it is handed.
const LISTING: &str = r#"
import json, sys
def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
sys.stdin.readline()
say({"ready": 1})
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        say({"done": event["id"], "actions": [{"upsert": "listed", "row": {"event_id": event["id"]}}]})
    say({"end": batch["batch"]})
"#;

fn declare_all(installation: &Installation, receiver: &Receiver) {
    installation.declare_notes("notes", "");
    std::fs::write(installation.path().join("processors/listing.py"), LISTING).unwrap();
    installation.declare(
        "listed",
        "[projector]\nname = 'listed'\nevents = ['A']\ncommand = ['python3', 'listing.py']\n\
         [projector.tables]\nlisted = 'event_id bigint primary key'\n",
    );
    installation.declare(
        "hook",
        &format!(
            "[reactor]\nname = 'hook'\nstart = 'beginning'\nevents = ['A']\n\
             [reactor.webhook]\nurl = '{}'\nallow_private = true\n",
            receiver.url()
        ),
    );
}

/// Waits until `espctl status` shows that the processor has stopped because of its store, and returns what it shows.
async fn diverges(installation: &Installation, name: &str) -> Value {
    let what = format!("{name} to stop");
    eventually(&what, async || {
        Some(installation.status(name).await).filter(|status| status["state"] == "diverged")
    })
    .await
}

async fn numbers(pool: &PgPool, query: &'static str) -> Vec<i64> {
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

async fn execute(pool: &PgPool, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(pool).await.unwrap();
}

fn range(first: i64, last: i64) -> Vec<i64> {
    (first..=last).collect()
}
