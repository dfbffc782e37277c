//! The transaction in which effects and position are committed.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres, Row as _, Transaction};
use uuid::Uuid;

use super::misuse::{ended, find_misuse, is_marked, mark_transaction};
use crate::event::{AggregateId, Event, Position, Version};
use crate::postgres::quote::{quote_identifier, quote_literal};
use crate::postgres::server_mark;
use crate::postgres::sqlstate::{is_foreign_write, is_infrastructure_error};
use crate::processing::dead_letters::DeadLetters;
use crate::processing::emission::SourceEvent;
use crate::processing::failure::Failure;
use crate::processing::processor::{
    Batch, BatchRequest, Delivery, Events, ProcessorBase, ProcessorError, Work,
};
use crate::processing::progress::Progress;
use crate::processing::tracker::{Advance, CheckError, Checks, read_witness};
use crate::store::upcast::UpcastFailure;
use crate::store::witness::{Trail, Witness};
use crate::store::{EventStore as _, ReadError, read_uuids_on, stream_aggregate_on};

/// Whom a transaction blames that cannot commit what handlers have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blames {
    Handlers,
    Nobody,
}

/// An open transaction that holds the tracker locked under the claim. If it is dropped without [`Self::finish`], it is rolled
/// back.
pub(crate) struct BatchTransaction<'t> {
    transaction: Transaction<'t, Postgres>,
    base: &'t ProcessorBase,
    request: &'t BatchRequest<'t>,
    /// Whether any event of the processor is set aside, so that others may have to wait behind it.
    parking: bool,
    /// Events up to this position were handled before a reset,
    silent_until: Position,
    /// but not these, in order, which were dead letters.
    never_handled: Vec<Position>,
    /// What the store has to say still, so that it is the one that was followed.
    witness: Option<Witness>,
    /// The partitions that the table of events has to have still; `None`: none are known.
    partitions: Option<Vec<i64>>,
    /// The witnesses of what [`Self::read`] has read.
    trail: Trail,
    /// The event that was read, if it was one alone.
    only_event: Option<SourceEvent>,
    /// The events that were read and are dead letters, or have to wait behind one.
    set_aside: Vec<Position>,
    /// Whether anything beside the tracker may have been written.
    may_have_written: bool,
    /// Whether a handler has had the connection, and so may have ended the transaction.
    handed_out: bool,
}

/// The events of a request, as they were read.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The events that are to be handled.
    pub(crate) deliveries: Vec<Delivery>,
    /// The last position that was looked at.
    pub(crate) upto: Position,
    /// The witnesses of what was read.
    pub(crate) trail: Trail,
    /// The other events, which are dead letters, or have to wait behind one.
    pub(crate) set_aside: Vec<Position>,
}

