//! `espctl schema events`: what stored events look like.

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
