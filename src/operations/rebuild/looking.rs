//! How far the rebuild of a projector is, whoever carries it out.

use crate::operations::operator::{Operator, OperatorError};
use crate::operations::status::RebuildStatus;
use crate::processing::rebuild::{Beside, Rebuilds, State, list_builds};

/// What has become of the last rebuild of a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There was none.
    None,
    /// A version is to go live.
    UnderWay,
    /// It is over.
    Ended {
        /// The version that was built.
        version: i32,
        /// Whether it serves.
        is_live: bool,
    },
}

impl Operator<'_> {
    /// Whether a version is declared that no build has been begun for since, as far as the last one tells.
    ///
    /// # Errors
    /// As for [`Self::look_at_rebuild`].
    pub(crate) async fn is_newer_declared(&self, name: &str) -> Result<bool, OperatorError> {
        let serves = self.find(name).await?.version;
        let (_, outcome) = self.look_at_rebuild(name).await?;
        let built = match outcome {
            Outcome::Ended { version, .. } => version,
            Outcome::None | Outcome::UnderWay => serves,
        };
        let declared = self.declaration(name).map_or(serves, |declaration| declaration.version);
        Ok(declared > serves.max(built))
    }

    /// How far the version is that is to go live, and what has become of the last rebuild.
    ///
    /// # Errors
    /// No processor of this name has run, or the database does not answer.
    pub(crate) async fn look_at_rebuild(
        &self,
        name: &str,
    ) -> Result<(Option<RebuildStatus>, Outcome), OperatorError> {
        self.find(name).await?;
        let schema = self.trackers().schema().to_owned();
        let mut connection = self.databases.projections.acquire().await?;
        let builds = list_builds(&mut *connection, &schema).await?;
        let build = builds.into_iter().find(|build| build.tracker == Beside::Next.name(name));
        let row = Rebuilds::new(&schema).find(&mut *connection, name).await?;
        let outcome = match row.map(|row| (row.version, row.state())) {
            None => Outcome::None,
            Some((_, state)) if state.is_under_way() => Outcome::UnderWay,
            Some((version, state)) => Outcome::Ended { version, is_live: state != State::Aborted },
        };
        Ok((build.map(RebuildStatus::from), outcome))
    }
}
