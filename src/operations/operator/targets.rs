//! Which processors a command is about.

use std::collections::BTreeSet;

use super::{Operator, OperatorError};

impl Operator<'_> {
    /// The names of all processors that are known: those with a tracker, those that the configuration declares, and those
    /// that a running daemon has.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn known_names(&self) -> Result<BTreeSet<String>, OperatorError> {
        let rows = self.trackers().list(&self.databases.projections, None).await?;
        let mut names: BTreeSet<String> = rows.into_iter().map(|row| row.name).collect();
        names.extend(self.declared.iter().map(|declaration| declaration.name.clone()));
        names.extend(self.daemons().await?.into_iter().flat_map(|daemon| daemon.processors));
        Ok(names)
    }

    /// The processors that a command is about: these, or all that have a tracker if there are `None`. Fails before anything
    /// is done if a name has no tracker.
    ///
    /// # Errors
    /// As for [`Self::find`].
    pub(crate) async fn targets(&self, names: Option<&[String]>) -> Result<Vec<String>, OperatorError> {
        let Some(names) = names else {
            let rows = self.trackers().list(&self.databases.projections, None).await?;
            let names: BTreeSet<String> = rows.into_iter().map(|row| row.name).collect();
            return Ok(names.into_iter().collect());
        };
        for name in names {
            self.find(name).await?;
        }
        Ok(names.to_vec())
    }
}
