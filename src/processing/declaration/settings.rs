//! What is said of how one processor is run, by a file or by the program that has registered it.

use std::time::Duration;

use super::{Approve, Isolation, OnHandlerChange, ProcessorDeclaration, Start};
use crate::retry::{OnFailure, Strategy};

/// What is said of how one processor is run. `None`: nothing, so that what holds for all processors holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ProcessorSettings {
    pub(crate) batch_size: Option<i64>,
    pub(crate) batch_size_max: Option<i64>,
    pub(crate) batch_bytes: Option<i64>,
    pub(crate) batch_time: Option<Duration>,
    pub(crate) batch_span: Option<i64>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) on_handler_change: Option<OnHandlerChange>,
    pub(crate) handler_timeout: Option<Duration>,
    pub(crate) start: Option<Start>,
    pub(crate) aggregate_column: Option<String>,
    pub(crate) approve: Option<Approve>,
    pub(crate) chain_max: Option<u32>,
    pub(crate) retry: RetrySettings,
}

/// What is said of retries.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RetrySettings {
    pub(crate) strategy: Option<Strategy>,
    pub(crate) initial: Option<Duration>,
    pub(crate) max: Option<Duration>,
    pub(crate) jitter: Option<f64>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) on_failure: Option<OnFailure>,
}

impl ProcessorSettings {
    /// These settings, and those of `other` where these say nothing.
    #[must_use]
    pub(crate) fn or(self, other: &Self) -> Self {
        let (retry, second) = (self.retry, other.retry);
        Self {
            batch_size: self.batch_size.or(other.batch_size),
            batch_size_max: self.batch_size_max.or(other.batch_size_max),
            batch_bytes: self.batch_bytes.or(other.batch_bytes),
            batch_time: self.batch_time.or(other.batch_time),
            batch_span: self.batch_span.or(other.batch_span),
            isolation: self.isolation.or_else(|| other.isolation.clone()),
            on_handler_change: self.on_handler_change.or(other.on_handler_change),
            handler_timeout: self.handler_timeout.or(other.handler_timeout),
            start: self.start.or(other.start),
            aggregate_column: self.aggregate_column.or_else(|| other.aggregate_column.clone()),
            approve: self.approve.or(other.approve),
            chain_max: self.chain_max.or(other.chain_max),
            retry: RetrySettings {
                strategy: retry.strategy.or(second.strategy),
                initial: retry.initial.or(second.initial),
                max: retry.max.or(second.max),
                jitter: retry.jitter.or(second.jitter),
                max_attempts: retry.max_attempts.or(second.max_attempts),
                on_failure: retry.on_failure.or(second.on_failure),
            },
        }
    }

    /// Has a processor run as these settings say, and for the rest as it is declared.
    pub(crate) fn apply_to(&self, declaration: &mut ProcessorDeclaration) {
        let (batch, retry) = (&mut declaration.batch, &mut declaration.retry);
        set(&mut batch.size, self.batch_size);
        // Who sets a size has said how large a batch may be.
        set(&mut batch.size_max, self.batch_size_max.or(self.batch_size));
        set(&mut batch.folded.size, self.batch_size_max.or(self.batch_size));
        for bytes in [&mut batch.bytes, &mut batch.folded.bytes] {
            set(bytes, self.batch_bytes);
        }
        set(&mut batch.time, self.batch_time);
        for span in [&mut batch.span, &mut batch.folded.span] {
            set(span, self.batch_span);
        }
        set(&mut retry.strategy, self.retry.strategy);
        set(&mut retry.initial, self.retry.initial);
        set(&mut retry.max, self.retry.max);
        set(&mut retry.jitter, self.retry.jitter);
        retry.max_attempts = self.retry.max_attempts.or(retry.max_attempts);
        set(&mut retry.on_failure, self.retry.on_failure);
        set(&mut declaration.isolation, self.isolation.clone());
        set(&mut declaration.on_handler_change, self.on_handler_change);
        set(&mut declaration.handler_timeout, self.handler_timeout);
        declaration.start = self.start.or(declaration.start);
        set(&mut declaration.approve, self.approve);
        declaration.aggregate_column =
            self.aggregate_column.clone().or_else(|| declaration.aggregate_column.take());
        if let Some(reactor) = &mut declaration.reactor {
            set(&mut reactor.chain_max, self.chain_max);
        }
    }
}

fn set<T>(value: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *value = said;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_something_first_is_heard() {
        let retry = RetrySettings { max_attempts: Some(3), ..RetrySettings::default() };
        let file = ProcessorSettings { batch_size: Some(7), retry, ..ProcessorSettings::default() };
        let retry = RetrySettings {
            max_attempts: Some(9),
            on_failure: Some(OnFailure::Park),
            ..RetrySettings::default()
        };
        let program = ProcessorSettings {
            batch_size: Some(8),
            batch_span: Some(5),
            retry,
            ..ProcessorSettings::default()
        };
        let both = file.or(&program);
        assert_eq!((both.batch_size, both.batch_span, both.batch_bytes), (Some(7), Some(5), None));
        assert_eq!((both.retry.max_attempts, both.retry.on_failure), (Some(3), Some(OnFailure::Park)));
    }
}
