//! `espctl check` and `espctl config`: mistakes are found before they are deployed.

use serde_json::Value;

use crate::support;
use crate::support::facts::{append, append_typed, is_listed, reaches};
use crate::support::program::{self, Installation};

#[tokio::test]
async fn a_check_accepts_what_runs_and_changes_nothing() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "").declare_notes("more", "");
    append(&db.pool, 3).await;
    let said = installation.espctl(&["check"]).await.printed();
    assert_eq!(said, "ok: 2 projectors, event store \"espd\".\"events\"\n");
    assert_eq!(installation.espd(&["check"]).await.printed(), said);
    assert_eq!(installation.espctl(&["check", "--json"]).await.json(), serde_json::json!([]));
    let left: i64 = sqlx::query_scalar(
        "select count(*) from pg_class where relname in ('notes', 'more') or relnamespace in
           (select oid from pg_namespace where nspname like 'espd_check%')",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_check_notes_tables_of_another_declaration() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let daemon = installation.start_daemon();
    reaches(&db.pool, "notes", append(&db.pool, 1).await).await;
    daemon.stop().await;
    assert!(!installation.espctl(&["check"]).await.printed().contains("note:"));
    let file = installation.path().join("processors/notes.toml");
    let declared = std::fs::read_to_string(&file).unwrap();
    let with = |more: &str| declared.replace("event_id bigint'", &format!("event_id bigint, more {more}'"));
    installation.declare("notes", &with("text"));
    let said = installation.espctl(&["check"]).await.printed();
    assert!(said.contains("the daemon alters notes: adds column more text; no replay"), "{said}");
    installation.declare("notes", &with("text default current_user"));
    let warned = warns_of_what_is_lost(&installation, &["notes"]).await;
    assert!(
        warned.contains("(a replay is needed: column more of notes is more than a type and a constant)"),
        "{warned}"
    );
    installation.espctl(&["reset", "notes", "--in-place", "--yes"]).await.printed();
    assert!(!installation.espctl(&["check"]).await.printed().contains("note:"));
}

/// Requires that a check warns of what a plan refuses, with the same words, and is content otherwise. Returns what it has warned of.
async fn warns_of_what_is_lost(installation: &Installation, processors: &[&str]) -> String {
    let plan = installation.espctl(&["plan"]).await;
    assert_eq!(plan.code, Some(2), "{plan:?}");
    let check = installation.espctl(&["check"]).await;
    assert!(
        check.code == Some(0) && check.stdout.ends_with("event store \"espd\".\"events\"\n"),
        "{check:?}"
    );
    for processor in processors {
        let line = |mark: &str| format!("{mark} {processor}: ");
        let lost =
            plan.stdout.lines().find(|told| told.starts_with(&line("!")) || told.starts_with(&line("-")));
        let words = lost.unwrap_or_else(|| panic!("{plan:?}"));
        assert!(check.stderr.contains(words[2..].trim_end()), "{words}\n{check:?}");
        assert!(!check.stdout.contains(processor), "{check:?}");
    }
    assert_eq!(check.stderr.matches("warning: ").count(), processors.len(), "{check:?}");
    assert_eq!(check.stderr.matches("`espctl plan` says all").count(), processors.len(), "{check:?}");
    let json = installation.espctl(&["check", "--json"]).await.json();
    let severities: Vec<&str> =
        json.as_array().unwrap().iter().filter_map(|one| one["severity"].as_str()).collect();
    assert_eq!(severities, vec!["warning"; processors.len()], "{json}");
    check.stderr
}

