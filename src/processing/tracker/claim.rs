//! This module claims trackers, renews the leases of claims, and releases them.
//!
//! A claim raises the row's epoch, and every later statement of the owner names the epoch of its claim. So an owner that was
//! stopped, resumed or overtaken can commit nothing. Only the server's clock decides whether a lease has ended.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgExecutor, Row as _};

use super::{Owner, ProcessorKey, Trackers};
use crate::event::Position;
use crate::postgres::literal::{fetch_optional, interval, simple};
use crate::postgres::notify::{CONTROL, notify_call};
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;
use crate::processing::failure::Failure;
use crate::schema::exclusion::lets_go_on;

/// How long a claim lasts without a batch or a renewal. A standby waits so long for an owner that was killed.
pub const LEASE: Duration = Duration::from_secs(5);

/// How long after its beginning a lease is renewed. Renewals are most of what an idle processor asks of its database, so there are few;
/// what is left of the lease is enough for an attempt that gets no answer and another one.
pub(crate) fn renewal_interval(lease: Duration) -> Duration {
    lease * 11 / 20
}

/// The right to move a tracker. It is valid until another claim or an operator raises the epoch, or the server restarts.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The tracker that was claimed. Its version differs from the declared one until a reset has created the declared tables.
    pub key: ProcessorKey,
    /// The epoch of the claim. Every change of the tracker under this claim has to name it.
    pub epoch: i64,
    /// How many epochs up to here are of operators' acts that have ended a claim, and of no claim.
    pub ended_claims: i64,
    /// The processor's position.
    pub position: Position,
    /// Fingerprint of the declaration that the tables were created from; `None` before they are created.
    pub declaration: Option<String>,
    /// Fingerprint of the handlers of the last owner; `None`: it is not known.
    pub handlers: Option<String>,
    /// Whether an operator has paused the processor.
    pub paused: bool,
    /// How often in a row the event of `last_error` has failed, or nobody has come back from it.
    pub attempts: i32,
    /// The failure that keeps the processor from continuing.
    pub last_error: Option<Json<Failure>>,
    /// Time left until the next attempt, in seconds.
    pub retry_in_seconds: Option<f64>,
    /// When an operator last wanted everything that waits tried at once.
    pub retried_at: Option<DateTime<Utc>>,
    /// Whether the processor has stopped until an operator acts.
    pub failed: bool,
    /// Whether the store is not the one that was followed, so that nothing is handled until an operator acts.
    pub diverged: bool,
    /// Whether the last owner has not released the tracker: its worker has ended, or it was frozen.
    pub unreleased: bool,
    /// When the server that has made the claim was started, in microseconds since 1970. A claim ends with its server: a
    /// crash may have made it forget what depends on the claim.
    pub server_start: i64,
}

/// The start of the server that a statement runs on, as in [`Claim::server_start`].
pub(super) const SERVER_START: &str = "(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint";

#[cfg(test)]
impl Claim {
    /// A claim of the first owner at a position, for tests.
    pub(crate) fn example(position: i64) -> Self {
        Self {
            key: ProcessorKey { name: "notes".to_owned(), version: 1, partition: 0 },
            epoch: 1,
            ended_claims: 0,
            position: position.into(),
            declaration: None,
            handlers: None,
            paused: false,
            attempts: 0,
            last_error: None,
            retry_in_seconds: None,
            retried_at: None,
            failed: false,
            diverged: false,
            unreleased: false,
            server_start: 0,
        }
    }
}

impl Claim {
    /// Whether the claim was made right after an `earlier` one, so that nobody else was the owner in between, and on a server
    /// that has not been restarted since. An operator may have ended the earlier one.
    pub(crate) fn follows(&self, earlier: &Self) -> bool {
        let claims = self.epoch - earlier.epoch - (self.ended_claims - earlier.ended_claims);
        self.key == earlier.key && claims == 1 && self.server_start == earlier.server_start
    }

    /// Whether an operator has wanted everything that waits tried at once since an `earlier` claim.
    pub(crate) fn is_retried_since(&self, earlier: &Self) -> bool {
        self.retried_at != earlier.retried_at
    }

