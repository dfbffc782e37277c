//! What operators see of pending emissions and do about them.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Operator, OperatorError};
use crate::processing::emission::{EmissionChange, EmissionSelection, PendingEmission, PendingEmissions};

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
        let emissions = self.pending().list(&self.databases.projections, selection, limit).await?;
        if let (Some(name), true) = (&selection.reactor, emissions.is_empty()) {
            self.require_reactor(name).await?;
        }
        let listed = |emission: PendingEmission| ListedEmission {
            declared: self.is_declared_to_emit(&emission.reactor),
            emission,
        };
        Ok(emissions.into_iter().map(listed).collect())
    }

    /// How many emissions are selected.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn count_emissions(&self, selection: &EmissionSelection) -> Result<i64, OperatorError> {
        Ok(self.pending().count(&self.databases.projections, selection).await?)
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

    /// Whether the configuration declares a reactor of this name that emits events.
    pub(crate) fn is_declared_to_emit(&self, name: &str) -> bool {
        self.declared.iter().any(|declaration| {
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
        PendingEmissions::new(self.databases.layout.schema())
    }
}
