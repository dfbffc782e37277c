//! Who is where: the statements on a processor's tracker row.
//!
//! A claim raises the row's epoch, and whatever moves the position names the epoch that it was claimed
//! under. So a stopped, resumed or otherwise outdated owner can commit nothing, whatever it believes.
//! Leases are judged by the server's clock only.
//!
//! The position itself is moved by the processors, inside the transaction of their effects.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use crate::event::Position;
use crate::failure::Failure;
use crate::processor::ProcessorKind;
use crate::row::from_row;
use crate::sql_quote::quote_identifier;

/// Who runs processors: one daemon, drawn at its start and given to its children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Random per start of a daemon, so that a restarted daemon is never mistaken for its predecessor.
    pub id: Uuid,
    /// For people: host and process id.
    pub label: String,
}

impl Owner {
    /// A new owner with a random id, labelled with this host and process.
    pub fn draw() -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let label = format!("{}:{}", host.as_deref().unwrap_or("?"), std::process::id());
        Self { id: Uuid::new_v4(), label }
    }
}

/// The right to move a tracker, from a claim until somebody else raises the epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Partition of the processor.
    pub partition: i32,
    /// What every move has to name.
    pub epoch: i64,
    /// Where the processor stands.
    pub position: Position,
    /// The version of the tables that the position belongs to.
    pub version: i32,
    /// Fingerprint of the declaration that the tables were made from; `None` before they are made.
    pub declaration: Option<String>,
    /// Whether an operator has paused the processor.
    pub paused: bool,
    /// How often in a row the event of `last_error` has failed.
    pub attempts: i32,
    /// The failure that keeps the processor from going on.
    pub last_error: Option<Json<Failure>>,
    /// Time left until the next try, in seconds.
    pub retry_in_seconds: Option<f64>,
    /// Whether the processor has stopped for good, until an operator acts.
    pub failed: bool,
}

from_row!(Claim {
    partition,
    epoch,
    position,
    version,
    declaration,
    paused,
    attempts,
    last_error,
    retry_in_seconds,
    failed
});

/// What a renewed lease says about the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Where the processor stands.
    pub position: Position,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Whether an operator wants the failing event tried at once.
    pub retry_now: bool,
}

from_row!(Standing { position, paused, retry_now });

/// A tracker row as it is shown to people.
#[derive(Debug, Clone)]
pub struct TrackerRow {
    /// Processor.
    pub name: String,
    /// Partition of the processor.
    pub partition: i32,
    /// `projector` or `reactor`.
    pub kind: String,
    /// Version of its tables.
    pub version: i32,
    /// Where it stands.
    pub position: Position,
    /// How often it has been claimed or reset.
    pub epoch: i64,
    /// Host and process id of its owner.
    pub owner_label: Option<String>,
    /// Whether the owner's lease runs, by the server's clock.
    pub owned: bool,
    /// When an operator paused it.
    pub paused_at: Option<DateTime<Utc>>,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// When it stopped for good.
    pub failed_at: Option<DateTime<Utc>>,
    /// Whether its last batch reached the horizon.
    pub caught_up: bool,
    /// Events handled since the last reset.
    pub handled: i64,
    /// Ids passed per second lately.
    pub rate: f32,
    /// How often in a row the event of `last_error` has failed.
    pub attempts: i32,
    /// The failure that keeps it from going on.
    pub last_error: Option<Json<Failure>>,
    /// When it will be tried again.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// When the row last changed, renewals of the lease left out.
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
    paused_at,
    paused_by,
    failed_at,
    caught_up,
    handled,
    rate,
    attempts,
    last_error,
    next_retry_at,
    updated_at
});

/// The trackers of one database.
#[derive(Debug, Clone)]
pub struct Trackers {
    /// The quoted schema.
    schema: String,
}

const CLAIM_COLUMNS: &str = "t.partition, epoch, position, version, declaration, paused_at is not null as paused, attempts, \
     last_error, extract(epoch from next_retry_at - clock_timestamp())::float8 as retry_in_seconds, \
     failed_at is not null as failed";

impl Trackers {
    /// The trackers in this schema, made by `migrations/processing`.
    pub fn new(schema: &str) -> Self {
        Self { schema: quote_identifier(schema) }
    }

    /// Makes sure that the processor has a row.
    pub async fn register(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        kind: ProcessorKind,
        version: i32,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- register_tracker
             insert into {}.trackers (name, kind, version) values ($1, $2, $3) on conflict do nothing",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(name).bind(kind.as_str()).bind(version);
        query.execute(connection).await.map(drop)
    }

