//! Tells systemd how the workers are.

use std::time::Duration;

use tokio::sync::watch;

use super::exclusion::Exclusion;
use crate::process::systemd::Systemd;
use crate::supervision::Snapshot;
use crate::supervision::lifecycle::WorkerState;

/// Least time between two messages.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Says when the daemon is ready, and then every change of the workers' states, at most once a second.
pub(super) async fn announce(
    systemd: &Systemd,
    mut snapshots: watch::Receiver<Vec<Snapshot>>,
    mut exclusion: watch::Receiver<Exclusion>,
) {
    // An error means that the supervisor is gone: nothing will change any more.
    if snapshots.wait_for(|workers| workers.iter().all(is_settled)).await.is_err() {
        return;
    }
    let mut announced = summarise(&snapshots.borrow(), &exclusion.borrow());
    systemd.ready(&announced);
    loop {
        tokio::time::sleep(INTERVAL_MIN).await;
        let present = summarise(&snapshots.borrow_and_update(), &exclusion.borrow_and_update());
        if present != announced {
            announced = present;
            systemd.status(&announced);
            continue;
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            Ok(()) = exclusion.changed() => {}
        }
    }
}

/// Describes the workers in one line.
pub(super) fn summarise(workers: &[Snapshot], exclusion: &Exclusion) -> String {
    if let Some(reason) = exclusion.reason() {
        return format!("nothing is handled: {reason}");
    }
    let is_running = |worker: &&Snapshot| matches!(worker.state, WorkerState::Running { .. });
    let running = workers.iter().filter(is_running).count();
    let mut summary = format!("{running} of {} workers running", workers.len());
    let looping: Vec<_> = workers.iter().filter(|worker| worker.state.word() == "crash_looping").collect();
    if let Some(first) = looping.first() {
        summary += &format!(", {} ending again and again: {}", looping.len(), first.name);
        summary += if looping.len() > 1 { ", …" } else { "" };
    }
    summary
}

/// Whether the daemon need not wait for this worker to be ready: the worker has given a heartbeat, or it has ended since
/// it was started.
fn is_settled(worker: &Snapshot) -> bool {
    worker.last_heartbeat.is_some() || worker.last_end.is_some()
}
