//! Builds the declared versions beside those that serve, while the daemon runs.
//!
//! Where a build is, is in the database, and so is the lock of whoever carries it out. So this may end at any time: the next one goes
//! on, here or in another daemon.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::handler_thread::work_in_thread;
use super::requests::Builds;
use crate::config::Config;
use crate::handlers::native::Registry;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::rebuild::{BUILDS, Built, Effort, Listener, Wanted, Way, Wish};
use crate::processing::declaration::Handling;
use crate::shutdown::Shutdown;

/// How often it is looked while a version is built or waits.
const BUSY_INTERVAL: Duration = Duration::from_secs(2);

/// How often it is looked while there is nothing to build, and nobody else builds either.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// The pauses after a build that has failed, from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Connections of each build, beside one for each worker: its batches, the transaction that holds the serving version, a snapshot, what is
/// written aside, and its probe.
const CONNECTIONS: u32 = 6;

/// How long a build waits for one of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the sessions of builds that were broken off may take to end.
const CLOSING_TIME: Duration = Duration::from_secs(3);

/// Builds what the configuration declares until the stop is requested, and begins anew when another configuration is followed.
/// `activity` tells which builds go on, whoever builds, `builder` is how others call this daemon, and `registry` has the processors in
/// Rust of its program.
pub(super) async fn build_versions(
    mut configs: watch::Receiver<Arc<Config>>,
    mut activity: watch::Receiver<Builds>,
    builder: String,
    registry: Arc<Registry>,
    stop: Shutdown,
) {
    let mut stopped = stop.clone();
    while !stopped.is_requested() {
        let config = Arc::clone(&configs.borrow_and_update());
        let builds = u32::try_from(config.rebuild.parallelism).unwrap_or(0);
        let workers = u32::try_from(config.rebuild.workers).unwrap_or(1);
        let connections = (CONNECTIONS + workers) * builds + 2;
        let databases = (builds > 0).then(|| connect(&config, connections).ok());
        let databases = databases.flatten().map(Arc::new);
        let building = async {
            match &databases {
                Some(databases) => {
                    let (databases, builder) = (Arc::clone(databases), builder.clone());
                    let place = Place { config, databases, builder, registry: Arc::clone(&registry) };
                    Builder::new(place).run(&mut activity, &mut configs).await
                }
                None => configs.changed().await.is_ok(),
            }
        };
        let goes_on = tokio::select! {
            goes_on = building => goes_on,
            () = stopped.requested() => false,
        };
        // The locks of the sessions end with them.
        if let Some(databases) = databases {
            let closing = async { tokio::join!(databases.events.close(), databases.projections.close()) };
            let _ = timeout(CLOSING_TIME, closing).await;
        }
        if !goes_on {
            return;
        }
    }
}

/// The databases, in which old events are read as new ones, as whoever handles events does.
fn connect(config: &Config, connections: u32) -> anyhow::Result<Databases> {
    let databases = Databases::connect_lazily(config, BUILDS, connections, PATIENCE, "")?;
    Ok(databases.with_upcasts(&config.upcasts))
}

/// Where and for whom versions are built.
struct Place {
    config: Arc<Config>,
    databases: Arc<Databases>,
    builder: String,
    registry: Arc<Registry>,
}

impl Place {
    fn operator(&self) -> Operator<'_> {
        Operator {
            databases: &self.databases,
            declared: &self.config.processors,
            name: &self.builder,
            native: Some(&self.registry),
        }
    }

    /// Builds the declared version of a projector. One in Rust does not share a thread with the daemon.
    async fn build(&self, name: &str) -> Result<Built, OperatorError> {
        let is_native = |handling: &Handling| matches!(handling, Handling::Native(_));
        let declaration = self.config.processors.iter().find(|one| one.name == name);
        if !declaration.is_some_and(|one| is_native(&one.handling)) {
            return self.build_here(name).await;
        }
        let (config, builder, registry) =
            (Arc::clone(&self.config), self.builder.clone(), Arc::clone(&self.registry));
        let processor = name.to_owned();
        work_in_thread(format!("build {name}"), move || async move {
            // Connections belong to the runtime that they were made in.
            let connections = CONNECTIONS + u32::try_from(config.rebuild.workers).unwrap_or(1);
            let databases = connect(&config, connections);
            let databases = databases.map_err(|error| OperatorError::Rebuild(format!("{error:#}")))?;
            let place = Self { config, databases: Arc::new(databases), builder, registry };
            place.build_here(&processor).await
        })
        .await
    }

    async fn build_here(&self, name: &str) -> Result<Built, OperatorError> {
        let note = |text: &str| info!(processor = name, "{text}");
        let listener = Listener { progress: &|_| {}, note: &note };
        let rebuild = self.config.rebuild;
        let effort = Effort {
            share: rebuild.share,
            workers: rebuild.workers,
            database_size_max: rebuild.database_size_max,
        };
        self.operator().build_unattended(name, effort, listener).await
    }
}

/// When a build is tried again.
struct Rest {
    until: Instant,
    pause: Duration,
    /// Whether an operator has to agree, too.
    waits: bool,
}

/// The builds of one configuration.
struct Builder {
    place: Arc<Place>,
    running: JoinSet<Result<Built, OperatorError>>,
    names: HashMap<Id, String>,
    resting: BTreeMap<String, Rest>,
}

