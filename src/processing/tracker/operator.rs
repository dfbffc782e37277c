//! Operators pause, resume, retry and reset processors with these statements. Each statement also records who did it.

use sqlx::{AssertSqlSafe, PgConnection};

use super::{ProcessorKey, Trackers};
use crate::event::Position;
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::store::witness::Witness;

/// Undoes a failure, a retry that is still to come, or an outage. The claim ends, so that the runner prepares the processor
/// again and forgets what it has counted: the attempts start again from 0.
const BEGIN_ANEW: &str =
    "failed_at = null, outage = null, attempts = 0, epoch = epoch + 1, lease_until = null";

/// As [`BEGIN_ANEW`] where the processor has stopped or waits for the end of an outage. Otherwise the claim goes on, and
/// so does the count.
const UNDO_FAILURE: &str = "failed_at = null, outage = null,
     attempts = case when failed_at is null then attempts else 0 end,
     epoch = epoch + case when failed_at is null and outage is null then 0 else 1 end,
     lease_until = case when failed_at is null and outage is null then lease_until end";

/// Decides what a reactor does with events that it handles again after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplayEffects {
    /// The reactor emits nothing up to the position that it had reached.
    #[default]
    Suppress,
    /// The reactor handles the events as if for the first time. What it has emitted for them is still not emitted twice.
    Repeat,
}

/// The parameters of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The new position.
    pub to: Position,
    /// The version of the tables that are created after the old ones were dropped. `None`: the tables stay.
    pub rebuilt_as: Option<i32>,
    /// What a reactor does with events that it has handled before.
    pub effects: ReplayEffects,
    /// The last event at or below the new position in the store as it is; `None`: it is not known, and the next batch notes
    /// it.
    pub witness: Option<Witness>,
}

impl Reset {
    /// Returns a reset that only moves the position. A reactor does not repeat what it has done already.
    pub fn to(position: Position) -> Self {
        Self { to: position, rebuilt_as: None, effects: ReplayEffects::Suppress, witness: None }
    }
}

impl Trackers {
    /// Pauses a processor, which keeps its owner. Returns whether it was running.
    pub async fn pause(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let change = "paused_at = clock_timestamp(), paused_by = $1";
        self.act(connection, key, operator, "pause", change, "paused_at is null").await
    }

    /// Has the failing event tried now instead of later, with attempts that are counted anew; also if the processor has stopped
    /// because of it, or waits for the end of an outage. Returns whether there was a failure or an outage; a paused processor is
    /// left alone, and the result is `false`.
    pub async fn retry(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let due = "case when attempts > 0 or failed_at is not null then clock_timestamp() end";
        let change = format!("next_retry_at = {due}, {BEGIN_ANEW}");
        let condition = "paused_at is null and (attempts > 0 or failed_at is not null or outage is not null)";
        self.act(connection, key, operator, "retry", &change, condition).await
    }

