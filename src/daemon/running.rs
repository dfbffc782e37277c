//! `espd run`: from the configuration to the end of the last worker.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::announce::{announce, summarise};
use super::companions::{Companions, Heard, Told};
use super::exclusion::Exclusion;
use super::plan::{resting, supervision_plan};
use super::readiness::wait_until_ready;
use super::reload::{Configured, Examined};
use super::requests::{REQUESTS_MAX, ReloadOrder, Reloaded};
use super::worker_table_place::WorkerTablePlace;
use crate::admin::{Endpoint, Limits};
use crate::config::{Config, DATABASE_URL, find_wrong_variable};
use crate::embedded::EmbeddedPostgres;
use crate::handlers::native::Registry;
use crate::operations::check::require_own_tables;
use crate::operations::databases::{PRIVATE_FOLDER, start_private};
use crate::postgres::query_text::show_literals;
use crate::process::executable::Executable;
use crate::process::exit_code::{Exit, ExitCode};
use crate::process::orphans::adopt_orphans;
use crate::process::signal::Request;
use crate::process::systemd::Systemd;
use crate::processing::tracker::Owner;
use crate::supervision::{Ending, Snapshot, Supervisor, SupervisorRequest};
use crate::telemetry;

/// How long it may take until the supervisor shows workers that it is asked to run.
const SHOWING_TIME: Duration = Duration::from_secs(1);

/// What follows the end of the daemon.
#[derive(Debug)]
pub(super) enum Afterwards {
    /// The process ends.
    End,
    /// The program was replaced by another one, which runs in this process.
    StartAgain(Executable),
}

/// Boots in one order: log, admin endpoint, database, checks, workers. The caller listens to signals already.
pub(super) async fn run(
    mut config: Config,
    file: PathBuf,
    registry: Arc<Registry>,
    requests: mpsc::Receiver<Request>,
) -> anyhow::Result<Afterwards> {
    telemetry::start(&config.log);
    if let Some(wrong) = find_wrong_variable() {
        warn!(fault = wrong.message, "the environment variable RUST_LOG is passed over");
    }
    show_literals(config.log.query_literals);
    let systemd = Systemd::from_environment();
    info!(version = env!("CARGO_PKG_VERSION"), processors = config.processors.len(), "espd starts");
    let start_endpoint = |settings| Endpoint::start(settings, Limits::default());
    let endpoint = config.admin.as_ref().map(start_endpoint).transpose()?;
    let server = provide_database(&mut config, Path::new(PRIVATE_FOLDER)).await?;
    let sinks = StatusSinks { systemd: &systemd, endpoint: endpoint.as_ref() };
    sinks.show_config(&config);
    let private = server.as_ref().and(config.event_store.url.clone());
    let executable = Executable::of_this_process().ok();
    let configured = Configured { file, config, private, registry, executable };
    let outcome = work(configured, requests, sinks).await;
    if !matches!(outcome, Ok(Afterwards::StartAgain(_))) {
        systemd.stopping();
    }
    if let Some(endpoint) = endpoint {
        endpoint.stop().await;
    }
    if let Some(server) = server {
        server.stop().await;
    }
    if outcome.is_ok() {
        info!("espd has stopped");
    }
    outcome
}

/// Starts the private PostgreSQL if the configuration names no database.
async fn provide_database(config: &mut Config, folder: &Path) -> anyhow::Result<Option<EmbeddedPostgres>> {
    if config.event_store.url.is_some() {
        return Ok(None);
    }
    let (server, url) = start_private(folder).await?;
    info!(DATABASE_URL = url.expose(), "no database is configured: running a private PostgreSQL");
    if std::env::var(DATABASE_URL).is_ok_and(|other| !other.is_empty() && other != url.expose()) {
        warn!(
            advice = "write url = \"${DATABASE_URL}\" under [event_store], or unset the variable",
            "DATABASE_URL names another database, which this daemon does not work on, while `espctl` does"
        );
    }
    config.event_store.url = Some(url);
    Ok(Some(server))
}

/// Where the daemon shows how it is: systemd and the admin endpoint.
#[derive(Clone, Copy)]
struct StatusSinks<'o> {
    systemd: &'o Systemd,
    endpoint: Option<&'o Endpoint>,
}

impl StatusSinks<'_> {
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

