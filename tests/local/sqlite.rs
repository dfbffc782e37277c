//! The event store in one file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use espd::native::Effect;
use espd::prelude::*;
use espd::store::{SqliteEventStore, SqliteOpenError, conformance};
use espd::testing::LocalProgram;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
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

/// Opens a file that another program has made, and returns why it is refused.
async fn refusal(file: &std::path::Path, statements: &str) -> String {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    let mut other = options.connect().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&mut other).await.unwrap();
    let refused = SqliteEventStore::open(file).await.unwrap_err();
    assert!(matches!(refused, SqliteOpenError::Foreign { .. }), "{refused:?}");
    let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&mut other).await.unwrap();
    assert_eq!(mode, "delete", "the file is as it was");
    refused.to_string()
}

#[tokio::test]
async fn a_file_of_another_program_is_refused_whatever_its_tables_are_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for (name, statements, what) in [
        ("a.db", "create table events (id); pragma user_version = 1", "user_version 1"),
        ("b.db", "create table notes (id); pragma user_version = 1", "user_version 1"),
        ("c.db", "create table EVENTS (id)", "a table `EVENTS`"),
        ("d.db", "create view events as select 1 as id", "a view `events`"),
        ("e.db", "create table espd_positions (id)", "a table `espd_positions`"),
        ("f.db", "create table t (id); create index events_of_correlations on t (id)", "an index `events_of"),
    ] {
        let refused = refusal(&folder.path().join(name), statements).await;
        assert!(refused.contains(what) && refused.ends_with(": use another file"), "{refused}");
    }
}

