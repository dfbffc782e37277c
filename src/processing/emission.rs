//! This module stores the events that reactors emit, if their handlers run outside of the database. It decides which types
//! a reactor may emit, which uuid an emitted event gets, and where the event goes. For handlers in SQL,
//! `migrations/processing/0006_emissions.sql` and `0019_emission_metadata.sql` do the same.
//!
//! An event that is to be emitted at once goes into the event store in the transaction of the batch, if the store is in the
//! same database. Every other event is kept in the table `emissions`, and the `relay` moves it into the store when it is due.

mod due;
mod identity;
mod later;
mod pending;
mod relay;
mod source_event;

use std::collections::{BTreeMap, HashSet};

use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::event::{AggregateId, Appended, ExpectedVersion, NewEvent, Version};
use crate::postgres::literal::simple;
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::processing::declaration::{ProcessorDeclaration, ProcessorKind, ReactorDeclaration};
use crate::processing::failure::Failure;
use crate::processing::processor::Events;
use crate::store::{AppendError, Codec, TransactionAppender, check_json, find_reason};

pub use due::Due;
use identity::identify;
pub use later::LaterEmission;
pub(crate) use pending::{
    EmissionChange, EmissionSelection, EmissionState, PendingEmission, PendingEmissions, PendingOfReactor,
};
pub(crate) use relay::Relay;
pub(crate) use source_event::SourceEvent;

/// An event that a handler wants emitted.
#[derive(Debug, Clone)]
pub struct Emission {
    /// The type of the event: one of those that the reactor declares.
    pub event_type: String,
    /// The aggregate that the event belongs to.
    pub aggregate_id: AggregateId,
    /// The body of the event, as JSON text.
    pub body: Box<RawValue>,
    /// The version that the aggregate must have just before the event; `None`: any. Can be checked only if the event is
    /// emitted at once and the event store is in the database of the reactor's tables.
    pub expected_version: Option<Version>,
    /// When the event is to be emitted.
    pub due: Due,
    /// Names the event among those that the reactor emits later, so that it can be cancelled. An event replaces an earlier one
    /// of the same key.
    pub key: Option<String>,
    /// The metadata of the event, a JSON object; `None`: only what espd writes, which is the key `espd`. The handler must not
    /// give it that key.
    pub metadata: Option<Box<RawValue>>,
}

/// Checks and stores what one reactor emits. The emitter of a projector refuses everything.
#[derive(Debug)]
pub(crate) struct Emitter {
    reactor: String,
    kind: ProcessorKind,
    emits: Vec<String>,
    /// How many emitted events may lead to one another.
    chain_max: u32,
    /// The quoted schema of espd's own tables.
    schema: String,
    /// The table of events, qualified and quoted.
    events_table: String,
    /// Appends in the database of the batch; `None`: the event store is elsewhere, or is not in PostgreSQL.
    appender: Option<TransactionAppender>,
    /// Whether what is emitted at once is appended in the transaction of the batch.
    in_transaction: bool,
    /// How bodies are stored.
    codec: Codec,
}

impl Emitter {
    pub(crate) fn new(declaration: &ProcessorDeclaration, schema: &str, events: &Events) -> Self {
        let appender = match events {
            Events::SameDatabase(layout) => TransactionAppender::new(layout),
            Events::Elsewhere(_) => None,
        };
        let in_transaction = appender.is_some();
        let schema = quote_identifier(schema);
        let events_table = events.layout().events_table().to_owned();
        Self { schema, events_table, appender, in_transaction, ..Self::without_postgres(declaration) }
    }

    /// The emitter of a processor that does not run in PostgreSQL. It checks what is emitted, which goes into the store
    /// together with the position.
    pub(crate) fn without_postgres(declaration: &ProcessorDeclaration) -> Self {
        let ReactorDeclaration { emits, chain_max, .. } = declaration.reactor.clone().unwrap_or_default();
        Self {
            reactor: declaration.name.clone(),
            kind: declaration.kind(),
            emits,
            chain_max,
            schema: String::new(),
            events_table: String::new(),
            appender: None,
            in_transaction: true,
            codec: Codec::default(),
        }
    }

