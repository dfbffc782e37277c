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
