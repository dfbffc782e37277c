//! `espctl dead-letters`, as people and scripts use it.

use espd::internals::retry::OnFailure;
use serde_json::json;
use uuid::Uuid;

use super::{add, dead_letters, operator_log, setting_aside};
use crate::processing::runner::{DIVIDE, Life, notes, row_with};
use crate::support;
use crate::support::Database;
use crate::support::facts::reaches;
use crate::support::program::Installation;

/// What a program may rely on.
const FIELDS: [&str; 15] = [
    "instance",
    "processor",
    "partition",
    "event_id",
    "event_uuid",
    "event_type",
    "aggregate_id",
    "reason",
    "blocks",
    "failure",
    "attempts",
    "set_aside_at",
    "tried_at",
    "retry_requested_at",
    "replaying",
];

/// A processor without a daemon, whose events 1 (failed) and 2 (waiting) of one aggregate, and 3 (failed) of another
/// are set aside.
async fn parked() -> (Database, Installation) {
    let db = support::database().await;
    add(&db.pool, 1, 0).await;
    add(&db.pool, 1, 2).await;
    let last = add(&db.pool, 2, 0).await;
    let life = Life::begin(&db, notes(DIVIDE), setting_aside(&db, OnFailure::Park));
    reaches(&db.pool, "notes", last).await;
    life.end().await;
    row_with(&db.pool, "nobody runs it", |row| !row.owned).await;
    let installation = Installation::new(&db.url, "");
    (db, installation)
}

#[tokio::test]
async fn dead_letters_are_listed_by_whatever_they_have_in_common() {
    let (db, installation) = parked().await;
    let list = async |arguments: &[&str]| {
        let all =
            installation.espctl(&[&["dead-letters", "list", "--json"], arguments].concat()).await.json();
        let ids = all.as_array().unwrap().iter().map(|dead_letter| dead_letter["event_id"].as_i64().unwrap());
        ids.collect::<Vec<_>>()
    };
    let (x, y) = (Uuid::from_u128(1).to_string(), Uuid::from_u128(2).to_string());
    for (arguments, expected) in [
        (&[][..], &[1, 2, 3][..]),
        (&["notes"], &[1, 2, 3]),
        (&["notes", "--after", "1"], &[2, 3]),
        (&["--limit", "2"], &[1, 2]),
        (&["--type", "A"], &[1, 2, 3]),
        (&["--type", "B"], &[]),
        (&["--aggregate", &x], &[1, 2]),
        (&["--aggregate", &y, "--error", "BY zero"], &[3]),
        (&["--error", "22012"], &[1, 3]),
        (&["--error", "it's 100%"], &[]),
        (&["--older-than", "1h"], &[]),
        (&["--older-than", "0ms"], &[1, 2, 3]),
    ] {
        assert_eq!(list(arguments).await, expected, "{arguments:?}");
    }
    let all = installation.espctl(&["dead-letters", "list", "--json"]).await.json();
    for dead_letter in all.as_array().unwrap() {
        let fields: Vec<&str> = dead_letter.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(
            FIELDS.iter().all(|field| fields.contains(field)) && fields.len() == FIELDS.len(),
            "{dead_letter}"
        );
    }
    let table = installation.espctl(&["dead-letters", "list"]).await.printed();
    assert!(
        table.trim_start().starts_with("PROCESSOR") && table.contains("division by zero [22012]"),
        "{table}"
    );
    assert!(table.contains("waits behind an earlier event of its aggregate"), "{table}");
    assert!(table.contains("`espctl dead-letters show notes 3`"), "{table}");
    let mut narrow = installation.espctl_command(&["dead-letters", "list"]);
    let narrow = String::from_utf8(narrow.env("COLUMNS", "80").output().unwrap().stdout).unwrap();
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    let short = installation.espctl(&["dead-letters", "list", "-n", "2"]).await.printed();
    assert!(short.contains("1 more: raise --limit"), "{short}");
    let unknown = installation.espctl(&["dead-letters", "list", "nots"]).await.complained(1);
    assert!(unknown.contains("no processor nots; there are notes"), "{unknown}");
    sqlx::query("delete from espd.dead_letters").execute(&db.pool).await.unwrap();
    assert_eq!(installation.espctl(&["dead-letters", "list"]).await.printed(), "no dead letters\n");
}

