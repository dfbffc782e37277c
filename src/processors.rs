//! How far the processors of a database are, for applications that read what they have just written.

use std::error::Error;
use std::time::{Duration, Instant};

use sqlx::{PgPool, Row as _};
use thiserror::Error;
use tokio::time::sleep;

use crate::event::Position;
use crate::postgres::literal::fetch_optional;
use crate::postgres::name::{InvalidName, SchemaName};
use crate::postgres::quote::{quote_identifier, quote_literal};

/// The processors that run on a database, as an application sees them. Cheap to clone.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, store: espd::store::PostgresEventStore, added: espd::event::NewEvent) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use espd::Processors;
/// use espd::store::EventStore as _;
///
/// let processors = Processors::new(pool, "espd")?;
/// let appended = store.append(&[added]).await?;
/// processors.wait_for("outstanding_todos", appended[0].id, Duration::from_secs(2)).await?;
/// // What is read from the table outstanding_todos now includes the new event.
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Processors {
    pool: PgPool,
    schema: SchemaName,
    tracker_table: String,
}

/// Why a wait has ended before what was waited for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The time is over. The message names every processor that is behind, and why.
    #[error("{message}")]
    TimedOut {
        /// The processors that are behind.
        processors: Vec<String>,
        /// What is known of each of them, a line each.
        message: String,
    },
    /// A processor does not go on by itself.
    #[error("{processor} does not go on: {reason}")]
    Blocked {
        /// The processor.
        processor: String,
        /// What keeps it from going on: its last error, a dead letter, a pause.
        reason: String,
        /// The event that could not be handled, if it is about one.
        event_id: Option<Position>,
    },
    /// The event store is not the one that a processor has followed.
    #[error("{message}")]
    Diverged {
        /// The processor.
        processor: String,
        /// What was found, and what to do.
        message: String,
    },
    /// No processor has this name.
    #[error("no processor {processor}{}", others(known))]
    Unknown {
        /// The unknown name.
        processor: String,
        /// The names that are known.
        known: Vec<String>,
    },
    /// What ran the processors has ended.
    #[error("the processors are not running any more")]
    Ended,
    /// The database did not answer, or refused.
    #[error("could not read how far the processors are")]
    Database(#[source] Box<dyn Error + Send + Sync>),
}

/// The end of the message about an unknown name.
fn others(known: &[String]) -> String {
    match known {
        [] => ": none has run on this database yet".to_owned(),
        known => format!("; there are {}", known.join(", ")),
    }
}

impl From<sqlx::Error> for WaitError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// What an application has to know of a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    position: Position,
    /// Why it does not go on by itself.
    stopped: Option<&'static str>,
    diverged: bool,
}

/// The time between two looks: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

impl Processors {
    /// The processors whose trackers are in `schema`, which is `espd` unless the configuration says otherwise. The pool leads
    /// to the database of the projections; it may lead through a transaction pooler.
    ///
    /// # Errors
    /// The schema cannot have this name.
    pub fn new(pool: PgPool, schema: &str) -> Result<Self, InvalidName> {
        Ok(Self { pool, schema: SchemaName::new(schema)?, tracker_table: "trackers".to_owned() })
    }

    /// The same processors, whose table of positions has another name than `trackers`: `tracker_table` of the configuration.
    #[must_use]
    pub fn with_tracker_table(self, name: &str) -> Self {
        Self { tracker_table: name.to_owned(), ..self }
    }

    /// The position of a processor; `None`: it has never run on this database.
    ///
    /// # Errors
    /// The database did not answer, or refused.
    pub async fn position(&self, processor: &str) -> Result<Option<Position>, WaitError> {
        Ok(self.standing(processor).await?.map(|standing| standing.position))
    }

