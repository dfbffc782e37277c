//! What is written is what is meant: defaults, inheritance, includes, variables.

use std::time::Duration;

use espd::internals::config::{Config, DatabaseUrl, LogFormat, RunnerSection};
use espd::internals::declaration::{BatchLimits, FoldedLimits, HandledEvents};
use espd::internals::plan::worker_settings;
use espd::internals::retry::{RetryPolicy, Strategy};
use espd::internals::worker::WorkerSettings;

use super::{Folder, espd_example, load};

#[test]
fn an_empty_file_means_the_defaults() {
    let config = load("").unwrap();
    assert_eq!(Config { files: vec![], ..config }, Config::default());
    assert_eq!(load("").unwrap().event_store.schema, "espd");
    assert_eq!(load("").unwrap().projections.schema, "public");
}

#[test]
fn settings_are_read_and_inherited() {
    let text = r#"
        [event_store]
        url = "postgres://h/d"
        schema = "store"
        [projections]
        url = "postgres://h/other"
        schema = "store"
        [runner]
        batch_size = 10
        batch_bytes = "1MiB"
        batch_time = "500ms"
        batch_span = 1_000
        poll_interval_max = "5s"
        shutdown_timeout = "1m"
        [retry]
        strategy = "constant"
        initial = "2s"
        jitter = 0
        [log]
        format = "json"
        level = "info,sqlx=warn"
        [[projector]]
        name = "plain"
        on = [{ events = ["*"], sql = "null" }]
        [[projector]]
        name = "special"
        version = 3
        batch_size = 1
        batch_bytes = "2KiB"
        batch_time = "1s"
        batch_span = 5
        retry = { strategy = "none", max = "3s" }
        on = { events = ["B", "A"], sql = "null" }
    "#;
    let config = load(text).unwrap();
    assert_eq!(config.projections.url, Some(DatabaseUrl::new("postgres://h/other").unwrap()));
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Json, "info,sqlx=warn"));
    let batch = limits(10, 1 << 20, Duration::from_millis(500), 1_000);
    let [seconds_5, minute] = [5, 60].map(Duration::from_secs);
    assert_eq!(
        config.runner,
        RunnerSection {
            batch,
            poll_interval_max: seconds_5,
            shutdown_timeout: minute,
            ..RunnerSection::default()
        }
    );
    let [initial, max] = [2, 64].map(Duration::from_secs);
    let retry =
        RetryPolicy { strategy: Strategy::Constant, initial, max, jitter: 0.0, ..RetryPolicy::default() };
    assert_eq!(config.retry, retry);

    let [plain, special] = config.processors.as_slice() else { panic!("two projectors") };
    assert_eq!((plain.batch, plain.retry, plain.version), (batch, retry, 1));
    assert_eq!(plain.handlers()[0].events, HandledEvents::All);
    assert_eq!(special.batch, limits(1, 2 << 10, Duration::from_secs(1), 5));
    assert_eq!(special.retry, RetryPolicy { strategy: Strategy::None, max: Duration::from_secs(3), ..retry });
    assert_eq!(special.handlers()[0].events, HandledEvents::Types(vec!["B".into(), "A".into()]));
    assert_eq!(special.version, 3);
}

/// Limits of which each was set.
fn limits(size: i64, bytes: i64, time: Duration, span: i64) -> BatchLimits {
    BatchLimits { size, size_max: size, bytes, time, span, folded: FoldedLimits { size, bytes, span } }
}

#[test]
fn tables_keep_the_order_of_the_file() {
    let text = "[projector]\nname='p'\n[projector.tables]\nz = 'id int primary key'\na = 'id int references z'\n\
                [[projector.on]]\nevents=['A']\nsql='null'\n";
    let config = load(text).unwrap();
    let names: Vec<_> = config.processors[0].tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["z", "a"]);
}

#[test]
fn includes_have_an_order_and_no_doubles() {
    let named =
        |name: &str| format!("[projector]\nname = '{name}'\n[[projector.on]]\nevents=['A']\nsql='null'\n");
    let main = "include = ['z.toml', 'p/*.toml', 'none/*.toml', '*.toml', 'p/../p/a.toml']\n".to_owned();
    let folder = Folder::new(&[
        ("espd.toml", &(main + &named("main"))),
        ("z.toml", &named("z")),
        ("p/b.toml", &named("b")),
        ("p/a.toml", &named("a")),
        ("p/.hidden.toml", "not TOML"),
        ("p/deeper/x", "not TOML"),
        ("p/readme.md", "not TOML"),
    ]);
    let config = folder.load().unwrap();
    let names: Vec<_> = config.processors.iter().map(|projector| projector.name.as_str()).collect();
    assert_eq!(names, ["main", "z", "a", "b"]);
    assert_eq!(config.files, ["espd.toml", "z.toml", "p/a.toml", "p/b.toml"].map(|name| folder.path(name)));
}