#[tokio::test]
async fn a_check_warns_of_what_a_deploy_would_lose() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    for name in ["emptied", "refused", "gone", "older"] {
        installation.declare_notes(name, "");
    }
    let older = installation.path().join("processors/older.toml");
    let raise = |version: &str| {
        let declared = std::fs::read_to_string(&older).unwrap();
        let named = |version: &str| format!("name = 'older'\n{version}");
        std::fs::write(&older, declared.replacen(&named(""), &named(version), 1)).unwrap();
    };
    raise("version = 2\n");
    let daemon = installation.start_daemon();
    let last = append(&db.pool, 1).await;
    for name in ["emptied", "refused", "gone", "older"] {
        reaches(&db.pool, name, last).await;
    }
    daemon.stop().await;
    assert_eq!(installation.espctl(&["plan"]).await.code, Some(0));
    let content = installation.espctl(&["check"]).await;
    assert!(content.code == Some(0) && content.stderr.is_empty(), "{content:?}");

    for (name, policy) in [("emptied", "rebuild"), ("refused", "refuse")] {
        let first = "perform 1;";
        installation.declare_notes(name, first);
        let file = installation.path().join(format!("processors/{name}.toml"));
        let declared = std::fs::read_to_string(&file).unwrap();
        let named = format!("name = '{name}'\n");
        let with = declared.replacen(&named, &format!("{named}on_handler_change = '{policy}'\n"), 1);
        std::fs::write(&file, with).unwrap();
    }
    std::fs::remove_file(installation.path().join("processors/gone.toml")).unwrap();
    installation.declare_notes("older", "");
    let warned = warns_of_what_is_lost(&installation, &["emptied", "refused", "gone", "older"]).await;
    assert!(
        warned.contains("processors/refused.toml: refused: stops, because its handlers have changed"),
        "{warned}"
    );
    assert!(warned.contains("espd.toml: gone: is not declared"), "{warned}");
}

#[tokio::test]
async fn a_check_plans_the_checks_of_the_author() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let declare = |sql: &str| {
        let check = format!("[[projector.check]]\nname = 'positive'\nsql = '''\n{sql};\n'''\n");
        let projector = "[projector]\nname = 'one'\n[projector.tables]\none = 'n bigint'\n[[projector.on]]\nevents = ['A']\n\
            sql = 'insert into one values (event.id)'\n";
        installation.declare("one", &format!("{projector}{check}"));
    };
    declare("-- why\nselect n from one\nwhere n < 0 -- none");
    assert!(installation.espctl(&["check"]).await.printed().starts_with("ok: 1 projector"));
    declare("select n from one\nwhere m < 0");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("processors/one.toml:12:7: column \"m\" does not exist"), "{complaint}");
    declare("select n from two");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("processors/one.toml:11:15: relation \"two\" does not exist"), "{complaint}");
}

#[tokio::test]
async fn an_aggregate_column_that_only_the_database_can_miss_is_found_by_a_check() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let declare = |column: &str, ddl: &str| {
        installation.declare(
            "orders",
            &format!(
                "[projector]\nname = 'orders'\naggregate_column = '{column}'\nddl = ['{ddl}']\n[projector.tables]\n\
                 orders = '(id uuid, n int)'\nlines = 'like orders'\n\
                 [[projector.on]]\nevents = ['A']\nsql = 'insert into orders values (event.aggregate_id, 1)'\n"
            ),
        );
    };
    declare("id", "create index on orders (n)");
    assert!(installation.espctl(&["check"]).await.printed().starts_with("ok: 1 projector"));
    // What is called as the table is no column of it.
    for column in ["idd", "orders"] {
        declare(column, "create index on orders (n)");
        let complaint = installation.espctl(&["check"]).await.complained(64);
        for table in ["orders", "lines"] {
            let words = format!(
                "orders.toml: table {table} has no column {column}, which aggregate_column of orders names"
            );
            assert!(complaint.contains(&words), "{complaint}");
        }
        assert_eq!(complaint.matches("name a column that each of its tables has").count(), 2, "{complaint}");
    }
    declare("idd", "alter table orders add idd uuid; alter table lines add idd uuid");
    assert!(installation.espctl(&["check"]).await.printed().starts_with("ok: 1 projector"));
}