    /// Claims a processor for `owner`: succeeds when its lease has ended or it is the owner's already.
    /// `None`: somebody else's lease runs.
    pub async fn claim(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Option<Claim>, sqlx::Error> {
        let statement = format!(
            "-- claim_tracker
             with free as (
               select name, partition from {0}.trackers
               where name = $1 and partition = 0
                 and (lease_until is null or lease_until < clock_timestamp() or owner = $2)
               -- A batch that outlives its lease holds the row: its owner is alive, and must not be waited for.
               for update skip locked
             )
             update {0}.trackers as t
             set epoch = epoch + 1, owner = $2, owner_label = $3, lease_until = clock_timestamp() + $4,
                 backend_pid = pg_backend_pid(),
                 backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid()),
                 updated_at = clock_timestamp()
             from free where t.name = free.name and t.partition = free.partition
             returning {CLAIM_COLUMNS}",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement))
            .bind(name)
            .bind(owner.id)
            .bind(&owner.label)
            .bind(interval(lease))
            .fetch_optional(connection)
            .await
    }

    /// Lets the lease run on. `None`: the claim is no longer valid.
    pub async fn renew(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
        lease: Duration,
    ) -> Result<Option<Standing>, sqlx::Error> {
        let statement = format!(
            "-- renew_lease
             update {}.trackers set lease_until = clock_timestamp() + $4
             where name = $1 and partition = $2 and epoch = $3
             returning position, paused_at is not null as paused,
                       coalesce(attempts > 0 and next_retry_at <= clock_timestamp(), false) as retry_now",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement))
            .bind(name)
            .bind(claim.partition)
            .bind(claim.epoch)
            .bind(interval(lease))
            .fetch_optional(connection)
            .await
    }

    /// Gives the processor up, so that another daemon may claim it at once.
    pub async fn release(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- release_tracker
             update {}.trackers
             set owner = null, owner_label = null, lease_until = null, backend_pid = null, backend_start = null
             where name = $1 and partition = $2 and epoch = $3",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(name).bind(claim.partition).bind(claim.epoch);
        query.execute(connection).await.map(drop)
    }

    /// Records why the processor does not go on, and when it will try again (`None`: never by itself).
    pub async fn record_failure(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
        attempts: u32,
        failure: &Failure,
        retry_in: Option<Duration>,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_failure
             update {}.trackers
             set attempts = $4, next_retry_at = clock_timestamp() + $6, caught_up = false,
                 last_error = $5::jsonb || jsonb_build_object('at', clock_timestamp()),
                 failed_at = case when $6 is null then clock_timestamp() end, updated_at = clock_timestamp()
             where name = $1 and partition = $2 and epoch = $3",
            self.schema
        );
        sqlx::query(AssertSqlSafe(statement))
            .bind(name)
            .bind(claim.partition)
            .bind(claim.epoch)
            .bind(i32::try_from(attempts).unwrap_or(i32::MAX))
            .bind(Json(failure))
            .bind(retry_in.map(interval))
            .execute(connection)
            .await
            .map(drop)
    }

    /// Forgets a failure that no event was to blame for: the processor goes on.
    pub async fn forget_failure(
        &self,
        connection: impl PgExecutor<'_>,
        name: &str,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- forget_failure
             update {}.trackers set failed_at = null, last_error = null, updated_at = clock_timestamp()
             where name = $1 and partition = $2 and epoch = $3",
            self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(name).bind(claim.partition).bind(claim.epoch);
        query.execute(connection).await.map(drop)
    }

    /// All trackers, or those of one processor, by name and partition.
    pub async fn list(
        &self,
        connection: impl PgExecutor<'_>,
        name: Option<&str>,
    ) -> Result<Vec<TrackerRow>, sqlx::Error> {
        let statement = format!(
            "-- list_trackers
             select name, partition, kind, version, position, epoch, owner_label,
                    coalesce(lease_until >= clock_timestamp(), false) or exists (
                      select from pg_stat_activity as a
                      where a.pid = backend_pid and a.pid <> pg_backend_pid()
                        and a.backend_start = trackers.backend_start and a.state = 'active'
                    ) as owned, paused_at, paused_by, failed_at,
                    caught_up, handled, rate, attempts, last_error, next_retry_at, updated_at
             from {}.trackers where $1::text is null or name = $1 order by name, partition",
            self.schema
        );
        sqlx::query_as(AssertSqlSafe(statement)).bind(name).fetch_all(connection).await
    }

    /// The highest position that any processor has reached; 0 if there is none.
    pub async fn largest_position(&self, connection: impl PgExecutor<'_>) -> Result<Position, sqlx::Error> {
        sqlx::query_scalar(AssertSqlSafe(self.largest_position_statement())).fetch_one(connection).await
    }

    /// The statement of [`Self::largest_position`], for those who have a connection of their own.
    pub fn largest_position_statement(&self) -> String {
        format!("-- find_largest_position\nselect coalesce(max(position), 0) from {}.trackers", self.schema)
    }

    /// Locks the row for the rest of the transaction and returns where it stands; `None`: there is none.
    pub async fn lock(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Option<Position>, sqlx::Error> {
        let statement = format!(
            "-- lock_tracker
             select position from {}.trackers where name = $1 and partition = 0 for update",
            self.schema
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).bind(name).fetch_optional(connection).await
    }

    /// Locks the row for the rest of the transaction, if the claim is still valid.
    pub async fn lock_claimed(
        &self,
        connection: &mut PgConnection,
        name: &str,
        claim: &Claim,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- lock_claimed_tracker
             select true from {}.trackers where name = $1 and partition = $2 and epoch = $3 for update",
            self.schema
        );
        let query =
            sqlx::query_scalar(AssertSqlSafe(statement)).bind(name).bind(claim.partition).bind(claim.epoch);
        Ok(query.fetch_optional(connection).await?.unwrap_or(false))
    }

    /// Pauses a processor; it keeps its owner. Returns whether it was running.
    pub async fn pause(
        &self,
        connection: &mut PgConnection,
        name: &str,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let change = "paused_at = clock_timestamp(), paused_by = $2";
        self.act(connection, name, operator, "pause", change, "paused_at is null").await
    }

    /// Lets a paused or failed processor go on. Returns whether it was paused or failed.
    pub async fn resume(
        &self,
        connection: &mut PgConnection,
        name: &str,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        // A failed runner has to look at everything again, so its claim ends.
        let change = "paused_at = null, paused_by = null, failed_at = null,
                      next_retry_at = case when attempts > 0 then clock_timestamp() end,
                      epoch = epoch + case when failed_at is null then 0 else 1 end,
                      lease_until = case when failed_at is null then lease_until end";
        let condition = "(paused_at is not null or failed_at is not null)";
        self.act(connection, name, operator, "resume", change, condition).await
    }

    /// Applies an operator's change to one row and records it, in one statement.
    async fn act(
        &self,
        connection: &mut PgConnection,
        name: &str,
        operator: &str,
        action: &str,
        change: &str,
        condition: &str,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- {action}_processor
             with changed as (
               update {schema}.trackers set {change} where name = $1 and {condition}
               returning name, partition, position
             )
             insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
             select $2, '{action}', name, partition, position, position from changed",
            schema = self.schema
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(name).bind(operator);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }

    /// Sets the position back (or forward), ends every claim, and records who did it.
    ///
    /// `tables_dropped` says that the processor's tables have to be made anew.
    pub async fn reset(
        &self,
        connection: &mut PgConnection,
        name: &str,
        operator: &str,
        to: Position,
        tables_dropped: bool,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- reset_processor
             with before as (
               select name, partition, position from {schema}.trackers where name = $1 for update
             ), changed as (
               update {schema}.trackers as t
               set position = $3, epoch = epoch + 1, owner = null, owner_label = null, lease_until = null,
                   declaration = case when $4 then null else declaration end,
                   handled = case when $4 then 0 else handled end, caught_up = false, attempts = 0, last_error = null,
                   next_retry_at = null, failed_at = null, updated_at = clock_timestamp()
               from before where t.name = before.name and t.partition = before.partition
               returning t.name, t.partition, before.position
             )
             insert into {schema}.operator_log (operator, action, processor, partition, from_position, to_position)
             select $2, 'reset', name, partition, position, $3 from changed",
            schema = self.schema
        );
        let query =
            sqlx::query(AssertSqlSafe(statement)).bind(name).bind(operator).bind(to).bind(tables_dropped);
        Ok(query.execute(connection).await?.rows_affected() > 0)
    }
}

/// A duration as PostgreSQL takes it; longer than 292,000 years is cut.
pub(crate) fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
