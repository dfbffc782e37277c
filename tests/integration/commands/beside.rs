//! Records and snapshots are kept beside the events of the repository's store, whatever store they were made of.

use std::sync::{Arc, Mutex};

use espd::aggregate::{PostgresSnapshots, SnapshotFormat};
use espd::commands::{CommandLog, MemoryCommandLog, PostgresCommandLog};
use espd::personal_data::{MemoryKeys, Personal, PersonalData};
use espd::prelude::*;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use validator::Validate;

use crate::store::store;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Joined {
    id: String,
    name: Personal<String>,
}
espd::event_type!(Joined, personal = ["/name"] of "/id");

espd::event_set! { enum MemberEvent { Joined(Joined) } }

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Member {
    name: String,
}

impl Aggregate for Member {
    type Event = MemberEvent;

    fn snapshots() -> Option<SnapshotFormat<Self>> {
        Some(SnapshotFormat::json("member", 1).every(1))
    }

    fn evolve(&mut self, MemberEvent::Joined(joined): &MemberEvent) {
        self.name = joined.name.known().cloned().unwrap_or_default();
    }
}

#[derive(Debug, Serialize, Deserialize, Validate)]
struct Join {
    member: Id<Member>,
    name: String,
}

impl Command for Join {
    const NAME: &'static str = "Join";
    type Aggregate = Member;

    fn aggregate_id(&self) -> Id<Member> {
        self.member.clone()
    }
}

#[derive(Debug, Serialize)]
enum Refused {
    Member,
}
espd::refusal!(Refused);

impl Decide<Join> for Member {
    type Refusal = Refused;

    fn decide(&self, join: &Join, context: &Context) -> Result<Vec<MemberEvent>, Refused> {
        if context.exists() {
            return Err(Refused::Member);
        }
        Ok(espd::events![Joined { id: join.member.to_string(), name: join.name.clone().into() }])
    }
}

fn personal() -> PersonalData {
    PersonalData::new(MemoryKeys::new()).of::<Joined>()
}

/// What `on_appended` is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn note(&self) -> impl Fn(&[Event]) + Send + Sync + 'static {
        let told = self.clone();
        move |events| told.0.lock().unwrap().extend(events.iter().map(|event| event.body.get().to_owned()))
    }
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let count = format!("select count(*) from espd.{table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(pool).await.unwrap()
}

/// Has somebody join, by a recorded command.
async fn join<S: EventStore + 'static>(repository: Repository<S>, log: impl CommandLog) -> Outcome {
    let commands = Commands::new(repository).register::<Join>().recorded_by(log);
    let join = Join { member: Id::generate(), name: "Ada".to_owned() };
    commands.execute(join, Envelope::new().command_id(Uuid::new_v4())).await
}

#[tokio::test]
async fn a_recorded_command_goes_through_codec_and_hooks_of_the_repository() {
    let (pool, store) = store().await;
    let (_other, elsewhere) = crate::store::store().await;
    // Two logs are made too early, the other one of another database, and each store is used in another way.
    let logs = [PostgresCommandLog::of(&store).unwrap(), PostgresCommandLog::of(&elsewhere).unwrap()];
    let told = Told::default();
    let store = store.with_codec(personal()).on_appended(told.note());
    let [first, second] = logs;
    assert!(join(Repository::new(store.clone()), first).await.is_executed());
    let shared: Arc<dyn EventStore> = Arc::new(store);
    assert!(join(Repository::new(shared), second).await.is_executed());

    let stored: Vec<String> =
        sqlx::query_scalar("select body::text from espd.events").fetch_all(&pool).await.unwrap();
    assert!(stored.iter().all(|body| !body.contains("Ada") && body.contains("$sealed")), "{stored:?}");
    assert_eq!((stored.len(), count(&pool, "commands").await), (2, 2));
    let told = told.0.lock().unwrap();
    assert!(told.len() == 2 && told.iter().all(|body| body.contains("\"Ada\"")), "{told:?}");
}

#[tokio::test]
async fn the_log_in_memory_goes_through_the_codec_of_the_repository_too() {
    let store = MemoryEventStore::new();
    let log = MemoryCommandLog::of(store.clone());
    assert!(join(Repository::new(store.clone().with_codec(personal())), log.clone()).await.is_executed());
    let stored = store.read_after(Position::START, None, None, 9).await.unwrap();
    assert!(stored[0].body.get().contains("$sealed"), "{}", stored[0].body);
    assert_eq!(log.newest(9, None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn snapshots_lie_beside_the_events_of_the_repository_or_nowhere() {
    let (pool, store) = store().await;
    let (other, elsewhere) = crate::store::store().await;
    let snapshots = || PostgresSnapshots::of(&elsewhere).unwrap();
    let repository = Repository::new(store.clone()).with_snapshots(snapshots());
    let forgotten = Joined { id: "1".into(), name: Personal::Forgotten { subject: "1".into() } };
    let id = Id::<Member>::generate();
    let secretly = Repository::new(store.with_codec(personal()));
    secretly.decide(&id, |_: &Member, _| Ok::<_, ()>(espd::events![forgotten.clone()])).await.unwrap();
    assert!(repository.take_snapshot(&id).await.unwrap());
    assert_eq!((count(&pool, "snapshots").await, count(&other, "snapshots").await), (1, 0));

    let with_secrets = std::panic::AssertUnwindSafe(|| secretly.clone().with_snapshots(snapshots()));
    let panic = std::panic::catch_unwind(with_secrets).unwrap_err();
    let panic = panic.downcast_ref::<String>().unwrap();
    assert!(
        panic.contains("the store has a codec") && panic.contains("a SnapshotStore of your own"),
        "{panic}"
    );
}

#[tokio::test]
async fn a_record_that_cannot_be_removed_says_so() {
    let (pool, store) = store().await;
    let log = PostgresCommandLog::of(&store).unwrap();
    sqlx::raw_sql("alter table espd.commands rename to gone").execute(&pool).await.unwrap();
    let said = log.prune(chrono::Utc::now()).await.unwrap_err().to_string();
    assert_eq!(said, "failed to remove records of commands");
    assert_eq!(log.newest(1, None).await.unwrap_err().to_string(), "failed to read records of commands");
}
