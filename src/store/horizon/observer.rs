//! Observes a PostgreSQL event store: makes the reads that [`Rule`] draws its conclusions from.
//!
//! Every statement travels in the simple protocol: one round trip, and nothing prepared unless the session is known to be
//! the observer's own, so it works behind any pooler. Each runs in a transaction of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::durability::Durability;
use super::locks::{LockReader, Locks, Preparation, StructureVersion};
use super::observe_error::ObserveError;
use super::{Holder, Horizon, Rule, Writer};
use crate::event::Position;
use crate::postgres::literal::simple;
use crate::postgres::sqlstate::is_missing_right;
use crate::store::layout::{LAST_VALUE, Layout, Order};

/// Most holders that are named. A store that is held back by more of them has one cause, not many.
const HOLDERS_MAX: usize = 10;

/// Most ids that one look at the visible prefix passes.
const PREFIX_MAX: i64 = 1000;

/// Shortest and longest pause between two observations of [`observe_once`].
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(25);

/// Observes one event store through one connection.
///
/// Take a new observer for a new connection, because the server may have restarted in between: see
/// [`Rule`].
#[derive(Debug)]
pub struct Observer {
    /// The table of events, and the sequence of their ids, qualified and quoted.
    table: String,
    sequence: String,
    locks: LockReader,
    /// Whether the statement that reads the last value is prepared.
    last_value: Preparation,
    rule: Rule,
    /// Kept if only what outlives a crash is to count.
    durability: Option<Durability>,
    /// Start of the server that the rule's observations came from.
    server_started: Option<DateTime<Utc>>,
    /// Whether the table was closed to readers when its locks were last read.
    is_closed: bool,
    /// What the catalog said of the store during the last observation that read the locks, until it is taken.
    observed: Option<StructureVersion>,
    /// What the catalog said when it was read beside an observation that has settled nothing, until it is taken.
    glanced: Option<StructureVersion>,
    /// The writers that hold the horizon back, and when each was first seen doing so.
    held_since: BTreeMap<Writer, Instant>,
}

impl Observer {
    /// An observer that has seen nothing yet. No position tells it what is settled, not even one that a tracker has reached:
    /// it may have been chosen.
    pub fn new(layout: &Layout) -> Self {
        let Order::DrawnInTransaction { sequence, tables } = &layout.order;
        Self {
            table: layout.events_table().to_owned(),
            sequence: sequence.clone(),
            locks: LockReader::new(tables, sequence),
            last_value: Preparation::Never,
            rule: Rule::new(),
            durability: None,
            server_started: None,
            is_closed: false,
            observed: None,
            glanced: None,
            held_since: BTreeMap::new(),
        }
    }

    /// Lets only what outlives a crash of the server count as settled: for readers that keep their position
    /// on another server. The position that a reader keeps beside the events needs no such care.
    pub fn durable_only(mut self) -> Self {
        self.durability = Some(Durability::default());
        self
    }

    /// Has the statements of each observation prepared, so that they are not planned anew. For a session that no pooler gives to
    /// others.
    pub fn preparing(mut self) -> Self {
        self.locks.prepare();
        self.last_value = Preparation::Due;
        self
    }

    /// Makes one observation. Afterwards [`Self::horizon`] is as new as it can be.
    ///
    /// Costs one short statement while nothing has been drawn since the last time and nothing is
    /// held, two or three otherwise. A connection whose observation was cancelled or failed must
    /// not be used again.
    pub async fn observe(&mut self, connection: &mut PgConnection) -> Result<(), ObserveError> {
        let last_value = self.read_last_value(connection).await?;
        if last_value > self.rule.head() || self.rule.is_held() {
            // Only now: a writer that had drawn up to `last_value` is among these, or has ended.
            let (writers, structure) = self.read_locks(connection).await?;
            self.rule.observe(last_value, writers);
            self.observed = Some(structure);
        }
        self.finish(connection).await
    }

    /// Makes one observation as [`Self::observe`] does, and reads the catalog and the locks in any case, all in one round trip.
    /// For a look that is likely to find something, or that comes after a long time.
    pub(crate) async fn observe_all(&mut self, connection: &mut PgConnection) -> Result<(), ObserveError> {
        // Each statement has a snapshot of its own at this level only, and the one of the locks has to be the later one.
        let statement = format!(
            "set transaction isolation level read committed;\n{};\n{}",
            self.last_value_statement(),
            self.locks.statement()
        );
        let mut rows = simple(statement).fetch_all(&mut *connection).await?.into_iter();
        let first = rows.next().ok_or(sqlx::Error::RowNotFound)?;
        let last_value = self.understand_last_value(&first)?;
        let locks = self.locks.understand(rows.collect(), connection).await?;
        let (writers, structure) = self.take_in(locks)?;
        if last_value > self.rule.head() || self.rule.is_held() {
            self.rule.observe(last_value, writers);
            self.observed = Some(structure);
        } else {
            self.glanced = Some(structure);
        }
        self.finish(connection).await
    }

    /// What follows the reading of the last value and the locks.
    async fn finish(&mut self, connection: &mut PgConnection) -> Result<(), ObserveError> {
        // On a table that is closed to readers, this read would wait for the transaction that has closed it.
        if self.rule.is_held() && !self.is_closed {
            match self.read_visible_prefix(connection).await {
                // What may not be read settles nothing. Whoever needs the events is told why by reading them.
                Err(error) if is_missing_right(&error) => {}
                end => {
                    self.rule.extend(end?);
                }
            }
        }
        if let Some(durability) = &mut self.durability {
            durability.observe(connection, self.rule.settled()).await?;
        }
        self.note_holders();
        Ok(())
    }

