//! `espctl schema`: what stored events look like, and what they have to look like.

use serde_json::json;

use crate::support;
use crate::support::facts::append;
use crate::support::program::Installation;

#[tokio::test]
async fn a_schema_is_inferred_from_what_is_stored() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    assert_eq!(installation.espctl(&["schema", "events"]).await.printed(), "no events are stored\n");
    append(&db.pool, 2).await;
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body, created_at)
         select gen_random_uuid(), 'TodoAdded', 1, body, '2026-01-31T00:00:00Z'
         from unnest($1::jsonb[]) as body",
    )
    .bind([
        json!({ "title": "a", "due": null }),
        json!({ "title": "b", "due": "2026-02-01", "by": { "id": 7 } }),
    ])
    .execute(&db.pool)
    .await
    .unwrap();
    let text = installation.espctl(&["schema", "events"]).await.printed();
    assert!(text.starts_with("A  2 events since ") && text.contains("\n  n: integer\n"), "{text}");
    assert!(text.contains("\n  by?: object\n  due: null or string\n  title: string"), "{text}");
    let one = installation.espctl(&["schema", "events", "--type", "TodoAdded", "--json"]).await.json();
    assert_eq!((&one["title"], &one["required"]), (&json!("TodoAdded"), &json!(["due", "title"])));
    assert_eq!(one["properties"]["by"]["properties"]["id"], json!({ "type": "integer" }));
    assert_eq!((&one["x-espd"]["events"], &one["x-espd"]["partial"]), (&json!(2), &json!(false)));
    assert!(one["x-espd"]["since"].as_str().unwrap().starts_with("2026-01-31"), "{one}");
    let sampled = installation.espctl(&["schema", "events", "--json", "--sample", "1"]).await.json();
    assert_eq!(sampled["TodoAdded"]["x-espd"]["sampled"], 1, "{sampled}");
    let complaint = installation.espctl(&["schema", "events", "--type", "Never"]).await.complained(1);
    assert!(complaint.contains("no event of type Never"), "{complaint}");
}

/// A declaration of `A`, whose events have the body `{"n": …}`.
fn declare(schema: &str, check: &str) -> String {
    format!("[[event]]\ntype = 'A'\nschema = '{schema}'\ncheck = '{check}'\n")
}

