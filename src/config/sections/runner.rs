//! Reads `[runner]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::isolation::read_default_isolation;
use crate::config::keys;
use crate::config::reader::key::Kind;
use crate::config::reader::tree::Section;
use crate::processing::declaration::{BatchLimits, FoldedLimits, Isolation, OnHandlerChange};

/// `[runner]`: how processors follow the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerSection {
    /// Where a batch ends, for processors that do not say otherwise.
    pub batch: BatchLimits,
    /// The longest time between two looks at the store while nothing happens.
    pub poll_interval_max: Duration,
    /// How long a worker may take to end its batch after it was asked to stop.
    pub shutdown_timeout: Duration,
    /// Whom a processor shares a worker with, for processors that do not say otherwise; never a group.
    pub isolation: Isolation,
    /// What happens when a processor has other handlers than those that have made its rows. A reactor is never rebuilt.
    pub on_handler_change: OnHandlerChange,
    /// How long a worker may give no sign of life before it is restarted.
    pub hang_timeout: Duration,
    /// The memory that a worker may use before it is restarted, in bytes; `None`: as much as there is.
    pub memory_max: Option<i64>,
    /// The longest delay before a worker that ends again and again is restarted.
    pub restart_max: Duration,
}

impl Default for RunnerSection {
    fn default() -> Self {
        Self {
            batch: BatchLimits::default(),
            poll_interval_max: default_duration("poll_interval_max"),
            shutdown_timeout: default_duration("shutdown_timeout"),
            isolation: Isolation::default(),
            on_handler_change: OnHandlerChange::default(),
            hang_timeout: default_duration("hang_timeout"),
            memory_max: None,
            restart_max: default_duration("restart_max"),
        }
    }
}

/// The default that the table of keys gives for a duration of `[runner]`.
fn default_duration(key: &str) -> Duration {
    match keys::RUNNER.find(key).map(|key| key.kind) {
        Some(Kind::Duration { default: Some(default), .. }) => default,
        other => unreachable!("`{key}` has no default: {other:?}"),
    }
}

impl RunnerSection {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        let isolation = section.value("isolation").and_then(|value| read_default_isolation(&value));
        let duration = |key, default| section.duration(key).unwrap_or(default);
        Self {
            batch: read_batch_limits(section, default.batch),
            poll_interval_max: duration("poll_interval_max", default.poll_interval_max),
            shutdown_timeout: duration("shutdown_timeout", default.shutdown_timeout),
            isolation: isolation.unwrap_or(default.isolation),
            on_handler_change: section.choice("on_handler_change").unwrap_or(default.on_handler_change),
            hang_timeout: duration("hang_timeout", default.hang_timeout),
            memory_max: section.size("memory_max"),
            restart_max: duration("restart_max", default.restart_max),
        }
    }
}

/// A batch that has grown is not smaller than one that has not.
fn refuse_shrinking_batches(section: &Section<'_>, size: i64) {
    if let (Some(written), Some(size_max)) =
        (section.value("batch_size_max"), section.integer("batch_size_max"))
        && size_max < size
    {
        written.location.report(
            format!("`batch_size_max` is less than `batch_size`, which is {size}"),
            "write a `batch_size` that is at most that: batches begin with it",
        );
    }
}

/// The bounds of a batch, as `[runner]`, `[projector]` and `[reactor]` have them.
pub(crate) fn read_batch_limits(section: &Section<'_>, default: BatchLimits) -> BatchLimits {
    let size = section.integer("batch_size");
    refuse_shrinking_batches(section, size.unwrap_or(default.size));
    // Who sets a size has said how large a batch may be, whatever becomes of it.
    let size_max = section.integer("batch_size_max").or(size);
    let (bytes, span) = (section.size("batch_bytes"), section.integer("batch_span"));
    let usual = BatchLimits::default();
    // A default that is written means what it does where it is not.
    let folded = |said: Option<i64>, usual: i64, inherited: i64, folded: i64| match said {
        None => inherited,
        Some(said) if said == usual => folded,
        Some(said) => said,
    };
    BatchLimits {
        size: size.unwrap_or(default.size),
        size_max: size_max.unwrap_or(default.size_max),
        bytes: bytes.unwrap_or(default.bytes),
        time: section.duration("batch_time").unwrap_or(default.time),
        span: span.unwrap_or(default.span),
        folded: FoldedLimits {
            size: folded(size_max, usual.size_max, default.folded.size, usual.folded.size),
            bytes: folded(bytes, usual.bytes, default.folded.bytes, usual.folded.bytes),
            span: folded(span, usual.span, default.folded.span, usual.folded.span),
        },
    }
}
