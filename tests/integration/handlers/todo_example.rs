//! `examples/todo_processors`: the same projections and the same notifier, declared in SQL, in Rust and as programs, give the same
//! tables and the same emitted events, whichever process is killed meanwhile.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use espd::internals::todo_history::TodoHistory;
use espd::store::Layout;
use espd::store::{EventStore as _, PostgresEventStore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::PgPool;

use crate::support::facts::{append, eventually, position};
use crate::support::program::Program;
use crate::support::receiver::{Receiver, Reply};
use crate::support::{self, Database, SCHEMA};

const PROCESSORS: [&str; 4] =
    ["outstanding_todos", "scheduled_todos", "completed_todos", "todo_completed_notifier"];

const TABLES: [&str; 5] =
    ["outstanding_todos", "scheduled_todos", "completed_todos", "incomplete_todos", "notifiable_todos"];

const EVENTS: usize = 3_000;

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/todo_processors").join(file)
}

/// The program of `examples/todo_processors`, which cargo builds beside the tests.
fn rust_program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("examples/todo_processors")
}

fn start(program: &Path, config: &Path, db: &Database) -> Program {
    let mut command = Command::new(program);
    command.arg("run").arg("--config").arg(config).env("DATABASE_URL", &db.url).process_group(0);
    Program::start(command)
}

async fn append_history(db: &Database) -> i64 {
    let layout = Layout::espd(SCHEMA).unwrap();
    let store = PostgresEventStore::new(db.pool.clone(), layout).without_notifications();
    let events: Vec<_> = TodoHistory::new(11).take(EVENTS).collect();
    let mut last = 0;
    for batch in events.chunks(500) {
        last = store.append(batch).await.unwrap().last().unwrap().id.get();
    }
    last
}

/// Kills the workers of the database's processors, again and again, while they come this far.
async fn kill_until(db: &Database, wanted: i64) -> usize {
    let mut killed = 0;
    while killed < 4 {
        let pids: Vec<i32> = sqlx::query_scalar("select pid from espd.workers where pid is not null")
            .fetch_all(&db.pool)
            .await
            .unwrap();
        for pid in pids {
            killed += usize::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        }
        let before = progress(db).await;
        eventually("some progress", async || {
            let now = progress(db).await;
            (now > before || now >= wanted).then_some(())
        })
        .await;
    }
    killed
}

async fn progress(db: &Database) -> i64 {
    let mut slowest = i64::MAX;
    for name in PROCESSORS {
        slowest = slowest.min(position(&db.pool, name).await);
    }
    slowest
}

/// What is in the tables, and what was emitted; everything that must not depend on who handles the events.
async fn outcome(pool: &PgPool) -> BTreeMap<String, Vec<String>> {
    let mut outcome = BTreeMap::new();
    for table in TABLES {
        let query = format!("select t::text from {table} as t order by todo_id");
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(pool).await.unwrap();
        outcome.insert(table.to_owned(), rows);
    }
    let query = "select (uuid, aggregate_id, type, body, metadata, correlation_id, causation_id)::text from espd.events
                 where type like 'Stakeholder%' order by id";
    outcome.insert("emitted".to_owned(), sqlx::query_scalar(query).fetch_all(pool).await.unwrap());
    outcome
}

/// What comes of the history, handled in one way.
async fn handle(program: &Path, config: &str) -> BTreeMap<String, Vec<String>> {
    let db = support::database().await;
    let last = append_history(&db).await;
    let daemon = start(program, &example(config), &db);
    let killed = kill_until(&db, last).await;
    let what = format!("{config}: all is handled, after {killed} kills");
    eventually(&what, async || (progress(&db).await >= last).then_some(())).await;
    let outcome = outcome(&db.pool).await;
    daemon.stop_after_kills().await;
    outcome
}

#[tokio::test]
async fn sql_and_rust_come_to_the_same() {
    agrees_with_sql(&rust_program(), "rust.toml").await;
}

#[tokio::test]
#[ignore = "needs python3: ./bin/test and ./.ci/run have it and run this"]
async fn sql_and_python_come_to_the_same() {
    let is_here = Command::new("python3").arg("--version").output().is_ok();
    assert!(is_here, "this test needs python3, which `./bin/test` installs");
    agrees_with_sql(Path::new(env!("CARGO_BIN_EXE_espd")), "python.toml").await;
}

async fn agrees_with_sql(program: &Path, config: &str) {
    let sql = handle(Path::new(env!("CARGO_BIN_EXE_espd")), "sql.toml").await;
    let completed = sql["completed_todos"].len();
    assert!(completed > 250 && sql["emitted"].len() == completed, "{completed}");
    let other = handle(program, config).await;
    for (what, of_sql) in &sql {
        assert_eq!(of_sql, &other[what], "{what} of {config}");
    }
}

