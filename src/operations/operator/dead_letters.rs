//! What operators do about dead letters.

use serde::Serialize;

use super::{Operator, OperatorError};
use crate::event::{Event, Position};
use crate::processing::dead_letters::{Behind, DeadLetter, DeadLetters, Remaining, RetryAsked, Selection};
use crate::processing::tracker::TrackerRow;
use crate::store::EventStore as _;

/// A dead letter with everything that is known about it. The field names are an interface: `espctl dead-letters show
/// --json` prints them.
#[derive(Debug, Serialize)]
pub struct ExaminedLetter {
    /// The letter.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// Its place in the line of its aggregate.
    #[serde(flatten)]
    pub behind: Behind,
    /// The event as it is in the store now; `None`: it is there no more.
    pub event: Option<Event>,
}

/// What a retry or a discard is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meant {
    /// How many letters are meant.
    pub letters: i64,
    /// How many others wait behind them.
    pub left_behind: i64,
}

impl Operator<'_> {
    /// The dead letters that are meant, by processor and event, `limit` at most.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn dead_letters(
        &self,
        selection: &Selection,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, OperatorError> {
        Ok(self.letters().list(&self.databases.projections, selection, limit).await?)
    }

    /// How many dead letters are meant.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn count_dead_letters(&self, selection: &Selection) -> Result<i64, OperatorError> {
        Ok(self.letters().count(&self.databases.projections, selection).await?)
    }

    /// How many dead letters of a processor are meant, and how many others wait behind them.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn weigh(&self, name: &str, selection: &Selection) -> Result<Meant, OperatorError> {
        let (projections, selection) = (&self.databases.projections, of(name, selection));
        let letters = self.letters().count(projections, &selection).await?;
        let left_behind = self.letters().count_left_behind(projections, name, &selection).await?;
        Ok(Meant { letters, left_behind })
    }

    /// One dead letter, its event, and what waits behind it.
    ///
    /// # Errors
    /// [`OperatorError::NoLetter`], or a database cannot be asked.
    pub async fn examine(&self, name: &str, event_id: Position) -> Result<ExaminedLetter, OperatorError> {
        let letter = self.letter(name, event_id).await?;
        let behind = self.letters().behind(&self.databases.projections, &letter).await?;
        let events = self.store().read_after(event_id.previous(), Some(event_id), None, 1).await?;
        Ok(ExaminedLetter { letter, behind, event: events.into_iter().next() })
    }

    /// Asks the owner of the processor to handle these again, and those that wait behind them. It does so by itself;
    /// [`Self::remaining`] tells how far it is. Returns its tracker as well.
    ///
    /// # Errors
    /// As for [`Self::find`], [`OperatorError::NoLetter`] or [`OperatorError::Waits`] where one is named, or the database cannot do it now.
    pub async fn retry_dead_letters(
        &self,
        name: &str,
        selection: &Selection,
    ) -> Result<(TrackerRow, RetryAsked), OperatorError> {
        let row = self.find(name).await?;
        let selection = of(name, selection);
        if let Some(event_id) = selection.event_id {
            self.refuse_out_of_turn(name, event_id).await?;
        }
        let projections = &self.databases.projections;
        let asked = self.letters().request_retry(projections, name, &selection, self.name).await?;
        self.databases.notify_runners().await;
        Ok((row, asked))
    }

    /// How many letters of this retry nobody has come to yet.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn pending(&self, name: &str, asked: &RetryAsked) -> Result<i64, OperatorError> {
        Ok(self.letters().count_pending(&self.databases.projections, name, asked).await?)
    }

    /// What of this retry is still here, with up to `shown` of those that failed again.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn remaining(
        &self,
        name: &str,
        asked: &RetryAsked,
        shown: i64,
    ) -> Result<Remaining, OperatorError> {
        let mut connection = self.databases.projections.acquire().await?;
        Ok(self.letters().remaining(&mut connection, name, asked, shown).await?)
    }

    /// Removes these for good: the processor never handles their events. Returns how many there were, and how many
    /// others still wait behind them.
    ///
    /// # Errors
    /// [`OperatorError::NoLetter`] where one is named, or the database cannot do it now.
    pub async fn discard_dead_letters(
        &self,
        name: &str,
        selection: &Selection,
    ) -> Result<Meant, OperatorError> {
        let selection = of(name, selection);
        if let Some(event_id) = selection.event_id {
            self.letter(name, event_id).await?;
        }
        let left_behind = self.weigh(name, &selection).await?.left_behind;
        let mut connection = self.databases.projections.acquire().await?;
        let letters = self.letters().discard(&mut connection, &selection, self.name).await?;
        if letters == 0 {
            self.require_known(name).await?;
        }
        Ok(Meant { letters, left_behind })
    }

    /// Refuses a name that neither runs nor is declared: it has no dead letters because it was mistyped.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub async fn require_known(&self, name: &str) -> Result<(), OperatorError> {
        if self.declaration(name).is_err() {
            self.find(name).await?;
        }
        Ok(())
    }

    /// What waits behind another one has its turn after that one.
    async fn refuse_out_of_turn(&self, name: &str, event_id: Position) -> Result<(), OperatorError> {
        let letter = self.letter(name, event_id).await?;
        let behind = self.letters().behind(&self.databases.projections, &letter).await?;
        let Some(first) = behind.waits_for else { return Ok(()) };
        Err(OperatorError::Waits { name: name.to_owned(), event_id, first })
    }

    async fn letter(&self, name: &str, event_id: Position) -> Result<DeadLetter, OperatorError> {
        let mut found = self.dead_letters(&Selection::one(name, event_id), 2).await?;
        let name = name.to_owned();
        if found.len() > 1 {
            let trackers = found.iter().map(DeadLetter::key).collect();
            return Err(OperatorError::Several { name, trackers });
        }
        found.pop().ok_or(OperatorError::NoLetter { name, event_id })
    }

    fn letters(&self) -> DeadLetters {
        DeadLetters::new(self.databases.layout.schema())
    }
}

/// The selection, of this processor.
fn of(name: &str, selection: &Selection) -> Selection {
    Selection { processor: Some(name.to_owned()), ..selection.clone() }
}