#[tokio::test]
async fn a_file_with_tables_of_the_application_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.db");
    let mut own =
        SqliteConnectOptions::new().filename(&file).create_if_missing(true).connect().await.unwrap();
    sqlx::raw_sql("create table notes (events, espd_positions)").execute(&mut own).await.unwrap();
    open(&folder).await.append(&[todo("milk")]).await.unwrap();
    assert_eq!(open(&folder).await.latest_id(None).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_no_path_is_refused() {
    for given in [
        "",
        "file:events.db",
        "file::memory:",
        "sqlite::memory:",
        "sqlite://events.db",
        ":memory:?cache=shared",
    ] {
        let refused = SqliteEventStore::open(given).await.unwrap_err();
        assert!(matches!(refused, SqliteOpenError::NoPath { .. }), "{refused:?}");
        assert!(refused.to_string().contains("or `:memory:`"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_programs_may_create_a_file_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let file = folder.path().join(format!("{round}.db"));
        let opening = (0..8).map(|_| tokio::spawn(SqliteEventStore::open(file.clone())));
        for opened in futures_util::future::join_all(opening).await {
            opened.unwrap().unwrap().append(&[todo("milk")]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_lost_its_name_takes_and_gives_nothing_and_is_not_replaced_by_an_empty_one() {
    let delete = |folder: &Path| {
        for file in std::fs::read_dir(folder).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
    };
    let rename = |folder: &Path| std::fs::rename(folder.join("events.db"), folder.join("moved.db")).unwrap();
    let replace = |folder: &Path| {
        rename(folder);
        std::fs::copy(folder.join("moved.db"), folder.join("events.db")).unwrap();
    };
    for (lose, is_replaced) in [(&delete as &dyn Fn(&Path), false), (&rename, false), (&replace, true)] {
        let (store, folder) = store().await;
        store.append(&[todo("milk")]).await.unwrap();
        lose(folder.path());
        let refused = store.append(&[todo("bread")]).await.unwrap_err();
        assert!(!refused.is_transient() && chain(&refused).contains("events.db: it is gone"), "{refused:?}");
        let unread = [
            store.latest_id(None).await.map(drop).unwrap_err(),
            store.read_range(1.into(), 9.into(), None).try_next().await.map(drop).unwrap_err(),
        ];
        for unread in unread {
            assert!(!unread.is_transient() && chain(&unread).contains("events.db: it is gone"), "{unread:?}");
        }
        let is_there = folder.path().join("events.db").exists();
        assert_eq!(is_there, is_replaced, "it is not made anew");
    }
}

/// The way to a file may change, as a link does at a deployment: the store stays the one that was opened.
#[tokio::test]
async fn a_link_that_leads_elsewhere_meanwhile_does_not_change_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (link, other) = (folder.path().join("current.db"), folder.path().join("other.db"));
    SqliteEventStore::open(&other).await.unwrap();
    SqliteEventStore::open(folder.path().join("events.db")).await.unwrap();
    std::os::unix::fs::symlink(folder.path().join("events.db"), &link).unwrap();
    let store = SqliteEventStore::open(&link).await.unwrap();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    // Has it need another connection.
    let kept = store.pool().acquire().await.unwrap();
    store.append(&[todo("milk")]).await.unwrap();
    drop(kept);
    assert_eq!(open(&folder).await.latest_id(None).await.unwrap(), 1);
}

#[tokio::test]
async fn a_damaged_file_is_not_worth_another_attempt() {
    let (store, folder) = store().await;
    store.append(&[todo("milk")]).await.unwrap();
    sqlx::query("pragma wal_checkpoint(truncate)").execute(store.pool()).await.unwrap();
    std::fs::write(folder.path().join("events.db"), "this is text. ".repeat(500)).unwrap();
    let error = store.append(&[todo("bread")]).await.unwrap_err();
    assert!(!error.is_transient() && chain(&error).contains("the file is damaged"), "{}", chain(&error));
    let error = store.latest_id(None).await.unwrap_err();
    assert!(!error.is_transient() && chain(&error).contains("the file is damaged"), "{}", chain(&error));
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_store_in_memory_outlives_calls_that_are_given_up() {
    let store = SqliteEventStore::open(":memory:").await.unwrap();
    let milk = todo("milk");
    store.append(std::slice::from_ref(&milk)).await.unwrap();
    for micros in 0..200 {
        let _ = tokio::time::timeout(Duration::from_micros(micros), store.latest_id(None)).await;
        let _ = store.append(&[todo("bread")]).now_or_never();
        let _ = store.read_range(Position::START, Position::MAX, None).next().now_or_never();
        let found = store.read_uuids(&[milk.uuid]).await.unwrap();
        assert_eq!(found.len(), 1);
    }
}

#[test]
fn a_store_in_memory_outlives_the_runtime_that_it_was_opened_in() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime().block_on(async {
        let store = SqliteEventStore::open(":memory:").await.unwrap();
        store.append(&[todo("milk")]).await.unwrap();
        store
    });
    for id in 2..5 {
        let appended = runtime().block_on(store.append(&[todo("bread")])).unwrap();
        assert_eq!(appended[0].id, id);
    }
}

#[tokio::test]
async fn a_processor_whose_position_was_removed_begins_anew() {
    let (store, _folder) = store().await;
    let notes = Notes::default();
    let mut processors = noting(LocalProgram::new(), "titles", &notes).start(&store).await.unwrap();
    store.append(&[todo("milk")]).await.unwrap();
    for _ in 0..2 {
        processors.drain().await.unwrap();
        assert_eq!(notes.take(), ["titles milk"]);
        sqlx::query("delete from espd_positions").execute(store.pool()).await.unwrap();
    }
}

/// Counts what it has seen, and notes the number.
struct Counting {
    seen: usize,
    notes: Notes,
}

#[async_trait]
impl Projector for Counting {
    async fn project(
        &mut self,
        events: &[Delivery],
        _: &mut ProjectorContext<'_>,
    ) -> Result<(), HandlerError> {
        self.seen += events.len();
        self.notes.add(self.seen.to_string());
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_remembers_nothing_of_a_drain_that_was_given_up() {
    let (store, folder) = store().await;
    let notes = Notes::default();
    let made = notes.clone();
    let registration = Registration::projector("counting").handles::<TodoAdded>();
    let program =
        LocalProgram::new().projector(registration, move || Counting { seen: 0, notes: made.clone() });
    let mut processors = program.start(&store).await.unwrap();
    store.append(&[todo("milk")]).await.unwrap();

    let other = open(&folder).await;
    let writing = other.pool().begin_with("begin immediate").await.unwrap();
    // It is handled, and cannot be committed.
    assert!(tokio::time::timeout(Duration::from_millis(500), processors.drain()).await.is_err());
    assert_eq!(notes.take(), ["1"]);
    writing.rollback().await.unwrap();
    processors.drain().await.unwrap();
    assert_eq!(notes.take(), ["1"]);
}

/// Does what is to be done once a test says so.
struct Mailing {
    notes: Notes,
    may_go_on: Arc<tokio::sync::Semaphore>,
}

#[async_trait]
impl Reactor for Mailing {
    async fn react(&mut self, _: &Delivery, context: &mut ReactorContext<'_>) -> Result<(), HandlerError> {
        context.after_commit(&"mail")
    }

    async fn after_commit(&mut self, effect: &Effect) -> Result<(), HandlerError> {
        self.notes.add(format!("{} begins", effect.event_id));
        self.may_go_on.acquire().await?.forget();
        Ok(())
    }
}

#[tokio::test]
async fn of_many_programs_one_does_what_is_to_be_done_after_a_commit() {
    let (store, folder) = store().await;
    let (notes, may_go_on) = (Notes::default(), Arc::new(tokio::sync::Semaphore::new(0)));
    let program = || {
        let (notes, may_go_on) = (notes.clone(), Arc::clone(&may_go_on));
        let registration = Registration::reactor("mails").handles::<TodoAdded>().after_commit();
        LocalProgram::new().reactor(registration, move || Mailing {
            notes: notes.clone(),
            may_go_on: Arc::clone(&may_go_on),
        })
    };
    let mut one = program().start(&store).await.unwrap();
    let mut other = program().start(&open(&folder).await).await.unwrap();
    store.append(&[todo("milk")]).await.unwrap();
    {
        let mut working = std::pin::pin!(one.drain());
        let mut begun = Vec::new();
        while begun.is_empty() {
            assert!(tokio::time::timeout(Duration::from_millis(10), &mut working).await.is_err());
            begun = notes.take();
        }
        assert_eq!(begun, ["1 begins"]);
        // The other one handles events meanwhile, and does not wait for what the first one does.
        store.append(&[todo("bread")]).await.unwrap();
        let drained = tokio::time::timeout(LONG, other.drain()).await.expect("it ends").unwrap();
        assert_eq!((drained.handled["mails"], notes.take().len()), (1, 0));
        may_go_on.add_permits(1);
        while notes.take() != ["2 begins"] {
            assert!(tokio::time::timeout(Duration::from_millis(10), &mut working).await.is_err());
        }
    }
    // The first one has given up in the middle, so the other does it.
    may_go_on.add_permits(1);
    other.drain().await.unwrap();
    assert_eq!(notes.take(), ["2 begins"]);
}