#[test]
fn variables_are_replaced_in_strings_but_not_in_sql() {
    let text = r#"
        [event_store]
        url = "postgres://jo:${file:password}@${HOST}/${NAME:-shop}"
        schema = "$SCHEMA${EMPTY:-}${PREFIX}_espd"
        [runner]
        batch_size = "${BATCH_SIZE}"
        [[projector]]
        name = "p"
        on = [{ events = ["$${A}"], sql = 'perform $${"a": "${B}"}$$::jsonb' }]
    "#;
    let folder = Folder::new(&[("espd.toml", &text.replace("$SCHEMA", "")), ("password", "s3cret\n")])
        .with("HOST", "db")
        .with("PREFIX", "shop")
        .with("BATCH_SIZE", "7");
    let config = folder.load().unwrap();
    assert_eq!(config.event_store.url.unwrap().expose(), "postgres://jo:s3cret@db/shop");
    assert_eq!(config.event_store.schema, "shop_espd");
    assert_eq!(config.runner.batch.size, 7);
    let handler = &config.processors[0].handlers()[0];
    assert_eq!(handler.events, HandledEvents::Types(vec!["${A}".into()]));
    assert_eq!(handler.sql.text, r#"perform $${"a": "${B}"}$$::jsonb"#);
}

#[test]
fn without_a_file_there_is_the_environment() {
    let load = |url: Option<&str>| {
        Config::from_environment_with(&|name| url.filter(|_| name == "DATABASE_URL").map(str::to_owned))
    };
    assert_eq!(load(Some("postgres://h/d")).unwrap().event_store.url.unwrap().expose(), "postgres://h/d");
    for url in [None, Some(""), Some("jo:s3cret@h")] {
        let report = load(url).unwrap_err().to_string();
        assert!(report.starts_with("DATABASE_URL: ") && !report.contains("s3cret"), "{report}");
    }
}

#[test]
fn what_is_shown_can_be_read_again() {
    let config = espd_example();
    let shown = toml::to_string_pretty(&config.redacted()).unwrap();
    let again = load(&shown).unwrap();
    assert_eq!(again.redacted(), config.redacted());
    assert_eq!(again.processors.len(), 8);
    let reactor = |config: &Config| config.processors.iter().find_map(|processor| processor.reactor.clone());
    assert!(reactor(&config).is_some() && reactor(&again) == reactor(&config));
}

#[test]
fn a_worker_receives_its_settings_as_json() {
    let config = espd_example();
    let url = config.event_store.url.clone().unwrap();
    let settings = worker_settings(&config, &[&config.processors[1]], &url);
    let json = serde_json::to_string(&settings).unwrap();
    assert_eq!(serde_json::from_str::<WorkerSettings>(&json).unwrap(), settings);
    assert_eq!(settings.processors[0].name, config.processors[1].name);
}

#[test]
fn projections_in_the_same_database_need_no_second_one() {
    let mut config = espd_example();
    let [here, there] = ["postgres://h/d", "postgres://h/e"].map(|url| DatabaseUrl::new(url).unwrap());
    for (projections, expected) in [(None, None), (Some(&here), None), (Some(&there), Some(&there))] {
        config.projections.url = projections.cloned();
        let settings = worker_settings(&config, &[&config.processors[0]], &here);
        assert_eq!(settings.projections_url.as_ref(), expected);
    }
}

#[test]
fn processors_are_sorted_into_workers() {
    let text = "[runner]\nisolation = 'task'\n";
    let on = "[[projector.on]]\nevents = ['A']\nsql = 'null'\n";
    let projector = |name, isolation| format!("[[projector]]\nname = '{name}'\n{isolation}\n{on}");
    let text = text.to_owned()
        + &projector("a", "")
        + &projector("b", "isolation = 'group:g'")
        + &projector("c", "isolation = 'process'")
        + &projector("d", "isolation = 'task'")
        + &projector("e", "isolation = 'group:g'");
    let config = load(&text).unwrap();
    let workers = config.workers();
    let workers: Vec<(&str, Vec<&str>)> = workers
        .iter()
        .map(|(name, members)| (name.as_str(), members.iter().map(|member| member.name.as_str()).collect()))
        .collect();
    assert_eq!(workers, [("all-tasks", vec!["a", "d"]), ("group:g", vec!["b", "e"]), ("c", vec!["c"])]);
}

#[test]
fn an_unknown_isolation_is_refused_with_what_to_write() {
    let projector =
        "[projector]\nname = 'a'\nisolation = 'ISOLATION'\n[[projector.on]]\nevents = ['A']\nsql = 'null'\n";
    for (written, advice) in [
        ("proces", "did you mean \"process\"?"),
        ("thread", "\"group:NAME\""),
        ("group:", "write up to 48"),
        ("group:My-Group", "`my_group`"),
    ] {
        let faults = load(&projector.replace("ISOLATION", written)).unwrap_err().to_string();
        assert!(faults.contains(advice) && faults.contains(":3:13: "), "{faults}");
    }
    let faults = load("[runner]\nisolation = 'group:g'\n").unwrap_err().to_string();
    assert!(faults.contains("a group is named by its processors"), "{faults}");
}