    /// Whether an operator wants attempts counted anew. Without a time of the next one, there are none because what has failed is
    /// under way again.
    pub(crate) fn is_forgiven(&self) -> bool {
        self.attempts == 0 && self.retry_in_seconds.is_some()
    }

    /// Counts the attempt that the last owner has begun and did not come back from. Whoever retries on an operator's wish sets a time.
    fn counting_what_has_not_returned(self) -> Self {
        let has_begun = self.last_error.as_ref().is_some_and(|error| error.is_not_returned());
        let begun = i32::from(has_begun && self.retry_in_seconds.is_none() && !self.failed);
        Self { attempts: self.attempts.saturating_add(begun), ..self }
    }

    /// Returns the condition that the statement runs on the server that has made the claim, and that this has not been
    /// restarted since. The client need not notice that: a pooler keeps its connection.
    pub(crate) fn is_same_server(&self) -> String {
        format!("{SERVER_START} = {}", self.server_start)
    }
}

impl<'r> FromRow<'r, PgRow> for Claim {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let claim = Self {
            key: ProcessorKey {
                name: row.try_get("name")?,
                version: row.try_get("version")?,
                partition: row.try_get("partition")?,
            },
            epoch: row.try_get("epoch")?,
            ended_claims: row.try_get("ended_claims")?,
            position: row.try_get("position")?,
            declaration: row.try_get("declaration")?,
            handlers: row.try_get("handlers")?,
            paused: row.try_get("paused")?,
            attempts: row.try_get("attempts")?,
            last_error: row.try_get("last_error")?,
            retry_in_seconds: row.try_get("retry_in_seconds")?,
            retried_at: row.try_get("retried_at")?,
            failed: row.try_get("failed")?,
            diverged: row.try_get("diverged")?,
            unreleased: row.try_get("unreleased")?,
            server_start: row.try_get("server_start")?,
        };
        Ok(claim.counting_what_has_not_returned())
    }
}

/// What the renewal of a lease has found in the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The processor's position.
    pub position: Position,
    /// Whether an operator has paused the processor.
    pub paused: bool,
    /// Whether the failing event is to be tried at once, because an operator wants it or its time has come. It says nothing of a wait
    /// that is about something else.
    pub retry_now: bool,
    /// Whether an operator wants dead letters handled again.
    pub dead_letters_requested: bool,
}

from_row!(LeaseStatus { position, paused, retry_now, dead_letters_requested });

