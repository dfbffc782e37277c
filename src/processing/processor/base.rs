//! What every processor is made of: its declaration, its tables, and the source of its events.

use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection, PgPool, Row as _};
use uuid::Uuid;

use super::batch::{Batch, BatchQuery};
use super::tables::{
    Fit, HandledBy, Replaced, Tables, describe_missing, describe_moved, find_missing, find_moved, fingerprint,
};
use super::{BatchRequest, Events, ProcessorError, unreadable};
use crate::event::{Position, StoredTime};
use crate::postgres::literal::{fetch_optional, simple};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark;
use crate::postgres::sql_scope::SqlScope;
use crate::processing::alteration::Alteration;
use crate::processing::declaration::{Handling, ProcessorDeclaration, ProcessorKind, Start};
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::tracker::{Claim, ProcessorKey, Reset, Trackers};
use crate::store::layout::Layout;
use crate::store::witness::Witness;

/// How long a reset waits for the tracker: a batch that is under way ends first.
const LIMIT_WAIT_FOR_TRACKER: &str = "-- limit_wait_for_tracker\nset local lock_timeout = '5s'";

/// How long a reset waits for each table. Meanwhile it holds the tracker, so that the owner renews no lease, and everybody
/// else who wants the table waits behind it.
const LIMIT_WAIT_FOR_TABLES: &str = "-- limit_wait_for_tables\nset local lock_timeout = '700ms'";

/// What ends a transaction whose owner is frozen.
const LIMIT_SILENCE: &str = "-- limit_silence\nset local idle_in_transaction_session_timeout = '60s'";

/// What becomes of what others have made on a processor's tables and what cannot be carried over to new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OthersObjects {
    /// Nothing is done where something would be lost.
    Keep,
    /// It is dropped.
    Drop,
    /// Everything is rolled back, so that one can see what would become of it.
    Preview,
}

/// What every processor is made of: its declaration, the schemas that it writes to, and the source of its events.
#[derive(Debug)]
pub struct ProcessorBase {
    pub(crate) declaration: ProcessorDeclaration,
    /// Schema of espd's own tables in the database of the projections.
    pub(crate) schema: String,
    /// Where the processor's tables are, and what SQL means there.
    pub(crate) scope: SqlScope,
    pub(crate) events: Events,
    /// Whether the events belong to instances, which only the handler knows.
    pub(crate) is_workflow: bool,
    /// Where the steps of a workflow are recorded, each at once; `None`: it is no workflow.
    pub(crate) step_records: Option<PgPool>,
    /// Bytes of an event, as those of the last batch that was read had them; 0: none was read.
    event_bytes: AtomicI64,
}

impl ProcessorBase {
    pub(crate) fn new(
        declaration: ProcessorDeclaration,
        schema: &str,
        scope: impl Into<SqlScope>,
        events: Events,
    ) -> Self {
        let (schema, scope) = (schema.to_owned(), scope.into());
        Self {
            declaration,
            schema,
            scope,
            events,
            is_workflow: false,
            step_records: None,
            event_bytes: AtomicI64::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.declaration.name
    }

    pub(crate) fn tables(&self) -> Tables<'_> {
        Tables::new(&self.declaration, &self.schema, &self.scope)
    }

    pub(crate) fn trackers(&self) -> Trackers {
        Trackers::named(&self.schema, self.events.layout().names())
    }

    /// The types of events that the processor handles; `None`: all types.
    pub(crate) fn event_types(&self) -> Option<Vec<String>> {
        let types = self.declaration.event_types()?;
        Some(types.into_iter().map(str::to_owned).collect())
    }

    /// The position at which the processor begins when it has never run. `now` is a position that is settled: everything at
    /// or below it was appended before. See [`Start::needs_now`].
    pub(crate) async fn starting_position(
        &self,
        connection: &mut PgConnection,
        now: Position,
    ) -> Result<Position, sqlx::Error> {
        match self.start() {
            Start::Beginning => Ok(Position::START),
            Start::Position(position) => Ok(position),
            Start::Now => Ok(now),
            Start::Time(time) => self.position_before(connection, time, now).await,
        }
    }

