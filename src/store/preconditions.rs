//! Checks what must be true of a store before its events may be read by the settled horizon.
//!
//! The horizon's argument (`docs/ordering.md`) rests on facts about the server, the table and the
//! sequence. [`check`] looks at all of them at start-up and reports every one that does not hold, with
//! the command that repairs it. A start in spite of one would lose events, and no one would notice.
//!
//! One thing cannot be checked: that no writer inserts ids of its own choice past the sequence, where
//! the table allows it (`default nextval(…)` or `overriding system value`).

use std::fmt;

use sqlx::{PgConnection, Row};
use thiserror::Error;

use crate::event::Position;
use crate::postgres::literal::simple;
use crate::store::layout::{LAST_VALUE, Layout, Order};

mod structure;

use structure::Structure;

/// Oldest server version that is supported, as in `server_version_num`.
const SERVER_VERSION_MIN: i32 = 130_000;

/// Products that speak PostgreSQL's protocol but lock, or draw ids, in their own way: a part of their `version()`, and
/// their name.
const LOOKALIKES: [(&str, &str); 3] =
    [("CockroachDB", "CockroachDB"), ("-YB-", "YugabyteDB"), ("Redshift", "Amazon Redshift")];

/// Why a store must not be read.
#[derive(Debug, Error)]
pub enum PreconditionError {
    /// The database did not answer, or refused.
    #[error("failed to check the event store")]
    Database(#[from] sqlx::Error),
    /// Some preconditions are not met. All of them are listed.
    #[error("the event store cannot be read safely{}", list(.0))]
    Unmet(Vec<Unmet>),
}

/// One precondition that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Which precondition it is, for programs.
    pub kind: UnmetKind,
    /// What is wrong, in a sentence.
    pub problem: String,
    /// What to do about it: an SQL command, or advice.
    pub repair: String,
}

/// The preconditions, by what is wrong where they are not met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmetKind {
    /// The server is not PostgreSQL.
    NotPostgres,
    /// The server is too old.
    ServerTooOld,
    /// The server is a standby.
    Standby,
    /// The table does not exist, or is not a table.
    TableMissing,
    /// The table, or one of its partitions, does not survive a crash.
    Unlogged,
    /// The role may not read the table or the sequence.
    NotReadable,
    /// Row security hides events from the role.
    RowSecurity,
    /// Events arrive by logical replication, with ids of another server.
    Replicated,
    /// The sequence does not exist.
    SequenceMissing,
    /// The sequence does not belong to the id column.
    SequenceNotOwned,
    /// Sessions draw ids before they insert them.
    SequenceCached,
    /// The sequence does not count by one.
    SequenceIncrement,
    /// The sequence begins again after its last value.
    SequenceCycles,
    /// A column that the layout needs is missing, or has another type.
    ColumnUnfit,
    /// An event has no uuid, by which processors recognise it, or may have none.
    UuidMissing,
    /// The insert does not draw the id itself.
    IdNotDrawn,
    /// There are ids below 1, which no reader ever reaches.
    IdTooSmall,
    /// The sequence is behind the ids in the table.
    SequenceBehindEvents,
}

/// Checks all preconditions of the horizon.
///
/// Positions of processors are none of them: each processor finds out by itself whether the store is the one that it has
/// followed, and it may begin at a position that the store has not reached yet.
pub async fn check(connection: &mut PgConnection, layout: &Layout) -> Result<(), PreconditionError> {
    let mut unmet = check_server(connection).await?;
    // On another product the catalog cannot be trusted either, or asked at all.
    if unmet.iter().all(|one| one.kind != UnmetKind::NotPostgres) {
        let catalog = Structure::read(connection, layout).await?;
        let structure = catalog.unmet();
        let readable = structure.iter().all(|one| !one.kind.prevents_reading());
        unmet.extend(structure);
        if readable {
            unmet.extend(check_ids(connection, layout).await?);
            if catalog.may_lack_uuids() {
                unmet.extend(check_uuids(connection, layout).await?);
            }
        }
    }
    if unmet.is_empty() { Ok(()) } else { Err(PreconditionError::Unmet(unmet)) }
}