#[tokio::test]
async fn a_check_reports_every_fault_with_file_line_and_column() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let projector = |name: &str, sql: &str| {
        format!(
            "[projector]\nname = '{name}'\n[projector.tables]\n{name} = 'n bigint'\n[[projector.on]]\nevents = ['A']\nsql = '''\n{sql}'''\n"
        )
    };
    installation.declare("one", &projector("one", "insert into one (n)\nvalues (event.idd)"));
    installation.declare("two", &projector("two", "  insert into two (m) values (1)"));
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("processors/one.toml:9:9: "), "{complaint}");
    assert!(complaint.contains("processors/two.toml:8:20: "), "{complaint}");
    assert!(complaint.contains("    8 |   insert into two (m) values (1)'''\n"), "{complaint}");
    let outcome = installation.espctl(&["check", "--json"]).await;
    let mistakes: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{outcome:?}"));
    assert_eq!((outcome.code, mistakes.as_array().unwrap().len()), (Some(64), 2), "{outcome:?}");
    assert_eq!((&mistakes[0]["line"], &mistakes[0]["column"]), (&9.into(), &9.into()), "{mistakes}");
    assert!(mistakes[0]["file"].as_str().unwrap().ends_with("processors/one.toml"), "{mistakes}");
    assert!(mistakes[1]["message"].as_str().unwrap().contains("column \"m\""), "{mistakes}");

    installation.declare("one", "[projector]\nnam = 'one'\n").declare("two", "[projector]\nname = 2\n");
    for arguments in [&["check"][..], &["plan"], &["config", "show"]] {
        let complaint = installation.espctl(arguments).await.complained(64);
        assert!(complaint.contains("processors/one.toml:2:1: "), "{complaint}");
        assert!(complaint.contains("processors/two.toml:2:8: "), "{complaint}");
    }
    let outcome = installation.espctl(&["check", "--json"]).await;
    let mistakes: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{outcome:?}"));
    assert_eq!(outcome.code, Some(64), "{outcome:?}");
    assert!(mistakes.as_array().unwrap().iter().any(|mistake| mistake["line"] == 2), "{mistakes}");
}

#[tokio::test]
async fn a_type_that_was_never_stored_is_told_with_the_nearest_names() {
    let db = support::database().await;
    for name in ["BookLent", "BookReturned"] {
        append_typed(&db.pool, name, 2).await;
    }
    let installation = Installation::new(&db.url, "");
    let loans = "[projector]\nname = 'loans'\n[[projector.on]]\nevents = ['BookReturned', 'BookLend']\nsql = 'null'\n";
    installation.declare("loans", loans);
    installation.declare(
        "told",
        "[projector]\nname = 'told'\nevents = ['bookreturned', 'Quite other']\n\
         command = ['sh', '-c', '''read x; echo '{\"ready\":1}'; cat''']\n",
    );
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for words in [
        "warning: ",
        "processors/loans.toml:5:8: no event of type BookLend was ever stored",
        "did you mean BookLent?",
        "processors/told.toml:4:11: no event of type bookreturned was ever stored",
        "did you mean BookReturned?",
        "no event of type \"Quite other\" was ever stored",
    ] {
        assert!(outcome.stderr.contains(words), "{words}\n---\n{}", outcome.stderr);
    }
    assert!(outcome.stdout.starts_with("ok: 2 projectors"), "{outcome:?}");
    let said = installation.espctl(&["doctor", "--json"]).await;
    let findings: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    let found: Vec<&Value> =
        findings.as_array().unwrap().iter().filter(|finding| finding["check"] == "event_types").collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|finding| finding["level"] == "warning"), "{found:?}");
    assert!(found.iter().any(|finding| finding.to_string().contains("BookLent")), "{found:?}");

    // In an empty store there is nothing to compare with.
    let empty = support::database().await;
    let installation = Installation::new(&empty.url, "");
    installation.declare_notes("notes", "");
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
}

