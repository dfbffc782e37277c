//! Observing a PostgreSQL event store: the reads that [`Rule`] draws its conclusions from.
//!
//! Every statement travels in the simple protocol: one round trip, nothing prepared, so it works
//! behind any pooler. Each runs in a transaction of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use thiserror::Error;

use super::{Holder, Horizon, InvalidVirtualTransaction, Rule, VirtualTransaction, Writer};
use crate::event::Position;
use crate::layout::Layout;

/// Most holders that are named. A store that is held back by more has one problem, not many.
const HOLDERS_MAX: usize = 10;

/// Most ids that one look at the visible prefix passes.
const PREFIX_MAX: i64 = 1000;

/// Shortest and longest pause between two observations of [`observe_once`].
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(25);

/// Why an observation failed. Whichever it is, the horizon is unknown until the next one succeeds.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// The database did not answer, or refused.
    #[error("failed to observe the event store")]
    Database(#[from] sqlx::Error),
    /// The server is a standby, where the locks of writers cannot be seen.
    #[error("the server is a standby: connect to the primary")]
    Standby,
    /// The two reads of an observation came from two servers, or from one before and after a restart.
    #[error("the server was restarted or replaced during an observation")]
    ServerReplaced,
    /// `pg_locks` names a transaction in a way that this program does not know.
    #[error("failed to read pg_locks")]
    UnknownName(#[from] InvalidVirtualTransaction),
}

/// Observes one event store through one connection at a time.
///
/// An observer must start afresh ([`Observer::new`]) on every new connection, because the server may
/// have restarted in between: see [`Rule`].
#[derive(Debug)]
pub struct Observer {
    statements: Statements,
    rule: Rule,
    /// Start of the server that the rule's observations came from.
    server_started: Option<DateTime<Utc>>,
    /// Whether the table has partitions or heirs, as far as seen.
    has_heirs: bool,
    /// The writers that hold the horizon back, and when each was first seen doing so.
    held_since: BTreeMap<Writer, Instant>,
}

impl Observer {
    /// An observer that trusts the caller that every id at or below `floor` is settled; 0 trusts
    /// nothing. The position that a tracker in the same database has reached is such a floor.
    pub fn new(layout: &Layout, floor: Position) -> Self {
        Self {
            statements: Statements::new(layout),
            rule: Rule::new(floor),
            server_started: None,
            has_heirs: false,
            held_since: BTreeMap::new(),
        }
    }

    /// Makes one observation. Afterwards [`Self::horizon`] is as new as it can be.
    ///
    /// Costs one short statement while nothing has been drawn since the last time and nothing is
    /// held, two or three otherwise. A connection whose observation was cancelled or failed must
    /// not be used again.
    pub async fn observe(&mut self, connection: &mut PgConnection) -> Result<(), ObserveError> {
        let sequence = self.read_sequence(connection).await?;
        self.start_afresh_if_replaced(&sequence);
        if sequence.last_value > self.rule.head() || self.rule.is_held() {
            // Only now: a writer that had drawn up to `last_value` is among these, or has ended.
            let writers = self.read_writers(connection).await?;
            self.rule.observe(sequence.last_value, writers);
        }
        if self.rule.is_held() {
            let end = self.read_visible_prefix(connection, self.rule.settled()).await?;
            self.rule.extend(end);
        }
        self.note_holders();
        Ok(())
    }

    /// What is known now, without the names of the holders.
    pub fn horizon(&self) -> Horizon {
        Horizon {
            head: self.rule.head(),
            settled: self.rule.settled(),
            held_by: Vec::new(),
            held_since: self.held_since.values().min().copied(),
        }
    }

    /// Positions only mean something within one life of a server. A pooler may hide its end from us.
    fn start_afresh_if_replaced(&mut self, sequence: &Sequence) {
        let replaced = self.server_started.is_some_and(|started| started != sequence.server_started);
        let turned_back = sequence.last_value < self.rule.head();
        if replaced || turned_back {
            self.rule = Rule::new(0);
        }
        self.server_started = Some(sequence.server_started);
    }

    fn note_holders(&mut self) {
        let before = std::mem::take(&mut self.held_since);
        let since = |writer| before.get(&writer).copied().unwrap_or_else(Instant::now);
        self.held_since = self.rule.holders().map(|writer| (writer, since(writer))).collect();
    }

    async fn read_sequence(&self, connection: &mut PgConnection) -> Result<Sequence, ObserveError> {
        let row =
            sqlx::raw_sql(AssertSqlSafe(self.statements.sequence.as_str())).fetch_one(connection).await?;
        if row.try_get("is_standby")? {
            return Err(ObserveError::Standby);
        }
        Ok(Sequence {
            last_value: row.try_get("last_value")?,
            server_started: row.try_get("server_started")?,
        })
    }

    async fn read_writers(&mut self, connection: &mut PgConnection) -> Result<Vec<Writer>, ObserveError> {
        let mut rows = self.fetch_writers(connection).await?;
        let found_heirs = rows.iter().any(|row| matches!(row.try_get("has_heirs"), Ok(true)));
        if found_heirs && !self.has_heirs {
            self.has_heirs = true;
            rows = self.fetch_writers(connection).await?;
        }
        rows.iter().filter_map(|row| self.writer_in(row).transpose()).collect()
    }

    async fn fetch_writers(&self, connection: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let statement =
            if self.has_heirs { &self.statements.writers_with_heirs } else { &self.statements.writers };
        sqlx::raw_sql(AssertSqlSafe(statement.as_str())).fetch_all(connection).await
    }

    /// The writer in a row of the writers' statement; none in a row that is there for its other columns.
    fn writer_in(&self, row: &PgRow) -> Result<Option<Writer>, ObserveError> {
        if self.server_started != Some(row.try_get("server_started")?) {
            return Err(ObserveError::ServerReplaced);
        }
        let Some(name) = row.try_get::<Option<&str>, _>("virtualtransaction")? else {
            return Ok(None);
        };
        Ok(Some(Writer { virtual_transaction: name.parse()?, prepared: row.try_get("is_prepared")? }))
    }

    /// The last id of the run of visible events that starts just after `position`.
    async fn read_visible_prefix(
        &self,
        connection: &mut PgConnection,
        position: Position,
    ) -> Result<Position, ObserveError> {
        let statement = self.statements.visible_prefix(position);
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
        Ok(row.try_get("last_id")?)
    }

    /// Names those who hold the horizon back, the oldest transaction first; nobody if it is not held.
    pub async fn name_holders(&self, connection: &mut PgConnection) -> Result<Vec<Holder>, ObserveError> {
        let statement = AssertSqlSafe(self.statements.holders.as_str());
        let rows = sqlx::raw_sql(statement).fetch_all(connection).await?;
        let mut holders = Vec::new();
        for row in &rows {
            let holder = read_holder(row)?;
            let writer = Writer {
                virtual_transaction: holder.virtual_transaction,
                prepared: row.try_get("is_prepared")?,
            };
            if self.rule.holders().any(|holder| holder == writer) {
                holders.push(holder);
            }
        }
        holders.truncate(HOLDERS_MAX);
        Ok(holders)
    }
}

/// Observes until everything drawn so far is settled, or `patience` is over; then names the holders.
///
/// For tools that look once. `floor` is a position known to be settled, such as that of a tracker
/// in the same database, or 0; from there on, what is visible without a hole is settled, too.
pub async fn observe_once(
    connection: &mut PgConnection,
    layout: &Layout,
    floor: Position,
    patience: Duration,
) -> Result<Horizon, ObserveError> {
    let started = Instant::now();
    let mut observer = Observer::new(layout, floor);
    let mut pause = PAUSE_MIN;
    observer.observe(connection).await?;
    let first_head = observer.rule.head();
    while observer.rule.settled() < first_head {
        if started.elapsed() + pause > patience {
            let held_by = observer.name_holders(connection).await?;
            return Ok(Horizon { held_by, ..observer.horizon() });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        observer.observe(connection).await?;
    }
    Ok(observer.horizon())
}

/// What the sequence says.
struct Sequence {
    last_value: Position,
    server_started: DateTime<Utc>,
}

fn read_holder(row: &PgRow) -> Result<Holder, ObserveError> {
    let age: Option<f64> = row.try_get("age_s")?;
    Ok(Holder {
        virtual_transaction: row.try_get::<&str, _>("virtualtransaction")?.parse::<VirtualTransaction>()?,
        pid: row.try_get("pid")?,
        user: row.try_get("user_name")?,
        application_name: row.try_get("application_name")?,
        state: row.try_get("state")?,
        query: row.try_get("query")?,
        age: age.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
        prepared: row.try_get("gid")?,
    })
}

/// The statements, with the layout's names filled in.
#[derive(Debug)]
struct Statements {
    events_table: String,
    sequence: String,
    writers: String,
    writers_with_heirs: String,
    holders: String,
}

/// The locks that matter, joined to tables `t`.
///
/// Every insert takes `RowExclusiveLock`; so do updates and deletes, which are not told apart here.
/// `AccessExclusiveLock` counts because a transaction that creates a partition holds it on the
/// parent, and may write into the partition before anybody else can see that it exists. Readers
/// wait for such a transaction anyway.
const LOCKS_OF_WRITERS: &str = "\
    pg_locks l on l.relation = t.oid
     and l.locktype = 'relation'
     and l.mode in ('RowExclusiveLock', 'AccessExclusiveLock')
     and l.granted
     and l.database = (select oid from pg_database where datname = current_database())";

impl Statements {
    fn new(layout: &Layout) -> Self {
        let table = literal(layout.events_table());
        let sequence = layout.sequence();
        let with_heirs = format!(
            "with recursive t (oid) as (
               select {table}::regclass::oid
                union
               select i.inhrelid from pg_inherits i join t on i.inhparent = t.oid
             )"
        );
        Self {
            events_table: layout.events_table().to_owned(),
            // Before its first use, a sequence's last_value is the id that it will give out next.
            sequence: format!(
                "-- read_sequence
                 select case when is_called then last_value else last_value - 1 end as last_value,
                        pg_is_in_recovery() as is_standby,
                        pg_postmaster_start_time() as server_started
                   from {sequence}"
            ),
            writers: format!(
                "-- read_writers
                 select l.virtualtransaction,
                        l.pid is null as is_prepared,
                        t.relhassubclass as has_heirs,
                        pg_postmaster_start_time() as server_started
                   from pg_class t
                   left join {LOCKS_OF_WRITERS}
                  where t.oid = {table}::regclass"
            ),
            writers_with_heirs: format!(
                "-- read_writers_with_heirs
                 {with_heirs}
                 select l.virtualtransaction,
                        l.pid is null as is_prepared,
                        true as has_heirs,
                        pg_postmaster_start_time() as server_started
                   from t
                   left join {LOCKS_OF_WRITERS}"
            ),
            holders: format!(
                "-- name_holders
                 {with_heirs},
                 w as (select distinct l.virtualtransaction, l.pid from t join {LOCKS_OF_WRITERS})
                 select w.virtualtransaction,
                        w.pid,
                        w.pid is null as is_prepared,
                        coalesce(a.usename, p.owner)::text as user_name,
                        a.application_name,
                        a.state,
                        left(a.query, 200) as query,
                        extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8
                          as age_s,
                        p.gid
                   from w
                   left join pg_stat_activity a on a.pid = w.pid
                   left join lateral (
                          select x.gid, x.owner, x.prepared
                            from pg_locks l
                            join pg_prepared_xacts x on x.transaction = l.transactionid
                           where w.pid is null and l.pid is null
                             and l.locktype = 'transactionid'
                             and l.virtualtransaction = w.virtualtransaction
                           limit 1
                        ) p on true
                  order by age_s desc nulls last"
            ),
        }
    }

    /// One-row statement: the end of the visible run after `position`, which is `position` if the
    /// next id is a hole. The first condition spares the scan in that case.
    fn visible_prefix(&self, position: Position) -> String {
        let table = &self.events_table;
        format!(
            "-- read_visible_prefix
             select coalesce(max(id), {position}) as last_id
               from (select id, row_number() over (order by id) as place
                       from {table}
                      where id > {position}
                        and exists (select from {table} where id = {position} + 1)
                      order by id
                      limit {PREFIX_MAX}) e
              where id = {position} + place"
        )
    }
}

/// A text as an SQL literal.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
