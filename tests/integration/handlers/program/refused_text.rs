//! Texts that no database keeps: they are the failure of their event, the policy applies, and the others are handled.

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use super::SETTINGS;
use crate::support;
use crate::support::facts::{append, reaches};
use crate::support::program::Installation;

/// Answers the third event with `said`, a Python expression of a message or a statement, and the others as they should be.
fn worker(said: &str) -> String {
    format!(
        "import sys, json, os\nprint(json.dumps({{'ready': 1}}), flush=True)\nsys.stdin.readline()\n\
         def say(m):\n    sys.stdout.write(m if isinstance(m, str) else json.dumps(m)); sys.stdout.write('\\n'); sys.stdout.flush()\n\
         for line in sys.stdin:\n    batch = json.loads(line)\n    for event in batch['events']:\n        id = event['id']\n\
         \x20       aggregate = event['aggregate_id']\n        if event['body']['n'] == 3:\n            {said}\n\
         \x20       else:\n            say({{'done': id}})\n    say({{'end': batch['batch']}})\n"
    )
}

/// Runs a reactor whose worker says this about the third of five events, and returns the failure of that event.
async fn failure_of(pool: &PgPool, url: &str, said: &str) -> Value {
    let installation = Installation::new(url, SETTINGS);
    std::fs::write(installation.path().join("processors/worker.py"), worker(said)).unwrap();
    installation.declare(
        "texts",
        "[reactor]\nname = 'texts'\nevents = ['A']\nstart = 'beginning'\nemits = ['E']\n\
         command = ['python3', 'worker.py']\nretry = { max_attempts = 1, on_failure = 'skip' }\n\
         [reactor.tables]\nsaid = 'id bigint primary key, told text, kept jsonb'\n",
    );
    let last = append(pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(pool, "texts", last).await;
    daemon.stop().await;
    let failures: Vec<(i64, Value)> =
        sqlx::query_as("select event_id, failure from espd.dead_letters").fetch_all(pool).await.unwrap();
    assert_eq!(failures.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3], "{said}: {failures:?}");
    failures.into_iter().next().unwrap().1
}

#[tokio::test]
async fn a_nul_in_an_error_or_its_detail_is_kept_as_text() {
    let db = support::database().await;
    let failure =
        failure_of(&db.pool, &db.url, "say({'failed': id, 'error': 'a\\0b', 'detail': 'c\\0'})").await;
    assert_eq!((&failure["message"], &failure["detail"]), (&"a\\u0000b".into(), &"c\\u0000".into()));
}

#[tokio::test]
async fn a_nul_on_standard_error_does_not_keep_the_failure_from_being_recorded() {
    let db = support::database().await;
    let said = "sys.stderr.buffer.write(b'x\\0y\\xff\\n'); sys.stderr.flush(); os._exit(3)";
    let failure = failure_of(&db.pool, &db.url, said).await;
    assert_eq!(failure["detail"], "x\\u0000y\u{fffd}", "{failure}");
}

/// The server keeps a part of all characters only. The others are kept as JSON would write them.
#[tokio::test]
async fn text_that_the_encoding_of_the_database_lacks_does_not_keep_the_failure_from_being_recorded() {
    let said = "sys.stderr.write('caf\u{e9} \u{4e2d}\u{1f600}\\n'); sys.stderr.flush(); os._exit(3)";
    let db = support::empty_database().await;
    let name = format!("{}_latin1", db.name);
    let create =
        format!("create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&db.pool).await.unwrap();
    let url = db.url.replace(&db.name, &name);
    Installation::new(&url, "").espctl(&["migrate"]).await.printed();
    let failure = failure_of(&PgPool::connect(&url).await.unwrap(), &url, said).await;
    assert_eq!(failure["detail"], "caf\\u00e9 \\u4e2d\\ud83d\\ude00", "{failure}");

    let db = support::database().await;
    let failure = failure_of(&db.pool, &db.url, said).await;
    assert_eq!(failure["detail"], "caf\u{e9} \u{4e2d}\u{1f600}", "{failure}");
}

#[tokio::test]
async fn types_keys_and_bodies_that_cannot_be_kept_are_failures_of_their_event() {
    let emit = |more: &str| format!("say({{'done': id, 'actions': [{{{more}}}]}})");
    for (said, words) in [
        (emit("'emit': 'E\\0', 'aggregate_id': aggregate, 'body': {}"), "does not declare"),
        (emit("'emit': 'E', 'aggregate_id': aggregate, 'body': {}, 'after': 9, 'key': 'k\\0'"), "NUL"),
        (
            emit("'emit': 'E', 'aggregate_id': aggregate, 'body': {}, 'after': 9, 'key': 'k' * (15 << 20)"),
            "key",
        ),
        (emit("'cancel': 'k\\0'"), "NUL"),
        (
            emit("'emit': 'E', 'aggregate_id': aggregate, 'body': 'b\\0', 'after': 9"),
            "the E that it emits is refused: it contains a NUL character",
        ),
        (emit("'emit': 'E', 'aggregate_id': aggregate, 'body': '\\ud800', 'after': 9"), ""),
        (emit("'emit': 'E', 'aggregate_id': aggregate, 'body': '\\ud800'"), ""),
        (emit("'upsert': 't\\0', 'row': {}"), ""),
        (
            emit("'upsert': 'said', 'row': {'id': id, 'told': 'a\\0'}"),
            r#"\"told\" of a row of said contains a NUL character"#,
        ),
        (
            emit("'upsert': 'said', 'row': {'id': id, 'kept': {'x': '\\ud800'}}"),
            r#"\"kept\" of a row of said contains a lone surrogate"#,
        ),
        (
            emit("'emit': 'E', 'aggregate_id': aggregate, 'body': 'b\\0'"),
            "the E that it emits is refused: it contains a NUL character",
        ),
        (
            r#"say('{"done":%d,"actions":[{"upsert":"said","row":{"id":1,"told":"a","told":"b"}}]}' % id)"#
                .to_owned(),
            r#"a row of said has \"told\" more than once"#,
        ),
        (
            emit("'emit': 'E', 'aggregate_id': aggregate, 'body': {}, 'key': 'k'"),
            "wrote `key` into an action `emit` without `at` or `after`",
        ),
        ("say('{\"failed\":%d,\"error\":\"\\\\ud800\"}' % id)".to_owned(), ""),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()".to_owned(), ""),
        ("say({'failed': id, 'error': 'e' * (15 << 20)})".to_owned(), "e"),
    ] {
        let db = support::database().await;
        let failure = failure_of(&db.pool, &db.url, &said).await;
        let text = failure.to_string();
        assert!(text.contains(words) && text.len() < 6_000, "{said}: {failure}");
    }
}