#[tokio::test]
async fn a_receiver_gets_every_event_in_order_whichever_process_is_killed() {
    let receiver = Receiver::start(|request| {
        // Every seventh event is answered badly at first.
        let is_seventh = request.header("ce-position").parse::<i64>().unwrap() % 7 == 0;
        Reply::Status(if is_seventh && request.earlier == 0 { 500 } else { 200 })
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("espd.toml");
    let webhook = format!(
        "include = ['{}']\n[event_store]\nurl = '${{DATABASE_URL}}'\n\
         [reactor]\nname = 'mailer'\nstart = 'beginning'\nevents = ['*']\n\
         [reactor.webhook]\nurl = '{}'\nallow_private = true\n[reactor.retry]\ninitial = '20ms'\n",
        example("notifier.toml").display(),
        receiver.url()
    );
    std::fs::write(&config, webhook).unwrap();
    let db = support::database().await;
    append_history(&db).await;
    let daemon = start(Path::new(env!("CARGO_BIN_EXE_espd")), &config, &db);
    for kills in 1..=4 {
        eventually("more requests", async || (receiver.received().len() > kills * 400).then_some(())).await;
        let pids: Vec<i32> = sqlx::query_scalar("select pid from espd.workers where pid is not null")
            .fetch_all(&db.pool)
            .await
            .unwrap();
        for pid in pids {
            // One that has just ended by itself is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    // The notifications that the notifier emits arrive as well.
    eventually("everything is received", async || {
        let head: i64 =
            sqlx::query_scalar("select max(id) from espd.events").fetch_one(&db.pool).await.unwrap();
        let done = position(&db.pool, "mailer").await >= head
            && position(&db.pool, "todo_completed_notifier").await >= EVENTS as i64;
        done.then_some(())
    })
    .await;
    assert_heard(&db.pool, &receiver).await;
    daemon.stop_after_kills().await;
}

/// Requires that the receiver has received every event, each under a key of its own, and of each aggregate in order.
async fn assert_heard(pool: &PgPool, receiver: &Receiver) {
    let mut keys = BTreeMap::new();
    let mut versions: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for request in receiver.received() {
        let key = keys.entry(request.header("ce-id").to_owned()).or_insert(request.key().to_owned());
        assert_eq!(key, request.key());
        let of_aggregate = versions.entry(request.aggregate().to_owned()).or_default();
        of_aggregate.push(request.header("ce-version").parse().unwrap());
    }
    let events: i64 = sqlx::query_scalar("select count(*) from espd.events").fetch_one(pool).await.unwrap();
    assert_eq!(keys.len() as i64, events);
    for (aggregate, mut versions) in versions {
        versions.dedup();
        assert!(versions.iter().copied().eq(1..=versions.len() as i64), "{aggregate}: {versions:?}");
    }
}

/// A rebuild puts another file in the place of the program.
#[tokio::test]
async fn a_reload_starts_the_program_again_that_was_rebuilt() {
    let db = support::database().await;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("todo");
    std::fs::copy(rust_program(), &program).unwrap();
    let daemon = start(&program, &example("rust.toml"), &db);
    let last = append_history(&db).await;
    eventually("all is handled", async || (progress(&db).await >= last).then_some(())).await;
    daemon.signal(Signal::SIGHUP);
    let starts = |wanted: &'static str| daemon.log().iter().filter(|line| is_said(line, wanted)).count();
    eventually("the first reload", async || (starts("nothing has changed") == 1).then_some(())).await;

    std::fs::copy(rust_program(), folder.path().join("new")).unwrap();
    std::fs::rename(folder.path().join("new"), &program).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("another start", async || (starts("espd starts") == 2).then_some(())).await;
    assert_eq!(starts("starting again"), 1);
    let last = append(&db.pool, 3).await;
    eventually("all is handled", async || (progress(&db).await >= last).then_some(())).await;
    let running = std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap();
    assert_eq!(running, program, "the same process runs the new file");
    daemon.stop().await;
}

fn is_said(line: &serde_json::Value, wanted: &str) -> bool {
    line["message"].as_str().is_some_and(|message| message.contains(wanted))
}

/// Runs the program of `examples/todo_processors` to its end: exit code, standard output, standard error.
async fn todo(arguments: &[&str], url: &str) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(rust_program());
    command.args(arguments).arg("--config").arg(example("rust.toml")).env("DATABASE_URL", url);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_program_is_operated_by_itself_and_speaks_of_itself() {
    let db = support::empty_database().await;
    let (code, _, said) = todo(&["status"], &db.url).await;
    assert!(
        code == 1 && said.contains("run `todo_processors migrate`") && !said.contains("espctl"),
        "{said}"
    );
    assert_eq!(todo(&["migrate"], &db.url).await.0, 0);

    // Before they have ever run, the processors of the program are there.
    let (_, table, _) = todo(&["status"], &db.url).await;
    for name in PROCESSORS {
        assert!(table.contains(name), "{table}");
    }
    assert!(!table.contains("espctl"), "{table}");
    let (code, checked, said) = todo(&["check"], &db.url).await;
    assert!(code == 0 && checked.contains("ok: 3 projectors, 1 reactor"), "{checked}{said}");

    let (code, _, said) = todo(&["demo"], &db.url).await;
    assert!(code == 2 && said.contains("demo"), "{said}");
    let (_, help, _) = todo(&["wait", "--help"], &db.url).await;
    assert!(help.contains("todo_processors wait --all") && !help.contains("espctl"), "{help}");
}

/// What the program of `examples/todo_processors` declares in Rust is there in its workers, and in its commands.
#[tokio::test]
async fn a_program_reads_old_events_and_resets_its_processors_by_itself() {
    let db = support::database().await;
    let daemon = start(&rust_program(), &example("rust.toml"), &db);
    sqlx::query(
        "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'TodoCreated', 1, '{\"name\": \"old\"}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let (code, said, wrong) = todo(&["wait", "--all", "--idle"], &db.url).await;
    assert!(code == 0 && said.contains("idle: everything is handled up to 1"), "{said}{wrong}");
    // The program makes the table again when it runs next.
    let titles = async || -> Option<Vec<String>> {
        sqlx::query_scalar("select title from outstanding_todos").fetch_all(&db.pool).await.ok()
    };
    let is_old = async || titles().await.filter(|titles| titles == &["old"]);
    assert!(is_old().await.is_some());

    sqlx::query("update outstanding_todos set title = 'wrong'").execute(&db.pool).await.unwrap();
    let (code, said, wrong) = todo(&["reset", "outstanding_todos", "--yes"], &db.url).await;
    assert!(code == 0, "{said}{wrong}");
    eventually("the rebuilt table", is_old).await;
    daemon.stop().await;
}
