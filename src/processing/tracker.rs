//! Who is where: the statements on a processor's tracker row.
//!
//! A claim raises the row's epoch, and whatever moves the position names the epoch that it was claimed
//! under. So a stopped, resumed or otherwise outdated owner can commit nothing, whatever it believes.
//! Leases are judged by the server's clock only.
//!
//! The position itself is moved by the processors, inside the transaction of their effects.
//!
//! What runners say travels in the simple protocol, with its values written out: one round trip, nothing
//! prepared, no state of a session, so it works behind any pooler.

mod advance;
mod key;
mod listing;
mod liveness;
mod operator;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

pub(crate) use advance::{Advance, Progress};
pub use key::ProcessorKey;
pub use listing::TrackerRow;
pub use liveness::CurrentOwner;
pub use operator::{ReplayEffects, Reset};

use crate::event::Position;
use crate::postgres::notify::{CONTROL, notify_call};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::row::from_row;
use crate::processing::failure::Failure;
use crate::processing::processor::ProcessorKind;

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
    pub fn generate() -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let label = format!("{}:{}", host.as_deref().unwrap_or("?"), std::process::id());
        Self { id: Uuid::new_v4(), label }
    }
}

/// The right to move a tracker, from a claim until somebody else raises the epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The tracker that was claimed. Its version is not the declared one until a reset has made the declared tables.
    pub key: ProcessorKey,
    /// What every move has to name.
    pub epoch: i64,
    /// Where the processor stands.
    pub position: Position,
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

impl<'r> FromRow<'r, PgRow> for Claim {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            key: ProcessorKey {
                name: row.try_get("name")?,
                version: row.try_get("version")?,
                partition: row.try_get("partition")?,
            },
            epoch: row.try_get("epoch")?,
            position: row.try_get("position")?,
            declaration: row.try_get("declaration")?,
            paused: row.try_get("paused")?,
            attempts: row.try_get("attempts")?,
            last_error: row.try_get("last_error")?,
            retry_in_seconds: row.try_get("retry_in_seconds")?,
            failed: row.try_get("failed")?,
        })
    }
}

/// What of the infrastructure keeps a processor from going on. No event is to blame for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When it began, by the clock of the daemon's host.
    pub since: DateTime<Utc>,
    /// The database's error code, where it was the database that said no.
    pub sqlstate: Option<String>,
    /// What happened last, in one sentence.
    pub message: String,
    /// Tries that it has spoiled.
    pub tries: u32,
    /// When the next try is, if this one fails as well.
    pub next_try_at: DateTime<Utc>,
}

/// What a renewed lease says about the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Where the processor stands.
    pub position: Position,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Whether an operator wants the failing event tried at once.
    pub retry_now: bool,
    /// Whether an operator wants dead letters handled again.
    pub letters: bool,
}

from_row!(LeaseStatus { position, paused, retry_now, letters });

/// The trackers of one database.
#[derive(Debug, Clone)]
pub struct Trackers {
    /// The quoted schema.
    schema: String,
}

impl Trackers {
    /// The trackers in this schema, made by `migrations/processing`.
    pub fn new(schema: &str) -> Self {
        Self { schema: quote_identifier(schema) }
    }

    /// Makes sure that the processor has a tracker, of whatever version; a new one is that of `key` and begins at
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
             insert into {schema}.trackers (name, version, partition, kind, position)
             select {name}, {version}, {partition}, '{kind}', {position}
             where not exists (select from {schema}.trackers where name = {name} and partition = {partition})",
            schema = self.schema,
            name = quote_literal(name),
            kind = kind.as_str()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Claims the tracker of a processor for `owner`: succeeds when its lease has ended or is the owner's already, and
    /// nobody has locked the row. Never waits for a lock. `None`: not now, or there is no row.
    ///
    /// The tracker is that of `key`. Where there is none, it is the tracker of another version, for the caller to say that
    /// a reset is needed; see [`Self::is_runners`]. One that has no tables, because they were never made or a reset has
    /// dropped them, becomes the tracker of `key`.
    pub async fn claim(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Option<Claim>, sqlx::Error> {
        let statement = format!(
            "-- claim_tracker
             with free as (
               select name, version, partition,
                      (select d.fingerprint from {schema}.declarations as d
                       where d.processor = t.name and d.version = t.version) as declaration
               from {schema}.trackers as t
               where {is_runners} and {is_free}
               -- A batch holds the row to its end, and a frozen owner for as long as it likes.
               for update skip locked
             ), gone as (
               delete from {schema}.signs_of_life as s using free
               where s.name = free.name and s.version = free.version and s.partition = free.partition
                 and (s.owner = '{owner}' or s.lives_until < clock_timestamp())
             )
             update {schema}.trackers as t
             set version = case when free.declaration is null then {version} else t.version end,
                 epoch = epoch + 1, owner = '{owner}', owner_label = {label},
                 lease_until = clock_timestamp() + {lease}, backend_pid = pg_backend_pid(),
                 backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid()),
                 updated_at = clock_timestamp()
             from free where t.name = free.name and t.version = free.version and t.partition = free.partition
             returning t.name, t.version, t.partition, epoch, position, free.declaration,
                       paused_at is not null as paused, attempts, last_error,
                       extract(epoch from next_retry_at - clock_timestamp())::float8 as retry_in_seconds,
                       failed_at is not null as failed",
            schema = self.schema,
            is_runners = self.is_runners(key),
            is_free = self.is_free_for(owner),
            version = key.version,
            owner = owner.id,
            label = quote_literal(&owner.label),
            lease = interval(lease)
        );
        fetch_optional(connection, statement).await
    }

