//! Moving the position, for those who handle events outside of the database. Declared SQL moves it by itself.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Claim, Trackers, interval, is_claimed, json_literal};
use crate::event::Position;
use crate::processing::processor::PutOff;

/// What a turn has come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress<'p> {
    /// Every event at or below it has been handled.
    pub(crate) position: Position,
    /// Events handled.
    pub(crate) handled: i32,
    /// Whether the event behind it has failed.
    pub(crate) failing: bool,
    /// What waits for another try while others go on.
    pub(crate) put_off: Option<&'p PutOff>,
}

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
        let Progress { position, handled, .. } = progress;
        // Nobody's effect depends on it: lost in a crash, the same ids are passed again.
        let hurry = if handled == 0 { "set local synchronous_commit = off;" } else { "" };
        let statement = format!(
            "-- move_tracker
             {hurry}
             update {schema}.trackers
             set position = {position}, caught_up = {caught_up}, handled = handled + {handled}, rate = {rate}::real,
                 lease_until = clock_timestamp() + {lease}, updated_at = clock_timestamp(), outage = null{failure}
             where {is_claimed} and position = {from} and position <= {position}",
            schema = self.schema,
            rate = if rate.is_finite() { rate } else { 0.0 },
            lease = interval(lease),
            failure = failure(progress)?,
            is_claimed = is_claimed(claim),
            from = claim.position,
        );
        Ok(sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?.rows_affected() > 0)
    }

    /// Removes a dead letter whose event has been handled, in the caller's transaction.
    pub(crate) async fn remove_letter(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        event_id: Position,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- remove_dead_letter
             select {}.remove_dead_letter({}, {event_id})",
            self.schema,
            claim.key.arguments()
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }
}

/// What the tracker says of events that fail.
fn failure(progress: Progress<'_>) -> Result<String, sqlx::Error> {
    let Some(PutOff { failure, attempts, until }) = progress.put_off else {
        // The same event fails again, and is counted on.
        let same = progress.failing && progress.handled == 0;
        let forgotten = ", attempts = 0, last_error = null, next_retry_at = null";
        return Ok(if same { String::new() } else { forgotten.to_owned() });
    };
    let until = until.map(|until| interval(until.saturating_duration_since(Instant::now())));
    Ok(format!(
        ", attempts = {attempts}, next_retry_at = {},
         last_error = {}::jsonb || jsonb_build_object('at', clock_timestamp())",
        until.map_or("null".to_owned(), |left| format!("clock_timestamp() + {left}")),
        json_literal(failure)?
    ))
}
