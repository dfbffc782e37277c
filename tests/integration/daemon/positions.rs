//! Positions that somebody has chosen, and ids far apart: what is settled is known by observation alone, so that no position
//! of one processor makes another one lose an event.

use sqlx::{Connection as _, PgConnection, PgPool};

use crate::support::facts::{append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::{Installation, Program};
use crate::support::{self, Database};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\nisolation = 'task'\n";

const INSERT: &str = "insert into espd.events (aggregate_id, type, version, body)
                      values (gen_random_uuid(), 'A', 1, '{}') returning id";

/// A store with some events, and a daemon whose projector `seen` has noted them.
async fn seen(events: i64) -> (Database, Installation, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("seen", "");
    let last = append(&db.pool, events).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "seen", last).await;
    (db, installation, daemon)
}

/// A writer that has drawn this id and does not commit yet.
async fn open_writer(db: &Database, id: i64) -> PgConnection {
    let mut writer = PgConnection::connect(&db.url).await.unwrap();
    sqlx::raw_sql("begin").execute(&mut writer).await.unwrap();
    let drawn: i64 = sqlx::query_scalar(INSERT).fetch_one(&mut writer).await.unwrap();
    assert_eq!(drawn, id);
    writer
}

async fn commit(mut writer: PgConnection) {
    sqlx::raw_sql("commit").execute(&mut writer).await.unwrap();
}

fn declare_reactor(installation: &Installation, name: &str, start: &str) {
    let text = format!(
        "[reactor]\nname = '{name}'\n{start}\n[reactor.tables]\n{name} = 'event_id bigint'\n\
         [[reactor.on]]\nevents = ['A']\nsql = 'insert into {name} (event_id) values (event.id)'\n"
    );
    installation.declare(name, &text);
}

