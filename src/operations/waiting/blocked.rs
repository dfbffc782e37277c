//! What keeps a processor from going on by itself.

use super::{Patience, Waiting};
use crate::event::Position;
use crate::processing::dead_letters::{DeadLetter, DeadLetters, Selection};
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::processors::WaitError;

impl Waiting<'_> {
    /// Ends an impatient wait for a position where a failure, a dead letter or a pause keeps one of the processors from having
    /// handled everything up to there.
    pub(super) async fn refuse_blocked(
        &self,
        rows: &[TrackerRow],
        wanted: Position,
    ) -> Result<(), WaitError> {
        if self.patience == Patience::Patient {
            return Ok(());
        }
        for row in rows {
            if let Some(blocked) = if row.position < wanted { stopped(row) } else { None } {
                return Err(blocked);
            }
            if row.dead_letters > 0
                && let Some(dead_letter) = self.first_dead_letter(&row.name).await?
                && dead_letter.event_id <= wanted
            {
                return Err(blocked_by(&dead_letter));
            }
        }
        Ok(())
    }

    /// Ends a wait for a position where only an operator lets one of the processors go on to there.
    pub(super) fn refuse_halted(&self, rows: &[TrackerRow], wanted: Position) -> Result<(), WaitError> {
        let is_halted = |row: &&TrackerRow| row.paused_at.is_some() || row.failed_at.is_some();
        let mut halted = rows.iter().filter(|row| row.position < wanted).filter(is_halted);
        halted.find_map(stopped).map_or(Ok(()), Err)
    }

    async fn first_dead_letter(&self, name: &str) -> Result<Option<DeadLetter>, WaitError> {
        let databases = self.operator.databases;
        let table = DeadLetters::new(&Trackers::of(&databases.layout));
        let found = table.list(&databases.projections, &Selection::of(name), 1).await?;
        Ok(found.into_iter().next())
    }
}

/// Why a processor does not go on by itself at its next event, if it does not.
pub(super) fn stopped(row: &TrackerRow) -> Option<WaitError> {
    let (reason, event_id) = match (&row.paused_at, &row.last_error) {
        (Some(_), _) => {
            let by = row.paused_by.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
            (format!("it was paused{by} at {}", row.position), None)
        }
        (None, Some(failure)) => (failure.0.to_string(), failure.0.event_id()),
        (None, None) => return None,
    };
    Some(WaitError::Blocked { processor: row.name.clone(), reason, event_id })
}

fn blocked_by(dead_letter: &DeadLetter) -> WaitError {
    let why = match &dead_letter.failure {
        Some(failure) => format!("is a dead letter: {}", failure.0.message),
        None => "waits behind a dead letter".to_owned(),
    };
    let DeadLetter { processor, event_id, event_type, .. } = dead_letter;
    WaitError::Blocked {
        processor: processor.clone(),
        reason: format!("event {event_id} ({event_type}) {why}"),
        event_id: Some(*event_id),
    }
}
