//! The sections of the main file, each with its defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::isolation::read_default_isolation;
use crate::config::keys;
use crate::config::reader::tree::Section;
use crate::config::reader::value::Value;
use crate::postgres::database_url::DatabaseUrl;
use crate::processing::declaration::{BatchLimits, Isolation};
use crate::retry::{OnFailure, RetryPolicy, Strategy};
use crate::store::layout::{EventSourceryNames, LayoutSettings};
use crate::telemetry::{LogFormat, LogSettings};

/// `[event_store]`: where the events are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStoreSettings {
    /// The database; `None`: espd runs a private PostgreSQL.
    pub url: Option<DatabaseUrl>,
    /// The same database past a transaction pooler that `url` leads through: for listening and looking.
    pub direct_url: Option<DatabaseUrl>,
    /// The shape of the event table, with its names where they are not espd's.
    pub layout: LayoutSettings,
    /// The schema of espd's own tables: the trackers, and in the layout `espd` also the events.
    pub schema: String,
}

/// `[projections]`: where the projectors' tables are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionsSettings {
    /// The database; `None`: the one of the events.
    pub url: Option<DatabaseUrl>,
    /// The same database past a transaction pooler that `url` leads through.
    pub direct_url: Option<DatabaseUrl>,
    /// The schema of the tables.
    pub schema: String,
}

/// `[runner]`: how processors follow the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerSettings {
    /// Where a batch ends, for projectors that do not say otherwise.
    pub batch: BatchLimits,
    /// The longest time between two looks at the store while nothing happens.
    pub poll_interval_max: Duration,
    /// What a worker is given to end its batch after it was asked to stop.
    pub shutdown_timeout: Duration,
    /// Whom a processor shares a worker with, for projectors that do not say otherwise; never a group.
    pub isolation: Isolation,
    /// How long a worker may give no sign of life before it is restarted.
    pub hang_timeout: Duration,
    /// The memory that a worker may use before it is restarted, in bytes; `None`: as much as there is.
    pub memory_max: Option<i64>,
    /// The longest delay before a worker that ends again and again is restarted.
    pub restart_max: Duration,
}

/// What `[log] format` accepts.
const LOG_FORMATS: [(&str, LogFormat); 3] =
    [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];

/// What `[event_store] layout` accepts.
const LAYOUTS: [(&str, LayoutName); 2] =
    [("espd", LayoutName::Espd), ("event_sourcery", LayoutName::EventSourcery)];

#[derive(Debug, Clone, Copy)]
enum LayoutName {
    Espd,
    EventSourcery,
}

/// What `strategy` accepts.
const STRATEGIES: [(&str, Strategy); 3] =
    [("exponential", Strategy::Exponential), ("constant", Strategy::Constant), ("none", Strategy::None)];

/// What `on_failure` accepts.
const ON_FAILURE: [(&str, OnFailure); 4] = [
    ("retry", OnFailure::Retry),
    ("stop", OnFailure::Stop),
    ("park", OnFailure::Park),
    ("skip", OnFailure::Skip),
];

/// The words of the log levels that may stand alone in a filter.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

impl Default for EventStoreSettings {
    fn default() -> Self {
        Self { url: None, direct_url: None, layout: LayoutSettings::default(), schema: "espd".into() }
    }
}

impl Default for ProjectionsSettings {
    fn default() -> Self {
        Self { url: None, direct_url: None, schema: "public".into() }
    }
}

impl Default for RunnerSettings {
    fn default() -> Self {
        Self {
            batch: BatchLimits::default(),
            poll_interval_max: Duration::from_secs(1),
            shutdown_timeout: Duration::from_secs(30),
            isolation: Isolation::default(),
            hang_timeout: Duration::from_secs(60),
            memory_max: None,
            restart_max: Duration::from_secs(60),
        }
    }
}

impl EventStoreSettings {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            url: section.value("url").and_then(|url| url.database_url()),
            direct_url: read_direct_url(section),
            layout: read_layout(section),
            schema: section.value("schema").and_then(|name| read_schema(&name)).unwrap_or(default.schema),
        }
    }
}

/// The names of `[event_store.event_sourcery]` count with that layout only.
fn read_layout(section: &Section<'_>) -> LayoutSettings {
    let names = section.value("event_sourcery").and_then(|names| names.section(&keys::EVENT_SOURCERY));
    let names = names.map_or_else(EventSourceryNames::default, |names| read_event_sourcery(&names));
    match section.value("layout").and_then(|name| name.choice(&LAYOUTS)) {
        Some(LayoutName::EventSourcery) => LayoutSettings::EventSourcery(names),
        Some(LayoutName::Espd) | None => LayoutSettings::Espd,
    }
}

fn read_event_sourcery(section: &Section<'_>) -> EventSourceryNames {
    let default = EventSourceryNames::default();
    let name = |key, kind| section.value(key).and_then(|name| name.identifier(kind));
    EventSourceryNames {
        schema: name("schema", "schema").unwrap_or(default.schema),
        events_table: name("events_table", "table").unwrap_or(default.events_table),
        sequence: name("sequence", "sequence"),
        channel: name("channel", "channel").unwrap_or(default.channel),
        tracker_table: name("tracker_table", "table").unwrap_or(default.tracker_table),
    }
}

impl ProjectionsSettings {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            url: section.value("url").and_then(|url| url.database_url()),
            direct_url: read_direct_url(section),
            schema: section.value("schema").and_then(|name| read_schema(&name)).unwrap_or(default.schema),
        }
    }
}

