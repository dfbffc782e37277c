//! This module moves the position of processors that handle events outside of the database. Declared SQL moves it itself.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use sqlx::{Either, PgConnection, Row as _};

use super::{Claim, Trackers};
use crate::postgres::literal::{interval, json_literal, simple_behind};
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::progress::{PendingRetry, Progress};
use crate::store::witness::Witness;

/// What a batch writes into its tracker.
pub(crate) struct Advance<'p> {
    /// How far the processor has come with the batch.
    pub(crate) progress: Progress<'p>,
    /// Whether the batch has reached the last position that it was allowed to reach.
    pub(crate) caught_up: bool,
    /// How long the lease lasts from now on.
    pub(crate) lease: Duration,
    /// Recent speed, in ids passed per second.
    pub(crate) rate: f32,
    /// The witness of the new position, in the store that was read; `None`: the tracker keeps the one that it has.
    pub(crate) witness: Option<Witness>,
    /// What is asked before the position moves.
    pub(crate) checks: Checks,
}

/// What a transaction is asked before it commits what handlers have done.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Whether deferred constraints are examined: at the commit, no event could be named any more.
    pub(crate) constraints: bool,
    /// A condition without which nothing is done.
    pub(crate) condition: Option<String>,
    /// A call that may fail.
    pub(crate) call: Option<String>,
}

/// Why a transaction does not commit.
pub(crate) enum CheckError {
    /// It is in a state that it cannot commit in: what handlers have done is the reason.
    Uncommittable(sqlx::Error),
    /// Anything else.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for CheckError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl Checks {
    /// Selects the value of an expression after the checks, in one round trip. `None`: the condition does not hold.
    pub(crate) async fn select(
        self,
        connection: &mut PgConnection,
        verb: &str,
        expression: &str,
    ) -> Result<Option<bool>, CheckError> {
        let Self { constraints, condition, call } = self;
        let first = if constraints { "set constraints all immediate; " } else { "" };
        let value = match condition {
            Some(condition) => format!("case when {condition} then {expression} end"),
            None => expression.to_owned(),
        };
        // What stands behind `from` is carried out first.
        let from = call.map_or_else(String::new, |call| format!(" from {call}"));
        let statement = format!("-- {verb}\nselect {value} as value{from}");
        let mut results = simple_behind(first, &statement).fetch_many(connection);
        let (mut is_committable, mut value) = (!constraints, None);
        while let Some(result) = results.next().await {
            match result {
                Ok(Either::Left(_)) => is_committable = true,
                Ok(Either::Right(row)) => value = row.try_get("value")?,
                Err(error) if !is_committable && !is_infrastructure_error(&error) => {
                    return Err(CheckError::Uncommittable(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(value)
    }
}

impl Trackers {
    /// Moves the position in the caller's transaction. `false`: the position or the epoch is not that of the claim, and nothing
    /// was changed. `None`: neither was it, because the condition of the checks does not hold.
    pub(crate) async fn advance(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        advance: Advance<'_>,
    ) -> Result<Option<bool>, CheckError> {
        let Advance { progress, caught_up, lease, rate, witness, checks } = advance;
        let call = format!(
            "{}.advance_tracker({}, epoch => {}, from_position => {}, to_position => {}, handled => {},
               lease => {}, caught_up => {caught_up}, rate => {}::real, {}{})",
            self.schema,
            claim.key.arguments(),
            claim.epoch,
            claim.position,
            progress.position,
            progress.handled,
            interval(lease),
            if rate.is_finite() { rate } else { 0.0 },
            failure(progress)?,
            super::witness::parameters(witness),
        );
        checks.select(connection, "advance_tracker", &call).await
    }
}

/// Returns the arguments of `advance_tracker` about the event that fails.
fn failure(progress: Progress<'_>) -> Result<String, sqlx::Error> {
    let Some(PendingRetry { failure, attempts, until }) = progress.pending_retry else {
        return Ok(format!("failing => {}", progress.failing));
    };
    let left = until.map(|until| interval(until.saturating_duration_since(Instant::now())));
    Ok(format!(
        "failing => true, attempts => {attempts}, last_error => {}::jsonb, retry_in => {}",
        json_literal(failure)?,
        left.unwrap_or_else(|| "null".to_owned())
    ))
}
