//! One command: checked, looked up, decided, stored, recorded.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use uuid::Uuid;

use super::log::{CommandLog, CommandRecord};
use super::middleware::{Incoming, Middleware};
use super::outcome::{Plan, Receipt, StoredEvent};
use super::unstorable;
use super::{Command, Envelope, Outcome, input};
use crate::aggregate::{Appender, Decide, ExecuteError, Execution, Id, Repository};
use crate::event::{AggregateId, Appended, NewEvent, Version};
use crate::store::{AppendError, EventStore};

/// What all commands are handled with.
pub(super) struct Desk<S> {
    pub(super) repository: Repository<S>,
    pub(super) log: Option<Arc<dyn CommandLog>>,
    pub(super) middleware: Vec<Arc<dyn Middleware>>,
}

/// The result of a command of the type `C`, as the repository has it.
type Result<T, C> = std::result::Result<T, ExecuteError<<<C as Command>::Aggregate as Decide<C>>::Refusal>>;

/// A command that is about to be carried out.
type ExecutionOf<'c, S, C> =
    Execution<'c, S, <C as Command>::Aggregate, <<C as Command>::Aggregate as Decide<C>>::Refusal>;

impl<S: EventStore> Desk<S> {
    /// Handles a command that is valid.
    pub(super) async fn handle<C: Command>(&self, command: C, envelope: Envelope) -> Outcome {
        let id = target(&command);
        let incoming =
            Incoming { name: C::NAME, aggregate_id: id.get(), envelope: &envelope, command: &command };
        for middleware in &self.middleware {
            if let Err(outcome) = middleware.check(&incoming).await {
                return outcome;
            }
        }
        match self.carry_out(&command, &envelope).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn carry_out<C: Command>(
        &self,
        command: &C,
        envelope: &Envelope,
    ) -> std::result::Result<Outcome, Outcome> {
        let note = Note::new(command, envelope)?;
        if let Some(recorded) = self.find_recorded(command, &note).await? {
            return Ok(recorded);
        }
        // No record could keep it, also that of a refusal.
        if let Some(error) =
            self.log.as_ref().and_then(|_| unstorable::find_in(&note.body, &envelope.metadata))
        {
            return Ok(Outcome::invalid([error]));
        }
        hash(command).await?;
        let outcome = match (&self.log, envelope.dry_run) {
            (_, true) => self.plan(command, &note).await,
            (Some(log), false) => self.execute_recorded(command, &note, &**log).await,
            (None, false) => note.executed::<C>(self.execution(command, &note)?.await),
        };
        match outcome {
            // The same command, or another one of its id, was recorded by another caller since.
            outcome if may_be_recorded(&outcome) => {
                Ok(self.find_recorded(command, &note).await?.unwrap_or(outcome))
            }
            Outcome::Invalid { errors } => {
                Ok(Outcome::invalid(unstorable::locate(errors, &note.body, &note.aggregate_id)))
            }
            outcome => Ok(outcome),
        }
    }

    fn execution<'c, C: Command>(
        &'c self,
        command: &'c C,
        note: &Note<'c>,
    ) -> std::result::Result<ExecutionOf<'c, S, C>, Outcome> {
        let envelope = note.envelope;
        let mut execution = self.repository.execute(&target(command), command);
        execution = match envelope.command_id {
            Some(id) => execution.command_id(id),
            None => execution.new_command_id(note.command_id),
        };
        if let Some(version) = envelope.expected_version {
            execution = execution.expecting(version);
        }
        if envelope.must_exist {
            execution = execution.existing();
        }
        if let Some(id) = envelope.correlation_id {
            execution = execution.correlation_id(id);
        }
        if let Some(id) = envelope.causation_id {
            execution = execution.causation_id(id);
        }
        execution.metadata(&envelope.metadata).map_err(|error| Outcome::failed(&error))
    }

    async fn plan<C: Command>(&self, command: &C, note: &Note<'_>) -> Outcome {
        match self.execution(command, note) {
            Ok(execution) => execution
                .dry_run()
                .await
                .map_or_else(Outcome::from, |planned| Outcome::Planned(Plan::of(planned))),
            Err(outcome) => outcome,
        }
    }

    async fn execute_recorded<C: Command>(
        &self,
        command: &C,
        note: &Note<'_>,
        log: &dyn CommandLog,
    ) -> Outcome {
        let recorder = Recorder { note, log, store: self.repository.store() };
        let execution = match self.execution(command, note) {
            Ok(execution) => execution.stored_by(&recorder),
            Err(outcome) => return outcome,
        };
        let outcome = note.executed::<C>(execution.await);
        match &outcome {
            Outcome::Refused(_) => self.record_refusal(command, note, log, outcome).await,
            _ => outcome,
        }
    }

    async fn record_refusal<C: Command>(
        &self,
        command: &C,
        note: &Note<'_>,
        log: &dyn CommandLog,
        outcome: Outcome,
    ) -> Outcome {
        match log.record(&note.record(outcome.clone())).await {
            Ok(true) => outcome,
            Ok(false) => {
                let found = self.find_recorded(command, note).await;
                found.map_or_else(|error| error, |found| found.unwrap_or(outcome))
            }
            Err(error) => Outcome::unavailable(&error),
        }
    }

    /// The answer that the command got before, if it is recorded.
    async fn find_recorded<C: Command>(
        &self,
        command: &C,
        note: &Note<'_>,
    ) -> std::result::Result<Option<Outcome>, Outcome> {
        let (Some(log), Some(command_id)) = (&self.log, note.envelope.command_id) else { return Ok(None) };
        let found = log.find(command_id).await.map_err(|error| Outcome::unavailable(&error))?;
        Ok(found.map(|record| {
            let is_of_it = record.name == note.name && record.aggregate_id == note.aggregate_id;
            match is_of_it && is_repetition(command, &record) {
                true => record.outcome.repeated(),
                false => Outcome::CommandIdReused { command_id },
            }
        }))
    }
}

