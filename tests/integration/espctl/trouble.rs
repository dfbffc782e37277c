//! What `espctl status` and `espctl doctor` say of processors that do not move: outages, locks, many at one event.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use crate::admin::client::Client;
use crate::support;
use crate::support::facts::{append, eventually, reaches};
use crate::support::program::Installation;

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

async fn run(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(pool).await.unwrap();
}

/// Waits until the status of `notes` is so.
async fn shows(installation: &Installation, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || Some(installation.status("notes").await).filter(|status| is_so(status))).await
}

#[tokio::test]
async fn an_outage_is_a_state_of_its_own_without_an_estimate() {
    let db = support::database().await;
    run(
        &db.pool,
        &format!("create table public.l1 (); alter database {} set lock_timeout = '100ms'", db.name),
    )
    .await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}[admin]\nlisten = '127.0.0.1:0'\n"));
    installation.declare_notes("notes", "lock table l1;");
    let last = append(&db.pool, 5).await;
    let mut other = PgConnection::connect(&db.url).await.unwrap();
    sqlx::raw_sql("begin; lock table public.l1").execute(&mut other).await.unwrap();
    let daemon = installation.start_daemon();
    let status = shows(&installation, "an outage", |status| !status["outage"].is_null()).await;
    assert_eq!((&status["state"], &status["rate"]), (&"waiting".into(), &0.0.into()), "{status}");
    let advice = &status["advice"][0];
    assert_eq!((&advice["topic"], &advice["since"]), (&"outage".into(), &status["outage"]["since"]));
    for _ in 0..10 {
        let table = installation.espctl(&["status"]).await.printed();
        assert!(table.contains(" waiting ") && !table.contains("in 0.0s"), "{table}");
        assert!(table.ends_with("1 processor: 1 waiting. Head 5, settled up to 5.\n"), "{table}");
    }
    let complaint = installation.espctl(&["wait", "notes", "--timeout", "100ms"]).await.complained(75);
    assert!(complaint.contains("it is at 0, waiting: "), "{complaint}");
    let client = Client::new(daemon.says("the admin endpoint listens").await["url"].as_str().unwrap());
    let metrics = client.get("/metrics").await.body;
    let state = "\nespd_processor_state{processor=\"notes\",state=\"waiting\"} 1\n";
    assert!(metrics.contains(state), "{metrics}");
    let line = metrics.lines().find(|line| line.starts_with("espd_processor_waiting_seconds{")).unwrap();
    assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() > 0.0, "{line}");
    assert_eq!(client.get("/api/v1/processors/notes").await.json(200)["state"], "waiting");
    eventually("its worker has told of itself, and waits", async || {
        (finding(&installation, "running").await["level"] == "failure").then_some(())
    })
    .await;
    sqlx::raw_sql("commit").execute(&mut other).await.unwrap();
    reaches(&db.pool, "notes", last).await;
    shows(&installation, "the end of it", |status| status["state"] == "live").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_lock_on_a_projections_table_is_named_with_its_holder() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    let named = format!("{}&application_name=maintenance", db.url);
    let mut holder = PgConnection::connect(&named).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    sqlx::raw_sql("begin; lock table public.notes").execute(&mut holder).await.unwrap();
    let last = append(&db.pool, 3).await;
    let status = shows(&installation, "the lock", |status| status["state"] == "waiting").await;
    let wait = &status["lock_wait"];
    assert!(wait["seconds"].as_f64() >= Some(1.0) && wait["relation"] == "notes", "{status}");
    let by = &wait["held_by"][0];
    assert_eq!((&by["pid"], &by["application_name"]), (&pid.into(), &"maintenance".into()), "{status}");
    assert_eq!((&status["outage"], &status["advice"][0]["topic"]), (&Value::Null, &"locked".into()));
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("notes waits for a lock on notes."), "{table}");
    assert!(table.contains(&format!("`select pg_terminate_backend({pid})` ends process {pid}")), "{table}");
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    reaches(&db.pool, "notes", last).await;
    let status = shows(&installation, "the end of it", |status| status["state"] == "live").await;
    assert_eq!(status["lock_wait"], Value::Null);
    daemon.stop().await;
}

