//! Roles with few rights: each can do its work, and nothing else.

use sqlx::{AssertSqlSafe, PgPool};

use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;
use crate::support::{self, Database};

/// A database with the roles, and the URL of a new login that is a member of one of them.
pub(super) struct Roles {
    pub(super) db: Database,
    owner: Installation,
}

impl Roles {
    pub(super) async fn create() -> Self {
        let db = support::database().await;
        let owner = Installation::new(&db.url, "[projections]\nschema = 'views'\n");
        // The script makes the schema of the projections.
        let roles = Self { db, owner };
        roles.apply().await;
        // A second time, as after a migration.
        roles.apply().await;
        roles
    }

    pub(super) async fn apply(&self) {
        self.apply_with(&["roles"]).await;
    }

    async fn apply_with(&self, arguments: &[&str]) {
        let script = self.owner.espctl(arguments).await.printed();
        assert!(!script.lines().any(|line| line.contains(":\"") && !line.starts_with("--")), "{script}");
        // Roles are the server's, and other tests make them, too, in databases of their own.
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _turn = TURN.lock().await;
        let mut transaction = self.db.pool.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }

    pub(super) async fn login(&self, role: &str) -> (Installation, PgPool) {
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

/// As after the daemon has been run by another role than now.
#[tokio::test]
async fn what_another_role_has_made_is_found_before_the_daemon_stops_and_all_of_it_at_once() {
    let roles = Roles::create().await;
    roles.owner.declare_notes("notes", "");
    let last = append(&roles.db.pool, 3).await;
    let daemon = roles.owner.start_daemon();
    reaches(&roles.db.pool, "notes", last).await;
    daemon.stop().await;
    let (installation, _pool) = roles.login("espd_daemon").await;
    installation.declare_notes("notes", "");
    let belongs = "and espd_daemon, which is to run it, has to own them";
    let statement = "alter function espd.handle_notes_v1(";
    let mistakes = installation.espctl(&["check"]).await.complained(64);
    for part in [belongs, "function espd.handle_notes_v1", "table views.notes", statement] {
        assert!(mistakes.contains(part), "{part}: {mistakes}");
    }
    let planned = installation.espctl(&["plan"]).await;
    assert!(planned.code == Some(2) && planned.stdout.contains("! notes: stops, because "), "{planned:?}");
    let doctor = installation.espctl(&["doctor", "--json"]).await;
    let findings: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let found = findings.iter().find(|found| found["check"] == "ownership").unwrap();
    assert_eq!(found["level"], "failure", "{found}");

    let daemon = installation.start_daemon();
    let status = eventually("the stop", async || {
        Some(installation.status("notes").await).filter(|status| status["state"] == "failed")
    })
    .await;
    let problem = status["advice"][0]["problem"].as_str().unwrap();
    assert!(problem.contains(belongs) && problem.contains(statement), "{problem}");
    // What the doctor says is all that it takes.
    let statements = found["remedy"].as_str().unwrap().strip_prefix("as a superuser: ").unwrap().to_owned();
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&roles.db.pool).await.unwrap();
    installation.espctl(&["check"]).await.printed();
    installation.espctl(&["retry", "notes"]).await.printed();
    let last = append(&roles.db.pool, 3).await;
    reaches(&roles.db.pool, "notes", last).await;
    daemon.stop().await;
}

/// Requires that the role lacks the right to do any of this.
pub(super) async fn may_not(pool: &PgPool, statements: &[&'static str]) {
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
const OVERRIDE_IDS: [&str; 3] = [
    "insert into espd.events (id, aggregate_id, type, version, body) overriding system value
     values (1000, gen_random_uuid(), 'A', 1, '{}')",
    "select setval('espd.events_id_seq', 1000)",
    "select nextval('espd.events_id_seq')",
];
/// With a tag that is written, one that only the condition names, and keys.
const APPEND_TAGGED: &str = r#"select * from espd.append(
    '{"aggregate_id": "149d5c70-a373-4857-91e2-1d5ea90c27e5", "type": "A", "body": {}, "tags": ["x"], "claims": {"a": "1"},
      "releases": {"b": "2"}}',
    '{"items": [{"tags": ["x", "y"]}]}')"#;
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
    sqlx::raw_sql(APPEND_TAGGED).execute(&pool).await.unwrap();
    may_not(
        &pool,
        &["update espd.tag_events set n = 0", "delete from espd.tag_events", "delete from espd.tag_heads"],
    )
    .await;
    may_not(&pool, &CHANGE_EVENTS).await;
    may_not(&pool, &[MOVE, CHANGE_LOG, "create table views.mine ()", "create table espd.mine ()"]).await;
    may_not(&pool, &OVERRIDE_IDS).await;
    sqlx::raw_sql(INSERT).execute(&pool).await.unwrap();
    appender.espctl(&["migrate"]).await.printed();
}

