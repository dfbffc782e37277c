//! This module has the statements on trackers: the rows that say how far each processor is, and who runs it.
//!
//! Processors move the position inside the transaction of their effects: those in SQL by themselves, all others with
//! [`Trackers::advance`].
//!
//! Runners send their statements in the simple protocol, with the values written out. That takes one round trip and
//! prepares nothing, so it works behind any pooler.

mod advance;
mod claim;
mod failures;
mod handlers;
mod key;
mod listing;
mod liveness;
mod operator;
mod retire;
mod synchronous;
mod together;
mod witness;

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

pub(crate) use advance::{Advance, CheckError, Checks};
pub(crate) use claim::LeaseStatus;
pub(crate) use claim::is_claimed;
pub(crate) use claim::renewal_interval;
pub use claim::{Claim, LEASE};
pub(crate) use failures::Outage;
pub(crate) use handlers::HandlerChange;
pub use key::ProcessorKey;
pub(crate) use listing::FormerVersions;
pub use listing::TrackerRow;
pub(crate) use liveness::{CurrentOwner, Liveness};
pub use operator::{ReplayEffects, Reset};
pub(crate) use together::{Passing, Renewal, Renewed, Stretch};
pub(crate) use witness::{Memory, parameters as witness_parameters, read_witness};

use crate::event::Position;
use crate::postgres::literal::{fetch_optional, simple};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::processing::declaration::ProcessorKind;
use crate::store::layout::{EspdNames, Layout};
use crate::store::witness::Witness;

/// Identifies the daemon that runs processors. A daemon generates it at its start and passes it to its workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Random for each start of a daemon, so that a restarted daemon is never mistaken for its predecessor.
    pub id: Uuid,
    /// Host and process id, to be shown to people.
    pub label: String,
}

impl Owner {
    /// Generates an owner with a random id, labelled with this host and process.
    pub fn generate() -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let label = format!("{}:{}", host.as_deref().unwrap_or("?"), std::process::id());
        Self { id: Uuid::new_v4(), label }
    }
}

/// A tracker that is locked for the rest of the transaction.
#[derive(Debug, Clone)]
pub(crate) struct Locked {
    /// The processor's position.
    pub(crate) position: Position,
    /// What the store has to say still, so that it is the one that was followed.
    pub(crate) witness: Option<Witness>,
    /// The partitions that the table of events has to have still; `None`: none are known.
    pub(crate) partitions: Option<Vec<i64>>,
}

/// The table of trackers in one schema.
#[derive(Debug, Clone)]
pub struct Trackers {
    /// The quoted schema.
    schema: String,
    /// The table, qualified and quoted.
    table: String,
}

impl Trackers {
    /// Names the schema whose tables `migrations/processing` has created.
    pub fn new(schema: &str) -> Self {
        Self::named(schema, &EspdNames::default())
    }

    /// As [`Self::new`], where the table may have another name.
    pub(crate) fn named(schema: &str, names: &EspdNames) -> Self {
        let schema = quote_identifier(schema);
        Self { table: format!("{schema}.{}", quote_identifier(&names.tracker_table)), schema }
    }

    /// The trackers beside a store of this layout.
    pub(crate) fn of(layout: &Layout) -> Self {
        Self::named(layout.schema(), layout.names())
    }

    /// The schema, quoted.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// The table, qualified and quoted: `"espd"."trackers"`.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Makes sure that the processor has a tracker, of whatever version. A new tracker gets the version of `key` and begins at
    /// `position`.
    pub async fn register(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        kind: ProcessorKind,
        position: Position,
    ) -> Result<(), sqlx::Error> {
        let ProcessorKey { name, version, partition } = key;
        let statement = format!(
            "-- register_tracker
             -- Two daemons that declare different versions must not both find that there is no tracker.
             select pg_advisory_xact_lock(hashtext('espd: register ' || {name}));
             insert into {trackers} (name, version, partition, kind, position, began_at)
             select {name}, {version}, {partition}, '{kind}', {position}, {position}
             where not exists (select from {trackers} where name = {name} and partition = {partition})",
            trackers = self.table,
            name = quote_literal(name),
            kind = kind.as_str()
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Notes of which kind a processor is that begins anew: its declaration may have made another one of it.
    pub(crate) async fn note_kind(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        kind: ProcessorKind,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_kind
             update {} set kind = '{kind}' where name = {} and partition = {} and kind <> '{kind}'",
            self.table,
            quote_literal(&key.name),
            key.partition,
            kind = kind.as_str()
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Reads where the processor began when it was registered; `None`: with the first event, as far as is known.
    pub(crate) async fn find_beginning(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
    ) -> Result<Option<Position>, sqlx::Error> {
        let statement = format!(
            "-- find_beginning\nselect began_at from {} where {} and began_at > 0",
            self.table,
            key.is_tracker()
        );
        let row: Option<(Position,)> = fetch_optional(connection, statement).await?;
        Ok(row.map(|(position,)| position))
    }

    /// Locks the tracker for the rest of the transaction and returns its position; `None`: there is no tracker.
    pub async fn lock(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
    ) -> Result<Option<Position>, sqlx::Error> {
        Ok(self.lock_where(connection, key, "").await?.map(|locked| locked.position))
    }

    /// Locks the tracker for the rest of the transaction. Returns whether the claim is still valid.
    pub async fn lock_claimed(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<bool, sqlx::Error> {
        Ok(self.lock_for_reading(connection, claim).await?.is_some())
    }

    /// As [`Self::lock_claimed`], for one who reads events. `None`: the claim is no longer valid.
    pub(crate) async fn lock_for_reading(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<Option<Locked>, sqlx::Error> {
        let is_claimed = format!("epoch => {}, ", claim.epoch);
        self.lock_where(connection, &claim.key, &is_claimed).await
    }

    async fn lock_where(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        condition: &str,
    ) -> Result<Option<Locked>, sqlx::Error> {
        let statement = format!(
            "-- lock_tracker
             select locked_position, witness_at, witness_id, witness_uuid, events_partitions
             from {}.lock_tracker({}, {condition}even_paused => true)",
            self.schema,
            key.arguments()
        );
        let row = simple(statement).fetch_optional(connection).await?;
        row.map(|row| {
            Ok(Locked {
                position: row.try_get("locked_position")?,
                witness: read_witness(&row)?,
                partitions: row.try_get("events_partitions")?,
            })
        })
        .transpose()
    }
}
