//! Workers that do not keep to the protocol, each in its own way.

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};

use super::{SETTINGS, counted, declare_counting, events, heal};
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;

/// What the workers do at one of the events, and what is said of it.
const AT_AN_EVENT: [(&str, &str); 16] = [
    ("no_json", "the program wrote a line that is no message: Traceback (most recent call last):"),
    ("no_text", "the program wrote a line that is not UTF-8: "),
    ("half_a_line", "the program ended in the middle of a line: {\\\"done\\\":"),
    ("unknown_event", "which is not in the batch: event {id} was due"),
    ("out_of_order", "event {id} was due"),
    ("twice", "event {id} was due"),
    ("ends_early", "the program ended the batch without an answer to event {id}"),
    ("unknown_table", "\"nothing\" is not a table of the processor: unknown_table, unknown_table_total"),
    ("unknown_column", "table unknown_column has no column \"nothing\": it has event_id, place"),
    ("bad_row", "new row for relation \"bad_row\" violates check constraint"),
    ("bad_read", "the program asked for a row that it cannot have: invalid input syntax for type bigint"),
    ("emits", "projector emits emits Undeclared: only reactors emit"),
    ("exits", "the program ended with exit code 0"),
    ("crashes", "the program ended with signal SIGKILL"),
    ("crashes_unflushed", "the program ended with signal SIGKILL"),
    ("gives_up", "no title"),
];

/// The same, of workers that make it hard for others.
const LOUD_AT_AN_EVENT: [(&str, &str); 6] = [
    ("endless_line", "the program wrote a line of more than 16777216 bytes"),
    ("stuck", "the program gave no answer within 2 s (command_timeout)"),
    ("chatters", "the program gave no answer within 2 s (command_timeout)"),
    ("floods", "the program ended with exit code 3"),
    ("closes", "the program closed its standard output"),
    ("hoards", "more than the 100663296 of command_memory_max"),
];

/// What the workers do before any event, and what is said of it. No event is blamed.
const BEFORE_ANY: [(&str, &str); 5] = [
    ("eager", "\"python3\" wrote {\\\"done\\\": 1} before it said {\"ready\":1}"),
    ("other_version", "\"python3\" speaks version 2 of the protocol, this espd version 1"),
    ("ready_twice", "the program wrote `ready` again before it answered an event"),
    ("mute", "\"python3\" gave no answer within 10 s"),
    (
        "stillborn",
        "\"python3\" ended with exit code 1 before it said {\"ready\":1}; it wrote to standard error: no such module: todos",
    ),
];

#[derive(Debug)]
struct Tracker {
    name: String,
    position: i64,
    last_error: Option<Value>,
    outage: Option<Value>,
}

async fn trackers(pool: &PgPool) -> Vec<Tracker> {
    let query = sqlx::query("select name, position, last_error, outage from espd.trackers order by name");
    let tracker = |row: PgRow| Tracker {
        name: row.get("name"),
        position: row.get("position"),
        last_error: row.get("last_error"),
        outage: row.get("outage"),
    };
    query.map(tracker).fetch_all(pool).await.unwrap()
}

/// Waits until so many processors are in this kind of trouble, and returns all trackers.
async fn in_trouble(pool: &PgPool, processors: usize, is_troubled: fn(&&Tracker) -> bool) -> Vec<Tracker> {
    eventually("trouble for every worker", async || {
        let trackers = trackers(pool).await;
        (trackers.iter().filter(is_troubled).count() >= processors).then_some(trackers)
    })
    .await
}

fn has_failed(tracker: &&Tracker) -> bool {
    tracker.last_error.is_some()
}

fn is_out(tracker: &&Tracker) -> bool {
    tracker.outage.is_some()
}

#[tokio::test]
async fn every_wrong_answer_names_its_event_and_costs_nothing() {
    name_their_event_and_cost_nothing(&AT_AN_EVENT).await;
}

#[tokio::test]
async fn every_loud_answer_names_its_event_and_costs_nothing() {
    name_their_event_and_cost_nothing(&LOUD_AT_AN_EVENT).await;
}

