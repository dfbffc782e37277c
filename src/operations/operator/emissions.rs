//! What operators see of pending emissions and do about them.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Operator, OperatorError};
use crate::processing::emission::{
    EmissionChange, EmissionSelection, EmissionState, PendingEmission, PendingEmissions,
};
use crate::store::scheduled::{ScheduledEvent, ScheduledEvents, ScheduledSelection};

/// What stands in the place of the reactor's name where an application has scheduled the event itself. No reactor has it.
pub(crate) const APPLICATION: &str = "-";

/// A pending emission, and whether anybody moves it. The field names are an interface: `espctl emissions list --json` prints
/// them.
#[derive(Debug, Serialize)]
pub(crate) struct ListedEmission {
    /// The emission.
    #[serde(flatten)]
    pub emission: PendingEmission,
    /// Whether the configuration declares the reactor as one that emits. The emissions of others stay where they are.
    pub declared: bool,
}

impl Operator<'_> {
    /// The selected emissions, by reactor and in the order in which they are moved, `limit` at most.
    ///
    /// # Errors
    /// The selected reactor is unknown and has none, or the database does not answer.
    pub(crate) async fn emissions(
        &self,
        selection: &EmissionSelection,
        limit: i64,
    ) -> Result<Vec<ListedEmission>, OperatorError> {
        let mut listed = self.scheduled(selection, limit).await?;
        let left = limit - listed.len() as i64;
        if selection.reactor.as_deref() == Some(APPLICATION) || left == 0 {
            return Ok(listed);
        }
        let emissions = self.pending().list(&self.databases.projections, selection, left).await?;
        if let (Some(name), true) = (&selection.reactor, emissions.is_empty()) {
            self.require_reactor(name).await?;
        }
        listed.extend(emissions.into_iter().map(|emission| ListedEmission {
            declared: self.is_declared_to_emit(&emission.reactor),
            emission,
        }));
        Ok(listed)
    }

    /// Those of the selected events that applications have scheduled. They come first.
    async fn scheduled(
        &self,
        selection: &EmissionSelection,
        limit: i64,
    ) -> Result<Vec<ListedEmission>, OperatorError> {
        let Some((table, selection)) = self.scheduled_table(selection) else { return Ok(Vec::new()) };
        let events = table.list(&self.databases.events, &selection, limit).await?;
        let listed = |event| ListedEmission { emission: of_scheduled(event), declared: true };
        Ok(events.into_iter().map(listed).collect())
    }

    /// The table of scheduled events, and what is selected in it; `None`: nothing is.
    fn scheduled_table(
        &self,
        selection: &EmissionSelection,
    ) -> Option<(ScheduledEvents, ScheduledSelection)> {
        let EmissionSelection { reactor, id, key, event_type, only_refused } = selection.clone();
        let table = ScheduledEvents::of(&self.databases.layout)?;
        let is_selected = reactor.is_none_or(|name| name == APPLICATION);
        is_selected.then_some((table, ScheduledSelection { id, key, event_type, only_refused }))
    }

    /// How many emissions are selected.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn count_emissions(&self, selection: &EmissionSelection) -> Result<i64, OperatorError> {
        let scheduled = match self.scheduled_table(selection) {
            Some((table, selection)) => table.count(&self.databases.events, &selection).await?,
            None => 0,
        };
        Ok(scheduled + self.pending().count(&self.databases.projections, selection).await?)
    }

    /// Cancels the selected emissions of a reactor, or has those that the event store has refused tried again at once.
    /// Returns how many there are.
    ///
    /// # Errors
    /// The reactor is unknown and has none; [`OperatorError::NotPending`] if one is selected by its id and is not there; the
    /// database does not answer.
    pub(crate) async fn change_emissions(
        &self,
        change: EmissionChange,
        name: &str,
        selection: &EmissionSelection,
    ) -> Result<i64, OperatorError> {
        if let Some((table, selection)) = self.scheduled_table(&of_reactor(name, selection)) {
            let events = &self.databases.events;
            return Ok(match change {
                EmissionChange::Cancel => table.cancel(events, self.name, &selection).await?,
                EmissionChange::Retry => table.retry(events, self.name, &selection).await?,
            });
        }
        let projections = &self.databases.projections;
        let changed = self.pending().change(projections, change, self.name, name, selection).await?;
        if changed == 0 {
            self.require_reactor(name).await?;
            if let Some(id) = selection.id {
                self.require_pending(name, id).await?;
            }
        }
        Ok(changed)
    }

    async fn require_pending(&self, name: &str, id: i64) -> Result<(), OperatorError> {
        let reactor = Some(name.to_owned());
        let one = EmissionSelection { reactor, id: Some(id), ..EmissionSelection::default() };
        if self.count_emissions(&one).await? > 0 {
            return Ok(());
        }
        Err(OperatorError::NotPending { name: name.to_owned(), id })
    }

    /// Whether anybody moves what is pending under this name: the daemon for an application, or a declared reactor that emits.
    pub(crate) fn is_declared_to_emit(&self, name: &str) -> bool {
        name == APPLICATION
            || self.declared.iter().any(|declaration| {
                declaration.name == name
                    && declaration.reactor.as_ref().is_some_and(|reactor| !reactor.emits.is_empty())
            })
    }

    /// Refuses a name that is probably mistyped: that of no processor, and of no reactor with pending emissions.
    async fn require_reactor(&self, name: &str) -> Result<(), OperatorError> {
        let counts = self.pending().count_by_reactor(&self.databases.projections).await?;
        let known: BTreeSet<String> = counts.into_iter().map(|count| count.reactor).collect();
        if known.contains(name) { Ok(()) } else { self.require_known(name).await }
    }

    fn pending(&self) -> PendingEmissions {
        PendingEmissions::of(&self.databases.layout)
    }
}

fn of_reactor(name: &str, selection: &EmissionSelection) -> EmissionSelection {
    EmissionSelection { reactor: Some(name.to_owned()), ..selection.clone() }
}

/// A scheduled event as it is listed among emissions.
fn of_scheduled(event: ScheduledEvent) -> PendingEmission {
    let state = match (event.attempts, event.is_due) {
        (1.., _) => EmissionState::Refused,
        (_, true) => EmissionState::Due,
        (_, false) => EmissionState::Later,
    };
    PendingEmission {
        id: event.id,
        reactor: APPLICATION.to_owned(),
        partition: 0,
        state,
        uuid: event.uuid,
        aggregate_id: event.aggregate_id.to_string(),
        event_type: event.event_type,
        key: event.key,
        due_at: event.due_at,
        attempts: event.attempts,
        sqlstate: event.sqlstate,
        last_error: event.last_error,
        tried_at: event.tried_at,
        next_try_at: event.next_try_at,
        causation_id: event.causation_id,
        correlation_id: event.correlation_id,
    }
}
