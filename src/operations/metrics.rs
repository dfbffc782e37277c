//! All metrics in one table: name, kind, meaning, and where the value comes from.
//!
//! Names and labels are an interface: `docs/admin.md` lists them, `deploy/prometheus/alerts.yaml` watches them.

use chrono::Utc;

use super::backlog::Backlog;
use super::status::{ProcessorState, ProcessorStatus, RebuildStatus, UnverifiedStatus, VerificationStatus};
use crate::postgres::sqlstate::FOREIGN_WRITE;
use crate::processing::effects::PendingEffects;
use crate::store::scheduled::ScheduledSummary;

/// One metric.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The meaning, in a sentence.
    pub(crate) help: &'static str,
    value: Value,
}

/// How the values of a metric behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The value goes up and down.
    Gauge,
    /// The value only goes up, or starts over from zero.
    Counter,
}

/// What the values are computed from.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    /// The statuses of all processors; `None` while the database does not answer.
    pub(crate) statuses: Option<Vec<ProcessorStatus>>,
    /// What waits; `None` while the database does not answer.
    pub(crate) backlog: Option<Backlog>,
    /// Whether batches reach the databases, also where they go through a pooler, and may write.
    pub(crate) is_usable: bool,
    /// Whether a newer espd has declared the schema to be not for this program.
    pub(crate) is_excluded: bool,
    /// The workers of this daemon.
    pub(crate) workers: Vec<WorkerReading>,
    /// Lines of log that the daemon and its workers could not write.
    pub(crate) log_lines_lost: u64,
}

/// What a daemon knows of one of its workers.
#[derive(Debug, Clone)]
pub(crate) struct WorkerReading {
    pub(crate) name: String,
    pub(crate) is_running: bool,
    /// Starts so far after an end that nobody had asked for.
    pub(crate) restarts: u32,
    pub(crate) is_crash_looping: bool,
    /// Seconds since the last heartbeat; `None` before the first one.
    pub(crate) heartbeat_age: Option<f64>,
}

/// One value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: f64,
}

/// Where the samples of a metric come from.
#[derive(Debug)]
enum Value {
    /// One sample, always 1, with the version of the program.
    BuildInfo,
    /// One sample, of the database.
    Database,
    /// One sample, of the daemon and its workers together.
    Daemon(fn(&Readings) -> f64),
    /// A sample of each worker.
    Worker(fn(&WorkerReading) -> f64),
    /// One sample, of the event store, as any processor's status has it.
    Store(fn(&ProcessorStatus) -> f64),
    /// A sample of each processor.
    Processor(fn(&ProcessorStatus) -> f64),
    /// One sample, of what applications have scheduled.
    Scheduled(fn(&ScheduledSummary) -> f64),
    /// A sample of each processor: what its handlers want done after their commit; 0 where there is nothing.
    Effects(fn(&PendingEffects) -> f64),
    /// A sample of each version that is built beside the serving one.
    Rebuild(fn(&RebuildStatus) -> f64),
    /// A sample of each projector that is verified slice by slice.
    Verification(fn(&VerificationStatus) -> f64),
    /// A sample of each projector that is, or should be, verified slice by slice: why it is not.
    Unverified(fn(&UnverifiedStatus) -> bool),
    /// A sample of each processor and state.
    ProcessorState,
}

