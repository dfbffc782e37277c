//! Histories that are longer than memory: folded event by event, on PostgreSQL and on the memory twin.

use std::process::Command;

use async_trait::async_trait;
use espd::Program;
use espd::event::{AggregateId, Event, NewEvent, Version};
use espd::native::{EventSourced, EventSourcedProjector, HandlerError, Registration};
use espd::store::{EventStore as _, MemoryEventStore};
use futures_util::TryStreamExt as _;
use serde_json::value::to_raw_value;
use sqlx::PgConnection;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::make;
use crate::processing::runner::{Life, settings};
use crate::support::facts::reaches;
use crate::support::{self, Database};

/// Names the database for the process that folds.
const DATABASE: &str = "ESPD_TEST_HUGE_DATABASE";

/// The most memory that folding may take beside what was there before, in KiB. The history has ten times as much.
const MEMORY_MAX: u64 = 16 * 1024;

/// Sums the lengths of bodies.
struct Bytes;

#[async_trait]
impl EventSourced for Bytes {
    type State = (i64, i64);

    fn evolve(&self, (count, bytes): &mut (i64, i64), event: &Event) -> Result<(), HandlerError> {
        *count += 1;
        *bytes += event.body.get().len() as i64;
        Ok(())
    }

    async fn save(
        &self,
        aggregate_id: &AggregateId,
        _: Version,
        (count, bytes): &(i64, i64),
        connection: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        let insert = "insert into bytes values ($1, $2, $3)";
        sqlx::query(insert).bind(aggregate_id).bind(count).bind(bytes).execute(connection).await?;
        Ok(())
    }
}

/// Folds and keeps nothing.
struct Nothing;

#[async_trait]
impl EventSourced for Nothing {
    type State = ();

    fn evolve(&self, (): &mut (), _: &Event) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn save(
        &self,
        _: &AggregateId,
        _: Version,
        (): &(),
        _: &mut PgConnection,
    ) -> Result<(), HandlerError> {
        Ok(())
    }
}

fn kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs `work` and requires that the memory of this process has hardly grown meanwhile.
async fn in_little_memory<T>(what: &str, work: impl Future<Output = T>) -> T {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = kib("VmRSS");
    let done = work.await;
    let more = kib("VmHWM").saturating_sub(before);
    eprintln!("{what}: {more} KiB beside {before} KiB");
    assert!(more < MEMORY_MAX, "{what} took {more} KiB");
    done
}

#[tokio::test]
async fn a_huge_history_is_folded_in_little_memory() {
    let db = support::database().await;
    // 320 events of half a MiB, and one that the projector handles.
    let insert = "insert into espd.events (aggregate_id, type, version, body)
                  select md5('huge')::uuid, case v when 321 then 'Last' else 'A' end, v,
                         to_jsonb(repeat('x', case v when 321 then 0 else 524288 end))
                  from generate_series(1, 321) as v";
    sqlx::query(insert).execute(&db.pool).await.unwrap();
    let short = "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'Short', 1, '{}')";
    sqlx::query(short).execute(&db.pool).await.unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["handlers::native::huge::fold_in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"])
        .env(DATABASE, &db.url)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    let folded: (i64, i64) =
        sqlx::query_as("select count, bytes from bytes").fetch_one(&db.pool).await.unwrap();
    assert_eq!(folded, (321, 320 * (524_288 + 2) + 2));
}

/// What memory a process takes can only be told where nothing else runs in it.
#[tokio::test]
#[ignore = "the test above runs it"]
async fn fold_in_a_process_of_its_own() {
    let Ok(url) = std::env::var(DATABASE) else { return };
    let pool = PgPoolOptions::new().connect(&url).await.unwrap();
    let db = Database { pool, url, name: "huge".to_owned() };
    let head: i64 = sqlx::query_scalar("select max(id) from espd.events").fetch_one(&db.pool).await.unwrap();
    let declaration = Registration::projector("bytes")
        .handles_type("Last")
        .table("bytes", "id uuid primary key, count bigint, bytes bigint");
    let short = Registration::projector("short").handles_type("Short").table("short", "id uuid primary key");
    let program = Program::new()
        .projector(declaration, || EventSourcedProjector(Bytes))
        .projector(short, || EventSourcedProjector(Nothing));
    // A short history first: what the program itself takes, as it is read from the disk, is no matter of the length.
    let life = Life::begin_with(&db, make(&program, "short"), settings(&db));
    reaches(&db.pool, "short", head).await;
    life.end().await;
    in_little_memory("folding on PostgreSQL", async {
        let life = Life::begin_with(&db, make(&program, "bytes"), settings(&db));
        reaches(&db.pool, "bytes", head).await;
        life.end().await;
    })
    .await;

    let (memory, id) = (MemoryEventStore::new(), Uuid::new_v4());
    for _ in 0..40_000 {
        let body = to_raw_value(&"x".repeat(4_096)).unwrap();
        memory.append(&[NewEvent::new(id, "A", body)]).await.unwrap();
    }
    let sum = in_little_memory("streaming from the memory store", async {
        let events = memory.read_aggregate(id.into(), Version::FIRST, None);
        events.try_fold(0, async |sum, event| Ok(sum + event.body.get().len())).await.unwrap()
    })
    .await;
    assert_eq!(sum, 40_000 * 4_098);
}
