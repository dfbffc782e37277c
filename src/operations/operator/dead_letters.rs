//! What operators see of dead letters and do about them.

use serde::Serialize;

use super::{Operator, OperatorError};
use crate::event::{Event, Position};
use crate::processing::dead_letters::{
    AggregateQueue, DeadLetter, DeadLetters, Remaining, RetryRequest, Selection,
};
use crate::processing::tracker::TrackerRow;
use crate::store::EventStore as _;

/// A dead letter, its event, and the dead letters around it. The field names are an interface: `espctl dead-letters show
/// --json` prints them.
#[derive(Debug, Serialize)]
pub(crate) struct ExaminedDeadLetter {
    /// The dead letter.
    #[serde(flatten)]
    pub dead_letter: DeadLetter,
    /// The other dead letters of its aggregate.
    #[serde(flatten)]
    pub queue: AggregateQueue,
    /// The event as it is in the store now; `None`: it is no longer there.
    pub event: Option<Event>,
}

/// How many dead letters a retry or a discard affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Affected {
    /// The dead letters that are selected.
    pub dead_letters: i64,
    /// Those that are not selected and wait behind selected ones.
    pub left_behind: i64,
}

impl Operator<'_> {
    /// The selected dead letters, ordered by processor and event, `limit` at most.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn dead_letters(
        &self,
        selection: &Selection,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, OperatorError> {
        Ok(self.table().list(&self.databases.projections, selection, limit).await?)
    }

    /// How many dead letters are selected.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn count_dead_letters(&self, selection: &Selection) -> Result<i64, OperatorError> {
        Ok(self.table().count(&self.databases.projections, selection).await?)
    }

    /// How many dead letters of a processor are selected, and how many others wait behind them.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if they are of a version that does not serve; or the database does not answer.
    pub(crate) async fn count_affected(
        &self,
        name: &str,
        selection: &Selection,
    ) -> Result<Affected, OperatorError> {
        refuse_beside(name)?;
        let (projections, selection) = (&self.databases.projections, of(name, selection));
        let dead_letters = self.table().count(projections, &selection).await?;
        let left_behind = self.table().count_left_behind(projections, name, &selection).await?;
        Ok(Affected { dead_letters, left_behind })
    }

    /// One dead letter, its event, and the dead letters around it.
    ///
    /// # Errors
    /// [`OperatorError::NotADeadLetter`], or a database does not answer.
    pub(crate) async fn examine(
        &self,
        name: &str,
        event_id: Position,
    ) -> Result<ExaminedDeadLetter, OperatorError> {
        let dead_letter = self.dead_letter(name, event_id).await?;
        let queue = self.table().queue_around(&self.databases.projections, &dead_letter).await?;
        let events = self.store().read_after(event_id.previous(), Some(event_id), None, 1).await?;
        Ok(ExaminedDeadLetter { dead_letter, queue, event: events.into_iter().next() })
    }

    /// Asks the owner of the processor to handle the selected dead letters again, and those that wait behind them. Returns
    /// at once, with the tracker of the processor; [`Self::remaining`] says what is left to do.
    ///
    /// # Errors
    /// As for [`Self::find`]. If one event is selected, [`OperatorError::NotADeadLetter`] or
    /// [`OperatorError::OutOfOrder`]. The database does not answer.
    pub(crate) async fn retry_dead_letters(
        &self,
        name: &str,
        selection: &Selection,
    ) -> Result<(TrackerRow, RetryRequest), OperatorError> {
        let row = self.find(name).await?;
        let selection = of(name, selection);
        if let Some(event_id) = selection.event_id {
            self.refuse_out_of_order(name, event_id).await?;
        }
        let projections = &self.databases.projections;
        let request = self.table().request_retry(projections, name, &selection, self.name).await?;
        self.databases.notify_runners().await;
        Ok((row, request))
    }

    /// How many dead letters of this retry have not been tried yet.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn count_pending(
        &self,
        name: &str,
        request: &RetryRequest,
    ) -> Result<i64, OperatorError> {
        Ok(self.table().count_pending(&self.databases.projections, name, request).await?)
    }

    /// The dead letters of this retry that are still set aside, with up to `shown` of those that failed again.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn remaining(
        &self,
        name: &str,
        request: &RetryRequest,
        shown: i64,
    ) -> Result<Remaining, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        Ok(self.table().remaining(&mut connection, name, request, shown).await?)
    }

    /// Removes the selected dead letters for good: the processor never handles their events. Returns how many there were,
    /// and how many others still wait behind them.
    ///
    /// # Errors
    /// [`OperatorError::NotADeadLetter`] if one event is selected, or the database does not answer.
    pub(crate) async fn discard_dead_letters(
        &self,
        name: &str,
        selection: &Selection,
    ) -> Result<Affected, OperatorError> {
        let selection = of(name, selection);
        if let Some(event_id) = selection.event_id {
            self.dead_letter(name, event_id).await?;
        }
        let left_behind = self.count_affected(name, &selection).await?.left_behind;
        let mut connection = self.databases.projections.acquire().await?;
        let dead_letters = self.table().discard(&mut connection, name, &selection, self.name).await?;
        if dead_letters == 0 {
            self.require_known(name).await?;
        }
        Ok(Affected { dead_letters, left_behind })
    }

    /// Refuses a name that is neither declared nor has a tracker: it is probably mistyped.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub(crate) async fn require_known(&self, name: &str) -> Result<(), OperatorError> {
        if self.declaration(name).is_err() {
            self.find(name).await?;
        }
        Ok(())
    }

    /// Refuses an event that waits behind another one of its aggregate.
    async fn refuse_out_of_order(&self, name: &str, event_id: Position) -> Result<(), OperatorError> {
        let dead_letter = self.dead_letter(name, event_id).await?;
        let queue = self.table().queue_around(&self.databases.projections, &dead_letter).await?;
        let Some(first) = queue.waits_for else { return Ok(()) };
        Err(OperatorError::OutOfOrder { name: name.to_owned(), event_id, first })
    }

    async fn dead_letter(&self, name: &str, event_id: Position) -> Result<DeadLetter, OperatorError> {
        let mut found = self.dead_letters(&Selection::one(name, event_id), 2).await?;
        let name = name.to_owned();
        if found.len() > 1 {
            let trackers = found.iter().map(DeadLetter::key).collect();
            return Err(OperatorError::Several { name, trackers });
        }
        found.pop().ok_or(OperatorError::NotADeadLetter { name, event_id })
    }

    fn table(&self) -> DeadLetters {
        DeadLetters::new(&self.trackers())
    }
}

/// Refuses to change what a version has set aside that is kept or being built: what it lacks then nobody would see once it serves.
fn refuse_beside(name: &str) -> Result<(), OperatorError> {
    let Some((processor, _)) = name.split_once('$') else { return Ok(()) };
    Err(OperatorError::Blocked(format!(
        "{name} is a version of {processor} that is kept or being built: its dead letters are those of {processor} once it serves"
    )))
}

/// The selection, restricted to this processor.
fn of(name: &str, selection: &Selection) -> Selection {
    Selection { processor: Some(name.to_owned()), ..selection.clone() }
}