    /// A fingerprint of what handles the events now; `None`: it is not known.
    pub(crate) fn handler_fingerprint(&self) -> Option<String> {
        self.declaration.handler_fingerprint(self.events.layout().upcasts())
    }

    /// The fingerprint that an owner notes: see [`ProcessorDeclaration::noted_fingerprint`].
    pub(crate) fn noted_fingerprint(&self) -> Option<String> {
        self.declaration.noted_fingerprint(self.events.layout().upcasts())
    }

    /// Where the processor begins as it is declared.
    pub(crate) fn start(&self) -> Start {
        self.declaration.start()
    }

    /// The position just before the first event of this time or later, at most `now`.
    async fn position_before(
        &self,
        connection: &mut PgConnection,
        time: DateTime<Utc>,
        now: Position,
    ) -> Result<Position, sqlx::Error> {
        let statement = format!(
            "-- find_starting_position
             select coalesce(min(id) - 1, {now}) from {} where created_at >= {} and id <= {now}",
            self.events.layout().events_table(),
            quote_literal(&StoredTime::no_earlier_than(time).to_string())
        );
        self.read_position(connection, statement).await
    }

    /// The last id drawn.
    pub(crate) async fn find_head(&self, connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
        let head = self.events.layout().order.head_expression();
        self.read_position(connection, format!("-- find_head\nselect {head}")).await
    }

    /// How far a batch may go that would find nothing, or little, for many ids: up to the event that is the `count`-th after
    /// `position`, of whatever type; `settled` if there are fewer.
    pub(crate) async fn find_batch_end(
        &self,
        connection: &mut PgConnection,
        position: Position,
        settled: Position,
        count: i64,
    ) -> Result<Position, sqlx::Error> {
        let statement = format!(
            "-- find_batch_end
             select coalesce((select id::bigint from {} where id > {position} and id <= {settled}
                               order by id offset {} limit 1), {settled})",
            self.events.layout().events_table(),
            (count - 1).max(0)
        );
        self.read_position(connection, statement).await
    }

    /// Runs a statement in the database of the events that returns one position.
    async fn read_position(
        &self,
        connection: &mut PgConnection,
        statement: String,
    ) -> Result<Position, sqlx::Error> {
        let statement = simple(statement);
        let row = match &self.events {
            Events::SameDatabase(_) => statement.fetch_one(connection).await?,
            Events::Elsewhere(store) => statement.fetch_one(store.pool()).await?,
        };
        row.try_get(0)
    }

    /// Begins to prepare the processor under a claim, and creates its tables if they are missing. No other owner can prepare
    /// it before the transaction ends. Returns how the tables fit; handlers in SQL do with all that is not an error.
    pub(crate) async fn prepare(
        &self,
        transaction: &mut PgConnection,
        claim: &Claim,
    ) -> Result<Fit, ProcessorError> {
        // The limits end a wait for a lock, and an owner that is frozen in this transaction.
        let limits = "-- limit_waits\nset local lock_timeout = '5s'; set local idle_in_transaction_session_timeout = '60s'";
        sqlx::raw_sql(limits).execute(&mut *transaction).await?;
        self.refuse_to_emit_into_a_foreign_store()?;
        // From here on no other owner prepares: an outdated one must not replace what the present one has made.
        if !self.trackers().lock_claimed(&mut *transaction, claim).await? {
            return Err(ProcessorError::ClaimLost);
        }
        let wanted = self.declaration.synchronous;
        self.trackers().end_synchronous(&mut *transaction, &claim.key, wanted).await?;
        let upcasts = self.events.layout().upcasts();
        if claim.declaration.is_some() {
            self.refuse_missing_tables(transaction).await?;
        }
        match &claim.declaration {
            // Nothing more to ask for, which is so nearly always.
            Some(made_from)
                if claim.key.version == self.declaration.version
                    && *made_from == fingerprint(&self.declaration) =>
            {
                Ok(Fit::AsDeclared)
            }
            Some(_) => {
                self.tables().compare(transaction, claim.key.version, upcasts, Self::handled_by(claim)).await
            }
            None => self.tables().create(transaction).await.map(|()| Fit::AsDeclared),
        }
    }

