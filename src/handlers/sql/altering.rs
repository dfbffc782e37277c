//! Altering the tables of a projector while it goes on. The handlers see nothing of what is altered, so nothing waits for it: where
//! others use the tables, it is tried again later.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tracing::{debug, info, warn};

use super::SqlProcessor;
use crate::postgres::sqlstate::{describe, is_lock_timeout, is_no_answer};
use crate::processing::alteration::Alteration;
use crate::processing::processor::{BatchRequest, Fit, Processor as _, ProcessorError, Work};

/// The pauses before another try.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How long others may have the tables before it is said who they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tables that are to be altered.
#[derive(Debug)]
pub(super) struct Altering {
    alteration: Alteration,
    since: Instant,
    next_try: Instant,
    pause: Duration,
    is_told: bool,
}

impl Altering {
    fn new(alteration: Alteration) -> Self {
        let now = Instant::now();
        Self { alteration, since: now, next_try: now, pause: PAUSE_MIN, is_told: false }
    }

    /// Whether it is time to try.
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.next_try
    }

    fn try_later(&mut self) {
        self.next_try = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

impl SqlProcessor {
    /// Takes note of how the tables fit.
    pub(super) fn note_fit(&mut self, fit: Fit) {
        self.altering = match fit {
            Fit::ToBeAltered(alteration) => Some(Altering::new(alteration)),
            Fit::AlteredSince(alteration) => {
                info!(
                    processor = self.base.name(),
                    alteration = %alteration,
                    "a newer declaration of this version has altered the tables, and they stay so"
                );
                None
            }
            Fit::AsDeclared | Fit::Refused { .. } | Fit::Other(_) => None,
        };
    }

    /// Alters the tables if it is time, and prepares for what they are then.
    pub(super) async fn alter_if_due(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<(), ProcessorError> {
        let is_batch = matches!(request.work, Work::Batch { .. });
        if !is_batch || !self.altering.as_ref().is_some_and(Altering::is_due) {
            return Ok(());
        }
        match self.base.alter_tables(connection, request).await {
            Ok(altered) => {
                if let Some(alteration) = altered {
                    info!(processor = self.base.name(), alteration = %alteration, "altered the tables");
                }
                self.prepare(connection, request.claim).await
            }
            Err(ProcessorError::Database(error)) if is_lock_timeout(&error) => self.wait(connection).await,
            Err(ProcessorError::Database(error)) if !is_no_answer(&error) => {
                Err(ProcessorError::Blocked(self.refusal(&describe(&error))))
            }
            Err(error) => Err(error),
        }
    }

    /// Why the tables are not as declared: the database refuses what would make them so.
    fn refusal(&self, error: &str) -> String {
        let name = self.base.name();
        let what = self.altering.as_ref().map_or(String::new(), |altering| altering.alteration.to_string());
        format!(
            "the database refuses what the changed declaration of {name} needs ({what}): {error}. Correct the change, or take it back"
        )
    }

    /// Leaves the tables to others for now, and says who they are if that takes long.
    async fn wait(&mut self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let Some(altering) = &mut self.altering else { return Ok(()) };
        altering.try_later();
        let (name, alteration) = (self.base.name(), altering.alteration.to_string());
        debug!(processor = name, alteration, "others use the tables: they are altered later");
        if altering.is_told || altering.since.elapsed() < PATIENCE {
            return Ok(());
        }
        altering.is_told = true;
        let holders = self.base.tables().find_holders(connection).await?.join(", ");
        warn!(
            processor = name,
            alteration, holders, "others use the tables, so they are not altered yet; the processor goes on"
        );
        Ok(())
    }
}
