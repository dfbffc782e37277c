//! This module records in a tracker why its processor does not continue.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;

use super::{Claim, Trackers, is_claimed};
use crate::postgres::literal::{interval, json_literal, simple};
use crate::processing::failure::Failure;

/// A failure of the infrastructure that keeps a processor from continuing. No event has caused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When the outage began, by the clock of the daemon's host.
    pub since: DateTime<Utc>,
    /// The database's error code, if the database has answered.
    pub sqlstate: Option<String>,
    /// What happened last, in one sentence.
    pub message: String,
    /// How many attempts have failed since the outage began.
    pub tries: u32,
    /// The version that is waited for until it is live; `None`: it is a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i32>,
    /// When the next attempt is, if the current one fails as well.
    pub next_try_at: DateTime<Utc>,
}

impl Trackers {
    /// Records why the processor does not continue, and when it tries again (`None`: not before an operator acts).
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
        self.write_failure(connection, claim, (attempts, failure), (&retry_at, failed_at)).await
    }

    /// Notes which event is handed to the handler next, after so many attempts that have failed. It is no failure yet: that of an event
    /// from which nobody returns, which the next claim counts ([`Claim::attempts`]).
    pub async fn note_at_hand(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        attempts: u32,
        failure: &Failure,
    ) -> Result<(), sqlx::Error> {
        self.write_failure(connection, claim, (attempts, failure), ("null", "null")).await
    }

    /// Writes a failure with its attempts, and when it is tried again and since when the processor is stopped, as expressions.
    async fn write_failure(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        (attempts, failure): (u32, &Failure),
        (retry_at, failed_at): (&str, &str),
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_failure
             update {}
             set attempts = {}, next_retry_at = {retry_at}, caught_up = false,
                 last_error = {}::jsonb || jsonb_build_object('at', clock_timestamp()),
                 failed_at = {failed_at}, updated_at = clock_timestamp()
             where {}",
            self.table,
            i32::try_from(attempts).unwrap_or(i32::MAX),
            json_literal(failure)?,
            is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Removes a failure that no event has caused, because the processor continues.
    pub async fn forget_failure(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- forget_failure
             update {} set failed_at = null, last_error = null, updated_at = clock_timestamp() where {}",
            self.table,
            is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Records the outage that keeps the processor from continuing. It is owned for `owned_for` from now at least: the session
    /// that would renew the lease is given up until the next attempt.
    pub async fn record_outage(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        outage: &Outage,
        owned_for: Duration,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- record_outage
             update {} set outage = {}::jsonb, lease_until = greatest(lease_until, clock_timestamp() + {}),
                           updated_at = clock_timestamp()
             where {}",
            self.table,
            json_literal(outage)?,
            interval(owned_for),
            is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }
}
