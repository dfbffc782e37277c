//! Every key of the configuration, once: name, kind with range and default, whether it is required, whether it is secret.
//!
//! Unknown keys, types, ranges, the JSON Schema and what `config show` hides follow from this table. The example file and
//! `docs/configuration.md` are tested against it.

use std::time::Duration;

use super::reader::key::{Key, Keys, Kind};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const I32_MAX: i64 = i32::MAX as i64;

const REQUIRE_NAME: &str = "write `name = \"…\"`, unique among all processors";
const REQUIRE_EVENTS: &str = "write `events = [\"SomethingHappened\"]`, or `events = [\"*\"]` for all";

/// The top of the main file.
pub(super) const MAIN_FILE: Keys = Keys {
    title: "",
    prefix: "",
    groups: &[
        &[
            key("include", Kind::TextList),
            key("event_store", Kind::Section(&EVENT_STORE)),
            key("projections", Kind::Section(&PROJECTIONS)),
            key("runner", Kind::Section(&RUNNER)),
            key("rebuild", Kind::Section(&REBUILD)),
            key("retry", Kind::Section(&RETRY)),
            key("verify", Kind::Section(&VERIFY)),
            key("log", Kind::Section(&LOG)),
            key("admin", Kind::Section(&ADMIN)),
            key("hooks", Kind::Section(&HOOKS)),
            key("upcast", Kind::Sections(&UPCAST)),
        ],
        EVENTS,
        PROCESSORS,
    ],
};

/// The top of an included file.
pub(super) const INCLUDED_FILE: Keys = Keys { title: "", prefix: "", groups: &[EVENTS, PROCESSORS] };

const EVENTS: &[Key] = &[key("event", Kind::Sections(&EVENT))];

const PROCESSORS: &[Key] =
    &[key("projector", Kind::Sections(&PROJECTOR)), key("reactor", Kind::Sections(&REACTOR))];

const EVENT_STORE: Keys = Keys {
    title: "[event_store]",
    prefix: "event_store.",
    groups: &[&[
        key("url", Kind::Url),
        key("direct_url", Kind::Url),
        key("layout", Kind::Choice(&["espd", "event_sourcery"])),
        key("schema", Kind::Text),
        key("espd", Kind::Section(&ESPD)),
        key("event_sourcery", Kind::Section(&EVENT_SOURCERY)),
    ]],
};

const ESPD: Keys = Keys {
    title: "[event_store.espd]",
    prefix: "event_store.espd.",
    groups: &[&[
        key("events_table", Kind::Text),
        key("sequence", Kind::Text),
        key("tracker_table", Kind::Text),
        key("append_events", Kind::Text),
        key("append", Kind::Text),
        key("append_at", Kind::Text),
        key("append_after", Kind::Text),
        key("cancel_scheduled", Kind::Text),
    ]],
};

const EVENT_SOURCERY: Keys = Keys {
    title: "[event_store.event_sourcery]",
    prefix: "event_store.event_sourcery.",
    groups: &[&[
        key("schema", Kind::Text),
        key("events_table", Kind::Text),
        key("sequence", Kind::Text),
        key("channel", Kind::Text),
        key("tracker_table", Kind::Text),
    ]],
};

const PROJECTIONS: Keys = Keys {
    title: "[projections]",
    prefix: "projections.",
    groups: &[&[
        key("url", Kind::Url),
        key("direct_url", Kind::Url),
        key("schema", Kind::Text),
        key("search_path", Kind::TextList),
        key("settings", Kind::TextMap),
    ]],
};

pub(super) const RUNNER: Keys = Keys {
    title: "[runner]",
    prefix: "runner.",
    groups: &[
        BATCH,
        &[
            key("poll_interval_max", duration_or(Duration::from_millis(10), HOUR, seconds(1))),
            key("shutdown_timeout", duration_or(Duration::ZERO, HOUR, seconds(30))),
            key("isolation", Kind::Isolation),
            key("on_handler_change", Kind::Choice(&["warn", "rebuild", "refuse"])),
            key("hang_timeout", duration_or(seconds(5), HOUR, seconds(60))),
            key("memory_max", MEMORY),
            key("restart_max", duration_or(seconds(1), HOUR, seconds(60))),
        ],
    ],
};

const REBUILD: Keys = Keys {
    title: "[rebuild]",
    prefix: "rebuild.",
    groups: &[&[
        key("parallelism", Kind::Integer { from: 0, to: 16, default: Some(1) }),
        key("workers", Kind::Integer { from: 1, to: 16, default: Some(2) }),
        key("database_size_max", Kind::Size { from: 1 << 20, to: 1 << 50 }),
        key("share", Kind::Fraction { from: 0.05, to: 1.0 }),
    ]],
};

pub(super) const VERIFY: Keys = Keys {
    title: "[verify]",
    prefix: "verify.",
    groups: &[&[key("share", Kind::Fraction { from: 0.0, to: 1.0 })]],
};

