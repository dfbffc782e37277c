//! The metrics as Prometheus reads them.

use super::exposition::Exposition;
use crate::operations::metrics::{METRICS, Readings, WorkerReading};
use crate::operations::status::ProcessorStatus;
use crate::supervision::Snapshot;

/// All metrics. `statuses` is `None` while the database does not answer.
pub(super) fn render(statuses: Option<Vec<ProcessorStatus>>, workers: &[Snapshot]) -> String {
    let readings = Readings { statuses, workers: workers.iter().map(read_worker).collect() };
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
        starts: worker.starts,
        is_crash_looping: worker.state.is_crash_loop(),
        heartbeat_age: worker.last_heartbeat.map(|heartbeat| heartbeat.elapsed().as_secs_f64()),
    }
}
