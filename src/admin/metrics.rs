//! Statuses and workers as numbers, for Prometheus. Names and labels are an interface: `docs/admin.md` lists them,
//! `deploy/prometheus/alerts.yaml` watches them.

use chrono::Utc;

use super::exposition::{Exposition, Kind};
use crate::operations::status::{ProcessorState, ProcessorStatus};
use crate::supervision::Snapshot;

/// All metrics. `statuses` is `None` while the database cannot be asked.
pub(super) fn render(statuses: Option<&[ProcessorStatus]>, workers: &[Snapshot]) -> String {
    let mut text = Exposition::default();
    text.family("espd_build_info", Kind::Gauge, "1, with the version of the program.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text.family(
        "espd_database_up",
        Kind::Gauge,
        "Whether the database answers; if not, nothing is known of processors.",
    )
    .sample(&[], truth(statuses.is_some()));
    write_workers(&mut text, workers);
    let statuses = statuses.unwrap_or_default();
    write_store(&mut text, statuses.first());
    write_processors(&mut text, statuses);
    text.into_text()
}

/// A metric of each worker: name, meaning, help, value.
type WorkerColumn = (&'static str, Kind, &'static str, fn(&Snapshot) -> f64);

const WORKER_COLUMNS: [WorkerColumn; 4] = [
    ("espd_worker_up", Kind::Gauge, "Whether the worker's process runs.", |w| truth(w.pid.is_some())),
    ("espd_worker_restarts_total", Kind::Counter, "Starts of the worker after its first one.", |w| {
        f64::from(w.starts.saturating_sub(1))
    }),
    ("espd_worker_crash_looping", Kind::Gauge, "Whether the worker has ended again and again.", |w| {
        truth(w.state.is_crash_loop())
    }),
    ("espd_worker_heartbeat_age_seconds", Kind::Gauge, "Time since the worker's last sign of life.", |w| {
        // One that has not said anything yet is not late.
        w.last_heartbeat.map_or(0.0, |heartbeat| heartbeat.elapsed().as_secs_f64())
    }),
];

fn write_workers(text: &mut Exposition, workers: &[Snapshot]) {
    for (name, kind, help, value) in WORKER_COLUMNS {
        let mut family = text.family(name, kind, help);
        for worker in workers {
            family.sample(&[("worker", &worker.name)], value(worker));
        }
    }
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn write_store(text: &mut Exposition, any: Option<&ProcessorStatus>) {
    let held_seconds =
        any.map(|status| status.held_by.iter().filter_map(|holder| holder.seconds).fold(0.0, f64::max));
    let held_by = any.map(|status| status.held_by.len() as f64);
    for (name, help, value) in [
        (
            "espd_store_head_position",
            "The last id that the store has drawn.",
            any.map(|status| status.head.get() as f64),
        ),
        (
            "espd_store_settled_position",
            "The settled horizon: nothing appears at or below it.",
            any.map(|status| status.horizon.get() as f64),
        ),
        ("espd_store_holders", "Transactions that hold the settled horizon back.", held_by),
        (
            "espd_store_held_seconds",
            "Age of the oldest transaction that holds the settled horizon back.",
            held_seconds,
        ),
    ] {
        let mut family = text.family(name, Kind::Gauge, help);
        if let Some(value) = value {
            family.sample(&[], value);
        }
    }
}

/// A metric of each processor.
type Column = (&'static str, Kind, &'static str, fn(&ProcessorStatus) -> f64);

const COLUMNS: [Column; 10] = [
    ("espd_processor_position", Kind::Gauge, "Every event at or below it has been handled.", |s| {
        s.position.get() as f64
    }),
    ("espd_processor_lag_events", Kind::Gauge, "Ids between position and head.", |s| s.lag_events as f64),
    (
        "espd_processor_lag_seconds",
        Kind::Gauge,
        "Age of the oldest event beyond the position; 0 when there is none.",
        |s| s.lag_seconds,
    ),
    ("espd_processor_rate", Kind::Gauge, "Ids passed per second lately.", |s| f64::from(s.rate)),
    ("espd_processor_attempts", Kind::Gauge, "How often in a row the present event has failed.", |s| {
        f64::from(s.attempts)
    }),
    ("espd_processor_owned", Kind::Gauge, "Whether a daemon owns the processor.", |s| {
        truth(s.owner.is_some())
    }),
    ("espd_dead_letters", Kind::Gauge, "Events that are set aside.", |s| s.dead_letters as f64),
    (
        "espd_dead_letter_oldest_seconds",
        Kind::Gauge,
        "Time since the oldest of them was set aside; 0 when there is none.",
        |s| s.oldest_dead_letter_at.map_or(0.0, |at| (Utc::now() - at).as_seconds_f64().max(0.0)),
    ),
    ("espd_emissions_pending", Kind::Gauge, "Emitted events that are not in the event store yet.", |s| {
        s.pending_emissions as f64
    }),
    ("espd_events_processed_total", Kind::Counter, "Events handled since the last reset.", |s| {
        s.handled as f64
    }),
];

fn write_processors(text: &mut Exposition, statuses: &[ProcessorStatus]) {
    for (name, kind, help, value) in COLUMNS {
        let mut family = text.family(name, kind, help);
        for status in statuses {
            family.sample(&[("processor", &status.name)], value(status));
        }
    }
    let mut states = text.family(
        "espd_processor_state",
        Kind::Gauge,
        "1 for the state that the processor is in, 0 for the others.",
    );
    for status in statuses {
        for state in ProcessorState::ALL {
            let labels = [("processor", status.name.as_str()), ("state", state.as_str())];
            states.sample(&labels, truth(status.state == state));
        }
    }
}
