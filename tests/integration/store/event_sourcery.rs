//! Stores that event_sourcery-postgres has made: followed as they are, and changed in nothing.

pub(crate) mod framework;

use std::time::Duration;

use espd::event::NewEvent;
use espd::store::{AppendError, EventStore as _, PostgresEventStore, ReadError};
use espd::store::{EventSourceryNames, Layout};
use futures_util::StreamExt as _;
use serde_json::json;
use serde_json::value::RawValue;
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::support::facts::{eventually, reaches, within};
use crate::support::program::Installation;
use framework::{Framework, Write};

/// Settings of a store with the framework's own names, and projections apart from it.
const SETTINGS: &str = "layout = 'event_sourcery'\n[projections]\nschema = 'projections'\n";

/// A projector that copies every event that it handles, with all columns.
const COPIES: &str = "[projector]\nname = 'copies'\n[projector.tables]\n\
    copies = 'place bigint generated always as identity, id bigint, uuid uuid, aggregate_id uuid, type text, version bigint, \
      body jsonb, metadata jsonb, correlation_id uuid, causation_id uuid, created_at timestamptz'\n\
    [[projector.on]]\nevents = ['*']\nsql = '''insert into copies (id, uuid, aggregate_id, type, version, body, metadata, \
      correlation_id, causation_id, created_at)\nvalues (event.id, event.uuid, event.aggregate_id, event.type, event.version, \
      event.body, event.metadata, event.correlation_id, event.causation_id, event.created_at)'''\n";

/// How many events and copies do not agree, in order and in every column.
const DIFFERENCES: &str = "
    select count(*) from (
      select row_number() over (order by id) as place, id, uuid, aggregate_id, type::text, version, body::jsonb as body,
             '{}'::jsonb as metadata, correlation_id, causation_id, created_at at time zone 'UTC' as created_at
      from public.events
    ) as e full join projections.copies as c using (id)
    where to_jsonb(e) is distinct from to_jsonb(c)";

async fn count(framework: &Framework, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&framework.db.pool).await.unwrap()
}

#[tokio::test]
async fn a_store_is_followed_exactly_while_it_is_written_and_stays_as_it_was() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare("copies", COPIES);
    let before = framework.fingerprint().await;
    let said = installation.espctl(&["migrate"]).await.printed();
    assert!(said.contains("\"public\".\"events\" does not belong to espd and was not changed"), "{said}");
    installation.espctl(&["check"]).await.printed();

    let daemon = installation.start_daemon();
    let writers = (0..6).map(|n| framework.write_many(n, 60));
    futures_util::future::join_all(writers).await;
    let last = count(&framework, "select max(id) from public.events").await;
    reaches(&framework.db.pool, "copies", last).await;
    assert_eq!(count(&framework, "select count(*) from projections.copies").await, 6 * 60 * 2);
    assert_eq!(count(&framework, DIFFERENCES).await, 0);
    daemon.stop().await;
    assert_eq!(framework.fingerprint().await, before);
}

