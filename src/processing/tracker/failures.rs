//! This module records in a tracker why its processor does not go on.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgExecutor};

use super::{Claim, Trackers, is_claimed};
use crate::postgres::literal::{interval, json_literal};
use crate::processing::failure::Failure;

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

impl Trackers {
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
}