impl RunnerSettings {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        let poll_interval_max = section
            .value("poll_interval_max")
            .and_then(|interval| interval.duration(Duration::from_millis(10)..=HOUR));
        let shutdown_timeout =
            section.value("shutdown_timeout").and_then(|timeout| timeout.duration(Duration::ZERO..=HOUR));
        let seconds = |seconds| Duration::from_secs(seconds);
        let hang_timeout =
            section.value("hang_timeout").and_then(|timeout| timeout.duration(seconds(5)..=HOUR));
        let restart_max = section.value("restart_max").and_then(|delay| delay.duration(seconds(1)..=HOUR));
        Self {
            batch: read_batch_limits(section, default.batch),
            poll_interval_max: poll_interval_max.unwrap_or(default.poll_interval_max),
            shutdown_timeout: shutdown_timeout.unwrap_or(default.shutdown_timeout),
            isolation: section
                .value("isolation")
                .and_then(|value| read_default_isolation(&value))
                .unwrap_or(default.isolation),
            hang_timeout: hang_timeout.unwrap_or(default.hang_timeout),
            memory_max: section.value("memory_max").and_then(|size| size.size(16 << 20..=1 << 40)),
            restart_max: restart_max.unwrap_or(default.restart_max),
        }
    }
}

/// Reads `[log]`.
pub(crate) fn read_log(section: &Section<'_>) -> LogSettings {
    let default = LogSettings::default();
    let format = section.value("format").and_then(|word| word.choice(&LOG_FORMATS));
    let level = section.value("level").and_then(|level| read_filter(&level));
    LogSettings { format: format.unwrap_or(default.format), level: level.unwrap_or(default.level) }
}

/// The bounds of a batch, as `[runner]` and `[projector]` have them.
pub(crate) fn read_batch_limits(section: &Section<'_>, default: BatchLimits) -> BatchLimits {
    let size = section.value("batch_size").and_then(|size| size.integer(1..=100_000));
    let bytes = section.value("batch_bytes").and_then(|bytes| bytes.size(1 << 10..=1 << 30));
    let time = section.value("batch_time").and_then(|time| time.duration(Duration::from_millis(10)..=HOUR));
    let span = section.value("batch_span").and_then(|span| span.integer(1..=1_000_000_000));
    BatchLimits {
        size: size.unwrap_or(default.size),
        bytes: bytes.unwrap_or(default.bytes),
        time: time.unwrap_or(default.time),
        span: span.unwrap_or(default.span),
    }
}

/// How to retry, as `[retry]` and `[projector.retry]` have it.
pub(crate) fn read_retry(section: &Section<'_>, default: RetryPolicy) -> RetryPolicy {
    let delays = Duration::from_millis(1)..=DAY;
    let initial = section.value("initial").and_then(|initial| initial.duration(delays.clone()));
    let max = section.value("max").and_then(|max| max.duration(delays));
    let max_attempts = section.value("max_attempts").and_then(|most| most.integer(1..=i64::from(i32::MAX)));
    let policy = RetryPolicy {
        strategy: section
            .value("strategy")
            .and_then(|word| word.choice(&STRATEGIES))
            .unwrap_or(default.strategy),
        initial: initial.unwrap_or(default.initial),
        max: max.unwrap_or(default.max),
        jitter: section
            .value("jitter")
            .and_then(|jitter| jitter.fraction(0.0..=1.0))
            .unwrap_or(default.jitter),
        max_attempts: max_attempts.and_then(|most| u32::try_from(most).ok()).or(default.max_attempts),
        on_failure: section
            .value("on_failure")
            .and_then(|word| word.choice(&ON_FAILURE))
            .unwrap_or(default.on_failure),
    };
    // A wrong number is a fault of its own.
    if let Some(stop) = section.value("on_failure")
        && policy.on_failure != OnFailure::Retry
        && policy.max_attempts.is_none()
        && section.value("max_attempts").is_none()
    {
        stop.location.report(
            format!("`on_failure = {}` never happens, because attempts have no end", stop.as_written()),
            "write `max_attempts` beside it: after how many attempts",
        );
    }
    // With a fault in one of them, nothing is known about their order.
    let both_known = initial.is_some() == section.value("initial").is_some()
        && max.is_some() == section.value("max").is_some();
    if let Some(wrong) = section.value("max").or_else(|| section.value("initial"))
        && both_known
        && policy.max < policy.initial
    {
        wrong.location.report("`max` is less than `initial`", "write a `max` that is at least `initial`");
    }
    policy
}

/// A way past a pooler, which makes sense beside the way through it only.
fn read_direct_url(section: &Section<'_>) -> Option<DatabaseUrl> {
    let value = section.value("direct_url")?;
    if section.value("url").is_none() {
        value.location.report("`direct_url` stands without `url`", "write `url`: the way through the pooler");
    }
    value.database_url()
}

fn read_schema(value: &Value<'_>) -> Option<String> {
    let name = value.name("schema")?;
    if name.starts_with("pg_") || name == "information_schema" {
        value.location.report(format!("the schema `{name}` belongs to PostgreSQL"), "choose another name");
        return None;
    }
    Some(name)
}

fn read_filter(value: &Value<'_>) -> Option<String> {
    let filter = value.text()?;
    let advice = "write one of off, error, warn, info, debug, trace, or a list of `target=level` like \
                  \"info,sqlx=warn\"";
    if EnvFilter::builder().parse(&filter).is_err() {
        value.location.report(format!("{} is not a log filter", value.as_written()), advice);
        return None;
    }
    // The filter takes any lone word for a target, a misspelt level too.
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let misspelt = |part: &str| !part.contains(['=', '[', ':']) && !is_level(part);
    if filter.split(',').map(str::trim).any(misspelt) {
        value.location.report(format!("{} is not a log level", value.as_written()), advice);
        return None;
    }
    Some(filter)
}
