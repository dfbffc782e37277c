//! A projector that handles one share of the aggregates, where several of its sessions handle the others at once.
//!
//! Each share has functions of its own, over the events of its aggregates alone; tables, name and version are those of the projector.

use sqlx::{AssertSqlSafe, PgConnection};

use super::{SqlProcessor, fold, function, source_of};
use crate::diagnostic::Diagnostic;
use crate::handlers::sql::function::ProcessorFunction;
use crate::postgres::sql_scope::SqlScope;
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::processor::{Events, ProcessorBase, ProcessorError};
use crate::processing::rebuild::SHARES_MAX;

impl SqlProcessor {
    /// Compiles a declaration for one share. `events` has the events of its aggregates alone.
    pub(crate) fn of_share(
        declaration: ProcessorDeclaration,
        schema: &str,
        scope: SqlScope,
        events: Events,
        share: i32,
    ) -> Result<Self, Diagnostic> {
        let source = source_of(&events);
        let folds = fold::is_worth_trying(&declaration, &scope, source);
        let fold_name = fold::share_name_of(&declaration.name, declaration.version, share);
        let function = ProcessorFunction::compile_share(&declaration, schema, &scope, source, share)
            .map_err(|error| function::diagnose_compile_error(&declaration, error))?;
        let base = ProcessorBase::new(declaration, schema, scope, events);
        Ok(Self {
            base,
            function,
            folds,
            may_fold: folds,
            fold_name,
            has_changed: false,
            becoming: None,
            altering: None,
            older: None,
        })
    }

    /// Makes the functions. The tables have been made.
    pub(crate) async fn make_functions(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<(), ProcessorError> {
        let made = sqlx::raw_sql(AssertSqlSafe(self.function.create.clone())).execute(&mut *connection).await;
        made.map_err(|error| self.attribute_to_declaration(error))?;
        Ok(self.prepare_fold(connection).await?)
    }
}

/// The names of the functions of all shares that there may be.
pub(crate) fn share_function_names(processor: &str, version: i32) -> impl Iterator<Item = String> {
    (1..=SHARES_MAX).flat_map(move |share| {
        [fold::share_name_of(processor, version, share), function::share_name_of(processor, version, share)]
    })
}
