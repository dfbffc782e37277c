//! SQL projectors and reactors: declared in the configuration, run inside the database.
//!
//! A batch is one call of one generated function (`function`): rows and position change in one
//! transaction, and nothing but the call crosses the network. Where the projections live in another
//! database than the events, the same function takes the batch as an argument (`remote`).

mod check;
mod function;
mod reaction;
mod remote;
mod tables;

use async_trait::async_trait;
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection as _, FromRow as _, PgConnection, Row as _};
use uuid::Uuid;

pub use check::{Fault, check};

use crate::declaration::{Handler, ProcessorDeclaration, Start};
use crate::event::{Event, Position};
use crate::event_store::{EventStore as _, PostgresEventStore, ReadError, read_after_on};
use crate::failure::{Failure, is_infrastructure_error};
use crate::layout::Layout;
use crate::processor::{Processor, ProcessorError, ProcessorKind, Turn, Turned};
use crate::sql_processor::function::{EventSource, ProcessorFunction};
use crate::sql_processor::remote::Batch;
use crate::sql_processor::tables::Tables;
use crate::row::from_row;
use crate::sql_quote::quote_literal;
use crate::tracker::{Claim, Effects, Trackers, interval};

/// Where the events of a projector are.
#[derive(Debug)]
pub enum Events {
    /// In the database of the projections, in this layout.
    SameDatabase(Layout),
    /// In another database.
    Elsewhere(PostgresEventStore),
}

/// A declared projector, ready to run.
#[derive(Debug)]
pub struct SqlProcessor {
    declaration: ProcessorDeclaration,
    /// Schema of espd's own tables in the database of the projections.
    schema: String,
    /// Schema of the projector's tables.
    projections_schema: String,
    events: Events,
    function: ProcessorFunction,
    /// Whether the function was another one before it was made last.
    has_changed: bool,
}

/// What the function returns; all null when it did nothing.
#[derive(Debug)]
struct Returned {
    espd_position: Option<Position>,
    espd_handled: Option<i32>,
    espd_failure: Option<Json<RawFailure>>,
}

from_row!(Returned { espd_position, espd_handled, espd_failure });

/// A failure as the function reports it: with the database's context instead of a place in a file.
#[derive(Debug, Deserialize)]
struct RawFailure {
    context: String,
    #[serde(flatten)]
    failure: Failure,
}

impl SqlProcessor {
    /// Compiles a declaration. Fails where a handler's text has a quote or comment that never ends.
    pub fn new(
        declaration: ProcessorDeclaration,
        schema: &str,
        projections_schema: &str,
        events: Events,
    ) -> Result<Self, Fault> {
        let source = match &events {
            Events::SameDatabase(layout) => EventSource::Table {
                source: layout.source(),
                foreign: (!layout.is_own()).then_some(layout.events_table()),
            },
            Events::Elsewhere(_) => EventSource::Arguments,
        };
        let function = ProcessorFunction::compile(&declaration, schema, projections_schema, source)
            .map_err(|error| Fault::of_compile_error(&declaration, error))?;
        let (schema, projections_schema) = (schema.to_owned(), projections_schema.to_owned());
        Ok(Self { declaration, schema, projections_schema, events, function, has_changed: false })
    }

