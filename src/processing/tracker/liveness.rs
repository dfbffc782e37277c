//! This module records the liveness of owners and standbys outside of the tracker row, which a running batch keeps locked.
//!
//! An owner whose batch outlasts the lease cannot renew it, so it records its liveness in a row of `signs_of_life` instead. If
//! neither the lease nor that row is valid any more and the tracker is still locked, the owner is frozen inside a transaction.
//! A standby then ends the owner's backend before it claims the tracker.

use std::time::Duration;

use sqlx::{FromRow as _, PgExecutor, Row as _};

use super::{Claim, Owner, ProcessorKey, Trackers};
use crate::postgres::literal::{fetch_optional, interval, simple};
use crate::postgres::quote::quote_literal;
use crate::postgres::row::from_row;

/// Finds the backend that claimed the row `t`, if that backend locks the row now. The result is null if another backend has
/// got the same process id, or if this role may not see when the backend started.
///
/// The holder of the lock is known by its transaction id, which is in the row. Behind a pooler the recorded backend may work
/// for another client, but then it does not lock this row.
pub(super) const HOLDER: &str = "(select a.pid from pg_locks as l
     join pg_stat_activity as a on a.pid = l.pid and a.backend_start = t.backend_start
     where l.locktype = 'transactionid' and l.granted and l.transactionid = t.xmax and l.pid = t.backend_pid)";

/// The owner of a processor that could not be claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct CurrentOwner {
    /// Host and process id of the owner's daemon.
    pub label: Option<String>,
    /// Whether the owner is the daemon that asks.
    pub ours: bool,
    /// Seconds until the lease ends; below 0 if it has ended.
    pub seconds_left: Option<f64>,
    /// Whether the processor could be claimed if the row were not locked.
    pub late: bool,
    /// The backend of a late owner, if it locks the row.
    pub frozen_backend: Option<i32>,
    /// The version of the tracker.
    pub version: i32,
    /// Whether the version is newer than the one that is asked for, and has tables.
    pub superseded: bool,
}

from_row!(CurrentOwner { label, ours, seconds_left, late, frozen_backend, version, superseded });

/// What a sign of life has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Whether the claim is valid.
    pub is_valid: bool,
    /// Whether a session locks the row.
    pub at_work: bool,
}

from_row!(Liveness { is_valid, at_work });