    /// Makes the retries of these processors due that are still to come, because somebody may have fixed what fails. Counts
    /// go on. Those of webhooks stay as they are. Returns the number of processors concerned.
    pub(crate) async fn make_retries_due(
        &self,
        connection: &mut PgConnection,
        names: &[String],
    ) -> Result<u64, sqlx::Error> {
        let statement = format!(
            "-- make_retries_due
             update {schema}.trackers as t set next_retry_at = clock_timestamp()
             where name = any($1) and attempts > 0 and next_retry_at > clock_timestamp() and paused_at is null
               -- The receiver of a webhook may have asked for the time.
               and not exists (select from {schema}.deliveries as d
                               where d.processor = t.name and d.version = t.version and d.partition = t.partition
                                 and not d.is_done)",
            schema = self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(names);
        Ok(query.execute(connection).await?.rows_affected())
    }

    /// Lets a paused or failed processor continue. Returns whether it was paused or failed.
    pub async fn resume(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let change = format!(
            "paused_at = null, paused_by = null,
             next_retry_at = case when attempts > 0 then clock_timestamp() end, {UNDO_FAILURE}"
        );
        let condition = "(paused_at is not null or failed_at is not null)";
        self.act(connection, key, operator, "resume", &change, condition).await
    }

    /// Lets a processor continue from its position although its store is not the one that it has followed. `witness` is the
    /// last event at or below the position in the store as it is. Returns whether the processor had stopped because of that.
    pub(crate) async fn accept_history(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
        witness: Option<Witness>,
    ) -> Result<bool, sqlx::Error> {
        let forget = format!(
            "-- forget_witnesses
             delete from {schema}.witnesses as w using {schema}.trackers as t
             where t.name = {name} and t.version = {version} and t.partition = {partition} and t.diverged is not null
               and w.processor = t.name and w.version = t.version and w.partition = t.partition
               and w.id > (t.diverged ->> 'last_common')::bigint",
            schema = self.schema,
            name = quote_literal(&key.name),
            version = key.version,
            partition = key.partition,
        );
        simple(forget).execute(&mut *connection).await?;
        let change = format!(
            "diverged = null, {}, epoch = epoch + 1, lease_until = null, updated_at = clock_timestamp()",
            assignments(witness)
        );
        self.act(connection, key, operator, "accept_history", &change, "diverged is not null").await
    }

    /// Applies an operator's change to one row and records it, in one statement.
    async fn act(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
        action: &str,
        change: &str,
        condition: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- {action}_processor
             with changed as (
               update {schema}.trackers set {change} where {is_tracker} and {condition}
               returning name, partition, position
             )
             insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
             select $1, '{action}', name, partition, position, position from changed",
            schema = self.schema,
            is_tracker = key.is_tracker()
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(operator);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }

    /// Sets the position back (or forward), ends every claim, and records who did it. Returns whether there was a tracker.
    pub async fn reset(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
        reset: Reset,
    ) -> Result<bool, sqlx::Error> {
        let Reset { to, rebuilt_as, effects, witness } = reset;
        let statement = format!(
            "-- reset_processor
             with before as (
               -- Events beyond `common` are not in the store as the processor has handled them.
               select name, version, partition, position, (diverged ->> 'last_common')::bigint as common
               from {schema}.trackers where {is_tracker} for update
             ), changed as (
               update {schema}.trackers as t
               set version = coalesce($3, t.version), position = $2, epoch = epoch + 1,
                   owner = null, owner_label = null, lease_until = null,
                   silent_until = case when $4 then 0
                                       when kind = 'reactor'
                                         then least(greatest(silent_until, before.position), before.common)
                                       else 0 end,
                   diverged = null, {witness},
                   handlers = case when $3 is null then handlers end,
                   handler_change = case when $3 is null then handler_change end,
                   handled = case when $3 is null then handled else 0 end, caught_up = false, attempts = 0,
                   last_error = null, next_retry_at = null, failed_at = null, updated_at = clock_timestamp()
               from before
               where t.name = before.name and t.version = before.version and t.partition = before.partition
               returning t.name, before.version, t.partition, t.kind, before.position, before.common
             ), forgotten as (
               -- The processor meets these events again. A reactor that suppresses its effects leaves them alone, although
               -- it has not handled them, so it keeps its dead letters.
               delete from {schema}.dead_letters as d using changed
               where d.processor = changed.name and d.version = changed.version and d.partition = changed.partition
                 and d.event_id > least($2, changed.common)
                 and (changed.kind = 'projector' or $4 or d.event_id > changed.common)
             ), repeated as (
               -- A delivery beyond the position stays delivered, unless its effects are to be repeated.
               delete from {schema}.deliveries as d using changed
               where d.processor = changed.name and d.version = changed.version and d.partition = changed.partition
                 and d.event_id > least($2, changed.common)
                 and ($4 or not d.is_done or d.event_id > changed.common)
             ), unknown as (
               delete from {schema}.witnesses as w using changed
               where w.processor = changed.name and w.version = changed.version and w.partition = changed.partition
                 and w.id > least($2, changed.common)
             )
             insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
             select $1, 'reset', name, partition, position, $2 from changed",
            schema = self.schema,
            witness = assignments(witness),
            is_tracker = key.is_tracker()
        );
        let query = sqlx::query(AssertSqlSafe(statement))
            .bind(operator)
            .bind(to)
            .bind(rebuilt_as)
            .bind(effects == ReplayEffects::Repeat);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }
}

/// Returns the assignments that give a tracker a witness, or take it away.
fn assignments(witness: Option<Witness>) -> String {
    match witness {
        Some(Witness { at, id, uuid }) => {
            format!("witness_at = {at}, witness_id = {id}, witness_uuid = '{uuid}', events_partitions = null")
        }
        None => {
            "witness_at = null, witness_id = null, witness_uuid = null, events_partitions = null".to_owned()
        }
    }
}
