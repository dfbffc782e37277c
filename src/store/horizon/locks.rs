//! Reads who may have drawn ids: the locks on the tables of events and on the sequence, and the transactions that hold them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{Holder, ObserveError, VirtualTransaction, Writer};
use crate::postgres::query_text::present;
use crate::postgres::quote::quote_literal;

/// The locks that matter, joined to tables and sequence `t`.
///
/// Every insert takes `RowExclusiveLock` on its table; so do updates and deletes, which are not told apart here.
/// `nextval` takes it on the sequence, so a transaction that draws an id first and inserts it later is not overlooked. A look
/// at the last value takes it as well, for a moment; that of this session, whose transaction goes on, does not count.
/// `AccessExclusiveLock` counts because a transaction that creates a partition holds it on the
/// parent, and may write into the partition before others can see that it exists. That lock also
/// keeps readers out, from the moment in which it is requested.
const LOCKS: &str = "\
    pg_locks l on l.relation = t.oid
     and l.locktype = 'relation'
     and (l.mode = 'RowExclusiveLock' and l.granted or l.mode = 'AccessExclusiveLock')
     and (t.relkind <> 'S' or l.pid is distinct from pg_backend_pid())
     and l.database = (select oid from pg_database where datname = current_database())";

/// The columns that are read of such a lock. All but the last are null where there is none.
const LOCK: &str = "\
    l.virtualtransaction,
    l.granted,
    l.pid is null as is_prepared,
    l.mode = 'AccessExclusiveLock' and t.relkind <> 'S' as closes,
    pg_postmaster_start_time() as server_started";

/// A text that is another one whenever what the catalog says of tables and sequence has changed: whoever changes a row of the
/// catalog becomes its `xmin`, and no change is undone without another.
const STRUCTURE: &str = "\
    md5(concat_ws(';',
      (select string_agg(concat_ws(':', c.oid, c.xmin, q.xmin), ',' order by c.oid)
         from t as c left join pg_sequence as q on q.seqrelid = c.oid),
      (select string_agg(concat_ws(':', a.attrelid, a.attnum, a.xmin), ',' order by a.attrelid, a.attnum)
         from pg_attribute as a where a.attrelid in ({tables}) and a.attnum > 0),
      (select count(*) from pg_subscription_rel as r where r.srrelid in (select oid from t)))) as structure";

/// What the locks say at one moment.
pub(super) struct Locks {
    /// The transactions that may have drawn ids and have not ended yet.
    pub(super) writers: Vec<Writer>,
    /// Whether a transaction keeps readers out of the table, or is about to.
    pub(super) is_closed: bool,
    /// Start of the server that was asked.
    pub(super) server_started: DateTime<Utc>,
    /// What the catalog said of the tables and the sequence.
    pub(super) structure: StructureVersion,
}

/// A version of what the catalog says of a store's tables and sequence. Equal ones mean that nothing has changed in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StructureVersion(String);

/// Reads the locks on the tables of a store, on their partitions and on the sequence.
#[derive(Debug)]
pub(super) struct LockReader {
    /// The tables' oids, as a list of expressions.
    tables: String,
    /// The sequence's oid, as an expression.
    sequence: String,
    /// Whether a table has partitions, as far as seen. Most have none, and planning a statement
    /// that looks for them takes as long as all the rest of an observation.
    has_heirs: bool,
    preparation: Preparation,
}

/// Whether a statement is prepared on the session. To plan one takes up to three times as long as to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preparation {
    /// A pooler is in the way, or nobody knows: the next statement may run on another session.
    Never,
    /// It is prepared when it runs first.
    Due,
    Done,
}

impl Preparation {
    /// Runs this text, by a statement of this name where it may be prepared. It counts as prepared from then on, for if it fails,
    /// the session is given up.
    pub(super) fn running(&mut self, name: &str, text: impl FnOnce() -> String) -> String {
        match *self {
            Self::Never => text(),
            Self::Due => {
                *self = Self::Done;
                format!("prepare {name} as\n{};\nexecute {name}", text())
            }
            Self::Done => format!("execute {name}"),
        }
    }
}