impl Builder {
    fn new(place: Place) -> Self {
        Self {
            place: Arc::new(place),
            running: JoinSet::new(),
            names: HashMap::new(),
            resting: BTreeMap::new(),
        }
    }

    /// Builds until another configuration is followed; `false`: none will be. Who reads the same one again wants everything tried
    /// again at once.
    async fn run(
        mut self,
        activity: &mut watch::Receiver<Builds>,
        configs: &mut watch::Receiver<Arc<Config>>,
    ) -> bool {
        loop {
            let is_busy = match self.place.operator().list_wanted().await {
                Ok(wanted) => self.follow(wanted).await,
                Err(error) => {
                    debug!(%error, "could not look for versions to build");
                    true
                }
            };
            let pause = if is_busy { BUSY_INTERVAL } else { IDLE_INTERVAL };
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => self.note_ended(ended),
                // An operator has begun, and may be killed.
                Ok(()) = activity.changed(), if !is_busy => {}
                changed = configs.changed() => {
                    let is_same = Arc::ptr_eq(&configs.borrow_and_update(), &self.place.config);
                    if changed.is_err() || !is_same {
                        return changed.is_ok();
                    }
                    self.resting.clear();
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Does what is wanted, as far as there is room. Returns whether something is left to do.
    async fn follow(&mut self, wanted: Vec<Wanted>) -> bool {
        let is_busy = !wanted.is_empty();
        debug!(wanted = wanted.len(), "looked for versions to build");
        for Wanted { processor, wish, is_approved, stands } in wanted {
            match wish {
                Wish::Nothing => {}
                Wish::Build => self.build(processor, stands && !is_approved),
                Wish::Abandon | Wish::Tidy => self.clear(&processor, wish).await,
            }
        }
        is_busy
    }

    async fn clear(&self, processor: &str, wish: Wish) {
        let note = |text: &str| info!(processor, "{text}");
        let listener = Listener { progress: &|_| {}, note: &note };
        match self.place.operator().clear_rebuild(processor, listener).await {
            Ok(Some(version)) => {
                info!(processor, version, "gives up a version that is not declared any more");
            }
            Ok(None) => debug!(processor, ?wish, "removed what was left of a version, if anything was"),
            Err(error @ OperatorError::Building { .. }) => {
                debug!(processor, %error, "leaves a version alone")
            }
            Err(error) => debug!(processor, %error, "could not remove a version"),
        }
    }

    /// Begins to build the declared version, or goes on with it. `stands`: what is there waits for an operator, or somebody has worked
    /// on it just now. Where another daemon has put something in its place and has left that, nobody is waited for.
    fn build(&mut self, processor: String, stands: bool) {
        let is_running = self.names.values().any(|name| *name == processor);
        let has_room = (self.names.len() as i64) < self.place.config.rebuild.parallelism;
        let rests = self
            .resting
            .get(&processor)
            .is_some_and(|rest| Instant::now() < rest.until || (rest.waits && stands));
        if is_running || rests || !has_room {
            return;
        }
        let (place, name) = (Arc::clone(&self.place), processor.clone());
        let task = self.running.spawn(async move { place.build(&name).await });
        self.names.insert(task.id(), processor);
    }

    fn rest_shortly(&mut self, processor: String) {
        let until = Instant::now() + BUSY_INTERVAL;
        self.resting.insert(processor, Rest { until, pause: PAUSES.0, waits: false });
    }

    fn note_ended(&mut self, ended: Result<(Id, Result<Built, OperatorError>), JoinError>) {
        let (id, built) = match ended {
            Ok((id, built)) => (id, Some(built)),
            Err(error) => (error.id(), None),
        };
        let Some(processor) = self.names.remove(&id) else { return };
        let former = self.resting.remove(&processor);
        // Who has agreed once need not wait; but a check that still fails is not run all the time.
        let has_waited = former.as_ref().is_some_and(|rest| rest.waits);
        let pause = former.map_or(PAUSES.0, |rest| (rest.pause * 2).min(PAUSES.1));
        let waits = match built {
            Some(Ok(Built::NotWanted)) => {
                debug!(processor, "somebody has decided otherwise about a version");
                return;
            }
            Some(Ok(Built::GivenUp)) => {
                debug!(processor, "somebody has given up a version while it was built");
                return self.rest_shortly(processor);
            }
            // Whoever builds it may be killed, so it is looked again shortly.
            Some(Err(error @ OperatorError::Building { .. })) => {
                debug!(processor, %error, "leaves a version to others");
                return self.rest_shortly(processor);
            }
            Some(Ok(Built::Live { version, way })) => return tell_live(&processor, version, &way),
            Some(Ok(Built::Waits(waits))) => {
                let remedy = waits.remedy;
                warn!(processor, remedy, "a version that was built is not live: {}", waits.because);
                true
            }
            Some(Err(error)) => {
                warn!(processor, %error, "a version could not be built");
                false
            }
            None => {
                warn!(processor, "the build of a version has panicked");
                false
            }
        };
        let until = Instant::now() + if waits && !has_waited { Duration::ZERO } else { pause };
        let rest = Rest { until, pause, waits };
        self.resting.insert(processor, rest);
    }
}

fn tell_live(processor: &str, version: i32, way: &Way) {
    match way {
        Way::Merged(rows) => {
            info!(processor, version, rows, "version {version} is live: its rows were merged")
        }
        Way::Swapped(archive) => {
            info!(
                processor,
                version, archive, "version {version} is live: the former tables are in {archive}"
            );
        }
    }
}