/// Checks the preconditions that depend on rows and on the sequence's value, where the catalog has not changed since a complete
/// check.
pub(crate) async fn check_rows(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<(), PreconditionError> {
    let unmet = check_ids(connection, layout).await?;
    if unmet.is_empty() { Ok(()) } else { Err(PreconditionError::Unmet(unmet)) }
}

async fn check_server(connection: &mut PgConnection) -> Result<Vec<Unmet>, sqlx::Error> {
    let statement = "
        -- read_server
        select version() as version,
               current_setting('server_version') as number,
               current_setting('server_version_num')::int as ordinal,
               pg_is_in_recovery() as is_standby";
    let server = sqlx::raw_sql(statement).fetch_one(connection).await?;
    let version: &str = server.try_get("version")?;
    if let Some(product) = lookalike(version) {
        let problem = format!("the server is {product}, whose locks and sequences are not PostgreSQL's");
        return Ok(vec![Unmet::new(UnmetKind::NotPostgres, problem, "connect to a PostgreSQL server")]);
    }
    let mut unmet = Vec::new();
    if server.try_get::<i32, _>("ordinal")? < SERVER_VERSION_MIN {
        let number: &str = server.try_get("number")?;
        let problem = format!("the server is PostgreSQL {number}, and 13 is the oldest that is supported");
        unmet.push(Unmet::new(UnmetKind::ServerTooOld, problem, "upgrade the server"));
    }
    if server.try_get("is_standby")? {
        let problem = "the server is a standby, where the locks of writers cannot be seen";
        let repair = "connect to the primary, or run `select pg_promote()` if this is to be it";
        unmet.push(Unmet::new(UnmetKind::Standby, problem, repair));
    }
    Ok(unmet)
}

/// The product that calls itself `version` and is not PostgreSQL.
fn lookalike(version: &str) -> Option<&'static str> {
    LOOKALIKES.iter().find(|(mark, _)| version.contains(mark)).map(|(_, product)| *product)
}

/// Compares the ids with the sequence: after a restore or a copy, the sequence may be behind the rows.
async fn check_ids(connection: &mut PgConnection, layout: &Layout) -> Result<Vec<Unmet>, sqlx::Error> {
    let Order::DrawnInTransaction { sequence, .. } = &layout.order;
    let (first, last, last_value) = read_ids(connection, layout).await?;
    let mut unmet = Vec::new();
    if first.get() < 1 {
        let problem = format!("the smallest id is {first}, and reading begins after 0");
        let repair = "give these events ids above 0 before anything else reads them";
        unmet.push(Unmet::new(UnmetKind::IdTooSmall, problem, repair));
    }
    if last_value < last {
        let problem = format!(
            "sequence {sequence} is at {last_value}, but there is an event with id {last}: \
             was the store restored or copied without its sequence?"
        );
        let repair = format!("select setval('{sequence}', {last});");
        unmet.push(Unmet::new(UnmetKind::SequenceBehindEvents, problem, repair));
    }
    Ok(unmet)
}

/// Looks for events without a uuid, in a table that allows them.
async fn check_uuids(connection: &mut PgConnection, layout: &Layout) -> Result<Option<Unmet>, sqlx::Error> {
    let table = layout.events_table();
    let statement = format!("-- find_event_without_uuid\nselect id from {table} where uuid is null limit 1");
    let row = simple(statement).fetch_optional(connection).await?;
    let id: Option<Position> = row.map(|row| row.try_get("id")).transpose()?;
    Ok(id.map(|id| {
        let problem = format!("event {id} of {table} has no uuid, by which processors recognise an event");
        Unmet::new(UnmetKind::UuidMissing, problem, structure::repair_uuids(table))
    }))
}

/// The smallest and the largest id, 1 and 0 in an empty store; and the last id drawn, read in the same way as by the observer.
/// The ids are those of a snapshot that is older than the last id drawn: the sequence of a store in use is ahead of them.
async fn read_ids(
    connection: &mut PgConnection,
    layout: &Layout,
) -> Result<(Position, Position, Position), sqlx::Error> {
    let Order::DrawnInTransaction { sequence, .. } = &layout.order;
    let statement = format!(
        "-- read_first_and_last_id
         select coalesce((select min(id) from {table}), 1)::bigint as first,
                coalesce((select max(id) from {table}), 0)::bigint as last,
                {LAST_VALUE} as last_value
           from {sequence}",
        table = layout.events_table()
    );
    let row = simple(statement).fetch_one(connection).await?;
    Ok((row.try_get("first")?, row.try_get("last")?, row.try_get("last_value")?))
}

impl Unmet {
    fn new(kind: UnmetKind, problem: impl Into<String>, repair: impl Into<String>) -> Self {
        Self { kind, problem: problem.into(), repair: repair.into() }
    }
}

impl UnmetKind {
    /// Whether a reader would fail rather than read wrongly.
    pub(crate) fn prevents_reading(self) -> bool {
        matches!(
            self,
            Self::TableMissing
                | Self::SequenceMissing
                | Self::NotReadable
                | Self::RowSecurity
                | Self::ColumnUnfit
        )
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n    repair: {}", self.problem, self.repair)
    }
}

fn list(unmet: &[Unmet]) -> String {
    unmet.iter().map(|one| format!("\n  - {one}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_only_speak_the_protocol_of_postgresql_are_recognised() {
        assert_eq!(lookalike("PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu"), None);
        assert_eq!(
            lookalike("CockroachDB CCL v23.1.1 (x86_64-pc-linux-gnu, built 2023)"),
            Some("CockroachDB")
        );
        assert_eq!(lookalike("PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64-pc-linux-gnu"), Some("YugabyteDB"));
    }
}