#[tokio::test]
async fn an_id_that_is_committed_late_is_not_passed_over() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    // Without the framework's lock, as an option of it allows, a later id is visible first.
    let mut slow = framework.db.pool.begin().await.unwrap();
    framework.write_in(&mut slow, Write { lock: false, ..Write::of("slow") }).await;
    framework.write(Write { lock: false, ..Write::of("quick") }).await;
    let held = eventually("somebody who holds the horizon back", async || {
        let status = installation.status("copies").await;
        (status["head"] == 2 && status["held_by"][0]["pid"].is_i64()).then_some(status)
    })
    .await;
    assert_eq!((held["horizon"].as_i64(), held["position"].as_i64()), (Some(0), Some(0)));
    slow.commit().await.unwrap();
    reaches(&framework.db.pool, "copies", 2).await;
    assert_eq!(count(&framework, DIFFERENCES).await, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn the_frameworks_notification_wakes_and_espds_own_do_not_reach_the_framework() {
    let framework = Framework::create().await;
    let settings = format!("{SETTINGS}[runner]\npoll_interval_max = '1h'\n");
    let installation = Installation::new(&framework.db.url, &settings);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    let mut listener = sqlx::postgres::PgListener::connect_with(&framework.db.pool).await.unwrap();
    listener.listen("new_event").await.unwrap();
    let daemon = installation.start_daemon();
    eventually("a live processor", async || {
        (installation.status("copies").await["state"] == "live").then_some(())
    })
    .await;
    for n in 1..=3 {
        framework.write(Write::of("woken")).await;
        let heard = listener.recv().await.unwrap();
        assert_eq!(heard.payload(), n.to_string());
        within(Duration::from_secs(20), "the event", async || {
            (installation.status("copies").await["position"] == n).then_some(())
        })
        .await;
    }
    // What an operator does is announced on espd's own channel, and received.
    installation.espctl(&["pause", "copies"]).await.printed();
    framework.write(Write::of("paused")).await;
    assert_eq!(listener.recv().await.unwrap().payload(), "4");
    installation.espctl(&["resume", "copies"]).await.printed();
    within(Duration::from_secs(20), "the event", async || {
        (installation.status("copies").await["position"] == 4).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn other_names_jsonb_bodies_and_older_tables_are_read() {
    let names = "schema = 'Shop'\nevents_table = 'myEvents'\nchannel = 'ding'\nsequence = 'numbers'\n";
    let framework = Framework::create_named("\"Shop\"", "\"myEvents\"", "ding").await;
    framework
        .run(
            "alter table \"Shop\".\"myEvents\" drop column correlation_id, drop column causation_id;
             alter table \"Shop\".\"myEvents\" alter column body type jsonb;
             alter sequence \"Shop\".\"myEvents_id_seq\" rename to numbers;
             insert into \"Shop\".\"myEvents\" (aggregate_id, type, body, version, created_at)
             values (public.uuid_generate_v4(), 'todo_added', '{\"a\": 1}', 1, '2024-02-29 12:34:56.789012')",
        )
        .await;
    let settings = format!(
        "layout = 'event_sourcery'\nschema = 'own'\n[event_store.event_sourcery]\n{names}[projections]\nschema = 'projections'\n"
    );
    let installation = Installation::new(&framework.db.url, &settings);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    installation.espctl(&["check"]).await.printed();
    let daemon = installation.start_daemon();
    installation.espctl(&["wait", "copies"]).await.printed();
    let copy: serde_json::Value =
        sqlx::query_scalar("select to_jsonb(c) - 'uuid' - 'aggregate_id' from projections.copies as c")
            .fetch_one(&framework.db.pool)
            .await
            .unwrap();
    let expected = json!({
        "place": 1, "id": 1, "type": "todo_added", "version": 1, "body": {"a": 1}, "metadata": {},
        "correlation_id": null, "causation_id": null, "created_at": "2024-02-29T12:34:56.789012+00:00",
    });
    assert_eq!(copy, expected);
    let events = installation.espctl(&["events", "--json"]).await.json_lines();
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["type"], &events[0]["metadata"]), (&json!("todo_added"), &json!({})));
    assert_eq!(events[0]["created_at"], "2024-02-29T12:34:56.789012Z");
    daemon.stop().await;
}

#[tokio::test]
async fn a_body_that_jsonb_refuses_is_named_and_those_before_it_are_handled() {
    let framework = Framework::create().await;
    for body in [r#"{"n": 1}"#, r#"{"n": 2}"#, r#"{"n": "\u0000"}"#, r#"{"n": 4}"#] {
        framework.write(Write { body, ..Write::of("A") }).await;
    }
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    let status = eventually("a failure", async || {
        let status = installation.status("copies").await;
        (status["state"] == "retrying").then_some(status)
    })
    .await;
    assert_eq!((&status["position"], &status["last_error"]["event_id"]), (&json!(2), &json!(3)));
    assert_eq!(
        (&status["last_error"]["sqlstate"], &status["last_error"]["event_type"]),
        (&json!("22P05"), &json!("A"))
    );
    framework.run("update public.events set body = '{}' where id = 3").await;
    reaches(&framework.db.pool, "copies", 4).await;
    daemon.stop().await;
}

/// An event that `jsonb` cannot hold, over several lines, between two that it can hold.
const STRANGE: [&str; 3] =
    [r#"{"title": "a",  "n": 1}"#, "{\"title\":\n  \"a\\u0000b\"}", r#"{"title":"c"}"#];

/// Who looks at such an event sees it, and the others.
#[tokio::test]
async fn a_body_that_jsonb_refuses_is_shown_as_it_is_stored() {
    let framework = Framework::create().await;
    for body in STRANGE {
        framework.write(Write { body, ..Write::of("A") }).await;
    }
    let settings = format!("{SETTINGS}[admin]\nlisten = '127.0.0.1:0'\n");
    let installation = Installation::new(&framework.db.url, &settings);
    let setting_aside = "[projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n[projector.tables]";
    installation.declare("copies", &COPIES.replace("[projector.tables]", setting_aside));
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    let client = crate::admin::endpoint(&daemon).await;
    reaches(&framework.db.pool, "copies", 3).await;

    let strange = json!({ "title": "a\0b" });
    let events = installation.espctl(&["events", "--json"]).await.json_lines();
    let bodies: Vec<&serde_json::Value> = events.iter().map(|event| &event["body"]).collect();
    assert_eq!(bodies, [&json!({ "n": 1, "title": "a" }), &strange, &json!({ "title": "c" })]);
    let lines = installation.espctl(&["events"]).await.printed();
    assert!(lines.contains(r#"{"n": 1, "title": "a"}"#), "as jsonb gives it back: {lines}");
    assert!(lines.contains(r#"{"title":"a\u0000b"}"#) && lines.lines().count() == 3, "{lines}");
    let trace = installation.espctl(&["trace", "2", "--json"]).await.json();
    assert_eq!(trace["events"][0]["body"], strange);
    let schema = installation.espctl(&["schema", "events", "--type", "A", "--json"]).await.json();
    assert_eq!(schema["properties"]["title"]["type"], "string");
    let shown = installation.espctl(&["dead-letters", "show", "copies", "2", "--json"]).await.json();
    assert_eq!(shown["event"]["body"], strange);
    let page = client.get("/api/v1/processors/copies/dead-letters/2").await.json(200);
    assert_eq!(page["event"]["body"], strange);
    installation.espctl(&["dead-letters", "discard", "copies", "2", "--yes"]).await.printed();
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_names_the_event_that_cannot_be_read_and_keeps_to_the_order() {
    let framework = Framework::create().await;
    for body in STRANGE {
        framework.write(Write { body, ..Write::of("A") }).await;
    }
    let layout = Layout::event_sourcery("espd", &EventSourceryNames::default()).unwrap();
    let store = PostgresEventStore::new(framework.db.pool.clone(), layout);
    let mut events = store.subscribe(None, Some(0.into()));
    assert_eq!(events.next().await.unwrap().unwrap().id, 1);
    for _ in 0..2 {
        let error = events.next().await.unwrap().unwrap_err();
        assert!(matches!(&error, ReadError::Unreadable { position, .. } if *position == 2), "{error}");
        assert_eq!(error.to_string(), "event 2 cannot be read: unsupported Unicode escape sequence");
    }
    assert_eq!(store.subscribe(None, Some(2.into())).next().await.unwrap().unwrap().id, 3);
}

/// An operator sets such an event aside before it is handled, too.
#[tokio::test]
async fn a_body_that_jsonb_refuses_is_skipped_by_an_operator() {
    let framework = Framework::create().await;
    for body in STRANGE {
        framework.write(Write { body, ..Write::of("A") }).await;
    }
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    eventually("a failure", async || {
        (installation.status("copies").await["state"] == "retrying").then_some(())
    })
    .await;
    installation.espctl(&["dead-letters", "skip", "copies", "--yes"]).await.printed();
    reaches(&framework.db.pool, "copies", 3).await;
    daemon.stop().await;
}

#[tokio::test]
async fn projections_in_another_database_are_kept() {
    let framework = Framework::create().await;
    let other = crate::support::empty_database().await;
    let settings = format!("layout = 'event_sourcery'\n[projections]\nurl = '{}'\n", other.url);
    let installation = Installation::new(&framework.db.url, &settings);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    framework.write_many(1, 20).await;
    installation.espctl(&["wait", "copies"]).await.printed();
    let copied: (i64, i64) = sqlx::query_as(
        "select count(*) filter (where created_at = '2020-01-02 03:04:05.678901Z'),
                count(*) filter (where created_at between now() - interval '1 hour' and now()) from copies",
    )
    .fetch_one(&other.pool)
    .await
    .unwrap();
    assert_eq!(copied, (20, 20));
    daemon.stop().await;
}

#[tokio::test]
async fn the_frameworks_channel_is_left_to_the_framework() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare("copies", COPIES);
    installation.espctl(&["migrate"]).await.printed();
    let daemon = installation.start_daemon();
    installation.espctl(&["wait", "copies"]).await.printed();
    let mut listener = PgListener::connect_with(&framework.db.pool).await.unwrap();
    listener.listen("new_event").await.unwrap();
    installation.espctl(&["pause", "copies"]).await.printed();
    installation.espctl(&["resume", "copies"]).await.printed();
    daemon.stop().await;
    framework.run("notify new_event, 'end'").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "end");
}

#[tokio::test]
async fn nothing_is_ever_appended() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.espctl(&["migrate"]).await.printed();
    let line = format!(r#"{{"aggregate_id":"{}","type":"A","body":{{}}}}"#, Uuid::new_v4());
    let complaint = installation.espctl_fed(&["append"], &line).await.complained(1);
    assert!(complaint.contains("espd only reads"), "{complaint}");

    let layout = Layout::event_sourcery("espd", &EventSourceryNames::default()).unwrap();
    let store = PostgresEventStore::new(framework.db.pool.clone(), layout);
    let body = RawValue::from_string("{}".to_owned()).unwrap();
    let refused = store.append(&[NewEvent::new(Uuid::new_v4(), "A", body)]).await;
    assert!(matches!(refused, Err(AppendError::Invalid { index: None, .. })), "{refused:?}");
    assert_eq!(count(&framework, "select count(*) from public.events").await, 0);
}

#[tokio::test]
async fn a_store_of_another_shape_is_refused_with_what_to_do() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.espctl(&["migrate"]).await.printed();
    framework.run("alter table public.events alter column created_at type timestamptz").await;
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(
        complaint.contains("created_at should be timestamp without time zone, is timestamp with time zone"),
        "{complaint}"
    );
    framework.run("alter sequence public.events_id_seq cache 20").await;
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("has cache 20"), "{complaint}");
    framework.run("drop table public.events").await;
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("[event_store.event_sourcery]"), "{complaint}");

    let own = "layout = 'event_sourcery'\nschema = 'public'\n[projections]\nschema = 'projections'\n";
    let complaint = Installation::new(&framework.db.url, own).espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("and so would be espd's own tables"), "{complaint}");
}

#[tokio::test]
async fn reading_costs_what_reading_the_table_costs() {
    let framework = Framework::create().await;
    let layout = Layout::event_sourcery("espd", &EventSourceryNames::default()).unwrap();
    let conditions = [
        ("events_pkey", "id > 5 and id <= 100 order by id limit 10"),
        (
            "events_aggregate_id_version_idx",
            "aggregate_id = '149d5c70-a373-4857-91e2-1d5ea90c27e4' and version >= 5 order by version",
        ),
    ];
    let mut connection = framework.db.pool.acquire().await.unwrap();
    sqlx::query("set enable_seqscan = off").execute(&mut *connection).await.unwrap();
    sqlx::query("set enable_bitmapscan = off").execute(&mut *connection).await.unwrap();
    for (index, condition) in conditions {
        let statement =
            format!("explain select id, body, metadata from {} as e where {condition}", layout.source());
        let lines: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_all(&mut *connection).await.unwrap();
        let plan = lines.join("\n");
        assert!(plan.contains(&format!("Index Scan using {index} on events")), "{plan}");
        assert!(!["Sort", "Nested Loop", "Result"].iter().any(|node| plan.contains(node)), "{plan}");
    }
}

/// A projector that counts events, on a table that its predecessor has filled.
const COUNTS: &str = "[projector]\nname = 'counts'\n[projector.tables]\ncounts = 'type text primary key, n bigint not null'\n\
    [[projector.on]]\nevents = ['todo_added', 'todo_amended']\n\
    sql = '''insert into counts as c values (event.type, 1) on conflict (type) do update set n = c.n + 1'''\n";

/// What a processor of the framework left behind after 10 of 40 events, and the table that it filled.
async fn predecessor() -> (Framework, Installation) {
    let framework = Framework::create().await;
    framework.write_many(1, 20).await;
    framework
        .run(
            "create schema projections;
             create table projections.counts (type text primary key, n bigint not null);
             insert into projections.counts select type, count(*) from events where id <= 10 group by type;
             alter table projector_tracker alter name drop not null, alter last_processed_event_id drop not null;
             insert into projector_tracker (name, last_processed_event_id) values ('Todo::Counts', 10), ('Other', 3), ('Nowhere', null), (null, 3)",
        )
        .await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare("counts", COUNTS);
    installation.espctl(&["migrate"]).await.printed();
    (framework, installation)
}

const IMPORT: [&str; 2] = ["import-positions", "counts=Todo::Counts"];

#[tokio::test]
async fn a_processor_of_the_framework_moves_to_espd_where_it_is() {
    let (framework, installation) = predecessor().await;
    let asked = installation.espctl(&IMPORT).await;
    assert!(
        asked.stdout.contains("counts  Todo::Counts      0        10  projections.counts  -"),
        "{asked:?}"
    );
    assert!(
        asked.stdout.contains("Left out, because no processor has the name: Nowhere, Other"),
        "{asked:?}"
    );
    assert!(asked.complained(1).contains("add --yes"));
    let taken = installation.espctl(&[&IMPORT[..], &["--yes", "--json"]].concat()).await.json();
    assert_eq!((&taken[0]["name"], &taken[0]["to_position"]), (&json!("counts"), &json!(10)));
    let logged: (String, i64, i64) =
        sqlx::query_as("select processor, from_position, to_position from espd.operator_log")
            .fetch_one(&framework.db.pool)
            .await
            .unwrap();
    assert_eq!(logged, ("counts".to_owned(), 0, 10));

    let daemon = installation.start_daemon();
    reaches(&framework.db.pool, "counts", 40).await;
    daemon.stop().await;
    let wrong = "select count(*) from (select type::text, count(*) as n from events group by type) as e
                 full join projections.counts as c using (type) where e.n is distinct from c.n";
    assert_eq!(count(&framework, wrong).await, 0);

    let complaint = installation.espctl(&[&IMPORT[..], &["--yes"]].concat()).await.complained(1);
    assert!(complaint.contains("moved already, to 40: add --overwrite"), "{complaint}");
    installation.espctl(&[&IMPORT[..], &["--yes", "--overwrite"]].concat()).await.printed();
    assert_eq!(installation.status("counts").await["position"], 10);
    // Its own now: a reset makes them anew.
    installation.espctl(&["reset", "counts", "--in-place", "--yes"]).await.printed();
    assert_eq!(count(&framework, "select count(*) from projections.counts").await, 0);
}

/// The primary key of its table, and an index that the new version declares as well, are the projector's own, although espd has made neither.
#[tokio::test]
async fn the_version_of_a_processor_of_the_framework_is_raised_as_any_other() {
    let (framework, installation) = predecessor().await;
    framework.run("create index made_by_hand on projections.counts (n); create index strange on projections.counts (n, type)").await;
    installation.espctl(&[&IMPORT[..], &["--yes"]].concat()).await.printed();
    let daemon = installation.start_daemon();
    reaches(&framework.db.pool, "counts", 40).await;
    daemon.stop().await;
    let raised = COUNTS
        .replace(
            "name = 'counts'",
            "name = 'counts'\nversion = 2\nddl = ['create index counts_n on counts (n)']",
        )
        .replace("n bigint not null", "n bigint not null, note text");
    assert!(raised.contains("version = 2") && raised.contains("note text"), "{raised}");
    installation.declare("counts", &raised);
    let looked = installation.espctl(&["rebuild", "counts", "--dry-run"]).await;
    assert!(looked.stderr.contains("index projections.strange"), "{looked:?}");
    assert!(!looked.stderr.contains("counts_pkey") && !looked.stderr.contains("made_by_hand"), "{looked:?}");
    let swap = ["rebuild", "counts", "--go-live", "swap", "--yes"];
    let refused = installation.espctl(&swap).await.complained(1);
    assert!(refused.contains("index projections.strange"), "{refused}");
    assert!(!refused.contains("counts_pkey") && !refused.contains("made_by_hand"), "{refused}");
    framework.run("drop index projections.strange").await;
    installation.espctl(&swap).await.printed();
    assert_eq!(installation.status("counts").await["version"], 2);
    let keys = "select count(*) from pg_constraint where conrelid = 'projections.counts'::regclass and contype = 'p'";
    assert_eq!(count(&framework, keys).await, 1);
    installation.espctl(&["verify", "counts"]).await.printed();
    installation.declare("counts", COUNTS);
    installation.espctl(&["rollback", "counts", "--yes"]).await.printed();
}

#[tokio::test]
async fn nothing_is_taken_over_from_a_running_processor_or_onto_missing_tables() {
    let (framework, installation) = predecessor().await;
    let all = [&IMPORT[..], &["--yes"]].concat();
    let mut running = framework.db.pool.acquire().await.unwrap();
    sqlx::query("select pg_advisory_lock(id) from projector_tracker where name = 'Todo::Counts'")
        .execute(&mut *running)
        .await
        .unwrap();
    let complaint = installation.espctl(&all).await.complained(1);
    assert!(complaint.contains("Todo::Counts is still running (database session "), "{complaint}");
    sqlx::query("select pg_advisory_unlock_all()").execute(&mut *running).await.unwrap();

    let mut slow = framework.db.pool.begin().await.unwrap();
    framework.write_in(&mut slow, Write { lock: false, ..Write::of("slow") }).await;
    framework
        .run("update projector_tracker set last_processed_event_id = 41 where name = 'Todo::Counts'")
        .await;
    let complaint = installation.espctl(&all).await.complained(1);
    assert!(complaint.contains("41 is not settled yet"), "{complaint}");
    slow.commit().await.unwrap();

    framework.run("drop table projections.counts").await;
    let complaint = installation.espctl(&all).await.complained(1);
    assert!(complaint.contains("projections.counts does not exist"), "{complaint}");
    let complaint = installation.espctl(&["import-positions", "counts=Nobody", "--yes"]).await.complained(1);
    assert!(complaint.contains("projector_tracker has no row for Nobody"), "{complaint}");
    let complaint = installation.espctl(&["import-positions", "counts=Nowhere", "--yes"]).await.complained(1);
    assert!(complaint.contains("projector_tracker has no position for Nowhere"), "{complaint}");
    let complaint = installation.espctl(&["import-positions", "nobody", "--yes"]).await.complained(1);
    assert!(complaint.contains("no processor nobody is declared"), "{complaint}");
    let complaint = installation.espctl(&["import-positions", "--yes"]).await.complained(1);
    assert!(complaint.contains("no declared processor has a predecessor of its name"), "{complaint}");
    assert_eq!(count(&framework, "select count(*) from espd.trackers").await, 0);
}

#[tokio::test]
async fn no_table_that_another_processor_writes_is_taken_over_and_no_reactor_that_could_not_run() {
    let (framework, installation) = predecessor().await;
    installation.espctl(&[&IMPORT[..], &["--yes"]].concat()).await.printed();
    framework
        .run("insert into projector_tracker (name, last_processed_event_id) values ('thief', 5), ('emitter', 5), ('below', -5), ('beyond', 99999999)")
        .await;
    // As of another daemon on the store.
    let refused = async |name: &str| {
        let another = Installation::new(&framework.db.url, SETTINGS);
        another.declare(name, &COUNTS.replace("name = 'counts'", &format!("name = '{name}'")));
        another.espctl(&["import-positions", name, "--yes"]).await
    };
    let said = refused("thief").await;
    assert!(said.stdout.contains("projections.counts belongs to processor counts: declare"), "{said:?}");
    let said = refused("below").await;
    assert!(said.stdout.contains("has a position below 0, -5"), "{said:?}");
    let said = refused("beyond").await;
    assert!(said.stdout.contains("99999999 is beyond 40, the last event"), "{said:?}");

    // Nor one of another store in the database.
    framework
        .run("create schema other; create table other.projection_tables as select * from espd.projection_tables; delete from espd.projection_tables")
        .await;
    let said = installation.espctl(&[&IMPORT[..], &["--yes", "--overwrite"]].concat()).await;
    let expected = "projections.counts belongs to processor counts of the store in schema other";
    assert!(said.code == Some(1) && said.stdout.contains(expected), "{said:?}");

    let emitter = "[reactor]\nname = 'emitter'\nemits = ['Done']\n[[reactor.on]]\nevents = ['A']\n\
                   sql = \"perform espd.emit('Done', event.aggregate_id, '{}')\"\n";
    installation.declare("emitter", emitter);
    let said = installation.espctl(&["import-positions", "emitter", "--yes"]).await;
    assert!(said.code == Some(1) && said.stdout.contains("espd only reads the store"), "{said:?}");
    let checked = installation.espctl(&["check"]).await;
    let expected = "reactor emitter emits events, but espd only reads the store";
    assert!(checked.code != Some(0) && checked.stderr.contains(expected), "{checked:?}");
}

#[tokio::test]
async fn nobody_is_told_that_a_store_which_is_only_read_knows_what_is_declared() {
    let framework = Framework::create().await;
    let settings = format!("{SETTINGS}[[event]]\ntype = 'A'\nschema = {{ type = 'object' }}\n");
    let installation = Installation::new(&framework.db.url, &settings);
    installation.espctl(&["migrate"]).await.printed();
    for arguments in [&["schema", "apply"][..], &["schema", "apply", "--dry-run"]] {
        let said = installation.espctl(arguments).await.complained(1);
        assert!(said.contains("espd only reads a store of this layout"), "{said}");
    }
}

/// As docs/event_sourcery.md has it: the roles, then the tables that are taken over, then the position.
#[tokio::test]
async fn a_processor_moves_under_the_daemons_role() {
    let (framework, owner) = predecessor().await;
    let login = format!("mover_{}", framework.db.name);
    framework
        .run(&format!(
            "do $$ begin create role espd_daemon; exception when duplicate_object or unique_violation then null; end $$;
             create role {login} login in role espd_daemon; alter role {login} set role espd_daemon"
        ))
        .await;
    let url = framework
        .db
        .url
        .replace("//espd@", &format!("//{login}@"))
        .replace("user=espd", &format!("user={login}"));
    let daemon = Installation::new(&url, SETTINGS);
    daemon.declare("counts", COUNTS);
    let script = owner.espctl(&["roles"]).await.printed();
    // Other tests make the roles in databases of their own, and the roles are the server's.
    eventually("the roles", async || {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("begin; {script}\n; commit")))
            .execute(&framework.db.pool)
            .await
            .ok()
    })
    .await;
    let all = [&IMPORT[..], &["--yes"]].concat();
    let complaint = daemon.espctl(&all).await.complained(1);
    let remedy = "alter table \"projections\".\"counts\" owner to \"espd_daemon\"";
    assert!(complaint.contains(remedy), "{complaint}");
    framework.run("grant select, insert, update, delete on projections.counts to espd_daemon").await;
    daemon.espctl(&all).await.printed();
    let reset = ["reset", "counts", "--in-place", "--yes"];
    let complaint = daemon.espctl(&reset).await.complained(1);
    assert!(complaint.contains("only its owner may do that"), "{complaint}");
    framework.run(remedy).await;
    let running = daemon.start_daemon();
    reaches(&framework.db.pool, "counts", 40).await;
    daemon.espctl(&reset).await.printed();
    reaches(&framework.db.pool, "counts", 40).await;
    running.stop().await;
    framework.run("revoke select on projector_tracker from espd_daemon").await;
    let complaint = daemon.espctl(&all).await.complained(1);
    assert!(complaint.contains("permission denied for table projector_tracker"), "{complaint}");
    assert!(complaint.contains("espctl roles"), "{complaint}");
}

