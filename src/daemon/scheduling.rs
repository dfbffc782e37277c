//! Runs the scheduler, which appends what applications have scheduled, on the store that the configuration names.

use tokio::sync::watch;

use super::worker_table::WorkerTablePlace;
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::store::Layout;
use crate::store::scheduled::Scheduler;

/// The scheduler of the configured store; `None`: espd appends nothing to it, or no database is known.
pub(super) fn scheduler(config: &Config) -> Option<Scheduler> {
    let database = config.direct_event_store_url()?.connector().ok()?;
    let layout = Layout::new(&config.event_store.layout, &config.event_store.schema).ok()?;
    Scheduler::new(&database, &layout)
}

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
