//! What processors remember beside their tables: where they are, what is emitted for later, what is to be done after commits.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{AggregateId, NewEvent, Position};
use crate::processing::effects::{EffectQueue, NewEffect};
use crate::processing::failure::FailedEvent;
use crate::processing::tracker::ProcessorKey;
use crate::processing::workflow::{Step, WorkflowInstance};
use crate::store::AppendError;

/// Where a store keeps what processors remember.
#[async_trait]
pub(super) trait Ledger: Debug + Send + Sync {
    /// Has a processor begin at a position, unless it has run before.
    async fn register(&self, key: &ProcessorKey, start: Position) -> Result<(), sqlx::Error>;

    /// How far a processor is, and whose events it sets aside.
    async fn standing(&self, key: &ProcessorKey) -> Result<Standing, sqlx::Error>;

    /// Opens a transaction.
    async fn open_unit(&self) -> Result<Box<dyn Unit + '_>, sqlx::Error>;

    /// What is emitted for later, by the time when it is due.
    async fn pending(&self) -> Result<Vec<Pending>, sqlx::Error>;

    /// Appends an event that was emitted for later, and lets go of it, both or neither: unless another program has appended, replaced
    /// or cancelled it since it was listed.
    async fn append_pending(&self, id: i64, event: NewEvent) -> Result<(), AppendError>;

    /// What a processor still has to do for events that are handled.
    fn effects<'l>(&'l self, processor: &'l str) -> Box<dyn EffectQueue + 'l>;

    /// An instance of a workflow.
    async fn load_instance(
        &self,
        workflow: &str,
        instance: &str,
    ) -> Result<Option<WorkflowInstance>, sqlx::Error>;

    /// The result of a step of a workflow, if it was done.
    async fn find_step(&self, workflow: &str, step: Step<'_>) -> Result<Option<Box<RawValue>>, sqlx::Error>;

    /// Records the result of a step at once, unless one is recorded. Returns what is recorded.
    async fn record_step(
        &self,
        workflow: &str,
        step: Step<'_>,
        result: &RawValue,
    ) -> Result<Box<RawValue>, sqlx::Error>;

    /// Whether that is anything.
    async fn has_effects(&self, processor: &str) -> Result<bool, sqlx::Error>;
}

/// How far a processor is.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// `None`: it has never run.
    pub(super) position: Option<Position>,
    /// The aggregates whose later events wait behind a dead letter.
    pub(super) parked: HashSet<AggregateId>,
}

/// A transaction of a ledger. It is rolled back when it is dropped.
#[async_trait]
pub(super) trait Unit: Send {
    /// Opens a savepoint before events are handled.
    async fn savepoint(&mut self) -> Result<(), sqlx::Error>;

    /// Undoes what was done since the last savepoint.
    async fn rollback_to_savepoint(&mut self) -> Result<(), sqlx::Error>;

    /// Opens the savepoint of one event.
    async fn begin_event(&mut self) -> Result<(), sqlx::Error>;

    /// Undoes what was done since [`Self::begin_event`].
    async fn undo_event(&mut self) -> Result<(), sqlx::Error>;

    /// Stores what was emitted, all or nothing, without what is stored already.
    async fn emit(&mut self, now: Vec<NewEvent>, later: Vec<Later>) -> Result<(), AppendError>;

    /// Moves the position and commits. `false`: nothing was done, because another process has moved it meanwhile.
    async fn commit(self: Box<Self>, commit: Commit<'_>) -> Result<bool, sqlx::Error>;
}

/// What commits with a position.
#[derive(Debug)]
pub(super) struct Commit<'c> {
    pub(super) key: &'c ProcessorKey,
    /// The position so far.
    pub(super) from: Position,
    pub(super) position: Position,
    pub(super) effects: Vec<NewEffect>,
    pub(super) dead_letters: Vec<DeadLetter>,
    pub(super) workflow: WorkflowChanges,
}

/// What has changed in what a workflow remembers.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkflowChanges {
    /// The instances as they are now; `None`: it is forgotten.
    pub(super) instances: HashMap<String, Option<WorkflowInstance>>,
    /// Events whose steps are forgotten.
    pub(super) done: Vec<Uuid>,
}

/// An event that was set aside.
#[derive(Debug, Clone)]
pub(super) struct DeadLetter {
    pub(super) event: FailedEvent,
    pub(super) reason: String,
    /// Whether the later events of its aggregate wait behind it.
    pub(super) blocks: bool,
}

/// A change of what is emitted for later.
#[derive(Debug)]
pub(super) enum Later {
    /// Keep an event, in the place of one that has the same key.
    Keep { reactor: String, event: Box<NewEvent>, key: Option<String>, due_at: DateTime<Utc> },
    /// Let go of the event that has this key.
    Cancel { reactor: String, key: String },
}

