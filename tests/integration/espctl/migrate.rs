//! Programs on the schema of a newer one, and what `espctl migrate` says before it does it.

use sqlx::PgPool;

use crate::admin::client::Client;
use crate::support;
use crate::support::Database;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::{Installation, Outcome, Program};

/// How a newer program changes both sets: columns, a table and a function that no program of today knows. `$oldest` is the
/// oldest program that may go on.
fn newer(oldest: &str) -> String {
    let record = |table: &str| {
        format!(
            "alter table espd.{table} add column if not exists oldest_program bigint,
               add column if not exists applied_by text;
             insert into espd.{table}
               (version, description, success, checksum, execution_time, oldest_program, applied_by)
             select 9999, 'from the future', true, '', 0, {oldest}, '9.9.9' from espd.{table};"
        )
    };
    format!(
        "{} {}
         alter table espd.events add column invented text;
         alter table espd.trackers add column invented int not null default 0;
         alter table espd.dead_letters add column invented text;
         alter table espd.operator_log add column invented text;
         create table espd.inventions (invented text primary key);
         create function espd.invent() returns int language sql as 'select 1';",
        record("_event_store_migrations"),
        record("_processing_migrations")
    )
}

async fn execute(pool: &PgPool, sql: String) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// A database with a dead letter, and a configuration with an endpoint.
async fn prepared() -> (Database, Installation) {
    let db = support::database().await;
    let settings = "[runner]\npoll_interval_max = '50ms'\n[admin]\nlisten = '127.0.0.1:0'\n";
    let installation = Installation::new(&db.url, settings);
    installation.declare(
        "notes",
        "[projector]\nname = 'notes'\n[projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n\
         [projector.tables]\nnotes = 'event_id bigint'\n[[projector.on]]\nevents = ['A']\n\
         sql = \"if event.id = 1 then raise 'no'; end if; insert into notes values (event.id)\"\n",
    );
    installation.declare(
        "hook",
        "[reactor]\nname = 'hook'\nevents = ['Never']\n[reactor.webhook]\nurl = 'http://127.0.0.1:1/'\nallow_private = true\n",
    );
    (db, installation)
}

async fn endpoint(daemon: &Program) -> Client {
    let line = daemon.says("the admin endpoint listens").await;
    Client::new(line["url"].as_str().unwrap())
}