#[tokio::test]
async fn a_dead_letter_is_shown_with_its_failure_its_event_and_what_waits_behind_it() {
    let (db, installation) = parked().await;
    let show = async |event: &str| installation.espctl(&["dead-letters", "show", "notes", event]).await;
    let first = show("1").await.printed();
    for words in [
        "event 1 (A) of aggregate 00000000-0000-0000-0000-000000000001, set aside for notes ",
        "error   division by zero [22012]",
        "place   0.toml:10",
        "tried   1 times",
        "behind  1 later of its aggregate: 2",
        "\"body\": {\"n\": 0}",
        "then run `espctl dead-letters retry notes 1`; or discard the event: `espctl dead-letters discard notes 1`.",
    ] {
        assert!(first.contains(words), "{words}\n{first}");
    }
    let second = show("2").await.printed();
    assert!(
        second.contains("waits   behind event 1")
            && second.contains("retry notes 1` has them handled in order"),
        "{second}"
    );
    let json = installation.espctl(&["dead-letters", "show", "notes", "2", "--json"]).await.json();
    let line = [&json["waits_for"], &json["waiting"], &json["waiting_event_ids"], &json["failure"]];
    assert_eq!(line, [&json!(1), &json!(0), &json!([]), &json!(null)]);
    assert_eq!((&json["event"]["id"], &json["event"]["type"]), (&json!(2), &json!("A")), "{json}");

    // The event may be gone, and the dead letter is still there.
    sqlx::query("delete from espd.events where id = 3").execute(&db.pool).await.unwrap();
    assert!(show("3").await.printed().contains("no longer in the store"));
    let none = show("4").await.complained(1);
    assert!(none.contains("event 4 is not a dead letter of notes"), "{none}");
}

#[tokio::test]
async fn a_change_has_to_name_what_it_is_about() {
    let (db, installation) = parked().await;
    for arguments in [
        &["retry", "notes"][..],
        &["discard", "notes", "--yes"],
        &["retry", "notes", "1", "--all"],
        &["discard", "--all"],
        &["retry", "notes", "--older-than", "soon"],
        &["list", "--limit", "0"],
    ] {
        let outcome = installation.espctl(&[&["dead-letters"], arguments].concat()).await;
        assert_eq!(outcome.code, Some(2), "{arguments:?} {outcome:?}");
    }
    for arguments in [&["retry", "notes", "--all"][..], &["discard", "notes", "--type", "A"]] {
        let complaint = installation.espctl(&[&["dead-letters"], arguments].concat()).await.complained(1);
        assert!(
            complaint.starts_with("error: nothing was done: add --yes") && complaint.contains("Continue?\n"),
            "{complaint}"
        );
    }
    for (arguments, words) in [
        (&["retry", "nots", "--all", "--yes"][..], "no processor nots; there are notes"),
        (&["discard", "nots", "--all", "--yes"], "no processor nots; there are notes"),
        (&["retry", "notes", "7"], "event 7 is not a dead letter of notes"),
        (&["discard", "notes", "7", "--yes"], "event 7 is not a dead letter of notes"),
    ] {
        let complaint = installation.espctl(&[&["dead-letters"], arguments].concat()).await.complained(1);
        assert!(complaint.contains(words), "{complaint}");
    }
    let none =
        installation.espctl(&["dead-letters", "retry", "notes", "--type", "B", "--yes"]).await.printed();
    assert_eq!(none, "no dead letters of notes to retry: nothing was done\n");
    let none =
        installation.espctl(&["dead-letters", "discard", "notes", "--type", "B", "--yes"]).await.printed();
    assert_eq!(none, "no dead letters of notes match: nothing was done\n");
    assert_eq!((dead_letters(&db.pool).await.len(), operator_log(&db.pool).await), (3, vec![]));
}

#[tokio::test]
async fn a_retry_says_why_it_does_not_happen_now() {
    let (db, installation) = parked().await;
    let retry = async || {
        installation.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.complained(75)
    };
    let said = retry().await;
    assert_eq!(
        said,
        "error: requested a retry of 3 dead letters of notes: no daemon runs the processor now; the next one that does handles them\n"
    );
    let list = installation.espctl(&["dead-letters", "list"]).await.printed();
    assert_eq!(list.matches("retry requested").count(), 3, "{list}");
    installation.espctl(&["pause", "notes"]).await.printed();
    assert!(retry().await.contains("the processor is paused; run `espctl resume notes`"));
    let unwaited = ["dead-letters", "retry", "notes", "--all", "--yes", "--wait", "0s"];
    assert!(installation.espctl(&unwaited).await.printed().contains("the processor is paused"));
    // What waits is not handled before what it waits for, however it is selected.
    sqlx::query("update espd.dead_letters set retry_requested_at = null").execute(&db.pool).await.unwrap();
    let outcome =
        installation.espctl(&["dead-letters", "retry", "notes", "--error", "nothing", "--yes"]).await;
    assert_eq!(outcome.printed(), "no dead letters of notes to retry: nothing was done\n");
    sqlx::query("update espd.dead_letters set event_type = 'B' where event_id = 2")
        .execute(&db.pool)
        .await
        .unwrap();
    let outcome = installation.espctl(&["dead-letters", "retry", "notes", "--type", "B", "--yes"]).await;
    assert!(outcome.stderr.contains("1 of these wait behind earlier events"), "{outcome:?}");
    assert_eq!(outcome.printed(), "no dead letters of notes to retry: nothing was done\n");
}