/// Waits for the database, then runs the workers.
async fn work(
    mut configured: Configured,
    mut requests: mpsc::Receiver<Request>,
    sinks: StatusSinks<'_>,
) -> anyhow::Result<Afterwards> {
    loop {
        let private = configured.private.is_some();
        match wait_until_ready(&configured.config, private, &mut requests, sinks.systemd).await? {
            Some(Request::Stop) => return Ok(Afterwards::End),
            Some(Request::Reload) => {
                // The databases do not answer yet. Each worker examines its own handlers before it runs them.
                let examined = configured.read_again().await;
                if let Reloaded::Changed(_) = configured.follow(examined) {
                    sinks.show_config(&configured.config);
                }
            }
            None => break,
        }
    }
    supervise(configured, requests, sinks).await
}

/// Runs the workers until they have stopped after a request.
async fn supervise(
    mut configured: Configured,
    requests: mpsc::Receiver<Request>,
    sinks: StatusSinks<'_>,
) -> anyhow::Result<Afterwards> {
    configured.require_work()?;
    require_own_tables(&configured.config)?;
    let (executable, starts_again) = (configured.executable.take(), Cell::new(false));
    let owner = Owner::generate();
    adopt_orphans();
    let supervisor = Supervisor::new(supervision_plan(&configured.config, &owner)?).watched_by(sinks.systemd);
    let supervisor = supervisor.with_closures(configured.registry.hooks.clone());
    sinks.show_workers(&supervisor);
    let (supervisor_requests, requested) = mpsc::channel(REQUESTS_MAX);
    let snapshots = supervisor.snapshots();
    let (companions, told, heard) = Companions::start(&configured, &owner, snapshots.clone())?;
    let Heard { ordered, exclusion } = heard;
    let announced = announce(sinks.systemd, snapshots.clone(), exclusion.clone());
    let announcing = async {
        announced.await;
        std::future::pending::<()>().await;
    };
    let request_loop = RequestLoop {
        configured,
        executable: executable.as_ref(),
        starts_again: &starts_again,
        owner,
        supervisor_requests,
        told,
        exclusion,
        sinks,
        snapshots,
    };
    let ending = tokio::select! {
        ending = supervisor.run(requested) => ending,
        failed = request_loop.run(requests, ordered) => return failed.map(|()| Afterwards::End),
        () = announcing => bail!("announcing never ends"),
    };
    companions.end().await;
    follow_ending(executable.filter(|_| starts_again.get()), exit_of(ending))
}

/// What follows the end of the workers. `executable`: what was asked to run in place of this program.
fn follow_ending(executable: Option<Executable>, exit: Option<Exit>) -> anyhow::Result<Afterwards> {
    match (executable, exit) {
        (None, None) => Ok(Afterwards::End),
        (None, Some(exit)) => Err(exit.into()),
        (Some(executable), None) => Ok(Afterwards::StartAgain(executable)),
        (Some(_), Some(exit)) if exit.code == ExitCode::Interrupted => Err(exit.into()),
        (Some(executable), Some(exit)) => {
            warn!(error = exit.message, "starting again all the same");
            Ok(Afterwards::StartAgain(executable))
        }
    }
}

/// How the daemon ends if its workers have not ended well.
fn exit_of(ending: Ending) -> Option<Exit> {
    let (code, message) = match ending {
        Ending::Orderly => return None,
        Ending::Unclean(workers) => {
            let words = "not all workers have ended by themselves in time";
            (ExitCode::Unclean, format!("{words}: {}", workers.join(", ")))
        }
        Ending::Forced => (
            ExitCode::Interrupted,
            "asked twice to stop: unfinished batches will be handled again".to_owned(),
        ),
    };
    Some(Exit { code, message })
}

/// What follows a look at the program and at the configuration.
enum Next {
    /// The program was replaced, and its handlers are those of another one.
    StartAgain,
    Follow(Examined),
}

/// Carries out the requests that signals make, and operators through the database.
struct RequestLoop<'o> {
    configured: Configured,
    executable: Option<&'o Executable>,
    /// Whether the daemon was asked to stop so that another program runs in its place.
    starts_again: &'o Cell<bool>,
    owner: Owner,
    supervisor_requests: mpsc::Sender<SupervisorRequest>,
    told: Told,
    exclusion: watch::Receiver<Exclusion>,
    sinks: StatusSinks<'o>,
    snapshots: watch::Receiver<Vec<Snapshot>>,
}

