//! Many processors in one worker: what they do together, and what each still does for itself.

use std::fmt::Write as _;

use nix::sys::signal::{Signal, kill};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgExecutor, PgPool};

use crate::support::facts::{Gate, append, append_typed, assert_exactly_once, eventually, position, reaches};
use crate::support::program::{Installation, Program};
use crate::support::{self, Database};

const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\nisolation = 'task'\n";

/// Looks at the store that cost next to nothing.
const RARELY: &str = "[runner]\npoll_interval_max = '5s'\nisolation = 'task'\n";

/// More processors than a worker has sessions for.
const MANY: usize = 10;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("notes_{number}")).collect()
}

/// A daemon whose one worker has so many processors of the events `A`.
async fn start_many(db: &Database, settings: &str, count: usize, first: &str) -> (Installation, Program) {
    let installation = Installation::new(&db.url, settings);
    for name in names(count) {
        installation.declare_notes(&name, first);
    }
    let daemon = installation.start_daemon();
    all_claimed(&db.pool, count).await;
    (installation, daemon)
}

async fn all_claimed(pool: &PgPool, count: usize) {
    eventually("all trackers claimed", async || {
        let claimed = "select count(*) from espd.trackers where owner is not null";
        let claimed: i64 = sqlx::query_scalar(claimed).fetch_one(pool).await.unwrap();
        (claimed == count as i64).then_some(())
    })
    .await;
}

async fn count(executor: impl PgExecutor<'_>, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(executor).await.unwrap()
}

/// Waits until the lease of each tracker that `condition` is true of has been renewed.
async fn all_renew(connection: &mut PgConnection, condition: &str) {
    let before: String =
        sqlx::query_scalar("select clock_timestamp()::text").fetch_one(&mut *connection).await.unwrap();
    let late = format!("select count(*) from espd.trackers where {condition} and updated_at <= '{before}'");
    eventually("leases renewed", async || (count(&mut *connection, &late).await == 0).then_some(())).await;
}

const CONNECTIONS: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and application_name like 'espd: %'";

#[tokio::test]
async fn idle_processors_of_one_worker_need_few_connections_and_few_statements() {
    const PROCESSORS: usize = 40;
    let db = support::database().await;
    let last = append(&db.pool, 10).await;
    let (_installation, daemon) = start_many(&db, RARELY, PROCESSORS, "").await;
    for name in names(PROCESSORS) {
        reaches(&db.pool, &name, last).await;
    }
    // In one transaction, because the server counts those of the test as well.
    let mut test = PgConnection::connect(&db.url).await.unwrap();
    let mut test = test.begin().await.unwrap();
    eventually("few connections", async || (count_now(&mut test, CONNECTIONS).await <= 8).then_some(()))
        .await;

    // Alone, each lease would need a transaction of its own. Not always the first time: what a session has done is counted
    // late, when it has been idle for ten seconds.
    eventually("few transactions for three renewals", async || {
        let commits = "select xact_commit from pg_stat_database where datname = current_database()";
        let before = count_now(&mut test, commits).await;
        for _ in 0..3 {
            all_renew(&mut test, "true").await;
        }
        (count_now(&mut test, commits).await - before < PROCESSORS as i64).then_some(())
    })
    .await;
    daemon.stop().await;
    eventually("all closed", async || (count_now(&mut test, CONNECTIONS).await == 0).then_some(())).await;
}

/// A figure of the server's statistics, which a transaction otherwise sees as it has seen them first.
/// Notes on which session each table is made, and takes its time.
const SLOW_TABLES: &str = "create table public.made_on (session integer not null);
    create function note_session() returns event_trigger language plpgsql as $$ begin
      perform pg_sleep(0.15);
      insert into public.made_on values (pg_backend_pid());
    end $$;
    create event trigger slow on ddl_command_end when tag in ('CREATE TABLE') execute function note_session()";

#[tokio::test]
async fn processors_that_all_begin_at_once_wait_for_their_turn_and_open_no_sessions_of_their_own() {
    const PROCESSORS: usize = 60;
    let db = support::database().await;
    sqlx::raw_sql(SLOW_TABLES).execute(&db.pool).await.unwrap();
    let (_installation, daemon) = start_many(&db, RUNNER, PROCESSORS, "").await;
    eventually("all tables", async || {
        (count(&db.pool, "select count(*) from public.made_on").await == PROCESSORS as i64).then_some(())
    })
    .await;
    // Four, and more where a turn takes longer than a second on a busy machine. There were 40 when whoever had waited for a
    // second opened another.
    let sessions = count(&db.pool, "select count(distinct session) from public.made_on").await;
    assert!(sessions <= 15, "{PROCESSORS} tables were made on {sessions} sessions");
    daemon.stop().await;
}

async fn count_now(transaction: &mut PgConnection, query: &str) -> i64 {
    sqlx::query("select pg_stat_clear_snapshot()").execute(&mut *transaction).await.unwrap();
    count(transaction, query).await
}

/// A projector of events of one type, which counts them.
fn declare_typed(installation: &Installation, name: &str, event_type: &str) {
    let mut text = String::new();
    write!(
        text,
        "[projector]\nname = '{name}'\n[projector.tables]\n{name} = 'place bigint generated always as identity, event_id bigint'\n\
         [[projector.on]]\nevents = ['{event_type}']\nsql = 'insert into {name} (event_id) values (event.id)'\n"
    )
    .unwrap();
    installation.declare(name, &text);
}