    /// Reads the locks, and with them what the catalog says of the store.
    async fn read_locks(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<(Vec<Writer>, StructureVersion), ObserveError> {
        let locks = self.locks.read(connection).await?;
        self.take_in(locks)
    }

    fn take_in(&mut self, locks: Locks) -> Result<(Vec<Writer>, StructureVersion), ObserveError> {
        let Locks { writers, is_closed, server_started, structure } = locks;
        if self.server_started.is_some_and(|started| started != server_started) {
            return Err(ObserveError::ServerReplaced);
        }
        self.is_closed = is_closed;
        Ok((writers, structure))
    }

    /// Reads what the catalog says of the store now.
    pub(crate) async fn read_structure(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<StructureVersion, ObserveError> {
        self.read_locks(connection).await.map(|(_, structure)| structure)
    }

    /// What the catalog said of the store during the last observation that may have settled something, once; `None`: there
    /// was no new one.
    pub(crate) fn take_observed(&mut self) -> Option<StructureVersion> {
        self.observed.take()
    }

    /// What the catalog said beside the last observation, which has settled nothing, once.
    pub(crate) fn take_glanced(&mut self) -> Option<StructureVersion> {
        self.glanced.take()
    }

    /// Whether the table was closed to readers when its locks were last read, or is about to be.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// What is known now, without the names of the holders.
    pub fn horizon(&self) -> Horizon {
        Horizon {
            head: self.rule.head(),
            settled: self.durability.as_ref().map_or(self.rule.settled(), Durability::durable),
            held_by: Vec::new(),
            held_since: self.held_since.values().min().copied(),
            unmet: None,
        }
    }

    /// Names the transactions that hold the horizon back, the oldest first; none if it is not held.
    pub async fn name_holders(&self, connection: &mut PgConnection) -> Result<Vec<Holder>, ObserveError> {
        let writers = self.locks.describe_writers(connection).await?;
        let holds = |writer: &Writer| self.rule.holders().any(|holder| holder == *writer);
        let holders = writers.into_iter().filter(|(writer, _)| holds(writer)).map(|(_, holder)| holder);
        Ok(holders.take(HOLDERS_MAX).collect())
    }

    /// Reads the last id drawn, and starts afresh where that shows that the past means nothing any
    /// more: on another server, on a restarted one that a pooler has hidden, in a truncated store.
    async fn read_last_value(&mut self, connection: &mut PgConnection) -> Result<Position, ObserveError> {
        let row = simple(self.last_value_statement()).fetch_one(connection).await?;
        self.understand_last_value(&row)
    }

    fn last_value_statement(&mut self) -> String {
        let sequence = &self.sequence;
        self.last_value.running("espd_read_last_value", || {
            format!(
                "-- read_last_value
                 select {LAST_VALUE} as last_value,
                        pg_is_in_recovery() as is_standby,
                        pg_postmaster_start_time() as server_started
                   from {sequence}"
            )
        })
    }

    fn understand_last_value(&mut self, row: &PgRow) -> Result<Position, ObserveError> {
        if row.try_get("is_standby")? {
            return Err(ObserveError::Standby);
        }
        let last_value = row.try_get("last_value")?;
        let started: DateTime<Utc> = row.try_get("server_started")?;
        let is_same_server = self.server_started.is_none_or(|before| before == started);
        if !is_same_server || last_value < self.rule.head() {
            self.rule = Rule::new();
            self.durability = self.durability.take().map(|_| Durability::default());
        }
        self.server_started = Some(started);
        Ok(last_value)
    }

    /// The end of the run of visible events right after the settled position; that position itself
    /// if the next id is a hole, for which the inner condition spares the scan.
    async fn read_visible_prefix(&self, connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
        let (table, position) = (&self.table, self.rule.settled());
        let statement = format!(
            "-- read_visible_prefix
             select coalesce(max(id), {position}) as last_id
               from (select id, row_number() over (order by id) as place
                       from {table}
                      where id > {position}
                        and exists (select from {table} where id = {position} + 1)
                      order by id
                      limit {PREFIX_MAX}) e
              where id = {position} + place"
        );
        let row = simple(statement).fetch_one(connection).await?;
        row.try_get("last_id")
    }

    fn note_holders(&mut self) {
        let before = std::mem::take(&mut self.held_since);
        let since = |writer| before.get(&writer).copied().unwrap_or_else(Instant::now);
        self.held_since = self.rule.holders().map(|writer| (writer, since(writer))).collect();
    }
}

/// Observes until everything drawn so far is settled, or `patience` is over; then names the holders.
///
/// For tools that look once. Where a writer outlasts the patience that was there before the first look, hardly anything is
/// known to be settled: only what is visible without a hole from the beginning of the store.
pub async fn observe_once(
    connection: &mut PgConnection,
    layout: &Layout,
    patience: Duration,
) -> Result<Horizon, ObserveError> {
    let started = Instant::now();
    let mut observer = Observer::new(layout);
    let mut pause = PAUSE_MIN;
    observer.observe(connection).await?;
    let head = observer.rule.head();
    while observer.rule.settled() < head {
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
