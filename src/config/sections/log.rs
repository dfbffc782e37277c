//! Reads `[log]`.

use tracing_subscriber::EnvFilter;

use crate::config::reader::tree::{Section, Value};
use crate::diagnostic::Diagnostic;
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

/// The environment variable that wins over `level`.
const VARIABLE: &str = "RUST_LOG";

/// A filter in the environment that is wrong, and is passed over.
pub(crate) fn find_wrong_variable() -> Option<Diagnostic> {
    let filter = std::env::var(VARIABLE).ok()?;
    let error = EnvFilter::builder().parse(&filter).err()?;
    let message = format!("{filter:?} is not a log filter ({error}), and the configuration counts instead");
    Some(Diagnostic::of_file(VARIABLE, message).into_warning().with_advice(ADVICE))
}

/// What to write as a filter.
const ADVICE: &str =
    "write one of off, error, warn, info, debug, trace, or a list of `target=level` like \"info,sqlx=warn\"";

fn read_filter(value: &Value<'_>) -> Option<String> {
    let filter = value.text()?;
    if EnvFilter::builder().parse(&filter).is_err() {
        value.location.report(format!("{} is not a log filter", value.as_written()), ADVICE);
        return None;
    }
    // The filter takes any single word for a target, also a misspelt level.
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let misspelt = |part: &str| !part.contains(['=', '[', ':']) && !is_level(part);
    if filter.split(',').map(str::trim).any(misspelt) {
        value.location.report(format!("{} is not a log level", value.as_written()), ADVICE);
        return None;
    }
    Some(filter)
}
