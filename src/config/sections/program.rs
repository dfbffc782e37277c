//! Reads how a program handles the events of a processor.

use std::collections::BTreeMap;

use super::events::{ADVISE_EVENTS, read_events};
use crate::config::reader::tree::{Section, Value};
use crate::processing::declaration::{ProgramDeclaration, Secret};

/// The keys that belong to `command`.
const COMPANIONS: [&str; 3] = ["command_timeout", "command_memory_max", "command_environment"];

/// The program, or `None` if a mistake leaves it incomplete.
pub(crate) fn read_program(section: &Section<'_>) -> Option<ProgramDeclaration> {
    // Everything is read before anything is given up, so that all mistakes are reported.
    let value = section.value("command")?;
    let command = value.command();
    if command.as_ref().is_some_and(Vec::is_empty) {
        value.location.report(
            "a command needs a program",
            "write a program and its arguments: [\"python3\", \"worker.py\"]",
        );
    }
    let events = section.require("events", ADVISE_EVENTS).and_then(|events| read_events(&events));
    let (timeout, memory_max) = (section.duration("command_timeout"), section.size("command_memory_max"));
    let environment = section.value("command_environment").map(|value| read_environment(&value));
    let declaration = ProgramDeclaration::new(events?, command?, value.folder());
    let declaration = ProgramDeclaration {
        place: value.place(),
        timeout: timeout.unwrap_or(declaration.timeout),
        memory_max: memory_max.and_then(|size| u64::try_from(size).ok()),
        environment: environment.unwrap_or_default(),
        ..declaration
    };
    Some(declaration.with_files())
}

/// Reports the keys that mean nothing without `command`.
pub(crate) fn refuse_companions(section: &Section<'_>) {
    for value in COMPANIONS.iter().filter_map(|key| section.value_if_known(key)) {
        let message = format!("`{}` cannot be used without `command`", value.name());
        value.location.report(message, "remove it, or name the program");
    }
}

/// Variables by name. Their values are never shown, not even where a name is wrong.
fn read_environment(table: &Value<'_>) -> BTreeMap<String, Secret> {
    let entries = table.entries("write { NAME = \"value\" }").unwrap_or_default();
    let mut variables = BTreeMap::new();
    for (name, value) in entries {
        if !is_variable(name.name) {
            table.location.report(
                format!("`{}` is not a name for a variable", name.name.escape_debug()),
                "write letters, digits and _, not beginning with a digit",
            );
            continue;
        }
        variables.extend(value.text().map(|text| (name.name.to_owned(), Secret::from(text))));
    }
    variables
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
