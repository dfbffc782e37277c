//! What counts as an attempt and what does not: failing events, and a server that cannot do it now.

use std::time::Duration;

use espd::embedded::StopMode;
use espd::internals::retry::{OnFailure, RetryPolicy, Strategy};
use espd::internals::runner::RunnerContext;
use espd::internals::tracker::{TrackerRow, Trackers};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use crate::processing::runner::{
    DIVIDE, Life, lease_renewed_twice, notes, notes_key, row, row_with, set_n, settings,
};
use crate::support::facts::{Gate, append, assert_exactly_once, eventually, position, reaches};
use crate::support::{self, Database, SCHEMA};

async fn run(pool: &PgPool, statements: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(statements.into())).execute(pool).await.unwrap();
}

async fn notify_runners(pool: &PgPool) {
    run(pool, "notify espd_events, 'control'").await;
}

/// Ends all sessions but those of the tests, so that new ones learn what the database is set to.
async fn end_sessions(pool: &PgPool) {
    run(
        pool,
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and application_name like 'espd: notes'",
    )
    .await;
}

/// Settings by which the first failure of an event would make it a dead letter.
fn strict(db: &Database) -> RunnerContext {
    let retry = RetryPolicy { max_attempts: Some(1), on_failure: OnFailure::Park, ..settings(db).retry };
    RunnerContext { retry, ..settings(db) }
}

/// Waits until an outage with this SQLSTATE is recorded, and requires that no event is counted as failed for it.
async fn outage(pool: &PgPool, sqlstate: &str) -> TrackerRow {
    let told = |row: &TrackerRow| {
        row.outage.as_ref().is_some_and(|outage| outage.sqlstate.as_deref() == Some(sqlstate))
    };
    let row = row_with(pool, &format!("an outage {sqlstate}"), told).await;
    assert_eq!((row.attempts, row.last_error.is_none(), row.failed_at), (0, true, None));
    row
}

/// Requires that everything is handled, and that no outage and no dead letter is left.
async fn goes_on(db: &Database, last: i64) {
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    let row = row(&db.pool).await.unwrap();
    assert_eq!((row.attempts, row.last_error.is_none(), row.outage, row.dead_letters), (0, true, None, 0));
}

#[tokio::test]
async fn a_processor_stops_after_its_last_attempt_until_an_operator_retries() {
    let db = support::database().await;
    let last = append(&db.pool, 10).await;
    set_n(&db.pool, 8, 0).await;
    let retry = RetryPolicy {
        strategy: Strategy::None,
        max_attempts: Some(3),
        on_failure: OnFailure::Stop,
        ..RetryPolicy::default()
    };
    let settings = RunnerContext { retry, ..settings(&db) };
    let life = Life::begin(&db, notes(DIVIDE), settings.clone());
    let failed = row_with(&db.pool, "the stop", |row| row.failed_at.is_some()).await;
    let failure = failed.last_error.as_ref().unwrap();
    assert_eq!((failed.position, failed.handled, failed.attempts), (7.into(), 7, 3));
    assert_eq!(
        (failure.event_id(), failure.event_type(), failed.next_retry_at),
        (Some(8.into()), Some("A"), None)
    );
    assert!(failure.event.is_some());
    lease_renewed_twice(&db.pool).await;

    // An operator gives it three more,
    let (trackers, mut connection) = (Trackers::new(SCHEMA), db.pool.acquire().await.unwrap());
    let mut stop_again = async |failed: &TrackerRow| {
        assert!(trackers.retry(&mut connection, &notes_key(), "alice@here").await.unwrap());
        notify_runners(&db.pool).await;
        let again = row_with(&db.pool, "the next stop", |row| {
            row.failed_at.is_some() && row.failed_at != failed.failed_at
        })
        .await;
        assert_eq!(again.attempts, 3);
        again
    };
    let failed = stop_again(&failed).await;
    life.end().await;

    // another process none,
    let life = Life::begin(&db, notes(DIVIDE), settings);
    row_with(&db.pool, "the next owner", |row| row.epoch > failed.epoch && row.owned).await;
    lease_renewed_twice(&db.pool).await;
    let after = row(&db.pool).await.unwrap();
    assert_eq!((after.attempts, after.failed_at), (3, failed.failed_at));
    // and an operator three more again.
    stop_again(&failed).await;
    set_n(&db.pool, 8, 1).await;
    assert!(trackers.resume(&mut connection, &notes_key(), "bob@here").await.unwrap());
    notify_runners(&db.pool).await;
    goes_on(&db, last).await;
    let log: Vec<(String, String)> =
        sqlx::query_as("select operator, action from espd.operator_log order by id")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let entry = |who: &str, what: &str| (who.to_owned(), what.to_owned());
    let alice = || entry("alice@here", "retry");
    assert_eq!(log, [alice(), alice(), entry("bob@here", "resume")]);
    life.end().await;
}

