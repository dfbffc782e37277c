//! This module lists trackers as they are shown to people.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Row as _};

use uuid::Uuid;

use super::handlers::have_changed;
use super::{HandlerChange, Memory, Outage, ProcessorKey, Trackers};
use crate::event::{Position, StoredTime};
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::processing::divergence::Divergence;
use crate::processing::failure::Failure;
use crate::store::witness::Witness;

/// A tracker row as it is shown to people.
#[derive(Debug, Clone)]
pub struct TrackerRow {
    /// Name of the processor.
    pub name: String,
    /// Partition of the processor.
    pub partition: i32,
    /// `projector` or `reactor`.
    pub kind: String,
    /// Version of the processor's tables.
    pub version: i32,
    /// The processor's position.
    pub position: Position,
    /// How often the tracker has been claimed or reset.
    pub epoch: i64,
    /// Host and process id of the owner's daemon.
    pub owner_label: Option<String>,
    /// Whether the owner's lease is still valid, by the server's clock.
    pub owned: bool,
    /// The backend of the last owner, if it still locks the row although the lease has ended.
    pub holder_pid: Option<i32>,
    /// Host and process id of each daemon that stands by for the processor.
    pub standbys: Vec<String>,
    /// When an operator paused the processor.
    pub paused_at: Option<DateTime<Utc>>,
    /// Who paused the processor.
    pub paused_by: Option<String>,
    /// When the processor stopped until an operator acts.
    pub failed_at: Option<DateTime<Utc>>,
    /// Whether the last batch reached the settled horizon.
    pub caught_up: bool,
    /// Events handled since the tables were made; a reset that only moves the position counts on.
    pub handled: i64,
    /// Speed in the last seconds, in ids passed per second; 0 when nothing moves.
    pub rate: f32,
    /// When the position, the claim, a pause or a failure last changed.
    pub standing_since: DateTime<Utc>,
    /// How often in a row the event of `last_error` has failed.
    pub attempts: i32,
    /// The failure that keeps the processor from continuing; of several events that wait for another attempt, that of the first.
    pub last_error: Option<Json<Failure>>,
    /// How many events wait for another attempt, or for an operator, while those of other aggregates go on; 0 where later events wait
    /// for the one that fails.
    pub failing_beyond: i64,
    /// When the failing event is tried again.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// The outage that keeps the processor from continuing.
    pub outage: Option<Json<Outage>>,
    /// How the store differs from the one that the processor has followed; until an operator acts, nothing is handled.
    pub diverged: Option<Json<Divergence>>,
    /// The position that the witness is about, the last event at or below it, and the uuid of that event.
    pub witness_at: Option<Position>,
    /// See [`Self::witness_at`].
    pub witness_id: Option<Position>,
    /// See [`Self::witness_at`].
    pub witness_uuid: Option<Uuid>,
    /// The partitions of the table of events, as the processor has found them last, each with its last event then, by
    /// attachment: the partition's object id times 2^32, and the transaction that has attached it.
    pub events_partitions: Option<Json<BTreeMap<i64, Option<Position>>>>,
    /// Fingerprint of the handlers of the last owner.
    pub handlers: Option<String>,
    /// When an owner last came with other handlers; `None`: never since the tables were made.
    pub handler_change: Option<Json<HandlerChange>>,
    /// How many events are set aside for the processor.
    pub dead_letters: i64,
    /// When the oldest dead letter was set aside.
    pub oldest_dead_letter_at: Option<DateTime<Utc>>,
    /// How many events a reactor has emitted that are not in the event store yet.
    pub pending_emissions: i64,
    /// When the next pending emission is due.
    pub next_emission_at: Option<StoredTime>,
    /// How many of the pending emissions the event store has refused.
    pub refused_emissions: i64,
    /// Since when the oldest emission that is due, and was not refused, waits; `None`: none does.
    pub emissions_overdue_since: Option<DateTime<Utc>>,
    /// As [`Self::emissions_overdue_since`], of those without a key: the others are held while the reactor has stopped.
    pub keyless_overdue_since: Option<DateTime<Utc>>,
    /// Why the last of them was refused, or what they wait for.
    pub emission_error: Option<String>,
    /// In which order events are handled when they are inserted; `None`: they are handled in batches.
    pub synchronous: Option<String>,
    /// When the row last changed; each renewal of the lease is a change.
    pub updated_at: DateTime<Utc>,
}

