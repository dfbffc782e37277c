//! Locks that keep processors waiting, and the sessions that hold them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

use super::HeldBy;
use crate::postgres::query_text::present;
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::processing::tracker::Trackers;
use crate::store::layout::Layout;

/// A lock that a processor has waited for longer than a second, or that a reset waits for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LockWait {
    /// For how long the session has waited, in seconds; of a reset: the present attempt.
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

/// Lists who keeps somebody waiting. `{waiting}` is the query of the sessions that wait, each with its processor and what it
/// waits for; `{blocking}` that of the sessions that they wait for.
const STATEMENT: &str = include_str!("lock_wait.sql");

/// The runners that have waited for a lock for longer than a second. A runner's session is known by its `application_name`,
/// also behind a pooler.
const WAITING_RUNNERS: &str = "
    select a.pid, substr(a.application_name, 7) as processor, l.relation::regclass::text as relation, l.relation as id,
           l.transactionid,
           -- Servers before PostgreSQL 14 do not tell since when; the statement has waited no longer than it runs.
           coalesce(extract(epoch from clock_timestamp()
             - coalesce((to_jsonb(l) ->> 'waitstart')::timestamptz, a.query_start)), 1)::float8 as seconds
    from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
    where not l.granted and a.application_name like 'espd: %' and a.application_name not like 'espd: reset %'
      and a.datname = current_database()";

const BLOCKING_RUNNERS: &str = "
    select w.processor, b.pid from waiting as w, unnest(pg_blocking_pids(w.pid)) as b (pid) where w.seconds >= 1";

/// The trackers that nobody owns, and that somebody has locked: none of the daemons that stand by waits for such a lock, because each passes
/// over what is locked. `{lives}` says that an owner lives.
const WAITING_TRACKERS: &str = "
    select null::int as pid, t.name as processor, '{shown}' as relation, to_regclass('{trackers}')::oid as id,
           t.xmax as transactionid,
           extract(epoch from clock_timestamp() - coalesce(t.lease_until, t.updated_at))::float8 as seconds
    from {trackers} as t
    where (t.lease_until is null or t.lease_until < clock_timestamp()) and not {lives}
      and exists (select from pg_locks as l
                  where l.locktype = 'transactionid' and l.granted and l.transactionid = t.xmax)";

/// The session of the last owner is told of as that.
const BLOCKING_TRACKERS: &str = "
    select w.processor, coalesce(l.pid, 0)
    from waiting as w
    join pg_locks as l on l.locktype = 'transactionid' and l.granted and l.transactionid = w.transactionid
    where w.seconds >= 1";

/// The resets that are to be done, with each table that somebody else uses, and with what they wait for just now.
const WAITING_RESETS: &str = "
    select a.pid, substr(a.application_name, 13) as processor,
           case when c.oid is not null then format('%I.%I', n.nspname, c.relname) end as relation,
           l.relation as id, l.transactionid, extract(epoch from clock_timestamp() - a.query_start)::float8 as seconds
    from pg_stat_activity as a
    join pg_locks as l on (l.pid = a.pid and not l.granted)
      or (l.granted and l.pid is distinct from a.pid and l.locktype = 'relation'
          and l.database = (select oid from pg_database where datname = current_database())
          and exists (select from {schema}.projection_tables as p
                      where p.processor = substr(a.application_name, 13)
                        and l.relation = to_regclass(format('%I.%I', p.table_schema, p.table_name))))
    left join pg_class as c on c.oid = l.relation
    left join pg_namespace as n on n.oid = c.relnamespace
    where a.application_name like 'espd: reset %' and a.datname = current_database()";

