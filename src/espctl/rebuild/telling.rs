//! What people are told of versions: what differs, how far one is, how it has gone live.

use std::sync::Mutex;

use super::difference::render;
use crate::espctl::output;
use crate::operations::rebuild::{GoLive, Listener, Progress, Way};
use crate::operations::status::FALLS_BEHIND;
use crate::operations::status::format::{format_duration, format_share, thousands};
use crate::processing::rebuild::Difference;

pub(super) fn show(name: &str, difference: &Difference, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_verbatim(&serde_json::to_string_pretty(difference)?);
    }
    output::print(&render(name, difference))
}

pub(super) fn describe_way(way: GoLive) -> &'static str {
    match way {
        GoLive::Merge => {
            "would be merged: the rows above are changed in the tables that serve, and no rollback leads back (`--go-live swap` keeps \
             the former ones)"
        }
        GoLive::Auto | GoLive::Swap => {
            "would be swapped in: its tables take the place of those that serve, which are kept"
        }
    }
}

pub(in crate::espctl) fn describe_live(name: &str, former: i32, version: i32, way: &Way) -> String {
    match way {
        Way::Merged(rows) => format!(
            "version {version} of {name} is live: {} rows of its tables were changed",
            thousands(i64::try_from(*rows).unwrap_or(i64::MAX))
        ),
        Way::Swapped(archive) if former == version => format!(
            "version {version} of {name} is live; the former tables are kept in schema {archive}: `espctl rebuild drop {name}` \
             drops them"
        ),
        Way::Swapped(archive) => format!(
            "version {version} of {name} is live; version {former} is kept in schema {archive}: `espctl rollback {name}` goes \
             back to it, `espctl rebuild drop {name}` drops it"
        ),
    }
}

pub(super) fn listener() -> Listener<'static> {
    Listener { progress: &tell_progress, note: &note }
}

/// Says something while a command goes on. That it cannot be said is no reason to stop.
pub(super) fn note(text: &str) {
    static LAST: Mutex<String> = Mutex::new(String::new());
    if let Ok(mut last) = LAST.lock()
        && *last != text
    {
        let _ = output::print_note(text);
        text.clone_into(&mut last);
    }
}

fn tell_progress(progress: Progress) {
    let Progress { position, target, handled, per_second, seconds_left, .. } = progress;
    let left = match seconds_left {
        Some(seconds) => format!(", {} left", format_duration(seconds)),
        None if per_second >= 1.0 => format!(", {FALLS_BEHIND}"),
        None => String::new(),
    };
    note(&format!(
        "building: position {} of {} ({}), {} events handled, {}/s{left}",
        thousands(position),
        thousands(target),
        format_share(position, target),
        thousands(handled),
        thousands(per_second as i64)
    ));
}