/// Roles that were made when an appender could still write every column.
#[tokio::test]
async fn rights_that_were_too_wide_are_taken_back() {
    let roles = Roles::create().await;
    let before = "grant insert on espd.events to espd_appender, espd_daemon";
    sqlx::raw_sql(before).execute(&roles.db.pool).await.unwrap();
    roles.apply().await;
    for role in ["espd_appender", "espd_daemon"] {
        may_not(&roles.login(role).await.1, &OVERRIDE_IDS).await;
    }
}

/// What handlers in Rust do after their commits is recorded, counted and removed by the daemon, and by nobody else.
#[tokio::test]
async fn a_daemon_keeps_what_is_to_be_done_after_commits() {
    let roles = Roles::create().await;
    let (_, daemon) = roles.login("espd_daemon").await;
    const TRACKER: &str = "insert into espd.trackers (name, kind, version) values ('mails', 'reactor', 1)";
    sqlx::query(TRACKER).execute(&daemon).await.unwrap();
    const RECORD: &str =
        "insert into espd.effects (processor, version, partition, event_id, event_uuid, event_type, payload)
        values ('mails', 1, 0, 1, gen_random_uuid(), 'A', '1')";
    for statement in [RECORD, "update espd.effects set attempts = attempts + 1", "delete from espd.effects"] {
        assert_eq!(sqlx::query(statement).execute(&daemon).await.unwrap().rows_affected(), 1, "{statement}");
    }
    for role in ["espd_appender", "espd_reader", "espd_operator"] {
        may_not(&roles.login(role).await.1, &[RECORD, "delete from espd.effects"]).await;
    }
}

/// Nobody but the owner of the schema has a right on the table of events that a trigger takes.
#[tokio::test]
async fn a_daemon_makes_a_projector_synchronous_an_appender_appends_and_an_operator_ends_it() {
    let roles = Roles::create().await;
    let (daemon, as_daemon) = roles.login("espd_daemon").await;
    let (_, appender) = roles.login("espd_appender").await;
    let projector = "[projector]\nname = 'seen'\nsynchronous = 'total_order'\n[projector.tables]\nseen = 'id bigint'\n\
        [[projector.on]]\nevents = ['A']\nsql = 'insert into seen values (event.id)'\n";
    daemon.declare("seen", projector);
    let running = daemon.start_daemon();
    eventually("it is synchronous", async || {
        (daemon.status("seen").await["synchronous"] == "total_order").then_some(())
    })
    .await;
    sqlx::raw_sql(INSERT).execute(&appender).await.unwrap();
    let count = "select count(*) from views.seen";
    let seen: i64 = sqlx::query_scalar(count).fetch_one(&roles.db.pool).await.unwrap();
    assert_eq!(seen, 1);
    may_not(&appender, &[count, "select espd.hold_appends('seen', 1, 0, 1)"]).await;
    may_not(&as_daemon, &["alter table espd.events disable trigger all"]).await;
    let (operator, _) = roles.login("espd_operator").await;
    operator.espctl(&["pause", "seen"]).await.printed();
    sqlx::raw_sql(INSERT).execute(&appender).await.unwrap();
    let seen: i64 = sqlx::query_scalar(count).fetch_one(&roles.db.pool).await.unwrap();
    assert_eq!(seen, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_daemon_builds_a_raised_version_beside_the_one_that_serves() {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    let declare = |version: i32, more: &str| {
        let text = format!(
            "[projector]\nname = 'seen'\nversion = {version}\n[projector.tables]\nseen = 'id bigint primary key{more}'\n\
             [[projector.on]]\nevents = ['A']\nsql = 'insert into seen (id) values (event.id)'\n"
        );
        daemon.declare("seen", &text);
    };
    declare(1, "");
    let running = daemon.start_daemon();
    append(&roles.db.pool, 2).await;
    reaches(&roles.db.pool, "seen", 2).await;
    declare(2, ", note text");
    daemon.espctl(&["reload"]).await.printed();
    eventually("version 2 serves", async || (daemon.status("seen").await["version"] == 2).then_some(()))
        .await;
    append(&roles.db.pool, 1).await;
    reaches(&roles.db.pool, "seen", 3).await;
    running.stop().await;
}

#[tokio::test]
async fn a_reader_of_projections_reads_them_also_after_a_reset_and_no_events() {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    daemon.declare_notes("notes", "").declare_notes("later", "");
    sqlx::raw_sql("create table views.strange (secret text)").execute(&roles.db.pool).await.unwrap();
    let role = format!("web_{}", roles.db.name);
    let running = daemon.start_daemon();
    append(&roles.db.pool, 2).await;
    reaches(&roles.db.pool, "notes", 2).await;
    for _ in 0..2 {
        roles.apply_with(&["roles", "--reader", &role]).await;
    }
    let (_, reader) = roles.login(&role).await;
    let count = async |table: &'static str| -> i64 {
        let query = format!("select count(*) from views.{table}");
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&reader).await.unwrap()
    };
    assert_eq!(count("notes").await, 2);
    may_not(
        &reader,
        &["select * from espd.events", "select * from views.strange", "delete from views.notes", INSERT],
    )
    .await;
    // Where they are told how far everybody is.
    sqlx::query("select position from espd.trackers").fetch_all(&reader).await.unwrap();
    daemon.espctl(&["reset", "notes", "--in-place", "--yes"]).await.printed();
    reaches(&roles.db.pool, "notes", 2).await;
    assert_eq!(count("notes").await, 2);
    daemon.declare_notes("newer", "");
    running.signal(nix::sys::signal::Signal::SIGHUP);
    reaches(&roles.db.pool, "newer", 2).await;
    assert_eq!(count("newer").await, 2);
    running.stop().await;
}