#[tokio::test]
async fn a_retry_is_at_once_and_counts_anew() {
    let db = support::database().await;
    append(&db.pool, 3).await;
    set_n(&db.pool, 3, 0).await;
    let hour = RetryPolicy { initial: Duration::from_secs(3_600), ..RetryPolicy::default() };
    let long = Duration::from_secs(3_600);
    let life = Life::begin(&db, notes(DIVIDE), RunnerContext { retry: hour, lease: long, ..settings(&db) });
    let mut last = row_with(&db.pool, "a first attempt", |row| row.attempts == 1).await;
    assert!(last.next_retry_at.unwrap() > last.updated_at + chrono::TimeDelta::minutes(50));
    let (trackers, mut connection) = (Trackers::new(SCHEMA), db.pool.acquire().await.unwrap());
    for _ in 0..2 {
        assert!(trackers.retry(&mut connection, &notes_key(), "alice@here").await.unwrap());
        notify_runners(&db.pool).await;
        let is_next = |row: &TrackerRow| row.epoch == last.epoch + 2 && row.attempts > 0;
        let next = row_with(&db.pool, "another first attempt", is_next).await;
        assert_eq!(next.attempts, 1);
        last = next;
    }
    set_n(&db.pool, 3, 1).await;
    assert!(trackers.retry(&mut connection, &notes_key(), "alice@here").await.unwrap());
    notify_runners(&db.pool).await;
    goes_on(&db, 3).await;
    assert!(
        !trackers.retry(&mut connection, &notes_key(), "alice@here").await.unwrap(),
        "there is no failure left"
    );
    trackers.pause(&mut connection, &notes_key(), "alice@here").await.unwrap();
    assert!(
        !trackers.retry(&mut connection, &notes_key(), "alice@here").await.unwrap(),
        "a pause outranks it"
    );
    life.end().await;
}

#[tokio::test]
async fn a_fixed_handler_is_tried_at_once() {
    let db = support::database().await;
    append(&db.pool, 3).await;
    set_n(&db.pool, 3, 0).await;
    let hour = RetryPolicy { initial: Duration::from_secs(3_600), ..RetryPolicy::default() };
    let settings = RunnerContext { retry: hour, ..settings(&db) };
    let life = Life::begin(&db, notes(DIVIDE), settings.clone());
    let failed = row_with(&db.pool, "an attempt", |row| row.attempts == 1).await;
    life.end().await;
    // The same handler waits for its time, whichever process has it.
    let life = Life::begin(&db, notes(DIVIDE), settings.clone());
    row_with(&db.pool, "the next owner", |row| row.epoch > failed.epoch && row.owned).await;
    lease_renewed_twice(&db.pool).await;
    assert_eq!(row(&db.pool).await.unwrap().attempts, 1);
    life.end().await;
    let life = Life::begin(&db, notes("perform 1;"), settings);
    goes_on(&db, 3).await;
    life.end().await;
}