/// An event that was emitted for later.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) id: i64,
    pub(super) reactor: String,
    pub(super) event: NewEvent,
    pub(super) key: Option<String>,
    pub(super) due_at: DateTime<Utc>,
}

impl Pending {
    /// Whether a new event of a reactor takes the place of this one.
    pub(super) fn is_replaced_by(&self, reactor: &str, uuid: Uuid, key: Option<&str>) -> bool {
        self.event.uuid != uuid && self.has_key(reactor, key)
    }

    /// Whether this is the event of a reactor that has the key.
    pub(super) fn has_key(&self, reactor: &str, key: Option<&str>) -> bool {
        self.reactor == reactor && key.is_some() && self.key.as_deref() == key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalStore;
    use crate::store::MemoryEventStore;

    /// What another program does between the look at what is due and the append, and what is there in the end.
    async fn append_what_was_listed(store: &LocalStore, meanwhile: Later) -> Vec<NewEvent> {
        let reactor = "reminders".to_owned();
        let keep = |event: NewEvent| Later::Keep {
            reactor: reactor.clone(),
            event: Box::new(event),
            key: Some("milk".to_owned()),
            due_at: Utc::now(),
        };
        let key = ProcessorKey::new("reminders", 1);
        store.ledger.register(&key, Position::START).await.unwrap();
        emit(store, &key, keep(event("Reminder"))).await;
        let listed = store.ledger.pending().await.unwrap().remove(0);
        emit(store, &key, meanwhile).await;
        store.ledger.append_pending(listed.id, listed.event).await.unwrap();
        let left = store.ledger.pending().await.unwrap();
        left.into_iter().map(|pending| pending.event).collect()
    }

    fn event(event_type: &str) -> NewEvent {
        NewEvent::new(Uuid::new_v4(), event_type, RawValue::from_string("{}".to_owned()).unwrap())
    }

    async fn emit(store: &LocalStore, key: &ProcessorKey, later: Later) {
        let mut unit = store.ledger.open_unit().await.unwrap();
        unit.emit(Vec::new(), vec![later]).await.unwrap();
        let commit = Commit {
            key,
            from: Position::START,
            position: Position::START,
            effects: Vec::new(),
            dead_letters: Vec::new(),
            workflow: WorkflowChanges::default(),
        };
        assert!(unit.commit(commit).await.unwrap());
    }

    async fn cancelled_or_replaced_events_are_not_appended(stores: [LocalStore; 2]) {
        let [store, other] = stores;
        let (reactor, key) = ("reminders".to_owned(), "milk".to_owned());
        let cancel = Later::Cancel { reactor: reactor.clone(), key: key.clone() };
        assert!(append_what_was_listed(&store, cancel).await.is_empty());
        assert_eq!(store.events.latest_id(None).await.unwrap(), 0);

        let event = Box::new(event("Another"));
        let replace = Later::Keep { reactor, event, key: Some(key), due_at: Utc::now() };
        assert_eq!(append_what_was_listed(&other, replace).await[0].event_type, "Another");
        assert_eq!(other.events.latest_id(None).await.unwrap(), 0);
    }

    async fn the_first_result_of_a_step_counts(store: LocalStore) {
        let key = ProcessorKey::new("shipping", 1);
        store.ledger.register(&key, Position::START).await.unwrap();
        let step =
            Step { instance: "order", event_id: Position::new(1), event_uuid: Uuid::nil(), name: "pay" };
        for result in ["1", "2"] {
            let result = RawValue::from_string(result.to_owned()).unwrap();
            let recorded = store.ledger.record_step("shipping", step, &result).await.unwrap();
            assert_eq!(recorded.get(), "1");
        }
    }

    #[tokio::test]
    async fn the_first_result_of_a_step_in_memory_counts() {
        the_first_result_of_a_step_counts(LocalStore::from(&MemoryEventStore::new())).await;
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn the_first_result_of_a_step_in_a_file_counts() {
        let store = crate::store::SqliteEventStore::open(":memory:").await.unwrap();
        the_first_result_of_a_step_counts(LocalStore::from(&store)).await;
    }

    #[tokio::test]
    async fn what_was_cancelled_or_replaced_in_memory_is_not_appended() {
        let store = || LocalStore::from(&MemoryEventStore::new());
        cancelled_or_replaced_events_are_not_appended([store(), store()]).await;
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn what_was_cancelled_or_replaced_in_a_file_is_not_appended() {
        let store =
            async || LocalStore::from(&crate::store::SqliteEventStore::open(":memory:").await.unwrap());
        cancelled_or_replaced_events_are_not_appended([store().await, store().await]).await;
    }
}