impl RequestLoop<'_> {
    /// Runs until it fails; otherwise it never returns.
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut ordered: mpsc::Receiver<ReloadOrder>,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(Request::Stop) => self.stop().await?,
                    Some(Request::Reload) => {
                        let outcome = self.reload(&mut requests).await?;
                        // Where nobody writes, the log has it.
                        outcome.map(|outcome| self.told.signalled.try_send(outcome));
                    }
                    None => bail!("the thread that listens to signals is gone"),
                },
                Some(order) = ordered.recv() => {
                    let outcome = self.reload(&mut requests).await?;
                    // Nobody waits for the outcome any more where it cannot be sent.
                    outcome.map(|outcome| order.send(outcome));
                }
                Ok(()) = self.exclusion.changed() => self.follow_exclusion().await?,
            }
        }
    }

    async fn stop(&self) -> anyhow::Result<()> {
        self.starts_again.set(false);
        self.sinks.systemd.stopping();
        self.ask(SupervisorRequest::Stop).await
    }

    /// Reads the configuration again, and has the supervisor follow it if it has changed. Either way the reader of `place`
    /// learns of it. `None`: the daemon was asked to stop meanwhile.
    async fn reload(&mut self, requests: &mut mpsc::Receiver<Request>) -> anyhow::Result<Option<Reloaded>> {
        self.sinks.systemd.reloading();
        let Some(next) = self.examine(requests).await else { return self.stop().await.map(|()| None) };
        let examined = match next {
            Next::StartAgain => {
                self.starts_again.set(true);
                self.ask(SupervisorRequest::Stop).await?;
                return Ok(Some(Reloaded::Changed(vec![
                    "the program has changed: starting again".to_owned(),
                ])));
            }
            Next::Follow(examined) => examined,
        };
        let reloaded = self.configured.follow(examined);
        if let Reloaded::Changed(_) = reloaded {
            self.sinks.show_config(&self.configured.config);
            self.follow_configuration().await?;
        }
        if let Reloaded::Unchanged = reloaded {
            // Whoever has removed what was in the way of a version says so in this way.
            self.told.follow.send_modify(|_| ());
        }
        if !matches!(reloaded, Reloaded::Refused(_)) {
            self.told.place.send_replace(self.place()?);
        }
        self.sinks.systemd.ready(&summarise(&self.snapshots.borrow(), &self.exclusion.borrow()));
        Ok(Some(reloaded))
    }

    /// Has nothing handled any more once a newer espd has declared the tables to be not for this program, and everything again once
    /// they are.
    async fn follow_exclusion(&mut self) -> anyhow::Result<()> {
        match self.exclusion.borrow_and_update().reason() {
            Some(reason) => {
                error!(reason, "the schema is not for this program any more: nothing is handled by it");
            }
            None => info!("the schema is for this program again: the processors go on"),
        }
        self.follow_configuration().await?;
        // The rows that say what is waited for stay until there are those of the workers.
        if self.exclusion.borrow().reason().is_none() && !self.configured.config.processors.is_empty() {
            let shown = self.snapshots.wait_for(|workers| !workers.is_empty());
            let _ = timeout(SHOWING_TIME, shown).await;
        }
        self.told.place.send_replace(self.place()?);
        Ok(())
    }

    /// Has the supervisor and the builder follow the configuration, or rest while this program is excluded.
    async fn follow_configuration(&self) -> anyhow::Result<()> {
        let config = &self.configured.config;
        let plan = supervision_plan(config, &self.owner)?;
        let is_excluded = self.exclusion.borrow().reason().is_some();
        let (plan, config) = if is_excluded { resting(plan, config) } else { (plan, config.clone()) };
        self.ask(SupervisorRequest::Replace(Box::new(plan))).await?;
        self.told.follow.send_replace(Arc::new(config));
        Ok(())
    }

    /// Where the states of the workers are written, and what else is done there.
    fn place(&self) -> anyhow::Result<WorkerTablePlace> {
        let place = self.configured.worker_table_place()?;
        Ok(match self.exclusion.borrow().reason() {
            Some(reason) => place.held(&self.configured.config, reason),
            None => place,
        })
    }

    /// Looks at the program and at the configuration, which may take a while: a further request to reload begins anew, and
    /// one to stop ends it (`None`).
    async fn examine(&self, requests: &mut mpsc::Receiver<Request>) -> Option<Next> {
        loop {
            let examining = async {
                let is_replaced = self.executable.is_some_and(Executable::is_replaced);
                if is_replaced && self.configured.can_start_again().await {
                    return Next::StartAgain;
                }
                Next::Follow(self.configured.examine().await)
            };
            tokio::select! {
                next = examining => return Some(next),
                request = requests.recv() => match request {
                    Some(Request::Reload) => {}
                    Some(Request::Stop) | None => return None,
                },
            }
        }
    }

    async fn ask(&self, request: SupervisorRequest) -> anyhow::Result<()> {
        self.supervisor_requests.send(request).await.ok().context("the supervisor has ended")
    }
}