/// Where a batch ends.
const BATCH: &[Key] = &[
    key("batch_size", integer(1, 100_000)),
    key("batch_size_max", integer(1, 100_000)),
    key("batch_bytes", Kind::Size { from: 1 << 10, to: 1 << 30 }),
    key("batch_time", duration(Duration::from_millis(10), HOUR)),
    key("batch_span", integer(1, 1_000_000_000)),
];

const MEMORY: Kind = Kind::Size { from: 16 << 20, to: 1 << 40 };

const RETRY: Keys = Keys { title: "[retry]", prefix: "retry.", groups: &[RETRIES] };

const RETRIES: &[Key] = &[
    key("strategy", Kind::Choice(&["exponential", "constant", "none"])),
    key("initial", duration(Duration::from_millis(1), DAY)),
    key("max", duration(Duration::from_millis(1), DAY)),
    key("jitter", Kind::Fraction { from: 0.0, to: 1.0 }),
    key("max_attempts", integer(1, I32_MAX)),
    key("on_failure", Kind::Choice(&["retry", "stop", "park", "skip"])),
];

const LOG: Keys = Keys {
    title: "[log]",
    prefix: "log.",
    groups: &[&[
        key("format", Kind::Choice(&["auto", "human", "json"])),
        key("level", Kind::Text),
        key("query_literals", Kind::Boolean),
    ]],
};

const ADMIN: Keys = Keys {
    title: "[admin]",
    prefix: "admin.",
    groups: &[&[
        key("listen", Kind::Text),
        key("read_token", Kind::Text).secret(),
        key("operator_token", Kind::Text).secret(),
        key("allowed_hosts", Kind::TextList),
    ]],
};

const HOOKS: Keys = Keys {
    title: "[hooks]",
    prefix: "hooks.",
    groups: &[&[
        key("on_worker_start", Kind::TextList),
        key("on_worker_end", Kind::TextList),
        key("on_failure", Kind::TextList),
        key("on_dead_letter", Kind::TextList),
        key("on_diverged", Kind::TextList),
        key("timeout", duration(Duration::from_millis(100), seconds(300))),
    ]],
};

const UPCAST: Keys = Keys {
    title: "[[upcast]]",
    prefix: "upcast.",
    groups: &[&[
        key("events", Kind::TextList)
            .required("write a list of the types as they are stored: events = [\"SomethingHappened\"]"),
        key("type", Kind::Text),
        key("body", Kind::Sql),
        key("when", Kind::Sql),
    ]],
};

const EVENT: Keys = Keys {
    title: "[[event]]",
    prefix: "event.",
    groups: &[&[
        key("type", Kind::Text).required("write the type of the events: type = \"SomethingHappened\""),
        key("schema", Kind::JsonSchema)
            .required("write a JSON Schema of the bodies, or schema = \"${file:schemas/name.json}\""),
        key("check", Kind::Choice(&["append", "report"])),
    ]],
};

pub(super) const PROJECTOR: Keys = Keys {
    title: "[projector]",
    prefix: "projector.",
    groups: &[
        PROCESSOR,
        BATCH,
        &[
            key("isolation", Kind::Isolation),
            key("on_handler_change", Kind::Choice(&["warn", "rebuild", "refuse"])),
            key("synchronous", Kind::Choice(&["aggregate_order", "total_order"])),
            key("fold", Kind::Boolean),
            key("aggregate_column", Kind::Text),
            key("approve", Kind::Choice(&["when-verified", "manual", "always"])),
            key("check", Kind::Sections(&PROJECTOR_CHECK)),
            key("retry", Kind::Section(&PROJECTOR_RETRY)),
        ],
        TABLES,
        &[key("on", Kind::Sections(&PROJECTOR_HANDLER)), key("events", Kind::TextList)],
        COMMAND,
        &[key("native", Kind::Boolean), HANDLER_TIMEOUT],
    ],
};

pub(super) const REACTOR: Keys = Keys {
    title: "[reactor]",
    prefix: "reactor.",
    groups: &[
        PROCESSOR,
        &[key("emits", Kind::TextList), key("chain_max", integer(1, 10_000))],
        BATCH,
        &[
            key("isolation", Kind::Isolation),
            key("on_handler_change", Kind::Choice(&["warn", "refuse"])),
            key("retry", Kind::Section(&REACTOR_RETRY)),
        ],
        TABLES,
        &[key("on", Kind::Sections(&REACTOR_HANDLER)), key("events", Kind::TextList)],
        COMMAND,
        &[key("webhook", Kind::Section(&WEBHOOK)), key("native", Kind::Boolean), HANDLER_TIMEOUT],
    ],
};