impl Trackers {
    /// Returns the condition that the owner of the row `t` has recorded its liveness, and that the record is still valid.
    pub(crate) fn owner_lives(&self) -> String {
        format!(
            "exists (select from {}.signs_of_life as s
               where s.name = t.name and s.version = t.version and s.partition = t.partition
                 and s.epoch = t.epoch and s.lives_until >= clock_timestamp())",
            self.schema
        )
    }

    /// Returns the condition that `owner` may claim the row `t`.
    pub(super) fn is_free_for(&self, owner: &Owner) -> String {
        format!(
            "(owner = '{}' or lease_until is null or lease_until < clock_timestamp() and not {})",
            owner.id,
            self.owner_lives()
        )
    }

    /// Records that `owner` stands by for three leases from now, and returns the owner that keeps it from claiming. `None`:
    /// there is no tracker.
    pub async fn stand_by(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Option<CurrentOwner>, sqlx::Error> {
        let statement = format!(
            "-- stand_by
             with said as (
               insert into {schema}.signs_of_life as s (name, version, partition, owner, owner_label, lives_until)
               select t.name, t.version, t.partition, '{owner}', {label}, clock_timestamp() + 3 * {lease}
               from {trackers} as t
               -- Once in a lease is enough.
               where {is_runners} and not ({superseded})
                 and not exists (select from {schema}.signs_of_life as s
                                 where s.name = t.name and s.version = t.version and s.partition = t.partition
                                   and s.owner = '{owner}' and s.epoch is null
                                   and s.lives_until > clock_timestamp() + 2 * {lease})
               on conflict (name, version, partition, owner) do update
                 set epoch = null, lives_until = excluded.lives_until
             )
             select owner_label as label, coalesce(owner = '{owner}', false) as ours, {is_free} as late,
                    extract(epoch from lease_until - clock_timestamp())::float8 as seconds_left,
                    case when {is_free} and not ({superseded}) then {HOLDER} end as frozen_backend, version,
                    {superseded} as superseded
             from {trackers} as t where {is_runners}",
            schema = self.schema,
            trackers = self.table,
            is_runners = self.is_runners(key),
            owner = owner.id,
            label = quote_literal(&owner.label),
            lease = interval(lease),
            is_free = self.is_free_for(owner),
            superseded = format_args!(
                "t.version > {} and exists (select from {}.declarations as d
                   where d.processor = t.name and d.version = t.version)",
                key.version, self.schema
            )
        );
        fetch_optional(connection, statement).await
    }

    /// Removes the record that `owner` stands by.
    pub async fn withdraw_standby(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        owner: &Owner,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- withdraw_standby
             delete from {schema}.signs_of_life as s using {trackers} as t
             where {is_runners} and s.name = t.name and s.version = t.version and s.partition = t.partition
               and s.owner = '{owner}'",
            schema = self.schema,
            trackers = self.table,
            is_runners = self.is_runners(key),
            owner = owner.id
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Ends the backend that locks the row, if it still does and `owner` may claim the tracker. Returns whether a backend was
    /// ended.
    ///
    /// # Errors
    /// SQLSTATE `42501` if the role may not end the backend: it has to be the role of the frozen owner, or a member of
    /// `pg_signal_backend`.
    pub async fn end_frozen_backend(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
        owner: &Owner,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- end_frozen_backend
             select coalesce(pg_terminate_backend(case when {} then {HOLDER} end), false) as ended
             from {} as t where {}",
            self.is_free_for(owner),
            self.table,
            self.is_runners(key)
        );
        let row = simple(statement).fetch_optional(connection).await?;
        row.map_or(Ok(false), |row| row.try_get("ended"))
    }

    /// Ends the session of the batch that holds the row, whatever it is about: it is rolled back, and handled again. Returns whether there
    /// was one.
    ///
    /// # Errors
    /// SQLSTATE `42501` if the role may not end it.
    pub(crate) async fn end_batch(
        &self,
        connection: impl PgExecutor<'_>,
        key: &ProcessorKey,
    ) -> Result<bool, sqlx::Error> {
        let statement = format!(
            "-- end_batch
             select coalesce(pg_terminate_backend({HOLDER}), false) as ended from {} as t where {}",
            self.table,
            key.is_tracker()
        );
        let row = simple(statement).fetch_optional(connection).await?;
        row.map_or(Ok(false), |row| row.try_get("ended"))
    }

    /// Records that the owner of `claim` is alive, for a lease from now. Returns whether the claim is still valid, and whether a session
    /// locks the row, as a running batch does.
    pub async fn record_liveness(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Liveness, sqlx::Error> {
        let statement = format!(
            "-- record_liveness
             insert into {schema}.signs_of_life (name, version, partition, owner, owner_label, epoch, lives_until)
             values ({key}, '{owner}', {label}, {epoch}, clock_timestamp() + {lease})
             on conflict (name, version, partition, owner) do update
               set epoch = excluded.epoch, lives_until = excluded.lives_until
             returning exists (
               select from {trackers} as t
               join pg_locks as l on l.locktype = 'transactionid' and l.granted and l.transactionid = t.xmax
               where {is_tracker}
             ) as at_work, exists (select from {trackers} as t where {is_tracker} and t.epoch = {epoch}) as is_valid",
            schema = self.schema,
            trackers = self.table,
            key = claim.key.arguments(),
            is_tracker = claim.key.is_tracker(),
            owner = owner.id,
            label = quote_literal(&owner.label),
            epoch = claim.epoch,
            lease = interval(lease)
        );
        Liveness::from_row(&simple(statement).fetch_one(connection).await?)
    }
}