#[tokio::test]
async fn a_table_of_another_processor_may_be_read_where_that_is_declared() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let declare = |keys: &str, sql: &str| {
        installation.declare(
            "reader",
            &format!(
                "[projector]\nname = 'reader'\n{keys}\n[projector.tables]\nseen = 'n bigint'\n\
                 [[projector.on]]\nevents = ['A']\nsql = \"{sql}\"\n"
            ),
        );
    };
    let read = "insert into seen select count(*) from notes";
    declare("", read);
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(
        complaint.contains("processors/reader.toml:8:46: table notes belongs to projector notes"),
        "{complaint}"
    );
    assert!(complaint.contains("reads = [\"notes\"]"), "{complaint}");
    // The table need not exist before the first start.
    declare("reads = ['notes']", read);
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    declare("reads = ['nots']", "insert into seen values (1)");
    let outcome = installation.espctl(&["check"]).await;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("reader.toml:3:10: there is no table nots"), "{outcome:?}");
    declare("reads = ['notes']", "execute 'delete from notes'");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("table notes belongs to projector notes"), "{complaint}");
    declare("reads = ['seen', 'Notes', 'notes', 'notes']", read);
    let complaint = installation.espctl(&["check"]).await.complained(64);
    for words in ["seen is a table of this processor", "`Notes` is not a name", "`notes` is listed twice"] {
        assert!(complaint.contains(words), "{words}: {complaint}");
    }
}

#[tokio::test]
async fn without_a_database_a_check_uses_one_of_its_own() {
    let installation = Installation::without_database("");
    installation.declare_notes("notes", "perform nothing_like_that();");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("processors/notes.toml:"), "{complaint}");
    assert!(!installation.path().join(".espd").exists());
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let installation = Installation::new("postgres://espd:hush-hush@localhost:1/events", "");
    installation.declare_notes("notes", "");
    let shown = installation.espctl(&["config", "show"]).await.printed();
    assert!(!shown.contains("hush-hush"), "{shown}");
    let json = installation.espctl(&["config", "show", "--json"]).await.json();
    assert_eq!(json["runner"]["batch_size"], 1_000, "{json}");
    // What is shown is a configuration itself, and shows the same.
    let again = Installation::without_database("");
    std::fs::write(again.path().join("espd.toml"), &shown).unwrap();
    assert_eq!(again.espctl(&["config", "show"]).await.printed(), shown);
    let example = installation.espctl(&["config", "example"]).await.printed();
    assert_eq!(example.trim_end(), espd::internals::config::EXAMPLE.trim_end());
}

/// PostgreSQL passes over an unknown schema in silence, and espd would look for names elsewhere.
#[tokio::test]
async fn what_projections_name_and_the_database_does_not_know_is_refused_by_check_and_run() {
    let db = support::database().await;
    sqlx::raw_sql("create schema extensions").execute(&db.pool).await.unwrap();
    let settings =
        "[projections]\nsearch_path = ['public', 'extension']\nsettings = { TimeZone = 'Mars/Olympus' }\n";
    let installation = Installation::new(&db.url, settings);
    for complaint in
        [installation.espctl(&["check"]).await.complained(64), installation.espd(&["run"]).await.stderr]
    {
        // The daemon's log is JSON.
        let complaint = complaint.replace("\\\"", "\"");
        for words in
            ["there is no schema extension", "did you mean \"extensions\"?", "TimeZone", "Mars/Olympus"]
        {
            assert!(complaint.contains(words), "{words}: {complaint}");
        }
    }
    let known =
        "[projections]\nsearch_path = ['public', 'extensions']\nsettings = { TimeZone = 'Europe/Berlin' }\n";
    let installation = Installation::new(&db.url, known);
    installation.declare_notes("notes", "");
    installation.espctl(&["check"]).await.printed();
}