    /// Refuses to go on without a table that was made: the next event that needs it would fail. Nor with tables in another schema.
    async fn refuse_missing_tables(&self, transaction: &mut PgConnection) -> Result<(), ProcessorError> {
        let (schema, name) = (quote_identifier(&self.schema), self.name());
        let configured = &self.scope.schema;
        if let Some(is_in) = find_moved(&mut *transaction, &schema, name, configured).await? {
            return Err(ProcessorError::Blocked(describe_moved(name, &is_in, configured)));
        }
        match find_missing(transaction, &schema, name).await? {
            Some(tables) => Err(ProcessorError::Blocked(describe_missing(name, &tables))),
            None => Ok(()),
        }
    }

    /// Alters the tables as far as one transaction should, under a claim. `None`: there is nothing to alter.
    ///
    /// # Errors
    /// 55P03 if others use the tables: the caller may try again later.
    pub(crate) async fn alter_tables(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<Alteration>, ProcessorError> {
        let claim = request.claim;
        let mut transaction = connection.begin_with(server_mark::begin(request.mark)).await?;
        sqlx::raw_sql(LIMIT_SILENCE).execute(&mut *transaction).await?;
        if !self.trackers().lock_claimed(&mut transaction, claim).await? {
            return Err(ProcessorError::ClaimLost);
        }
        let upcasts = self.events.layout().upcasts();
        let altered = self.tables().alter(&mut transaction, upcasts, Self::handled_by(claim)).await?;
        transaction.commit().await?;
        Ok(altered)
    }

    fn handled_by(claim: &Claim) -> HandledBy<'_> {
        HandledBy { fingerprint: claim.handlers.as_deref(), position: claim.position }
    }