    fn tables(&self) -> Tables<'_> {
        Tables::new(&self.declaration, &self.schema, &self.projections_schema)
    }

    /// Sets the position to 0 and drops and makes the tables anew, all in one transaction.
    ///
    /// Returns whether the processor was known. Every claim ends; a running worker claims again.
    pub async fn reset(
        &self,
        connection: &mut PgConnection,
        operator: &str,
        effects: Effects,
    ) -> Result<bool, ProcessorError> {
        let trackers = Trackers::new(&self.schema);
        let mut transaction = connection.begin().await?;
        if trackers.lock(&mut transaction, &self.declaration.name).await?.is_none() {
            return Ok(false);
        }
        self.tables().drop(&mut transaction).await?;
        trackers.reset(&mut transaction, &self.declaration.name, operator, 0, true, effects).await?;
        self.tables().create(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// One call of the function, which finds the events itself: one round trip, nothing prepared.
    async fn call(&self, connection: &mut PgConnection, turn: &Turn<'_>) -> Result<Returned, sqlx::Error> {
        let statement = self.statement(&Self::arguments(turn, turn.upto));
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
        Returned::from_row(&row)
    }

    /// Fetches the events from their database and passes them along. Nobody else fetches them meanwhile: the
    /// tracker is locked.
    async fn fetch_and_call(
        &self,
        connection: &mut PgConnection,
        store: &PostgresEventStore,
        turn: &Turn<'_>,
    ) -> Result<Option<Returned>, ProcessorError> {
        let mut transaction = connection.begin().await?;
        // Where a pooler hides which backend this is, nobody else could end it if this process was frozen now.
        let limit = "-- limit_silence\nset local idle_in_transaction_session_timeout = '60s'";
        sqlx::raw_sql(limit).execute(&mut *transaction).await?;
        let trackers = Trackers::new(&self.schema);
        if !trackers.lock_claimed(&mut transaction, &self.declaration.name, turn.claim).await? {
            return Ok(None);
        }
        let types = self.declaration.event_types();
        let position = turn.letter.map_or(turn.claim.position, |id| id - 1);
        let batch = Batch::read(store, types, position, turn.upto, turn.limits).await?;
        let arrays = (1..=remote::ARRAYS).map(Batch::parameter).collect::<Vec<_>>().join(", ");
        let statement = self.statement(&format!("{arrays}, {}", Self::arguments(turn, batch.upto)));
        let call = batch.bind(sqlx::query_as(AssertSqlSafe(statement)).persistent(false));
        let returned = call.fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Some(returned))
    }

    fn statement(&self, arguments: &str) -> String {
        // Leaving the function early would commit rows without a position, so that has to be an error.
        format!(
            "-- project_batch
             select espd_position, espd_handled, espd_failure,
                    coalesce(espd_finished::text, 'a handler has left the function')::boolean as finished
             from {}({arguments})",
            self.function.name
        )
    }

    /// The function's arguments, without those of a batch that is passed.
    fn arguments(turn: &Turn<'_>, upto: Position) -> String {
        let Turn { claim, limits, lease, rate, .. } = turn;
        let size = i32::try_from(limits.size).unwrap_or(i32::MAX);
        let rate = if rate.is_finite() { *rate } else { 0.0 };
        let (partition, epoch, position) = (claim.partition, claim.epoch, claim.position);
        let (bytes, time, lease) = (limits.bytes, interval(limits.time), interval(*lease));
        // The event of a dead letter is a batch of its own, wherever the position is.
        let position = turn.letter.map_or(position, |id| id - 1);
        let letter = turn.letter.map_or("null".to_owned(), |id| id.to_string());
        format!("{partition}, {epoch}, {position}, {upto}, {size}, {bytes}, {time}, {lease}, {rate}::real, {letter}")
    }

    /// The failure with the place in the author's file instead of the function's line.
    fn locate(&self, raw: RawFailure) -> Failure {
        let place = line_in_context(&raw.context, &self.function.name)
            .and_then(|line| self.function.place_of_line(line, self.declaration.handlers()))
            .map(|place| describe(&self.declaration.handlers()[place.handler], place.offset));
        Failure { place, ..raw.failure }
    }
}

/// Makes the declared tables, which exist already, the projector's own. It has a tracker.
pub(crate) async fn adopt_tables(
    declaration: &ProcessorDeclaration,
    schema: &str,
    projections_schema: &str,
    connection: &mut PgConnection,
) -> Result<(), ProcessorError> {
    Tables::new(declaration, schema, projections_schema).adopt(connection).await
}

#[async_trait]
impl Processor for SqlProcessor {
    fn name(&self) -> &str {
        &self.declaration.name
    }

    fn kind(&self) -> ProcessorKind {
        self.declaration.kind()
    }

    fn version(&self) -> i32 {
        self.declaration.version
    }

