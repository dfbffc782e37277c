//! The event store in one file.

use std::sync::Arc;
use std::time::Duration;

use espd::prelude::*;
use espd::store::{SqliteEventStore, conformance};
use espd::testing::LocalProgram;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tempfile::TempDir;

use crate::scenario::{Notes, ReminderSent, TodoAdded, noting};

/// Longer than anything takes that ends at all.
const LONG: Duration = Duration::from_secs(60);

fn todo(title: &str) -> NewEvent {
    NewEvent::of(Uuid::new_v4(), &TodoAdded { title: title.to_owned() }).unwrap()
}

/// A store in a file, and the folder of the file.
async fn store() -> (SqliteEventStore, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (open(&folder).await, folder)
}

async fn open(folder: &TempDir) -> SqliteEventStore {
    SqliteEventStore::open(folder.path().join("events.db")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_keeps_all_promises() {
    let folder = tempfile::tempdir().unwrap();
    conformance::run(async || {
        let file = folder.path().join(Uuid::new_v4().to_string());
        Arc::new(SqliteEventStore::open(file).await.unwrap()) as Arc<dyn EventStore>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_nowhere_but_in_memory_keeps_all_promises() {
    conformance::run(async || {
        Arc::new(SqliteEventStore::open(":memory:").await.unwrap()) as Arc<dyn EventStore>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_programs_that_write_to_a_file_each_gets_through() {
    let (_, folder) = store().await;
    let aggregate = Uuid::new_v4();
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let other = open(&folder).await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                let event = NewEvent::of(aggregate, &TodoAdded { title: "milk".into() }).unwrap();
                other.append(&[event]).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stored = open(&folder).await.read_after(Position::START, None, None, 100).await.unwrap();
    let places: Vec<(i64, i64)> = stored.iter().map(|event| (event.id.get(), event.version.get())).collect();
    assert_eq!(places, (1..=40).map(|number| (number, number)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_follows_this_program_and_others() {
    let (store, folder) = store().await;
    store.append(&[todo("before")]).await.unwrap();
    let types = ["TodoAdded".to_owned()];
    let mut all = store.subscribe(Some(&types), Some(Position::START));
    let mut new = store.subscribe(None, None);
    assert_eq!(next(&mut all).await, (1.into(), "before".into()));
    assert!(new.next().now_or_never().is_none());
    // The stream of what comes now has begun once it knows where that is.
    while new.position() == 0 {
        assert!(tokio::time::timeout(Duration::from_millis(20), new.next()).await.is_err());
    }

    store.append(&[todo("own")]).await.unwrap();
    let reminder = NewEvent::of(Uuid::new_v4(), &ReminderSent { title: "other type".into() }).unwrap();
    open(&folder).await.append(&[reminder, todo("of another program")]).await.unwrap();
    assert_eq!(next(&mut all).await, (2.into(), "own".into()));
    assert_eq!(next(&mut all).await, (4.into(), "of another program".into()));
    assert_eq!(next(&mut new).await.0, 2);
    assert_eq!(next(&mut new).await, (3.into(), "other type".into()));
    let mut again = store.subscribe(Some(&types), Some(all.position().previous()));
    assert_eq!(next(&mut again).await.0, 4);
}

async fn next(events: &mut EventStream) -> (Position, String) {
    let event = tokio::time::timeout(LONG, events.try_next()).await.expect("an event").unwrap().unwrap();
    let body: serde_json::Value = serde_json::from_str(event.body.get()).unwrap();
    (event.id, body["title"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_appended_is_told_to_the_hook() {
    let (store, _folder) = store().await;
    let notes = Notes::default();
    let hook = notes.clone();
    let store =
        store.on_appended(move |events| events.iter().for_each(|event| hook.add(event.id.to_string())));
    store.append(&[todo("a"), todo("b")]).await.unwrap();
    assert_eq!(notes.take(), ["1", "2"]);
}

#[tokio::test]
async fn processors_go_on_where_they_were_before_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::default();
    let daily = || {
        let registration = Registration::reactor("daily").handles::<TodoAdded>().emits::<ReminderSent>();
        noting(LocalProgram::new(), "titles", &notes).reactor(registration, || Daily)
    };
    {
        let store = open(&folder).await;
        let mut processors = daily().start(&store).await.unwrap();
        store.append(&[todo("milk")]).await.unwrap();
        assert_eq!(processors.drain().await.unwrap().later.len(), 1);
        store.append(&[todo("bread")]).await.unwrap();
    }
    assert_eq!(notes.take(), ["titles milk"]);

    let store = open(&folder).await;
    let mut processors = daily().start(&store).await.unwrap();
    assert_eq!(processors.position("titles").await.unwrap(), Some(1.into()));
    let drained = processors.advance(Duration::from_secs(2 * 86_400)).await.unwrap();
    assert_eq!((drained.position, drained.later.len()), (4.into(), 0));
    assert_eq!(notes.take(), ["titles bread", "titles daily", "titles daily"]);
}

struct Daily;

#[async_trait]
impl Reactor for Daily {
    async fn react(
        &mut self,
        event: &Delivery,
        context: &mut ReactorContext<'_>,
    ) -> Result<(), HandlerError> {
        let day = Duration::from_secs(86_400);
        context.emit_after(day, None, &event.aggregate_id, &ReminderSent { title: "daily".into() })
    }
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |name: &str| {
        let error = SqliteEventStore::open(folder.path().join(name)).await.unwrap_err().to_string();
        assert!(error.contains(name), "the file is named: {error}");
        error
    };
    assert!(refused("no/such/folder.db").await.contains("does the folder exist"));
    std::fs::write(folder.path().join("text.db"), "this is text. ".repeat(500)).unwrap();
    assert!(refused("text.db").await.contains("it is no file of SQLite"));

    let (store, other) = store().await;
    sqlx::query("pragma user_version = 7").execute(store.pool()).await.unwrap();
    let newer = SqliteEventStore::open(other.path().join("events.db")).await.unwrap_err().to_string();
    assert!(newer.contains("its user_version is 7"), "{newer}");
    sqlx::query("pragma user_version = 0").execute(store.pool()).await.unwrap();
    let foreign = SqliteEventStore::open(other.path().join("events.db")).await.unwrap_err().to_string();
    assert!(foreign.contains("it has a table `events` already"), "{foreign}");
}
