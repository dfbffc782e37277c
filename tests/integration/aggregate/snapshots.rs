//! Snapshots: the same state with and without, whatever has become of the stream.

use espd::aggregate::{
    MemorySnapshots, PostgresSnapshots, Snapshot, SnapshotFormat, SnapshotKey, SnapshotStore,
};
use espd::prelude::*;
use espd::store::ReadError;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgPool;

use super::{AccountEvent, MoneyAdded, MoneyDrawn};
use crate::store::store;
use crate::support::program::Installation;

/// An account with snapshots in the format `FORMAT`, after every `EVERY` events.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Account<const FORMAT: u32, const EVERY: u32> {
    balance: i64,
    changes: u32,
}

impl<const FORMAT: u32, const EVERY: u32> Aggregate for Account<FORMAT, EVERY> {
    type Event = AccountEvent;

    fn snapshots() -> Option<SnapshotFormat<Self>> {
        Some(SnapshotFormat::json("account", FORMAT).every(EVERY))
    }

    fn evolve(&mut self, event: &AccountEvent) {
        self.changes += 1;
        self.balance += match event {
            AccountEvent::MoneyAdded(added) => i64::from(added.amount),
            AccountEvent::MoneyDrawn(drawn) => -i64::from(drawn.amount),
        };
    }
}

type Often = Account<1, 3>;

async fn repositories() -> (PgPool, Repository<PostgresEventStore>, Repository<PostgresEventStore>) {
    let (pool, postgres) = store().await;
    let snapshots = PostgresSnapshots::of(&postgres).unwrap();
    (pool, Repository::new(postgres.clone()), Repository::new(postgres).with_snapshots(snapshots))
}

async fn record<A: Aggregate<Event = AccountEvent>>(
    repository: &Repository<PostgresEventStore>,
    id: &Id<A>,
    events: Vec<AccountEvent>,
) {
    repository.decide(id, |_: &A, _| Ok::<_, ()>(events.clone())).await.unwrap();
}

fn added(count: u32) -> Vec<AccountEvent> {
    (0..count).map(|amount| MoneyAdded { amount }.into()).collect()
}

