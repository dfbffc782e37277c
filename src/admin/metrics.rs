//! The metrics as Prometheus reads them.

use super::exposition::Exposition;
use crate::operations::backlog::Backlog;
use crate::operations::metrics::{METRICS, Readings, WorkerReading};
use crate::operations::status::ProcessorStatus;
use crate::process::report;
use crate::supervision::Snapshot;
use crate::telemetry;

/// All metrics. `statuses` and `backlog` are `None` while the database does not answer. `is_usable`: whether batches reach it, and may write.
/// `is_excluded`: whether a newer espd has declared the schema to be not for this program.
pub(super) fn render(
    statuses: Option<Vec<ProcessorStatus>>,
    backlog: Option<Backlog>,
    is_usable: bool,
    is_excluded: bool,
    workers: &[Snapshot],
) -> String {
    let log_lines_lost = telemetry::lost_lines() + report::lost_lines_of_workers();
    let workers = workers.iter().map(read_worker).collect();
    let readings = Readings { statuses, backlog, is_usable, is_excluded, workers, log_lines_lost };
    let mut text = Exposition::default();
    for metric in &METRICS {
        let mut family = text.family(metric.name, metric.kind, metric.help);
        for sample in metric.samples(&readings) {
            family.sample(&sample.labels, sample.value);
        }
    }
    text.into_text()
}

fn read_worker(worker: &Snapshot) -> WorkerReading {
    WorkerReading {
        name: worker.name.clone(),
        is_running: worker.pid.is_some(),
        restarts: worker.restarts,
        is_crash_looping: worker.state.is_crash_loop(),
        heartbeat_age: worker.last_heartbeat.map(|heartbeat| heartbeat.elapsed().as_secs_f64()),
    }
}
