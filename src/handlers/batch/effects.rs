//! The effects of events, and how they are applied.

use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use super::row_changes::{RowChange, RowChanges};
use super::tables::{Members, RowTables};
use super::transaction::BatchTransaction;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::emission::{Emission, EmissionBatch, EmitError, Emitter, SourceEvent};
use crate::processing::failure::Failure;
use crate::processing::processor::ProcessorError;
use crate::store::find_bad_text;

/// One thing that a handler wants done.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Sets the given columns of the row with the given key, or inserts the row.
    Upsert { table: String, row: Box<RawValue> },
    /// Deletes the rows that are equal in all the given columns.
    Delete { table: String, columns: Box<RawValue> },
    /// Emits an event, now or later.
    Emit(Emission),
    /// Emits an event under a uuid that does not follow from the event that has led to it.
    EmitAs(Uuid, Emission),
    /// Cancels an event that would be emitted later.
    Cancel { key: String },
}

/// The actions that one event has led to, in order.
#[derive(Debug, Clone)]
pub(crate) struct EventEffects {
    pub(crate) source: SourceEvent,
    pub(crate) actions: Vec<Action>,
}

/// How many effects were applied.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The number of events, from the first on, whose effects were applied.
    pub(crate) events: usize,
    /// Why the effects of the next event could not be applied, if so.
    pub(crate) failure: Option<Box<Failure>>,
}

/// Why effects could not be applied.
enum EffectError {
    /// The effects of the event at this place are the reason.
    Event(usize, Failure),
    /// It is not known whose effects are the reason.
    Somewhere(Failure),
    Database(sqlx::Error),
}

impl EffectError {
    fn of(error: sqlx::Error) -> Self {
        if is_infrastructure_error(&error) {
            Self::Database(error)
        } else {
            Self::Somewhere(Failure::of_database(&error))
        }
    }
}

impl BatchTransaction<'_> {
    /// Applies the effects of events, in order, up to the first event whose effects cannot be applied. All are tried together
    /// first; only if that fails, event by event.
    pub(crate) async fn apply(
        &mut self,
        tables: &RowTables,
        emitter: &Emitter,
        effects: &[EventEffects],
    ) -> Result<Applied, ProcessorError> {
        self.savepoint().await?;
        let failure = match apply_all(self.connection(), tables, emitter, effects).await {
            Ok(()) => {
                self.release_savepoint().await?;
                return Ok(Applied { events: effects.len(), failure: None });
            }
            Err(EffectError::Database(error)) => return Err(error.into()),
            Err(EffectError::Event(place, failure)) => {
                self.rollback_to_savepoint().await?;
                return self.apply_before(tables, emitter, effects, place, failure).await;
            }
            Err(EffectError::Somewhere(failure)) => failure,
        };
        self.rollback_to_savepoint().await?;
        self.apply_each(tables, emitter, effects, failure).await
    }

    /// Applies the effects of the events before the one at `place`, which is the reason of `failure`.
    async fn apply_before(
        &mut self,
        tables: &RowTables,
        emitter: &Emitter,
        effects: &[EventEffects],
        place: usize,
        failure: Failure,
    ) -> Result<Applied, ProcessorError> {
        let applied = self.apply_each(tables, emitter, &effects[..place], failure.clone()).await?;
        if applied.failure.is_some() {
            return Ok(applied);
        }
        Ok(Applied { events: place, failure: Some(Box::new(effects[place].source.attribute(failure))) })
    }

    async fn apply_each(
        &mut self,
        tables: &RowTables,
        emitter: &Emitter,
        effects: &[EventEffects],
        of_all: Failure,
    ) -> Result<Applied, ProcessorError> {
        for (place, one) in effects.iter().enumerate() {
            self.savepoint().await?;
            let failure = match apply_all(self.connection(), tables, emitter, std::slice::from_ref(one)).await
            {
                Ok(()) => {
                    self.release_savepoint().await?;
                    continue;
                }
                Err(EffectError::Database(error)) => return Err(error.into()),
                Err(EffectError::Event(_, failure)) => failure,
                Err(EffectError::Somewhere(failure)) => name_place(failure, &one.actions),
            };
            self.rollback_to_savepoint().await?;
            let failure = Some(Box::new(one.source.attribute(failure)));
            return Ok(Applied { events: place, failure });
        }
        // The effects of each event can be applied alone, so what failed was to apply them together.
        tracing::debug!(error = %of_all, "effects were applied one by one");
        Ok(Applied { events: effects.len(), failure: None })
    }
}

