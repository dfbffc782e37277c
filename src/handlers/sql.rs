//! SQL projectors and reactors: declared in the configuration, run inside the database.
//!
//! A batch is one call of one generated function (`function`): rows and position change in one
//! transaction, and nothing but the call crosses the network. Where the projections live in another
//! database than the events, the same function takes the batch as an argument (`remote`).

mod altering;
mod call;
mod check;
mod event_source;
mod fold;
mod function;
mod gate;
mod older;
mod owned_by_others;
mod reactor;
mod remote;
mod share;
mod synchronous;
mod template;

use async_trait::async_trait;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::processing::processor::Events;
pub(crate) use check::{
    check, check_upcasts, find_foreign_tables, find_foreign_tables_in_ddl, find_own_tables, hidden_types,
};
pub(crate) use fold::{TableShape, find_aggregate_columns};
pub(crate) use owned_by_others::{OwnedByOthers, find_owned_by_others};
pub(crate) use share::share_function_names;
pub(crate) use synchronous::refuse_synchronous;

use crate::diagnostic::Diagnostic;
use crate::event::Position;
use crate::handlers::sql::altering::Altering;
use crate::handlers::sql::event_source::EventSource;
use crate::handlers::sql::function::{DIVERGED, ProcessorFunction};
use crate::handlers::sql::synchronous::Becoming;
use crate::postgres::quote::quote_literal;
use crate::postgres::server_mark;
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{
    describe as describe_error, is_infrastructure_error, is_missing_right, is_no_answer,
};
use crate::processing::declaration::ProcessorDeclaration;
use crate::processing::failure::Failure;
use crate::processing::processor::{
    BatchRequest, OthersObjects, Outcome, Processor, ProcessorBase, ProcessorError,
};
use crate::processing::tracker::{Claim, ProcessorKey, ReplayEffects, Reset};
use crate::store::layout::Layout;

/// A processor that is declared in SQL, ready to run.
#[derive(Debug)]
pub struct SqlProcessor {
    base: ProcessorBase,
    function: ProcessorFunction,
    /// Whether the function tries to fold batches.
    folds: bool,
    /// Whether the database has confirmed that some can be, when it was asked last.
    may_fold: bool,
    /// The name of the function that folds a batch.
    fold_name: String,
    /// Whether the last `prepare` has replaced the function by another one.
    has_changed: bool,
    /// How it becomes synchronous; `None`: it is not declared so.
    becoming: Option<Becoming>,
    /// How its tables are altered; `None`: they are as declared.
    altering: Option<Altering>,
    /// The function of an older version, which goes on until the declared one was built; `None`: the declared version runs.
    older: Option<String>,
}

impl SqlProcessor {
    /// Compiles a declaration. Fails where a handler's text has a quote or comment that never ends.
    pub fn new(
        declaration: ProcessorDeclaration,
        schema: &str,
        scope: impl Into<SqlScope>,
        events: Events,
    ) -> Result<Self, Diagnostic> {
        let scope = scope.into();
        let source = source_of(&events);
        let folds = fold::is_worth_trying(&declaration, &scope, source);
        let fold_name = fold::name_of(&declaration.name, declaration.version);
        let function = ProcessorFunction::compile(&declaration, schema, &scope, source)
            .map_err(|error| function::diagnose_compile_error(&declaration, error))?;
        let becoming = Becoming::new(&declaration, schema, &scope, &events)?;
        let base = ProcessorBase::new(declaration, schema, scope, events);
        Ok(Self {
            base,
            function,
            folds,
            may_fold: folds,
            fold_name,
            has_changed: false,
            becoming,
            altering: None,
            older: None,
        })
    }

    /// Sets the position to 0 and drops and creates the tables again, all in one transaction.
    ///
    /// Returns whether the processor was known. Every claim ends; a running worker claims again.
    pub async fn reset(
        &self,
        connection: &mut PgConnection,
        tracker: &ProcessorKey,
        operator: &str,
        effects: ReplayEffects,
    ) -> Result<bool, ProcessorError> {
        let reset = Reset { effects, ..Reset::to(Position::START) };
        let replaced = self.base.reset(connection, tracker, operator, reset, OthersObjects::Keep).await?;
        Ok(replaced.is_some())
    }
}

/// Where a processor's function finds its events.
fn source_of(events: &Events) -> EventSource<'_> {
    match events {
        Events::SameDatabase(layout) => source_in(layout),
        Events::Elsewhere(_) => EventSource::Arguments,
    }
}

