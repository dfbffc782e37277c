//! This module moves the position of processors that handle events outside of the database. Declared SQL moves it itself.

use std::time::{Duration, Instant};

use sqlx::{PgConnection, Row as _};

use super::{Claim, Trackers};
use crate::postgres::literal::{interval, json_literal, simple};
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
    /// A call that is made before the position moves, and may fail.
    pub(crate) check: Option<String>,
}

impl Trackers {
    /// Moves the position in the caller's transaction. `false`: the position or the epoch is not that of the claim, and nothing
    /// was changed.
    pub(crate) async fn advance(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        advance: Advance<'_>,
    ) -> Result<bool, sqlx::Error> {
        let Advance { progress, caught_up, lease, rate, witness, check } = advance;
        let statement = format!(
            "-- advance_tracker
             select {}.advance_tracker({}, epoch => {}, from_position => {}, to_position => {}, handled => {},
               lease => {}, caught_up => {caught_up}, rate => {}::real, {}{}) as moved{}",
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
            // What stands behind `from` is carried out first.
            check.map_or_else(String::new, |check| format!(" from {check}"))
        );
        simple(statement).fetch_one(connection).await?.try_get("moved")
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