#[tokio::test]
async fn declared_events_are_shown_beside_what_is_stored() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    append(&db.pool, 5).await;
    installation.declare("a", &declare(r#"{"properties": {"n": {"maximum": 3}}}"#, "report"));
    installation.declare("b", "[[event]]\ntype = 'Never'\nschema = true");
    // What the configuration declares counts, also before the store is told.
    let text = installation.espctl(&["schema", "events"]).await.printed();
    let departing =
        "(declared: 2 of these depart, the newest is event 5: /n: expected {\"maximum\":3}, found number)";
    assert!(text.contains(departing), "{text}");
    assert!(text.contains("Never  no events are stored\n  (declared: none of these departs)"), "{text}");
    let one =
        installation.espctl(&["schema", "events", "--type", "A", "--json", "--sample", "1"]).await.json();
    let declared = &one["x-espd"]["declared"];
    assert_eq!((&declared["departing"], &declared["check"]), (&json!(1), &json!("report")), "{one}");
    assert_eq!(declared["newest_departing"]["event"], 5, "{one}");
    assert_eq!(declared["schema"]["properties"]["n"]["maximum"], 3, "{one}");

    // Events of another name that are read as this type are counted by what is looked at.
    let file = installation.path().join("espd.toml");
    let plain = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{plain}[[upcast]]\nevents = ['Old']\ntype = 'A'\n")).unwrap();
    let old = "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'Old', 1, '{\"n\": 9}')";
    sqlx::raw_sql(old).execute(&db.pool).await.unwrap();
    let text = installation.espctl(&["schema", "events", "--type", "A"]).await.printed();
    assert!(
        text.starts_with("A  5 events") && text.contains("3 of the 6 that are read as this type depart"),
        "{text}"
    );
    std::fs::write(&file, plain).unwrap();

    // An old form that is read as the new one does not depart.
    let upcast = "[[upcast]]\nevents = ['A']\nbody = \"jsonb_build_object('n', 1)\"\n";
    let text = std::fs::read_to_string(installation.path().join("espd.toml")).unwrap();
    std::fs::write(installation.path().join("espd.toml"), format!("{text}{upcast}")).unwrap();
    let text = installation.espctl(&["schema", "events", "--type", "A"]).await.printed();
    assert!(text.contains("(declared: none of these departs)"), "{text}");
}

#[tokio::test]
async fn the_event_store_is_told_on_command_and_says_what_it_was_not_told() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare("a", &declare("{}", "append"));
    installation.declare_notes("notes", "");
    let note = "note: the event store has not been told what is declared of A: run `espctl schema apply`";
    assert!(installation.espctl(&["check"]).await.printed().contains(note));
    assert_eq!(installation.espctl(&["schema", "apply", "--dry-run"]).await.printed(), "A: new\n");
    let daemon = installation.start_daemon();
    daemon.says(note.strip_prefix("note: ").unwrap()).await;
    daemon.stop().await;
    assert_eq!(installation.espctl(&["schema", "apply"]).await.printed(), "A: new\n");
    assert_eq!(installation.espctl(&["schema", "apply"]).await.printed(), "up to date: 1 declared\n");
    assert!(!installation.espctl(&["check"]).await.printed().contains("note:"));

    // Another configuration of the same store declares another type.
    installation.declare("a", "[[event]]\ntype = 'B'\nschema = true");
    let applied = installation.espctl(&["schema", "apply"]).await.printed();
    assert!(applied.starts_with("B: new\nA: not declared here: left as it is"), "{applied}");
    let applied = installation.espctl(&["schema", "apply", "--forget-others"]).await.printed();
    assert_eq!(applied, "A: forgotten\n");
    installation.declare("a", &declare(r#"{"type": "object"}"#, "append").replace("'A'", "'B'"));
    assert_eq!(installation.espctl(&["schema", "apply", "--dry-run"]).await.printed(), "B: changed\n");
    let migrated = installation.espctl(&["migrate"]).await.printed();
    assert!(migrated.ends_with("event schemas: 1 declared, 0 new, 1 changed\n"), "{migrated}");
}

#[tokio::test]
async fn a_schema_that_cannot_be_checked_is_a_mistake() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    for (schema, complaint) in [
        (
            r#"{"properties": {"n": {"patern": "x"}}}"#,
            "/properties/n/patern of the schema: the keyword `patern` is not checked",
        ),
        (r#"{"type": "text"}"#, "/type of the schema: \"text\" is not known"),
        ("{", "`schema` is not JSON: EOF while parsing"),
        (
            r#"{"properties": {"\u0000": {}}}"#,
            "/properties/\\u0000 of the schema: a text with a NUL character cannot be stored",
        ),
        (
            r#"{"items": {"enum": ["a", "b\u0000"]}}"#,
            "/items/enum/1 of the schema: a text with a NUL character cannot be stored",
        ),
        (r#"{"const": 1e200000}"#, "a number out of range"),
        (r#"{"pattern": "("}"#, "PostgreSQL cannot read the pattern (: "),
    ] {
        installation.declare("a", &declare(schema, "append"));
        for command in [["check"].as_slice(), &["schema", "apply"], &["migrate"]] {
            let said = installation.espctl(command).await.complained(64);
            assert!(said.contains(complaint) && said.contains("a.toml:3:"), "{command:?} {said}");
        }
    }
    installation.declare("b", &declare("{}", "append"));
    let said = installation.espctl(&["check"]).await.complained(64);
    assert!(said.contains("there is another event `A`"), "{said}");
}

#[tokio::test]
async fn numbers_of_a_schema_reach_the_store_as_they_are_written() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let stored = async || -> String {
        let query = sqlx::query_scalar("select schema::text from espd.event_schemas where type = 'A'");
        query.fetch_one(&db.pool).await.unwrap()
    };
    for (written, kept) in [
        ("123456789012345678901", "123456789012345678901"),
        ("0.1234567890123456789012345", "0.1234567890123456789012345"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1e400", &format!("1{}", "0".repeat(400))),
    ] {
        installation.declare("a", &declare(&format!(r#"{{"const": {written}}}"#), "append"));
        assert!(installation.espctl(&["schema", "apply"]).await.printed().starts_with("A: "));
        assert_eq!(stored().await, format!(r#"{{"const": {kept}}}"#));
        assert_eq!(installation.espctl(&["schema", "apply"]).await.printed(), "up to date: 1 declared\n");
        let id = uuid::Uuid::new_v4();
        let line = |body: &str| format!(r#"{{"aggregate_id":"{id}","type":"A","body":{body}}}"#);
        installation.espctl_fed(&["append"], &line(written)).await.printed();
        let near = "123456789012345680000";
        installation.espctl_fed(&["append"], &line(near)).await.complained(1);
        // Only the last event is of this declaration.
        let shown = installation.espctl(&["schema", "events", "--sample", "1"]).await.printed();
        assert!(shown.contains("none of these departs"), "{shown}");
    }
    // A store that was told by an earlier version, which rounded, is told anew once.
    installation.declare("a", &declare(r#"{"maximum": 123456789012345678901, "const": 1.0}"#, "append"));
    sqlx::raw_sql(
        r#"update espd.event_schemas set schema = '{"maximum": 123456789012345680000, "const": 1}'"#,
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert_eq!(installation.espctl(&["schema", "apply"]).await.printed(), "A: changed\n");
    assert_eq!(installation.espctl(&["schema", "apply"]).await.printed(), "up to date: 1 declared\n");
}
