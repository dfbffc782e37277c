//! Processors that run in a test.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool};

use super::failure::TestFailure;
use super::server::SCHEMA;
use crate::daemon::in_process::Running;
use crate::operations::waiting::Idle;
use crate::postgres::quote::quote_identifier;

/// How long processors may take on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// Processors that run on the database of a test. Dropping it stops them.
#[derive(Debug)]
pub struct TestRunning<'d> {
    pool: &'d PgPool,
    running: Running,
}

impl<'d> TestRunning<'d> {
    pub(super) fn new(pool: &'d PgPool, running: Running) -> Self {
        Self { pool, running }
    }

    /// Returns as soon as nothing is left to do: every event is handled, also those that reactors have emitted meanwhile, what is to be
    /// done after commits is done, and nothing that is due is pending. What is emitted for later is listed.
    ///
    /// # Errors
    /// At once, where a processor cannot go on: its last error, or its dead letter, with the event. After a minute otherwise, with what
    /// each processor still has to do.
    pub async fn caught_up(&self) -> Result<Idle, TestFailure> {
        let idle = self.running.idle(PATIENCE).await;
        idle.map_err(|error| TestFailure::new("the processors have not caught up", &error))
    }

    /// Makes due now what was emitted or scheduled for a time up to this one, and returns when nothing is left to do.
    ///
    /// What that leads to, and is for later again, waits for another call: its time is counted by the clock of the database.
    ///
    /// # Errors
    /// As for [`Self::caught_up`], also before anything is made due.
    pub async fn advance_to(&self, time: DateTime<Utc>) -> Result<Idle, TestFailure> {
        self.caught_up().await?;
        for table in ["emissions", "scheduled_events"] {
            let statement = format!(
                "-- make_due
                 update {}.{table} set due_at = clock_timestamp(){next_try}
                 where due_at > clock_timestamp() and due_at <= $1",
                quote_identifier(SCHEMA),
                next_try = if table == "emissions" { "" } else { ", next_try_at = clock_timestamp()" }
            );
            let query = sqlx::query(AssertSqlSafe(statement)).bind(time);
            let made = query.execute(self.pool).await;
            made.map_err(|error| TestFailure::new("what is for later cannot be made due", &error))?;
        }
        self.caught_up().await
    }

    /// As [`Self::advance_to`], by a while from now on.
    ///
    /// # Errors
    /// As for [`Self::advance_to`].
    pub async fn advance(&self, time: Duration) -> Result<Idle, TestFailure> {
        let time =
            chrono::TimeDelta::from_std(time).ok().and_then(|time| Utc::now().checked_add_signed(time));
        self.advance_to(time.unwrap_or(DateTime::<Utc>::MAX_UTC)).await
    }

    /// The running processors, for what else there is to ask of them.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Stops the processors, after the batch at hand.
    ///
    /// # Errors
    /// They had ended before, or had to be cut off.
    pub async fn stop(self) -> Result<(), TestFailure> {
        let stopped = self.running.stop().await;
        stopped.map_err(|error| TestFailure::new("the processors did not end as they should", &error))
    }
}
