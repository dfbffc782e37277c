//! Reads `[hooks]`.

use crate::config::reader::tree::Section;
use crate::supervision::hooks::HookSettings;

pub(crate) fn read_hooks(section: &Section<'_>) -> HookSettings {
    let default = HookSettings::default();
    HookSettings {
        on_worker_start: section.command("on_worker_start").unwrap_or_default(),
        on_worker_end: section.command("on_worker_end").unwrap_or_default(),
        on_failure: section.command("on_failure").unwrap_or_default(),
        on_dead_letter: section.command("on_dead_letter").unwrap_or_default(),
        on_diverged: section.command("on_diverged").unwrap_or_default(),
        timeout: section.duration("timeout").unwrap_or(default.timeout),
    }
}
