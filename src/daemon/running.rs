//! `espd run`: from the configuration to the end of the last worker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::announce::{announce, summarise};
use super::plan::supervision_plan;
use super::readiness::wait_until_fit;
use super::reload::Configured;
use crate::admin::{Endpoint, Limits};
use crate::config::Config;
use crate::daemon::roster::{Roster, RosterPlace};
use crate::embedded::EmbeddedPostgres;
use crate::handlers::native::Registry;
use crate::operations::databases::{PRIVATE_FOLDER, start_private};
use crate::process::exit_code::{Exit, ExitCode};
use crate::process::service_manager::ServiceManager;
use crate::process::signal::Request;
use crate::processing::tracker::Owner;
use crate::supervision::{Ending, Order, Snapshot, Supervisor};
use crate::{shutdown, telemetry};

/// Orders that the supervisor has not looked at yet. Nobody gives more than a few.
const ORDERS_MAX: usize = 4;

/// How long the end of the daemon waits for the roster.
const ROSTER_GRACE: Duration = Duration::from_secs(2);

/// Boot, in one order: log, database, checks, workers. Signals are listened to already.
pub(super) async fn run(
    mut config: Config,
    file: PathBuf,
    registry: Arc<Registry>,
    requests: mpsc::Receiver<Request>,
) -> anyhow::Result<()> {
    telemetry::start(&config.log);
    let manager = ServiceManager::from_environment();
    info!(version = env!("CARGO_PKG_VERSION"), processors = config.processors.len(), "espd starts");
    let start_endpoint = |settings| Endpoint::start(settings, Limits::default());
    let endpoint = config.admin.as_ref().map(start_endpoint).transpose()?;
    let server = provide_database(&mut config, Path::new(PRIVATE_FOLDER)).await?;
    if let Some(endpoint) = &endpoint {
        endpoint.show_config(&config);
    }
    let private = server.as_ref().and(config.event_store.url.clone());
    let observers = Observers { manager: &manager, endpoint: endpoint.as_ref() };
    let outcome = work(Configured { file, config, private, registry }, requests, observers).await;
    manager.stopping();
    if let Some(endpoint) = endpoint {
        endpoint.stop().await;
    }
    if let Some(server) = server {
        server.stop().await;
    }
    info!("espd has stopped");
    outcome
}

/// Starts the private PostgreSQL where the configuration names no database.
async fn provide_database(config: &mut Config, folder: &Path) -> anyhow::Result<Option<EmbeddedPostgres>> {
    if config.event_store.url.is_some() {
        return Ok(None);
    }
    let (server, url) = start_private(folder).await?;
    info!(DATABASE_URL = url.expose(), "no database is configured: running a private PostgreSQL");
    config.event_store.url = Some(url);
    Ok(Some(server))
}

/// Who sees from outside how the daemon is.
#[derive(Clone, Copy)]
struct Observers<'o> {
    manager: &'o ServiceManager,
    endpoint: Option<&'o Endpoint>,
}

impl Observers<'_> {
    fn show_config(&self, config: &Config) {
        if let Some(endpoint) = self.endpoint {
            endpoint.show_config(config);
        }
    }

    fn show_workers(&self, supervisor: &Supervisor<'_>) {
        if let Some(endpoint) = self.endpoint {
            endpoint.show_workers(supervisor);
        }
    }
}

async fn work(
    mut configured: Configured,
    mut requests: mpsc::Receiver<Request>,
    observers: Observers<'_>,
) -> anyhow::Result<()> {
    loop {
        let private = configured.private.is_some();
        match wait_until_fit(&configured.config, private, &mut requests, observers.manager).await? {
            Some(Request::Stop) => return Ok(()),
            Some(Request::Reload) => {
                if configured.reload() {
                    observers.show_config(&configured.config);
                }
            }
            None => break,
        }
    }
    supervise(configured, requests, observers).await
}

/// Runs the workers until they have stopped after a request.
async fn supervise(
    configured: Configured,
    requests: mpsc::Receiver<Request>,
    observers: Observers<'_>,
) -> anyhow::Result<()> {
    configured.require_processors()?;
    let owner = Owner::draw();
    let supervisor =
        Supervisor::new(supervision_plan(&configured.config, &owner)?).watched_by(observers.manager);
    observers.show_workers(&supervisor);
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let (place, places) = watch::channel(configured.roster_place()?);
    let (end, stop) = shutdown::channel();
    let snapshots = supervisor.snapshots();
    let writing = tokio::spawn(Roster::new(owner.clone(), snapshots.clone(), places).run(stop));
    let announcing = async {
        announce(observers.manager, snapshots.clone()).await;
        std::future::pending::<()>().await;
    };
    let steering = Steering { configured, owner, orders, place, observers, snapshots: snapshots.clone() };
    let ending = tokio::select! {
        ending = supervisor.run(ordered) => ending,
        steered = steering.steer(requests) => return steered,
        () = announcing => bail!("announcing never ends"),
    };
    end.request();
    // Whatever is left, its rows are outdated soon.
    let _ = tokio::time::timeout(ROSTER_GRACE, writing).await;
    match ending {
        Ending::Orderly => Ok(()),
        Ending::Forced => {
            let message = "asked twice to stop: batches were given up, they will be handled again".to_owned();
            Err(Exit { code: ExitCode::Interrupted, message }.into())
        }
    }
}

/// Passes requests on to those whom they concern.
struct Steering<'o> {
    configured: Configured,
    owner: Owner,
    orders: mpsc::Sender<Order>,
    /// Read by the roster.
    place: watch::Sender<RosterPlace>,
    observers: Observers<'o>,
    snapshots: watch::Receiver<Vec<Snapshot>>,
}

impl Steering<'_> {
    /// Never returns but with an error.
    async fn steer(mut self, mut requests: mpsc::Receiver<Request>) -> anyhow::Result<()> {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Stop => {
                    self.observers.manager.stopping();
                    self.order(Order::Stop).await?;
                }
                Request::Reload => {
                    self.observers.manager.reloading();
                    self.reload().await?;
                    self.observers.manager.ready(&summarise(&self.snapshots.borrow()));
                }
            }
        }
        bail!("nobody listens to signals any more")
    }

    async fn reload(&mut self) -> anyhow::Result<()> {
        if !self.configured.reload() {
            return Ok(());
        }
        self.observers.show_config(&self.configured.config);
        self.place.send_replace(self.configured.roster_place()?);
        self.order(Order::Replace(Box::new(supervision_plan(&self.configured.config, &self.owner)?))).await
    }

    async fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.send(order).await.ok().context("the supervisor has ended")
    }
}
