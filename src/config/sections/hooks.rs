//! Reads `[hooks]`.

use std::time::Duration;

use crate::config::reader::tree::Section;
use crate::supervision::hooks::HookSettings;

pub(crate) fn read_hooks(section: &Section<'_>) -> HookSettings {
    let default = HookSettings::default();
    let range = Duration::from_millis(100)..=Duration::from_secs(300);
    let timeout = section.value("timeout").and_then(|timeout| timeout.duration(range));
    HookSettings {
        on_worker_end: section.value("on_worker_end").and_then(|value| value.command()).unwrap_or_default(),
        on_failure: section.value("on_failure").and_then(|value| value.command()).unwrap_or_default(),
        on_dead_letter: section.value("on_dead_letter").and_then(|value| value.command()).unwrap_or_default(),
        timeout: timeout.unwrap_or(default.timeout),
    }
}
