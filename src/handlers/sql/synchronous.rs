//! How a projector becomes synchronous: it catches up as any other, handles the rest while nobody can append, and is called by
//! a trigger from then on. `migrations/processing/0026_synchronous_projectors.sql` has the other half.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, FromRow as _, PgConnection};
use tracing::{debug, info, warn};

use super::SqlProcessor;
use super::call::Returned;
use super::function::{ProcessorFunction, diagnose_compile_error, name_of_inserted};
use crate::diagnostic::Diagnostic;
use crate::event::Position;
use crate::postgres::literal::{fetch_optional, simple};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark;
use crate::postgres::sql_scope::SqlScope;
use crate::postgres::sqlstate::{describe, is_lock_timeout, is_no_answer};
use crate::processing::declaration::{ProcessorDeclaration, Synchronous};
use crate::processing::processor::{BatchRequest, Events, Outcome, ProcessorError, Work};
use crate::processing::tracker::Claim;
use crate::store::layout::{CreatedBy, Layout};

/// How long the events that are appended just then are waited for. Whoever wants to append meanwhile waits behind.
const PATIENCE: &str = "300ms";

/// The pauses before another try.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// A projector that is declared to be synchronous.
#[derive(Debug)]
pub(super) struct Becoming {
    ordering: Synchronous,
    /// What the trigger calls.
    function: ProcessorFunction,
    /// Whether the tracker says that it is.
    is_done: bool,
    next_try: Instant,
    pause: Duration,
}

impl Becoming {
    /// Compiles the handlers for the trigger; `None`: the projector is not declared to be synchronous.
    pub(super) fn new(
        declaration: &ProcessorDeclaration,
        schema: &str,
        scope: &SqlScope,
        events: &Events,
    ) -> Result<Option<Self>, Diagnostic> {
        let Some(ordering) = declaration.synchronous else { return Ok(None) };
        let layout = events.layout();
        let is_elsewhere = matches!(events, Events::Elsewhere(_));
        if let Some(refusal) = refuse_synchronous(declaration, layout, is_elsewhere) {
            return Err(refusal);
        }
        let function = ProcessorFunction::compile_inserted(declaration, schema, scope, layout.upcasts())
            .map_err(|error| diagnose_compile_error(declaration, error))?;
        Ok(Some(Self { ordering, function, is_done: false, next_try: Instant::now(), pause: PAUSE_MIN }))
    }

    /// Whether it is time to try.
    pub(super) fn is_due(&self) -> bool {
        !self.is_done && Instant::now() >= self.next_try
    }