/// Where a function in the database of the events finds them.
fn source_in(layout: &Layout) -> EventSource<'_> {
    EventSource::Table {
        source: layout.source(),
        table: layout.events_table(),
        trackers: &layout.names().tracker_table,
        stored: layout.stored_source(),
        may_be_unreadable: layout.may_be_unreadable(),
        is_whole: layout.is_whole() && layout.upcasts().is_empty(),
        upcasts: layout.upcasts(),
    }
}

/// Why each handler's batches are not folded; `None`: they are. `events` is the layout of the events, if they are in the same
/// database.
pub(crate) async fn explain_folding(
    connection: &mut PgConnection,
    declaration: &ProcessorDeclaration,
    trackers: &Layout,
    scope: &SqlScope,
    events: Option<&Layout>,
) -> Result<Vec<Option<String>>, sqlx::Error> {
    let source = events.map_or(EventSource::Arguments, source_in);
    let name = fold::name_of(&declaration.name, declaration.version);
    let examined = fold::examine(connection, declaration, (trackers.schema(), &name), scope, source).await?;
    Ok(examined.refusals)
}

/// The names that the functions of a processor's version have or had.
pub(crate) fn function_names(processor: &str, version: i32) -> [String; 4] {
    [
        fold::name_of(processor, version),
        function::name_of(processor, version),
        function::earlier_name_of(processor, version),
        function::name_of_inserted(processor, version),
    ]
}

/// Records that the declared tables, which exist already, belong to the processor. It has a tracker.
pub(crate) async fn adopt_tables(
    declaration: &ProcessorDeclaration,
    schema: &str,
    scope: &SqlScope,
    connection: &mut PgConnection,
) -> Result<(), ProcessorError> {
    crate::processing::processor::Tables::new(declaration, schema, scope).adopt(connection).await
}

#[async_trait]
impl Processor for SqlProcessor {
    fn base(&self) -> &ProcessorBase {
        &self.base
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.altering = None;
        self.older = self.find_older(&mut transaction, claim).await?;
        if self.older.is_some() {
            if !self.base.trackers().lock_claimed(&mut transaction, claim).await? {
                return Err(ProcessorError::ClaimLost);
            }
            if self.base.declaration.synchronous.is_none() {
                // No version takes the place of a synchronous one.
                self.base.trackers().end_synchronous(&mut transaction, &claim.key, None).await?;
            }
            transaction.commit().await?;
            return Ok(self.tell_older(connection, claim).await?);
        }
        let fit = self.base.prepare(&mut transaction, claim).await?;
        self.note_fit(fit);
        let before = self.read_source(&mut transaction).await?;
        self.refuse_owned_by_others(&mut transaction).await?;
        self.drop_earlier_function(&mut transaction).await?;
        sqlx::raw_sql(AssertSqlSafe(self.function.create.clone()))
            .execute(&mut *transaction)
            .await
            .map_err(|error| self.attribute_to_declaration(error))?;
        self.has_changed = before != self.read_source(&mut transaction).await?;
        self.prepare_fold(&mut transaction).await?;
        self.base.tables().note_declared(&mut transaction, self.base.events.layout().upcasts()).await?;
        self.prepare_synchronous(&mut transaction, claim).await?;
        transaction.commit().await?;
        Ok(())
    }

    fn has_pending_effects(&self) -> bool {
        self.older.is_none()
            && (self.altering.as_ref().is_some_and(Altering::is_due)
                || self.becoming.as_ref().is_some_and(Becoming::is_due))
    }

    fn shares_session(&self) -> bool {
        true
    }

    fn folds(&self) -> bool {
        self.folds && self.may_fold && self.older.is_none()
    }

    fn passes_over(&self) -> Option<Vec<String>> {
        match &self.base.events {
            Events::SameDatabase(layout) if layout.upcasts().is_empty() && self.becoming.is_none() => {
                self.base.event_types()
            }
            _ => None,
        }
    }

