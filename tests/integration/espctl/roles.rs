//! Roles with few rights: each can do its work, and nothing else.

use sqlx::{AssertSqlSafe, PgPool};

use crate::support::facts::{append, reaches};
use crate::support::program::Installation;
use crate::support::{self, Database};

/// A database with the roles, and the URL of a new login that is a member of one of them.
struct Roles {
    db: Database,
    owner: Installation,
}

impl Roles {
    async fn create() -> Self {
        let db = support::database().await;
        let owner = Installation::new(&db.url, "[projections]\nschema = 'views'\n");
        sqlx::raw_sql("create schema views").execute(&db.pool).await.unwrap();
        let roles = Self { db, owner };
        roles.apply().await;
        // A second time, as after a migration.
        roles.apply().await;
        roles
    }

    async fn apply(&self) {
        let script = self.owner.espctl(&["roles"]).await.printed();
        assert!(!script.lines().any(|line| line.contains(":\"") && !line.starts_with("--")), "{script}");
        // Roles are the server's, and other tests make them, too.
        let mut transaction = self.db.pool.begin().await.unwrap();
        sqlx::raw_sql("select pg_advisory_xact_lock(1)").execute(&mut *transaction).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn login(&self, role: &str) -> (Installation, PgPool) {
        let login = format!("login_{role}_{}", self.db.name);
        let make = format!("create role {login} login in role {role}; alter role {login} set role {role}");
        sqlx::raw_sql(AssertSqlSafe(make)).execute(&self.db.pool).await.unwrap();
        let url = self
            .db
            .url
            .replace("//espd@", &format!("//{login}@"))
            .replace("user=espd", &format!("user={login}"));
        assert_ne!(url, self.db.url);
        let settings = "[projections]\nschema = 'views'\n[runner]\npoll_interval_max = '50ms'\n";
        (Installation::new(&url, settings), PgPool::connect(&url).await.unwrap())
    }
}

/// Requires that the role lacks the right to do any of this.
async fn may_not(pool: &PgPool, statements: &[&'static str]) {
    for statement in statements {
        let refused = sqlx::raw_sql(*statement).execute(pool).await.unwrap_err();
        let state = refused.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        assert_eq!(state.as_deref(), Some("42501"), "{statement}");
    }
}

const CHANGE_EVENTS: [&str; 3] =
    ["update espd.events set body = '{}'", "delete from espd.events", "truncate espd.events"];
const INSERT: &str =
    "insert into espd.events (aggregate_id, type, version, body) values (gen_random_uuid(), 'A', 1, '{}')";
const MOVE: &str = "update espd.trackers set position = 1";
const CHANGE_LOG: &str = "delete from espd.operator_log";

#[tokio::test]
async fn an_appender_appends_and_changes_nothing() {
    let roles = Roles::create().await;
    let (appender, pool) = roles.login("espd_appender").await;
    let line = r#"{"aggregate_id":"149d5c70-a373-4857-91e2-1d5ea90c27e4","type":"A","body":{},"expected_version":0}"#;
    assert_eq!(appender.espctl_fed(&["append"], line).await.printed(), "1\n");
    assert!(appender.espctl_fed(&["append"], line).await.complained(1).contains("version"));
    assert_eq!(appender.espctl(&["events", "--json"]).await.json_lines().len(), 1);
    may_not(&pool, &CHANGE_EVENTS).await;
    may_not(&pool, &[MOVE, CHANGE_LOG, "create table views.mine ()", "create table espd.mine ()"]).await;
    appender.espctl(&["migrate"]).await.printed();
}

#[tokio::test]
async fn a_reader_sees_everything_and_writes_nothing() {
    let roles = Roles::create().await;
    append(&roles.db.pool, 2).await;
    let (reader, pool) = roles.login("espd_reader").await;
    reader.declare_notes("notes", "");
    assert_eq!(reader.espctl(&["events", "--json"]).await.json_lines().len(), 2);
    assert_eq!(reader.status("notes").await["lag_events"], 2);
    may_not(&pool, &CHANGE_EVENTS).await;
    may_not(&pool, &[INSERT, MOVE, CHANGE_LOG, "create table views.mine ()"]).await;
    let complaint = reader.espctl_fed(
        &["append"],
        r#"{"aggregate_id":"149d5c70-a373-4857-91e2-1d5ea90c27e4","type":"A","body":{}}"#,
    );
    complaint.await.complained(1);
}

#[tokio::test]
async fn a_daemon_runs_and_an_operator_operates() {
    let roles = Roles::create().await;
    let (daemon, pool) = roles.login("espd_daemon").await;
    daemon.declare_notes("notes", "");
    let running = daemon.start_daemon();
    append(&roles.db.pool, 5).await;
    reaches(&roles.db.pool, "notes", 5).await;
    may_not(&pool, &CHANGE_EVENTS).await;
    may_not(&pool, &[CHANGE_LOG, "update espd.operator_log set operator = 'x'"]).await;

    let (operator, pool) = roles.login("espd_operator").await;
    operator.declare_notes("notes", "");
    operator.espctl(&["pause", "notes"]).await.printed();
    assert_eq!(operator.status("notes").await["state"], "paused");
    operator.espctl(&["reset", "notes", "--to", "2", "--yes"]).await.printed();
    operator.espctl(&["resume", "notes"]).await.printed();
    reaches(&roles.db.pool, "notes", 5).await;
    may_not(&pool, &CHANGE_EVENTS).await;
    may_not(&pool, &[INSERT, CHANGE_LOG, "create table views.mine ()", "drop table views.notes"]).await;
    operator.espctl(&["reset", "notes", "--yes"]).await.complained(1);

    daemon.espctl(&["reset", "notes", "--yes"]).await.printed();
    reaches(&roles.db.pool, "notes", 5).await;
    running.stop().await;
}

#[tokio::test]
async fn a_daemon_sets_aside_and_emits_later_and_an_operator_retries_and_discards() {
    let roles = Roles::create().await;
    let (daemon, pool) = roles.login("espd_daemon").await;
    let retry = "[projector.retry]\nmax_attempts = 1\non_failure = 'skip'\n";
    daemon.declare(
        "notes",
        &format!(
            "[projector]\nname = 'notes'\n{retry}[projector.tables]\nnotes = 'event_id bigint'\n[[projector.on]]\nevents = ['A']\n\
             sql = \"if event.id < 3 then raise 'no'; end if; insert into notes values (event.id)\"\n"
        ),
    );
    daemon.declare(
        "reminders",
        "[reactor]\nname = 'reminders'\nstart = 'beginning'\nemits = ['Reminded']\n[[reactor.on]]\nevents = ['A']\n\
         sql = \"perform espd.emit_after('Reminded', event.aggregate_id, '{}', '1 hour')\"\n",
    );
    let running = daemon.start_daemon();
    append(&roles.db.pool, 5).await;
    reaches(&roles.db.pool, "notes", 5).await;
    reaches(&roles.db.pool, "reminders", 5).await;
    let (notes, reminders) = (daemon.status("notes").await, daemon.status("reminders").await);
    assert_eq!((&notes["dead_letters"], &notes["pending_emissions"]), (&2.into(), &0.into()), "{notes}");
    assert_eq!((&reminders["dead_letters"], &reminders["pending_emissions"]), (&0.into(), &5.into()));
    let due: chrono::DateTime<chrono::Utc> = reminders["next_emission_at"].as_str().unwrap().parse().unwrap();
    assert!(due > chrono::Utc::now() + chrono::TimeDelta::minutes(50), "{reminders}");
    may_not(&pool, &[CHANGE_LOG]).await;

    let (reader, pool) = roles.login("espd_reader").await;
    assert_eq!(reader.espctl(&["dead-letters", "list", "--json"]).await.json().as_array().unwrap().len(), 2);
    may_not(&pool, &[DISCARD, ASK, "delete from espd.emissions"]).await;
    let (operator, pool) = roles.login("espd_operator").await;
    operator.espctl(&["dead-letters", "show", "notes", "1"]).await.printed();
    let complaint =
        operator.espctl(&["dead-letters", "retry", "notes", "--all", "--yes"]).await.complained(1);
    assert!(complaint.contains("2 failed again"), "{complaint}");
    operator.espctl(&["dead-letters", "discard", "notes", "--all", "--yes"]).await.printed();
    may_not(&pool, &["insert into espd.dead_letters default values", "delete from espd.emissions"]).await;
    running.stop().await;
}

const DISCARD: &str = "delete from espd.dead_letters";
const ASK: &str = "update espd.dead_letters set retry_requested_at = now()";
