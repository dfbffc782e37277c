//! `espctl delete-aggregate`: the events are gone for good, and everything else goes on.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::espctl::roles::{Roles, may_not};
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};
use crate::support::{self, Database};

const CUSTOMER: &str = "00000000-0000-4000-8000-00000000000a";
const OTHER: &str = "00000000-0000-4000-8000-00000000000b";

const FAILING: &str = "[projector]\nname = 'failing'\n[projector.tables]\nnames = 'id bigint'\n\
    [projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n\
    [[projector.on]]\nevents = ['Registered']\nsql = '''raise exception 'no %', event.body->>'name' '''\n";

const REMINDING: &str = "[reactor]\nname = 'reminding'\nemits = ['Reminded']\nstart = 'beginning'\n\
    [[reactor.on]]\nevents = ['Registered']\nsql = '''\n\
    perform espd.emit_after('Reminded', event.aggregate_id, event.body, interval '1 day')'''\n";

async fn register(installation: &Installation, aggregate: &str) {
    let line = |event_type: &str| {
        format!(
            "{{\"aggregate_id\":\"{aggregate}\",\"type\":\"{event_type}\",\"body\":{{\"name\":\"Ada\"}}}}\n"
        )
    };
    let lines = [line("Registered"), line("A")].concat();
    installation.espctl_fed(&["append"], &lines).await.printed();
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}

/// A daemon whose processors have handled the events of an aggregate, which are the last ones of the store.
async fn followed(url: &str, projections: &Database, settings: &str) -> (Installation, Program) {
    let installation = Installation::new(url, &format!("[runner]\npoll_interval_max = '50ms'\n{settings}"));
    installation.declare_notes("notes", "").declare("failing", FAILING).declare("reminding", REMINDING);
    let daemon = installation.start_daemon();
    register(&installation, OTHER).await;
    register(&installation, CUSTOMER).await;
    for name in ["notes", "failing", "reminding"] {
        reaches(&projections.pool, name, 4).await;
    }
    eventually("two dead letters", async || {
        (count(&projections.pool, "select count(*) from espd.dead_letters").await == 2).then_some(())
    })
    .await;
    (installation, daemon)
}

async fn goes_on(installation: &Installation, projections: &PgPool, events: &PgPool) {
    let last = append(events, 3).await;
    for name in ["notes", "failing", "reminding"] {
        reaches(projections, name, last).await;
        let status = installation.status(name).await;
        assert_eq!((&status["state"], &status["diverged"]), (&json!("live"), &Value::Null), "{status}");
    }
}

#[tokio::test]
async fn a_deleted_aggregate_is_gone_and_its_followers_go_on() {
    let db = support::database().await;
    let (installation, daemon) = followed(&db.url, &db, "").await;
    let delete = ["delete-aggregate", CUSTOMER, "--why", "court order 12/27"];
    let refused = installation.espctl(&delete).await.complained(1);
    assert!(
        refused.contains("deletes 2 events (1 A, 1 Registered)") && refused.contains("add --yes"),
        "{refused}"
    );
    let told = installation.espctl(&[&delete[..], &["--yes"]].concat()).await.printed();
    for part in [
        "deleted 2 events (1 A, 1 Registered) of aggregate 00000000-0000-4000-8000-00000000000a for good",
        "with them: 1 dead letters, 1 emissions, 3 witnesses\n",
        "projector notes handles A: tables notes; `espctl reset notes` builds them anew",
        "projector failing handles Registered",
        "reactor reminding handles Registered",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(!told.contains("accept-history"), "{told}");
    goes_on(&installation, &db.pool, &db.pool).await;
    daemon.stop().await;

    let record: Value =
        sqlx::query_scalar("select to_jsonb(d) - 'id' - 'deleted_at' from espd.deleted_aggregates as d")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    assert_eq!(
        (&record["why"], &record["types"]),
        (&json!("court order 12/27"), &json!({ "A": 1, "Registered": 1 }))
    );
    assert_eq!(
        (&record["first_id"], &record["last_id"], &record["last_version"]),
        (&json!(3), &json!(4), &json!(2))
    );
    assert!(record["deleted_by"].as_str().unwrap().contains('@') && record["login"] == "espd", "{record}");
    let left = "select (select count(*) from espd.events where aggregate_id::text like '%00000000000a')
        + (select count(*) from espd.emissions where aggregate_id::text like '%00000000000a')
        + (select count(*) from espd.dead_letters where event_id > 2)
        + (select count(*) from espd.trackers where last_error::text like '%Ada%')";
    assert_eq!(count(&db.pool, left).await, 0);
    assert_eq!(
        count(&db.pool, "select count(*) from espd.dead_letters").await,
        1,
        "that of another aggregate"
    );

    let again = installation.espctl(&[&delete[..], &["--yes"]].concat()).await.complained(1);
    assert!(again.contains("has no event of aggregate"), "{again}");
    let unfounded =
        installation.espctl(&["delete-aggregate", OTHER, "--why", " ", "--yes"]).await.complained(1);
    assert!(unfounded.contains("--why is empty"), "{unfounded}");
    register(&installation, CUSTOMER).await;
    let version = "select min(version) from espd.events where aggregate_id::text like '%00000000000a'";
    assert_eq!(count(&db.pool, version).await, 1);
}

#[tokio::test]
async fn processors_in_another_database_go_on_as_well() {
    let (events, projections) = (support::database().await, support::database().await);
    sqlx::raw_sql("drop function espd.hold_trackers, espd.forget_events")
        .execute(&events.pool)
        .await
        .unwrap();
    let settings = format!("[projections]\nurl = '{}'\n", projections.url);
    let (installation, daemon) = followed(&events.url, &projections, &settings).await;
    let delete = ["delete-aggregate", CUSTOMER, "--why", "court order", "--yes", "--json"];
    let report = installation.espctl(&delete).await.json();
    assert_eq!(report["deleted"]["removed"]["witnesses"], 3, "{report}");
    assert_eq!(report["deleted"]["removed"]["dead_letters"], 1, "{report}");
    assert_eq!((&report["diverged"], &report["appended_meanwhile"]), (&json!([]), &json!({})), "{report}");
    goes_on(&installation, &projections.pool, &events.pool).await;
    daemon.stop().await;
}

#[tokio::test]
async fn only_operators_delete() {
    let roles = Roles::create().await;
    let statement = "select espd.delete_aggregate(gen_random_uuid(), 'me', 'why')";
    for role in ["espd_reader", "espd_appender", "espd_daemon"] {
        let (_, pool) = roles.login(role).await;
        may_not(&pool, &[statement, "select espd.hold_trackers()", "delete from espd.deleted_aggregates"])
            .await;
    }
    let (installation, pool) = roles.login("espd_operator").await;
    let id = append(&roles.db.pool, 1).await;
    let aggregate: uuid::Uuid = sqlx::query_scalar("select aggregate_id from espd.events where id = $1")
        .bind(id)
        .fetch_one(&pool)
        .await
        .unwrap();
    let aggregate = aggregate.to_string();
    let told =
        installation.espctl(&["delete-aggregate", &aggregate, "--why", "asked for", "--yes"]).await.printed();
    assert!(told.contains("deleted 1 event (1 A)"), "{told}");
    let login: String =
        sqlx::query_scalar("select login from espd.deleted_aggregates").fetch_one(&pool).await.unwrap();
    assert!(login.starts_with("login_espd_operator_"), "{login}");
    may_not(&pool, &["delete from espd.events", "update espd.deleted_aggregates set why = 'x'"]).await;
}
