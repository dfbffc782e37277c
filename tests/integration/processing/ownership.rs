//! Two daemons, one owner: what becomes of a processor when its owner stops, dies or freezes.

use std::time::{Duration, Instant};

use espd::internals::tracker::Trackers;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;

use crate::support::facts::{Gate, append, assert_exactly_once, eventually, position, reaches, within};
use crate::support::program::{Installation, Program};
use crate::support::{self, Database, SCHEMA};

/// Small batches and quick looks.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

const STANDING_BY: &str = "standing by: another daemon owns the processor";

/// What a frozen daemon is made of: itself and its only child.
struct Frozen {
    daemon: Pid,
    worker: Pid,
}

impl Frozen {
    async fn freeze(daemon: &Program) -> Self {
        let frozen = Self { daemon: daemon.pid(), worker: daemon.child("notes", 1).await };
        // The daemon first: it must not miss its child.
        for pid in [frozen.daemon, frozen.worker] {
            kill(pid, Signal::SIGSTOP).unwrap();
        }
        frozen
    }

    fn wake(self) {
        for pid in [self.worker, self.daemon] {
            kill(pid, Signal::SIGCONT).unwrap();
        }
    }
}

/// A daemon that owns the only processor and one that stands by, on a store with events that are handled.
async fn pair(db: &Database, first_statement: &str) -> (Installation, Program, Program) {
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", first_statement);
    let owner = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    let standby = installation.start_daemon();
    standby.says(STANDING_BY).await;
    (installation, owner, standby)
}

/// Appends events and requires that they are handled within `time` of `since`.
async fn taken_over_within(time: Duration, since: Instant, db: &Database) {
    let last = append(&db.pool, 10).await;
    let left = time.saturating_sub(since.elapsed());
    within(left, "the takeover", async || (position(&db.pool, "notes").await >= last).then_some(())).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
}

async fn epoch(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select epoch from espd.trackers").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_standby_is_idle_and_shown_and_takes_over_at_once_from_an_owner_that_stops() {
    let db = support::database().await;
    let (installation, owner, standby) = pair(&db, "").await;
    let status = installation.status("notes").await;
    let label = format!(":{}", standby.pid());
    assert_eq!(status["state"], "live", "{status}");
    assert!(status["standbys"][0].as_str().unwrap().ends_with(&label), "{status}");
    assert_eq!(standby.logged(STANDING_BY).len(), 1);

    let stopping = Instant::now();
    owner.signal(Signal::SIGTERM);
    // Release and notification; the process itself may take longer to end.
    standby.says("claimed").await;
    let took = stopping.elapsed();
    // A poll alone takes up to a second. In a debug build on a busy machine, half of that is a lot already.
    assert!(took < Duration::from_millis(500), "{took:?}");
    taken_over_within(Duration::from_secs(10), stopping, &db).await;
    assert_eq!((standby.logged("worker started").len(), standby.logged("claimed").len()), (1, 1));
    let status = installation.status("notes").await;
    assert!(status["owner"].as_str().unwrap().ends_with(&label), "{status}");
    assert_eq!(status["standbys"], serde_json::json!([]));
    owner.stop_after_request().await;
    standby.stop().await;
}

#[tokio::test]
async fn a_standby_takes_over_from_a_killed_daemon_when_its_lease_has_ended() {
    let db = support::database().await;
    let (_installation, mut owner, standby) = pair(&db, "").await;
    let before = epoch(&db.pool).await;
    let killed = Instant::now();
    owner.kill().await;
    standby.says("claimed").await;
    let took = killed.elapsed();
    assert!(took < Duration::from_millis(6_500), "{took:?}");
    taken_over_within(Duration::from_secs(20), killed, &db).await;
    assert_eq!(epoch(&db.pool).await, before + 1);
    standby.stop().await;
}

