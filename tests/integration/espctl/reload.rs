//! `espctl reload`, and what `status` and `wait` say of a processor that is not in the running configuration.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support;
use crate::support::facts::{append, assert_exactly_once, eventually, reaches};
use crate::support::program::{Installation, Outcome};

const RUNNER: &str = "[runner]\npoll_interval_max = '50ms'\n";

#[tokio::test]
async fn a_new_file_is_followed_after_a_reload_as_status_and_wait_advise() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    let label = eventually("the daemon's row", async || {
        let query = sqlx::query_scalar::<_, String>("select owner_label from espd.workers");
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    installation.declare_notes("added", "");

    let status = installation.status("added").await;
    assert_eq!((&status["state"], &status["advice"][0]["topic"]), (&"stopped".into(), &"stopped".into()));
    let problem = status["advice"][0]["problem"].as_str().unwrap();
    assert_eq!(problem, format!("No daemon runs added: it is not in the running configuration of {label}."));
    assert!(status["advice"][0]["remedy"].as_str().unwrap().contains("`espctl reload`"), "{status}");
    let complaint = installation.espctl(&["wait", "added", "--timeout", "100ms"]).await.complained(75);
    assert!(complaint.contains(&format!("not in the running configuration of {label}")), "{complaint}");
    assert!(complaint.contains("`espctl reload`"), "{complaint}");

    let said = installation.espctl(&["reload"]).await.printed();
    assert_eq!(
        said,
        format!("{label} has read its configuration again, and follows the new one\n  processors: 2\n")
    );
    reaches(&db.pool, "added", last).await;
    assert_exactly_once(&db.pool, &db.pool, "added").await;
    let said = installation.espctl(&["reload"]).await.printed();
    assert_eq!(said, format!("{label} has read its configuration again: nothing has changed\n"));

    installation.declare("added", "colour = 1\n");
    let complaint = installation.espctl(&["reload"]).await.complained(64);
    assert!(complaint.contains("added.toml:1:1: unknown key `colour`"), "{complaint}");
    // On another host, say, where the files are not those of the daemon.
    let mut elsewhere = installation.espctl_command(&["reload"]);
    elsewhere.current_dir("/").env_remove("ESPD_CONFIG").env("DATABASE_URL", &db.url);
    let output = elsewhere.output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("it is wrong, and the old one is kept\n"), "{complaint}");
    assert!(complaint.contains("added.toml:1:1: unknown key `colour`"), "{complaint}");
    let asked: Vec<(String, Option<String>)> =
        sqlx::query_as("select operator, outcome from espd.reload_requests order by id")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    let outcomes: Vec<_> = asked.iter().map(|(_, outcome)| outcome.as_deref().unwrap()).collect();
    assert_eq!(outcomes, ["changed", "unchanged", "refused"]);
    assert!(asked.iter().all(|(operator, _)| operator.contains('@')), "{asked:?}");
    daemon.stop().await;
    installation.declare_notes("added", "");
    let complaint = installation.espctl(&["reload"]).await.complained(1);
    assert!(
        complaint
            .starts_with("error: no daemon runs on the database of this configuration: start `espd run`"),
        "{complaint}"
    );
}

#[tokio::test]
async fn while_a_declaration_is_wrong_what_runs_can_still_be_looked_at_and_operated() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    installation.declare_notes("others", "");
    let last = append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    installation.declare_notes("others", "");
    let file = installation.path().join("processors/others.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("name = 'others'\n", "name = 'others'\ncolour = 1\n", 1)).unwrap();

    let told = |outcome: Outcome| {
        let warning = "warning: 1 fault in the configuration, which `espctl check` shows";
        assert!(outcome.stderr.starts_with(warning), "{outcome:?}");
        assert!(outcome.stderr.contains("others.toml:3:1: unknown key `colour`"), "{outcome:?}");
        outcome.printed()
    };
    let table = told(installation.espctl(&["status"]).await);
    assert!(table.contains("notes ") && table.contains("others "), "{table}");
    let status: Value =
        serde_json::from_str(&told(installation.espctl(&["status", "--json"]).await)).unwrap();
    assert!(status.as_array().unwrap().iter().all(|one| one["advice"] == json!([])), "{status}");
    let dead_letters = told(installation.espctl(&["dead-letters", "list", "--json"]).await);
    assert_eq!(dead_letters.trim(), "[]");
    for command in ["pause", "resume", "wait"] {
        told(installation.espctl(&[command, "others"]).await);
    }
    // What a declaration says matters to these, or the fault is elsewhere.
    for command in [&["plan"][..], &["rebuild", "notes"], &["drop", "others", "--yes"], &["config", "show"]] {
        let complaint = installation.espctl(command).await.complained(64);
        assert!(complaint.contains("others.toml:3:1: unknown key `colour`"), "{complaint}");
    }
    let text = std::fs::read_to_string(installation.path().join("espd.toml")).unwrap();
    std::fs::write(installation.path().join("espd.toml"), format!("{text}[admin]\nlisten = 1\n")).unwrap();
    installation.espctl(&["status"]).await.complained(64);
    daemon.stop().await;
}