from_row!(TrackerRow {
    name,
    partition,
    kind,
    version,
    position,
    epoch,
    owner_label,
    owned,
    holder_pid,
    standbys,
    paused_at,
    paused_by,
    failed_at,
    caught_up,
    handled,
    rate,
    standing_since,
    attempts,
    last_error,
    failing_beyond,
    next_retry_at,
    outage,
    diverged,
    witness_at,
    witness_id,
    witness_uuid,
    events_partitions,
    handlers,
    handler_change,
    dead_letters,
    oldest_dead_letter_at,
    pending_emissions,
    next_emission_at,
    refused_emissions,
    emissions_overdue_since,
    keyless_overdue_since,
    emission_error,
    synchronous,
    updated_at
});

impl TrackerRow {
    /// Returns the key of the tracker.
    pub fn key(&self) -> ProcessorKey {
        ProcessorKey { name: self.name.clone(), version: self.version, partition: self.partition }
    }

    /// Whether the last owner had other handlers than the `present` ones, and they have handled events.
    pub(crate) fn was_handled_by_other(&self, present: &str) -> bool {
        have_changed(self.handlers.as_deref(), present, self.position)
    }

    /// Returns what the tracker remembers of the store.
    pub(crate) fn memory(&self) -> Memory {
        let witness = self.witness_at.zip(self.witness_id).zip(self.witness_uuid);
        Memory {
            position: self.position,
            handled: self.handled,
            witness: witness.map(|((at, id), uuid)| Witness { at, id, uuid }),
            partitions: self.events_partitions.as_ref().map(|partitions| partitions.0.clone()),
            synchronous: self.synchronous.is_some().then(|| self.key()),
        }
    }
}

/// The versions of processors that have served before and are kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct FormerVersions(BTreeMap<String, Vec<i32>>);

impl FormerVersions {
    /// The command that goes back to a version; `None`: that is not kept.
    pub(crate) fn rollback(&self, name: &str, version: i32) -> Option<String> {
        let kept = self.0.get(name).filter(|kept| kept.contains(&version))?;
        Some(match &kept[..] {
            [_] => format!("`espctl rollback {name}`"),
            _ => format!("`espctl rollback {name} --to {version}`"),
        })
    }
}

impl Trackers {
    /// Lists the former versions that are kept, of all processors or of one.
    pub(crate) async fn list_former(
        &self,
        connection: &mut PgConnection,
        name: Option<&str>,
    ) -> Result<FormerVersions, sqlx::Error> {
        let wanted = name.map_or_else(
            || "strpos(name, '$') > 0".to_owned(),
            |name| format!("name = {} || '$' || version", quote_literal(name)),
        );
        let statement = format!(
            "-- list_former_versions
             select left(name, -length('$' || version)) as name, version from {}
             where {wanted} and name like '%$' || version order by version",
            self.table
        );
        let mut former = BTreeMap::<String, Vec<i32>>::new();
        for row in simple(statement).fetch_all(connection).await? {
            former.entry(row.try_get("name")?).or_default().push(row.try_get("version")?);
        }
        Ok(FormerVersions(former))
    }

