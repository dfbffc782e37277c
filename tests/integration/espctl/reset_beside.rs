//! A reset builds a projector again beside its tables: nobody who reads misses a row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Program};

fn declaration(more: &str, columns: &str, sql: &str) -> String {
    format!(
        "[projector]\nname = 'orders'\n{more}\n[projector.tables]\norders = 'id bigint primary key, {columns}'\n\
         [[projector.on]]\nevents = ['A']\nsql = \"insert into orders values ({sql})\"\n"
    )
}

/// A projector that has handled five events.
async fn running() -> (Database, Installation, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    installation.declare("orders", &declaration("", "n bigint", "event.id, 2 * event.id"));
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "orders", 5).await;
    (db, installation, daemon)
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
}

async fn fact(pool: &PgPool, query: &str) -> String {
    let query = format!("select ({query})::text");
    let fact: Option<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(pool).await.unwrap();
    fact.unwrap_or_default()
}

/// Reads the table in a loop until it is told to end, and returns the fewest rows that it has seen.
fn read_all_the_time(db: &Database) -> (Arc<AtomicBool>, tokio::task::JoinHandle<i64>) {
    let (is_over, pool) = (Arc::new(AtomicBool::new(false)), db.pool.clone());
    let told = Arc::clone(&is_over);
    let reading = tokio::spawn(async move {
        let mut fewest = i64::MAX;
        while !told.load(Ordering::Relaxed) {
            let count = sqlx::query_scalar("select count(*) from orders").fetch_one(&pool).await.unwrap();
            fewest = fewest.min(count);
        }
        fewest
    });
    (is_over, reading)
}

const RIGHT: &str = "select array_agg(n order by id) from orders";

