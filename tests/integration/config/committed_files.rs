//! The files in `config/` and the reference in `docs/` say what the reader does.

use std::collections::BTreeSet;
use std::fs;

use espd::internals::config::{AdminSettings, Config, EXAMPLE};
use espd::internals::declaration::SourceText;

use crate::support::certificates::Authority;

use super::{Folder, espd_example, load_committed, repository};

#[test]
fn the_committed_examples_are_valid() {
    let names = |config: &Config| -> BTreeSet<String> {
        config.processors.iter().map(|projector| projector.name.clone()).collect()
    };
    let todos = ["completed_todos", "outstanding_todos", "scheduled_todos"].map(str::to_owned);
    assert_eq!(names(&load_committed("espd.minimal.toml")), todos.clone().into());
    let mut example = BTreeSet::from(todos);
    example.extend(
        ["todos_per_day", "todo_titles", "todo_search", "reminders", "todo_mails"].map(str::to_owned),
    );
    assert_eq!(names(&espd_example()), example);
}

#[test]
fn the_example_shows_the_defaults() {
    let Config {
        files,
        includes,
        is_database_of_environment: _,
        event_store,
        projections,
        runner,
        rebuild,
        retry,
        verify,
        log,
        admin,
        hooks,
        upcasts,
        events,
        processors,
        said,
    } = espd_example();
    let default = Config::default();
    assert_eq!((files.len(), processors.len(), upcasts.len(), said.len()), (4, 8, 1, 1));
    assert_eq!((includes, events.len(), events[0].is_checked), (true, 1, false));
    assert_eq!(event_store.layout, default.event_store.layout);
    assert_eq!(event_store.schema, default.event_store.schema);
    assert_eq!(projections, default.projections);
    assert_eq!(admin, Some(AdminSettings::default()));
    assert_eq!((runner, retry, log), (default.runner, default.retry, default.log));
    assert_eq!((hooks, rebuild), (default.hooks, default.rebuild));
    assert_eq!(verify, default.verify);
}

#[test]
fn the_example_names_every_key() {
    let (example, authority) = (complete_example(), Authority::new().pem());
    let folder = Folder::new(&[("espd.toml", &example), ("ca.pem", &authority)])
        .with("DATABASE_URL", "postgres://h/d");
    let folder =
        folder.with("WEBHOOK_SECRET", &format!("whsec_{}", "abcd".repeat(8))).with("WEBHOOK_TOKEN", "t");
    let folder = folder.with("ESPD_READ_TOKEN", &"r".repeat(32)).with("ESPD_OPERATOR_TOKEN", &"o".repeat(32));
    folder.load().unwrap_or_else(|faults| panic!("{faults}"));
    let mut named = BTreeSet::new();
    collect_keys("", &toml::from_str(&complete_example()).unwrap(), &mut named);
    let chosen = [
        "projector.tables.",
        "reactor.tables.",
        "projector.command_environment.",
        "reactor.webhook.headers.",
        "projections.settings.",
    ];
    named.retain(|key| !chosen.iter().any(|prefix| key.starts_with(prefix)));
    // What is the same for reactors as for projectors, it says once.
    let told =
        |key: &String| named.contains(key) || named.contains(&key.replacen("reactor.", "projector.", 1));
    let known = espd::internals::config::known_keys();
    assert_eq!(known.iter().filter(|key| !told(key)).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(named.iter().all(|key| known.contains(key)), "{named:?}");
}

#[test]
fn the_documentation_names_every_key() {
    let documentation = fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    for name in espd::internals::config::known_keys() {
        let (section, key) = name.rsplit_once('.').unwrap_or(("", &name));
        // Sections are headings; keys stand in the table below the heading of their section.
        let heading = format!("\n### {name}\n");
        let chapter = match section {
            "" | "projector" | "reactor" | "reactor.on" | "reactor.retry" => documentation.as_str(),
            _ => documentation
                .split_once(&format!("\n### {section}\n"))
                .unwrap()
                .1
                .split("\n##")
                .next()
                .unwrap(),
        };
        let documented = documentation.contains(&heading) || chapter.contains(&format!("`{key}`"));
        assert!(documented || ["projector", "reactor"].contains(&name.as_str()), "{name} is not documented");
    }
}

#[test]
fn every_character_of_the_committed_sql_is_located() {
    let config = espd_example();
    let mut texts: Vec<&SourceText> = Vec::new();
    for projector in &config.processors {
        texts.extend(projector.tables.iter().map(|table| &table.columns));
        texts.extend(projector.handlers().iter().map(|handler| &handler.sql));
        texts.extend(&projector.ddl);
    }
    assert_eq!(texts.len(), 6 + 13 + 2);
    for text in texts {
        let file = fs::read_to_string(&text.file).unwrap();
        let lines: Vec<Vec<char>> = file.split('\n').map(|line| line.chars().collect()).collect();
        for (offset, character) in text.text.chars().enumerate() {
            let (line, column) = text.locate(offset);
            let written = lines[line - 1].get(column - 1).copied().unwrap_or('\n');
            assert_eq!(written, character, "{}:{line}:{column}", text.file);
        }
    }
}

/// The example with every key that it leaves out put in.
fn complete_example() -> String {
    let left_out =
        |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
    EXAMPLE.lines().map(|line| format!("{}\n", if left_out(line) { &line[1..] } else { line })).collect()
}

fn collect_keys(prefix: &str, value: &toml::Value, keys: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                collect_keys(&name, value, keys);
                keys.insert(name);
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| collect_keys(prefix, item, keys)),
        _ => {}
    }
}
