//! A version that serves, where a higher one is declared: it goes on by the function that it has in the database.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tracing::warn;

use super::function::{self, ProcessorFunction};
use super::{SqlProcessor, source_of};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::processing::declaration::{Handling, ProcessorDeclaration, Unsuitable};
use crate::processing::processor::{Events, ProcessorBase, ProcessorError};
use crate::processing::rebuild::{find_declared, list_left_out};
use crate::processing::tracker::Claim;

/// The types of the function's parameters where it finds the events itself.
const PARAMETERS: &str = "integer, bigint, bigint, bigint, integer, bigint, interval, interval, real, bigint";

impl SqlProcessor {
    /// The function of an older version that the tracker is of: everything that this version is made of is in it.
    pub(super) async fn find_older(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<Option<String>, ProcessorError> {
        let ProcessorDeclaration { name, version, .. } = &self.base.declaration;
        let is_here = matches!(self.base.events, Events::SameDatabase(_));
        if claim.key.version >= *version || claim.declaration.is_none() || !is_here {
            return Ok(None);
        }
        let function = function::name_of(name, claim.key.version);
        let function = format!("{}.{}", quote_identifier(&self.base.schema), quote_identifier(&function));
        let signature = quote_literal(&format!("{function}({PARAMETERS})"));
        let statement = format!("-- find_older_version\nselect to_regprocedure({signature}) is not null");
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(&mut *connection).await?;
        if row.try_get::<bool, _>(0)? {
            return Ok(Some(function));
        }
        self.make_older(connection, claim.key.version).await
    }

    /// Says that an older version goes on, and what becomes of the declared one.
    pub(super) async fn tell_older(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let ProcessorBase { declaration, events, .. } = &self.base;
        let ProcessorDeclaration { name, version: declared, .. } = declaration;
        let (version, layout) = (claim.key.version, events.layout());
        let is_synchronous = self.base.trackers().is_synchronous(connection, &claim.key).await?;
        let left_out =
            list_left_out(connection, (layout, layout.upcasts()), &[declaration]).await?.remove(name);
        let unsuitable = Unsuitable::find_deployed(declaration, is_synchronous);
        let what = match (unsuitable, left_out) {
            (Some(unsuitable), _) => format!(
                "version {version} goes on, and nobody builds version {declared}, because {}: {}",
                unsuitable.because(name),
                unsuitable.remedy(name, *declared)
            ),
            (None, Some(left_out)) => {
                format!("version {version} goes on: {}", left_out.describe(name, *declared))
            }
            (None, None) => format!(
                "version {version} goes on until version {declared}, which is built beside it, is live: `espctl rebuild {name} \
                 --watch` shows how far it is"
            ),
        };
        warn!(processor = name, version, declared, "{what}");
        Ok(())
    }

    /// Makes the function of an older version as that was declared: an operator has had it go live, and no worker has run it before a
    /// higher one was declared. `None`: that is not recorded, or it was handled by a program, which no function stands for.
    async fn make_older(
        &self,
        connection: &mut PgConnection,
        version: i32,
    ) -> Result<Option<String>, ProcessorError> {
        let ProcessorBase { declaration, schema, scope, events, .. } = &self.base;
        let declared = find_declared(&mut *connection, schema, &declaration.name, version).await?;
        let Some(declared) = declared.filter(|declared| matches!(declared.handling, Handling::Sql(_))) else {
            return Ok(None);
        };
        // It was built under another name. What folds would be a function of its own, which this one does without.
        let declared = ProcessorDeclaration { name: declaration.name.clone(), fold: false, ..declared };
        let compiled = ProcessorFunction::compile(&declared, schema, scope, source_of(events));
        let function = compiled.map_err(|error| ProcessorError::Blocked(error.to_string()))?;
        sqlx::raw_sql(AssertSqlSafe(function.create)).execute(connection).await?;
        Ok(Some(function.name))
    }
}
