//! Resets that need tables for themselves which others use: they are tried in short attempts, and say for whom they wait.
//!
//! An attempt holds the tracker, and whoever wants the tables waits behind it. So it is given up after less than a second, and
//! tried again: meanwhile the owner of the processor renews its lease, and others read the tables.

use std::pin::pin;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::{Operator, OperatorError, moved_on};
use crate::operations::status::{LockWait, describe_wait, find_reset_wait};
use crate::postgres::quote::quote_literal;
use crate::postgres::sqlstate::is_lock_timeout;
use crate::processing::processor::{OthersObjects, ProcessorBase, ProcessorError, Replaced};
use crate::processing::tracker::{ProcessorKey, Reset};

/// How long others may keep an operator's command waiting, and what is told meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct LockPatience<'p> {
    /// How long they may.
    pub(crate) limit: Duration,
    /// Told for whom the command waits, whenever that is somebody else.
    pub(crate) tell: &'p (dyn Fn(&str) + Sync),
}

/// The time between two attempts, for everybody else.
const PAUSE: Duration = Duration::from_millis(400);

/// The time between two looks for who holds the locks, while an attempt waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

impl Operator<'_> {
    /// Rebuilds a processor in attempts, until one is not kept waiting.
    ///
    /// # Errors
    /// [`OperatorError::Locked`] if others had the tables for the whole time.
    pub(super) async fn rebuild(
        &self,
        base: &ProcessorBase,
        key: &ProcessorKey,
        reset: Reset,
        others: OthersObjects,
        patience: LockPatience<'_>,
    ) -> Result<Replaced, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        name_session(&mut connection, Some(&key.name)).await?;
        let outcome = self.attempt_in_turn(&mut connection, base, key, reset, others, patience).await;
        // The session goes back to the pool.
        name_session(&mut connection, None).await?;
        outcome
    }

    async fn attempt_in_turn(
        &self,
        connection: &mut PgConnection,
        base: &ProcessorBase,
        key: &ProcessorKey,
        reset: Reset,
        others: OthersObjects,
        patience: LockPatience<'_>,
    ) -> Result<Replaced, OperatorError> {
        let (name, deadline) = (&key.name, Instant::now() + patience.limit);
        let mut told = Vec::new();
        loop {
            let attempt = base.reset(connection, key, self.name, reset, others);
            let (outcome, wait) = self.observe(name, attempt).await;
            match outcome {
                Ok(replaced) => return replaced.ok_or_else(|| moved_on(name)),
                Err(ProcessorError::Database(error)) if is_lock_timeout(&error) => {}
                Err(ProcessorError::Database(error)) => return Err(error.into()),
                Err(error) => return Err(OperatorError::Blocked(error.to_string())),
            }
            let pids = |wait: &LockWait| wait.held_by.iter().map(|holder| holder.pid).collect::<Vec<_>>();
            if let Some(wait) = wait.as_ref().filter(|wait| pids(wait) != told) {
                (patience.tell)(&format!("the reset of {name} waits for a lock{}", describe_wait(wait)));
                told = pids(wait);
            }
            if Instant::now() >= deadline {
                let wait = wait.map(Box::new);
                return Err(OperatorError::Locked { name: name.clone(), limit: patience.limit, wait });
            }
            sleep(PAUSE).await;
        }
    }

    /// The outcome of an attempt in a session that is named for this processor, and the lock that it has waited for.
    pub(crate) async fn observe<T>(
        &self,
        name: &str,
        attempt: impl Future<Output = T>,
    ) -> (T, Option<LockWait>) {
        let (mut attempt, mut seen) = (pin!(attempt), None);
        loop {
            match timeout(LOOK_INTERVAL, &mut attempt).await {
                Ok(outcome) => return (outcome, seen),
                Err(_) => seen = self.find_reset_wait(name).await.or(seen),
            }
        }
    }

    pub(crate) async fn find_reset_wait(&self, name: &str) -> Option<LockWait> {
        let mut connection = self.databases.projections.acquire().await.ok()?;
        find_reset_wait(&mut connection, &self.databases.layout, name).await.ok()?
    }
}

/// Lets `espctl status` see what the session does: reset this processor, or nothing special.
pub(crate) async fn name_session(
    connection: &mut PgConnection,
    resetting: Option<&str>,
) -> Result<(), sqlx::Error> {
    let statement = match resetting {
        Some(name) => format!("set application_name = {}", quote_literal(&format!("espd: reset {name}"))),
        None => "reset application_name".to_owned(),
    };
    sqlx::raw_sql(AssertSqlSafe(format!("-- name_session\n{statement}"))).execute(connection).await.map(drop)
}
