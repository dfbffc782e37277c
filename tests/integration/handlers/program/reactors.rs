//! Reactors whose events a program handles: what they emit, read and write.

use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::SETTINGS;
use crate::support;
use crate::support::facts::{append_typed, eventually, reaches};
use crate::support::program::Installation;

/// A worker that has what it does for an event in the event itself: actions, and rows to read before.
const OBEDIENT: &str = r#"
import json, sys
json.loads(sys.stdin.readline())
print('{"ready":1}', flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    for event in batch["events"]:
        body = event["body"]
        actions = body.get("actions", [])
        if "read" in body:
            print(json.dumps({"read": body["read"][0], "key": body["read"][1]}), flush=True)
            row = sys.stdin.readline()
            # As text, so that no number is changed on the way.
            actions.append({"upsert": "seen", "row": {"event_id": event["id"], "row": row}})
        for action in actions:
            if action.get("aggregate_id") == "same":
                action["aggregate_id"] = event["aggregate_id"]
        actions.append({"upsert": "replays", "row": {"event_id": event["id"], "replaying": event["replaying"]}})
        print(json.dumps({"done": event["id"], "actions": actions}))
    print(json.dumps({"end": batch["batch"]}), flush=True)
"#;

fn declare_obedient(installation: &Installation) {
    std::fs::write(installation.path().join("processors/obedient.py"), OBEDIENT).unwrap();
    installation.declare(
        "obedient",
        "[reactor]\nname = 'obedient'\nevents = ['Told']\nemits = ['Answered', 'Reminded']\nstart = 'beginning'\n\
         command = ['python3', 'obedient.py']\n\
         [reactor.tables]\n\
         todos = \"id bigint primary key, title text not null, price numeric, note text default 'none'\"\n\
         seen = 'event_id bigint primary key, row text'\n\
         replays = 'event_id bigint primary key, replaying bool not null'\n",
    );
}

async fn tell(pool: &PgPool, bodies: &[Value]) -> Vec<i64> {
    let query = sqlx::query_scalar(
        "insert into espd.events (aggregate_id, type, version, body)
         select gen_random_uuid(), 'Told', 1, body from unnest($1::jsonb[]) with ordinality as b (body, place)
         order by place returning id",
    );
    query.bind(bodies).fetch_all(pool).await.unwrap()
}

async fn strings(pool: &PgPool, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn a_row_is_read_as_earlier_answers_have_left_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_obedient(&installation);
    let upsert = |row: Value| json!({ "upsert": "todos", "row": row });
    let told = [
        json!({ "actions": [upsert(json!({ "id": 1, "title": "a", "price": 1 }))] }),
        json!({ "read": ["todos", { "id": 1 }] }),
        // What an event wants counts when it is done, and not before.
        json!({ "actions": [upsert(json!({ "id": 1, "title": "b" }))], "read": ["todos", { "id": 1 }] }),
        // Only what is given is changed, also where a new row would need more.
        json!({ "actions": [upsert(json!({ "id": 1, "note": null }))] }),
        json!({ "read": ["todos", { "id": 1 }] }),
        json!({ "actions": [{ "delete": "todos", "where": { "title": "b" } }] }),
        json!({ "read": ["todos", { "id": 1 }] }),
    ];
    let ids = tell(&db.pool, &told).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "obedient", ids[6]).await;
    let seen = strings(&db.pool, "select row from seen order by event_id").await;
    assert_eq!(
        seen,
        [
            "{\"row\":{\"id\":1,\"title\":\"a\",\"price\":1,\"note\":\"none\"}}\n",
            "{\"row\":{\"id\":1,\"title\":\"a\",\"price\":1,\"note\":\"none\"}}\n",
            "{\"row\":{\"id\":1,\"title\":\"b\",\"price\":1,\"note\":null}}\n",
            "{\"row\":null}\n",
        ]
    );
    daemon.stop().await;
}

#[tokio::test]
async fn no_digit_is_lost_on_the_way() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    // In shell, which takes numbers for text.
    installation.declare(
        "exact",
        r#"[projector]
name = 'exact'
events = ['Priced']
command = ['sh', '-c', '''
read -r hello; echo '{"ready":1}'; read -r batch
price=$(printf %s "$batch" | sed 's/.*"price": \([0-9.]*\).*/\1/')
echo "{\"done\":1,\"actions\":[{\"upsert\":\"prices\",\"row\":{\"id\":1,\"price\":$price}}]}"
echo '{"end":1}'; cat''']
[projector.tables]
prices = "id int primary key, price numeric"
"#,
    );
    let digits = "12345678901234567890.123456789012345678901234567890";
    let statement = "insert into espd.events (aggregate_id, type, version, body)
                     values (gen_random_uuid(), 'Priced', 1, $1::text::jsonb)";
    let query = sqlx::query(statement).bind(format!("{{\"price\": {digits}}}"));
    query.execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "exact", 1).await;
    assert_eq!(strings(&db.pool, "select price::text from prices").await, [digits]);
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_row_of_a_program_does_to_a_table_of_another_processor_is_not_committed() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_obedient(&installation);
    installation.declare_notes("notes", "");
    let noted = append_typed(&db.pool, "A", 2).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", noted).await;
    reaches(&db.pool, "obedient", noted).await;
    sqlx::raw_sql(
        "create function public.forget() returns trigger language plpgsql as
           $$ begin delete from public.notes; return new; end $$;
         create trigger forget after insert on todos for each row execute function forget()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    tell(&db.pool, &[json!({ "actions": [{ "upsert": "todos", "row": { "id": 1, "title": "a" } }] })]).await;
    let query = "select last_error->>'sqlstate' from espd.trackers where name = 'obedient'";
    eventually("the batch is refused", async || {
        let state: Option<String> = sqlx::query_scalar(query).fetch_one(&db.pool).await.unwrap();
        state.filter(|state| state == "ES006")
    })
    .await;
    assert_eq!(strings(&db.pool, "select count(*)::text from notes").await, ["2"]);
    assert_eq!(strings(&db.pool, "select count(*)::text from todos").await, ["0"]);
    daemon.stop().await;
}

