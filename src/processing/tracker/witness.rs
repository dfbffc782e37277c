//! The witnesses that trackers keep: of what was read last, and of what was read before.

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgExecutor, Row as _};
use uuid::Uuid;

use super::{Claim, ProcessorKey, Trackers};
use crate::event::Position;
use crate::postgres::literal::{json_literal, simple};
use crate::processing::divergence::Divergence;
use crate::processing::partitions::RecordedPartitions;
use crate::store::witness::{StoredEvent, Witness};

/// Most earlier witnesses that are read, of all trackers together.
const EARLIER_MAX: i64 = 5_000;

/// What a tracker remembers of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The processor's position.
    pub(crate) position: Position,
    /// The events that it has handled since the last reset.
    pub(crate) handled: i64,
    /// What the store has to say still; `None`: nothing is known.
    pub(crate) witness: Option<Witness>,
    /// The partitions of the table of events; `None`: nothing is known.
    pub(crate) partitions: Option<RecordedPartitions>,
    /// Whose events are handled by triggers when they are inserted; `None`: in batches.
    pub(crate) synchronous: Option<ProcessorKey>,
}

/// Reads the columns `witness_at`, `witness_id` and `witness_uuid`.
pub(crate) fn read_witness(row: &PgRow) -> Result<Option<Witness>, sqlx::Error> {
    let at: Option<Position> = row.try_get("witness_at")?;
    let id: Option<Position> = row.try_get("witness_id")?;
    let uuid: Option<Uuid> = row.try_get("witness_uuid")?;
    Ok(at.zip(id).zip(uuid).map(|((at, id), uuid)| Witness { at, id, uuid }))
}

/// Returns the witness as further parameters of `advance_tracker`; nothing if there is none.
pub(crate) fn parameters(witness: Option<Witness>) -> String {
    witness.map_or_else(String::new, |Witness { at, id, uuid }| {
        format!(", witness_at => {at}, witness_id => {id}, witness_uuid => '{uuid}'")
    })
}

impl Trackers {
    /// Gives the tracker a witness, if the claim is still valid.
    pub(crate) async fn note_witness(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        Witness { at, id, uuid }: Witness,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_witness
             select {}.note_witness({}, {}, {at}, {id}, '{uuid}')",
            self.schema,
            claim.key.arguments(),
            claim.epoch
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Records the partitions of the table of events, if the claim is still valid.
    pub(crate) async fn note_partitions(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        partitions: &RecordedPartitions,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_partitions
             update {} set events_partitions = {}::jsonb where {}",
            self.table,
            json_literal(partitions)?,
            super::is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Returns what the tracker of a claim remembers of the store; `None`: the claim is no longer valid.
    pub(crate) async fn remember(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
    ) -> Result<Option<Memory>, sqlx::Error> {
        let statement = format!(
            "-- read_witness
             select position, handled, witness_at, witness_id, witness_uuid, events_partitions, synchronous is not null as synchronous
             from {} where {}",
            self.table,
            super::is_claimed(claim)
        );
        let row = simple(statement).fetch_optional(connection).await?;
        let memory = |row: PgRow| -> Result<Memory, sqlx::Error> {
            Ok(Memory {
                position: row.try_get("position")?,
                handled: row.try_get("handled")?,
                witness: read_witness(&row)?,
                partitions: row.try_get::<Option<Json<_>>, _>("events_partitions")?.map(|Json(it)| it),
                synchronous: row.try_get::<bool, _>("synchronous")?.then(|| claim.key.clone()),
            })
        };
        row.map(memory).transpose()
    }

    /// Lists events at or below `position` that the processor of a tracker has read, or has passed over, the newest first.
    ///
    /// Its own witnesses are such events. Those of another tracker are as far as both have read the same: an event that both know
    /// has the same events before it in every store that has it. Behind the last one that both know, the other may have read a
    /// store that has taken the place of the former one, which proves nothing. Where that is the last event that this tracker knows
    /// at all, what the other has read since is listed as well: these events have followed it.
    pub(crate) async fn list_witnesses(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        position: Position,
    ) -> Result<Vec<StoredEvent>, sqlx::Error> {
        let statement = format!(
            "-- list_witnesses
             with witnesses as materialized (
               select processor, version, partition, id, uuid from {schema}.witnesses
               union select name, version, partition, witness_id, witness_uuid from {trackers} where witness_id > 0
             ), own as (
               select id, uuid from witnesses where {is_own}
             ), common as (
               select processor, version, partition, max(id) as last
               from witnesses join own using (id, uuid) group by processor, version, partition
             )
             select distinct id, uuid from witnesses join common using (processor, version, partition)
             where id <= {position} and (id <= last or last = (select max(id) from own))
             order by id desc limit {EARLIER_MAX}",
            schema = self.schema,
            trackers = self.table,
            is_own = key.is_processor()
        );
        let rows = simple(statement).fetch_all(connection).await?;
        rows.iter()
            .map(|row| Ok(StoredEvent { id: row.try_get("id")?, uuid: row.try_get("uuid")? }))
            .collect()
    }

    /// Records that the store is not the one that was followed, if the claim is still valid. Nothing is handled under any claim
    /// until an operator acts.
    pub(crate) async fn record_divergence(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        divergence: &Divergence,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_divergence
             update {}
             set diverged = {}::jsonb || jsonb_build_object('at', clock_timestamp()), caught_up = false,
                 updated_at = clock_timestamp()
             where {}",
            self.table,
            json_literal(divergence)?,
            super::is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }
}