#[tokio::test]
async fn attempts_that_never_end_are_told() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[retry]\nmax_attempts = 3\n");
    installation.declare_notes("notes", "");
    let parked = "[projector]\nname = 'parked'\n[projector.retry]\non_failure = 'park'\n[[projector.on]]\nevents = ['A']\nsql = 'perform 1'\n";
    installation.declare("parked", parked);
    let said = installation.espctl(&["check"]).await.printed();
    assert!(said.contains("note: max_attempts has no effect on notes: on_failure = \"retry\""), "{said}");
    assert!(!said.contains("parked"), "{said}");
}

#[tokio::test]
async fn a_handler_that_names_a_table_of_another_is_refused_by_check_and_at_the_start() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    installation.declare_notes("notes", "");
    let intruder = "[projector]\nname = 'intruder'\n[[projector.on]]\nevents = ['A']\nsql = 'delete from notes where id = event.id'\n";
    installation.declare("intruder", intruder);
    let words = "processors/intruder.toml:5:20: table notes belongs to projector notes";
    let refused = installation.espctl(&["check"]).await.complained(64);
    assert!(refused.contains(words), "{refused}");
    let refused = installation.espd(&["run"]).await.complained(64);
    assert!(refused.contains(words), "{refused}");

    let config = espd::Config::load(&installation.path().join("espd.toml")).unwrap();
    let refused = espd::Program::new().start(&config).await.unwrap_err().to_string();
    assert!(refused.contains(words), "{refused}");
}

#[tokio::test]
async fn what_only_espd_may_change_is_refused_and_what_appends_again_is_warned_of() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let declare = |sql: &str, ddl: &str| {
        let text = format!(
            "[projector]\nname = 'p'\nddl = [{ddl}]\n[[projector.on]]\nevents = ['A']\nsql = \"{sql}\"\n"
        );
        installation.declare("p", &text);
    };
    installation.declare_notes("notes", "");
    let other = "[reactor]\nname = 'other'\nemits = ['B']\n[reactor.tables]\nmemory = 'id int'\n[[reactor.on]]\nevents = ['A']\nsql = 'perform 1'\n";
    installation.declare("other", other);
    for sql in [
        "update espd.events set body = '1' where id = event.id - 1",
        "delete from only espd.trackers where name = 'notes'",
        "execute 'truncate espd.dead_letters'",
        "insert into \\\"espd\\\".scheduled_events (id) values (1)",
    ] {
        declare(sql, "");
        let refused = installation.espctl(&["check"]).await.complained(64);
        assert!(refused.contains("processors/p.toml:6:") && refused.contains("is espd's own"), "{refused}");
    }
    declare("perform 1", "'drop table if exists notes, espd.dead_letters cascade'");
    let refused = installation.espctl(&["check"]).await.complained(64);
    assert!(
        refused.contains("table dead_letters") || refused.contains("espd.dead_letters is espd's own"),
        "{refused}"
    );
    assert!(refused.contains("table notes belongs to projector notes"), "{refused}");

    declare("perform espd.append('{}')", "");
    let file = installation.path().join("processors/p.toml");
    let reading = std::fs::read_to_string(&file).unwrap().replace("ddl = []", "reads = ['p', 'other']");
    std::fs::write(&file, reading).unwrap();
    let warned = installation.espctl(&["check"]).await;
    assert_eq!(warned.code, Some(0), "{warned:?}");
    assert!(
        warned.stderr.contains("espd.append appends once more whenever this event is handled again"),
        "{warned:?}"
    );
    assert!(warned.stderr.contains("this is the processor itself"), "{warned:?}");
    assert!(
        warned.stderr.contains("other is a reactor: name the tables that are read, of memory"),
        "{warned:?}"
    );
}

