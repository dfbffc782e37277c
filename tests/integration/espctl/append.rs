//! `espctl append`: lines in, positions out, all or none.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support;
use crate::support::program::Installation;

const ONE: &str = "00000000-0000-4000-8000-000000000001";
const OTHER: &str = "00000000-0000-4000-8000-000000000002";

/// A line with the required keys and some others.
fn line(aggregate_id: &str, others: Value) -> String {
    let mut line = json!({"aggregate_id": aggregate_id, "type": "A", "body": {"n": 1}});
    line.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
    format!("{line}\n")
}

async fn stored(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from espd.events").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn the_input_is_one_transaction_and_prints_its_positions() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let input = [line(ONE, json!({})), "\n".into(), line(OTHER, json!({})), line(ONE, json!({}))].concat();
    let outcome = installation.espctl_fed(&["append"], &input).await;
    assert_eq!(outcome.stderr, "3 events at positions 1 to 3\n");
    assert_eq!(outcome.printed(), "1\n2\n3\n");
    let transactions: i64 = sqlx::query_scalar("select count(distinct xmin::text) from espd.events")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(transactions, 1);

    let outcome = installation.espctl_fed(&["append", "--quiet"], &line(OTHER, json!({}))).await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", "1 event at position 4\n"));
    let outcome = installation.espctl_fed(&["append"], "\n \n").await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), "no events\n"));
}

#[tokio::test]
async fn every_key_arrives_as_it_was_given() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let given = json!({
        "uuid": "00000000-0000-4000-8000-00000000000a",
        "correlation_id": "00000000-0000-4000-8000-00000000000b",
        "causation_id": "00000000-0000-4000-8000-00000000000c",
        "created_at": "2020-02-29T12:30:00.123456+02:00",
        "metadata": {"by": "ü"},
        "expected_version": 0,
        "body": {"big": 4711, "text": "\"\\ü😀"},
    });
    // A number that no float can hold; this test's JSON library would round it.
    let input = line(ONE, given.clone()).replace("4711", "123456789012345678901234567890.123");
    assert!(input.contains("567890.123"), "{input}");
    let appended = installation.espctl_fed(&["append", "--json"], &input).await.json_lines();
    assert_eq!(appended, [json!({"id": 1, "uuid": given["uuid"], "version": 1})]);

    let printed = installation.espctl(&["events", "--json"]).await.printed();
    assert!(printed.contains("123456789012345678901234567890.123"), "{printed}");
    let event: Value = serde_json::from_str(&printed).unwrap();
    for key in ["uuid", "correlation_id", "causation_id", "metadata"] {
        assert_eq!(event[key], given[key], "{key}");
    }
    assert_eq!(event["body"]["text"], given["body"]["text"]);
    assert_eq!(event["created_at"], "2020-02-29T10:30:00.123456Z");
}

#[tokio::test]
async fn a_bad_line_is_named_and_nothing_is_appended() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let fine = line(ONE, json!({}));
    let bad = [
        (line(ONE, json!({"bdy": 1})), "unknown field `bdy`"),
        ("{\"aggregate_id\": \n".into(), "EOF while parsing"),
        ("[1, 2]\n".into(), "expected"),
        (format!("{{\"aggregate_id\":\"{ONE}\",\"type\":\"A\"}}\n"), "missing field `body`"),
        (line("not-a-uuid", json!({})), "UUID parsing failed"),
        (line(ONE, json!({"expected_version": -1})), "expected_version is -1, but must be 0 or more"),
        (line(ONE, json!({"created_at": "yesterday"})), "invalid characters"),
    ];
    for (bad, message) in bad {
        let input = [&fine, &fine, &bad, &fine, &fine].map(String::as_str).concat();
        let complaint = installation.espctl_fed(&["append"], &input).await.complained(1);
        assert!(complaint.contains("nothing was appended: line 3: "), "{complaint}");
        assert!(complaint.contains(message) && !complaint.contains("at line"), "{complaint}");
    }
    let complaint = installation.espctl_fed(&["append"], &line(ONE, json!({"type": ""}))).await.complained(1);
    assert!(complaint.contains("nothing was appended: line 1: event 1: the type is empty"), "{complaint}");
    assert_eq!(stored(&db.pool).await, 0);
}

#[tokio::test]
async fn one_transaction_per_line_keeps_what_came_before_a_bad_one() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let fine = line(ONE, json!({}));
    let input = [&fine, &fine, "nonsense\n", &fine].concat();
    let outcome = installation.espctl_fed(&["append", "--each"], &input).await;
    assert_eq!(outcome.stdout, "1\n2\n");
    let complaint = outcome.complained(1);
    assert!(complaint.contains("line 3: "), "{complaint}");
    assert_eq!(stored(&db.pool).await, 2);
}