impl<'t> BatchTransaction<'t> {
    /// Begins the transaction and locks the tracker. `None`: the claim is no longer valid, or the processor is paused.
    ///
    /// The server ends the session after `idle_max` without a statement, because a process that was frozen meanwhile would
    /// hold the tracker for ever.
    pub(crate) async fn open(
        connection: &'t mut PgConnection,
        base: &'t ProcessorBase,
        request: &'t BatchRequest<'t>,
        idle_max: Duration,
    ) -> Result<Option<Self>, ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(request.mark)).await?;
        // A dead letter is handled wherever the position is.
        let what = match request.dead_letter() {
            None => format!("at_position => {}", request.claim.position),
            Some(id) => format!("dead_letter => {id}"),
        };
        let statement = format!(
            "-- lock_tracker
             set local lock_timeout = '30s';
             set local idle_in_transaction_session_timeout = {idle};
             {mark};
             select silent_until, parking, witness_at, witness_id, witness_uuid, events_partitions,
               (select t.never_handled from {trackers} as t where {is_tracker}) as never_handled, {meaning}
             from {schema}.lock_tracker({key}, epoch => {epoch}, {what})
             where {server}",
            trackers = base.trackers().table(),
            is_tracker = request.claim.key.is_tracker(),
            schema = quote_identifier(&base.schema),
            key = request.claim.key.arguments(),
            meaning = base.scope.set_local(),
            idle = idle_max.as_millis(),
            mark = mark_transaction(request.claim.epoch),
            epoch = request.claim.epoch,
            server = request.claim.is_same_server(),
        );
        let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_optional(&mut *transaction).await?;
        let Some(row) = row else { return Ok(None) };
        // An operator may have discarded the dead letter meanwhile.
        let Some(silent_until) = row.try_get("silent_until")? else { return Ok(None) };
        let parking = row.try_get("parking")?;
        let (witness, trail) = (read_witness(&row)?, Trail::default());
        let partitions = row.try_get("events_partitions")?;
        let never_handled: Option<Vec<Position>> = row.try_get("never_handled")?;
        Ok(Some(Self {
            transaction,
            base,
            request,
            parking,
            silent_until,
            never_handled: never_handled.unwrap_or_default(),
            witness,
            partitions,
            trail,
            only_event: None,
            set_aside: Vec::new(),
            may_have_written: false,
            handed_out: false,
        }))
    }

    /// What the processor is made of.
    pub(crate) fn base(&self) -> &'t ProcessorBase {
        self.base
    }

    /// The connection on which the transaction is open. Whoever asks for it may write, so the commit waits for the disk.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.may_have_written = true;
        &mut self.transaction
    }

    /// The connection for a handler, which may do with it what it likes. Whether it has left the transaction as it was is asked
    /// before the position moves.
    pub(crate) fn hand_out(&mut self) -> &mut PgConnection {
        self.handed_out = true;
        self.connection()
    }

    /// The condition that no handler has ended the transaction.
    pub(crate) fn is_open(&self) -> String {
        is_marked(self.request.claim.epoch)
    }

    /// Whether a handler has ended the transaction, so that the next statement may be one of its own.
    pub(crate) async fn has_ended(&mut self) -> Result<bool, sqlx::Error> {
        if !self.handed_out {
            return Ok(false);
        }
        let statement = format!("-- examine_transaction\nselect ({}) is not true", self.is_open());
        sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(&mut *self.transaction).await?.try_get(0)
    }

    /// Reads the requested events. Returns those that are to be handled, and the last position that was looked at. Events that
    /// have to wait behind a dead letter are set aside in this transaction.
    pub(crate) async fn read(&mut self) -> Result<(Vec<Delivery>, Position), ProcessorError> {
        let Reading { deliveries, upto, trail, .. } = self.read_as(self.request, None).await?;
        self.trail = trail;
        Ok((deliveries, upto))
    }

    /// As [`Self::read`], for another request: a processor that runs ahead reads beyond the position. It knows a later
    /// `witness` than the tracker, as soon as it has read anything.
    pub(crate) async fn read_as(
        &mut self,
        request: &BatchRequest<'_>,
        witness: Option<Witness>,
    ) -> Result<Reading, ProcessorError> {
        let batch = self.read_batch(request, witness.or(self.witness)).await?;
        self.accept(batch).await
    }

    /// Reads what comes after a request, from the store that has the witness of what was read last. Nothing is set aside yet.
    pub(super) async fn read_unchecked(
        &mut self,
        request: &BatchRequest<'_>,
    ) -> Result<Batch, ProcessorError> {
        let witness = self.trail.last().or(self.witness);
        self.base.read_batch(&mut self.transaction, request, witness, self.partitions.as_deref()).await
    }

    /// Whether the store has what the tracker remembers of it, and all events of a batch that was read before.
    pub(super) async fn still_has(&mut self, batch: &Batch) -> Result<bool, ProcessorError> {
        let (after, partitions) = (self.request.after(), self.partitions.as_deref());
        self.base.still_has(&mut self.transaction, batch, after, self.witness, partitions).await
    }

    /// What the batch is about.
    pub(super) fn request(&self) -> &'t BatchRequest<'t> {
        self.request
    }

    /// Takes note of the witnesses of what this batch handles.
    pub(super) fn set_trail(&mut self, trail: Trail) {
        self.trail = trail;
    }

    /// Makes events that were read ready for the handler, except for those that are set aside.
    pub(super) async fn accept(&mut self, mut batch: Batch) -> Result<Reading, ProcessorError> {
        let set_aside = self.set_aside_behind(&mut batch).await?;
        self.set_aside.extend(&set_aside);
        let deliveries: Vec<Delivery> = batch.events.into_iter().map(|event| self.deliver(event)).collect();
        self.only_event = match deliveries.as_slice() {
            [delivery] => Some(SourceEvent::of(delivery)),
            _ => None,
        };
        Ok(Reading { deliveries, upto: batch.upto, trail: batch.trail, set_aside })
    }

    async fn read_batch(
        &mut self,
        request: &BatchRequest<'_>,
        witness: Option<Witness>,
    ) -> Result<Batch, ProcessorError> {
        if !self.base.events.layout().may_be_unreadable() {
            return self
                .base
                .read_batch(&mut self.transaction, request, witness, self.partitions.as_deref())
                .await;
        }
        self.savepoint().await?;
        match self.base.read_batch(&mut self.transaction, request, witness, self.partitions.as_deref()).await
        {
            Err(ProcessorError::Database(error))
                if !is_infrastructure_error(&error) || UpcastFailure::is_cause_of(&error) =>
            {
                self.rollback_to_savepoint().await?;
                let (transaction, partitions) = (&mut self.transaction, self.partitions.as_deref());
                self.base.read_before_unreadable(transaction, request, witness, partitions, &error).await
            }
            read => read,
        }
    }

    /// Makes an event ready for the handler.
    pub(crate) fn deliver(&self, event: Event) -> Delivery {
        let replaying = event.id <= self.silent_until && self.never_handled.binary_search(&event.id).is_err();
        Delivery { event, replaying }
    }

    /// Takes the events out of a batch that must not be handled now: dead letters, and events behind a dead letter of their
    /// aggregate. Returns them.
    async fn set_aside_behind(&mut self, batch: &mut Batch) -> Result<Vec<Position>, sqlx::Error> {
        if !self.parking || self.request.dead_letter().is_some() || batch.events.is_empty() {
            return Ok(Vec::new());
        }
        let dead_letters = DeadLetters::new(&self.base.trackers());
        let key = &self.request.claim.key;
        if self.base.is_workflow {
            // Only its handler knows which instance an event belongs to.
            let known = dead_letters.find_among(&mut self.transaction, key, &batch.events).await?;
            batch.events.retain(|event| known.binary_search(&event.id).is_err());
            return Ok(known);
        }
        let waiting = dead_letters.set_aside_waiting(&mut self.transaction, key, &batch.events).await?;
        self.may_have_written |= !waiting.is_empty();
        batch.events.retain(|event| waiting.binary_search(&event.id).is_err());
        Ok(waiting)
    }

    /// Sets an event aside that must not overtake a dead letter of its instance of a workflow. Returns whether there is one.
    pub(crate) async fn set_aside_behind_instance(
        &mut self,
        event: &Event,
        instance: &str,
    ) -> Result<bool, sqlx::Error> {
        if !self.parking || self.request.dead_letter().is_some() {
            return Ok(false);
        }
        let dead_letters = DeadLetters::new(&self.base.trackers());
        let key = &self.request.claim.key;
        let waits =
            dead_letters.set_aside_behind_instance(&mut self.transaction, key, event, instance).await?;
        self.may_have_written |= waits;
        Ok(waits)
    }

    /// Whether the request is about a dead letter whose event had failed, and did not only wait behind another one.
    pub(crate) async fn is_of_failed_dead_letter(&mut self) -> Result<bool, sqlx::Error> {
        let Some(event_id) = self.request.dead_letter() else { return Ok(false) };
        let (dead_letters, key) = (DeadLetters::new(&self.base.trackers()), &self.request.claim.key);
        Ok(dead_letters.find_set_aside(&mut *self.transaction, key, event_id).await?.is_some())
    }

    /// Those of the stored events with these uuids that the position is beyond and that are no dead letters, while the event of a dead
    /// letter is handled: they never come again.
    pub(crate) async fn find_passed_over(&mut self, uuids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        if self.request.dead_letter().is_none() || uuids.is_empty() {
            return Ok(Vec::new());
        }
        let position = self.request.claim.position;
        let mut stored = self.read_uuids(uuids).await?;
        stored.retain(|event| event.id <= position);
        let (dead_letters, key) = (DeadLetters::new(&self.base.trackers()), &self.request.claim.key);
        let to_come = dead_letters.find_among(&mut self.transaction, key, &stored).await?;
        stored.retain(|event| !to_come.contains(&event.id));
        Ok(stored.into_iter().map(|event| event.uuid).collect())
    }

    /// Opens a savepoint.
    pub(crate) async fn savepoint(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("savepoint espd_savepoint").execute(&mut *self.transaction).await.map(drop)
    }

    /// Undoes what was done since the last savepoint.
    pub(crate) async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("rollback to savepoint espd_savepoint").execute(&mut *self.transaction).await.map(drop)
    }

    /// Releases the last savepoint: what was done since belongs to the transaction.
    pub(crate) async fn release_savepoint(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("release savepoint espd_savepoint").execute(&mut *self.transaction).await.map(drop)
    }

    /// Opens the savepoint of one event, so that what the event does can be undone.
    pub(crate) async fn begin_event(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("savepoint espd_event").execute(&mut *self.transaction).await.map(drop)
    }

    /// Undoes what was done since [`Self::begin_event`].
    pub(crate) async fn undo_event(&mut self) -> Result<(), sqlx::Error> {
        sqlx::raw_sql("rollback to savepoint espd_event").execute(&mut *self.transaction).await.map(drop)
    }

    /// Streams the events of an aggregate up to a version, ordered by version.
    pub(crate) fn stream_aggregate(
        &mut self,
        id: AggregateId,
        upto: Version,
    ) -> BoxStream<'_, Result<Event, sqlx::Error>> {
        match &self.base.events {
            Events::SameDatabase(layout) => stream_aggregate_on(&mut self.transaction, layout, id, upto),
            Events::Elsewhere(store) => {
                let read = store.read_aggregate(id, Version::FIRST, Some(upto));
                read.map_err(ReadError::into_database_error).boxed()
            }
        }
    }

    /// Reads the events with these uuids, those of this transaction included.
    pub(crate) async fn read_uuids(&mut self, uuids: &[Uuid]) -> Result<Vec<Event>, sqlx::Error> {
        match &self.base.events {
            Events::SameDatabase(layout) => read_uuids_on(&mut self.transaction, layout, uuids).await,
            Events::Elsewhere(store) => store.read_uuids(uuids).await.map_err(ReadError::into_database_error),
        }
    }

    /// A call that refuses to commit where a table of another processor was written, by whatever means.
    fn refuse_foreign_writes(&self) -> String {
        format!(
            "{}.refuse_foreign_writes({}, {})",
            quote_identifier(&self.base.schema),
            quote_literal(self.base.name()),
            self.request.claim.epoch
        )
    }

    /// What the transaction is asked before it commits. Programs and requests cannot end it.
    fn checks(&self, handled: i32) -> Checks {
        let is_written = self.may_have_written && handled > 0;
        Checks {
            constraints: self.may_have_written,
            condition: self.handed_out.then(|| self.is_open()),
            call: is_written.then(|| self.refuse_foreign_writes()),
        }
    }

    /// What it means that the batch cannot be committed.
    fn refused(&mut self, error: CheckError, blames: Blames) -> ProcessorError {
        match error {
            CheckError::Uncommittable(error) if blames == Blames::Handlers => {
                self.failed(find_misuse(&error).unwrap_or_else(|| Failure::of_database(&error)))
            }
            CheckError::Database(error) if is_foreign_write(&error) => {
                self.failed(Failure::of_database(&error))
            }
            CheckError::Uncommittable(error) | CheckError::Database(error) => error.into(),
        }
    }

    /// The error of a batch whose handler has ended the transaction.
    pub(crate) fn ended(&mut self) -> ProcessorError {
        self.failed(ended())
    }

    /// The error of a batch that has failed for this reason. If it had one event, that is the one.
    pub(crate) fn failed(&mut self, failure: Failure) -> ProcessorError {
        let failure = match self.only_event.take() {
            Some(event) => event.attribute(failure),
            None => failure,
        };
        ProcessorError::Unattributed(Box::new(failure))
    }

    /// Lets the commit be acknowledged before it is on disk. If it is lost in a crash, the same events are passed again.
    async fn allow_to_be_lost(&mut self) -> Result<(), sqlx::Error> {
        let statement = "-- allow_to_be_lost\nset local synchronous_commit = off";
        sqlx::raw_sql(statement).execute(&mut *self.transaction).await.map(drop)
    }

    /// Moves the tracker, or removes the dead letter that was handled, and commits.
    ///
    /// # Errors
    /// [`ProcessorError::Unattributed`] if what handlers have done cannot be committed: then batches get smaller until the event
    /// is alone in one.
    pub(crate) async fn finish(self, progress: Progress<'_>) -> Result<(), ProcessorError> {
        let witness = self.trail.upto(progress.position);
        self.conclude(progress, witness, Blames::Handlers).await
    }

    /// As [`Self::finish`], with the witness of what was read before this transaction. Smaller batches would not help.
    pub(crate) async fn finish_with(
        self,
        progress: Progress<'_>,
        witness: Option<Witness>,
    ) -> Result<(), ProcessorError> {
        self.conclude(progress, witness, Blames::Nobody).await
    }

    async fn conclude(
        mut self,
        progress: Progress<'_>,
        witness: Option<Witness>,
        blames: Blames,
    ) -> Result<(), ProcessorError> {
        let BatchRequest { claim, work, lease, .. } = *self.request;
        let checks = self.checks(progress.handled);
        match work {
            Work::DeadLetter(event_id) => {
                if self.may_have_written {
                    let checked = checks.select(&mut self.transaction, "check_batch", "true").await;
                    if checked.map_err(|error| self.refused(error, blames))?.is_none() {
                        return Err(self.ended());
                    }
                }
                DeadLetters::new(&self.base.trackers())
                    .remove(&mut self.transaction, &claim.key, event_id)
                    .await?;
            }
            Work::Batch { upto, rate } => {
                // They are done as far as the position is concerned, like those that are handled.
                let passed = self.set_aside.iter().filter(|id| **id <= progress.position).count();
                let handled = progress.handled.saturating_add(i32::try_from(passed).unwrap_or(i32::MAX));
                let progress = Progress { handled, ..progress };
                let caught_up = !progress.failing && progress.position >= upto;
                let advance = Advance { progress, caught_up, lease, rate, witness, checks };
                let advancing = self.base.trackers().advance(&mut self.transaction, claim, advance).await;
                match advancing.map_err(|error| self.refused(error, blames))? {
                    Some(true) => {}
                    Some(false) => return Err(ProcessorError::ClaimLost),
                    None => return Err(self.ended()),
                }
                if progress.is_idle() && !self.may_have_written {
                    self.allow_to_be_lost().await?;
                }
            }
        }
        Ok(self.transaction.commit().await?)
    }
}