/// Takes the watchers' connections away; all of them are there again when this returns.
async fn replace_watchers(pool: &PgPool) {
    let watchers = "from pg_stat_activity
                    where datname = current_database() and application_name like 'espd: % (watcher)'";
    let pids = async || -> Vec<i32> {
        let list = sqlx::AssertSqlSafe(format!("select pid {watchers}"));
        sqlx::query_scalar(list).fetch_all(pool).await.unwrap()
    };
    let before = eventually("a watcher", async || Some(pids().await).filter(|pids| !pids.is_empty())).await;
    let end = sqlx::AssertSqlSafe(format!("select pg_terminate_backend(pid) {watchers}"));
    sqlx::raw_sql(end).execute(pool).await.unwrap();
    eventually("new watchers", async || {
        let now = pids().await;
        (now.len() >= before.len() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
}

/// Waits until every watcher has looked several times from now on.
async fn watchers_look(pool: &PgPool) {
    for _ in 0..5 {
        let asked: f64 = sqlx::query_scalar("select extract(epoch from clock_timestamp())::float8")
            .fetch_one(pool)
            .await
            .unwrap();
        eventually("a look of each watcher", async || {
            let query = sqlx::query_scalar::<_, bool>(
                "select coalesce(bool_and(query_start > to_timestamp($1)), false) from pg_stat_activity
                 where datname = current_database() and application_name like 'espd: % (watcher)'",
            );
            query.bind(asked).fetch_one(pool).await.unwrap().then_some(())
        })
        .await;
    }
}

async fn handled(pool: &PgPool, table: &str) -> Vec<i64> {
    let query = sqlx::AssertSqlSafe(format!("select event_id from {table} order by 1"));
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn a_reactor_that_begins_now_waits_for_who_writes_and_costs_nobody_an_event() {
    let (db, installation, daemon) = seen(4).await;
    let writer = open_writer(&db, 5).await;
    append(&db.pool, 1).await;
    declare_reactor(&installation, "joining", "");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("a runner that has looked for a tracker", async || {
        let query = "select exists (select from pg_stat_activity
                     where datname = current_database() and application_name = 'espd: joining')";
        sqlx::query_scalar::<_, bool>(query).fetch_one(&db.pool).await.unwrap().then_some(())
    })
    .await;
    replace_watchers(&db.pool).await;
    let last = append(&db.pool, 1).await;
    watchers_look(&db.pool).await;
    commit(writer).await;
    reaches(&db.pool, "seen", last).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    // Its beginning is a place that everything before was settled at.
    let next = append(&db.pool, 1).await;
    reaches(&db.pool, "joining", next).await;
    let noted = handled(&db.pool, "joining").await;
    assert!(noted.contains(&next) && !noted.contains(&4), "{noted:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_chosen_position_costs_nobody_an_event() {
    let (db, installation, daemon) = seen(7).await;
    declare_reactor(&installation, "chosen", "start = 10");
    daemon.stop().await;
    let writer = open_writer(&db, 8).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "chosen", 10).await;
    replace_watchers(&db.pool).await;
    append(&db.pool, 4).await;
    replace_watchers(&db.pool).await;
    watchers_look(&db.pool).await;
    // The chosen position says nothing of what is settled, and who has handled all of that is live.
    for (name, state) in [("seen", "live"), ("chosen", "catching_up")] {
        let status = installation.status(name).await;
        assert_eq!((&status["horizon"], &status["head"]), (&7.into(), &12.into()), "{status}");
        assert_eq!(status["state"], state, "{status}");
    }
    commit(writer).await;
    reaches(&db.pool, "seen", 12).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    reaches(&db.pool, "chosen", 12).await;
    assert_eq!(handled(&db.pool, "chosen").await, [11, 12]);
    daemon.stop().await;
}

/// By hand, as an operator does who knows better.
#[tokio::test]
async fn a_tracker_that_was_moved_by_hand_costs_nobody_else_an_event() {
    let (db, installation, daemon) = seen(3).await;
    installation.declare_notes("other", "");
    daemon.stop().await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "other", 3).await;
    let writer = open_writer(&db, 4).await;
    append(&db.pool, 2).await;
    sqlx::raw_sql(
        "update espd.trackers set position = 6, epoch = epoch + 1, lease_until = null where name = 'other'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    replace_watchers(&db.pool).await;
    let last = append(&db.pool, 1).await;
    watchers_look(&db.pool).await;
    commit(writer).await;
    reaches(&db.pool, "seen", last).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_position_beyond_the_head_troubles_nobody_else() {
    let (db, installation, daemon) = seen(5).await;
    declare_reactor(&installation, "early", "start = 50");
    daemon.stop().await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "early", 50).await;
    for _ in 0..3 {
        replace_watchers(&db.pool).await;
        let last = append(&db.pool, 1).await;
        reaches(&db.pool, "seen", last).await;
    }
    let panicked = |line: &serde_json::Value| line.to_string().contains("panic");
    assert!(!daemon.log().iter().any(panicked), "a watcher has panicked");
    daemon.stop().await;
    // And the next start is not refused.
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 1).await;
    reaches(&db.pool, "seen", last).await;
    assert_exactly_once(&db.pool, &db.pool, "seen").await;
    assert_eq!(position(&db.pool, "early").await, 50);
    daemon.stop().await;
}

/// Beyond what a JSON reader in JavaScript can count.
const FAR: i64 = (1 << 53) + 1;

#[tokio::test]
async fn empty_ids_are_jumped_over_and_do_not_count_as_lag() {
    let (db, installation, daemon) = seen(3).await;
    let mut sequence = db.pool.begin().await.unwrap();
    sqlx::raw_sql("select setval('espd.events_id_seq', 9007199254740992)")
        .execute(&mut *sequence)
        .await
        .unwrap();
    sequence.commit().await.unwrap();
    reaches(&db.pool, "seen", FAR - 1).await;
    let last = append(&db.pool, 3).await;
    assert_eq!(last, FAR + 2);
    reaches(&db.pool, "seen", last).await;
    // And those who come later.
    installation.declare_notes("late", "");
    daemon.stop().await;
    let status = installation.status("late").await;
    assert_eq!((status["lag_events"].as_i64(), status["head"].as_i64()), (Some(6), Some(last)));
    let daemon = installation.start_daemon();
    reaches(&db.pool, "late", last).await;
    for name in ["seen", "late"] {
        assert_exactly_once(&db.pool, &db.pool, name).await;
        let live = eventually("a live processor", async || {
            Some(installation.status(name).await).filter(|status| status["state"] == "live")
        });
        assert_eq!(live.await["lag_events"], 0);
    }
    daemon.stop().await;
}

/// Each id a hundred thousand and more beyond the one before, as where ids are made of the time.
#[tokio::test]
async fn events_that_are_far_apart_are_handled_in_batches() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("sparse", "");
    sqlx::raw_sql(
        "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
         select n::bigint * 4194304, gen_random_uuid(), 'A', 1, '{}' from generate_series(1, 3000) as n;
         select setval('espd.events_id_seq', 3000::bigint * 4194304)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let daemon = installation.start_daemon();
    reaches(&db.pool, "sparse", 3000 * 4_194_304).await;
    assert_exactly_once(&db.pool, &db.pool, "sparse").await;
    let batches = daemon.logged("batch committed").len();
    assert!(batches < 60, "{batches} batches for 3,000 events");
    daemon.stop().await;
}