    fn is_without_postgres(&self) -> bool {
        self.in_transaction && self.appender.is_none()
    }

    /// The same emitter, which encodes bodies.
    #[must_use]
    pub(crate) fn with_codec(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// The name of the reactor.
    pub(crate) fn reactor(&self) -> &str {
        &self.reactor
    }

    /// The uuid of the `ordinal`th event, from 1, that is emitted for a source event.
    pub(crate) fn identify(&self, source: &SourceEvent, ordinal: u32) -> Uuid {
        identify(&self.reactor, source.uuid, ordinal)
    }

    /// An event that a command has led to, as it is stored: as what the reactor emits.
    ///
    /// # Errors
    /// The message says why it is not allowed.
    pub(crate) fn of_command(
        &self,
        source: &SourceEvent,
        command_id: Uuid,
        mut event: NewEvent,
    ) -> Result<NewEvent, String> {
        self.check_type(source, &event.event_type)?;
        let of_espd =
            serde_json::json!({ "reactor": self.reactor, "depth": source.depth + 1, "command": command_id });
        let metadata = serde_json::json!({ ESPDS_OWN: of_espd });
        event.metadata = serde_json::value::to_raw_value(&metadata).map_err(|error| error.to_string())?;
        event.correlation_id = Some(source.correlation_id);
        event.causation_id = Some(source.uuid);
        if let Some(body) = self.codec.encode(&event)? {
            (event.body, event.personal) = (body, &[]);
        }
        Ok(event)
    }

    /// Appends in the transaction that `connection` is in.
    ///
    /// # Errors
    /// As of every append, or espd only reads such a store.
    pub(crate) async fn append(
        &self,
        connection: &mut PgConnection,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, AppendError> {
        let Some(appender) = &self.appender else {
            let reason = "espd only reads a store of this layout".to_owned();
            return Err(AppendError::Invalid { index: None, reason });
        };
        appender.append(connection, events).await
    }

    /// Refuses a type that the reactor may not emit, in the words of the SQL function `espd.emit`.
    fn check_type(&self, source: &SourceEvent, event_type: &String) -> Result<(), String> {
        let Self { reactor, emits, .. } = self;
        if self.kind == ProcessorKind::Projector {
            return Err(format!("projector {reactor} emits {event_type}: only reactors emit"));
        }
        if !emits.contains(event_type) {
            return Err(format!(
                "reactor {reactor} emits {event_type}, which it does not declare (emits = {emits:?})"
            ));
        }
        if source.depth >= self.chain_max {
            let depth = source.depth + 1;
            return Err(format!(
                "reactor {reactor} emits the {depth}th event of a chain that each event led to the next"
            ));
        }
        Ok(())
    }

    /// Refuses an emission that is not allowed, in the words of the SQL function `espd.emit`.
    fn check_allowed(&self, source: &SourceEvent, emission: &Emission) -> Result<(), String> {
        let Emission { event_type, expected_version, due, key, .. } = emission;
        let in_transaction = self.in_transaction;
        self.check_type(source, event_type)?;
        if let Some(key) = key {
            if key.is_empty() {
                return Err(format!(
                    "{event_type} is emitted under an empty key: each would take the place of the one before"
                ));
            }
            check_key(key)?;
        }
        let is_later = *due != Due::AtOnce;
        if expected_version.is_some() && (!in_transaction || is_later) {
            let why = if is_later { "it is for later" } else { "the event store is in another database" };
            return Err(format!("the expected version of {event_type} cannot be checked: {why}"));
        }
        Ok(())
    }
}

/// The most bytes of a key: it has to fit into an index.
const KEY_LENGTH_MAX: usize = 1_000;

/// Refuses a key that the database cannot keep.
fn check_key(key: &str) -> Result<(), String> {
    if key.contains('\0') {
        Err("the key of an emission contains a NUL character".to_owned())
    } else if key.len() > KEY_LENGTH_MAX {
        Err(format!("the key of an emission has {} bytes: {KEY_LENGTH_MAX} is the most", key.len()))
    } else {
        Ok(())
    }
}

/// Why emissions could not be stored.
#[expect(clippy::large_enum_variant, reason = "it is made and looked at once")]
pub(crate) enum EmitError {
    /// The store refuses an emission of the event at this place in the batch.
    Refused { place: usize, failure: Failure },
    /// The database refused the statement, or could not be reached.
    Database(sqlx::Error),
}

impl From<sqlx::Error> for EmitError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The emissions of a batch.
#[derive(Debug, Default)]
pub(crate) struct EmissionBatch {
    /// Events for the event store, each with the place of its source event in the batch.
    pub(crate) now: Vec<(usize, NewEvent)>,
    /// Changes of the table `emissions`, in order.
    pub(crate) deferred: Vec<Deferred>,
}

/// A change of the table `emissions`.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// `place` is that of the source event in the batch.
    Keep {
        place: usize,
        event: Box<NewEvent>,
        due: Due,
        key: Option<String>,
    },
    Cancel {
        key: String,
    },
}

impl EmissionBatch {
    /// Adds an emission under this uuid for the event at `place`. Adds nothing while the event is replayed.
    ///
    /// # Errors
    /// The message says why the emission is not allowed.
    pub(crate) fn add(
        &mut self,
        emitter: &Emitter,
        place: usize,
        source: &SourceEvent,
        uuid: Uuid,
        emission: &Emission,
    ) -> Result<(), String> {
        emitter.check_allowed(source, emission)?;
        own_metadata(emission)?;
        if source.replaying {
            return Ok(());
        }
        let mut event = event(emitter, source, uuid, emission)?;
        if let Some(body) = emitter.codec.encode(&event)? {
            event.body = body;
        }
        if emission.due == Due::AtOnce && emitter.in_transaction {
            self.now.push((place, event));
        } else {
            // The event store would refuse it for ever, long after this handler has ended.
            if let Some(reason) = find_reason(&event) {
                let id = &event.aggregate_id;
                let which =
                    id.as_uuid().map_or_else(|| format!(" (it is {:?})", id.to_string()), |_| String::new());
                return Err(format!("{reason}{which}"));
            }
            // PostgreSQL says so itself when it keeps the emission.
            if emitter.is_without_postgres()
                && let Err(reason) = check_json(&event)
            {
                return Err(reason);
            }
            let (due, key) = (emission.due, emission.key.clone());
            self.deferred.push(Deferred::Keep { place, event: Box::new(event), due, key });
        }
        Ok(())
    }