    fn try_later(&mut self) {
        self.next_try = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Why a projector that is declared to be synchronous cannot be so on a store of this layout, whose events may be in another
/// database than its tables.
pub(crate) fn refuse_synchronous(
    declaration: &ProcessorDeclaration,
    layout: &Layout,
    is_elsewhere: bool,
) -> Option<Diagnostic> {
    declaration.synchronous?;
    if is_elsewhere {
        return Some(refuse(declaration, "its tables are in another database than the events"));
    }
    let is_foreign = layout.created_by != CreatedBy::Migrations;
    is_foreign.then(|| refuse(declaration, "espd only reads this event store"))
}

fn refuse(declaration: &ProcessorDeclaration, why: &str) -> Diagnostic {
    let message = format!("projector {} cannot be synchronous: {why}", declaration.name);
    Diagnostic::of_file(declaration.file(), message).with_advice(
        "remove `synchronous`: then it handles events a few milliseconds after they are appended",
    )
}

impl SqlProcessor {
    /// Creates what the trigger calls, and looks whether the projector is synchronous already. The claim holds the tracker.
    pub(super) async fn prepare_synchronous(
        &mut self,
        transaction: &mut PgConnection,
        claim: &Claim,
    ) -> Result<(), ProcessorError> {
        let Some(becoming) = &self.becoming else { return Ok(()) };
        self.refuse_partitions(transaction).await?;
        let created = simple(becoming.function.create.clone()).execute(&mut *transaction);
        created.await.map_err(|error| self.attribute_to_declaration(error))?;
        let is_done = self.base.trackers().is_synchronous(transaction, &claim.key).await?;
        if let Some(becoming) = &mut self.becoming {
            (becoming.is_done, becoming.next_try, becoming.pause) = (is_done, Instant::now(), PAUSE_MIN);
        }
        Ok(())
    }

    /// Whoever inserts into a partition itself would not meet the trigger.
    async fn refuse_partitions(&self, connection: &mut PgConnection) -> Result<(), ProcessorError> {
        let table = quote_literal(self.base.events.layout().events_table());
        let statement = format!(
            "-- find_partitions\nselect 1 from pg_class where oid = {table}::regclass and (relkind = 'p' or relhassubclass)"
        );
        match simple(statement).fetch_optional(connection).await? {
            None => Ok(()),
            Some(_) => {
                let refusal = refuse(&self.base.declaration, "the table of events has partitions");
                Err(ProcessorError::Blocked(refusal.to_string()))
            }
        }
    }

    /// Makes the projector synchronous if it has caught up. `None`: it has to wait, and is tried again later.
    pub(super) async fn become_synchronous(
        &mut self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<Outcome>, ProcessorError> {
        let is_near = request.after().distance_to(request.upto()) <= request.limits.size;
        if !is_near || request.dead_letter().is_some() {
            return Ok(None);
        }
        let outcome = match self.switch(connection, request).await {
            Ok(outcome) => outcome,
            Err(error) if is_no_answer(&error) => return Err(error.into()),
            Err(error) => {
                let what = "not synchronous yet";
                if is_lock_timeout(&error) {
                    debug!(processor = self.base.name(), "{what}");
                } else {
                    warn!(processor = self.base.name(), error = describe(&error), "{what}");
                }
                None
            }
        };
        let Some(becoming) = &mut self.becoming else { return Ok(outcome) };
        match &outcome {
            Some(_) => {
                becoming.is_done = true;
                let order = becoming.ordering.as_str();
                info!(processor = self.base.name(), order, "synchronous from now on");
            }
            None => becoming.try_later(),
        }
        Ok(outcome)
    }

    /// One short transaction: nobody appends, the last events are handled, the trigger is made.
    async fn switch(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<Outcome>, sqlx::Error> {
        let (Some(becoming), Work::Batch { .. }) = (&self.becoming, request.work) else { return Ok(None) };
        let mut transaction = connection.begin_with(server_mark::begin(request.mark)).await?;
        let limits = format!(
            "-- limit_waits\nset local lock_timeout = '{PATIENCE}'; set local idle_in_transaction_session_timeout = '10s'"
        );
        simple(limits).execute(&mut *transaction).await?;
        let (schema, key) = (quote_identifier(&self.base.schema), request.claim.key.arguments());
        let epoch = request.claim.epoch;
        let statement = format!("-- hold_appends\nselect {schema}.hold_appends({key}, {epoch})");
        let row: Option<(Option<Position>,)> = fetch_optional(&mut *transaction, statement).await?;
        let Some((Some(last),)) = row else { return Ok(None) };
        let upto = last.max(request.upto());
        let statement = self.statement(&Self::arguments(request, upto));
        let row = simple(statement).fetch_one(&mut *transaction).await?;
        let returned = Returned::from_row(&row)?;
        let (Some(position), Some(handled), None) =
            (returned.espd_position, returned.espd_handled, returned.espd_failure)
        else {
            return Ok(None);
        };
        if position < upto {
            return Ok(None);
        }
        let handlers = name_of_inserted(self.base.name(), self.base.declaration.version);
        let begin = format!(
            "-- begin_synchronous\nselect {schema}.begin_synchronous({key}, {epoch}, '{}', {})",
            becoming.ordering,
            quote_literal(&handlers)
        );
        simple(begin).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Some(Outcome::Committed { position, handled, failure: None }))
    }
}