#[tokio::test]
async fn an_emitted_event_has_the_metadata_that_the_program_gives_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_obedient(&installation);
    let emit = |metadata: Value| json!({ "emit": "Answered", "aggregate_id": "same", "body": {}, "metadata": metadata });
    let told = [
        json!({ "actions": [emit(json!({ "tenant": "a" }))] }),
        json!({ "actions": [emit(json!({ "espd": { "depth": 0 } }))] }),
    ];
    tell(&db.pool, &told).await;
    let daemon = installation.start_daemon();
    let query = "select last_error->>'message' from espd.trackers where name = 'obedient'";
    let message = eventually("the second emission is refused", async || {
        let message: Option<Option<String>> =
            sqlx::query_scalar(query).fetch_optional(&db.pool).await.unwrap();
        message.flatten()
    })
    .await;
    assert!(message.contains("has the key \"espd\", which is espd's own"), "{message}");
    let metadata =
        strings(&db.pool, "select (metadata - 'espd')::text from espd.events where type = 'Answered'").await;
    assert_eq!(metadata, [r#"{"tenant": "a"}"#]);
    daemon.stop().await;
}

#[derive(Debug, PartialEq)]
struct Emitted {
    event_type: String,
    body: Value,
    causation_id: Option<Uuid>,
}

async fn emitted(pool: &PgPool) -> Vec<Emitted> {
    let query = sqlx::query("select * from espd.events where type in ('Answered', 'Reminded') order by id");
    let event = |row: PgRow| Emitted {
        event_type: row.get("type"),
        body: row.get("body"),
        causation_id: row.get("causation_id"),
    };
    query.map(event).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn what_a_program_emits_is_emitted_once_and_in_time() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_obedient(&installation);
    let emit = |event_type: &str, n: u32, more: Value| {
        let mut emit = json!({ "emit": event_type, "aggregate_id": "same", "body": { "n": n } });
        emit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        emit
    };
    let told = [
        json!({ "actions": [emit("Answered", 1, json!({ "expected_version": 1 })), emit("Answered", 2, json!({}))] }),
        json!({ "actions": [emit("Reminded", 3, json!({ "after": 0.2 })), emit("Reminded", 4, json!({ "after": 3600, "key": "k" }))] }),
        json!({ "actions": [{ "cancel": "k" }, emit("Reminded", 5, json!({ "at": "2020-01-01T00:00:00Z" }))] }),
    ];
    let ids = tell(&db.pool, &told).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "obedient", ids[2]).await;
    let all = eventually("what is due", async || {
        let emitted = emitted(&db.pool).await;
        (emitted.len() >= 4).then_some(emitted)
    })
    .await;
    let uuids: Vec<Uuid> = sqlx::query_scalar("select uuid from espd.events where type = 'Told' order by id")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    let event = |event_type: &str, n: u32, cause: usize| Emitted {
        event_type: event_type.to_owned(),
        body: json!({ "n": n }),
        causation_id: Some(uuids[cause]),
    };
    assert_eq!(all[..2], [event("Answered", 1, 0), event("Answered", 2, 0)]);
    assert!(all.contains(&event("Reminded", 3, 1)) && all.contains(&event("Reminded", 5, 2)), "{all:?}");
    let kept: i64 =
        sqlx::query_scalar("select count(*) from espd.emissions").fetch_one(&db.pool).await.unwrap();
    assert_eq!(kept, 0, "the cancelled one is left");

    // A reset handles everything again and emits nothing again.
    installation.espctl(&["reset", "obedient", "--yes"]).await.printed();
    let last = append_typed(&db.pool, "Told", 1).await;
    reaches(&db.pool, "obedient", last).await;
    assert_eq!(emitted(&db.pool).await, all);
    let replays: Vec<bool> = sqlx::query_scalar("select replaying from replays order by event_id")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    assert_eq!(replays, [true, true, true, false]);
    daemon.stop().await;
}

#[tokio::test]
async fn an_emission_that_expects_another_version_is_its_events_failure() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, SETTINGS);
    declare_obedient(&installation);
    let emit = |version: i64| json!({ "emit": "Answered", "aggregate_id": "same", "body": {}, "expected_version": version });
    let ids = tell(&db.pool, &[json!({ "actions": [emit(1)] }), json!({ "actions": [emit(9)] })]).await;
    let daemon = installation.start_daemon();
    let failed = daemon.says("could not handle an event").await;
    assert_eq!(failed["event.id"], ids[1], "{failed}");
    assert_eq!(emitted(&db.pool).await.len(), 1);
    daemon.stop().await;
}