impl LockReader {
    /// A reader for tables and a sequence given by their names, qualified and quoted.
    pub(super) fn new(tables: &[String], sequence: &str) -> Self {
        let oid = |name: &str| format!("{}::regclass", quote_literal(name));
        let tables = tables.iter().map(|table| oid(table)).collect::<Vec<_>>().join(", ");
        Self { tables, sequence: oid(sequence), has_heirs: false, preparation: Preparation::Never }
    }

    /// Has the statement prepared when it runs first. What it is read from is looked up anew whenever the catalog changes there.
    pub(super) fn prepare(&mut self) {
        self.preparation = Preparation::Due;
    }

    pub(super) async fn read(&mut self, connection: &mut PgConnection) -> Result<Locks, ObserveError> {
        let rows = self.fetch(connection).await?;
        self.understand(rows, connection).await
    }

    /// What the rows of [`Self::statement`] say. They are fetched again where they are the first to tell of partitions.
    pub(super) async fn understand(
        &mut self,
        mut rows: Vec<PgRow>,
        connection: &mut PgConnection,
    ) -> Result<Locks, ObserveError> {
        if !self.has_heirs && any(&rows, "has_heirs")? {
            self.has_heirs = true;
            if self.preparation == Preparation::Done {
                self.preparation = Preparation::Due;
            }
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
            structure: StructureVersion(first.try_get("structure")?),
        })
    }

    /// Fetches at least one row, also where there is no lock. Whether there are partitions is looked up in
    /// the same snapshot, which is newer than the last value, so none that matters is overlooked.
    async fn fetch(&mut self, connection: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(self.statement())).fetch_all(connection).await
    }

    /// The statement that reads the locks.
    pub(super) fn statement(&mut self) -> String {
        let name = if self.has_heirs { "espd_read_locks_of_partitions" } else { "espd_read_locks" };
        let mut preparation = self.preparation;
        let statement = preparation.running(name, || self.reading());
        self.preparation = preparation;
        statement
    }

    fn reading(&self) -> String {
        format!(
            "-- read_locks
             {}
             select {LOCK}, (select bool_or(relhassubclass) from t) as has_heirs, {}
               from t left join {LOCKS}",
            self.relations(),
            STRUCTURE.replace("{tables}", &self.tables)
        )
    }

    /// The transactions that may have drawn ids, described, the oldest first.
    pub(super) async fn describe_writers(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<(Writer, Holder)>, ObserveError> {
        let statement = format!(
            "-- describe_writers
             {},
             w as (select l.virtualtransaction, l.pid, bool_and(t.relkind = 'S') as draws_only
                     from t join {LOCKS} where l.granted group by l.virtualtransaction, l.pid)
             select w.virtualtransaction,
                    w.pid,
                    w.pid is null as is_prepared,
                    w.draws_only,
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
            self.relations()
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(connection).await?;
        rows.iter().map(|row| Ok((writer_in(row)?, holder_in(row)?))).collect()
    }

    /// The sequence, and the tables with their partitions, and theirs, as `t`.
    fn relations(&self) -> String {
        let Self { tables, sequence, has_heirs, .. } = self;
        let columns = "c.oid, c.xmin, c.relkind, c.relhassubclass";
        if !has_heirs {
            return format!(
                "with t as materialized (
                   select {columns} from pg_class as c where c.oid in ({tables}, {sequence})
                 )"
            );
        }
        format!(
            "with recursive heirs (oid) as (
               select oid from pg_class where oid in ({tables}, {sequence})
                union
               select i.inhrelid from pg_inherits as i join heirs on i.inhparent = heirs.oid
             ),
             t as materialized (select {columns} from heirs join pg_class as c on c.oid = heirs.oid)"
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
        query: row.try_get::<Option<&str>, _>("query")?.map(present),
        age: age.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
        prepared: row.try_get("gid")?,
        draws_only: row.try_get("draws_only")?,
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