#[tokio::test]
async fn a_reload_and_a_restart_try_a_failing_event_at_once() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, &format!("{RUNNER}[retry]\ninitial = '1h'\nmax = '1h'\n"));
    installation.declare_notes("notes", "perform 1 / (event.body->>'n')::bigint;");
    let failing = async |n: i64| {
        let last = append(&db.pool, 1).await;
        eventually("a failure", async || {
            let status = installation.status("notes").await;
            (status["state"] == "retrying" && status["last_error"]["event_id"] == last).then_some(())
        })
        .await;
        set_n(&db.pool, last, n).await;
        last
    };
    // The event that is to fail is there before anything handles it.
    sqlx::query(
        "create function public.break() returns trigger language plpgsql as
           $$ begin new.body := '{\"n\": 0}'; return new; end $$",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    sqlx::query(
        "create trigger break before insert on espd.events for each row execute function public.break()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let daemon = installation.start_daemon();
    let last = failing(1).await;
    installation.espctl(&["reload"]).await.printed();
    reaches(&db.pool, "notes", last).await;

    let last = failing(2).await;
    daemon.stop().await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    daemon.stop().await;
}

async fn set_n(pool: &sqlx::PgPool, id: i64, n: i64) {
    sqlx::query("update espd.events set body = jsonb_build_object('n', $2::bigint) where id = $1")
        .bind(id)
        .bind(n)
        .execute(pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_not_waited_for() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "").declare_notes("other", "");
    let begun = std::time::Instant::now();
    let complaint = installation.espctl(&["wait", "nots", "--timeout", "30s"]).await.complained(1);
    assert_eq!(complaint, "error: no processor nots; there are notes, other\n");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    // One that is declared may begin to run at any time.
    let complaint = installation.espctl(&["wait", "notes", "--timeout", "100ms"]).await.complained(75);
    assert!(complaint.ends_with("it has never run on this database\n"), "{complaint}");
    let complaint = installation.espctl(&["wait", "--all", "--timeout", "100ms"]).await.complained(75);
    assert!(
        complaint.contains("notes has not reached") && complaint.contains("other has not"),
        "{complaint}"
    );
}

#[tokio::test]
async fn several_processors_or_all_are_operated_at_once() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "").declare_notes("more", "").declare_notes("other", "");
    let last = append(&db.pool, 3).await;
    let daemon = installation.start_daemon();
    let said = installation.espctl(&["wait", "notes", "more", "other", "--timeout", "60s"]).await.printed();
    for name in ["notes", "more", "other"] {
        assert!(said.contains(&format!("{name} is at {last}\n")), "{said}");
    }
    let espctl = async |arguments: &[&str]| installation.espctl(arguments).await.printed();
    assert_eq!(
        espctl(&["pause", "notes", "more"]).await,
        "notes paused at position 3\nmore paused at position 3\n"
    );
    // What is done to all is told of those that it changes.
    assert_eq!(espctl(&["pause", "--all"]).await, "other paused at position 3\n");
    assert_eq!(
        espctl(&["resume", "--all"]).await,
        "more resumes from position 3\nnotes resumes from position 3\nother resumes from position 3\n"
    );
    assert_eq!(espctl(&["resume", "--all"]).await, "no processor is paused or has failed\n");
    assert_eq!(espctl(&["retry", "--all"]).await, "no processor has a failure\n");
    assert_eq!(
        espctl(&["reset", "notes", "other", "--to", "1", "--yes"]).await,
        "notes was at 3, is at 1\nother was at 3, is at 1\n"
    );
    espctl(&["wait", "--all", "--timeout", "60s"]).await;
    // One wrong name, and nothing is done.
    let complaint = installation.espctl(&["pause", "notes", "nots"]).await.complained(1);
    assert!(complaint.contains("no processor nots; there are more, notes, other"), "{complaint}");
    assert_ne!(installation.status("notes").await["state"], "paused");
    assert_eq!(installation.espctl(&["pause"]).await.code, Some(2));
    assert_eq!(installation.espctl(&["pause", "notes", "--all"]).await.code, Some(2));
    daemon.stop().await;
}