#[tokio::test]
async fn a_daemon_frozen_in_a_batch_is_replaced_and_commits_nothing_when_it_wakes() {
    let db = support::database().await;
    let (installation, owner, standby) = pair(&db, &Gate::at(777)).await;
    let mut gate = Gate::close(&db.pool, 777).await;
    append(&db.pool, 800).await;
    let backend = gate.visitor().await;
    let frozen = Frozen::freeze(&owner).await;
    let since = Instant::now();
    standby.says("ended the backend of an owner that gives no sign of life").await;
    // The next visitor is the new owner's.
    let visitor = eventually("the new owner at the gate", async || {
        let visitor = gate.visitor().await;
        (visitor != backend).then_some(visitor)
    })
    .await;
    let took = since.elapsed();
    assert!(took < Duration::from_millis(6_500), "{took:?}");
    assert_ne!(visitor, backend);

    // It wakes in the middle of the other's batch, and does not disturb it.
    frozen.wake();
    owner.says(STANDING_BY).await;
    assert_eq!(position(&db.pool, "notes").await, 710, "the position of the last good batch");
    gate.open().await;
    taken_over_within(Duration::from_secs(20), Instant::now(), &db).await;
    let status = installation.status("notes").await;
    assert!(status["owner"].as_str().unwrap().ends_with(&format!(":{}", standby.pid())), "{status}");
    assert_eq!(owner.children("notes").len(), 1, "a standby is no crash loop");
    owner.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn a_daemon_frozen_while_idle_is_replaced_and_stands_by_when_it_wakes() {
    let db = support::database().await;
    let (_installation, owner, standby) = pair(&db, "").await;
    let frozen = Frozen::freeze(&owner).await;
    let since = Instant::now();
    standby.says("claimed").await;
    let took = since.elapsed();
    assert!(took < Duration::from_millis(6_500), "{took:?}");
    taken_over_within(Duration::from_secs(20), since, &db).await;
    frozen.wake();
    owner.says(STANDING_BY).await;
    taken_over_within(Duration::from_secs(20), Instant::now(), &db).await;
    owner.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn an_owner_whose_batch_outlasts_its_lease_is_left_alone_while_it_lives() {
    let db = support::database().await;
    let (_installation, owner, standby) = pair(&db, &Gate::at(77)).await;
    let mut gate = Gate::close(&db.pool, 77).await;
    let last = append(&db.pool, 100).await;
    let backend = gate.visitor().await;
    eventually("the end of the lease and a sign of life after it", async || {
        let query = sqlx::query_scalar::<_, i32>(
            "select 1 from espd.trackers as t join espd.signs_of_life as s using (name, epoch)
             where lease_until < clock_timestamp() and lives_until > clock_timestamp() + interval '3 s'",
        );
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    // Twice as long as the lease lasts, seen on the server's clock.
    eventually("twice the lease", async || {
        let query = sqlx::query_scalar::<_, i32>(
            "select 1 from espd.trackers where lease_until < clock_timestamp() - interval '5 s'",
        );
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    assert_eq!((gate.visitor().await, epoch(&db.pool).await), (backend, 1));
    gate.open().await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    assert!(standby.logged("claimed").is_empty());
    owner.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn a_restarted_worker_does_not_wait_for_the_batch_of_the_one_before() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", &Gate::at(50));
    let mut gate = Gate::close(&db.pool, 50).await;
    let last = append(&db.pool, 100).await;
    let daemon = installation.start_daemon();
    let orphan = gate.visitor().await;
    kill(daemon.child("notes", 1).await, Signal::SIGKILL).unwrap();
    within(Duration::from_secs(5), "the next worker at the gate", async || {
        (gate.visitor().await != orphan).then_some(())
    })
    .await;
    gate.open().await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_standby_that_may_not_end_a_frozen_owner_says_so_and_so_does_the_status() {
    let db = support::database().await;
    let role = format!("weak_{}", db.name);
    let statements = format!(
        "create role {role} login; grant usage on schema espd to {role};
         grant select, insert, update, delete on all tables in schema espd to {role};
         grant select on all sequences in schema espd to {role}; grant pg_read_all_stats to {role}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&db.pool).await.unwrap();
    let (installation, owner, strong) = pair(&db, &Gate::at(777)).await;
    strong.stop().await;
    let (_, place) = db.url.split_once('@').unwrap();
    let weak = Installation::new(&format!("postgres://{role}@{place}"), RUNNER);
    weak.declare_notes("notes", &Gate::at(777));
    let weak = weak.start_daemon();
    weak.says(STANDING_BY).await;
    let mut gate = Gate::close(&db.pool, 777).await;
    append(&db.pool, 800).await;
    let backend = gate.visitor().await;
    let frozen = Frozen::freeze(&owner).await;
    let said = eventually("the complaint", async || {
        weak.log().into_iter().find(|line| line["backend.pid"] == backend)
    })
    .await;
    assert!(said["message"].as_str().unwrap().contains("pg_signal_backend"), "{said}");
    let status = installation.status("notes").await;
    assert_eq!((&status["state"], &status["holder_pid"]), (&"standby".into(), &backend.into()), "{status}");
    let table = installation.espctl(&["status", "notes"]).await.printed();
    assert!(table.contains(&format!("pg_terminate_backend({backend})")), "{table}");
    assert_eq!(gate.visitor().await, backend);
    frozen.wake();
    gate.open().await;
    drop((weak, owner));
}

#[tokio::test]
async fn only_the_backend_that_holds_the_row_is_ended_never_one_with_a_reused_number() {
    let db = support::database().await;
    let trackers = Trackers::new(SCHEMA);
    let me = espd::internals::tracker::Owner::generate();
    let kind = espd::internals::declaration::ProcessorKind::Projector;
    let key = espd::internals::tracker::ProcessorKey::new("p", 1);
    trackers.register(&db.pool, &key, kind, 0.into()).await.unwrap();
    // The recorded number is that of a bystander, who holds the row for a reason of its own.
    let mut bystander = db.pool.begin().await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *bystander).await.unwrap();
    sqlx::query(
        "update espd.trackers set owner = gen_random_uuid(), lease_until = clock_timestamp() - interval '1 s',
           backend_pid = $1, backend_start = clock_timestamp() - interval '1 day'",
    )
    .bind(pid)
    .execute(&db.pool)
    .await
    .unwrap();
    assert_eq!(trackers.lock(&mut bystander, &key).await.unwrap(), Some(0.into()));
    let lease = Duration::from_secs(5);
    assert_eq!(trackers.claim(&db.pool, &key, &me, lease).await.unwrap(), None);
    let rival = trackers.stand_by(&db.pool, &key, &me, lease).await.unwrap().unwrap();
    assert_eq!((rival.late, rival.frozen_backend), (true, None));
    assert!(!trackers.end_frozen_backend(&db.pool, &key, &me).await.unwrap());
    bystander.rollback().await.unwrap();

    // It is the recorded backend, but not the one that holds the row.
    let mut idle = db.pool.acquire().await.unwrap();
    sqlx::query(
        "update espd.trackers set (backend_pid, backend_start) =
           (select pid, backend_start from pg_stat_activity where pid = pg_backend_pid())",
    )
    .execute(&mut *idle)
    .await
    .unwrap();
    let mut bystander = db.pool.begin().await.unwrap();
    trackers.lock(&mut bystander, &key).await.unwrap();
    let rival = trackers.stand_by(&db.pool, &key, &me, lease).await.unwrap().unwrap();
    assert_eq!(rival.frozen_backend, None);
    assert!(!trackers.end_frozen_backend(&db.pool, &key, &me).await.unwrap());
    bystander.rollback().await.unwrap();
    sqlx::query("select 1").execute(&mut *idle).await.unwrap();
    assert!(trackers.claim(&db.pool, &key, &me, lease).await.unwrap().is_some());
}
