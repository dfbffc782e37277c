//! Tells the service manager how the workers are.

use std::time::Duration;

use tokio::sync::watch;

use crate::process::service_manager::ServiceManager;
use crate::supervision::Snapshot;
use crate::supervision::lifecycle::State;

/// Between two messages.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Says when the daemon is ready, and whenever the state of the workers is another one, at most once a second.
pub(super) async fn announce(manager: &ServiceManager, mut snapshots: watch::Receiver<Vec<Snapshot>>) {
    // An error means that the supervisor is gone, and all is said.
    if snapshots.wait_for(|workers| workers.iter().all(is_settled)).await.is_err() {
        return;
    }
    let mut said = summarise(&snapshots.borrow());
    manager.ready(&said);
    loop {
        tokio::time::sleep(INTERVAL_MIN).await;
        let news = |workers: &Vec<Snapshot>| summarise(workers) != said;
        let Ok(workers) = snapshots.wait_for(news).await else { return };
        said = summarise(&workers);
        manager.status(&said);
    }
}

/// What it has to say about the workers, in one line.
pub(super) fn summarise(workers: &[Snapshot]) -> String {
    let running = workers.iter().filter(|worker| matches!(worker.state, State::Running { .. })).count();
    let mut summary = format!("{running} of {} workers running", workers.len());
    let looping: Vec<_> = workers.iter().filter(|worker| worker.state.word() == "crash_looping").collect();
    if let Some(first) = looping.first() {
        summary += &format!(", {} ending again and again: {}", looping.len(), first.name);
        summary += if looping.len() > 1 { ", …" } else { "" };
    }
    summary
}

/// Whether it has given a sign of life. One that has ended since it was started keeps nobody waiting.
fn is_settled(worker: &Snapshot) -> bool {
    worker.last_beat.is_some() || worker.last_end.is_some()
}