#[tokio::test]
async fn a_reset_leaves_the_table_its_rights_and_all_that_its_readers_see() {
    let (db, installation, daemon) = running().await;
    execute(&db.pool, "create view doubled as select n from orders; update orders set n = -1 where id = 3")
        .await;
    let before = fact(&db.pool, "select 'orders'::regclass::oid").await;
    let question = installation.espctl(&["reset", "orders"]).await.complained(1);
    for said in
        ["This builds version 1 of orders from 5 ids beside public.orders", "--in-place drops and recreates"]
    {
        assert!(question.contains(said), "{question}");
    }
    let cascade = installation.espctl(&["reset", "orders", "--cascade", "--yes"]).await.complained(1);
    assert!(
        cascade.contains("nothing of others is dropped: leave --cascade out, or add --in-place"),
        "{cascade}"
    );

    let (is_over, reading) = read_all_the_time(&db);
    let outcome = installation.espctl(&["reset", "orders", "--yes", "--json"]).await;
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(reading.await.unwrap(), 5);
    assert!(outcome.stderr.contains("--in-place drops and recreates them instead"), "{outcome:?}");
    let done: serde_json::Value = serde_json::from_str(&outcome.printed()).unwrap();
    let expected = json!([{
        "name": "orders", "way": "beside", "in_place_because": null, "version": 1, "from": 5, "position": 5,
        "changed_rows": 1, "archived_in": null, "dropped": [],
    }]);
    assert_eq!(done, expected);
    assert_eq!(fact(&db.pool, RIGHT).await, "{2,4,6,8,10}");
    assert_eq!(fact(&db.pool, "select 'orders'::regclass::oid").await, before, "the table is the same one");
    assert_eq!(fact(&db.pool, "select count(*) from doubled").await, "5");
    append(&db.pool, 1).await;
    reaches(&db.pool, "orders", 6).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_projector_that_has_failed_or_whose_table_has_changed_is_reset_beside_as_well() {
    let (db, installation, daemon) = running().await;
    daemon.stop().await;
    let failing = "event.id, 2 * event.id / (event.id - 6)";
    installation.declare(
        "orders",
        &declaration("[projector.retry]\nmax_attempts = 1\non_failure = 'stop'", "n bigint", failing),
    );
    append(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    let failed = "select failed_at is not null from espd.trackers where name = 'orders'";
    eventually("it has failed", async || (fact(&db.pool, failed).await == "true").then_some(())).await;
    installation
        .declare("orders", &declaration("", "n bigint, twice bigint", "event.id, 2 * event.id, event.id"));
    let (is_over, reading) = read_all_the_time(&db);
    let said = installation.espctl(&["reset", "orders", "--yes"]).await.printed();
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(reading.await.unwrap(), 5);
    assert!(
        said.contains("version 1 of orders is live; the former tables are kept in schema public_orders_v1"),
        "{said}"
    );
    assert_eq!(installation.espctl(&["reload"]).await.code, Some(0));
    reaches(&db.pool, "orders", 6).await;
    assert_eq!(fact(&db.pool, "select array_agg(twice order by id) from orders").await, "{1,2,3,4,5,6}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_built_beside_is_reset_in_place_and_told_why() {
    let (db, installation, daemon) = running().await;
    installation.declare(
        "mailer",
        "[reactor]\nname = 'mailer'\nstart = 'beginning'\n[[reactor.on]]\nevents = ['A']\nsql = 'null;'\n",
    );
    assert_eq!(installation.espctl(&["reload"]).await.code, Some(0));
    reaches(&db.pool, "mailer", 5).await;
    let outcome = installation.espctl(&["reset", "mailer", "--yes", "--json"]).await;
    let because = "only projectors with declared tables are built beside";
    assert!(outcome.stderr.contains(&format!("mailer is reset in place: {because}")), "{outcome:?}");
    let done: serde_json::Value = serde_json::from_str(&outcome.printed()).unwrap();
    assert_eq!((&done[0]["way"], &done[0]["in_place_because"]), (&json!("in_place"), &json!(because)));

    daemon.stop().await;
    installation.declare("orders", &declaration("version = 2", "n bigint", "event.id, 2 * event.id"));
    installation.espctl(&["reset", "orders", "--in-place", "--yes"]).await.printed();
    installation.declare("orders", &declaration("", "n bigint", "event.id, 2 * event.id"));
    let outcome = installation.espctl(&["reset", "orders", "--yes"]).await;
    let because = "version 2 of orders serves, and the configuration declares version 1";
    assert!(outcome.stderr.contains(&format!("orders is reset in place: {because}")), "{outcome:?}");
}

/// The event has been handled, and is handled the next time: what serves loses nothing because of the moment in between.
#[tokio::test]
async fn an_event_that_fails_once_is_tried_again_as_declared() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    execute(&db.pool, "create sequence public.tries").await;
    let declaration = "[projector]\nname = 'orders'\n[projector.tables]\norders = 'id bigint primary key, n bigint'\n\
        [projector.retry]\ninitial = '1ms'\nmax_attempts = 20\non_failure = 'park'\n\
        [[projector.on]]\nevents = ['A']\nsql = \"if event.id = 3 and nextval('public.tries') between 2 and 6 then raise 'away'; end if; \
        insert into orders values (event.id, 2 * event.id)\"\n";
    installation.declare("orders", declaration);
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "orders", 5).await;
    let outcome = installation.espctl(&["reset", "orders", "--yes"]).await;
    assert!(!outcome.stderr.contains("set aside"), "{outcome:?}");
    outcome.printed();
    assert_eq!(fact(&db.pool, RIGHT).await, "{2,4,6,8,10}");
    assert_eq!(fact(&db.pool, "select last_value > 3 from public.tries").await, "true", "it has failed");
    assert_eq!(fact(&db.pool, "select count(*) from espd.dead_letters").await, "0");
    daemon.stop().await;
}

/// What has used up its attempts where it serves has none more beside.
#[tokio::test]
async fn what_is_a_dead_letter_already_is_tried_once() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    let declaration = "[projector]\nname = 'orders'\n[projector.tables]\norders = 'id bigint primary key, n bigint'\n\
        [projector.retry]\ninitial = '1ms'\nmax_attempts = 3\non_failure = 'skip'\n\
        [[projector.on]]\nevents = ['A']\nsql = \"if event.id = 3 or event.id = 4 and (select count(*) from public.refused) > 0 then raise 'never'; end if; \
        insert into orders values (event.id, 2 * event.id)\"\n";
    execute(&db.pool, "create table public.refused ()").await;
    installation.declare("orders", declaration);
    append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "orders", 5).await;
    execute(&db.pool, "insert into public.refused default values").await;
    installation.espctl(&["reset", "orders", "--yes"]).await.printed();
    let attempts = "select string_agg(event_id || ':' || attempts, ' ' order by event_id) from espd.dead_letters where processor = 'orders'";
    assert_eq!(fact(&db.pool, attempts).await, "3:1 4:3");
    daemon.stop().await;
}