    /// Cancels the event that was to be emitted later by this key. Cancels nothing while the source event is replayed.
    ///
    /// # Errors
    /// The message says why there can be no such key.
    pub(crate) fn cancel(&mut self, source: &SourceEvent, key: &str) -> Result<(), String> {
        check_key(key)?;
        if !source.replaying {
            self.deferred.push(Deferred::Cancel { key: key.to_owned() });
        }
        Ok(())
    }

    /// Stores all emissions in the transaction that `connection` is in. Events that were stored before stay as they are.
    pub(crate) async fn store(
        self,
        emitter: &Emitter,
        connection: &mut PgConnection,
    ) -> Result<(), EmitError> {
        if let (Some(appender), false) = (&emitter.appender, self.now.is_empty()) {
            append(appender, connection, self.now).await?;
        }
        if let Some(appender) = &emitter.appender {
            check_bodies(appender, connection, &self.deferred).await?;
        }
        for deferred in self.deferred {
            let statement = match deferred {
                Deferred::Keep { event, due, key, .. } => emitter.keep(&event, due, key.as_deref()),
                Deferred::Cancel { key } => emitter.cancel(&key),
            };
            simple(statement).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// The key of the metadata of an emitted event that espd writes.
const ESPDS_OWN: &str = "espd";

/// The metadata that the handler wants, as written: no number is read.
fn own_metadata(emission: &Emission) -> Result<BTreeMap<String, Box<RawValue>>, String> {
    let Emission { event_type, metadata, .. } = emission;
    let Some(metadata) = metadata else { return Ok(BTreeMap::new()) };
    let keys: BTreeMap<String, Box<RawValue>> = serde_json::from_str(metadata.get())
        .map_err(|_| format!("the metadata of {event_type} is no JSON object"))?;
    if keys.contains_key(ESPDS_OWN) {
        return Err(format!("the metadata of {event_type} has the key \"{ESPDS_OWN}\", which is espd's own"));
    }
    Ok(keys)
}

/// The event as it is stored. What led to it is espd's to say, and not the handler's.
fn event(
    emitter: &Emitter,
    source: &SourceEvent,
    uuid: Uuid,
    emission: &Emission,
) -> Result<NewEvent, String> {
    let mut metadata = own_metadata(emission)?;
    let of_espd = serde_json::json!({ "reactor": emitter.reactor, "depth": source.depth + 1 });
    let of_espd = serde_json::value::to_raw_value(&of_espd).map_err(|error| error.to_string())?;
    metadata.insert(ESPDS_OWN.to_owned(), of_espd);
    let body = emission.body.clone();
    let mut event = NewEvent::new(&emission.aggregate_id, emission.event_type.clone(), body);
    event.uuid = uuid;
    event.expected_version = emission.expected_version.map_or(ExpectedVersion::Any, ExpectedVersion::Exact);
    event.correlation_id = Some(source.correlation_id);
    event.causation_id = Some(source.uuid);
    event.metadata = serde_json::value::to_raw_value(&metadata).map_err(|error| error.to_string())?;
    Ok(event)
}

/// Appends the events that are not stored yet.
async fn append(
    appender: &TransactionAppender,
    connection: &mut PgConnection,
    events: Vec<(usize, NewEvent)>,
) -> Result<(), EmitError> {
    let uuids: Vec<Uuid> = events.iter().map(|(_, event)| event.uuid).collect();
    let stored: HashSet<Uuid> = appender.find_stored(connection, &uuids).await?.into_iter().collect();
    let missing = events.into_iter().filter(|(_, event)| !stored.contains(&event.uuid));
    let (places, events): (Vec<usize>, Vec<NewEvent>) = missing.unzip();
    let appended = appender.append(connection, &events).await;
    appended.map(drop).map_err(|error| blame(error, &places, &events))
}

/// Refuses what the store would refuse when it is due, long after the events that have led to it count as handled.
async fn check_bodies(
    appender: &TransactionAppender,
    connection: &mut PgConnection,
    deferred: &[Deferred],
) -> Result<(), EmitError> {
    let kept = deferred.iter().filter_map(|deferred| match deferred {
        Deferred::Keep { place, event, .. } => Some((*place, NewEvent::clone(event))),
        Deferred::Cancel { .. } => None,
    });
    let (places, events): (Vec<usize>, Vec<NewEvent>) = kept.unzip();
    if events.is_empty() {
        return Ok(());
    }
    let checked = appender.check_bodies(connection, &events).await;
    checked.map_err(|error| blame(error, &places, &events))
}

/// Says which event of the batch it is that has led to what the store refuses.
fn blame(error: AppendError, places: &[usize], events: &[NewEvent]) -> EmitError {
    if let AppendError::Database(error) = error {
        return EmitError::Database(error);
    }
    let culprit = attribute(&error, events);
    let place = *culprit.and_then(|index| places.get(index)).or(places.first()).unwrap_or(&0);
    let message = match (&error, culprit.and_then(|index| events.get(index))) {
        // A number of the event in the append would be taken for its id.
        (AppendError::Invalid { reason, .. }, Some(event)) => {
            format!("the {} that it emits is refused: {reason}", event.event_type)
        }
        _ => error.to_string(),
    };
    EmitError::Refused { place, failure: Failure::of_processor(message) }
}

/// Returns the index of the event that an error of an append is about, if it is known.
pub(crate) fn attribute(error: &AppendError, events: &[NewEvent]) -> Option<usize> {
    match error {
        AppendError::Conflict { aggregate_id, .. } => events.iter().position(|event| {
            event.aggregate_id == *aggregate_id && event.expected_version != ExpectedVersion::Any
        }),
        AppendError::UuidReused { uuid } => events.iter().position(|event| event.uuid == *uuid),
        AppendError::Invalid { index, .. } => *index,
        AppendError::KeyTaken { index, .. } => Some(*index),
        AppendError::ConditionFailed { .. } | AppendError::Database(_) => None,
    }
}

impl Emitter {
    /// Returns the statement that keeps an emission, unless it is kept or stored already.
    fn keep(&self, event: &NewEvent, due: Due, key: Option<&str>) -> String {
        let (schema, events) = (&self.schema, &self.events_table);
        let (is_new, gives_way) = match (&self.appender, event.causation_id) {
            (Some(_), Some(cause)) => {
                let is_new =
                    format!("not exists (select from {events} as s where s.uuid = '{}')", event.uuid);
                let of = |uuid: &str| format!("(select c.id from {events} as c where c.uuid = {uuid})");
                let (own, others) = (of(&format!("'{cause}'")), of("e.causation_id"));
                // What gave way before a reset gives way again, also to one that is stored since.
                let gives_way = format!("({is_new} or {others} <= {own})");
                (is_new, gives_way)
            }
            _ => ("true".to_owned(), "true".to_owned()),
        };
        let null_or = |text: Option<String>| text.map_or("null".to_owned(), |text| quote_literal(&text));
        format!(
            "-- keep_emission
             delete from {schema}.emissions as e
             where e.reactor = {reactor} and e.key = {key} and e.uuid <> '{uuid}' and {gives_way};
             insert into {schema}.emissions
               (reactor, uuid, aggregate_id, type, body, metadata, correlation_id, causation_id, key, due_at)
             select {reactor}, '{uuid}', {aggregate_id}, {event_type}, {body}::jsonb, {metadata}::jsonb,
                    {correlation_id}, {causation_id}, {key}, {due_at}
             where {is_new} on conflict (uuid) do nothing",
            reactor = quote_literal(&self.reactor),
            key = null_or(key.map(str::to_owned)),
            uuid = event.uuid,
            aggregate_id = quote_literal(&event.aggregate_id.to_string()),
            event_type = quote_literal(&event.event_type),
            body = quote_literal(event.body.get()),
            metadata = quote_literal(event.metadata.get()),
            correlation_id = null_or(event.correlation_id.map(|id| id.to_string())),
            causation_id = null_or(event.causation_id.map(|id| id.to_string())),
            due_at = due.expression(),
        )
    }

    fn cancel(&self, key: &str) -> String {
        format!(
            "-- cancel_emission\ndelete from {}.emissions where reactor = {} and key = {}",
            self.schema,
            quote_literal(&self.reactor),
            quote_literal(key)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_kept_as_it_is_written_beside_that_of_espd() {
        let emission = |metadata: &str| Emission {
            event_type: "A".to_owned(),
            aggregate_id: Uuid::nil().into(),
            body: RawValue::NULL.to_owned(),
            expected_version: None,
            due: Due::AtOnce,
            key: None,
            metadata: Some(RawValue::from_string(metadata.to_owned()).unwrap()),
        };
        let kept = own_metadata(&emission(r#"{"tenant": 12345678901234567890.10, "espd2": null}"#)).unwrap();
        assert_eq!(kept["tenant"].get(), "12345678901234567890.10");
        for refused in ["[]", "null", r#"{"espd": {}}"#] {
            assert!(own_metadata(&emission(refused)).is_err(), "{refused}");
        }
    }
}
