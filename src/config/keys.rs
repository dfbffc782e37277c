//! Every key that the configuration knows.
//!
//! A key that is not listed here is refused; the reader asserts that it asks for listed keys only. The
//! example file and `docs/configuration.md` are tested against this list.

/// The keys of one section.
#[derive(Debug)]
pub(crate) struct Keys {
    /// How the section is written: `[runner]`; empty for the top of the file.
    pub(super) title: &'static str,
    /// What precedes its keys in a full name: `runner.`.
    prefix: &'static str,
    /// The keys, in the order of the documentation.
    pub(super) names: &'static [&'static str],
}

/// The top of the main file.
pub(super) const MAIN_FILE: Keys = Keys {
    title: "",
    prefix: "",
    names: &[
        "include",
        "event_store",
        "projections",
        "runner",
        "retry",
        "log",
        "admin",
        "hooks",
        "upcast",
        "projector",
        "reactor",
    ],
};

/// The top of an included file.
pub(super) const INCLUDED_FILE: Keys = Keys { title: "", prefix: "", names: &["projector", "reactor"] };

pub(super) const EVENT_STORE: Keys = Keys {
    title: "[event_store]",
    prefix: "event_store.",
    names: &["url", "direct_url", "layout", "schema", "event_sourcery"],
};

pub(super) const EVENT_SOURCERY: Keys = Keys {
    title: "[event_store.event_sourcery]",
    prefix: "event_store.event_sourcery.",
    names: &["schema", "events_table", "sequence", "channel", "tracker_table"],
};

pub(super) const PROJECTIONS: Keys =
    Keys { title: "[projections]", prefix: "projections.", names: &["url", "direct_url", "schema"] };

pub(super) const RUNNER: Keys = Keys {
    title: "[runner]",
    prefix: "runner.",
    names: &[
        "batch_size",
        "batch_bytes",
        "batch_time",
        "batch_span",
        "poll_interval_max",
        "shutdown_timeout",
        "isolation",
        "hang_timeout",
        "memory_max",
        "restart_max",
    ],
};

const RETRY_NAMES: &[&str] = &["strategy", "initial", "max", "jitter", "max_attempts", "on_failure"];

pub(super) const RETRY: Keys = Keys { title: "[retry]", prefix: "retry.", names: RETRY_NAMES };

pub(super) const LOG: Keys = Keys { title: "[log]", prefix: "log.", names: &["format", "level"] };

pub(super) const HOOKS: Keys = Keys {
    title: "[hooks]",
    prefix: "hooks.",
    names: &["on_worker_end", "on_failure", "on_dead_letter", "timeout"],
};

pub(super) const ADMIN: Keys = Keys {
    title: "[admin]",
    prefix: "admin.",
    names: &["listen", "read_token", "operator_token", "allowed_hosts"],
};

pub(super) const UPCAST: Keys =
    Keys { title: "[[upcast]]", prefix: "upcast.", names: &["events", "type", "body", "when"] };

pub(super) const PROJECTOR: Keys = Keys {
    title: "[projector]",
    prefix: "projector.",
    names: &[
        "name",
        "version",
        "batch_size",
        "batch_bytes",
        "batch_time",
        "batch_span",
        "isolation",
        "retry",
        "tables",
        "ddl",
        "on",
        "events",
        "command",
        "command_timeout",
        "command_memory_max",
        "command_environment",
        "native",
    ],
};

pub(super) const REACTOR: Keys = Keys {
    title: "[reactor]",
    prefix: "reactor.",
    names: &[
        "name",
        "version",
        "emits",
        "start",
        "chain_max",
        "batch_size",
        "batch_bytes",
        "batch_time",
        "batch_span",
        "isolation",
        "retry",
        "tables",
        "ddl",
        "on",
        "events",
        "command",
        "command_timeout",
        "command_memory_max",
        "command_environment",
        "webhook",
        "native",
    ],
};

pub(super) const PROJECTOR_RETRY: Keys =
    Keys { title: "[projector.retry]", prefix: "projector.retry.", names: RETRY_NAMES };

pub(super) const HANDLER: Keys =
    Keys { title: "[[projector.on]]", prefix: "projector.on.", names: &["events", "sql"] };

pub(super) const REACTOR_RETRY: Keys =
    Keys { title: "[reactor.retry]", prefix: "reactor.retry.", names: RETRY_NAMES };

pub(super) const REACTOR_HANDLER: Keys =
    Keys { title: "[[reactor.on]]", prefix: "reactor.on.", names: &["events", "sql"] };

pub(super) const WEBHOOK: Keys = Keys {
    title: "[reactor.webhook]",
    prefix: "reactor.webhook.",
    names: &[
        "url",
        "secrets",
        "concurrency",
        "connect_timeout",
        "timeout",
        "allow_private",
        "allow_http",
        "ca_file",
        "headers",
    ],
};

const SECTIONS: [&Keys; 17] = [
    &MAIN_FILE,
    &EVENT_STORE,
    &EVENT_SOURCERY,
    &PROJECTIONS,
    &RUNNER,
    &RETRY,
    &LOG,
    &ADMIN,
    &HOOKS,
    &UPCAST,
    &PROJECTOR,
    &PROJECTOR_RETRY,
    &HANDLER,
    &REACTOR,
    &REACTOR_RETRY,
    &REACTOR_HANDLER,
    &WEBHOOK,
];

/// The full names of all keys, sections included: `runner`, `runner.batch_size`.
pub fn known_keys() -> Vec<String> {
    let full_names = |keys: &Keys| keys.names.iter().map(|name| format!("{}{name}", keys.prefix)).collect();
    SECTIONS.iter().flat_map(|keys| -> Vec<String> { full_names(keys) }).collect()
}

/// The sections, other than `here`, that know the key; the top of the file is not one of them.
pub(super) fn sections_with(key: &str, here: &Keys) -> Vec<&'static str> {
    elsewhere(here).filter(|keys| keys.names.contains(&key)).map(|keys| keys.title).collect()
}

/// The keys of all sections other than `here`.
pub(super) fn keys_elsewhere(here: &Keys) -> impl Iterator<Item = &'static str> {
    elsewhere(here).flat_map(|keys| keys.names.iter().copied())
}

fn elsewhere(here: &Keys) -> impl Iterator<Item = &'static Keys> {
    SECTIONS.into_iter().filter(|keys| !keys.title.is_empty() && keys.title != here.title)
}

/// The word that was probably meant: at most every third letter differs.
pub(super) fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let distance_max = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised() {
        assert_eq!(nearest("batch_sise", RUNNER.names.iter().copied()), Some("batch_size"));
        assert_eq!(nearest("ulr", EVENT_STORE.names.iter().copied()), Some("url"));
        assert_eq!(nearest("colour", RUNNER.names.iter().copied()), None);
    }

    #[test]
    fn a_key_in_the_wrong_section_is_recognised() {
        assert_eq!(sections_with("shutdown_timeout", &MAIN_FILE), ["[runner]"]);
        assert_eq!(sections_with("jitter", &RETRY), ["[projector.retry]", "[reactor.retry]"]);
    }
}