#[tokio::test]
async fn a_role_for_readers_may_come_before_the_tables_and_their_schema() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[projections]\nschema = 'later'\n");
    let role = format!("early_{}", db.name);
    let script = installation.espctl(&["roles", "--reader", &role]).await.printed();
    for _ in 0..2 {
        sqlx::raw_sql(AssertSqlSafe(script.clone())).execute(&db.pool).await.unwrap();
    }
    let may: bool = sqlx::query_scalar("select has_schema_privilege($1, 'later', 'usage')")
        .bind(&role)
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert!(may);
}

/// What a role may not do is said with where to read which one may; what it may not see is not told as something else.
#[tokio::test]
async fn a_command_that_a_role_may_not_give_says_where_to_look() {
    let roles = Roles::create().await;
    append(&roles.db.pool, 1).await;
    let (daemon, _) = roles.login("espd_daemon").await;
    daemon.declare_notes("notes", "");
    assert!(daemon.espctl(&["explain", "notes"]).await.printed().contains("notes"));
    daemon.espctl(&["plan"]).await.printed();
    let aggregate: uuid::Uuid =
        sqlx::query_scalar("select aggregate_id from espd.events").fetch_one(&roles.db.pool).await.unwrap();
    let delete = ["delete-aggregate", &aggregate.to_string(), "--why", "a test", "--yes"];
    let complaint = daemon.espctl(&delete).await.complained(1);
    assert!(complaint.contains("permission denied") && complaint.contains("docs/roles.md"), "{complaint}");
    let (operator, _) = roles.login("espd_operator").await;
    let (reader, _) = roles.login("espd_reader").await;
    for (role, installation) in [("espd_reader", &reader), ("espd_operator", &operator)] {
        installation.declare_notes("notes", "");
        let complaint = installation.espctl(&["check"]).await.complained(1);
        assert!(complaint.contains("docs/roles.md"), "{complaint}");
        let complaint = installation.espctl(&["explain", "notes"]).await.complained(1);
        assert!(complaint.contains(&format!("{role} is no member of espd_daemon")), "{complaint}");
        // What the daemon owns is in nobody's way, and must not be taken from it.
        let complaint = installation.espctl(&["plan"]).await.complained(1);
        assert!(complaint.contains(&format!("{role} is no member of espd_daemon")), "{complaint}");
        assert!(!complaint.contains("owner to"), "{complaint}");
    }
    operator.espctl(&delete).await.printed();
}

