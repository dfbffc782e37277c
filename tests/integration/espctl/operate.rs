//! `espctl pause`, `resume`, `reset` and `wait`, with a daemon that runs and without.

use sqlx::PgPool;
use sqlx::postgres::PgListener;

use crate::support;
use crate::support::Database;
use crate::support::facts::{append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::{Installation, Program};

use espd::embedded::StopMode;

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

/// A daemon, and its projectors `notes` and `other` that have handled ten events.
async fn running() -> (Database, Installation, Program) {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "").declare_notes("other", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    reaches(&db.pool, "other", last).await;
    (db, installation, daemon)
}

async fn noted(pool: &PgPool) -> Vec<i64> {
    sqlx::query_scalar("select event_id from notes order by place").fetch_all(pool).await.unwrap()
}

/// What operators have done: who, what, from where, to where.
async fn operator_log(pool: &PgPool) -> Vec<(String, i64, i64)> {
    let log: Vec<(String, String, i64, i64)> = sqlx::query_as(
        "select operator, action, from_position, to_position from espd.operator_log order by id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(log.iter().all(|(operator, ..)| operator.contains('@') && !operator.contains('?')), "{log:?}");
    log.into_iter().map(|(_, action, from, to)| (action, from, to)).collect()
}

#[tokio::test]
async fn a_running_daemon_pauses_and_resumes_a_processor_on_request() {
    let (db, installation, daemon) = running().await;
    assert_eq!(installation.espctl(&["pause", "notes"]).await.printed(), "notes paused at position 10\n");
    let status = installation.status("notes").await;
    assert_eq!(status["state"], "paused");
    assert!(
        status["paused_by"].as_str().unwrap().contains('@') && status["paused_at"].is_string(),
        "{status}"
    );
    let said = installation.espctl(&["pause", "notes"]).await.printed();
    assert_eq!(said, "notes was paused already at position 10\n");

    daemon.says("paused").await;
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "other", last).await;
    assert_eq!(position(&db.pool, "notes").await, 10);
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("Run `espctl resume notes`."), "{table}");

    assert_eq!(installation.espctl(&["resume", "notes"]).await.printed(), "notes resumes from position 10\n");
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    let said = installation.espctl(&["resume", "notes"]).await.printed();
    assert_eq!(said, "notes was neither paused nor failed, at position 20\n");
    assert_eq!(operator_log(&db.pool).await, [("pause".into(), 10, 10), ("resume".into(), 10, 10)]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_running_daemon_rebuilds_the_tables_of_a_reset_projector() {
    let (db, installation, daemon) = running().await;
    sqlx::query("update notes set event_id = -1").execute(&db.pool).await.unwrap();
    let said = installation.espctl(&["reset", "notes", "--in-place", "--yes"]).await.printed();
    assert_eq!(said, "notes was at 10, is at 0\n");
    reaches(&db.pool, "notes", 10).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    assert_eq!(operator_log(&db.pool).await, [("reset".into(), 10, 0)]);
    assert_eq!(installation.status("notes").await["handled"], 10);
    daemon.stop().await;
}

#[tokio::test]
async fn a_position_is_moved_without_touching_the_tables() {
    let (db, installation, daemon) = running().await;
    let said = installation.espctl(&["reset", "notes", "--to", "7", "--yes"]).await.printed();
    assert_eq!(said, "notes was at 10, is at 7\n");
    eventually("the events after it, again", async || (noted(&db.pool).await.len() == 13).then_some(()))
        .await;
    assert_eq!(noted(&db.pool).await[10..], [8, 9, 10]);

    sqlx::query("update espd.events set created_at = '2020-01-01' where id <= 4")
        .execute(&db.pool)
        .await
        .unwrap();
    let said =
        installation.espctl(&["reset", "notes", "--at", "2020-01-01T12:00:00Z", "--yes"]).await.printed();
    assert_eq!(said, "notes was at 10, is at 4\n");
    eventually("the events after it, again", async || (noted(&db.pool).await.len() == 19).then_some(()))
        .await;

    let complaint = installation.espctl(&["reset", "notes", "--to", "11", "--yes"]).await.complained(1);
    assert!(complaint.contains("the last settled position is 10"), "{complaint}");
    assert_eq!(installation.espctl(&["reset", "notes", "--to", "-1"]).await.code, Some(2));
    assert_eq!(operator_log(&db.pool).await, [("reset".into(), 10, 7), ("reset".into(), 10, 4)]);
    daemon.stop().await;
}

#[tokio::test]
async fn an_unconfirmed_reset_does_nothing() {
    let (db, installation, daemon) = running().await;
    let before = noted(&db.pool).await;
    for (arguments, question) in [
        (
            &["reset", "notes", "--in-place"][..],
            "This drops and recreates public.notes and lets notes handle 10 ids again",
        ),
        (&["reset", "notes", "--to", "7"], "This lets notes handle 3 ids again and keeps its tables"),
    ] {
        let complaint = installation.espctl(arguments).await.complained(1);
        assert!(complaint.contains(question), "{complaint}");
        assert!(complaint.contains("nothing was done: add --yes"), "{complaint}");
    }
    assert_eq!((noted(&db.pool).await, operator_log(&db.pool).await), (before, vec![]));
    assert_eq!(position(&db.pool, "notes").await, 10);
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_daemon_operators_prepare_what_the_next_one_does() {
    let (db, installation, daemon) = running().await;
    daemon.stop().await;
    assert_eq!(installation.status("notes").await["state"], "stopped");
    installation.espctl(&["pause", "notes"]).await.printed();
    installation.espctl(&["reset", "notes", "--in-place", "--yes"]).await.printed();
    assert_eq!((noted(&db.pool).await, position(&db.pool, "notes").await), (vec![], 0));

    let daemon = installation.start_daemon();
    daemon.says("claimed").await;
    eventually("the pause", async || {
        let status = installation.status("notes").await;
        (status["owner"].is_string() && status["state"] == "paused").then_some(())
    })
    .await;
    assert_eq!(position(&db.pool, "notes").await, 0);
    installation.espctl(&["resume", "notes"]).await.printed();
    installation.espctl(&["wait", "notes"]).await.printed();
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    daemon.stop().await;
}

#[tokio::test]
async fn every_operation_notifies_the_daemons() {
    let (db, installation, daemon) = running().await;
    daemon.stop().await;
    let mut listener = PgListener::connect_with(&db.pool).await.unwrap();
    listener.listen("espd_events").await.unwrap();
    for arguments in
        [&["pause", "notes"][..], &["resume", "notes"], &["reset", "notes", "--in-place", "--yes"]]
    {
        installation.espctl(arguments).await.printed();
        let heard = tokio::time::timeout(std::time::Duration::from_secs(30), listener.recv()).await;
        assert_eq!(heard.expect("no notification").unwrap().payload(), "control", "{arguments:?}");
    }
}

#[tokio::test]
async fn an_unknown_processor_is_named_with_those_that_are_known() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    for action in ["pause", "resume", "reset"] {
        let complaint = installation.espctl(&[action, "nots"]).await.complained(1);
        assert!(complaint.contains("no processor nots: none has run on this database yet"), "{complaint}");
    }
    sqlx::query("insert into espd.trackers (name, kind, version) values ('notes', 'projector', 1)")
        .execute(&db.pool)
        .await
        .unwrap();
    let complaint = installation.espctl(&["pause", "nots"]).await.complained(1);
    assert!(complaint.contains("no processor nots; there are notes"), "{complaint}");
    // It is not declared, so its tables are not known either.
    let complaint = installation.espctl(&["reset", "notes", "--in-place", "--yes"]).await.complained(1);
    assert!(complaint.contains("notes is not declared"), "{complaint}");
}

#[tokio::test]
async fn nobody_waits_for_a_processor_that_has_stopped_at_an_event() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let fails = "[projector]\nname = 'notes'\n[projector.retry]\nmax_attempts = 1\non_failure = 'stop'\n[projector.tables]\nnotes = 'event_id bigint'\n\
                 [[projector.on]]\nevents = ['A']\nsql = \"raise 'no'\"\n";
    installation.declare("notes", fails);
    let daemon = installation.start_daemon();
    append(&db.pool, 1).await;
    eventually("the failure", async || {
        (installation.status("notes").await["state"] == "failed").then_some(())
    })
    .await;
    let begun = std::time::Instant::now();
    let complaint = installation.espctl(&["wait", "notes", "--timeout", "60s"]).await.complained(1);
    assert!(complaint.starts_with("error: notes does not go on: "), "{complaint}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    daemon.stop().await;
}

#[tokio::test]
async fn waiting_ends_at_the_position_or_says_why_it_does_not() {
    let (db, installation, daemon) = running().await;
    assert_eq!(installation.espctl(&["wait", "notes"]).await.printed(), "notes is at 10\n");
    let wait = async |name: &str, position: &str| {
        let arguments = ["wait", name, "--position", position, "--timeout", "200ms"];
        installation.espctl(&arguments).await.complained(75)
    };
    let complaint = wait("notes", "11").await;
    assert_eq!(complaint, "error: notes has not reached 11 in time: it is at 10\n");
    installation.espctl(&["pause", "notes"]).await.printed();
    // Who is paused does not come: nobody waits for that.
    let begun = std::time::Instant::now();
    let arguments = ["wait", "notes", "--position", "11", "--timeout", "60s"];
    let complaint = installation.espctl(&arguments).await.complained(1);
    assert!(complaint.starts_with("error: notes does not go on: it was paused"), "{complaint}");
    assert!(complaint.ends_with(" at 10\n") && begun.elapsed() < std::time::Duration::from_secs(30));
    assert_eq!(
        installation.espctl(&["wait", "notes", "--position", "10"]).await.printed(),
        "notes is at 10\n"
    );
    installation.espctl(&["resume", "notes"]).await.printed();
    let complaint = installation.espctl(&["wait", "another", "--position", "1"]).await.complained(1);
    assert_eq!(complaint, "error: no processor another; there are notes, other\n");

    daemon.stop().await;
    assert!(wait("notes", "11").await.ends_with("it is at 10, no worker owns it\n"));
    // It waits for the last event of now, and for a worker that is still to come.
    let last = append(&db.pool, 5).await;
    let (waited, daemon) = tokio::join!(installation.espctl(&["wait", "notes", "--timeout", "60s"]), async {
        eventually("the wait", async || {
            let query = sqlx::query_scalar::<_, i32>(
                "select pid from pg_stat_activity where datname = current_database() and application_name = 'espctl'
                   and query like '-- list_trackers%'",
            );
            query.fetch_optional(&db.pool).await.unwrap()
        })
        .await;
        installation.start_daemon()
    });
    assert_eq!(waited.printed(), format!("notes is at {last}\n"));
    daemon.stop().await;
}

/// Starts a wait, and returns once it has looked at the trackers several times.
async fn start_waiting(installation: &Installation, db: &Database, arguments: &[&str]) -> Program {
    let waiting = Program::start(installation.espctl_command(&[&["wait", "notes"][..], arguments].concat()));
    let mut looks = std::collections::HashSet::new();
    eventually("looks of the wait", async || {
        let look = "select query_start::text from pg_stat_activity
                    where datname = current_database() and application_name = 'espctl' and query like '%-- list_trackers%' order by query_start desc limit 1";
        looks.extend(sqlx::query_scalar::<_, String>(look).fetch_optional(&db.pool).await.ok()?);
        (looks.len() > 2).then_some(())
    })
    .await;
    waiting
}

/// A failover, or a restart of the server, is no end of a wait: it may be over within the time.
#[tokio::test]
async fn a_wait_survives_lost_connections_within_its_time() {
    let mut server = support::server().await;
    let db = support::database_on(&server).await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    for arguments in [&["--idle", "--timeout", "2m"][..], &["--position", "2", "--timeout", "2m"]] {
        append(&db.pool, 1).await;
        let mut waiting = start_waiting(&installation, &db, arguments).await;
        server = server.restart(StopMode::Fast).await.unwrap();
        let daemon = installation.start_daemon();
        assert!(waiting.ended().await.success(), "{:?}", waiting.log());
        daemon.stop().await;
    }

    // Where the database does not come back, the time-out is what ends it.
    let mut waiting = start_waiting(&installation, &db, &["--position", "1000", "--timeout", "3s"]).await;
    server.stop().await;
    assert_eq!(waiting.ended().await.code(), Some(75), "{:?}", waiting.log());
}

/// Nobody tries again what a serializable statement was refused for.
#[tokio::test]
async fn a_role_that_is_serializable_by_default_makes_no_command_so() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    installation.espctl(&["migrate"]).await.printed();
    let role: String = sqlx::query_scalar("select current_user::text").fetch_one(&db.pool).await.unwrap();
    let statement = format!(
        "alter role {role} in database {} set default_transaction_isolation = serializable;
         create table public.isolations (isolation text);
         create function note_isolation() returns trigger language plpgsql as
           'begin insert into public.isolations values (current_setting(''transaction_isolation'')); return new; end';
         create trigger note_isolation after update or insert on espd.trackers
           for each row execute function note_isolation();",
        db.name
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&db.pool).await.unwrap();
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    installation.espctl(&["pause", "notes"]).await.printed();
    installation.espctl(&["resume", "notes"]).await.printed();
    installation.espctl(&["reset", "notes", "--yes"]).await.printed();
    daemon.stop().await;
    let found: Vec<String> = sqlx::query_scalar("select distinct isolation from public.isolations")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    assert_eq!(found, ["read committed"]);
}
