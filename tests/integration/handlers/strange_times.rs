//! Times that the program's own type does not have: they arrive as PostgreSQL writes them, wherever the handlers are.

use serde_json::Value;
use sqlx::PgPool;

use crate::support;
use crate::support::facts::{append, reaches};
use crate::support::program::Installation;
use crate::support::receiver::{Receiver, Reply};

/// What an event may have been created at, and what JSON says of it.
const TIMES: [(&str, &str); 5] = [
    ("infinity", "infinity"),
    ("-infinity", "-infinity"),
    ("0044-03-15 00:00:00+00 BC", "0044-03-15T00:00:00+00:00 BC"),
    ("294275-01-01 00:00:00+00", "294275-01-01T00:00:00+00:00"),
    ("2026-01-31 12:00:00.25+00", "2026-01-31T12:00:00.250Z"),
];

/// Appends an event for each of the times, and returns the last id.
async fn append_strange(pool: &PgPool) -> i64 {
    let last = append(pool, TIMES.len() as i64).await;
    for (number, (time, _)) in (1..).zip(TIMES) {
        let update = "update espd.events set created_at = $1::text::timestamptz where (body->>'n')::int = $2";
        sqlx::query(update).bind(time).bind(number).execute(pool).await.unwrap();
    }
    last
}

fn written() -> Vec<&'static str> {
    TIMES.iter().map(|(_, written)| *written).collect()
}

#[tokio::test]
async fn programs_and_espctl_get_the_times_as_they_are() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let worker = "import sys, json\nprint(json.dumps({'ready': 1}), flush=True)\nsys.stdin.readline()\n\
        for line in sys.stdin:\n    batch = json.loads(line)\n    for event in batch['events']:\n        \
        print(json.dumps({'done': event['id'], 'actions': [{'upsert': 'times', 'row': {'id': event['id'], 'time': \
        event['created_at']}}]}))\n    print(json.dumps({'end': batch['batch']}), flush=True)\n";
    std::fs::write(installation.path().join("processors/times.py"), worker).unwrap();
    installation.declare(
        "times",
        "[projector]\nname = 'times'\nevents = ['A']\ncommand = ['python3', 'times.py']\n\
         [projector.tables]\ntimes = 'id bigint primary key, time text'\n",
    );
    let last = append_strange(&db.pool).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "times", last).await;
    daemon.stop().await;
    let times: Vec<String> =
        sqlx::query_scalar("select time from times order by id").fetch_all(&db.pool).await.unwrap();
    assert_eq!(times, written());

    let events = installation.espctl(&["events", "--json"]).await.json_lines();
    let times: Vec<&str> = events.iter().map(|event| event["created_at"].as_str().unwrap()).collect();
    assert_eq!(times, written());
    let shown = installation.espctl(&["events"]).await.printed();
    for (line, word) in
        shown.lines().zip(["  infinity  ", "  -infinity  ", " BC  ", "  294275-01-01", "  2026-01-31 12:00"])
    {
        assert!(line.contains(word), "{line}");
    }
}

#[tokio::test]
async fn receivers_get_the_times_as_they_are() {
    let db = support::database().await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let installation = Installation::new(&db.url, "");
    installation.declare(
        "hook",
        &format!(
            "[reactor]\nname = 'hook'\nstart = 'beginning'\nevents = ['A']\n[reactor.webhook]\nurl = '{}'\n\
             allow_private = true\n",
            receiver.url()
        ),
    );
    let last = append_strange(&db.pool).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "hook", last).await;
    daemon.stop().await;
    let mut received = receiver.received();
    received.sort_by_key(|request| request.n());
    let times: Vec<String> =
        received.iter().map(|request| request.header("ce-time").replace("%20", " ")).collect();
    assert_eq!(times, written());
}

#[tokio::test]
async fn projections_in_another_database_get_the_times_as_they_are() {
    let (store, projections) = (support::database().await, support::database().await);
    let settings = format!("[projections]\nurl = '{}'\n", projections.url);
    let installation = Installation::new(&store.url, &settings);
    installation.declare(
        "times",
        "[projector]\nname = 'times'\n[projector.tables]\ntimes = 'id bigint primary key, time timestamptz'\n\
         [[projector.on]]\nevents = ['A']\nsql = 'insert into times values (event.id, event.created_at)'\n",
    );
    let last = append_strange(&store.pool).await;
    let daemon = installation.start_daemon();
    reaches(&projections.pool, "times", last).await;
    daemon.stop().await;
    let query = "select time::text from times order by id";
    let kept: Vec<String> = sqlx::query_scalar(query).fetch_all(&projections.pool).await.unwrap();
    let query = "select created_at::text from espd.events order by id";
    let stored: Vec<String> = sqlx::query_scalar(query).fetch_all(&store.pool).await.unwrap();
    assert_eq!(kept, stored);
    // The event of a dead letter is shown with its time as well.
    let statuses: Value = installation.espctl(&["status", "--json"]).await.json();
    assert_eq!(statuses[0]["state"], "stopped", "{statuses}");
}