#[tokio::test]
async fn a_deadlock_is_no_attempt() {
    let db = support::database().await;
    run(&db.pool, "create table public.l1 (); create table public.l2 ()").await;
    let last = append(&db.pool, 5).await;
    // The one that waits first notices first: it is the victim.
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    sqlx::raw_sql("set deadlock_timeout = '1h'; begin; lock table public.l2")
        .execute(&mut other)
        .await
        .unwrap();
    let life = Life::begin(&db, notes("lock table l1; lock table l2;"), strict(&db));
    eventually("the handler at the lock", async || {
        let query = sqlx::query_scalar::<_, i32>(
            "select 1 from pg_locks where relation = to_regclass('public.l2') and not granted
               and database = (select oid from pg_database where datname = current_database())",
        );
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    sqlx::raw_sql("lock table public.l1").execute(&mut other).await.unwrap();
    // It got what it wanted, so the handler was the victim; and it waits for the first lock now.
    outage(&db.pool, "40P01").await;
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    goes_on(&db, last).await;
    life.end().await;
}

/// A lock that was waited for would be useless in a snapshot that was taken before.
#[tokio::test]
async fn no_batch_is_repeatable_read_where_that_is_the_default() {
    let db = support::database().await;
    let alter = format!("alter database {} set default_transaction_isolation = 'repeatable read'", db.name);
    run(&db.pool, format!("create table public.levels (level text); {alter}")).await;
    let last = append(&db.pool, 5).await;
    let handler = "insert into public.levels values (current_setting('transaction_isolation'));";
    let life = Life::begin(&db, notes(handler), strict(&db));
    goes_on(&db, last).await;
    let levels: Vec<String> =
        sqlx::query_scalar("select distinct level from public.levels").fetch_all(&db.pool).await.unwrap();
    assert_eq!(levels, ["read committed"]);
    life.end().await;
}

#[tokio::test]
async fn no_error_of_the_infrastructures_makes_a_dead_letter() {
    let db = support::database().await;
    run(&db.pool, "create table public.fault (state text)").await;
    let last = append(&db.pool, 5).await;
    let handler = "declare fault text := (select state from public.fault); begin
        if fault is not null and event.body->>'n' = '3' then raise exception 'a fault' using errcode = fault; end if; end;";
    let states = [
        "08006", "25006", "25P03", "40001", "40P01", "53100", "53200", "53300", "55P03", "57014", "57P03",
        "58030",
    ];
    run(&db.pool, format!("insert into public.fault values ('{}')", states[0])).await;
    let life = Life::begin(&db, notes(handler), strict(&db));
    for state in states {
        // Told within five seconds at most; what was told before is forgotten with a claim.
        run(&db.pool, format!("update public.fault set state = '{state}'")).await;
        outage(&db.pool, state).await;
    }
    assert_eq!(position(&db.pool, "notes").await, 0);
    run(&db.pool, "truncate public.fault").await;
    goes_on(&db, last).await;
    life.end().await;
    // The control: what is no fault of the infrastructure's makes one at once.
    let db = support::database().await;
    run(&db.pool, "create table public.fault (state text); insert into public.fault values ('22012')").await;
    let last = append(&db.pool, 5).await;
    let life = Life::begin(&db, notes(handler), strict(&db));
    reaches(&db.pool, "notes", last).await;
    assert_eq!(row(&db.pool).await.unwrap().dead_letters, 1);
    life.end().await;
}

#[tokio::test]
async fn a_lock_timeout_is_no_attempt_and_is_shown_with_its_beginning_and_the_next_try() {
    let db = support::database().await;
    run(
        &db.pool,
        format!("create table public.l1 (); alter database {} set lock_timeout = '100ms'", db.name),
    )
    .await;
    let last = append(&db.pool, 5).await;
    let mut other = db.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table public.l1").execute(&mut *other).await.unwrap();
    let life = Life::begin(&db, notes("lock table l1;"), strict(&db));
    let first = outage(&db.pool, "55P03").await.outage.unwrap().0;
    assert!(first.next_try_at > first.since && first.tries >= 1, "{first:?}");
    let writes = async || {
        let query =
            sqlx::query_scalar::<_, i64>("select count(*) from espd.trackers where outage is not null");
        query.fetch_one(&db.pool).await.unwrap()
    };
    assert_eq!(writes().await, 1);
    // The next time it is told, it is about the same outage.
    let later = row_with(&db.pool, "a later try", |row| {
        row.outage.as_ref().is_some_and(|outage| outage.tries > first.tries)
    })
    .await;
    let later = later.outage.unwrap().0;
    assert_eq!(later.since, first.since);
    assert!(
        later.tries >= first.tries + 3,
        "attempts that follow each other quickly are not told: {later:?}"
    );
    other.rollback().await.unwrap();
    goes_on(&db, last).await;
    life.end().await;
}

/// The pauses between attempts grow to the length of a lease.
#[tokio::test]
async fn who_waits_until_the_server_can_do_it_again_owns_its_processor_all_the_time() {
    let db = support::database().await;
    append(&db.pool, 1).await;
    let full = "raise exception 'no space' using errcode = '53100';";
    let life = Life::begin(&db, notes(full), RunnerContext { lease: Duration::from_secs(5), ..strict(&db) });
    let tries = |row: &TrackerRow| row.outage.as_ref().map_or(0, |outage| outage.0.tries);
    row_with(&db.pool, "long pauses", |row| tries(row) >= 6).await;
    let still_owned = |row: &TrackerRow| {
        assert!(row.owned, "{row:?}");
        tries(row) >= 9
    };
    row_with(&db.pool, "three more tries", still_owned).await;
    life.end().await;
}

#[tokio::test]
async fn a_statement_timeout_is_no_attempt() {
    let db = support::database().await;
    run(&db.pool, format!("alter database {} set statement_timeout = '300ms'", db.name)).await;
    let last = append(&db.pool, 5).await;
    let mut gate = Gate::close(&db.pool, 3).await;
    // A runner that has a session of its own switches the timeout off.
    let life =
        Life::begin(&db, notes(&Gate::at(3)), RunnerContext { direct: db.url.parse().ok(), ..strict(&db) });
    gate.visitor().await;
    outage(&db.pool, "57014").await;
    gate.open().await;
    goes_on(&db, last).await;
    life.end().await;
}

/// A runner with a role of its own, which the test can take things away from.
async fn weak_life(db: &Database) -> (Life, String, String) {
    let role = format!("weak_{}", db.name);
    run(
        &db.pool,
        format!(
            "create role {role} login; grant create, usage on schema public to {role};
             grant all on schema espd to {role}; grant all on all tables in schema espd to {role};
             grant all on all sequences in schema espd to {role}"
        ),
    )
    .await;
    let (_, place) = db.url.split_once('@').unwrap();
    let url = format!("postgres://{role}@{place}");
    let weak = RunnerContext { database: url.parse().unwrap(), ..strict(db) };
    (Life::begin(db, notes(""), weak), role, url)
}

/// Waits until its owner gives no sign of life, which is all that can be seen where nothing can be written, and
/// requires that no event is blamed.
async fn is_silent(pool: &PgPool, position: i64) {
    let row = row_with(pool, "the end of the lease", |row| !row.owned).await;
    assert_eq!((row.attempts, row.last_error.is_none(), row.position), (0, true, position.into()));
}

#[tokio::test]
async fn a_read_only_database_is_no_attempt() {
    let db = support::database().await;
    let before = append(&db.pool, 5).await;
    let (life, role, url) = weak_life(&db).await;
    goes_on(&db, before).await;
    run(&db.pool, format!("alter role {role} set default_transaction_read_only = on")).await;
    end_sessions(&db.pool).await;
    let last = append(&db.pool, 5).await;
    let mut like_the_runner = PgConnection::connect(&url).await.unwrap();
    let refused = sqlx::raw_sql("update espd.trackers set rate = 0").execute(&mut like_the_runner).await;
    assert_eq!(refused.unwrap_err().into_database_error().unwrap().code().as_deref(), Some("25006"));
    is_silent(&db.pool, before).await;
    run(&db.pool, format!("alter role {role} reset default_transaction_read_only")).await;
    goes_on(&db, last).await;
    life.end().await;
}

#[tokio::test]
async fn too_many_connections_are_no_attempt() {
    let db = support::database().await;
    let before = append(&db.pool, 5).await;
    let (life, role, url) = weak_life(&db).await;
    goes_on(&db, before).await;
    run(&db.pool, format!("alter role {role} connection limit 0")).await;
    end_sessions(&db.pool).await;
    let last = append(&db.pool, 5).await;
    let refused = PgConnection::connect(&url).await.unwrap_err();
    assert_eq!(refused.into_database_error().unwrap().code().as_deref(), Some("53300"));
    is_silent(&db.pool, before).await;
    run(&db.pool, format!("alter role {role} connection limit -1")).await;
    goes_on(&db, last).await;
    life.end().await;
}

/// A small disk, mounted; unmounted with this value. Needs root, and a system that lets root mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0777", "tmpfs"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_no_attempt() {
    let server = support::server().await;
    let db = migrated(&server, "small").await;
    let disk = SmallDisk::mount();
    let handler = match &disk {
        Some(disk) => {
            let folder = disk.0.path().join("space");
            let chown = nix::unistd::User::from_name("postgres").unwrap().map(|user| (user.uid, user.gid));
            std::fs::create_dir(&folder).unwrap();
            let (uid, gid) = chown.unzip();
            nix::unistd::chown(&folder, uid, gid).unwrap();
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(disk.0.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
            run(&db.pool, format!("create tablespace small location '{}'", folder.display())).await;
            run(&db.pool, "create table public.ballast (t text) tablespace small; alter table public.ballast alter t set storage plain").await;
            "insert into ballast select repeat('x', 8000) from generate_series(1, 200) where (event.body->>'n')::int = 3;"
        }
        None => {
            eprintln!(
                "NOT A REAL DISK: no tmpfs can be mounted here, so 53100 is raised by the handler itself"
            );
            run(&db.pool, "create table public.full_disk (); create table public.ballast (t text)").await;
            "if (event.body->>'n')::int = 3 and to_regclass('full_disk') is not null then
               raise exception 'no space' using errcode = '53100'; end if;"
        }
    };
    let last = append(&db.pool, 5).await;
    let life = Life::begin(&db, notes(handler), strict(&db));
    outage(&db.pool, "53100").await;
    assert_eq!(position(&db.pool, "notes").await, 0);
    // Somebody makes room.
    match &disk {
        Some(_) => run(&db.pool, "alter table public.ballast set tablespace pg_default").await,
        None => run(&db.pool, "drop table public.full_disk").await,
    }
    goes_on(&db, last).await;
    life.end().await;
    server.stop().await;
}

/// A database of a server that may be restarted.
async fn migrated(server: &espd::embedded::EmbeddedPostgres, name: &str) -> Database {
    server.create_database(name, None).await.unwrap();
    let url = server.url(name);
    let pool = PgPoolOptions::new().connect(&url).await.unwrap();
    espd::schema::migrate_event_store(&pool, SCHEMA).await.unwrap();
    espd::schema::migrate_processing(&pool, SCHEMA).await.unwrap();
    Database { pool, url, name: name.to_owned() }
}

#[tokio::test]
async fn neither_a_restart_nor_a_server_in_recovery_is_an_attempt() {
    let mut server = support::server().await;
    let db = migrated(&server, "events").await;
    let first = append(&db.pool, 5).await;
    let life = Life::begin(&db, notes(""), strict(&db));
    goes_on(&db, first).await;
    append(&db.pool, 5).await;
    // As a standby it answers, and refuses to write.
    let signal = server.folder().join("data/standby.signal");
    std::fs::write(&signal, "").unwrap();
    server = server.restart(StopMode::Fast).await.unwrap();
    let db = Database { pool: PgPool::connect(&db.url).await.unwrap(), ..db };
    let recovering: bool =
        sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&db.pool).await.unwrap();
    assert!(recovering);
    let row = row_with(&db.pool, "the end of the lease", |row| !row.owned).await;
    assert_eq!((row.attempts, row.last_error.is_none()), (0, true));
    // Crashed and back as a primary.
    std::fs::remove_file(&signal).unwrap();
    server = server.restart(StopMode::Immediate).await.unwrap();
    let db = Database { pool: PgPool::connect(&db.url).await.unwrap(), ..db };
    let last = append(&db.pool, 5).await;
    goes_on(&db, last).await;
    life.end().await;
    server.stop().await;
}
