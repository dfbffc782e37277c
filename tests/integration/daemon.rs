//! What surrounds a daemon: databases that are down, restarted, elsewhere, private or not ready, and the configuration.

mod deployment;
mod log;
mod only_scheduled;
mod positions;
mod preconditions;
mod reload;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use espd::embedded::{EmbeddedPostgres, Options, StopMode};
use espd::schema::{migrate_event_store, migrate_processing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::support::facts::{Gate, append, assert_exactly_once, eventually, position, reaches};
use crate::support::program::{Installation, Program, Talker, is_alive, run};
use crate::support::{self, SCHEMA};

/// Small batches and short poll intervals.
const RUNNER: &str = "[runner]\nbatch_size = 100\npoll_interval_max = '50ms'\n";

/// Creates a database on a private server, with both sets of migrations.
async fn migrated(server: &EmbeddedPostgres, name: &str) -> PgPool {
    server.create_database(name, None).await.unwrap();
    let pool = PgPoolOptions::new().connect(&server.url(name)).await.unwrap();
    migrate_event_store(&pool, SCHEMA).await.unwrap();
    migrate_processing(&pool, SCHEMA).await.unwrap();
    pool
}

async fn start_at(folder: &Path) -> EmbeddedPostgres {
    EmbeddedPostgres::start_at(folder, Options { durable: false, ..Options::default() }).await.unwrap()
}

/// Creates a folder that the server's unprivileged user can reach.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

#[tokio::test]
async fn a_daemon_waits_for_a_database_that_is_down_and_starts_when_it_is_up() {
    let folder = open_folder();
    let server = start_at(&folder.path().join("server")).await;
    let pool = migrated(&server, "events").await;
    let installation = Installation::new(&server.url("events"), RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&pool, 10).await;
    pool.close().await;
    server.stop().await;

    let daemon = installation.start_daemon();
    let said = daemon.says("the database does not answer").await;
    assert!(said["retry_in_ms"].is_u64(), "{said}");
    let server = start_at(&folder.path().join("server")).await;
    let pool = PgPool::connect(&server.url("events")).await.unwrap();
    reaches(&pool, "notes", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_waits_for_a_database_that_goes_down_during_the_check_too() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 10).await;
    let mut transaction = db.pool.begin().await.unwrap();
    // The check reads it, whatever the server's version.
    sqlx::query("lock table espd._processing_migrations in access exclusive mode")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let daemon = installation.start_daemon();
    let ended = eventually("the daemon at the lock", async || {
        let query = sqlx::query_scalar::<_, bool>(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'espd' and wait_event_type = 'Lock'",
        );
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    assert!(ended);
    daemon.says("the database does not answer").await;
    // The daemon asks again, and waits for the lock again. It still listens to requests to stop there.
    let mut impatient = installation.start_daemon();
    eventually("both at the lock", async || {
        let query = sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'espd' and wait_event_type = 'Lock'",
        );
        query.fetch_optional(&db.pool).await.unwrap().filter(|waiting| *waiting == 2)
    })
    .await;
    impatient.signal(Signal::SIGTERM);
    assert_eq!(impatient.ended().await.code(), Some(0));
    transaction.rollback().await.unwrap();
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_waits_for_its_database_stops_when_asked() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let installation = Installation::new(&format!("postgres://espd@127.0.0.1:{port}/events"), RUNNER);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let (_connection, _) = silent.accept().unwrap();
    let begun = Instant::now();
    daemon.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_unclean_restart_of_the_server_loses_and_doubles_nothing() {
    let mut server = support::server().await;
    let pool = migrated(&server, "events").await;
    let installation = Installation::new(&server.url("events"), RUNNER);
    installation.declare_notes("busy", &(Gate::at(450) + &Gate::at(550))).declare_notes("idle", "");
    append(&pool, 1_000).await;
    let daemon = installation.start_daemon();
    for number in [450, 550] {
        let mut gate = Gate::close(&pool, number).await;
        append(&pool, 1_000).await;
        gate.visitor().await;
        // This writer has drawn ids and will never commit them.
        let mut writer = PgConnection::connect(&server.url("events")).await.unwrap();
        let mut transaction = writer.begin().await.unwrap();
        sqlx::query("insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')")
            .execute(&mut *transaction)
            .await
            .unwrap();
        server = server.restart(StopMode::Immediate).await.unwrap();
    }
    // The pool's connections are those of the server before.
    let pool = PgPool::connect(&server.url("events")).await.unwrap();
    let last = append(&pool, 1_000).await;
    for name in ["busy", "idle"] {
        reaches(&pool, name, last).await;
        assert_exactly_once(&pool, &pool, name).await;
        assert_eq!(daemon.children(name).len(), 1);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_second_daemon_stands_by_and_takes_over_from_one_that_stops() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let first = installation.start_daemon();
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    let second = installation.start_daemon();
    second.says("standing by: another daemon owns the processor").await;
    first.stop().await;
    second.says("claimed").await;
    let last = append(&db.pool, 10).await;
    reaches(&db.pool, "notes", last).await;
    assert_exactly_once(&db.pool, &db.pool, "notes").await;
    assert_eq!(second.logged("worker started").len(), 1);
    second.stop().await;
}

#[tokio::test]
async fn a_processor_that_cannot_run_does_not_keep_the_others_from_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let broken = "[projector]\nname = 'broken'\n[[projector.on]]\nevents = ['A']\nsql = 'insert insert'\n";
    installation.declare("broken", broken).declare_notes("fine", "");
    let last = append(&db.pool, 10).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "fine", last).await;
    daemon.says("cannot continue until an operator acts").await;
    let status = eventually("the failure", async || {
        let status = installation.status("broken").await;
        (status["state"] == "failed").then_some(status)
    })
    .await;
    let message = status["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("broken.toml:5:") && message.contains("insert"), "{message}");
    assert_eq!(position(&db.pool, "broken").await, 0);
    // Once its declaration is fixed, it runs after a restart, and nothing is left of the failure.
    daemon.stop().await;
    installation.declare("broken", &broken.replace("insert insert", "perform 1"));
    let daemon = installation.start_daemon();
    reaches(&db.pool, "broken", last).await;
    let status = installation.status("broken").await;
    assert_eq!((&status["state"], status["last_error"].is_null()), (&"live".into(), true), "{status}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_database_of_the_environment_that_the_daemon_does_not_use_is_told_by_both_programs() {
    let db = support::database().await;
    let installation = Installation::without_database(RUNNER);
    installation.declare_notes("notes", "");
    std::fs::set_permissions(installation.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = installation.espd_command(&["run"]);
    command.env("DATABASE_URL", &db.url);
    let daemon = Program::start(command);
    let line = daemon.says("no database is configured: running a private PostgreSQL").await;
    daemon
        .says("DATABASE_URL names another database, which this daemon does not work on, while `espctl` does")
        .await;
    daemon.says("worker started").await;
    let status = |url: &str| {
        let mut command = installation.espctl_command(&["status", "--json"]);
        command.env("DATABASE_URL", url);
        run(command, "")
    };
    let elsewhere = status(&db.url).await;
    assert!(
        elsewhere.stderr.contains("warning: this is about the database that DATABASE_URL names"),
        "{elsewhere:?}"
    );
    let here = status(line["DATABASE_URL"].as_str().unwrap()).await;
    assert!(here.code == Some(0) && here.stderr.is_empty(), "{here:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_database_of_its_own_a_daemon_runs_a_private_one_that_keeps_its_data() {
    let installation = Installation::without_database(RUNNER);
    installation.declare_notes("notes", "");
    std::fs::set_permissions(installation.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for number in 1..=2 {
        let daemon = installation.start_daemon();
        daemon.says("worker started").await;
        let line = daemon.says("no database is configured: running a private PostgreSQL").await;
        let pool = PgPool::connect(line["DATABASE_URL"].as_str().unwrap()).await.unwrap();
        let last = append(&pool, 10).await;
        assert!(last >= number * 10, "{last}");
        reaches(&pool, "notes", last).await;
        assert_exactly_once(&pool, &pool, "notes").await;
        // A tool that is started in the same folder finds the server by itself.
        assert_eq!(installation.status("notes").await["position"], last);
        let mut without_file = installation.espctl_command(&["status", "--json"]);
        let output = without_file.env_remove("ESPD_CONFIG").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let postmaster = installation.path().join(".espd/postgres/data/postmaster.pid");
        assert!(postmaster.exists());
        pool.close().await;
        daemon.stop().await;
        assert!(!postmaster.exists(), "the private server still runs");
        let complaint = installation.espctl(&["status"]).await.complained(1);
        assert!(complaint.contains("no database is named"), "{complaint}");
    }
}

#[tokio::test]
async fn a_daemon_refuses_what_it_cannot_run_and_says_what_to_do() {
    let db = support::empty_database().await;
    let installation = Installation::new(&db.url, RUNNER);
    let complaint = installation.espd(&["run"]).await;
    assert!(
        complaint.stderr.contains("no processor is declared") || complaint.stderr.contains("espctl migrate")
    );
    installation.declare_notes("notes", "");
    let complaint = installation.espd(&["run"]).await.stderr;
    assert!(complaint.contains("espd ends") && complaint.contains("run `espctl migrate`"), "{complaint}");

    installation.espctl(&["migrate"]).await.printed();
    installation.declare("notes", "[projector]\nname = 'notes'\nbatch = 3\n");
    let complaint = installation.espd(&["run"]).await.complained(64);
    assert!(complaint.contains("processors/notes.toml:3:"), "{complaint}");
    std::fs::remove_file(installation.path().join("processors/notes.toml")).unwrap();
    let complaint = installation.espd(&["run"]).await;
    assert_eq!(complaint.code, Some(64));
    assert!(complaint.stderr.contains("no processor is declared"), "{complaint:?}");
    let complaint = installation.espd(&["worker", "notes"]).await.complained(64);
    assert!(complaint.contains("no processor notes is declared"), "{complaint}");
    assert_eq!(installation.espd(&["dance"]).await.code, Some(2));
    let complaint = installation.espd(&["run", "--config", "nowhere.toml"]).await.complained(64);
    assert!(complaint.contains("nowhere.toml"), "{complaint}");
}

#[tokio::test]
async fn the_demo_tells_its_story_is_found_by_espctl_and_leaves_nothing_behind() {
    let installation = Installation::without_database("");
    // So that no other test of this user finds the demo.
    let temporary = installation.path().to_owned();
    let demo_arguments = ["demo", "--events", "500", "--rate", "20", "--pause", "100ms"];
    let mut command = installation.espd_command(&demo_arguments);
    command.env("TMPDIR", &temporary).stderr(Stdio::piped());
    let mut demo = Talker::start(command);
    let line = async |demo: &mut Talker, wanted: &str| loop {
        let line = demo.next().await;
        if line.contains(wanted) {
            return line;
        }
    };
    line(&mut demo, "appended 500 events").await;
    line(&mut demo, "curl http://127.0.0.1:").await;
    line(&mut demo, "caught up: 3 × 500 events").await;
    line(&mut demo, "killed the worker of outstanding_todos").await;
    line(&mut demo, "nothing lost, nothing twice").await;
    line(&mut demo, "set aside after 3 attempts").await;
    line(&mut demo, "corrected that handler").await;
    let retry = line(&mut demo, "dead-letters retry completed_todos").await;
    for name in ["completed_todos", "outstanding_todos", "scheduled_todos", "thank_stakeholders"] {
        while !line(&mut demo, name).await.contains(" live ") {}
    }
    let link = std::fs::read_dir(&temporary).unwrap().flatten().find(|entry| {
        entry.file_name().to_string_lossy().starts_with("espd-demo-")
            && entry.file_type().unwrap().is_symlink()
    });
    let file = std::fs::read_to_string(link.expect("a link to the demo").path().join("espd.toml")).unwrap();
    let url = file.lines().find_map(|line| line.strip_prefix("url = '")).unwrap().trim_end_matches('\'');
    // A machine under load may take longer than the command waits by itself.
    let arguments: Vec<_> = retry.split_whitespace().skip(1).chain(["--wait", "5m"]).collect();
    let mut command = installation.espctl_command(&arguments);
    command.env("TMPDIR", &temporary).env_remove("ESPD_CONFIG").current_dir("/");
    let retried = command.output().unwrap();
    assert!(retried.status.success(), "{retried:?}");
    kill(Pid::from_raw(demo.process.id().cast_signed()), Signal::SIGINT).unwrap();
    line(&mut demo, "nothing is left behind").await;
    let process = &mut demo.process;
    let status = eventually("the end of the demo", async || process.try_wait().unwrap()).await;
    // Any process that still ran would have this open.
    let complaints = std::io::read_to_string(process.stderr.take().unwrap()).unwrap();
    assert_eq!((status.code(), complaints.as_str()), (Some(0), ""));
    assert!(PgConnection::connect(url).await.is_err(), "the demo's server still runs");
    let left: Vec<_> =
        std::fs::read_dir(&temporary).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("espd-demo")), "{left:?}");
}

/// Every column of an event, so that a difference between the two ways to a handler would show.
const COPY: &str = "
[projector]
name = 'copy'
[projector.tables]
copy = '''place bigint generated always as identity, event_id bigint, uuid uuid, aggregate_id uuid, type text,
  version bigint, body jsonb, metadata jsonb, correlation_id uuid, causation_id uuid, created_at timestamptz'''
[[projector.on]]
events = ['A', 'B']
sql = '''
  if (event.body->>'n')::bigint in (450, 640) then
    perform pg_advisory_xact_lock_shared((event.body->>'n')::bigint);
  end if;
  insert into copy (event_id, uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at)
  values (event.id, event.uuid, event.aggregate_id, event.type, event.version, event.body, event.metadata,
    event.correlation_id, event.causation_id, event.created_at)'''
";

#[tokio::test]
async fn projections_in_another_database_are_the_same_and_exactly_once() {
    let (events, projections) = (support::empty_database().await, support::empty_database().await);
    let elsewhere = format!("{RUNNER}[projections]\nurl = '{}'\n", projections.url);
    let installation = Installation::new(&events.url, &elsewhere);
    installation.declare("copy", COPY).espctl(&["migrate"]).await.printed();
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body, metadata, correlation_id, causation_id)
         select gen_random_uuid(), (array['A', 'B', 'C'])[n % 3 + 1], 1,
           jsonb_build_object('n', n, 'big', 1.10::numeric * 10 ^ 30, 'text', E'\\u00fc \"\\\\'), '{\"m\": [1]}',
           gen_random_uuid(), case when n % 2 = 0 then gen_random_uuid() end
         from generate_series(1, 1000) as n",
    )
    .execute(&events.pool)
    .await
    .unwrap();
    let (mut gate, mut next_gate) =
        (Gate::close(&projections.pool, 450).await, Gate::close(&projections.pool, 640).await);
    let daemon = installation.start_daemon();
    gate.visitor().await;
    kill(daemon.child("copy", 1).await, Signal::SIGKILL).unwrap();
    let second = daemon.child("copy", 2).await;
    gate.open().await;
    let visitor = next_gate.visitor().await;
    kill(second, Signal::SIGKILL).unwrap();
    sqlx::query("select pg_terminate_backend($1)").bind(visitor).execute(&projections.pool).await.unwrap();
    daemon.child("copy", 3).await;
    next_gate.open().await;
    reaches(&projections.pool, "copy", 1_000).await;

    let columns =
        "uuid, aggregate_id, type, version, body, metadata, correlation_id, causation_id, created_at";
    let appended = format!("select id, {columns} from espd.events where type <> 'C' order by id");
    let copied = format!("select event_id, {columns} from copy order by place");
    assert_eq!(contents(&projections.pool, &copied).await, contents(&events.pool, &appended).await);

    // The tracker and the tables are in the same database, and operators reach both.
    assert!(!exists(&events.pool, "espd.trackers").await && !exists(&projections.pool, "espd.events").await);
    assert_eq!(installation.status("copy").await["position"], 1_000);
    installation.espctl(&["reset", "copy", "--in-place", "--yes"]).await.printed();
    installation.espctl(&["wait", "copy", "--position", "1000"]).await.printed();
    assert_eq!(contents(&projections.pool, &copied).await, contents(&events.pool, &appended).await);
    installation.espctl(&["check"]).await.printed();
    assert!(is_alive(daemon.child("copy", 3).await));
    daemon.stop().await;
}

async fn contents(pool: &PgPool, query: &str) -> Vec<String> {
    let query = format!("select row(rows.*)::text from ({query}) as rows");
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(pool).await.unwrap()
}

async fn exists(pool: &PgPool, table: &str) -> bool {
    sqlx::query_scalar("select to_regclass($1) is not null").bind(table).fetch_one(pool).await.unwrap()
}