/// The commands of espctl, as its help lists them.
async fn verbs(installation: &Installation) -> Vec<String> {
    let help = installation.espctl(&["--help"]).await.printed();
    let commands = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    let names = commands.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Runs a command with arguments that let it do its work. What is not listed here runs without any.
async fn run(installation: &Installation, verb: &str) -> Outcome {
    let line = r#"{"aggregate_id":"149d5c70-a373-4857-91e2-1d5ea90c27e4","type":"A","body":{}}"#;
    let arguments: &[&str] = match verb {
        "append" => return installation.espctl_fed(&["append"], line).await,
        "reset" => &["reset", "notes", "--to", "1", "--yes"],
        "pause" | "retry" | "resume" => &[verb, "notes"],
        "wait" => &["wait", "notes", "--position", "0"],
        "dead-letters" => &["dead-letters", "list", "notes"],
        "config" => &["config", "show"],
        "completions" => &["completions", "bash"],
        "webhook-test" => &["webhook-test", "hook", "--event", "1"],
        verb => &[verb],
    };
    installation.espctl(arguments).await
}

/// Commands that have all they need to succeed.
const SUCCEED: [&str; 13] = [
    "append",
    "events",
    "status",
    "reset",
    "pause",
    "retry",
    "resume",
    "dead-letters",
    "wait",
    "check",
    "roles",
    "config",
    "migrate",
];

#[tokio::test]
async fn every_verb_and_the_daemon_go_on_with_a_newer_schema_that_lets_them() {
    let (db, installation) = prepared().await;
    append(&db.pool, 3).await;
    let before = installation.start_daemon();
    reaches(&db.pool, "notes", 3).await;
    execute(&db.pool, newer("max(version)")).await;

    // One that runs already goes on, and one that is started now as well.
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    assert_eq!(endpoint(&before).await.get("/readyz").await.status, 200);
    before.stop().await;
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    let client = endpoint(&daemon).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    assert_eq!(installation.espd(&["check"]).await.code, Some(0));

    for verb in verbs(&installation).await {
        let outcome = run(&installation, &verb).await;
        if SUCCEED.contains(&verb.as_str()) {
            assert_eq!(outcome.code, Some(0), "{verb}: {outcome:?}");
        }
        assert!(!outcome.stderr.contains("version 9999"), "{verb}: {outcome:?}");
    }
    // What is not durable on a server for tests is a failure, but not of the schema.
    let doctor = installation.espctl(&["doctor"]).await.stdout;
    assert!(doctor.contains("at version 9999, newer than this program"), "{doctor}");
    assert!(installation.espctl(&["migrate"]).await.printed().contains("already at version 9999"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_newer_schema_that_excludes_this_program_is_refused_with_a_remedy_that_works() {
    let (db, installation) = prepared().await;
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    // A worker that is excluded while it starts fails.
    let claimed = || daemon.logged("claimed");
    eventually("both are claimed", async || (claimed().len() == 2).then_some(())).await;
    execute(&db.pool, newer("greatest(9999, max(version))")).await;

    let checks = client.get("/readyz").await.json(503)["checks"]["schema"].clone();
    let remedy = checks["remedy"].as_str().unwrap();
    assert!(remedy.contains("espd 9.9.9") && !remedy.contains("migrate`"), "{checks}");
    daemon.stop().await;
    let refused = installation.espd(&["run"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("run espd 9.9.9"), "{refused:?}");

    for verb in verbs(&installation).await {
        let outcome = run(&installation, &verb).await;
        let offline = ["roles", "completions", "man", "config"].contains(&verb.as_str());
        if offline || !(SUCCEED.contains(&verb.as_str()) || verb == "doctor") {
            continue;
        }
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.code != Some(0) && said.contains("espd 9.9.9"), "{verb}: {outcome:?}");
        assert!(!said.contains("run `espctl migrate`"), "{verb}: {outcome:?}");
    }
}

/// What a newer program does, without its other tables: those may be as they are.
fn exclude(from: &str) -> String {
    format!(
        "insert into espd.{from} (version, description, success, checksum, execution_time, oldest_program, applied_by)
         values (9999, 'from the future', true, '', 0, 9999, '9.9.9')"
    )
}

#[tokio::test]
async fn a_running_daemon_that_is_excluded_rests_says_so_and_goes_on_once_it_may() {
    let (db, installation) = prepared().await;
    let daemon = installation.start_daemon();
    let client = endpoint(&daemon).await;
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    let without = client.get("/metrics").await.body;
    assert!(without.contains("\nespd_program_excluded 0\n"), "{without}");

    for set in ["_processing_migrations", "_event_store_migrations"] {
        let times =
            daemon.logged("the schema is not for this program any more: nothing is handled by it").len();
        execute(&db.pool, exclude(set)).await;
        let released = "select not exists (select from espd.trackers where owner is not null)";
        eventually("nobody owns a processor", async || {
            sqlx::query_scalar::<_, bool>(released).fetch_one(&db.pool).await.unwrap().then_some(())
        })
        .await;
        let said = daemon.logged("the schema is not for this program any more: nothing is handled by it");
        assert!(
            said.len() == times + 1 && said[times]["reason"].as_str().unwrap().contains("espd 9.9.9"),
            "{said:?}"
        );
        assert!(daemon.logged("killing a worker that does not stop").is_empty());
        // Those of a newer program are shown why.
        let shown: (String, String) = eventually("the rows of what rests", async || {
            sqlx::query_as(
                "select state, last_end from espd.workers where worker = 'notes' and state = 'waiting'",
            )
            .fetch_optional(&db.pool)
            .await
            .unwrap()
        })
        .await;
        assert!(shown.1.contains("espd 9.9.9"), "{shown:?}");
        assert_eq!(client.get("/readyz").await.status, 503);
        let metrics = client.get("/metrics").await.body;
        assert!(metrics.contains("\nespd_program_excluded 1\n"), "{metrics}");

        // A worker by itself refuses, and a reload starts none.
        let refused = installation.espd(&["worker", "notes"]).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("espd 9.9.9"), "{refused:?}");
        let workers = daemon.children("notes").len();
        let position = append(&db.pool, 2).await - 2;
        let before = daemon.logged("the configuration was read again: nothing has changed").len();
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the reload", async || {
            let lines = daemon.logged("the configuration was read again: nothing has changed");
            let refused = daemon.logged("the configuration was read again and is wrong, keeping the old one");
            (lines.len() > before || !refused.is_empty()).then_some(())
        })
        .await;
        assert_eq!(daemon.children("notes").len(), workers);
        assert_eq!(crate::support::facts::position(&db.pool, "notes").await, position);

        execute(&db.pool, format!("delete from espd.{set} where version = 9999")).await;
        daemon.child("notes", workers + 1).await;
        reaches(&db.pool, "notes", position + 2).await;
        eventually("readiness", async || (client.get("/readyz").await.status == 200).then_some(())).await;
    }
    daemon.stop().await;
}

/// A claim that is tried before a daemon has looked.
#[tokio::test]
async fn nobody_claims_a_processor_in_a_schema_that_excludes_him() {
    let (db, installation) = prepared().await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", append(&db.pool, 3).await).await;
    daemon.stop().await;
    use espd::internals::tracker::{Owner, ProcessorKey, Trackers};
    let (trackers, key) = (Trackers::new("espd"), ProcessorKey::new("notes", 1));
    execute(&db.pool, exclude("_processing_migrations")).await;
    let claim = async || {
        trackers.claim(&db.pool, &key, &Owner::generate(), std::time::Duration::from_secs(5)).await.unwrap()
    };
    assert_eq!(claim().await, None);
    execute(&db.pool, "delete from espd._processing_migrations where version = 9999".to_owned()).await;
    assert!(claim().await.is_some());
}

#[tokio::test]
async fn a_migrator_that_has_waited_for_another_one_says_that_nothing_was_to_be_done() {
    let db = support::empty_database().await;
    let installation = Installation::new(&db.url, "");
    let both = tokio::join!(installation.espctl(&["migrate"]), installation.espctl(&["migrate"]));
    let said = [both.0.printed(), both.1.printed()].join("");
    assert_eq!(said.matches("event store: from version 0 to ").count(), 1, "{said}");
    assert_eq!(said.matches("processing: from version 0 to ").count(), 1, "{said}");
}

#[tokio::test]
async fn a_dry_run_prints_the_sql_and_changes_nothing() {
    let db = support::empty_database().await;
    let installation = Installation::new(&db.url, "");
    let planned = installation.espctl(&["migrate", "--dry-run"]).await.printed();
    assert!(planned.contains("create table \"espd\".trackers"), "{planned}");
    assert!(planned.starts_with("-- event store: from version 0 to "), "{planned}");
    let none: bool =
        sqlx::query_scalar("select to_regnamespace('espd') is null").fetch_one(&db.pool).await.unwrap();
    assert!(none, "it has changed the database");

    // The SQL is complete: what it makes is what migrating makes.
    sqlx::raw_sql(sqlx::AssertSqlSafe(planned)).execute(&db.pool).await.unwrap();
    let said = installation.espctl(&["migrate", "--dry-run"]).await.printed();
    assert!(said.contains("it is recorded only") && !said.contains("create table"), "{said}");
    installation.espctl(&["migrate"]).await.printed();
    let said = installation.espctl(&["migrate", "--dry-run"]).await.printed();
    assert_eq!(said.lines().filter(|line| line.contains("already at version")).count(), 2, "{said}");
}
