//! Runs the scheduler, which appends what applications have scheduled, on the store that the configuration names.

use tokio::sync::watch;

use super::worker_table_place::WorkerTablePlace;
use crate::shutdown::Shutdown;

/// Appends what is due until the stop is requested, and starts anew when the configuration was read again.
pub(super) async fn append_scheduled(mut places: watch::Receiver<WorkerTablePlace>, stop: Shutdown) {
    let mut stopped = stop.clone();
    while !stopped.is_requested() {
        let scheduler = places.borrow_and_update().scheduler.clone();
        let appending = async {
            match scheduler {
                Some(scheduler) => scheduler.run(stop.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = appending => return,
            () = stopped.requested() => return,
            changed = places.changed() => if changed.is_err() { return },
        }
    }
}
