//! Reads `[retry]`, `[projector.retry]` and `[reactor.retry]`.

use crate::config::reader::tree::Section;
use crate::retry::{OnFailure, RetryPolicy};

/// How to retry; `default` holds for the keys that the section leaves out.
pub(crate) fn read_retry(section: &Section<'_>, default: RetryPolicy) -> RetryPolicy {
    let max_attempts = section.integer("max_attempts").and_then(|most| u32::try_from(most).ok());
    let (initial, max) = (section.duration("initial"), section.duration("max"));
    let policy = RetryPolicy {
        strategy: section.choice("strategy").unwrap_or(default.strategy),
        initial: initial.unwrap_or(default.initial),
        max: max.unwrap_or(default.max),
        jitter: section.fraction("jitter").unwrap_or(default.jitter),
        max_attempts: max_attempts.or(default.max_attempts),
        on_failure: section.choice("on_failure").unwrap_or(default.on_failure),
    };
    refuse_endless_attempts(section, &policy);
    // If one of them is wrong, nothing is known about their order.
    let is_read = |key, read: Option<_>| read.is_some() == section.value(key).is_some();
    if is_read("initial", initial) && is_read("max", max) {
        refuse_shrinking_delays(section, &policy);
    }
    policy
}

/// What happens after the last attempt needs a last attempt.
fn refuse_endless_attempts(section: &Section<'_>, policy: &RetryPolicy) {
    let Some(on_failure) = section.value("on_failure") else { return };
    // A wrong number is reported on its own.
    let is_endless = policy.max_attempts.is_none() && section.value("max_attempts").is_none();
    if is_endless && policy.on_failure != OnFailure::Retry && !section.has_misspelt("max_attempts") {
        on_failure.location.report(
            format!(
                "{} as `on_failure` never happens, because attempts have no end",
                on_failure.as_written()
            ),
            "add `max_attempts`: after how many attempts",
        );
    }
}

fn refuse_shrinking_delays(section: &Section<'_>, policy: &RetryPolicy) {
    if let Some(wrong) = section.value("max").or_else(|| section.value("initial"))
        && policy.max < policy.initial
    {
        wrong.location.report("`max` is less than `initial`", "write a `max` that is at least `initial`");
    }
}
