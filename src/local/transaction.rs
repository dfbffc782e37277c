//! The transaction in which handlers handle a batch without PostgreSQL.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use super::LocalEvents;
use super::clock::Clock;
use super::ledger::{Later, Ledger, Unit, WorkflowChanges};
use crate::event::{AggregateId, Appended, Event, NewEvent, Version};
use crate::handlers::batch::{Applied, EventEffects, collect_emissions};
use crate::handlers::native::{NoPostgres, Transaction};
use crate::processing::emission::{Deferred, Due, EmissionBatch, Emitter, attribute};
use crate::processing::failure::Failure;
use crate::processing::processor::ProcessorError;
use crate::processing::workflow::{Step, WorkflowInstance};
use crate::store::upcast::{Upcast, read_through};
use crate::store::{AppendError, ReadError};

pub(super) struct LocalTransaction<'t> {
    pub(super) unit: Box<dyn Unit + 't>,
    pub(super) ledger: &'t dyn Ledger,
    /// What is to be remembered of a workflow.
    pub(super) workflow: WorkflowChanges,
    pub(super) events: &'t dyn LocalEvents,
    pub(super) upcasts: &'t [Upcast],
    pub(super) clock: Clock,
    /// The name of the processor.
    pub(super) name: &'t str,
}

/// The place of an event whose effects are not accepted, and why.
type Refused = (usize, Box<Failure>);

impl LocalTransaction<'_> {
    /// Stores what these events have led to, all of it or nothing.
    async fn store(
        &mut self,
        emitter: &Emitter,
        effects: &[EventEffects],
    ) -> Result<Result<(), Refused>, ProcessorError> {
        let EmissionBatch { now, deferred } = match collect_emissions(emitter, effects) {
            Ok(emissions) => emissions,
            Err(refused) => return Ok(Err(refused)),
        };
        let created_at = self.clock.time_of_events();
        let (places, now): (Vec<usize>, Vec<NewEvent>) =
            now.into_iter().map(|(place, event)| (place, NewEvent { created_at, ..event })).unzip();
        let later = deferred.into_iter().map(|change| self.later(change)).collect();
        match self.unit.emit(now.clone(), later).await {
            Ok(()) => Ok(Ok(())),
            Err(AppendError::Database(error)) => Err(error.into()),
            Err(error) => {
                let culprit = attribute(&error, &now).and_then(|index| places.get(index));
                let place = *culprit.or(places.first()).unwrap_or(&0);
                Ok(Err((place, Box::new(Failure::of_processor(error.to_string())))))
            }
        }
    }

    fn later(&self, change: Deferred) -> Later {
        let reactor = self.name.to_owned();
        match change {
            Deferred::Keep { event, due, key, .. } => {
                let now = self.clock.now();
                let due_at = match due {
                    Due::AtOnce => now,
                    Due::At(time) => time,
                    Due::After(delay) => add(now, delay),
                };
                Later::Keep { reactor, event, key, due_at }
            }
            Deferred::Cancel { key } => Later::Cancel { reactor, key },
        }
    }
}

/// The time after a delay, or the last one that there is.
fn add(now: DateTime<Utc>, delay: std::time::Duration) -> DateTime<Utc> {
    let delay = chrono::TimeDelta::from_std(delay).unwrap_or(chrono::TimeDelta::MAX);
    now.checked_add_signed(delay).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[async_trait]
impl Transaction for LocalTransaction<'_> {
    fn connection(&mut self) -> Result<&mut PgConnection, NoPostgres> {
        Err(NoPostgres)
    }

    async fn has_ended(&mut self) -> Result<bool, sqlx::Error> {
        Ok(false)
    }

    async fn savepoint(&mut self) -> Result<(), sqlx::Error> {
        self.unit.savepoint().await
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error> {
        self.unit.rollback_to_savepoint().await
    }

    async fn begin_event(&mut self) -> Result<(), sqlx::Error> {
        self.unit.begin_event().await
    }

    async fn undo_event(&mut self) -> Result<(), sqlx::Error> {
        // A workflow handles one event at a time.
        self.workflow = WorkflowChanges::default();
        self.unit.undo_event().await
    }

    async fn apply(
        &mut self,
        emitter: &Emitter,
        effects: &[EventEffects],
    ) -> Result<Applied, ProcessorError> {
        let (mut end, mut failure) = (effects.len(), None);
        // What is refused of one event may hide what is refused of an earlier one.
        loop {
            match self.store(emitter, &effects[..end]).await? {
                Ok(()) => return Ok(Applied { events: end, failure }),
                Err((place, why)) => {
                    failure = Some(Box::new(effects[place].source.attribute(*why)));
                    end = place;
                }
            }
        }
    }

    fn stream_aggregate(
        &mut self,
        id: AggregateId,
        upto: Version,
    ) -> BoxStream<'_, Result<Event, sqlx::Error>> {
        let read = self.events.read_aggregate(id, Version::FIRST, Some(upto));
        let upcasts = self.upcasts;
        let read = read.map_err(ReadError::into_database_error);
        read.and_then(move |event| std::future::ready(read_through(event, upcasts))).boxed()
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    async fn read_uuids(&mut self, uuids: &[Uuid]) -> Result<Vec<Event>, sqlx::Error> {
        let events = self.events.read_uuids(uuids).await.map_err(ReadError::into_database_error)?;
        events.into_iter().map(|event| read_through(event, self.upcasts)).collect()
    }

    /// Appends at once: what is stored when the event fails after all is recognised when it is handled again.
    async fn append(&mut self, _: &Emitter, events: Vec<NewEvent>) -> Result<Vec<Appended>, AppendError> {
        let created_at = self.clock.time_of_events();
        let events: Vec<NewEvent> =
            events.into_iter().map(|event| NewEvent { created_at, ..event }).collect();
        self.events.append(&events).await
    }

    async fn load_instance(&mut self, instance: &str) -> Result<Option<WorkflowInstance>, sqlx::Error> {
        match self.workflow.instances.get(instance) {
            Some(changed) => Ok(changed.clone()),
            None => self.ledger.load_instance(self.name, instance).await,
        }
    }

    async fn save_instance(&mut self, instance: WorkflowInstance, done: Uuid) -> Result<(), sqlx::Error> {
        self.workflow.done.push(done);
        self.workflow.instances.insert(instance.instance.clone(), Some(instance));
        Ok(())
    }

    async fn remove_instance(&mut self, instance: &str, done: Uuid) -> Result<(), sqlx::Error> {
        self.workflow.done.push(done);
        self.workflow.instances.insert(instance.to_owned(), None);
        Ok(())
    }

    /// Events wait by their aggregates, as they are read.
    async fn set_aside_behind(&mut self, _: &Event, _: &str) -> Result<bool, sqlx::Error> {
        Ok(false)
    }

    /// No dead letter is handled again.
    async fn retries_failed(&mut self) -> Result<bool, sqlx::Error> {
        Ok(false)
    }

    async fn find_passed_over(&mut self, _: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        Ok(Vec::new())
    }

    async fn find_step(&mut self, step: Step<'_>) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        self.ledger.find_step(self.name, step).await
    }

    async fn record_step(
        &mut self,
        step: Step<'_>,
        result: Box<RawValue>,
    ) -> Result<Box<RawValue>, sqlx::Error> {
        self.ledger.record_step(self.name, step, &result).await
    }
}