/// A console, or a backup tool, that has locked the row: the daemons pass over it, and no session waits.
#[tokio::test]
async fn a_lock_on_a_tracker_is_named_with_its_holder_once_nobody_owns_it() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}[admin]\nlisten = '127.0.0.1:0'\n"));
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 3).await;
    let (daemon, other) = (installation.start_daemon(), installation.start_daemon());
    reaches(&db.pool, "notes", last).await;
    shows(&installation, "a standby", |status| status["standbys"].as_array().unwrap().len() == 1).await;
    let mut holder = PgConnection::connect(&format!("{}&application_name=console", db.url)).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    sqlx::raw_sql("begin; select from espd.trackers for update").execute(&mut holder).await.unwrap();
    let is_so = |status: &Value| status["state"] == "waiting" && status["owner"].is_null();
    let status = shows(&installation, "the lock", is_so).await;
    let wait = &status["lock_wait"];
    assert!(wait["seconds"].as_f64() >= Some(1.0) && wait["relation"] == "espd.trackers", "{status}");
    let by = &wait["held_by"][0];
    assert_eq!((&by["pid"], &by["application_name"]), (&pid.into(), &"console".into()), "{status}");
    assert_eq!(status["advice"][0]["topic"], "locked", "{status}");
    let remedy = status["advice"][0]["remedy"].as_str().unwrap();
    assert!(remedy.contains(&format!("`select pg_terminate_backend({pid})`")), "{status}");
    let found = finding(&installation, "running").await;
    assert!(found["level"] == "failure" && found["message"].to_string().contains("console"), "{found}");
    let client = Client::new(daemon.says("the admin endpoint listens").await["url"].as_str().unwrap());
    let metrics = client.get("/metrics").await.body;
    let line = metrics.lines().find(|line| line.starts_with("espd_processor_waiting_seconds{")).unwrap();
    assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() >= 1.0, "{line}");
    let told = "nobody owns the processor, and another session holds its tracker locked: `espctl status notes` names it";
    daemon.says(told).await;
    sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    let last = append(&db.pool, 3).await;
    reaches(&db.pool, "notes", last).await;
    let status = shows(&installation, "the end of it", |status| status["state"] == "live").await;
    assert_eq!(status["lock_wait"], Value::Null);
    daemon.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn the_rate_falls_to_zero_when_nothing_moves() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    // As the last batch of a burst leaves it.
    run(&db.pool, "update espd.trackers set rate = 22740").await;
    let status = shows(&installation, "no rate", |status| status["rate"] == 0.0).await;
    assert_eq!(status["state"], "live", "{status}");
    let rate: f32 = sqlx::query_scalar("select rate from espd.trackers").fetch_one(&db.pool).await.unwrap();
    assert_eq!(rate, 0.0);
    daemon.stop().await;
}

#[tokio::test]
async fn no_position_is_beyond_the_head_or_what_is_settled_while_events_arrive() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    let pool = db.pool.clone();
    let writing = tokio::spawn(async move {
        loop {
            append(&pool, 20).await;
        }
    });
    reaches(&db.pool, "notes", 100).await;
    for _ in 0..30 {
        let status = installation.status("notes").await;
        assert!(status["position"].as_i64() <= status["horizon"].as_i64(), "{status}");
        assert!(status["horizon"].as_i64() <= status["head"].as_i64(), "{status}");
    }
    writing.abort();
    daemon.stop().await;
}