    /// Lists the trackers of all processors, or of one, by name, version and partition. Versions that are built or kept beside
    /// the one that serves are not among all processors.
    pub async fn list(
        &self,
        connection: impl PgExecutor<'_>,
        name: Option<&str>,
    ) -> Result<Vec<TrackerRow>, sqlx::Error> {
        let statement = format!(
            "-- list_trackers
             select name, t.partition, kind, t.version, position, epoch, owner_label,
                    coalesce(lease_until >= clock_timestamp(), false) or {owner_lives} as owned,
                    case when lease_until < clock_timestamp() and not {owner_lives} then {holder} end as holder_pid,
                    array(select s.owner_label from {schema}.signs_of_life as s
                          where s.name = t.name and s.version = t.version and s.partition = t.partition
                            and s.epoch is null and s.lives_until >= clock_timestamp() order by 1) as standbys,
                    paused_at, paused_by, failed_at, caught_up, handled, standing_since,
                    -- Of several events that fail, the first one is told, also while it is under way again.
                    coalesce(v.attempts, t.attempts) as attempts, coalesce(v.failure, t.last_error) as last_error,
                    case when v.event_id is null then t.next_retry_at else v.retry_at end as next_retry_at,
                    case when t.attempts > 0 then coalesce(f.failing, 0) else 0 end as failing_beyond,
                    -- An owner writes its rate with each batch and each renewal; one that cannot has none.
                    case when updated_at > clock_timestamp() - interval '5 seconds' then rate else 0 end as rate,
                    outage, diverged, witness_at, witness_id, witness_uuid, events_partitions, handlers, handler_change, synchronous, updated_at,
                    coalesce(dead_letters, 0) as dead_letters, oldest_dead_letter_at,
                    coalesce(pending_emissions, 0) as pending_emissions, next_emission_at,
                    coalesce(refused_emissions, 0) as refused_emissions, emission_error, keyless_overdue_since,
                    -- Until it is where it was before a reset, what it has emitted is held.
                    case when t.position >= t.repeated_until then emissions_overdue_since end as emissions_overdue_since
             from {trackers} as t
             -- Counted once, not for each tracker: a plan of many parts would be compiled, which takes longer than it runs.
             left join (
               select processor, d.version, d.partition, count(*) as dead_letters,
                      min(set_aside_at) as oldest_dead_letter_at
               from {schema}.dead_letters as d where $1::text is null or processor = $1
               group by processor, d.version, d.partition
             ) as d on d.processor = t.name and d.version = t.version and d.partition = t.partition
             left join (
               select reactor, e.partition, count(*) as pending_emissions, min(due_at) as next_emission_at,
                      count(*) filter (where e.attempts > 0) as refused_emissions,
                      min(due_at) filter (where e.attempts = 0 and due_at < clock_timestamp() and isfinite(due_at))
                        as emissions_overdue_since,
                      min(due_at) filter (where e.attempts = 0 and due_at < clock_timestamp() and isfinite(due_at) and e.key is null)
                        as keyless_overdue_since,
                      (array_agg(e.last_error order by e.tried_at desc nulls last)
                        filter (where e.last_error is not null))[1] as emission_error
               from {schema}.emissions as e where $1::text is null or reactor = $1 group by reactor, e.partition
             ) as e on e.reactor = t.name and e.partition = t.partition
             left join (
               select v.processor, v.version, v.partition, count(*) as failing, min(v.event_id) as first
               from {schema}.deliveries as v
               where not v.is_done and v.failure is not null and ($1::text is null or v.processor = $1)
                 -- It is done with once its reactor has met it.
                 and not exists (select from {schema}.dead_letters as d
                                 where d.processor = v.processor and d.version = v.version and d.partition = v.partition
                                   and d.event_id = v.event_id)
               group by v.processor, v.version, v.partition
             ) as f on f.processor = t.name and f.version = t.version and f.partition = t.partition
             left join {schema}.deliveries as v
               on v.processor = t.name and v.version = t.version and v.partition = t.partition and v.event_id = f.first
                 and t.attempts > 0 and t.failed_at is null
             -- Versions that do not serve have names of their own, with a dollar sign.
             where case when $1::text is null then strpos(name, '$') = 0 else name = $1 end order by name, t.version, t.partition",
            schema = self.schema,
            trackers = self.table,
            owner_lives = self.owner_lives(),
            holder = super::liveness::HOLDER
        );
        sqlx::query_as(AssertSqlSafe(statement)).bind(name).fetch_all(connection).await
    }
}