#[tokio::test]
async fn roles_and_doctor_know_the_store() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.espctl(&["migrate"]).await.printed();
    framework.run("create schema projections").await;
    let script = installation.espctl(&["roles"]).await.printed();
    framework.run(&format!("begin; select pg_advisory_xact_lock(1); {script}\n; commit")).await;
    let may = "select (has_table_privilege('espd_daemon', 'public.events', 'select')
                       and has_sequence_privilege('espd_daemon', 'public.events_id_seq', 'select')
                       and not has_table_privilege('espd_daemon', 'public.events', 'insert'))::int::bigint";
    assert_eq!(count(&framework, may).await, 1);
    let outcome = installation.espctl(&["doctor", "--json"]).await;
    let findings: Vec<serde_json::Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let level =
        |check: &str| findings.iter().find(|finding| finding["check"] == check).map(|f| f["level"].clone());
    for check in ["events_table", "sequence", "horizon", "privileges", "processing_schema"] {
        assert_eq!(level(check), Some(json!("ok")), "{check}");
    }
    assert_eq!(level("event_store_schema"), None);
}

#[tokio::test]
async fn an_event_without_a_uuid_is_a_fault_of_the_store() {
    let framework = Framework::create().await;
    let installation = Installation::new(&framework.db.url, SETTINGS);
    installation.declare_notes("notes", "");
    installation.espctl(&["migrate"]).await.printed();
    framework.run("alter table public.events alter column uuid drop not null").await;
    installation.espctl(&["check"]).await.printed();
    framework
        .run(
            "insert into public.events (uuid, aggregate_id, type, body, version)
             values (null, public.uuid_generate_v4(), 'todo_added', '{}', 1)",
        )
        .await;
    for complaint in [
        installation.espctl(&["check"]).await.complained(64),
        installation.espd(&["run"]).await.complained(64),
    ] {
        // The daemon's log is JSON.
        let complaint = complaint.replace("\\\"", "\"");
        for words in [
            "event 1 of \"public\".\"events\" has no uuid",
            "alter table \"public\".\"events\" alter column uuid set not null",
        ] {
            assert!(complaint.contains(words), "{words}: {complaint}");
        }
    }
    framework.run("drop index public.events_uuid_idx; truncate public.events").await;
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("no index finds those that have none"), "{complaint}");
}
