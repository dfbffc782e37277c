//! The stores, events and handlers that scenarios are made of.

use std::sync::{Arc, Mutex};

use espd::native::Effect;
use espd::prelude::*;
use espd::testing::{LocalProcessors, LocalProgram, LocalStore};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TodoAdded {
    pub(crate) title: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReminderSent {
    pub(crate) title: String,
}

espd::event_type!(TodoAdded);
espd::event_type!(ReminderSent);

/// A store, as an application and as processors use it.
#[derive(Clone)]
pub(crate) struct TestStore {
    pub(crate) events: Arc<dyn EventStore>,
    pub(crate) local: LocalStore,
    /// Where the file of the store is, which is removed in the end.
    _folder: Option<Arc<tempfile::TempDir>>,
}

/// Runs a scenario on each store, as a test of its own.
macro_rules! on_each_store {
    ($($scenario:ident)+) => {
        mod memory {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(crate::scenario::memory()).await;
            })+
        }

        #[cfg(feature = "sqlite")]
        mod sqlite {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(crate::scenario::sqlite().await).await;
            })+
        }
    };
}
pub(crate) use on_each_store;

pub(crate) fn memory() -> TestStore {
    let store = MemoryEventStore::new();
    TestStore { local: (&store).into(), events: Arc::new(store), _folder: None }
}

#[cfg(feature = "sqlite")]
pub(crate) async fn sqlite() -> TestStore {
    let folder = tempfile::tempdir().unwrap();
    let store = espd::store::SqliteEventStore::open(folder.path().join("events.db")).await.unwrap();
    TestStore { local: (&store).into(), events: Arc::new(store), _folder: Some(Arc::new(folder)) }
}

impl TestStore {
    pub(crate) async fn add(&self, titles: &[&str]) -> Vec<Appended> {
        let added =
            |title: &&str| NewEvent::of(Uuid::new_v4(), &TodoAdded { title: (*title).to_owned() }).unwrap();
        self.events.append(&titles.iter().map(added).collect::<Vec<_>>()).await.unwrap()
    }

    /// Appends todos of one aggregate.
    pub(crate) async fn add_to(&self, aggregate: Uuid, titles: &[&str]) {
        let added =
            |title: &&str| NewEvent::of(aggregate, &TodoAdded { title: (*title).to_owned() }).unwrap();
        self.events.append(&titles.iter().map(added).collect::<Vec<_>>()).await.unwrap();
    }

    pub(crate) async fn all(&self) -> Vec<Event> {
        self.events.read_after(Position::START, None, None, 1_000).await.unwrap()
    }

    pub(crate) async fn start(&self, program: LocalProgram) -> LocalProcessors {
        program.start(self.local.clone()).await.unwrap()
    }
}

/// What handlers have noted, in order.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    pub(crate) fn add(&self, note: impl Into<String>) {
        self.0.lock().unwrap().push(note.into());
    }

    /// What was noted since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A handler that is a closure of the title of an event.
pub(crate) struct OnTitle<F>(pub(crate) F);

#[async_trait]
impl<F: Fn(&str) -> Result<(), HandlerError> + Send + Sync> Projector for OnTitle<F> {
    async fn project(
        &mut self,
        events: &[Delivery],
        _: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        for event in events {
            (self.0)(&title(event)).map_err(|error| event.failed(error))?;
        }
        Ok(())
    }
}

/// A reactor that is a closure.
pub(crate) struct OnEvent<F>(pub(crate) F);

#[async_trait]
impl<F> Reactor for OnEvent<F>
where
    F: Fn(&Delivery, &mut ReactorContext<'_>) -> Result<(), HandlerError> + Send + Sync,
{
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        (self.0)(event, context)
    }

    async fn after_commit(&mut self, _: &Effect) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// The title that an event has, whatever its type.
pub(crate) fn title(event: &Delivery) -> String {
    let body: serde_json::Value = serde_json::from_str(event.body.get()).unwrap();
    body["title"].as_str().unwrap_or("?").to_owned()
}

/// A projector that notes titles, under a name that also is the beginning of each note.
pub(crate) fn noting(program: LocalProgram, name: &'static str, notes: &Notes) -> LocalProgram {
    let notes = notes.clone();
    let registration = Registration::projector(name).handles::<TodoAdded>().handles::<ReminderSent>();
    program.projector(registration, move || {
        let notes = notes.clone();
        OnTitle(move |title: &str| {
            notes.add(format!("{name} {title}"));
            Ok(())
        })
    })
}
