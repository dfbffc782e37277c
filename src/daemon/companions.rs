//! What goes on beside the workers: the table `workers`, scheduled events, versions that are built, slices that are verified.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::building::build_versions;
use super::exclusion::{Exclusion, ExclusionTeller, watch_event_store};
use super::reload::Configured;
use super::requests::{REQUESTS_MAX, ReloadOrder, ReloadRequests, Reloaded};
use super::scheduling::append_scheduled;
use super::verifying::verify_continuously;
use super::worker_table::WorkerTable;
use super::worker_table_place::WorkerTablePlace;
use crate::config::Config;
use crate::processing::tracker::Owner;
use crate::shutdown;
use crate::supervision::Snapshot;

/// How long the end of the daemon waits until its rows are removed from the table `workers`.
const WORKER_TABLE_GRACE: Duration = Duration::from_secs(2);

/// What goes on beside the workers for as long as they do.
pub(super) struct Companions {
    end: shutdown::ShutdownHandle,
    tasks: JoinSet<()>,
}

/// By what the loop of requests tells the companions of what it does.
pub(super) struct Told {
    /// Read by the writer of the table `workers`.
    pub(super) place: watch::Sender<WorkerTablePlace>,
    /// Read by the builder of versions.
    pub(super) follow: watch::Sender<Arc<Config>>,
    /// What came of reloads that a signal asked for.
    pub(super) signalled: mpsc::Sender<Reloaded>,
}

/// What the companions tell the loop of requests.
pub(super) struct Heard {
    /// The reloads that operators ask for through the database.
    pub(super) ordered: mpsc::Receiver<ReloadOrder>,
    /// What excludes this program from the tables.
    pub(super) exclusion: watch::Receiver<Exclusion>,
}

impl Companions {
    /// Starts them.
    pub(super) fn start(
        configured: &Configured,
        owner: &Owner,
        snapshots: watch::Receiver<Vec<Snapshot>>,
    ) -> anyhow::Result<(Self, Told, Heard)> {
        let (place, places) = watch::channel(configured.worker_table_place()?);
        let (follow, configs) = watch::channel(Arc::new(configured.config.clone()));
        let (end, stop) = shutdown::channel();
        let (orders, ordered) = mpsc::channel(REQUESTS_MAX);
        let (signalled, outcomes) = mpsc::channel(REQUESTS_MAX);
        let (building, activity) = watch::channel(Vec::new());
        let (teller, exclusion) = ExclusionTeller::new();
        let reloads = ReloadRequests::new(owner.id, orders, outcomes, building, teller.clone());
        let registry = &configured.registry;
        let mut tasks = JoinSet::new();
        tasks.spawn(append_scheduled(places.clone(), stop.clone()));
        tasks.spawn(watch_event_store(places.clone(), teller, stop.clone()));
        let label = owner.label.clone();
        tasks.spawn(build_versions(configs, activity, label, Arc::clone(registry), stop.clone()));
        tasks.spawn(verify_continuously(places.clone(), Arc::clone(registry), stop.clone()));
        tasks.spawn(WorkerTable::new(owner.clone(), snapshots, places, reloads).run(stop));
        Ok((Self { end, tasks }, Told { place, follow, signalled }, Heard { ordered, exclusion }))
    }

    /// Has them end. If the rows of the daemon are not removed in time, they are outdated soon.
    pub(super) async fn end(mut self) {
        self.end.request();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(WORKER_TABLE_GRACE, all).await;
        // What has not ended goes on until the process ends.
        self.tasks.detach_all();
    }
}