#[tokio::test]
async fn a_conflict_says_what_was_expected_and_what_is() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let input = [line(ONE, json!({})), line(ONE, json!({"expected_version": 1}))].concat();
    installation.espctl_fed(&["append"], &input).await.printed();
    for arguments in [&["append"][..], &["append", "--each"]] {
        let stale = line(ONE, json!({"expected_version": 1}));
        let complaint = installation.espctl_fed(arguments, &stale).await.complained(1);
        let message = format!("aggregate {ONE} is at version 2, not at the expected version 1");
        assert!(complaint.contains("line 1") && complaint.contains(&message), "{complaint}");
    }
    // Of several lines, it is the one with that expectation.
    let input = [
        "\n",
        &line(ONE, json!({})),
        "\n",
        &line(ONE, json!({"expected_version": 1})),
        &line(ONE, json!({})),
    ]
    .concat();
    let complaint = installation.espctl_fed(&["append"], &input).await.complained(1);
    assert!(complaint.contains("nothing was appended: line 4: aggregate"), "{complaint}");
    assert_eq!(stored(&db.pool).await, 2);
}

/// The function and this read a time alike: each recognises what the other one has stored.
#[tokio::test]
async fn a_fraction_of_a_microsecond_is_rounded_as_postgresql_rounds_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let fractions = ["0000005", "0000015", "0000025", "1234575", "999999500", "9999994", "123456501"];
    let lines: Vec<String> = (1..)
        .zip(fractions)
        .map(|(n, fraction): (u128, _)| {
            let time = format!("2024-12-31T23:59:59.{fraction}Z");
            line(ONE, json!({"uuid": uuid::Uuid::from_u128(n), "created_at": time}))
        })
        .collect();
    let append = "select id from espd.append($1::jsonb)";
    for line in &lines {
        sqlx::query(append)
            .bind(serde_json::from_str::<Value>(line).unwrap())
            .execute(&db.pool)
            .await
            .unwrap();
    }
    let repeated = installation.espctl_fed(&["append", "--each"], &lines.concat()).await.printed();
    assert_eq!((repeated.as_str(), stored(&db.pool).await), ("1\n2\n3\n4\n5\n6\n7\n", 7));
}

#[tokio::test]
async fn appending_the_same_uuids_again_stores_nothing_twice() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let input = [line(ONE, json!({"uuid": ONE})), line(OTHER, json!({"uuid": OTHER}))].concat();
    let first = installation.espctl_fed(&["append", "--json"], &input).await.json_lines();
    let again = installation.espctl_fed(&["append", "--json"], &input).await.json_lines();
    assert_eq!((first.len(), &first), (2, &again));
    let changed = line(ONE, json!({"uuid": ONE, "body": 2}));
    let complaint = installation.espctl_fed(&["append"], &changed).await.complained(1);
    assert!(complaint.contains(&format!("uuid {ONE} is stored already")), "{complaint}");
    assert_eq!(stored(&db.pool).await, 2);
    // The same lines and one more are another append, unless each is one.
    let longer = [input, line(OTHER, json!({}))].concat();
    let complaint = installation.espctl_fed(&["append"], &longer).await.complained(1);
    assert!(complaint.contains("--each appends each line by itself"), "{complaint}");
    assert_eq!(stored(&db.pool).await, 2);
    installation.espctl_fed(&["append", "--each"], &longer).await.printed();
    assert_eq!(stored(&db.pool).await, 3);
}

#[tokio::test]
async fn more_lines_than_are_sent_at_a_time_are_still_one_transaction() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let many = line(ONE, json!({})).repeat(2_500);
    let complaint =
        installation.espctl_fed(&["append", "-q"], &format!("{many}nonsense\n")).await.complained(1);
    assert!(complaint.contains("line 2501"), "{complaint}");
    assert_eq!(stored(&db.pool).await, 0);
    installation.espctl_fed(&["append", "-q"], &many).await.printed();
    assert_eq!(stored(&db.pool).await, 2_500);
}

#[tokio::test]
async fn events_are_appended_even_if_no_one_reads_their_positions() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let mut command = installation.espctl_command(&["append", "--each"]);
    let mut espctl =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(espctl.stdout.take());
    let mut stdin = espctl.stdin.take().unwrap();
    stdin.write_all(line(ONE, json!({})).repeat(20).as_bytes()).unwrap();
    drop(stdin);
    assert_eq!(espctl.wait().unwrap().code(), Some(0));
    assert_eq!(stored(&db.pool).await, 20);
}

