//! Tables with everything that `create table` takes: made, owned and made again by a reset.

use sqlx::{AssertSqlSafe, PgPool};

use crate::support;
use crate::support::facts::{append, eventually, position, reaches};
use crate::support::program::Installation;

const DECLARATION: &str = r#"
[projector]
name = "readings"
ddl = ["create table readings_low partition of readings for values from (0) to (3)", "create table readings_high partition of readings default"]

[projector.tables]
small = "(event_id bigint primary key) with (fillfactor = 70)"
fast = "unlogged (event_id bigint primary key) with (autovacuum_enabled = off)"

[projector.tables.readings]
columns = """
  event_id bigint,
  n int not null,
  primary key (event_id, n)"""
options = "partition by range (n)"
comment = "it's what was read"

[projector.tables.noted]
columns = "event_id bigint primary key, unlogged int"
options = "unlogged with (fillfactor = 50)"

[[projector.on]]
events = ["A"]
sql = """
insert into readings values (event.id, (event.body->>'n')::int);
insert into small values (event.id); insert into fast values (event.id); insert into noted values (event.id, 1)"""
"#;

async fn facts(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "select concat_ws(' ', relname, relkind, relpersistence, relispartition, reloptions::text,
           obj_description(oid, 'pg_class'))
         from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') order by relname",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_table_has_what_was_declared_for_it_also_after_a_reset() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare("readings", DECLARATION);
    let last = append(&db.pool, 4).await;
    assert!(installation.espctl(&["check"]).await.printed().starts_with("ok: "));
    let daemon = installation.start_daemon();
    reaches(&db.pool, "readings", last).await;
    let expected = [
        "fast r u f {autovacuum_enabled=off}",
        "noted r u f {fillfactor=50}",
        "readings p p f it's what was read",
        "readings_high r p t",
        "readings_low r p t",
        "small r p f {fillfactor=70}",
    ];
    assert_eq!(facts(&db.pool).await, expected);
    for _ in 0..2 {
        installation.espctl(&["reset", "readings", "--in-place", "--yes"]).await.printed();
        eventually("the rows again", async || {
            let query = AssertSqlSafe("select count(*) from readings".to_owned());
            let rows: i64 = sqlx::query_scalar(query).fetch_one(&db.pool).await.ok()?;
            (rows == 4 && position(&db.pool, "readings").await == last).then_some(())
        })
        .await;
        assert_eq!(facts(&db.pool).await, expected);
    }
    // What is shown can be read again and is the same declaration.
    let shown = installation.espctl(&["config", "show"]).await.printed();
    let again = Installation::without_database("");
    std::fs::write(again.path().join("espd.toml"), &shown).unwrap();
    assert_eq!(again.espctl(&["config", "show"]).await.printed(), shown);
    daemon.stop().await;
}

#[tokio::test]
async fn mistakes_in_options_are_found_at_their_place() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare("readings", &DECLARATION.replace("by range (n)", "by range (m)"));
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("readings.toml:15:32: column \"m\""), "{complaint}");
}