/// Every metric of espd.
pub(crate) const METRICS: [Metric; 43] = [
    gauge("espd_build_info", "1, with the version of the program.", Value::BuildInfo),
    gauge(
        "espd_database_up",
        "Whether the database answers, also through a pooler, and lets espd write; if not, nothing is handled, or nothing is known of processors.",
        Value::Database,
    ),
    gauge(
        "espd_program_excluded",
        "Whether a newer espd has declared the schema to be not for this program, which handles nothing then.",
        Value::Daemon(|readings| truth(readings.is_excluded)),
    ),
    counter(
        "espd_log_lines_lost_total",
        "Lines of log that the daemon and its workers could not write.",
        Value::Daemon(|readings| readings.log_lines_lost as f64),
    ),
    gauge(
        "espd_worker_up",
        "Whether the worker's process runs.",
        Value::Worker(|worker| truth(worker.is_running)),
    ),
    counter(
        "espd_worker_restarts_total",
        "Starts of the worker after an end that nobody had asked for, as a reload does.",
        Value::Worker(|worker| f64::from(worker.restarts)),
    ),
    gauge(
        "espd_worker_crash_looping",
        "Whether the worker has ended again and again.",
        Value::Worker(|worker| truth(worker.is_crash_looping)),
    ),
    gauge(
        "espd_worker_heartbeat_age_seconds",
        "Time since the worker's last heartbeat; 0 before the first one.",
        Value::Worker(|worker| worker.heartbeat_age.unwrap_or(0.0)),
    ),
    gauge(
        "espd_store_head_position",
        "The last id that the store has drawn.",
        Value::Store(|status| status.head.get() as f64),
    ),
    gauge(
        "espd_store_settled_position",
        "The settled horizon: nothing appears at or below it.",
        Value::Store(|status| status.horizon.get() as f64),
    ),
    gauge(
        "espd_store_holders",
        "Transactions that hold the settled horizon back.",
        Value::Store(|status| status.held_by.len() as f64),
    ),
    gauge(
        "espd_store_held_seconds",
        "Age of the oldest transaction that holds the settled horizon back.",
        Value::Store(|status| status.held_by.iter().filter_map(|holder| holder.seconds).fold(0.0, f64::max)),
    ),
    gauge(
        "espd_processor_position",
        "Every event at or below it has been handled.",
        Value::Processor(|status| status.position.get() as f64),
    ),
    gauge(
        "espd_processor_lag_events",
        "Events between position and head; beyond ten thousand an estimate.",
        Value::Processor(|status| status.lag_events as f64),
    ),
    gauge(
        "espd_processor_lag_seconds",
        "Age of the oldest of the next hundred events beyond the position; 0 when there is none.",
        Value::Processor(|status| status.lag_seconds),
    ),
    gauge(
        "espd_processor_rate",
        "Ids passed per second in the last seconds; 0 when nothing moves.",
        Value::Processor(|status| f64::from(status.rate)),
    ),
    gauge(
        "espd_processor_waiting_seconds",
        "For how long an outage or a lock has kept the processor waiting; 0 when none does.",
        Value::Processor(|status| status.waiting_seconds(Utc::now())),
    ),
    gauge(
        "espd_processor_attempts",
        "How often in a row the event that fails has failed; of several, the first.",
        Value::Processor(|status| f64::from(status.attempts)),
    ),
    gauge(
        "espd_processor_failing_events",
        "Events that fail and are tried again, or stop the processor. Of a webhook there may be several.",
        Value::Processor(|status| status.failing_events as f64),
    ),
    gauge(
        "espd_processor_owned",
        "Whether a daemon owns the processor.",
        Value::Processor(|status| truth(status.owner.is_some())),
    ),
    gauge(
        "espd_dead_letters",
        "Events that are set aside.",
        Value::Processor(|status| status.dead_letters as f64),
    ),
    gauge(
        "espd_dead_letter_oldest_seconds",
        "Time since the oldest dead letter was set aside; 0 when there is none.",
        Value::Processor(dead_letter_age),
    ),
    gauge(
        "espd_emissions_pending",
        "Emitted events that are not in the event store yet.",
        Value::Processor(|status| status.pending_emissions as f64),
    ),
    gauge(
        "espd_emissions_refused",
        "Emitted events that the event store has refused; they are tried again.",
        Value::Processor(|status| status.refused_emissions as f64),
    ),
    gauge(
        "espd_effects_pending",
        "Effects of committed batches that are to be carried out.",
        Value::Effects(|effects| effects.count as f64),
    ),
    gauge(
        "espd_effect_oldest_seconds",
        "Age of the oldest effect that is to be carried out; 0 when there is none.",
        Value::Effects(|effects| effects.oldest_seconds),
    ),
    gauge(
        "espd_scheduled_events_pending",
        "Events that applications have scheduled and that are not appended yet.",
        Value::Scheduled(|scheduled| scheduled.pending as f64),
    ),
    gauge(
        "espd_scheduled_events_refused",
        "Scheduled events that the event store has refused; they are tried again.",
        Value::Scheduled(|scheduled| scheduled.refused as f64),
    ),
    gauge(
        "espd_scheduled_event_overdue_seconds",
        "For how long a scheduled event that was not refused has been due; 0 when none is.",
        Value::Scheduled(|scheduled| scheduled.overdue_seconds),
    ),
    counter(
        "espd_events_processed_total",
        "Events handled since the tables were made; a reset that only moves the position counts on.",
        Value::Processor(|status| status.handled as f64),
    ),
    gauge(
        "espd_processor_diverged",
        "Whether the event store is not the one that the processor has followed.",
        Value::Processor(|status| truth(status.diverged.is_some())),
    ),
    gauge(
        "espd_processor_foreign_write",
        "Whether the processor fails because its handlers write a table of another processor.",
        Value::Processor(|status| truth(is_foreign_write(status))),
    ),
    gauge(
        "espd_rebuild_running",
        "Whether somebody works on the version that is built beside the serving one.",
        Value::Rebuild(|build| truth(build.is_running)),
    ),
    gauge(
        "espd_rebuild_waiting",
        "Whether the version that is built waits for an operator.",
        Value::Rebuild(|build| truth(build.blocked_because.is_some())),
    ),
    gauge(
        "espd_rebuild_share",
        "What share of the ids is handled for the version that is built: 0 to 1.",
        Value::Rebuild(|build| build.share),
    ),
    gauge(
        "espd_rebuild_rate",
        "Events handled per second for the version that is built, in the last seconds.",
        Value::Rebuild(|build| build.rate),
    ),
    gauge(
        "espd_rebuild_left_seconds",
        "How long the version that is built takes to catch up at this speed; 0 while nobody knows.",
        Value::Rebuild(|build| build.seconds_left.unwrap_or(0.0)),
    ),
    gauge(
        "espd_rebuild_bytes",
        "Size of the tables of the version that is built, with their indexes.",
        Value::Rebuild(|build| build.bytes as f64),
    ),
    gauge(
        "espd_verify_differing_rows",
        "Rows that were found not to be what their events say, in the last slice in which there were any; 0 once a whole round has \
         found none.",
        Value::Verification(|found| found.differing_rows as f64),
    ),
    gauge(
        "espd_verify_timestamp_seconds",
        "When the last slice of the projector's aggregates was verified, since 1970.",
        Value::Verification(|found| found.verified_at.timestamp() as f64),
    ),
    gauge(
        "espd_verify_blocked",
        "Whether slices of the projector's aggregates cannot be verified, though [verify] is declared.",
        Value::Unverified(|found| !found.lasting),
    ),
    gauge(
        "espd_verify_unsuitable",
        "Whether [verify] is declared, and slices of the projector cannot be verified as it is declared.",
        Value::Unverified(|found| found.lasting),
    ),
    gauge(
        "espd_processor_state",
        "1 for the state that the processor is in, 0 for the others.",
        Value::ProcessorState,
    ),
];