/// What `espctl check` refuses, no daemon follows: neither when it is asked through the database nor by a signal.
#[tokio::test]
async fn a_reload_refuses_handlers_that_a_check_refuses_and_says_so() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "").declare_notes("other", "");
    let last = append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    let worker = daemon.child("notes", 1).await;

    installation
        .declare_notes("notes", "insert into nowhere values (1);")
        .declare_notes("other", "perform 1;");
    let fault = "relation \"nowhere\" does not exist";
    assert!(installation.espctl(&["check"]).await.complained(64).contains(fault));
    let complaint = installation.espctl(&["reload"]).await.complained(1);
    assert!(complaint.contains("it is wrong, and the old one is kept"), "{complaint}");
    assert!(complaint.contains("processors/notes.toml:") && complaint.contains(fault), "{complaint}");
    let wrong = "the configuration was read again and is wrong, keeping the old one";
    let line = daemon.says(wrong).await;
    assert!(line["fault"].as_str().unwrap().contains(fault), "{line}");
    let last = append(&db.pool, 5).await;
    for name in ["notes", "other"] {
        reaches(&db.pool, name, last).await;
        let status = installation.status(name).await;
        let topics: Vec<_> = status["advice"].as_array().unwrap().iter().map(|one| &one["topic"]).collect();
        assert_eq!(topics, ["reload_refused"], "{status}");
    }
    assert_eq!(daemon.children("notes"), [worker], "the running ones go on");
    let shown = installation.espctl(&["status"]).await.printed();
    assert_eq!(shown.matches("refused it, and goes on with the one before").count(), 1, "{shown}");

    let recorded = async |operator: &str, outcome: &str| {
        let query = "select count(*) from espd.reload_requests where operator like $1 and outcome = $2";
        let query = sqlx::query_scalar::<_, i64>(query).bind(operator).bind(outcome);
        query.fetch_one(&db.pool).await.unwrap()
    };
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("the second refusal", async || (recorded("SIGHUP", "refused").await == 1).then_some(())).await;
    installation.declare_notes("notes", "");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("a new configuration", async || (recorded("SIGHUP", "changed").await == 1).then_some(()))
        .await;
    assert_eq!(installation.status("notes").await["advice"], serde_json::json!([]));
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_daemon_has_followed_is_no_error_where_another_one_refuses() {
    let db = support::database().await;
    let (first, second) = (Installation::new(&db.url, RUNNER), Installation::new(&db.url, RUNNER));
    first.declare_notes("first", "");
    second.declare_notes("second", "");
    let daemons = (first.start_daemon(), second.start_daemon());
    let known = "select count(distinct owner) from espd.workers";
    let both = async || {
        let known: i64 = sqlx::query_scalar(known).fetch_one(&db.pool).await.unwrap();
        (known == 2).then_some(())
    };
    eventually("both daemons are known", both).await;
    second.declare("wrong", "colour = 1\n");
    let outcome = first.espctl(&["reload"]).await;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.ends_with("nothing has changed\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("it is wrong") && !outcome.stderr.contains("nothing has changed"));
    daemons.0.stop().await;
    daemons.1.stop().await;
}

#[tokio::test]
async fn a_daemon_that_was_frozen_and_goes_on_is_waited_for() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, RUNNER);
    installation.declare_notes("notes", "");
    let last = append(&db.pool, 5).await;
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", last).await;
    eventually("the daemon's row", async || {
        let query = sqlx::query_scalar::<_, bool>("select true from espd.workers");
        query.fetch_optional(&db.pool).await.unwrap()
    })
    .await;
    daemon.signal(Signal::SIGSTOP);
    // As after a while.
    sqlx::query("update espd.workers set updated_at = clock_timestamp() - interval '1 minute'")
        .execute(&db.pool)
        .await
        .unwrap();
    let reload = installation.espctl(&["reload"]);
    let wake = async {
        eventually("it is looked for", async || {
            let asks = "select exists (select from pg_stat_activity where datname = current_database() and query like '%find_silent_daemons%' and pid <> pg_backend_pid())";
            sqlx::query_scalar::<_, bool>(asks).fetch_one(&db.pool).await.unwrap().then_some(())
        })
        .await;
        daemon.signal(Signal::SIGCONT);
    };
    let (reloaded, ()) = tokio::join!(reload, wake);
    assert!(reloaded.printed().contains("has read its configuration again"));
    daemon.stop().await;
    // One that has ended in order is not waited for.
    let complaint = installation.espctl(&["reload"]).await.complained(1);
    assert!(complaint.contains("no daemon runs on the database"), "{complaint}");
}

#[tokio::test]
async fn a_daemon_that_works_on_the_former_database_is_told_of() {
    let (former, new) = (support::database().await, support::database().await);
    let installation = Installation::new(&former.url, RUNNER);
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    reaches(&former.pool, "notes", 0).await;
    let file = installation.path().join("espd.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&former.url, &new.url)).unwrap();
    let complaint = installation.espctl(&["reload"]).await.complained(1);
    assert!(complaint.contains("because `url` was changed, `kill -HUP` its process"), "{complaint}");
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let last = append(&new.pool, 1).await;
    reaches(&new.pool, "notes", last).await;
    daemon.stop().await;
}