/// Whoever has a lock on a table stands in the way of a reset, also between its attempts. The processor's own runner uses it
/// only for moments, unless it really is waited for.
const BLOCKING_RESETS: &str = "
    select w.processor, b.pid from waiting as w, unnest(pg_blocking_pids(w.pid)) as b (pid)
    union
    select w.processor, coalesce(l.pid, 0)
    from waiting as w
    join pg_locks as l on l.granted and l.locktype = 'relation' and l.relation = w.id and l.pid is distinct from w.pid
    left join pg_stat_activity as a on a.pid = l.pid
    where a.application_name is distinct from 'espd: ' || w.processor";

/// The other sessions of this program that wait for a lock, or those of another one of the same name.
const WAITING_OWN: &str = "
    select a.pid, '' as processor,
           case when c.oid is not null then format('%I.%I', n.nspname, c.relname) end as relation,
           l.relation as id, l.transactionid,
           coalesce(extract(epoch from clock_timestamp()
             - coalesce((to_jsonb(l) ->> 'waitstart')::timestamptz, a.query_start)), 1)::float8 as seconds
    from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
    left join pg_class as c on c.oid = l.relation
    left join pg_namespace as n on n.oid = c.relnamespace
    where not l.granted and a.application_name = current_setting('application_name') and a.pid <> pg_backend_pid()
      and a.usename = session_user and a.datname = current_database()";

const BLOCKING_OWN: &str = "
    select w.processor, b.pid from waiting as w, unnest(pg_blocking_pids(w.pid)) as b (pid)";

/// The lock that a session of this program waits for.
pub(crate) async fn find_own_wait(connection: &mut PgConnection) -> Result<Option<LockWait>, sqlx::Error> {
    Ok(list_waits(connection, WAITING_OWN, BLOCKING_OWN).await?.remove(""))
}

/// The locks that processors wait for, by the name of the processor.
pub(super) async fn list(connection: &mut PgConnection) -> Result<BTreeMap<String, LockWait>, sqlx::Error> {
    list_waits(connection, WAITING_RUNNERS, BLOCKING_RUNNERS).await
}

/// The locks on trackers that keep daemons from claiming them, by the name of the processor. A lock that has been held for less than a
/// second is one of a claim.
pub(super) async fn list_of_trackers(
    connection: &mut PgConnection,
    trackers: &Trackers,
) -> Result<BTreeMap<String, LockWait>, sqlx::Error> {
    let waiting = WAITING_TRACKERS
        .replace("{shown}", &trackers.table().replace('"', "").replace('\'', "''"))
        .replace("to_regclass('{trackers}')", &format!("to_regclass({})", quote_literal(trackers.table())))
        .replace("{trackers}", trackers.table())
        .replace("{lives}", &trackers.owner_lives());
    let mut waits = list_waits(connection, &waiting, BLOCKING_TRACKERS).await?;
    for wait in waits.values_mut() {
        let longest = wait.held_by.iter().filter_map(|holder| holder.seconds).fold(0.0, f64::max);
        wait.seconds = wait.seconds.min(longest);
    }
    waits.retain(|_, wait| wait.seconds >= 1.0);
    Ok(waits)
}

/// The locks that resets wait for, by the name of the processor.
pub(super) async fn list_of_resets(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<BTreeMap<String, LockWait>, sqlx::Error> {
    let waiting = WAITING_RESETS.replace("{schema}", &layout.quoted_schema());
    list_waits(connection, &waiting, BLOCKING_RESETS).await
}

/// The lock that the reset of this processor waits for.
pub(crate) async fn find_reset_wait(
    connection: &mut PgConnection,
    layout: &Layout,
    name: &str,
) -> Result<Option<LockWait>, sqlx::Error> {
    Ok(list_of_resets(connection, layout).await?.remove(name))
}

async fn list_waits(
    connection: &mut PgConnection,
    waiting: &str,
    blocking: &str,
) -> Result<BTreeMap<String, LockWait>, sqlx::Error> {
    let statement = STATEMENT.replace("{waiting}", waiting).replace("{blocking}", blocking);
    let rows: Vec<Row> =
        sqlx::query_as(AssertSqlSafe(statement)).persistent(false).fetch_all(connection).await?;
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