const PROCESSOR: &[Key] = &[
    key("name", Kind::Text).required(REQUIRE_NAME),
    key("version", Kind::Integer { from: 1, to: I32_MAX, default: Some(1) }),
    key("start", Kind::Start),
    key("reads", Kind::TextList),
];

const TABLES: &[Key] = &[key("tables", Kind::Tables(&TABLE)), key("ddl", Kind::SqlList)];

/// A table that is declared by more than a text.
pub(super) const TABLE: Keys = Keys {
    title: "[projector.tables.NAME]",
    prefix: "projector.tables.NAME.",
    groups: &[&[
        key("columns", Kind::Sql).required("write what stands between the parentheses of `create table`"),
        key("options", Kind::Sql),
        key("comment", Kind::Text),
    ]],
};

/// With `native`.
const HANDLER_TIMEOUT: Key = key("handler_timeout", duration(Duration::from_millis(100), HOUR));

const COMMAND: &[Key] = &[
    key("command", Kind::TextList),
    key("command_timeout", duration(Duration::from_millis(100), HOUR)),
    key("command_memory_max", MEMORY),
    key("command_environment", Kind::TextMap).secret(),
];

const PROJECTOR_RETRY: Keys =
    Keys { title: "[projector.retry]", prefix: "projector.retry.", groups: &[RETRIES] };

const REACTOR_RETRY: Keys = Keys { title: "[reactor.retry]", prefix: "reactor.retry.", groups: &[RETRIES] };

const PROJECTOR_HANDLER: Keys =
    Keys { title: "[[projector.on]]", prefix: "projector.on.", groups: &[HANDLER] };

const PROJECTOR_CHECK: Keys = Keys {
    title: "[[projector.check]]",
    prefix: "projector.check.",
    groups: &[&[
        key("name", Kind::Text)
            .required("write what it is called in reports: name = \"no order without lines\""),
        key("sql", Kind::Sql)
            .required("write a query that returns no row where the tables are right: sql = \"select …\""),
    ]],
};

const REACTOR_HANDLER: Keys = Keys { title: "[[reactor.on]]", prefix: "reactor.on.", groups: &[HANDLER] };

const HANDLER: &[Key] = &[
    key("events", Kind::TextList).required(REQUIRE_EVENTS),
    key("sql", Kind::Sql).required("write `sql = \"\"\" … \"\"\"`"),
];

const WEBHOOK: Keys = Keys {
    title: "[reactor.webhook]",
    prefix: "reactor.webhook.",
    groups: &[&[
        key("url", Kind::Url)
            .required("write the URL of the receiver: url = \"https://example.org/events\"")
            .secret(),
        key("secrets", Kind::TextList).secret(),
        key("concurrency", Kind::Integer { from: 1, to: 256, default: Some(8) }),
        key("connect_timeout", duration_or(Duration::from_millis(10), seconds(300), seconds(5))),
        key("timeout", duration_or(Duration::from_millis(10), seconds(300), seconds(30))),
        key("allow_private", Kind::Boolean),
        key("allow_http", Kind::Boolean),
        key("ca_file", Kind::Text),
        key("headers", Kind::TextMap).secret(),
    ]],
};

/// Every section, the main file first.
pub(super) const SECTIONS: &[&Keys] = &[
    &MAIN_FILE,
    &EVENT_STORE,
    &ESPD,
    &EVENT_SOURCERY,
    &PROJECTIONS,
    &RUNNER,
    &REBUILD,
    &RETRY,
    &VERIFY,
    &LOG,
    &ADMIN,
    &HOOKS,
    &UPCAST,
    &EVENT,
    &PROJECTOR,
    &PROJECTOR_RETRY,
    &PROJECTOR_HANDLER,
    &PROJECTOR_CHECK,
    &REACTOR,
    &REACTOR_RETRY,
    &REACTOR_HANDLER,
    &WEBHOOK,
];

/// The full names of all keys, sections included: `runner`, `runner.batch_size`.
pub fn known_keys() -> Vec<String> {
    let full_names = |keys: &&Keys| {
        let prefix = keys.prefix;
        keys.names().map(move |name| format!("{prefix}{name}"))
    };
    SECTIONS.iter().flat_map(full_names).collect()
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key::new(name, kind)
}

const fn integer(from: i64, to: i64) -> Kind {
    Kind::Integer { from, to, default: None }
}

const fn duration(from: Duration, to: Duration) -> Kind {
    Kind::Duration { from, to, default: None }
}

const fn duration_or(from: Duration, to: Duration, default: Duration) -> Kind {
    Kind::Duration { from, to, default: Some(default) }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_is_listed() {
        for keys in SECTIONS {
            for key in keys.iter() {
                if let Kind::Section(section) | Kind::Sections(section) = key.kind {
                    assert_eq!(section.prefix, format!("{}{}.", keys.prefix, key.name));
                    assert!(SECTIONS.iter().any(|listed| listed.title == section.title), "{}", section.title);
                }
            }
        }
    }
}
