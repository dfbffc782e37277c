//! Moving the position, for those who handle events outside of the database. Declared SQL moves it by itself.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{Claim, Trackers};
use crate::postgres::literal::{interval, json_literal};
use crate::processing::progress::{PendingRetry, Progress};

/// What a move writes into the tracker.
pub(crate) struct Advance<'p> {
    /// How far the processor has come.
    pub(crate) progress: Progress<'p>,
    /// Whether nothing is left to do up to where the turn might go.
    pub(crate) caught_up: bool,
    /// How long the lease runs on.
    pub(crate) lease: Duration,
    /// Ids passed per second lately.
    pub(crate) rate: f32,
}

impl Trackers {
    /// Moves the position in the caller's transaction. `false`: it is not where or whose the claim says.
    pub(crate) async fn advance(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        advance: Advance<'_>,
    ) -> Result<bool, sqlx::Error> {
        let Advance { progress, caught_up, lease, rate } = advance;
        let statement = format!(
            "-- advance_tracker
             select {}.advance_tracker({}, epoch => {}, from_position => {}, to_position => {}, handled => {},
               lease => {}, caught_up => {caught_up}, rate => {}::real, {}) as moved",
            self.schema,
            claim.key.arguments(),
            claim.epoch,
            claim.position,
            progress.position,
            progress.handled,
            interval(lease),
            if rate.is_finite() { rate } else { 0.0 },
            failure(progress)?
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?.try_get("moved")
    }
}

/// What the tracker says of events that fail.
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
