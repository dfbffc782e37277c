//! How a program says that its processors are to be run: the keys of the configuration, under the same names.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::registration::Registration;
use crate::processing::declaration::{Approve, Isolation, OnHandlerChange, ProcessorSettings};
use crate::retry::{OnFailure, Strategy};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// How the processor is run. Each method is a key of its section in the configuration, with the same name, range and default;
/// where the section says something too, the section is heard. `[runner]` and `[retry]` hold for what neither says.
impl Registration {
    /// The most events of a batch, 1 to 100,000, also while the processor is far behind, unless [`Self::batch_size_max`] says more.
    #[must_use]
    pub fn batch_size(mut self, events: i64) -> Self {
        self.settings.batch_size = Some(events);
        self
    }

    /// The most events of a batch while the processor is far behind, 1 to 100,000.
    #[must_use]
    pub fn batch_size_max(mut self, events: i64) -> Self {
        self.settings.batch_size_max = Some(events);
        self
    }

    /// The most bytes of the bodies in a batch, 1 KiB to 1 GiB.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: i64) -> Self {
        self.settings.batch_bytes = Some(bytes);
        self
    }

    /// The time that a batch may take, 10 ms to 1 h.
    #[must_use]
    pub fn batch_time(mut self, time: Duration) -> Self {
        self.settings.batch_time = Some(time);
        self
    }

    /// The most ids that a batch looks at, whatever their types, 1 to 1,000,000,000.
    #[must_use]
    pub fn batch_span(mut self, ids: i64) -> Self {
        self.settings.batch_span = Some(ids);
        self
    }

    /// Whether the processor has a worker of its own or shares one with others.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.settings.isolation = Some(isolation);
        self
    }

    /// What happens when another program has handled events before, as far as espd can tell.
    #[must_use]
    pub fn on_handler_change(mut self, then: OnHandlerChange) -> Self {
        self.settings.on_handler_change = Some(then);
        self
    }

    /// How long a handler may take for what it is handed, 100 ms to 1 h: `project` for a batch, `react` for an event. One that takes
    /// longer is given up, and has failed. Unless it is said, 5 min. A handler that blocks its thread cannot be given up: its
    /// worker is ended after `hang_timeout`.
    #[must_use]
    pub fn handler_timeout(mut self, time: Duration) -> Self {
        self.settings.handler_timeout = Some(time);
        self
    }

    /// When a version of the projector that a daemon has built beside the serving one goes live.
    #[must_use]
    pub fn approve(mut self, approve: Approve) -> Self {
        self.settings.approve = Some(approve);
        self
    }

    /// The column of each of its tables that has the aggregate whose events alone write the row. So a part of the tables can be
    /// verified and rebuilt, and several workers build a version. It is believed: a handler that reads rows of other aggregates
    /// finds other ones then.
    #[must_use]
    pub fn aggregate_column(mut self, column: &str) -> Self {
        self.settings.aggregate_column = Some(column.to_owned());
        self
    }

    /// How many emitted events may lead to one another, 1 to 10,000. For reactors.
    #[must_use]
    pub fn chain_max(mut self, events: u32) -> Self {
        self.settings.chain_max = Some(events);
        self
    }

    /// How the delay grows from one failure of an event to the next: `strategy` of `[retry]`.
    #[must_use]
    pub fn retry_strategy(mut self, strategy: Strategy) -> Self {
        self.settings.retry.strategy = Some(strategy);
        self
    }

    /// The first and the longest delay before an event is tried again, 1 ms to 1 day: `initial` and `max` of `[retry]`.
    #[must_use]
    pub fn retry_delays(mut self, initial: Duration, max: Duration) -> Self {
        (self.settings.retry.initial, self.settings.retry.max) = (Some(initial), Some(max));
        self
    }

    /// The random share of a delay that is added or taken off, 0 to 1: `jitter` of `[retry]`.
    #[must_use]
    pub fn retry_jitter(mut self, share: f64) -> Self {
        self.settings.retry.jitter = Some(share);
        self
    }

    /// After how many attempts [`Self::on_failure`] decides, at least 1.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.retry.max_attempts = Some(attempts);
        self
    }

    /// What happens to an event whose attempts are used up.
    #[must_use]
    pub fn on_failure(mut self, then: OnFailure) -> Self {
        self.settings.retry.on_failure = Some(then);
        self
    }
}

/// What is out of its range, each with the range.
pub(super) fn find_faults(settings: &ProcessorSettings) -> Vec<String> {
    let ProcessorSettings {
        batch_size,
        batch_size_max,
        batch_bytes,
        batch_time,
        batch_span,
        handler_timeout,
        chain_max,
        retry,
        ..
    } = settings;
    let swapped = retry.initial.zip(retry.max).filter(|(initial, max)| initial > max);
    let swapped = swapped.map(|(initial, max)| {
        format!("the first delay of `retry_delays` is {initial:?}, and the longest is {max:?}")
    });
    let attempts = retry.max_attempts.map(i64::from);
    let faults = [
        outside("batch_size", *batch_size, 1..=100_000),
        outside("batch_size_max", *batch_size_max, 1..=100_000),
        outside("batch_bytes", *batch_bytes, 1 << 10..=1 << 30),
        outside("batch_time", *batch_time, Duration::from_millis(10)..=HOUR),
        outside("batch_span", *batch_span, 1..=1_000_000_000),
        outside("handler_timeout", *handler_timeout, Duration::from_millis(100)..=HOUR),
        outside("chain_max", chain_max.map(i64::from), 1..=10_000),
        outside("retry_delays", retry.initial, Duration::from_millis(1)..=DAY),
        outside("retry_delays", retry.max, Duration::from_millis(1)..=DAY),
        outside("retry_jitter", retry.jitter, 0.0..=1.0),
        outside("max_attempts", attempts, 1..=i64::from(i32::MAX)),
        swapped,
    ];
    faults.into_iter().flatten().collect()
}

pub(super) fn outside<T: PartialOrd + std::fmt::Debug>(
    name: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Option<String> {
    let value = value.filter(|value| !range.contains(value))?;
    Some(format!("`{name}` is {value:?}, and may be {:?} to {:?}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_out_of_range_is_a_fault() {
        let faults = |registration: Registration| find_faults(&registration.settings);
        let sound = Registration::projector("a").batch_size(1).max_attempts(1).retry_jitter(1.0);
        assert_eq!(faults(sound), [""; 0]);
        let wrong = Registration::projector("a").batch_size(0).retry_jitter(1.5).max_attempts(0);
        let wrong = faults(wrong.retry_delays(Duration::ZERO, DAY));
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        let swapped = faults(Registration::projector("a").retry_delays(9 * SECOND, SECOND));
        assert_eq!(swapped, ["the first delay of `retry_delays` is 9s, and the longest is 1s"]);
        assert_eq!(wrong[0], "`batch_size` is 0, and may be 1 to 100000");
    }
}
