//! Reads `[log]`.

use tracing_subscriber::EnvFilter;

use crate::config::reader::tree::{Section, Value};
use crate::telemetry::LogSettings;

/// The words of the log levels that may stand alone in a filter.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(crate) fn read_log(section: &Section<'_>) -> LogSettings {
    let default = LogSettings::default();
    LogSettings {
        format: section.choice("format").unwrap_or(default.format),
        level: section.value("level").and_then(|level| read_filter(&level)).unwrap_or(default.level),
        query_literals: section
            .value("query_literals")
            .and_then(|value| value.boolean())
            .unwrap_or(default.query_literals),
    }
}

fn read_filter(value: &Value<'_>) -> Option<String> {
    let filter = value.text()?;
    let advice = "write one of off, error, warn, info, debug, trace, or a list of `target=level` like \
                  \"info,sqlx=warn\"";
    if EnvFilter::builder().parse(&filter).is_err() {
        value.location.report(format!("{} is not a log filter", value.as_written()), advice);
        return None;
    }
    // The filter takes any single word for a target, also a misspelt level.
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let misspelt = |part: &str| !part.contains(['=', '[', ':']) && !is_level(part);
    if filter.split(',').map(str::trim).any(misspelt) {
        value.location.report(format!("{} is not a log level", value.as_written()), advice);
        return None;
    }
    Some(filter)
}
