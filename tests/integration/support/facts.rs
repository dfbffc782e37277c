//! What tests wait for: facts in the database, never time.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sqlx::{PgConnection, PgPool};

/// How long a fact may take on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// Waits until `look` finds what is waited for; panics when it does not in a long time.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look).await
}

/// As [`eventually`], for what must not take longer than `time`.
pub async fn within<T>(time: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {time:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a daemon has written down that it runs, so that `espctl reload` finds it.
pub async fn is_listed(pool: &PgPool) {
    eventually("the daemon's row", async || {
        let listed = sqlx::query_scalar::<_, bool>("select exists (select from espd.workers)");
        listed.fetch_one(pool).await.unwrap().then_some(())
    })
    .await;
}

/// Appends `count` events of type `A` with `n` from 1 in their bodies, as a stranger would, and returns the last id.
pub async fn append(pool: &PgPool, count: i64) -> i64 {
    append_typed(pool, "A", count).await
}

/// As [`append`], of another type.
pub async fn append_typed(pool: &PgPool, event_type: &str, count: i64) -> i64 {
    sqlx::query_scalar(
        "with appended as (
           insert into espd.events (aggregate_id, type, version, body)
           select gen_random_uuid(), $1, 1, jsonb_build_object('n', n) from generate_series(1, $2) as n
           returning id
         )
         select max(id) from appended",
    )
    .bind(event_type)
    .bind(count)
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Where a processor stands; 0 before it has a tracker.
pub async fn position(pool: &PgPool, name: &str) -> i64 {
    sqlx::query_scalar("select coalesce(max(position), 0) from espd.trackers where name = $1")
        .bind(name)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Waits until a processor has reached a position.
pub async fn reaches(pool: &PgPool, name: &str, wanted: i64) {
    let what = format!("{name} at {wanted}");
    eventually(&what, async || (position(pool, name).await >= wanted).then_some(())).await;
}

/// Requires that a table of notes has every event of type `A` exactly once and in order.
pub async fn assert_exactly_once(events: &PgPool, projections: &PgPool, table: &str) {
    let handled: Vec<i64> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select event_id from {table} order by place")))
            .fetch_all(projections)
            .await
            .unwrap();
    let appended: Vec<i64> = sqlx::query_scalar("select id from espd.events where type = 'A' order by id")
        .fetch_all(events)
        .await
        .unwrap();
    let distinct: HashSet<&i64> = handled.iter().collect();
    let lost = appended.iter().filter(|id| !distinct.contains(id)).count();
    let doubled = handled.len() - distinct.len();
    assert!(handled == appended, "{table}: {lost} lost, {doubled} doubled, or out of order");
}

/// A gate that handlers wait at, with the event whose `n` is its number; closed from its making until it is opened.
pub struct Gate {
    number: i64,
    holder: PgConnection,
}

impl Gate {
    /// SQL that lets a handler wait at the gate.
    pub fn at(number: i64) -> String {
        format!(
            "if (event.body->>'n')::bigint = {number} then perform pg_advisory_xact_lock_shared({number}); end if;\n"
        )
    }

    pub async fn close(pool: &PgPool, number: i64) -> Self {
        let mut holder = pool.acquire().await.unwrap().detach();
        sqlx::query("select pg_advisory_lock($1)").bind(number).execute(&mut holder).await.unwrap();
        Self { number, holder }
    }

    /// Waits until a handler stands at the gate, and returns the process id of its backend.
    pub async fn visitor(&mut self) -> i32 {
        let Self { number, holder } = self;
        eventually(&format!("a handler at gate {number}"), async || {
            let query = sqlx::query_scalar(
                "select pid from pg_locks where locktype = 'advisory' and objid::bigint = $1 and not granted
                   and database = (select oid from pg_database where datname = current_database())",
            );
            query.bind(*number).fetch_optional(&mut *holder).await.unwrap()
        })
        .await
    }

    pub async fn open(mut self) {
        sqlx::query("select pg_advisory_unlock($1)")
            .bind(self.number)
            .execute(&mut self.holder)
            .await
            .unwrap();
    }
}
