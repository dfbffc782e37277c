//! Texts of others: whatever is in an event's type, its body, or an error, a terminal and a log get nothing but text.

use serde_json::Value;

use crate::support;
use crate::support::facts::eventually;
use crate::support::program::Installation;

/// What a hostile writer puts into texts: clears the screen, begins a line, turns the direction.
const HOSTILE: &str = "x\u{1b}[2J\u{7}\n FORGED \u{9b}1m\u{202e}y";

/// Requires that a text has nothing in it that a terminal obeys, and no line that others have begun.
fn assert_harmless(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n' || matches!(*c, '\u{202a}'..='\u{202e}'));
    assert_eq!(bad, None, "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("FORGED")), "{text}");
    assert!(text.contains("FORGED"), "{text}");
}

#[tokio::test]
async fn nothing_that_others_write_is_more_than_text() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let log = "include = ['processors/*.toml']\n[log]\nformat = 'human'\n";
    std::fs::write(
        installation.path().join("espd.toml"),
        format!("{log}[event_store]\nurl = '{}'\n", db.url),
    )
    .unwrap();
    let handler = |name: &str, retry: &str| {
        format!(
            "[projector]\nname = '{name}'\nretry = {{ {retry} }}\n[[projector.on]]\nevents = ['*']\n\
             sql = \"perform (event.body->>'n')::int\"\n"
        )
    };
    installation.declare("parked", &handler("parked", "max_attempts = 1, on_failure = 'park'"));
    installation.declare("retrying", &handler("retrying", "initial = '1h', max = '1h'"));
    let body = serde_json::json!({ "n": HOSTILE });
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), $1, 1, $2)",
    )
    .bind(HOSTILE)
    .bind(&body)
    .execute(&db.pool)
    .await
    .unwrap();
    let daemon = installation.start_daemon();
    let status = eventually("both", async || {
        let both = installation.espctl(&["status", "--json"]).await.json();
        (both[0]["dead_letters"] == 1 && both[1]["attempts"] == 1).then_some(both)
    })
    .await;
    // Data stay as they are.
    assert_eq!(status[1]["last_error"]["event_type"], HOSTILE);
    let events: Vec<Value> = installation.espctl(&["events", "--json"]).await.json_lines();
    assert_eq!((&events[0]["type"], &events[0]["body"]), (&HOSTILE.into(), &body));

    let shown = async |arguments: &[&str]| installation.espctl(arguments).await.printed();
    for arguments in [
        &["status"][..],
        &["status", "retrying"],
        &["events"],
        &["dead-letters", "list"],
        &["dead-letters", "show", "parked", "1"],
    ] {
        assert_harmless(&shown(arguments).await);
    }
    assert_eq!(shown(&["events"]).await.lines().count(), 1);
    let list = shown(&["dead-letters", "list"]).await;
    assert_eq!(list.lines().position(|line| line.is_empty()), Some(2), "{list}");
    let log: String = daemon
        .log()
        .iter()
        .map(|line| line["message"].as_str().unwrap_or_default().to_owned() + "\n")
        .collect();
    assert_harmless(&log);
    daemon.stop().await;
}

#[tokio::test]
async fn an_error_of_postgresql_is_said_once_and_without_the_line_of_its_source() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    sqlx::raw_sql(
        "alter table espd.dead_letters rename column attempts to away;
         alter table espd.trackers rename column paused_at to gone",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    for arguments in [&["status"][..], &["dead-letters", "list"], &["pause", "x"]] {
        let complaint = installation.espctl(arguments).await.complained(1);
        assert!(
            !complaint.contains("at line") && !complaint.contains("returned from database"),
            "{complaint}"
        );
        assert_eq!(complaint.matches("does not exist").count(), 1, "{complaint}");
    }
}

#[tokio::test]
async fn a_fatal_error_is_a_line_of_the_log_where_that_is_json() {
    let db = support::empty_database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let ended = installation.espd(&["run"]).await;
    assert_ne!(ended.code, Some(0));
    let lines: Vec<Value> = ended
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let last = lines.iter().rfind(|line| line["level"] == "ERROR").unwrap_or_else(|| panic!("{lines:?}"));
    assert!(last["error"].as_str().is_some_and(|error| error.contains("espctl migrate")), "{last}");
}
