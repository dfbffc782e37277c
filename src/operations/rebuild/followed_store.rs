//! Whether a version has followed the event store that is there: one that has not has rows of events that are no more.

use super::{Beside, Rebuilding};
use crate::operations::operator::{Operator, OperatorError};
use crate::processing::divergence::Divergence;
use crate::processing::tracker::{ProcessorKey, TrackerRow};

impl Rebuilding<'_> {
    /// Refuses to have the version beside go live where the event store is not the one that it has followed. Batches compare by
    /// themselves, but there may be nothing to handle.
    pub(super) async fn refuse_other_store(&self) -> Result<(), OperatorError> {
        let Some(row) = self.operator.find_beside(&self.replay.claim().key).await? else { return Ok(()) };
        match self.operator.find_divergence(&row).await? {
            Some(found) => Err(self.describe_other_store(Some(&found))),
            None => Ok(()),
        }
    }

    /// The error that says so. `found`: how the store differs, if that is known.
    pub(super) fn describe_other_store(&self, found: Option<&Divergence>) -> OperatorError {
        let (name, version) = (&self.live.name, self.declaration.version);
        match self.beside {
            Beside::Archived(_) => refuse_former(name, version, found),
            Beside::Next | Beside::DryRun | Beside::Verification | Beside::Part => {
                OperatorError::Rebuild(format!(
                    "the event store is not the one that version {version} of {name} has followed{}: `espctl rebuild abort {name}`, \
                     then build it again from the store as it is",
                    describe(name, found)
                ))
            }
        }
    }
}

impl Operator<'_> {
    /// The tracker of a version that does not serve.
    pub(super) async fn find_beside(&self, key: &ProcessorKey) -> Result<Option<TrackerRow>, OperatorError> {
        let rows = self.trackers().list(&self.databases.projections, Some(&key.name)).await?;
        Ok(rows.into_iter().find(|row| row.key() == *key))
    }

    /// Refuses to have a former version serve again whose event store is gone.
    pub(super) async fn refuse_former_of_other_store(
        &self,
        name: &str,
        row: &TrackerRow,
    ) -> Result<(), OperatorError> {
        match self.find_divergence(row).await? {
            Some(found) => Err(refuse_former(name, row.version, Some(&found))),
            None => Ok(()),
        }
    }
}

/// The error that a version which has served before does not serve again.
fn refuse_former(name: &str, version: i32, found: Option<&Divergence>) -> OperatorError {
    OperatorError::Blocked(format!(
        "version {version} of {name} cannot serve again, because the event store is not the one that it has followed{}. Declare its \
         handlers under a higher version, which is built from the store as it is; `espctl rebuild drop {name}` removes what is kept",
        describe(name, found)
    ))
}

fn describe(name: &str, found: Option<&Divergence>) -> String {
    found.map_or_else(String::new, |found| format!(" ({})", found.describe(name).trim_end_matches('.')))
}