#[tokio::test]
async fn positions_pass_over_events_of_others_together_and_stop_before_their_own() {
    let db = support::database().await;
    let pool = &db.pool;
    // Calls of the generated functions are counted.
    sqlx::raw_sql(AssertSqlSafe(format!(
        "alter database {} set track_functions = 'pl'",
        database_name(pool).await
    )))
    .execute(pool)
    .await
    .unwrap();
    let installation = Installation::new(&db.url, RUNNER);
    for number in 0..MANY {
        // The last two handle what never comes.
        declare_typed(&installation, &format!("typed_{number}"), &format!("T{number}"));
    }
    let mixed = "insert into espd.events (aggregate_id, type, version, body)
        select gen_random_uuid(), 'T' || (case when random() < 0.95 then 100 else floor(random() * 8) end)::int, 1, '{}'
        from generate_series(1, $1)";
    sqlx::query(mixed).bind(20_000).execute(pool).await.unwrap();
    let daemon = installation.start_daemon();
    all_claimed(pool, MANY).await;
    for _ in 0..30 {
        sqlx::query(mixed).bind(40).execute(pool).await.unwrap();
    }
    let last = append_typed(pool, "T100", 1).await;
    for number in 0..MANY {
        let name = format!("typed_{number}");
        reaches(pool, &name, last).await;
        let differing = format!(
            "select count(*) from (select id, row_number() over (order by id) as place from espd.events where type = 'T{number}') as e
             full join (select event_id, row_number() over (order by place) as place from {name}) as n using (place)
             where e.id is distinct from n.event_id"
        );
        assert_eq!(count(pool, &differing).await, 0, "{name}");
    }
    daemon.stop().await;
    let batches =
        "select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions where funcname ~ 'typed_[89]'";
    assert_eq!(count(pool, batches).await, 0, "those that nothing concerns have no batch");
    let batches =
        "select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions where funcname ~ 'typed_[0-7]'";
    assert!(count(pool, batches).await > 0, "calls are counted");
}

async fn database_name(pool: &PgPool) -> String {
    sqlx::query_scalar("select quote_ident(current_database())").fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_tracker_that_is_locked_keeps_nobody_elses_lease_from_being_renewed() {
    let db = support::database().await;
    let (_installation, daemon) = start_many(&db, RUNNER, MANY, "").await;
    let mut locked = db.pool.begin().await.unwrap();
    sqlx::query("select from espd.trackers where name = 'notes_3' for update")
        .execute(&mut *locked)
        .await
        .unwrap();
    // The transaction that holds the lock sees what others commit.
    for _ in 0..3 {
        all_renew(&mut locked, "name <> 'notes_3'").await;
    }
    locked.rollback().await.unwrap();
    all_renew(&mut db.pool.acquire().await.unwrap(), "true").await;
    let epochs = "select sum(epoch)::bigint from espd.trackers where name <> 'notes_3'";
    assert_eq!(count(&db.pool, epochs).await, MANY as i64 - 1, "no claim was lost");
    daemon.stop().await;
}

#[tokio::test]
async fn a_claim_names_the_session_that_works_for_it_and_a_frozen_owner_loses_it() {
    let db = support::database().await;
    let (installation, owner) = start_many(&db, RUNNER, MANY, &Gate::at(777)).await;
    let last = append(&db.pool, 10).await;
    for name in names(MANY) {
        reaches(&db.pool, &name, last).await;
    }
    let standby = installation.start_daemon();
    eventually("all stood by", async || {
        let standing = count(&db.pool, "select count(*) from espd.signs_of_life where epoch is null").await;
        (standing == MANY as i64).then_some(())
    })
    .await;
    let mut gate = Gate::close(&db.pool, 777).await;
    append(&db.pool, 800).await;
    gate.visitor().await;
    // Each of those that stand at the gate works on the session that its tracker names.
    let at_the_gate = "select count(*) from pg_locks as l join pg_stat_activity as a using (pid)
        where l.locktype = 'advisory' and not l.granted and a.datname = current_database()";
    let named = "select count(*) from pg_locks as l join pg_stat_activity as a using (pid)
        join espd.trackers as t on 'espd: ' || t.name = a.application_name and t.backend_pid = a.pid
          and t.backend_start = a.backend_start
        where l.locktype = 'advisory' and not l.granted and a.datname = current_database()";
    // A batch that waits must not keep the others waiting.
    eventually("all at the gate", async || (count(&db.pool, at_the_gate).await == MANY as i64).then_some(()))
        .await;
    assert_eq!(count(&db.pool, named).await, MANY as i64);

    let worker = owner.child("all-tasks", 1).await;
    for pid in [owner.pid(), worker] {
        kill(pid, Signal::SIGSTOP).unwrap();
    }
    standby.says("ended the backend of an owner that gives no sign of life").await;
    gate.open().await;
    let last = count(&db.pool, "select max(id) from espd.events").await;
    for name in names(MANY) {
        reaches(&db.pool, &name, last).await;
        assert_exactly_once(&db.pool, &db.pool, &name).await;
    }
    for pid in [worker, owner.pid()] {
        kill(pid, Signal::SIGCONT).unwrap();
    }
    owner.says("standing by: another daemon owns the processor").await;
    owner.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn a_store_that_goes_back_is_noticed_by_all_while_they_are_idle() {
    let db = support::database().await;
    let (_installation, daemon) = start_many(&db, RUNNER, MANY, "").await;
    let last = append(&db.pool, 10).await;
    for name in names(MANY) {
        reaches(&db.pool, &name, last).await;
    }
    sqlx::query("delete from espd.events where id = $1").bind(last).execute(&db.pool).await.unwrap();
    eventually("all diverged", async || {
        let diverged = count(&db.pool, "select count(*) from espd.trackers where diverged is not null").await;
        (diverged == MANY as i64).then_some(())
    })
    .await;
    assert_eq!(position(&db.pool, "notes_0").await, last);
    daemon.stop().await;
}