    /// Returns as soon as a processor has handled everything up to `position`, for example an id that an append has returned.
    /// The position that it has reached is returned. No connection is held while it waits.
    ///
    /// A processor that has not run yet is waited for; an event that fails may succeed when it is tried again. An event that was
    /// set aside as a dead letter counts as passed. SQL clients have the same in `espd.wait_for`.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] after `timeout`. [`WaitError::Blocked`] and [`WaitError::Diverged`] at once: the processor is
    /// paused, has stopped at an event, or has met another store, and does not go on by itself.
    pub async fn wait_for(
        &self,
        processor: &str,
        position: impl Into<Position>,
        timeout: Duration,
    ) -> Result<Position, WaitError> {
        let (wanted, deadline) = (position.into(), deadline_after(timeout));
        let mut pause = PAUSES.0;
        loop {
            let standing = self.standing(processor).await?;
            if let Some(reached) = judge(processor, standing.as_ref(), wanted)? {
                return Ok(reached);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = match standing {
                    Some(Standing { position, .. }) => {
                        format!("{processor} has not reached {wanted} in time: it is at {position}")
                    }
                    None => {
                        format!(
                            "{processor} has not reached {wanted} in time: it has never run on this database"
                        )
                    }
                };
                return Err(WaitError::TimedOut { processors: vec![processor.to_owned()], message });
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn standing(&self, processor: &str) -> Result<Option<Standing>, WaitError> {
        let statement = format!(
            "-- find_position
             select min(position) as position, bool_or(paused_at is not null) as paused,
                    bool_or(failed_at is not null) as failed, bool_or(diverged is not null) as diverged
             from {}.{} where name = {} having count(*) > 0",
            self.schema,
            quote_identifier(&self.tracker_table),
            quote_literal(processor)
        );
        let found: Option<Standing> = fetch_optional(&self.pool, statement).await?;
        Ok(found)
    }
}

/// When a wait is over, which is in a year at the latest.
pub(crate) fn deadline_after(timeout: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(365 * 86_400);
    Instant::now() + timeout.min(LONGEST)
}

/// The position of a processor that has come as far as this; `None`: it may still come.
fn judge(
    processor: &str,
    standing: Option<&Standing>,
    wanted: Position,
) -> Result<Option<Position>, WaitError> {
    let Some(Standing { position, stopped, diverged }) = standing else { return Ok(None) };
    let processor = || processor.to_owned();
    if *diverged {
        let message = format!("the event store is not the one that {} has followed", processor());
        return Err(WaitError::Diverged { processor: processor(), message });
    }
    match stopped {
        _ if *position >= wanted => Ok(Some(*position)),
        Some(reason) => {
            let reason = format!("{reason}, at {position}");
            Err(WaitError::Blocked { processor: processor(), reason, event_id: None })
        }
        None => Ok(None),
    }
}

impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for Standing {
    fn from_row(row: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        let stopped = match (row.try_get("paused")?, row.try_get("failed")?) {
            (true, _) => Some("it is paused"),
            (_, true) => Some("it has stopped at an event that it could not handle"),
            _ => None,
        };
        Ok(Self { position: row.try_get("position")?, stopped, diverged: row.try_get("diverged")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_unless_it_was_reached_in_another_store() {
        let at = |position: i64| Standing { position: position.into(), stopped: None, diverged: false };
        let judge = |standing: Option<&Standing>| judge("p", standing, 7.into());
        assert!(matches!(judge(None), Ok(None)));
        assert!(matches!(judge(Some(&at(6))), Ok(None)));
        assert!(matches!(judge(Some(&at(7))), Ok(Some(position)) if position == 7));
        let paused = |position| Standing { stopped: Some("it is paused"), ..at(position) };
        assert!(matches!(judge(Some(&paused(8))), Ok(Some(_))));
        assert_eq!(judge(Some(&paused(6))).unwrap_err().to_string(), "p does not go on: it is paused, at 6");
        let diverged = Standing { diverged: true, ..at(9) };
        assert!(matches!(judge(Some(&diverged)), Err(WaitError::Diverged { .. })));
    }
}
