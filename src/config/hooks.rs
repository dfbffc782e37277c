//! Reads `[hooks]`.

use std::time::Duration;

use super::section::Section;
use super::value::Value;
use crate::hooks::HookSettings;

const ADVISE_COMMAND: &str =
    "write a list of a program and its arguments: [\"/usr/local/bin/notify\", \"espd\"]";

pub(super) fn read_hooks(section: &Section<'_>) -> HookSettings {
    let default = HookSettings::default();
    let range = Duration::from_millis(100)..=Duration::from_secs(300);
    let timeout = section.value("timeout").and_then(|timeout| timeout.duration(range));
    HookSettings {
        on_worker_end: section.value("on_worker_end").map(|value| read_command(&value)).unwrap_or_default(),
        on_failure: section.value("on_failure").map(|value| read_command(&value)).unwrap_or_default(),
        timeout: timeout.unwrap_or(default.timeout),
    }
}

fn read_command(value: &Value<'_>) -> Vec<String> {
    let items = value.items(ADVISE_COMMAND).unwrap_or_default();
    let words: Vec<String> = items.iter().filter_map(Value::text).collect();
    if words.first().is_some_and(String::is_empty) {
        value.spot.fault("a hook needs a program", ADVISE_COMMAND);
    }
    words
}