/// Has all of them misbehave at one event of many, in one process with one that behaves, and then behave.
async fn name_their_event_and_cost_nothing(cases: &[(&str, &str)]) {
    let db = support::database().await;
    // So many that are started again and again would leave nothing for the others.
    let settings = "[retry]\nstrategy = 'constant'\ninitial = '5s'\n[runner]\nisolation = 'task'\n";
    let installation = Installation::new(&db.url, settings);
    for (mode, _) in cases {
        let keys = match *mode {
            "hoards" => "command_memory_max = '96MiB'",
            "stuck" | "chatters" => "command_timeout = '2s'",
            _ => "",
        };
        declare_counting(&installation, mode, mode, keys);
    }
    declare_counting(&installation, "well", "well", "");
    append(&db.pool, 1_000).await;
    let ids = events(&db.pool).await;
    let poison = ids[499];

    let daemon = installation.start_daemon();
    let trackers = in_trouble(&db.pool, cases.len(), has_failed).await;
    for (name, words) in cases {
        let tracker = trackers.iter().find(|tracker| tracker.name == *name).unwrap();
        let error = tracker.last_error.as_ref().unwrap();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&words.replace("{id}", &poison.to_string())), "{name}: {message}");
        assert_eq!(error["event_id"], poison, "{tracker:?}");
        assert_eq!(tracker.position, poison - 1, "{tracker:?}");
        assert_eq!(counted(&db.pool, name).await, ids[..499], "{name}");
        // What a program said last often tells why.
        let detail = error["detail"].as_str().unwrap_or_default();
        assert!(*name != "gives_up" || detail == "at line 7", "{error}");
        assert!(*name != "floods" || detail.starts_with("www"), "{error}");
    }
    reaches(&db.pool, "well", ids[999]).await;

    heal(&installation);
    for (name, _) in cases {
        reaches(&db.pool, name, ids[999]).await;
        assert_eq!(counted(&db.pool, name).await, ids, "{name}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_worker_that_never_begins_is_waited_for_and_no_event_is_blamed() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{SETTINGS}[runner]\nisolation = 'task'\n"));
    for (mode, _) in BEFORE_ANY {
        declare_counting(&installation, mode, mode, "command_timeout = '1500ms'");
    }
    declare_counting(&installation, "absent", "well", "");
    let text = "[projector]\nname = 'absent'\nevents = ['A']\ncommand = ['no-such-program']\n";
    installation.declare("absent", text);
    append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    for tracker in in_trouble(&db.pool, BEFORE_ANY.len() + 1, is_out).await {
        let absent = ("absent", "could not start \"no-such-program\": there is no such program; ");
        let (_, words) = *BEFORE_ANY.iter().find(|(mode, _)| *mode == tracker.name).unwrap_or(&absent);
        let outage = tracker.outage.as_ref().unwrap_or_else(|| panic!("{tracker:?}"));
        let message = outage["message"].as_str().unwrap();
        assert!(message.contains(words), "{}: {message}", tracker.name);
        assert!(tracker.last_error.is_none() && tracker.position == 0, "{tracker:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_worker_that_never_reads_holds_nothing_up_for_longer_than_is_allowed() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_counting(&installation, "unread", "never_reads", "command_timeout = '1s'");
    // More than a pipe holds.
    append(&db.pool, 2_000).await;
    let ids = events(&db.pool).await;
    let daemon = installation.start_daemon();
    let trackers = in_trouble(&db.pool, 1, has_failed).await;
    let error = trackers[0].last_error.as_ref().unwrap();
    assert_eq!(error["event_id"], ids[0], "{trackers:?}");
    heal(&installation);
    reaches(&db.pool, "unread", ids[1_999]).await;
    assert_eq!(counted(&db.pool, "unread").await, ids);
    daemon.stop().await;
}

#[tokio::test]
async fn a_worker_that_ends_the_wrong_batch_is_refused() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_counting(&installation, "other", "other_batch", "");
    append(&db.pool, 100).await;
    let ids = events(&db.pool).await;
    let daemon = installation.start_daemon();
    let trackers = in_trouble(&db.pool, 1, has_failed).await;
    let error = trackers[0].last_error.as_ref().unwrap();
    assert_eq!(error["event_id"], ids[0], "{trackers:?}");
    assert!(error["message"].as_str().unwrap().contains("the program ended batch"), "{error:?}");
    assert_eq!(counted(&db.pool, "other").await, Vec::<i64>::new());
    heal(&installation);
    reaches(&db.pool, "other", ids[99]).await;
    assert_eq!(counted(&db.pool, "other").await, ids);
    daemon.stop().await;
}