/// The only finding of a check.
async fn finding(installation: &Installation, check: &str) -> Value {
    let outcome = installation.espctl(&["doctor", "--json"]).await;
    let findings: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let mut found: Vec<Value> = findings.into_iter().filter(|finding| finding["check"] == check).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[tokio::test]
async fn many_processors_at_one_event_are_told_of_once() {
    let db = support::database().await;
    let settings = format!("{RUNNER}isolation = 'task'\n[retry]\ninitial = '1h'\nmax = '1h'\n");
    let installation = Installation::new(&db.url, &settings);
    let names: Vec<String> = (1..=12).map(|nth| format!("projector_{nth:02}")).collect();
    for name in &names {
        installation.declare_notes(name, "perform 1 / (event.body->>'n')::bigint;");
    }
    installation.declare_notes("a_sound_one", "");
    append(&db.pool, 10).await;
    run(&db.pool, "update espd.events set body = '{\"n\": 0}' where id = 6").await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "a_sound_one", 10).await;
    let statuses = eventually("all of them", async || {
        let statuses = installation.espctl(&["status", "--json", "--state", "retrying"]).await.json();
        Some(statuses).filter(|statuses| statuses.as_array().unwrap().len() == 12)
    })
    .await;
    assert_eq!(statuses[0]["name"], "projector_01");

    let mut command = installation.espctl_command(&["status"]);
    let output = command.env("COLUMNS", "80").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.lines().count() < 30, "{table}");
    let words: Vec<&str> = table.split_whitespace().collect();
    let text = words.join(" ");
    assert!(text.contains("12 processors cannot handle event 6 (A): division by zero [22012]."), "{table}");
    assert!(text.ends_with("13 processors: 12 retrying, 1 live. Head 10, settled up to 10."), "{table}");
    let place = |name: &str| table.lines().position(|line| line.trim_start().starts_with(name)).unwrap();
    assert!(place("projector_12") < place("a_sound_one"), "{table}");

    let named = installation.espctl(&["status", "--name", "projector_1*", "--json"]).await.json();
    assert_eq!(named.as_array().unwrap().len(), 3);
    let named = installation.espctl(&["status", "--name", "sound", "--json"]).await.json();
    assert_eq!((named.as_array().unwrap().len(), &named[0]["state"]), (1, &"live".into()));
    let several = installation.espctl(&["status", "a_sound_one", "projector_02", "--json"]).await.json();
    assert_eq!(several.as_array().unwrap().len(), 2);
    assert_eq!(installation.espctl(&["status", "--state", "sad"]).await.code, Some(2));

    let found = finding(&installation, "running").await;
    assert_eq!(found["level"], "failure", "{found}");
    let message = found["message"].as_str().unwrap();
    assert!(message.starts_with("12 processors cannot handle event 6 (A): division by zero"), "{found}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_last_line_of_a_programs_standard_error_is_told_with_its_failure() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}[retry]\ninitial = '1h'\nmax = '1h'\n"));
    let program = "read hello; echo '{\"ready\":1}'; read batch\n\
                   echo 'a warning' >&2; echo 'ledger: connection refused' >&2\n\
                   echo '{\"failed\":1,\"error\":\"no ledger\"}'; read rest\n";
    std::fs::write(installation.path().join("processors/failing.sh"), program).unwrap();
    installation.declare(
        "notes",
        "[projector]\nname = 'notes'\nevents = ['A']\ncommand = ['sh', 'failing.sh']\n\
         [projector.tables]\nnotes = 'id bigint primary key'\n",
    );
    append(&db.pool, 1).await;
    let daemon = installation.start_daemon();
    let status = shows(&installation, "a failure", |status| status["state"] == "retrying").await;
    assert_eq!(status["last_error"]["message"], "no ledger", "{status}");
    assert_eq!(status["last_error"]["stderr"], "ledger: connection refused", "{status}");
    let table = installation.espctl(&["status"]).await.printed();
    assert!(table.contains("last words on standard error: ledger: connection refused"), "{table}");
    daemon.stop().await;
}