    fn has_changed(&self) -> bool {
        self.has_changed
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        self.alter_if_due(connection, &request).await?;
        if self.older.is_none()
            && self.becoming.as_ref().is_some_and(Becoming::is_due)
            && let Some(outcome) = self.become_synchronous(connection, &request).await?
        {
            return Ok(outcome);
        }
        let returned = match &self.base.events {
            Events::SameDatabase(_) => self.call(connection, &request).await.map_err(Into::into).map(Some),
            Events::Elsewhere(_) => self.fetch_and_call(connection, &request).await,
        };
        let returned = match returned {
            Ok(Some(returned)) => returned,
            Ok(None) => return Ok(Outcome::ClaimLost),
            Err(ProcessorError::Database(error)) if has_diverged(&error) => {
                return Err(ProcessorError::Diverged);
            }
            Err(ProcessorError::Database(error))
                if !is_infrastructure_error(&error) && self.older.is_some() =>
            {
                // Which types of events the older version handles, only its function knows, so no event is named.
                return Err(ProcessorError::Unattributed(Box::new(Failure::of_database(&error))));
            }
            Err(ProcessorError::Database(error)) if !is_infrastructure_error(&error) => {
                let failure = self.base.attribute_failure(connection, &request, &error).await?;
                return Err(ProcessorError::Unattributed(Box::new(failure)));
            }
            Err(error) => return Err(error),
        };
        let (Some(position), Some(handled)) = (returned.espd_position, returned.espd_handled) else {
            return Ok(Outcome::ClaimLost);
        };
        let failure = returned.espd_failure.map(|Json(raw)| Box::new(self.locate(raw)));
        Ok(Outcome::Committed { position, handled, failure })
    }
}

impl SqlProcessor {
    /// Reads the body of the function in the database, if the function is there.
    async fn read_source(&self, connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
        let statement = format!(
            "-- read_function
             select p.prosrc from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
             where n.nspname = {} and p.proname = {}",
            quote_literal(&self.base.schema),
            quote_literal(&function::name(&self.base.declaration))
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?;
        row.map(|row| row.try_get(0)).transpose()
    }

    /// Drops the function of the name that it had in an earlier espd, so that no one calls it any more.
    async fn drop_earlier_function(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.drop_function(connection, &function::earlier_name(&self.base.declaration)).await
    }

    async fn drop_function(&self, connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- drop_function_of_earlier
             do $earlier$
             declare
               earlier regprocedure;
             begin
               for earlier in
                 select p.oid from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
                 where n.nspname = {} and p.proname = {} and pg_has_role(p.proowner, 'usage')
               loop
                 execute 'drop function ' || earlier;
               end loop;
             end
             $earlier$",
            quote_literal(&self.base.schema),
            quote_literal(name)
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
    }

    /// Has the database examine what may be folded, and creates the function that does so, or removes the one of an earlier
    /// declaration.
    async fn prepare_fold(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let declaration = &self.base.declaration;
        if !self.folds {
            return self.drop_function(connection, &self.fold_name).await;
        }
        let (schema, scope) = (&self.base.schema, &self.base.scope);
        let source = source_of(&self.base.events);
        let name = (schema.as_str(), self.fold_name.as_str());
        let examined = fold::examine(connection, declaration, name, scope, source).await?;
        self.may_fold = examined.refusals.iter().any(Option::is_none);
        sqlx::raw_sql(AssertSqlSafe(examined.create)).execute(connection).await.map(drop)
    }

    /// Refuses to go on where somebody else owns what is to be replaced: all of it at once, because nobody would see the next before this
    /// is repaired.
    async fn refuse_owned_by_others(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        match find_owned_by_others(connection, &self.base.schema, &self.base.declaration).await? {
            None => Ok(()),
            Some(found) => Err(ProcessorError::Blocked(format!("{}: {}", found.describe(), found.remedy()))),
        }
    }

    /// The error that creating the function has failed with. If PostgreSQL refuses the function, the author has to fix it, or whoever gives
    /// rights; any other error may pass.
    fn attribute_to_declaration(&self, error: sqlx::Error) -> ProcessorError {
        if is_no_answer(&error) {
            return ProcessorError::Database(error);
        }
        if is_missing_right(&error) {
            let said = describe_error(&error);
            return ProcessorError::Blocked(format!(
                "{said}: the daemon's role lacks a right, which `espctl doctor` names; docs/roles.md says what it needs"
            ));
        }
        let mistake = function::diagnose_refusal(&self.base.declaration, &self.function, &error);
        ProcessorError::Blocked(format!("{mistake}; `espd check` shows it, then restart"))
    }
}

/// Whether the function has found that the store is not the one that was followed.
fn has_diverged(error: &sqlx::Error) -> bool {
    let answer = error.as_database_error();
    answer.and_then(|answer| answer.code()).is_some_and(|code| code == DIVERGED)
}