/// What `espd run` refuses, or fails with again and again, is found before it is deployed.
#[tokio::test]
async fn what_no_daemon_could_start_with_is_a_mistake() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "");
    let complaint = installation.espctl(&["check"]).await.complained(64);
    assert!(complaint.contains("no processor is declared, and `include` matches no file"), "{complaint}");
    let nothing = Installation::without_database("");
    std::fs::write(nothing.path().join("espd.toml"), "").unwrap();
    for url in ["", &db.url] {
        let mut command = nothing.espd_command(&["check"]);
        command.env("DATABASE_URL", url);
        let complaint = program::run(command, "").await.complained(64);
        assert!(complaint.contains("no processor is declared: see `espctl config example`"), "{complaint}");
    }
    let mut command = nothing.espctl_command(&["check"]);
    command.env("DATABASE_URL", &db.url);
    let complaint = program::run(command, "").await.complained(64);
    assert!(complaint.contains("no processor is declared: see `espctl config example`"), "{complaint}");

    installation.declare_notes("notes", "");
    let file = installation.path().join("espd.toml");
    let plain = std::fs::read_to_string(&file).unwrap();
    let folder = installation.path();
    let long = format!("unix:/{}", "x".repeat(200));
    let (missing, taken) = (folder.join("no/admin"), folder.join("espd.toml"));
    for (section, said) in [
        (
            "[hooks]\non_worker_start = ['no-such-program']",
            "of the hook on_worker_start is not there".to_owned(),
        ),
        (
            "[hooks]\non_failure = ['/no/such/program', '-v']",
            "of the hook on_failure is not there".to_owned(),
        ),
        (
            "[admin]\nlisten = '192.0.2.1:4680'",
            "the admin endpoint cannot listen on 192.0.2.1:4680".to_owned(),
        ),
        (&format!("[admin]\nlisten = 'unix:{}'", missing.display()), "there is no folder".to_owned()),
        (
            &format!("[admin]\nlisten = 'unix:{}'", taken.display()),
            "something that is no socket is there".to_owned(),
        ),
        (&format!("[admin]\nlisten = '{long}'"), "the path is too long for a socket".to_owned()),
    ] {
        let tokens =
            if section.contains("192") { "\nread_token = '0123456789abcdef0123456789abcdef'" } else { "" };
        std::fs::write(&file, format!("{plain}{section}{tokens}\n")).unwrap();
        let complaint = installation.espctl(&["check"]).await.complained(64);
        assert!(complaint.contains(&said), "{complaint}");
    }

    // What listens already is a daemon, perhaps this one's, and is left alone.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let section =
        format!("[admin]\nlisten = '{}'\n[hooks]\non_failure = ['true']\n", listener.local_addr().unwrap());
    std::fs::write(&file, format!("{plain}{section}")).unwrap();
    installation.espctl(&["check"]).await.printed();
    let mut command = installation.espctl_command(&["check"]);
    command.env("RUST_LOG", "bogus=[");
    let outcome = program::run(command, "").await;
    assert!(outcome.code == Some(0) && outcome.stderr.contains("is not a log filter"), "{outcome:?}");
}

#[tokio::test]
async fn a_reload_that_would_end_every_worker_is_refused() {
    let db = support::database().await;
    let installation = Installation::new(&db.url, "[runner]\npoll_interval_max = '50ms'\n");
    installation.declare_notes("notes", "");
    let mut command = installation.espd_command(&["run"]);
    command.env("RUST_LOG", "bogus=[");
    let daemon = program::Program::start(command);
    daemon.says("the environment variable RUST_LOG is passed over").await;
    reaches(&db.pool, "notes", append(&db.pool, 1).await).await;
    is_listed(&db.pool).await;
    let file = installation.path().join("espd.toml");
    let plain = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{plain}[hooks]\non_worker_start = ['no-such-program']\n")).unwrap();
    let complaint = installation.espctl(&["reload"]).await.complained(1);
    assert!(complaint.contains("of the hook on_worker_start is not there"), "{complaint}");
    reaches(&db.pool, "notes", append(&db.pool, 1).await).await;
    assert_eq!(daemon.children("notes").len(), 1);
    daemon.stop().await;
}