    /// The condition that the row `t` is the tracker that a runner of `key` deals with: the tracker of `key`, or, where
    /// there is none, the one of the newest other version.
    fn is_runners(&self, key: &ProcessorKey) -> String {
        let ProcessorKey { name, version, partition } = key;
        let (schema, name) = (&self.schema, quote_literal(name));
        format!(
            "t.name = {name} and t.partition = {partition} and t.version = (
               select v.version from {schema}.trackers as v where v.name = {name} and v.partition = {partition}
               order by v.version = {version} desc, v.version desc limit 1)"
        )
    }

    /// Lets the lease run on. `outage_over`: what kept the database from going on has passed. `None`: the claim is no
    /// longer valid.
    pub async fn renew(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        lease: Duration,
        outage_over: bool,
    ) -> Result<Option<LeaseStatus>, sqlx::Error> {
        let statement = format!(
            "-- renew_lease
             update {schema}.trackers
             set lease_until = clock_timestamp() + {}, outage = {}, updated_at = clock_timestamp()
             where {}
             returning position, paused_at is not null as paused,
                       coalesce(attempts > 0 and next_retry_at <= clock_timestamp(), false) as retry_now,
                       exists (select from {schema}.dead_letters as d
                               where d.processor = name and d.version = trackers.version
                                 and d.partition = trackers.partition and d.retry_requested_at is not null) as letters",
            interval(lease),
            if outage_over { "null" } else { "outage" },
            is_claimed(claim),
            schema = self.schema,
        );
        fetch_optional(connection, statement).await
    }

    /// Gives the processor up, so that another daemon may claim it at once, and notifies `channel` for those who
    /// stand by.
    pub async fn release(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        channel: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- release_tracker
             with released as (
               update {}.trackers
               set owner = null, owner_label = null, lease_until = null, backend_pid = null, backend_start = null,
                   updated_at = clock_timestamp()
               where {}
               returning 1
             )
             select {} from released",
            self.schema,
            is_claimed(claim),
            notify_call(channel, CONTROL)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Records why the processor does not go on, and when it will try again (`None`: never by itself).
    pub async fn record_failure(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        attempts: u32,
        failure: &Failure,
        retry_in: Option<Duration>,
    ) -> Result<(), sqlx::Error> {
        let (retry_at, failed_at) = match retry_in {
            Some(delay) => (format!("clock_timestamp() + {}", interval(delay)), "null"),
            None => ("null".to_owned(), "clock_timestamp()"),
        };
        let statement = format!(
            "-- record_failure
             update {}.trackers
             set attempts = {}, next_retry_at = {retry_at}, caught_up = false,
                 last_error = {}::jsonb || jsonb_build_object('at', clock_timestamp()),
                 failed_at = {failed_at}, updated_at = clock_timestamp()
             where {}",
            self.schema,
            i32::try_from(attempts).unwrap_or(i32::MAX),
            json_literal(failure)?,
            is_claimed(claim)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Forgets a failure that no event was to blame for: the processor goes on.
    pub async fn forget_failure(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- forget_failure
             update {}.trackers set failed_at = null, last_error = null, updated_at = clock_timestamp() where {}",
            self.schema,
            is_claimed(claim)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Records what of the infrastructure keeps the processor from going on.
    pub async fn record_outage(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        outage: &Outage,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_outage
             update {}.trackers set outage = {}::jsonb, updated_at = clock_timestamp() where {}",
            self.schema,
            json_literal(outage)?,
            is_claimed(claim)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
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
        key: &ProcessorKey,
    ) -> Result<Option<Position>, sqlx::Error> {
        self.lock_where(connection, key, "").await
    }

    /// Locks the row for the rest of the transaction, if the claim is still valid.
    pub async fn lock_claimed(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<bool, sqlx::Error> {
        let is_claimed = format!("epoch => {}, ", claim.epoch);
        Ok(self.lock_where(connection, &claim.key, &is_claimed).await?.is_some())
    }

    async fn lock_where(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        condition: &str,
    ) -> Result<Option<Position>, sqlx::Error> {
        let statement = format!(
            "-- lock_tracker
             select locked_position from {}.lock_tracker({}, {condition}even_paused => true)",
            self.schema,
            key.arguments()
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?;
        row.map(|row| row.try_get("locked_position")).transpose()
    }
}

/// The condition that the claim is still valid.
pub(crate) fn is_claimed(claim: &Claim) -> String {
    format!("{} and epoch = {}", claim.key.is_tracker(), claim.epoch)
}

pub(crate) fn json_literal(value: &impl Serialize) -> Result<String, sqlx::Error> {
    let text = serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))?;
    Ok(quote_literal(&text))
}

/// The row that a statement in the simple protocol returns, if any.
async fn fetch_optional<T>(
    connection: impl PgExecutor<'_>,
    statement: String,
) -> Result<Option<T>, sqlx::Error>
where
    T: for<'r> FromRow<'r, PgRow>,
{
    let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?;
    row.map(|row| T::from_row(&row)).transpose()
}

/// A duration as PostgreSQL reads it; longer than a thousand years is cut.
pub(crate) fn interval(duration: Duration) -> String {
    const LONGEST: u128 = 1_000 * 365 * 86_400 * 1_000_000;
    format!("'{} microseconds'::interval", duration.as_micros().min(LONGEST))
}
