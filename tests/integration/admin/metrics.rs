//! Metrics of what waits beside events, and of who writes where it must not.

use nix::sys::signal::Signal;
use sqlx::AssertSqlSafe;

use super::{parse_metrics, running};
use crate::support::facts::eventually;

/// Scheduled events, one for later, one that was refused, one that is due; and what a handler wants done after its commit.
const WAITING: &str = "
    select espd.append_at('2126-01-31T12:00:00Z', '{\"aggregate_id\": \"00000000-0000-4000-8000-000000000001\", \"type\": \"B\", \"body\": 1}');
    select espd.append_at('2026-01-31T12:00:00Z', '{\"aggregate_id\": \"00000000-0000-4000-8000-000000000001\", \"type\": \"B\", \"body\": 2}');
    update espd.scheduled_events set attempts = 1, last_error = 'no', next_try_at = '2126-01-31' where due_at < now();
    select espd.append_at('2026-01-31T12:00:00Z', '{\"aggregate_id\": \"00000000-0000-4000-8000-000000000001\", \"type\": \"B\", \"body\": 3}');
    insert into espd.effects (processor, version, event_id, event_uuid, event_type, payload, created_at)
      select 'notes', 1, 1, gen_random_uuid(), 'A', '1', now() - interval '1 hour' from generate_series(1, 2);";

/// A daemon that is not heard from is taken for dead, and then nobody looks for the lock.
#[tokio::test]
async fn a_locked_table_leaves_what_the_daemon_knows_and_is_named() {
    let (db, installation, daemon, client) = running("").await;
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table espd.trackers in access exclusive mode").execute(&mut *holder).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *holder).await.unwrap();
    let named = format!("Process {pid} ");
    let metrics = client.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("espd_build_info{") && metrics.body.contains("\nespd_database_up 0\n"));
    assert!(metrics.body.contains("espd_worker_up{worker=\"notes\"} 1"), "{}", metrics.body);
    let statuses = client.get("/api/v1/processors").await;
    assert!(statuses.status == 503 && statuses.body.contains("espd.trackers"), "{statuses:?}");
    assert!(statuses.body.contains(&named), "{statuses:?}");
    let outcome = installation.espctl(&["status"]).await;
    let (note, error) = outcome.stderr.split_once("error: ").unwrap_or_else(|| panic!("{outcome:?}"));
    for said in [note, error] {
        assert!(said.contains("a lock on espd.trackers") && said.contains(&named), "{outcome:?}");
    }
    assert_eq!(outcome.code, Some(1));
    assert!(error.contains(&format!("pg_terminate_backend({pid})")), "{outcome:?}");
    holder.rollback().await.unwrap();
    installation.espctl(&["status"]).await.printed();
    let metrics = client.get("/metrics").await.body;
    assert!(metrics.contains("\nespd_database_up 1\n"), "{metrics}");
    daemon.stop().await;
}

/// The table of migrations is read for `/readyz`.
#[tokio::test]
async fn a_locked_table_of_migrations_is_named_by_the_readiness() {
    let (db, _installation, daemon, client) = running("").await;
    let mut holder = db.pool.begin().await.unwrap();
    let table: String = sqlx::query_scalar(
        "select format('%I.%I', table_schema, table_name) from information_schema.tables
         where table_schema = 'espd' and table_name like '%migrations%' order by 1 limit 1",
    )
    .fetch_one(&mut *holder)
    .await
    .unwrap();
    let lock = format!("lock table {table} in access exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *holder).await.unwrap();
    let ready = client.get("/readyz").await;
    assert!(
        ready.status == 503 && ready.body.contains("a lock on") && ready.body.contains(&table),
        "{ready:?}"
    );
    let checks: serde_json::Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(checks["checks"]["database"]["ok"], true);
    holder.rollback().await.unwrap();
    client.get("/readyz").await.json(200);
    daemon.stop().await;
}

#[tokio::test]
async fn what_waits_is_counted_and_a_foreign_write_is_told() {
    let (db, installation, daemon, client) = running("").await;
    let mut holder = db.pool.acquire().await.unwrap();
    // The daemon waits for its turn to append what is due.
    let hold = "select pg_advisory_lock(hashtextextended('espd: scheduled events of espd', 0))";
    sqlx::query(hold).execute(&mut *holder).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(WAITING)).execute(&db.pool).await.unwrap();
    let intruder = "[projector]\nname = 'intruder'\n[[projector.on]]\nevents = ['A']\nsql = \"execute 'delete from no' || 'tes'\"\n";
    installation.declare("intruder", intruder);
    daemon.signal(Signal::SIGHUP);
    let metrics = eventually("a foreign write", async || {
        let metrics = parse_metrics(&client.get("/metrics").await.body);
        let told = "espd_processor_foreign_write{processor=\"intruder\"}";
        metrics.contains(&(told.into(), 1.0)).then_some(metrics)
    })
    .await;
    let value = |name: &str| {
        let sample = metrics.iter().find(|(sample, _)| sample == name);
        sample.unwrap_or_else(|| panic!("{name}: {metrics:?}")).1
    };
    assert_eq!(value("espd_processor_foreign_write{processor=\"notes\"}"), 0.0);
    assert_eq!(value("espd_scheduled_events_pending"), 3.0);
    assert_eq!(value("espd_scheduled_events_refused"), 1.0);
    assert!(value("espd_scheduled_event_overdue_seconds") > 86_400.0);
    assert_eq!(value("espd_effects_pending{processor=\"notes\"}"), 2.0);
    assert_eq!(value("espd_effects_pending{processor=\"intruder\"}"), 0.0);
    assert!(value("espd_effect_oldest_seconds{processor=\"notes\"}") >= 3_600.0);

    holder.close().await.unwrap();
    eventually("nothing is due", async || {
        let metrics = parse_metrics(&client.get("/metrics").await.body);
        metrics.contains(&("espd_scheduled_event_overdue_seconds".into(), 0.0)).then_some(())
    })
    .await;
    daemon.stop().await;
}
