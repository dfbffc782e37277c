//! An operator agrees that a version which was built goes live.

use sqlx::AssertSqlSafe;

use super::{GoLive, Rebuilds};
use crate::operations::operator::{Operator, OperatorError};
use crate::processing::declaration::{Handling, ProcessorDeclaration};
use crate::processing::rebuild::RebuildRow;

impl Operator<'_> {
    /// Agrees that the version which is built goes live. Returns which version that is, and how it does, as far as that was recorded.
    ///
    /// # Errors
    /// [`OperatorError::Blocked`] if none is built, or if it is built from another declaration than that of the configuration;
    /// [`OperatorError::NotDeclared`] if that has none; or the database does not answer.
    pub(crate) async fn approve_rebuild(&self, name: &str) -> Result<(i32, Option<GoLive>), OperatorError> {
        self.find(name).await?;
        let declaration = self.declaration(name)?;
        let mut connection = self.databases.projections.acquire().await?;
        let row = Rebuilds::new(self.trackers().schema()).find(&mut *connection, name).await?;
        let Some(row) = row.filter(|row| row.state().is_under_way()) else {
            return Err(nothing_to_approve(name));
        };
        if !self.is_built_from(&row, declaration) {
            return Err(refuse_other(&row, declaration));
        }
        // A daemon with another declaration may have put something else in its place since.
        let statement = format!(
            "-- approve_rebuild
             with seen as (
               select from {schema}.rebuilds as r where r.processor = $2 and r.version = $3 and r.fingerprint = $4 for update
             )
             select {schema}.approve_rebuild($1, $2) from seen",
            schema = self.trackers().schema()
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).bind(self.name).bind(name);
        let query = query.bind(row.version).bind(&row.fingerprint);
        let approved: Option<Option<i32>> = query.fetch_optional(&mut *connection).await?;
        let version = approved.flatten().ok_or_else(|| nothing_to_approve(name))?;
        Ok((version, row.difference.and_then(|found| GoLive::of_compared(&found))))
    }

    /// Whether a version was built from this declaration. The handlers in a program of Rust only that program knows.
    pub(super) fn is_built_from(&self, row: &RebuildRow, declaration: &ProcessorDeclaration) -> bool {
        let is_known = self.native.is_some() || !matches!(declaration.handling, Handling::Native(_));
        row.version == declaration.version
            && (!is_known || row.fingerprint == self.whole_fingerprint(declaration))
    }
}

fn nothing_to_approve(name: &str) -> OperatorError {
    OperatorError::Blocked(format!(
        "no version of {name} has been built and compared, so there is nothing to approve: `espctl rebuild {name} --watch` \
         shows how far it is"
    ))
}

/// Nobody agrees to rows that other handlers have made than those that he sees declared.
fn refuse_other(row: &RebuildRow, declaration: &ProcessorDeclaration) -> OperatorError {
    let (name, declared, built) = (&declaration.name, declaration.version, row.version);
    let other = if declared == built {
        format!(
            "not as this configuration declares version {built}: its tables, or what handles its events, are others"
        )
    } else {
        format!("and this configuration declares version {declared}")
    };
    OperatorError::Blocked(format!(
        "version {built} of {name} is there, which {} has begun, {other}. `espctl rebuild {name}` builds what is declared here in its \
         place, `espctl rebuild abort {name}` gives it up. Whoever wants what is there approves it with the configuration, and where \
         there is one the program, that it was built from (--config)",
        row.started_by
    ))
}
