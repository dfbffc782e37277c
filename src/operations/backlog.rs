//! What waits in the databases beside events: scheduled events, and effects of handlers.

use crate::operations::databases::Databases;
use crate::processing::effects::{Effects, PendingEffects};
use crate::store::scheduled::{ScheduledEvents, ScheduledSummary};

/// What waits, in numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backlog {
    /// `None`: espd appends nothing to this store.
    pub(crate) scheduled: Option<ScheduledSummary>,
    /// Of processors that have any.
    pub(crate) effects: Vec<PendingEffects>,
}

impl Backlog {
    pub(crate) async fn read(databases: &Databases) -> Result<Self, sqlx::Error> {
        let scheduled = match ScheduledEvents::of(&databases.layout) {
            Some(events) => Some(events.summarise(&databases.events).await?),
            None => None,
        };
        let effects = Effects::new(databases.layout.schema()).summarise(&databases.projections).await?;
        Ok(Self { scheduled, effects })
    }
}