/// Waits until the snapshot of an aggregate is of a version.
async fn wait_for_snapshot(pool: &PgPool, aggregate_id: &AggregateId, version: i64) {
    let statement = "select max(version) from espd.snapshots where aggregate_id = $1";
    loop {
        let found: Option<i64> =
            sqlx::query_scalar(statement).bind(aggregate_id).fetch_one(pool).await.unwrap();
        if found == Some(version) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_holds_the_only_connection_is_told_so_after_one_wait() {
    let (pool, _) = store().await;
    let patience = std::time::Duration::from_secs(2);
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(1).acquire_timeout(patience);
    let pool = options.connect_with((*pool.connect_options()).clone()).await.unwrap();
    let postgres =
        PostgresEventStore::new(pool.clone(), espd::store::Layout::espd(crate::support::SCHEMA).unwrap());
    let snapshots = PostgresSnapshots::of(&postgres).unwrap();
    let repository = Repository::new(postgres).with_snapshots(snapshots);
    let id: Id<Often> = Id::generate();
    let holding = pool.begin().await.unwrap();
    let began = std::time::Instant::now();
    let refused = repository.load(&id).await.unwrap_err();
    assert!(began.elapsed() < patience * 2, "{:?}", began.elapsed());
    assert!(refused.to_string().contains("no connection of the pool became free in time"), "{refused}");
    assert_eq!(repository.snapshot_failures(), 0);
    holding.rollback().await.unwrap();
    repository.load(&id).await.unwrap();
}

/// At every prefix, of the stream and of the snapshot.
#[tokio::test]
async fn the_state_is_the_same_with_and_without_a_snapshot() {
    let (_pool, plain, with_snapshots) = repositories().await;
    let mut runner = TestRunner::default();
    let step = any::<(bool, u32)>().prop_map(|(is_added, amount)| -> AccountEvent {
        if is_added { MoneyAdded { amount }.into() } else { MoneyDrawn { amount }.into() }
    });
    let any_events = prop::collection::vec(step, 1..12);
    for _ in 0..20 {
        let id = Id::<Often>::generate();
        for event in any_events.new_tree(&mut runner).unwrap().current() {
            record(&plain, &id, vec![event]).await;
            with_snapshots.take_snapshot(&id).await.unwrap();
        }
        let now = plain.load(&id).await.unwrap();
        for version in 0..=now.version.get() {
            let (with, without) = (
                with_snapshots.load_at(&id, version).await.unwrap(),
                plain.load_at(&id, version).await.unwrap(),
            );
            assert_eq!(
                (with.state, with.version, with.position),
                (without.state, without.version, without.position)
            );
        }
        assert_eq!(with_snapshots.load(&id).await.unwrap().state, now.state);
    }
    assert_eq!(with_snapshots.snapshot_failures(), 0);
}

#[tokio::test]
async fn a_snapshot_is_written_behind_long_streams_and_loading_begins_with_it() {
    let (pool, plain, with_snapshots) = repositories().await;
    let id = Id::<Often>::generate();
    record(&plain, &id, added(2)).await;
    with_snapshots.load(&id).await.unwrap();
    record(&plain, &id, added(3)).await;
    with_snapshots.load(&id).await.unwrap();
    wait_for_snapshot(&pool, id.get(), 5).await;
    // Nothing but the tail is read: what came before the snapshot could not be understood any more.
    sqlx::query("update espd.events set body = '{}' where version < 5").execute(&pool).await.unwrap();
    assert!(plain.load(&id).await.is_err());
    let loaded = with_snapshots.load(&id).await.unwrap();
    assert_eq!((loaded.version.get(), loaded.state.changes, loaded.state.balance), (5, 5, 4));
    // An earlier version is not made from a later snapshot.
    assert!(with_snapshots.load_at(&id, 4).await.is_err());
}

#[tokio::test]
async fn formats_and_sets_of_event_types_have_their_snapshots_side_by_side() {
    let (pool, plain, with_snapshots) = repositories().await;
    let id = Id::<Often>::generate();
    record(&plain, &id, added(4)).await;
    with_snapshots.take_snapshot(&id).await.unwrap();
    let next = Id::<Account<2, 3>>::new(id.get());
    with_snapshots.take_snapshot(&next).await.unwrap();
    let formats: Vec<i64> =
        sqlx::query_scalar("select format from espd.snapshots order by 1").fetch_all(&pool).await.unwrap();
    assert_eq!(formats, [1, 2]);
    sqlx::query("update espd.snapshots set event_types = 7, state = '{}'").execute(&pool).await.unwrap();
    assert_eq!(with_snapshots.load(&id).await.unwrap().state.changes, 4);
    assert_eq!(with_snapshots.snapshot_failures(), 0, "one of other types was not even looked at");
}

#[tokio::test]
async fn a_snapshot_that_is_of_no_use_is_passed_over_and_counted() {
    let (pool, plain, with_snapshots) = repositories().await;
    let id = Id::<Often>::generate();
    record(&plain, &id, added(4)).await;
    with_snapshots.take_snapshot(&id).await.unwrap();
    sqlx::query("update espd.snapshots set state = '{\"balance\": \"?\"}'").execute(&pool).await.unwrap();
    assert_eq!(with_snapshots.load(&id).await.unwrap().state.changes, 4);
    assert_eq!(with_snapshots.snapshot_failures(), 1);
    sqlx::query("drop table espd.snapshots").execute(&pool).await.unwrap();
    assert_eq!(with_snapshots.load(&id).await.unwrap().state.changes, 4);
    assert!(with_snapshots.snapshot_failures() >= 2);
}

/// After a restore, or a deletion, the stream may be another one at the same version.
#[tokio::test]
async fn a_snapshot_whose_event_is_another_one_is_not_used_and_replaced() {
    let (pool, plain, with_snapshots) = repositories().await;
    let id = Id::<Often>::generate();
    record(&plain, &id, added(4)).await;
    with_snapshots.take_snapshot(&id).await.unwrap();
    sqlx::query("delete from espd.events").execute(&pool).await.unwrap();
    assert!(!with_snapshots.load(&id).await.unwrap().exists());
    record(&plain, &id, vec![MoneyDrawn { amount: 1 }.into(); 4]).await;
    assert_eq!(with_snapshots.load(&id).await.unwrap().state.balance, -4);
    with_snapshots.take_snapshot(&id).await.unwrap();
    let state: serde_json::Value =
        sqlx::query_scalar("select state from espd.snapshots").fetch_one(&pool).await.unwrap();
    assert_eq!(state, json!({"balance": -4, "changes": 4}));
}

/// Cannot be written to, as the database of a role without rights.
#[derive(Debug)]
struct ReadOnly(MemorySnapshots);

#[async_trait]
impl SnapshotStore for ReadOnly {
    async fn load(&self, key: &SnapshotKey, upto: Version) -> Result<Option<Snapshot>, ReadError> {
        self.0.load(key, upto).await
    }

    async fn save(&self, _: &SnapshotKey, _: &Snapshot) -> Result<(), ReadError> {
        Err(ReadError::Database(sqlx::Error::PoolClosed))
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_fails_no_command() {
    let repository =
        Repository::new(MemoryEventStore::new()).with_snapshots(ReadOnly(MemorySnapshots::default()));
    let id = Id::<Often>::generate();
    repository.decide(&id, |_: &Often, _| Ok::<_, ()>(added(9))).await.unwrap();
    assert_eq!(repository.load(&id).await.unwrap().state.changes, 9);
    while repository.snapshot_failures() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(repository.take_snapshot(&id).await.is_err());
}

#[tokio::test]
async fn espctl_lists_and_drops_snapshots() {
    let database = crate::support::database().await;
    let postgres = PostgresEventStore::new(database.pool.clone(), Layout::espd("espd").unwrap());
    let snapshots = PostgresSnapshots::of(&postgres).unwrap();
    let repository = Repository::new(postgres).with_snapshots(snapshots);
    let ids = [Id::<Often>::generate(), Id::generate()];
    for id in &ids {
        record(&repository, id, added(4)).await;
        repository.take_snapshot(id).await.unwrap();
    }
    repository.take_snapshot(&Id::<Account<2, 3>>::new(ids[0].get())).await.unwrap();
    let here = Installation::new(&database.url, "");
    let listed = here.espctl(&["snapshots", "list", "--json"]).await.json();
    let counts: Vec<_> =
        listed.as_array().unwrap().iter().map(|one| (&one["format"], &one["snapshots"])).collect();
    assert_eq!(counts, [(&json!(1), &json!(2)), (&json!(2), &json!(1))]);
    assert!(here.espctl(&["snapshots", "list"]).await.printed().contains("account"));
    let drop_first = ["snapshots", "drop", "account", "--format", "1"];
    assert_eq!(here.espctl(&drop_first).await.printed(), "dropped 2 snapshots\n");
    assert!(here.espctl(&drop_first).await.complained(1).contains("there is no such snapshot"));
    // An id that is none must not stand for all.
    assert_eq!(here.espctl(&["snapshots", "drop", "--aggregate", "order-7"]).await.code, Some(2));
    assert_eq!(here.espctl(&["snapshots", "drop", "--all"]).await.printed(), "dropped 1 snapshot\n");
    assert_eq!(here.espctl(&["snapshots", "list"]).await.printed(), "no snapshots\n");
}

#[tokio::test]
async fn a_state_is_kept_as_it_was_written_and_none_of_an_event_that_is_gone() {
    let (pool, postgres) = store().await;
    let snapshots = PostgresSnapshots::of(&postgres).unwrap();
    let id = Id::<Often>::generate();
    record(&Repository::new(postgres.clone()), &id, added(3)).await;
    let loaded = Repository::new(postgres).load(&id).await.unwrap();
    let key = SnapshotKey { aggregate_id: id.get().clone(), name: "queue", format: 1, event_types: 7 };
    let state = |text: &str| serde_json::value::RawValue::from_string(text.to_owned()).unwrap();
    let as_written = state(r#"{"z": [1], "a":"\u0000"}"#);
    let snapshot = |event_id| Snapshot { version: loaded.version, event_id, state: as_written.clone() };
    snapshots.save(&key, &snapshot(loaded.position.next())).await.unwrap();
    let count = "select count(*) from espd.snapshots";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap(), 0);
    snapshots.save(&key, &snapshot(loaded.position)).await.unwrap();
    let found = snapshots.load(&key, Version::MAX).await.unwrap().unwrap();
    assert_eq!(found.state.get(), as_written.get());
}

#[tokio::test]
async fn what_asks_for_a_snapshot_is_told_whether_one_was_written() {
    #[derive(Debug)]
    struct Plain;
    impl espd::store::BodyCodec for Plain {
        fn encode(
            &self,
            event: &NewEvent,
        ) -> Result<Box<serde_json::value::RawValue>, Box<dyn std::error::Error + Send + Sync>> {
            Ok(event.body.clone())
        }
        fn decode(
            &self,
            event: &Event,
        ) -> Result<Box<serde_json::value::RawValue>, Box<dyn std::error::Error + Send + Sync>> {
            Ok(event.body.clone())
        }
    }
    let (_pool, plain, with_snapshots) = repositories().await;
    let id = Id::<Often>::generate();
    assert!(!with_snapshots.take_snapshot(&id).await.unwrap());
    record(&plain, &id, added(1)).await;
    assert!(!plain.take_snapshot(&id).await.unwrap());
    assert!(with_snapshots.take_snapshot(&id).await.unwrap());
    // States would lie in the clear beside bodies that are not.
    let sealed = plain.store().clone().with_codec(Plain);
    assert!(PostgresSnapshots::of(&sealed).unwrap_err().to_string().contains("codec"));
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Average {
    value: f64,
}

impl Aggregate for Average {
    type Event = AccountEvent;

    fn snapshots() -> Option<SnapshotFormat<Self>> {
        Some(SnapshotFormat::json("average", 1).every(1))
    }

    fn evolve(&mut self, _: &AccountEvent) {
        self.value = f64::NAN;
    }
}

#[tokio::test]
async fn a_state_that_could_not_be_read_again_is_not_kept() {
    let snapshots = MemorySnapshots::default();
    let repository = Repository::new(MemoryEventStore::new()).with_snapshots(snapshots.clone());
    let id = Id::<Average>::generate();
    repository.decide(&id, |_: &Average, _| Ok::<_, ()>(added(1))).await.unwrap();
    let refused = repository.take_snapshot(&id).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("the state cannot be written as JSON: it could not be read again"),
        "{refused}"
    );
    assert!(repository.load(&id).await.unwrap().state.value.is_nan());
    assert!(repository.snapshot_failures() > 0 && snapshots.count() == 0);
}