/// Settings of a role are those of the login, whatever role it takes.
#[tokio::test]
async fn the_doctor_names_the_login_that_a_setting_belongs_to() {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    let login = format!("login_espd_daemon_{}", roles.db.name);
    let wrong = [
        ("synchronous_commit", "off", "synchronous_commit = on"),
        ("idle_session_timeout", "'700ms'", "idle_session_timeout = 0"),
    ];
    for (setting, value, right) in wrong {
        let set = format!("alter role {login} set {setting} = {value}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&roles.db.pool).await.unwrap();
        let said = daemon.espctl(&["doctor"]).await.stdout;
        let remedy = format!("alter role {login} set {right};");
        assert!(said.contains(&remedy), "{remedy}: {said}");
        sqlx::raw_sql(AssertSqlSafe(remedy.clone())).execute(&roles.db.pool).await.unwrap();
        assert!(!daemon.espctl(&["doctor"]).await.stdout.contains(&remedy));
    }
}

/// The unit says which commands are run before, at and after a start; all run as the daemon's role.
#[tokio::test]
async fn the_commands_of_the_unit_work_under_the_daemons_role() {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    daemon.declare_notes("notes", "");
    daemon.declare(
        "reminders",
        "[reactor]\nname = 'reminders'\nemits = ['Reminded']\n[[reactor.on]]\nevents = ['A']\n\
         sql = \"perform espd.emit('Reminded', event.aggregate_id, '{}')\"\n",
    );
    let unit = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/espd.service")).unwrap();
    let config = daemon.path().join("espd.toml").display().to_string();
    let commands: Vec<(&str, Vec<&str>)> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("Exec")?.split_once("=/usr/local/bin/espd "))
        .map(|(when, arguments)| (when, arguments.split(' ').collect()))
        .collect();
    assert_eq!(commands.iter().map(|(when, _)| *when).collect::<Vec<_>>(), ["StartPre", "Start", "Reload"]);
    for (when, arguments) in commands {
        let arguments: Vec<String> =
            arguments.iter().map(|one| one.replace("/etc/espd/espd.toml", &config)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if when == "Start" {
            let running = daemon.start(&arguments);
            append(&roles.db.pool, 2).await;
            reaches(&roles.db.pool, "notes", 2).await;
            // ExecReload checks while the daemon runs.
            daemon.espd(&["check"]).await.printed();
            running.stop().await;
        } else {
            daemon.espd(&arguments).await.printed();
        }
    }
    // A mistake is found in the same way.
    daemon.declare_notes("wrong", "selekt 1;");
    assert!(daemon.espd(&["check"]).await.complained(64).contains("selekt"));
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
async fn the_doctor_asks_of_a_role_what_the_role_is_for() {
    let roles = Roles::create().await;
    append(&roles.db.pool, 2).await;
    for role in ["espd_reader", "espd_appender", "espd_operator"] {
        let (installation, _pool) = roles.login(role).await;
        // The server of the tests does without the disk, which is a failure.
        let said = installation.espctl(&["doctor"]).await.stdout.replace("FAILURE  durability", "");
        let note = format!("as {role}, which is not a member of espd_daemon: ");
        assert!(said.contains(&note) && !said.contains("FAILURE"), "{said}");
    }
    let (daemon, _pool) = roles.login("espd_daemon").await;
    assert!(daemon.espctl(&["doctor"]).await.stdout.contains("role espd_daemon may run processors"));
    let take = "revoke update on espd.trackers from espd_daemon";
    sqlx::raw_sql(take).execute(&roles.db.pool).await.unwrap();
    let outcome = daemon.espctl(&["doctor"]).await;
    assert!(
        outcome.code == Some(1) && outcome.stdout.contains("insert, update on espd.trackers"),
        "{outcome:?}"
    );
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
    operator.espctl(&["reset", "notes", "--in-place", "--yes"]).await.complained(1);

    daemon.espctl(&["reset", "notes", "--in-place", "--yes"]).await.printed();
    reaches(&roles.db.pool, "notes", 5).await;
    running.stop().await;
}

/// PostgreSQL 17 and later answer as if nobody had drawn an id yet, and then every processor has followed another store.
#[tokio::test]
async fn who_may_not_read_the_sequence_concludes_nothing() {
    let roles = Roles::create().await;
    let (daemon, _) = roles.login("espd_daemon").await;
    daemon.declare_notes("notes", "");
    let running = daemon.start_daemon();
    append(&roles.db.pool, 3).await;
    reaches(&roles.db.pool, "notes", 3).await;
    running.stop().await;

    let (operator, _) = roles.login("espd_operator").await;
    operator.declare_notes("notes", "");
    let take = "revoke select on sequence espd.events_id_seq from espd_reader";
    sqlx::raw_sql(take).execute(&roles.db.pool).await.unwrap();
    for command in [&["wait", "notes", "--position", "3"][..], &["resume", "notes", "--accept-history"]] {
        let complaint = operator.espctl(command).await.complained(1);
        assert!(complaint.contains("events_id_seq"), "{command:?}: {complaint}");
    }
    let state =
        sqlx::query_as("select position, diverged is not null from espd.trackers where name = 'notes'");
    let (position, has_diverged): (i64, bool) = state.fetch_one(&roles.db.pool).await.unwrap();
    assert_eq!((position, has_diverged), (3, false));
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
