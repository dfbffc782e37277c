//! The admin endpoint: probes, metrics, statuses, and what operators do, over HTTP.
//!
//! The endpoint has a thread of its own beside the supervisor's loop, so that it can tell when that loop is stuck, and so
//! that nothing that happens in the endpoint delays the loop. It has at most two connections to each database (and more
//! for the doctor), and uses them only to answer requests. Clients that are slow, send much or are many are
//! refused: see [`Limits`].
//!
//! ```text
//!  connections ──► requests ──► access         is the request allowed?
//!                     │
//!                     ├──► health              is the daemon alive and ready?
//!                     ├──► metrics             statuses and workers as numbers
//!                     ├──► doctor              what is wrong with the databases
//!                     ├──► dead_letters        which dead letters a request is about
//!                     ├──► emissions           which pending emissions a request is about
//!                     ├──► events              events as they settle, without an end
//!                     ├──► waiting             how far a processor has to be
//!                     └──► changes             what operators do
//! ```

mod access;
mod answer;
mod body;
mod changes;
mod connections;
mod dead_letters;
mod deadline;
mod doctor;
mod emissions;
mod events;
mod exposition;
mod health;
mod listener;
mod metrics;
pub(crate) mod probe;
mod requests;
mod route;
mod waiting;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

pub(crate) use connections::Limits;

use crate::config::{AdminSettings, Config};
use crate::shutdown::{self, Shutdown, ShutdownHandle};
use crate::supervision::{LoopHeartbeat, Snapshot, Supervisor};
use access::Access;
use listener::Listener;
use requests::RequestHandler;

/// How long a stop waits for answers that are being given.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A running endpoint. It ends when this value is dropped; [`Self::stop`] lets it finish its answers.
#[derive(Debug)]
pub(crate) struct Endpoint {
    url: String,
    view: watch::Sender<View>,
    stop: ShutdownHandle,
    ended: oneshot::Receiver<()>,
}

/// What the endpoint knows of the daemon. All but the first are set while the daemon starts.
#[derive(Debug, Clone)]
struct View {
    access: Access,
    config: Option<Arc<Config>>,
    workers: Option<Workers>,
}

#[derive(Debug, Clone)]
struct Workers {
    snapshots: watch::Receiver<Vec<Snapshot>>,
    heartbeat: LoopHeartbeat,
}

impl Endpoint {
    /// Listens and answers from now on, at first that the daemon is starting.
    ///
    /// # Errors
    /// The address is taken, or does not belong to this machine.
    pub(crate) fn start(settings: &AdminSettings, limits: Limits) -> anyhow::Result<Self> {
        let listener = Listener::bind(&settings.listen)?;
        let url = listener.url();
        let access = Access::new(settings);
        let (view, viewed) = watch::channel(View { access, config: None, workers: None });
        let (stop, stopping) = shutdown::channel();
        let (end, ended) = oneshot::channel();
        let handler = RequestHandler::new(viewed, limits.request_time, stopping.clone());
        let serve = move || {
            if let Err(error) = serve(listener, handler, limits, stopping) {
                warn!(%error, "the admin endpoint has ended; the processors continue");
            }
            // The receiver is gone if the endpoint was dropped.
            let _ = end.send(());
        };
        thread::Builder::new().name("admin".into()).spawn(serve).context("the admin endpoint")?;
        info!(url, "the admin endpoint listens");
        Ok(Self { url, view, stop, ended })
    }

    /// The URL of the endpoint: `http://127.0.0.1:4680`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Tells the endpoint the configuration: what is declared, and where the databases are. Call it again after a reload.
    pub(crate) fn show_config(&self, config: &Config) {
        self.view.send_modify(|view| {
            view.access.follow(config.admin.as_ref());
            view.config = Some(Arc::new(config.clone()));
        });
    }

    /// Tells the endpoint where to read the state of the workers.
    pub(crate) fn show_workers(&self, supervisor: &Supervisor) {
        let workers = Workers { snapshots: supervisor.snapshots(), heartbeat: supervisor.heartbeat() };
        self.view.send_modify(|view| view.workers = Some(workers));
    }

    /// Accepts no more connections, and waits a few seconds for the answers that are being given.
    pub(crate) async fn stop(self) {
        self.stop.request();
        let _ = tokio::time::timeout(DRAIN_TIME + Duration::from_secs(1), self.ended).await;
    }
}

fn serve(listener: Listener, handler: RequestHandler, limits: Limits, stop: Shutdown) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let handler = Arc::new(handler);
        connections::accept(listener.into_async()?, Arc::clone(&handler), limits, stop).await;
        handler.close().await;
        Ok(())
    })
}
