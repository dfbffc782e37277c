//! Reads who may have drawn ids: the locks on the tables of events, and the transactions that hold them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{Holder, ObserveError, VirtualTransaction, Writer};
use crate::postgres::quote::quote_literal;

/// The locks that matter, joined to tables `t`.
///
/// Every insert takes `RowExclusiveLock`; so do updates and deletes, which are not told apart here.
/// `AccessExclusiveLock` counts because a transaction that creates a partition holds it on the
/// parent, and may write into the partition before others can see that it exists. That lock also
/// keeps readers out, from the moment in which it is requested.
const LOCKS: &str = "\
    pg_locks l on l.relation = t.oid
     and l.locktype = 'relation'
     and (l.mode = 'RowExclusiveLock' and l.granted or l.mode = 'AccessExclusiveLock')
     and l.database = (select oid from pg_database where datname = current_database())";

/// The columns that are read of such a lock. All but the last are null where there is none.
const LOCK: &str = "\
    l.virtualtransaction,
    l.granted,
    l.pid is null as is_prepared,
    l.mode = 'AccessExclusiveLock' as closes,
    pg_postmaster_start_time() as server_started";

/// What the locks say at one moment.
pub(super) struct Locks {
    /// The transactions that may have drawn ids and have not ended yet.
    pub(super) writers: Vec<Writer>,
    /// Whether a transaction keeps readers out of the table, or is about to.
    pub(super) is_closed: bool,
    /// Start of the server that was asked.
    pub(super) server_started: DateTime<Utc>,
}

/// Reads the locks on the tables of a store and on their partitions.
#[derive(Debug)]
pub(super) struct LockReader {
    /// The tables' oids, as a list of expressions.
    tables: String,
    /// Whether a table has partitions, as far as seen. Most have none, and planning a statement
    /// that looks for them takes longer than all the rest of an observation.
    has_heirs: bool,
}

impl LockReader {
    /// A reader for tables given by their names, qualified and quoted.
    pub(super) fn new(tables: &[String]) -> Self {
        let oids = tables.iter().map(|table| format!("{}::regclass", quote_literal(table)));
        Self { tables: oids.collect::<Vec<_>>().join(", "), has_heirs: false }
    }

    pub(super) async fn read(&mut self, connection: &mut PgConnection) -> Result<Locks, ObserveError> {
        let mut rows = self.fetch(connection).await?;
        if !self.has_heirs && any(&rows, "has_heirs")? {
            self.has_heirs = true;
            rows = self.fetch(connection).await?;
        }
        let Some(first) = rows.first() else {
            return Err(ObserveError::Database(sqlx::Error::RowNotFound));
        };
        let writers = rows.iter().filter_map(|row| granted_writer(row).transpose());
        Ok(Locks {
            writers: writers.collect::<Result<_, _>>()?,
            is_closed: any(&rows, "closes")?,
            server_started: first.try_get("server_started")?,
        })
    }

    /// Fetches at least one row, also where there is no lock. Whether there are partitions is looked up in
    /// the same snapshot, which is newer than the last value, so none that matters is overlooked.
    async fn fetch(&self, connection: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let tables = &self.tables;
        let statement = if self.has_heirs {
            format!(
                "-- read_locks_with_heirs
                 {}
                 select {LOCK}, true as has_heirs from t left join {LOCKS}",
                self.tables_and_heirs()
            )
        } else {
            format!(
                "-- read_locks
                 select {LOCK}, t.relhassubclass as has_heirs
                   from pg_class t left join {LOCKS}
                  where t.oid in ({tables})"
            )
        };
        sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(connection).await
    }

    /// The transactions that may have drawn ids, described, the oldest first.
    pub(super) async fn describe_writers(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<(Writer, Holder)>, ObserveError> {
        let statement = format!(
            "-- describe_writers
             {},
             w as (select distinct l.virtualtransaction, l.pid from t join {LOCKS} where l.granted)
             select w.virtualtransaction,
                    w.pid,
                    w.pid is null as is_prepared,
                    coalesce(a.usename, p.owner)::text as user_name,
                    a.application_name,
                    a.state,
                    left(a.query, 200) as query,
                    extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 as age_s,
                    p.gid
               from w
               left join pg_stat_activity a on a.pid = w.pid
               left join lateral (
                      select x.gid, x.owner, x.prepared
                        from pg_locks l
                        join pg_prepared_xacts x on x.transaction = l.transactionid
                       where w.pid is null
                         and l.pid is null
                         and l.locktype = 'transactionid'
                         and l.virtualtransaction = w.virtualtransaction
                       limit 1
                    ) p on true
              order by age_s desc nulls last",
            self.tables_and_heirs()
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(connection).await?;
        rows.iter().map(|row| Ok((writer_in(row)?, holder_in(row)?))).collect()
    }

    /// The tables and their partitions, and theirs, as `t`.
    fn tables_and_heirs(&self) -> String {
        format!(
            "with recursive t (oid) as (
               select oid from pg_class where oid in ({})
                union
               select i.inhrelid from pg_inherits i join t on i.inhparent = t.oid
             )",
            self.tables
        )
    }
}

/// The writer in a row; none in a row that is there for its other columns.
fn granted_writer(row: &PgRow) -> Result<Option<Writer>, ObserveError> {
    match row.try_get("granted")? {
        Some(true) => writer_in(row).map(Some),
        Some(false) | None => Ok(None),
    }
}

fn writer_in(row: &PgRow) -> Result<Writer, ObserveError> {
    Ok(Writer { virtual_transaction: virtual_transaction_in(row)?, prepared: row.try_get("is_prepared")? })
}

fn holder_in(row: &PgRow) -> Result<Holder, ObserveError> {
    let age: Option<f64> = row.try_get("age_s")?;
    Ok(Holder {
        virtual_transaction: virtual_transaction_in(row)?,
        pid: row.try_get("pid")?,
        user: row.try_get("user_name")?,
        application_name: row.try_get("application_name")?,
        state: row.try_get("state")?,
        query: row.try_get("query")?,
        age: age.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
        prepared: row.try_get("gid")?,
    })
}

fn virtual_transaction_in(row: &PgRow) -> Result<VirtualTransaction, ObserveError> {
    Ok(row.try_get::<&str, _>("virtualtransaction")?.parse()?)
}

/// Whether a column that may be null is true in any row.
fn any(rows: &[PgRow], column: &str) -> Result<bool, sqlx::Error> {
    let mut found = false;
    for row in rows {
        found |= row.try_get::<Option<bool>, _>(column)?.unwrap_or(false);
    }
    Ok(found)
}
