//! Locks that keep processors waiting, and the sessions that hold them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use super::HeldBy;
use crate::postgres::query_text::present;
use crate::postgres::row::from_row;

/// A lock that a processor has waited for longer than a second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LockWait {
    /// For how long the processor's session has waited, in seconds.
    pub seconds: f64,
    /// The table or index, if the lock is on one.
    pub relation: Option<String>,
    /// The transactions that hold the lock, or that will get it before.
    pub held_by: Vec<HeldBy>,
}

/// A session that waits, and one that it waits for.
struct Row {
    processor: String,
    seconds: f64,
    relation: Option<String>,
    pid: Option<i32>,
    user_name: Option<String>,
    application_name: Option<String>,
    state: Option<String>,
    query: Option<String>,
    begun_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    gid: Option<String>,
}

from_row!(Row {
    processor,
    seconds,
    relation,
    pid,
    user_name,
    application_name,
    state,
    query,
    begun_at,
    now,
    gid
});

/// The locks that processors wait for, by the name of the processor. A runner's session is known by its
/// `application_name`, also behind a pooler.
pub(super) async fn list(connection: &mut PgConnection) -> Result<BTreeMap<String, LockWait>, sqlx::Error> {
    let statement = "-- list_lock_waits
         with recursive waiting as (
           select a.pid, substr(a.application_name, 7) as processor, l.relation, l.transactionid,
                  -- Servers before PostgreSQL 14 do not tell since when; the statement has waited no longer than it runs.
                  coalesce(extract(epoch from clock_timestamp()
                    - coalesce((to_jsonb(l) ->> 'waitstart')::timestamptz, a.query_start)), 1)::float8 as seconds
           from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
           where not l.granted and a.application_name like 'espd: %' and a.datname = current_database()
         ), chain (processor, pid, depth) as (
           select w.processor, b.pid, 1 from waiting as w, unnest(pg_blocking_pids(w.pid)) as b (pid)
           where w.seconds >= 1
           union
           -- Who waits as well is not to blame, but who keeps it waiting.
           select c.processor, b.pid, c.depth + 1 from chain as c, unnest(pg_blocking_pids(c.pid)) as b (pid)
           where c.depth < 5
         )
         select distinct on (c.processor, c.pid)
                c.processor, w.seconds, case when w.relation is not null then w.relation::regclass::text end as relation,
                nullif(c.pid, 0) as pid, coalesce(a.usename, p.owner)::text as user_name, a.application_name, a.state,
                left(a.query, 200) as query, coalesce(a.xact_start, p.prepared) as begun_at, clock_timestamp() as now, p.gid
         from chain as c
         join waiting as w on w.processor = c.processor
         left join pg_stat_activity as a on a.pid = c.pid
         left join lateral (
           select x.gid, x.owner, x.prepared
           from pg_prepared_xacts as x
           join pg_locks as t on t.locktype = 'transactionid' and t.pid is null and t.transactionid = x.transaction
           where c.pid = 0 and x.database = current_database()
             and (x.transaction = w.transactionid
                  or exists (select from pg_locks as h where h.virtualtransaction = t.virtualtransaction
                               and h.pid is null and h.relation = w.relation))
           limit 1
         ) as p on true
         where not exists (select from pg_locks as l where l.pid = c.pid and not l.granted)
         order by c.processor, c.pid, w.seconds desc";
    let rows: Vec<Row> = sqlx::query_as(statement).persistent(false).fetch_all(connection).await?;
    let mut waits = BTreeMap::new();
    for row in rows {
        let wait = LockWait { seconds: row.seconds, relation: row.relation.clone(), held_by: Vec::new() };
        let wait: &mut LockWait = waits.entry(row.processor.clone()).or_insert(wait);
        wait.held_by.push(row.holder());
    }
    Ok(waits)
}

impl Row {
    fn holder(self) -> HeldBy {
        HeldBy {
            pid: self.pid,
            user: self.user_name,
            application_name: self.application_name,
            state: self.state,
            query: self.query.as_deref().map(present),
            seconds: self.begun_at.map(|at| (self.now - at).as_seconds_f64().max(0.0)),
            prepared: self.gid,
        }
    }
}