const fn gauge(name: &'static str, help: &'static str, value: Value) -> Metric {
    Metric { name, kind: Kind::Gauge, help, value }
}

const fn counter(name: &'static str, help: &'static str, value: Value) -> Metric {
    Metric { name, kind: Kind::Counter, help, value }
}

impl Metric {
    /// The samples of the metric; none where nothing is known.
    pub(crate) fn samples(&self, readings: &Readings) -> Vec<Sample> {
        let statuses = readings.statuses.as_deref().unwrap_or_default();
        match self.value {
            Value::BuildInfo => vec![sample(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
            Value::Database => {
                vec![sample(Vec::new(), truth(readings.statuses.is_some() && readings.is_usable))]
            }
            Value::Daemon(value) => vec![sample(Vec::new(), value(readings))],
            Value::Worker(value) => {
                let one =
                    |worker: &WorkerReading| sample(vec![("worker", worker.name.clone())], value(worker));
                readings.workers.iter().map(one).collect()
            }
            Value::Store(value) => {
                statuses.first().map(|status| sample(Vec::new(), value(status))).into_iter().collect()
            }
            Value::Processor(value) => {
                statuses.iter().map(|status| sample(labels(status, statuses), value(status))).collect()
            }
            Value::Scheduled(value) => {
                let scheduled = readings.backlog.as_ref().and_then(|backlog| backlog.scheduled.as_ref());
                scheduled.map(|scheduled| sample(Vec::new(), value(scheduled))).into_iter().collect()
            }
            Value::Effects(value) => {
                let Some(backlog) = &readings.backlog else { return Vec::new() };
                let of = |status: &ProcessorStatus| {
                    backlog.effects.iter().find(|effects| is_of(effects, status)).map_or(0.0, value)
                };
                statuses.iter().map(|status| sample(labels(status, statuses), of(status))).collect()
            }
            Value::Rebuild(value) => {
                let of = |status: &ProcessorStatus| {
                    let build = status.rebuild.as_ref()?;
                    let labels =
                        vec![("processor", status.name.clone()), ("version", build.version.to_string())];
                    Some(sample(labels, value(build)))
                };
                statuses.iter().filter_map(of).collect()
            }
            Value::Verification(value) => {
                let of = |status: &ProcessorStatus| {
                    let found = status.verification.as_ref()?;
                    Some(sample(labels(status, statuses), value(found)))
                };
                statuses.iter().filter_map(of).collect()
            }
            Value::Unverified(is_so) => {
                let is_wanted =
                    |status: &&ProcessorStatus| status.verification.is_some() || status.unverified.is_some();
                let of = |status: &ProcessorStatus| {
                    let value = status.unverified.as_ref().is_some_and(is_so);
                    sample(labels(status, statuses), truth(value))
                };
                statuses.iter().filter(is_wanted).map(of).collect()
            }
            Value::ProcessorState => {
                statuses.iter().flat_map(|status| state_samples(status, statuses)).collect()
            }
        }
    }
}

fn sample(labels: Vec<(&'static str, String)>, value: f64) -> Sample {
    Sample { labels, value }
}

/// The labels of a processor: its name, with version and partition if another one has the same name.
fn labels(status: &ProcessorStatus, all: &[ProcessorStatus]) -> Vec<(&'static str, String)> {
    let mut labels = vec![("processor", status.name.clone())];
    if all.iter().filter(|other| other.name == status.name).count() > 1 {
        labels.push(("version", status.version.to_string()));
        labels.push(("partition", status.partition.to_string()));
    }
    labels
}

fn state_samples(status: &ProcessorStatus, all: &[ProcessorStatus]) -> Vec<Sample> {
    let one = |state: ProcessorState| {
        let mut labels = labels(status, all);
        labels.push(("state", state.as_str().to_owned()));
        sample(labels, truth(status.state == state))
    };
    ProcessorState::ALL.into_iter().map(one).collect()
}

fn is_of(effects: &PendingEffects, status: &ProcessorStatus) -> bool {
    effects.processor == status.name
        && effects.version == status.version
        && effects.partition == status.partition
}

fn is_foreign_write(status: &ProcessorStatus) -> bool {
    let failure = status.last_error.as_ref();
    failure.and_then(|failure| failure.sqlstate.as_deref()) == Some(FOREIGN_WRITE)
}

fn dead_letter_age(status: &ProcessorStatus) -> f64 {
    status.oldest_dead_letter_at.map_or(0.0, |at| (Utc::now() - at).as_seconds_f64().max(0.0))
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests {
    use super::super::status::examples::live;
    use super::*;

    #[test]
    fn samples_of_one_name_differ_in_their_labels() {
        let new = ProcessorStatus { version: 2, ..live("notes") };
        let readings = Readings {
            statuses: Some(vec![live("notes"), new, live("other")]),
            backlog: Some(Backlog::default()),
            is_usable: true,
            is_excluded: false,
            workers: vec![],
            log_lines_lost: 0,
        };
        for metric in &METRICS {
            let mut labels: Vec<_> = metric.samples(&readings).into_iter().map(|one| one.labels).collect();
            let count = labels.len();
            labels.sort();
            labels.dedup();
            assert_eq!(labels.len(), count, "{}", metric.name);
        }
        let owned = METRICS.iter().find(|metric| metric.name == "espd_processor_owned").unwrap();
        assert_eq!(owned.samples(&readings)[2].labels, [("processor", "other".to_owned())]);
    }

    #[test]
    fn every_metric_is_documented() {
        let documentation = include_str!("../../docs/admin.md");
        for metric in &METRICS {
            assert!(documentation.contains(&format!("| `{}` |", metric.name)), "{}", metric.name);
        }
    }

    #[test]
    fn a_database_that_does_not_answer_leaves_only_what_the_daemon_knows() {
        let worker = WorkerReading {
            name: "notes".into(),
            is_running: true,
            restarts: 2,
            is_crash_looping: false,
            heartbeat_age: None,
        };
        let readings = Readings { workers: vec![worker], ..Readings::default() };
        let value = |name: &str| {
            let metric = METRICS.iter().find(|metric| metric.name == name).unwrap();
            metric.samples(&readings).first().map(|sample| sample.value)
        };
        assert_eq!(value("espd_database_up"), Some(0.0));
        assert_eq!(value("espd_worker_restarts_total"), Some(2.0));
        assert_eq!(value("espd_worker_heartbeat_age_seconds"), Some(0.0));
        assert_eq!((value("espd_store_holders"), value("espd_processor_state")), (None, None));
    }
}