    async fn starting_position(&self, connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
        let (Some(reaction), Events::SameDatabase(layout)) = (&self.declaration.reaction, &self.events)
        else {
            return Ok(0);
        };
        let head =
            format!("coalesce(pg_sequence_last_value({}::regclass), 0)", quote_literal(layout.sequence()));
        let expression = match reaction.start {
            Start::Beginning => return Ok(0),
            Start::Position(position) => return Ok(position),
            Start::Now => head,
            Start::Time(time) => format!(
                "coalesce((select min(id) - 1 from {} where created_at >= {}), {head})",
                layout.events_table(),
                quote_literal(&time.to_rfc3339())
            ),
        };
        let statement = format!("-- find_starting_position\nselect {expression}");
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(connection).await?;
        row.try_get(0)
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        let mut transaction = connection.begin().await?;
        // Neither a lock nor a silent owner holds anybody up for long; an owner that was frozen in here least of all.
        let limits = "-- limit_waits\nset local lock_timeout = '5s'; set local idle_in_transaction_session_timeout = '60s'";
        sqlx::raw_sql(limits).execute(&mut *transaction).await?;
        self.refuse_to_emit_elsewhere()?;
        // From here on nobody else prepares: an outdated owner must not replace the function of the present one.
        if !Trackers::new(&self.schema).lock_claimed(&mut transaction, &self.declaration.name, claim).await? {
            return Err(ProcessorError::Lost);
        }
        match &claim.declaration {
            Some(fingerprint) => self.tables().compare(claim.version, fingerprint)?,
            None => self.tables().create(&mut transaction).await?,
        }
        let before = self.read_source(&mut transaction).await?;
        sqlx::raw_sql(AssertSqlSafe(self.function.create.clone()))
            .execute(&mut *transaction)
            .await
            .map_err(|error| self.blame_declaration(error))?;
        self.has_changed = before != self.read_source(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    fn has_changed(&self) -> bool {
        self.has_changed
    }

    async fn turn(
        &mut self,
        connection: &mut PgConnection,
        turn: Turn<'_>,
    ) -> Result<Turned, ProcessorError> {
        let returned = match &self.events {
            Events::SameDatabase(_) => self.call(connection, &turn).await.map_err(Into::into).map(Some),
            Events::Elsewhere(store) => self.fetch_and_call(connection, store, &turn).await,
        };
        let returned = match returned {
            Ok(Some(returned)) => returned,
            Ok(None) => return Ok(Turned::Lost),
            Err(ProcessorError::Database(error)) if !is_infrastructure_error(&error) => {
                return self.blame_event(connection, &turn, &error).await;
            }
            Err(error) => return Err(error),
        };
        let (Some(position), Some(handled)) = (returned.espd_position, returned.espd_handled) else {
            return Ok(Turned::Lost);
        };
        let failure = returned.espd_failure.map(|Json(raw)| Box::new(self.locate(raw)));
        Ok(Turned::Moved { position, handled, failure })
    }
}

impl SqlProcessor {
    /// An error that was raised where no event is known: at commit. Of a batch of one event, it is that one's.
    async fn blame_event(
        &self,
        connection: &mut PgConnection,
        turn: &Turn<'_>,
        error: &sqlx::Error,
    ) -> Result<Turned, ProcessorError> {
        let failure = Failure::of_database(error);
        if turn.limits.size > 1 {
            return Err(ProcessorError::Unattributed(Box::new(failure)));
        }
        let position = turn.claim.position;
        let first = self.first_event(connection, turn.letter.map_or(position, |id| id - 1), turn.upto).await?;
        let failure = match first {
            Some(event) => failure.at(event.id, event.uuid, &event.event_type, event.aggregate_id),
            None => failure,
        };
        Ok(Turned::Moved { position, handled: 0, failure: Some(Box::new(failure)) })
    }

    /// The first event after a position that the processor handles.
    async fn first_event(
        &self,
        connection: &mut PgConnection,
        position: Position,
        upto: Position,
    ) -> Result<Option<Event>, ProcessorError> {
        let types = self.declaration.event_types();
        let types: Option<Vec<String>> = types.map(|types| types.into_iter().map(str::to_owned).collect());
        let types = types.as_deref();
        let found = match &self.events {
            Events::SameDatabase(layout) => {
                read_after_on(connection, layout, position, upto, types, 1).await.map_err(ReadError::from)
            }
            Events::Elsewhere(store) => store.read_after(position, Some(upto), types, 1).await,
        };
        match found {
            Ok(events) => Ok(events.into_iter().next()),
            Err(ReadError::Database(error)) => Err(error.into()),
        }
    }

    /// Emitted events commit together with the position, so both have to be in one database, and in a store that
    /// espd appends to.
    fn refuse_to_emit_elsewhere(&self) -> Result<(), ProcessorError> {
        let emits = self.declaration.reaction.as_ref().is_some_and(|reaction| !reaction.emits.is_empty());
        let ours = matches!(&self.events, Events::SameDatabase(layout) if layout.is_own());
        if ours || !emits {
            return Ok(());
        }
        let name = &self.declaration.name;
        Err(ProcessorError::Blocked(format!(
            "reactor {name} emits events, so its tracker has to be beside them: run it with a configuration without \
             [projections] url, on a store of layout \"espd\""
        )))
    }

    /// The body of the function as it is in the database, if it is there.
    async fn read_source(&self, connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
        let statement = format!(
            "-- read_function
             select p.prosrc from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
             where n.nspname = {} and p.proname = {}",
            quote_literal(&self.schema),
            quote_literal(&function::name(&self.declaration))
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(connection).await?;
        row.map(|row| row.try_get(0)).transpose()
    }

    /// A function that PostgreSQL refuses is the author's to mend; anything else may pass.
    fn blame_declaration(&self, error: sqlx::Error) -> ProcessorError {
        if is_infrastructure_error(&error) {
            return ProcessorError::Database(error);
        }
        let fault = Fault::of_function_error(&self.declaration, &self.function, error);
        ProcessorError::Blocked(format!("{fault}; `espd check` shows it, then restart"))
    }
}

/// `file:line` of a place in a handler.
fn describe(handler: &Handler, offset: usize) -> String {
    let characters = handler.sql.text[..offset].chars().count();
    let (line, _) = handler.sql.locate(characters);
    format!("{}:{line}", handler.sql.file)
}

/// The line of our function in an error's context: the first number behind its signature.
///
/// Only the function's own name is recognised, so the language of the server's messages does not matter.
fn line_in_context(context: &str, qualified_name: &str) -> Option<usize> {
    let name = qualified_name.rsplit('.').next()?.trim_matches('"');
    let line = context.lines().rfind(|line| line.contains(name))?;
    let behind = &line[line.find(name)? + name.len()..];
    let digits = behind[behind.find(')')?..].split(|c: char| !c.is_ascii_digit());
    digits.into_iter().find(|number| !number.is_empty())?.parse().ok()
}

/// A fingerprint of everything that shaped the tables.
fn fingerprint(declaration: &ProcessorDeclaration) -> String {
    let tables = declaration.tables.iter().map(|table| format!("{}\u{1}{}", table.name, table.columns.text));
    let ddl = declaration.ddl.iter().map(|sql| sql.text.clone());
    let text = tables.chain(ddl).collect::<Vec<_>>().join("\u{2}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}