/// Says what PostgreSQL does not: which value has a text in it that no text of a database can have.
fn name_place(failure: Failure, actions: &[Action]) -> Failure {
    let is_of_text = matches!(failure.sqlstate.as_deref(), Some("22P05" | "22P02" | "22021"));
    match actions.iter().find_map(find_unstorable).filter(|_| is_of_text) {
        Some(place) => Failure { message: format!("{place}: {}", failure.message), ..failure },
        None => failure,
    }
}

/// Where an action has a NUL character or half a surrogate pair, and which.
fn find_unstorable(action: &Action) -> Option<String> {
    match action {
        Action::Upsert { table, row: given } | Action::Delete { table, columns: given } => {
            let members: Members<'_> = serde_json::from_str(given.get()).ok()?;
            members.iter().find_map(|(column, value)| {
                find_bad_text(value).map(|what| format!("{column:?} of a row of {table} contains {what}"))
            })
        }
        Action::Emit(Emission { event_type, body, metadata, .. })
        | Action::EmitAs(_, Emission { event_type, body, metadata, .. }) => {
            let what = std::iter::once(body).chain(metadata).find_map(|json| find_bad_text(json))?;
            Some(format!("the {event_type} that it emits contains {what}"))
        }
        Action::Cancel { .. } => None,
    }
}

async fn apply_all(
    connection: &mut PgConnection,
    tables: &RowTables,
    emitter: &Emitter,
    effects: &[EventEffects],
) -> Result<(), EffectError> {
    let mut rows = RowChanges::new(tables);
    for (place, EventEffects { actions, .. }) in effects.iter().enumerate() {
        for action in actions {
            let change = match action {
                Action::Upsert { table, row } => RowChange::Upsert { table, row },
                Action::Delete { table, columns } => RowChange::Delete { table, columns },
                Action::Emit(_) | Action::EmitAs(..) | Action::Cancel { .. } => continue,
            };
            let refuse = |message: String| EffectError::Event(place, Failure::of_processor(message));
            rows.add(change).map_err(refuse)?;
        }
    }
    let emissions = collect_emissions(emitter, effects);
    let emissions = emissions.map_err(|(place, failure)| EffectError::Event(place, *failure))?;
    rows.apply(&mut *connection).await.map_err(EffectError::of)?;
    emissions.store(emitter, connection).await.map_err(|error| match error {
        EmitError::Refused { place, failure } => EffectError::Event(place, failure),
        EmitError::Database(error) => EffectError::of(error),
    })
}

/// What events have emitted and cancelled, checked.
///
/// # Errors
/// The place of the first event whose emissions are not allowed, and why.
pub(crate) fn collect_emissions(
    emitter: &Emitter,
    effects: &[EventEffects],
) -> Result<EmissionBatch, (usize, Box<Failure>)> {
    let mut emissions = EmissionBatch::default();
    for (place, EventEffects { source, actions }) in effects.iter().enumerate() {
        let refuse = |message: String| (place, Box::new(Failure::of_processor(message)));
        let mut ordinal = 0;
        for action in actions {
            match action {
                Action::Emit(emission) => {
                    ordinal += 1;
                    let uuid = emitter.identify(source, ordinal);
                    emissions.add(emitter, place, source, uuid, emission).map_err(refuse)?;
                }
                Action::EmitAs(uuid, emission) => {
                    ordinal += 1;
                    emissions.add(emitter, place, source, *uuid, emission).map_err(refuse)?;
                }
                Action::Cancel { key } => emissions.cancel(source, key).map_err(refuse)?,
                Action::Upsert { .. } | Action::Delete { .. } => {}
            }
        }
    }
    Ok(emissions)
}