/// Whether this is the command that was recorded, as far as the record tells.
///
/// The record is read as the command is now, so that a field that has come since has its default, and one that was renamed its
/// alias. What can be read so no more was recorded by an earlier version, and is not held against the command.
fn is_repetition<C: Command>(command: &C, record: &CommandRecord) -> bool {
    serde_json::from_value::<C>(record.body.clone()).map_or(true, |recorded| command.repeats(&recorded))
}

/// Whether there may be a record of the id that nobody has seen yet: the events of the id were found, or stood in the way.
fn may_be_recorded(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(_) | Outcome::Executed(Receipt { repeated: true, .. }))
}

/// The aggregate that a command names. What decides is stored under uuids, which are the same in upper case.
fn target<C: Command>(command: &C) -> Id<C::Aggregate> {
    let id = command.aggregate_id();
    match id.get().as_uuid() {
        None => Uuid::parse_str(&id.to_string()).map_or(id, Id::new),
        Some(_) => id,
    }
}

/// Hashes the secrets of a command, if it has any.
async fn hash<C: Command>(command: &C) -> std::result::Result<(), Outcome> {
    let secrets = command.secrets();
    if secrets.is_empty() {
        return Ok(());
    }
    let hash = move || secrets.iter().try_for_each(|secret| secret.hashed().map(drop));
    match tokio::task::spawn_blocking(hash).await {
        Ok(hashed) => hashed.map_err(|error| Outcome::failed(&error)),
        Err(error) => Err(Outcome::failed(&error)),
    }
}

/// What is known of a command before it is decided.
struct Note<'c> {
    name: &'static str,
    aggregate_id: AggregateId,
    body: serde_json::Value,
    envelope: &'c Envelope,
    command_id: Uuid,
}

impl<'c> Note<'c> {
    fn new<C: Command>(command: &C, envelope: &'c Envelope) -> std::result::Result<Self, Outcome> {
        let body = input::to_json(command).map_err(|error| Outcome::failed(&error))?;
        let aggregate_id = target(command).get().clone();
        let command_id = envelope.command_id.unwrap_or_else(Uuid::new_v4);
        Ok(Self { name: C::NAME, aggregate_id, body, envelope, command_id })
    }

    fn record(&self, outcome: Outcome) -> CommandRecord {
        CommandRecord {
            command_id: self.command_id,
            name: self.name.to_owned(),
            aggregate_id: self.aggregate_id.clone(),
            body: self.body.clone(),
            metadata: self.envelope.metadata.clone(),
            outcome,
            at: Utc::now(),
        }
    }

    /// The answer to a command that the repository has carried out, or not.
    fn executed<C: Command>(&self, executed: Result<crate::aggregate::Executed<C::Aggregate>, C>) -> Outcome {
        match executed {
            Ok(executed) => Outcome::Executed(self.signed(Receipt::of(&executed))),
            Err(error) => error.into(),
        }
    }

    fn signed(&self, receipt: Receipt) -> Receipt {
        let (command_id, aggregate_id) = (Some(self.command_id), Some(self.aggregate_id.clone()));
        Receipt { command_id, aggregate_id, ..receipt }
    }

    /// The answer to a command whose events are stored so.
    fn receipt(&self, events: &[NewEvent], appended: &[Appended], seen: Version) -> Receipt {
        let stored = events.iter().zip(appended);
        self.signed(Receipt {
            command_id: None,
            aggregate_id: None,
            version: Some(appended.last().map_or(seen, |last| last.version)),
            events: stored
                .map(|(new, place)| StoredEvent::new(*place, Some(new.event_type.clone())))
                .collect(),
            repeated: false,
        })
    }
}

/// Stores the events of a command together with its record.
struct Recorder<'c> {
    note: &'c Note<'c>,
    log: &'c dyn CommandLog,
    /// Where the events belong.
    store: &'c dyn EventStore,
}

#[async_trait]
impl Appender for Recorder<'_> {
    async fn append(
        &self,
        events: &[NewEvent],
        seen: Version,
    ) -> std::result::Result<Vec<Appended>, AppendError> {
        let complete = |appended: &[Appended]| {
            self.note.record(Outcome::Executed(self.note.receipt(events, appended, seen)))
        };
        self.log.append_to(self.store, events, &complete).await
    }
}