impl Trackers {
    /// Claims the tracker of a processor for `owner`. The claim succeeds if the lease has ended or is the owner's already, and
    /// no other session has locked the row; it never waits for a lock. `None`: the tracker cannot be claimed now, also because a
    /// newer espd has declared the tables to be not for this program, or there is none.
    ///
    /// The tracker is that of `key`. If there is none, a tracker of an older version is claimed, so that that version goes on, or
    /// the caller can report that a rebuild is needed; see [`Self::is_runners`]. One of a newer version is not, if it has tables. A tracker without tables, because they were never created or a reset
    /// has dropped them, becomes the tracker of `key`.
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
               select name, version, partition, owner is not null as unreleased,
                      (select d.fingerprint from {schema}.declarations as d
                       where d.processor = t.name and d.version = t.version) as declaration
               from {trackers} as t
               where {is_runners} and {is_free} and {lets_go_on}
                 -- A version that was superseded leaves the tables of a newer one alone.
                 and (t.version <= {version} or not exists (select from {schema}.declarations as d
                        where d.processor = t.name and d.version = t.version))
               -- A batch holds the row to its end, and a frozen owner without end.
               for update skip locked
             ), gone as (
               delete from {schema}.signs_of_life as s using free
               where s.name = free.name and s.version = free.version and s.partition = free.partition
                 and (s.owner = '{owner}' or s.lives_until < clock_timestamp())
             )
             update {trackers} as t
             set version = case when free.declaration is null then {version} else t.version end,
                 epoch = epoch + 1, owner = '{owner}', owner_label = {label},
                 lease_until = clock_timestamp() + {lease}, backend_pid = pg_backend_pid(),
                 backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid()),
                 updated_at = clock_timestamp()
             from free where t.name = free.name and t.version = free.version and t.partition = free.partition
             returning t.name, t.version, t.partition, epoch, ended_claims, position, free.declaration, free.unreleased, handlers,
                       paused_at is not null as paused, attempts, last_error,
                       extract(epoch from next_retry_at - clock_timestamp())::float8 as retry_in_seconds,
                       retried_at, failed_at is not null as failed, diverged is not null as diverged, {SERVER_START} as server_start,
                       -- A claim that a crash undoes would be made a second time, with the same epoch.
                       case when current_setting('synchronous_commit') = 'off'
                            then set_config('synchronous_commit', 'local', true) end as flushed",
            schema = self.schema,
            trackers = self.table,
            is_runners = self.is_runners(key),
            is_free = self.is_free_for(owner),
            lets_go_on = lets_go_on(&self.schema),
            version = key.version,
            owner = owner.id,
            label = quote_literal(&owner.label),
            lease = interval(lease)
        );
        fetch_optional(connection, statement).await
    }

    /// Returns the condition that the row `t` is the tracker that a runner of `key` works on: the tracker of `key`, or if there
    /// is none, the one of the newest other version.
    pub(super) fn is_runners(&self, key: &ProcessorKey) -> String {
        let ProcessorKey { name, version, partition } = key;
        let (trackers, name) = (&self.table, quote_literal(name));
        format!(
            "t.name = {name} and t.partition = {partition} and t.version = (
               select v.version from {trackers} as v where v.name = {name} and v.partition = {partition}
               order by v.version = {version} desc, v.version desc limit 1)"
        )
    }

    /// Renews the lease for `lease` from now, and records the present `rate`. `outage_over`: a recorded outage has ended and
    /// is removed from the row. `None`: the claim is no longer valid.
    pub async fn renew(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        lease: Duration,
        outage_over: bool,
        rate: f32,
    ) -> Result<Option<LeaseStatus>, sqlx::Error> {
        let statement = format!(
            "-- renew_lease
             update {trackers} as trackers
             set lease_until = clock_timestamp() + {}, outage = {}, rate = {}, updated_at = clock_timestamp()
             where {}
             returning position, paused_at is not null as paused,
                       coalesce(attempts > 0 and next_retry_at <= clock_timestamp(), false) as retry_now,
                       exists (select from {schema}.dead_letters as d
                               where d.processor = name and d.version = trackers.version
                                 and d.partition = trackers.partition and d.retry_requested_at is not null)
                         as dead_letters_requested",
            interval(lease),
            if outage_over { "null" } else { "outage" },
            if rate.is_finite() { rate } else { 0.0 },
            is_claimed(claim),
            schema = self.schema,
            trackers = self.table,
        );
        fetch_optional(connection, statement).await
    }

    /// Releases the claim, so that another daemon can claim the processor at once, and notifies the standbys, which listen on
    /// `channel`.
    pub async fn release(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        channel: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- release_tracker
             with released as (
               update {}
               set owner = null, owner_label = null, lease_until = null, backend_pid = null, backend_start = null,
                   updated_at = clock_timestamp()
               where {}
               returning 1
             )
             select {} from released",
            self.table,
            is_claimed(claim),
            notify_call(channel, CONTROL)
        );
        simple(statement).execute(connection).await.map(drop)
    }
}

/// Returns the condition on a row of `trackers` that the claim is still valid.
pub(crate) fn is_claimed(claim: &Claim) -> String {
    format!("{} and epoch = {} and {}", claim.key.is_tracker(), claim.epoch, claim.is_same_server())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_follows_an_earlier_one_where_nobody_but_operators_came_in_between() {
        let earlier = Claim { epoch: 7, ended_claims: 2, ..Claim::example(5) };
        let later = |epoch, ended_claims| Claim { epoch, ended_claims, ..earlier.clone() };
        for (claim, expected) in [
            (later(8, 2), true),
            (later(9, 3), true),
            (later(12, 6), true),
            // Another owner, with and without an operator, a reset, and a claim that was undone by a crash.
            (later(9, 2), false),
            (later(10, 3), false),
            (later(7, 2), false),
            (Claim { server_start: 1, ..later(8, 2) }, false),
        ] {
            assert_eq!(claim.follows(&earlier), expected, "{claim:?}");
        }
    }
}