    /// Drops and creates the tables again and sets the position to where they begin, all in one transaction. If only the processor's own
    /// program knows the tables, they are created when it runs next.
    ///
    /// Returns what has become of what others had made on the tables; `None`: the processor is not known. Every claim
    /// ends; a running worker claims again.
    ///
    /// # Errors
    /// 55P03 if others use the tables: whoever calls may try again later. [`ProcessorError::Blocked`] if something of others could not be carried over and `others` does not allow that.
    pub(crate) async fn reset(
        &self,
        connection: &mut PgConnection,
        tracker: &ProcessorKey,
        operator: &str,
        reset: Reset,
        others: OthersObjects,
    ) -> Result<Option<Replaced>, ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        let reset = Reset { rebuilt_as: Some(self.declaration.version), ..reset };
        let replaced = self.reset_within(&mut transaction, tracker, operator, reset, others).await?;
        if let Some(refusal) = replaced.as_ref().and_then(|replaced| replaced.refusal(self.name()))
            && others == OthersObjects::Keep
        {
            return Err(ProcessorError::Blocked(refusal));
        }
        match others {
            OthersObjects::Preview => transaction.rollback().await?,
            OthersObjects::Keep | OthersObjects::Drop => transaction.commit().await?,
        }
        Ok(replaced)
    }

    async fn reset_within(
        &self,
        transaction: &mut PgConnection,
        tracker: &ProcessorKey,
        operator: &str,
        reset: Reset,
        others: OthersObjects,
    ) -> Result<Option<Replaced>, ProcessorError> {
        let trackers = self.trackers();
        sqlx::raw_sql(LIMIT_WAIT_FOR_TRACKER).execute(&mut *transaction).await?;
        if trackers.lock(transaction, tracker).await?.is_none() {
            return Ok(None);
        }
        // First, because whoever appends may wait for the tables, and is waited for here.
        trackers.end_synchronous(transaction, tracker, None).await?;
        let reset = Reset { to: self.beginning(transaction, tracker).await?, ..reset };
        sqlx::raw_sql(LIMIT_WAIT_FOR_TABLES).execute(&mut *transaction).await?;
        let dropped = self.tables().drop(transaction).await?;
        trackers.reset(transaction, tracker, operator, reset).await?;
        trackers.note_kind(transaction, tracker, self.declaration.kind()).await?;
        if self.leaves_tables_to_program() {
            return Ok(Some(self.tables().keep(transaction, &dropped, others != OthersObjects::Drop).await?));
        }
        self.tables().create(transaction).await?;
        Ok(Some(self.tables().restore(transaction, &dropped).await?))
    }

    /// Whether only the program that has registered the processor knows its tables, and this is another one.
    fn leaves_tables_to_program(&self) -> bool {
        let ProcessorDeclaration { handling, tables, ddl, .. } = &self.declaration;
        matches!(handling, Handling::Native(_)) && tables.is_empty() && ddl.is_empty()
    }

    /// Where the tables begin that are made anew: a projector's where it is declared to begin, or where "now" or a time was when
    /// it ran for the first time. A reactor meets all events, because it repeats no effects for those that it has handled.
    pub(crate) async fn beginning(
        &self,
        transaction: &mut PgConnection,
        tracker: &ProcessorKey,
    ) -> Result<Position, sqlx::Error> {
        match (self.declaration.kind(), self.start()) {
            (ProcessorKind::Reactor, _) | (_, Start::Beginning) => Ok(Position::START),
            (_, Start::Position(position)) => Ok(position),
            (_, Start::Now | Start::Time(_)) => {
                let began = self.trackers().find_beginning(transaction, tracker).await?;
                Ok(began.unwrap_or(Position::START))
            }
        }
    }

    /// Reads the events of a request from the store that has the `witness` and the `partitions`.
    pub(crate) async fn read_batch(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
        witness: Option<Witness>,
        partitions: Option<&[i64]>,
    ) -> Result<Batch, ProcessorError> {
        self.read_upto(connection, request, request.upto(), witness, partitions).await
    }

    /// As [`Self::read_batch`], up to a position that is no farther than the one of the request.
    async fn read_upto(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
        upto: Position,
        witness: Option<Witness>,
        partitions: Option<&[i64]>,
    ) -> Result<Batch, ProcessorError> {
        let types = self.event_types();
        let types = types.as_deref();
        let (after, limits) = (request.after(), request.limits);
        let event_bytes = self.event_bytes.load(Ordering::Relaxed);
        let query = BatchQuery { types, after, upto, limits, event_bytes, witness, partitions };
        let batch = Batch::read(&self.events, connection, query).await?;
        if let Some(event_bytes) = batch.event_bytes() {
            self.event_bytes.store(event_bytes.max(1), Ordering::Relaxed);
        }
        Ok(batch)
    }

    /// Reads the events of a request that are before the first one which cannot be read, after the request could not be read because
    /// of this error. On `connection` nothing has failed.
    ///
    /// # Errors
    /// [`ProcessorError::Unattributed`], with the event, if it is the first one of the request.
    pub(crate) async fn read_before_unreadable(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
        witness: Option<Witness>,
        partitions: Option<&[i64]>,
        error: &sqlx::Error,
    ) -> Result<Batch, ProcessorError> {
        let types = self.event_types();
        let source = unreadable::Source { events: &self.events, types: types.as_deref() };
        let Some(event) = unreadable::find(source, connection, request, error).await? else {
            let failure = self.attribute_failure(connection, request, error).await?;
            return Err(ProcessorError::Unattributed(Box::new(failure)));
        };
        let upto = Position::from(event.id.get() - 1);
        if upto > request.after() {
            let batch = self.read_upto(connection, request, upto, witness, partitions).await?;
            if batch.event_bytes().is_some() {
                return Ok(batch);
            }
        }
        let failure = Failure::of_database(error).of_reading().attribute(event);
        Err(ProcessorError::Unattributed(Box::new(failure)))
    }

    /// Whether the store has the `witness` and the `partitions`, and all events of a batch that was read before, from `after` on.
    pub(crate) async fn still_has(
        &self,
        connection: &mut PgConnection,
        batch: &Batch,
        after: Position,
        witness: Option<Witness>,
        partitions: Option<&[i64]>,
    ) -> Result<bool, ProcessorError> {
        let types = self.event_types();
        batch
            .still_stands(connection, self.events.layout(), types.as_deref(), after, witness, partitions)
            .await
    }

    /// The failure that an error stands for which was raised where no event is known, such as at commit. It is attributed to
    /// the event if the batch had only one.
    pub(crate) async fn attribute_failure(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
        error: &sqlx::Error,
    ) -> Result<Failure, sqlx::Error> {
        let failure = Failure::of_database(error);
        if request.limits.size > 1 {
            return Ok(failure);
        }
        Ok(match self.find_first_event(connection, request).await? {
            Some(event) => failure.attribute(event),
            None => failure,
        })
    }

    /// Finds the first event of a batch. Its body is not read, because that may be what cannot be read.
    async fn find_first_event(
        &self,
        connection: &mut PgConnection,
        request: &BatchRequest<'_>,
    ) -> Result<Option<FailedEvent>, sqlx::Error> {
        let of_types = self.event_types().map_or_else(String::new, |types| {
            let types: Vec<String> = types.iter().map(|name| quote_literal(name)).collect();
            format!(" and type = any (array[{}]::text[])", types.join(", "))
        });
        let statement = format!(
            "-- find_first_event
             select id, uuid, type as event_type, aggregate_id from {} as e
             where id > {} and id <= {}{of_types} order by id limit 1",
            self.events.layout().source(),
            request.after(),
            request.upto()
        );
        match &self.events {
            Events::SameDatabase(_) => fetch_optional(connection, statement).await,
            Events::Elsewhere(store) => fetch_optional(store.pool(), statement).await,
        }
    }

    /// Why an event that was set aside is not the one that the store has under its id; `None`: it is. After a restore, or a
    /// failover, another event may have the id.
    pub(crate) async fn compare_stored(
        &self,
        connection: &mut PgConnection,
        set_aside: FailedEvent,
    ) -> Result<Option<Failure>, sqlx::Error> {
        let FailedEvent { id, uuid, .. } = set_aside;
        let table = self.events.layout().source();
        let statement = format!("-- identify_stored_event\nselect uuid from {table} as e where id = {id}");
        let stored: Option<(Uuid,)> = match &self.events {
            Events::SameDatabase(_) => fetch_optional(connection, statement).await?,
            Events::Elsewhere(store) => fetch_optional(store.pool(), statement).await?,
        };
        let found = match stored {
            Some((stored,)) if stored == uuid => return Ok(None),
            Some((stored,)) => {
                format!("the event store has another event under id {id} now, {stored} instead of {uuid}")
            }
            None => format!("event {id} is not in the event store any more"),
        };
        let name = self.name();
        let message =
            format!("{found}: it was not handled. `espctl dead-letters discard {name} {id}` removes it");
        Ok(Some(Failure::of_processor(message).attribute(set_aside)))
    }

    fn refuse_to_emit_into_a_foreign_store(&self) -> Result<(), ProcessorError> {
        let obstacle = find_obstacle_to_emit(&self.declaration, self.events.layout());
        obstacle.map_or(Ok(()), |obstacle| Err(ProcessorError::Blocked(obstacle)))
    }
}

/// Why a processor cannot emit into a store of this layout; `None`: it can, or does not want to.
pub(crate) fn find_obstacle_to_emit(declaration: &ProcessorDeclaration, layout: &Layout) -> Option<String> {
    let emits = declaration.reactor.as_ref().is_some_and(|reactor| !reactor.emits.is_empty());
    (emits && layout.append.is_none()).then(|| {
        format!(
            "reactor {} emits events, but espd only reads the store: run it on a store of layout \"espd\"",
            declaration.name
        )
    })
}