#[tokio::test]
async fn an_array_an_object_of_many_lines_and_a_strange_type_are_named() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let array = format!("[{}]", line(ONE, json!({})).trim());
    let positional = format!("[\"{ONE}\", \"A\", {{}}, null, null, null, null, null, null]");
    for (input, words) in [
        (array.as_str(), "line 1: an array, expected one object per line"),
        (positional.as_str(), "line 1: an array, expected one object per line"),
        ("[\n{}\n]", "line 1: an array, "),
        ("{\n  \"type\": \"A\"\n}", "one object per line, as `jq -c .` writes it"),
        (
            &line(ONE, json!({"type": "A\nB"})),
            "line 1: the type \"A\\nB\" contains the control character '\\n'",
        ),
        (&line(ONE, json!({"type": "A\u{1b}[2J"})), "the type \"A\\u{1b}[2J\" contains"),
    ] {
        let complaint = installation.espctl_fed(&["append"], input).await.complained(1);
        assert!(complaint.contains(words), "{input}: {complaint}");
    }
    assert_eq!(stored(&db.pool).await, 0);
}

#[tokio::test]
async fn a_session_that_may_only_read_is_told_where_that_comes_from() {
    let db = support::database().await;
    let read_only = format!("alter database {} set default_transaction_read_only = on", db.name);
    sqlx::query(sqlx::AssertSqlSafe(read_only)).execute(&db.pool).await.unwrap();
    let installation = Installation::new(&db.url, "");
    for arguments in [&["append"][..], &["append", "--each"]] {
        let complaint = installation.espctl_fed(arguments, &line(ONE, json!({}))).await.complained(1);
        assert!(complaint.contains("default_transaction_read_only"), "{complaint}");
        assert!(complaint.contains("cannot execute INSERT in a read-only transaction"), "{complaint}");
    }
}

#[tokio::test]
async fn a_condition_of_events_refuses_what_was_decided_too_late() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let seat = || line(&uuid::Uuid::new_v4().to_string(), json!({"tags": ["course:1", "student:2"]}));
    installation.espctl_fed(&["append"], &seat()).await.printed();
    installation.espctl_fed(&["append"], &line(ONE, json!({"tags": ["student:2"]}))).await.printed();
    let both = ["events", "--tag", "course:1", "--tag", "student:2"];
    assert_eq!(installation.espctl(&both).await.printed().lines().count(), 1);
    assert_eq!(installation.espctl(&["events", "--tag", "student:2"]).await.printed().lines().count(), 2);
    assert_eq!(installation.espctl(&["events", "--tag", "course:2"]).await.printed(), "");

    let condition = ["events", "--tag", "course:1", "--type", "A", "--condition"];
    let unchanged = installation.espctl(&condition).await.printed();
    assert_eq!(unchanged.trim(), r#"{"items":[{"tags":["course:1"],"types":["A"]}],"token":{"course:1":1}}"#);
    let file = installation.path().join("unchanged.json");
    std::fs::write(&file, &unchanged).unwrap();
    let by_file = ["append", "--if", file.to_str().unwrap()];
    installation.espctl_fed(&by_file, &[seat(), seat()].concat()).await.printed();
    for arguments in [&by_file[..], &["append", "--if", unchanged.trim()]] {
        let complaint = installation.espctl_fed(arguments, &seat()).await.complained(1);
        assert!(complaint.contains("event 3 (A) came on tag course:1"), "{complaint}");
    }
    let empty = installation.espctl_fed(&["append", "--if", r#"{"items":[{"types":["A"]}]}"#], &seat()).await;
    assert!(empty.complained(2).contains("tags"));
    assert_eq!(stored(&db.pool).await, 4);
}

#[tokio::test]
async fn a_key_that_is_taken_is_named_with_its_owner() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let claim = |id, key: Value| line(id, json!({"claims": {"email": key}}));
    installation.espctl_fed(&["append"], &claim(ONE, json!(["ann", "bob"]))).await.printed();
    let complaint = installation.espctl_fed(&["append"], &claim(OTHER, json!("ann"))).await.complained(1);
    assert!(complaint.contains(&format!("email ann belongs to aggregate {ONE}")), "{complaint}");
    let release = line(ONE, json!({"releases": {"email": "ann"}}));
    let input = [release, claim(OTHER, json!("ann"))].concat();
    installation.espctl_fed(&["append"], &input).await.printed();
}
