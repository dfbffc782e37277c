//! The admin endpoint: probes, metrics, statuses, and what operators do, over HTTP.
//!
//! It lives in a thread of its own beside the supervisor's loop, so that it can tell when that loop stands
//! still, and so that nothing that happens here can hold it up. It has at most two connections to a
//! database, and looks at it only when it is asked something. Whoever is slow, big or many is turned away:
//! see [`Limits`].
//!
//! ```text
//!  connections ──► requests ──► access     who asks, and may they?
//!                     │
//!                     ├──► health          does it live, can it work?
//!                     ├──► metrics         statuses and workers as numbers
//!                     └──► operator        what espctl does as well
//! ```

mod access;
mod answer;
mod body;
mod connections;
mod dead_letters;
mod exposition;
mod health;
mod listener;
mod metrics;
pub(crate) mod probe;
mod requests;
mod route;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

pub use connections::Limits;

use crate::config::{AdminSettings, Config};
use crate::shutdown::{self, Shutdown, ShutdownHandle};
use crate::supervision::{LoopHeartbeat, Snapshot, Supervisor};
use listener::Listener;
use requests::Desk;

/// How long a stop waits for answers that are under way.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A running endpoint. It ends with this value; [`Self::stop`] lets it finish its answers.
#[derive(Debug)]
pub struct Endpoint {
    url: String,
    view: watch::Sender<View>,
    stop: ShutdownHandle,
    ended: oneshot::Receiver<()>,
}

/// What the endpoint knows of the daemon. It grows while the daemon starts.
#[derive(Debug, Clone, Default)]
struct View {
    config: Option<Arc<Config>>,
    workers: Option<Workers>,
}

#[derive(Debug, Clone)]
struct Workers {
    snapshots: watch::Receiver<Vec<Snapshot>>,
    heartbeat: LoopHeartbeat,
}

impl Endpoint {
    /// Listens, and answers from now on: at first that the daemon is starting.
    ///
    /// # Errors
    /// The address is taken, or is not this machine's.
    pub fn start(settings: &AdminSettings, limits: Limits) -> anyhow::Result<Self> {
        let listener = Listener::bind(&settings.listen)?;
        let url = listener.url();
        let (view, viewed) = watch::channel(View::default());
        let (stop, stopping) = shutdown::channel();
        let (end, ended) = oneshot::channel();
        let desk = Desk::new(settings.clone(), viewed, limits.request_time);
        let serve = move || {
            if let Err(error) = serve(listener, desk, limits, stopping) {
                warn!(%error, "the admin endpoint has ended; the processors go on");
            }
            // Nobody may be waiting for it.
            let _ = end.send(());
        };
        thread::Builder::new().name("admin".into()).spawn(serve).context("the admin endpoint")?;
        info!(url, "the admin endpoint listens");
        Ok(Self { url, view, stop, ended })
    }

    /// Where it is: `http://127.0.0.1:4680`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Shows what is declared, and where the databases are. May be said again after a change.
    pub fn show_config(&self, config: &Config) {
        self.view.send_modify(|view| view.config = Some(Arc::new(config.clone())));
    }

    /// Shows the workers.
    pub fn show_workers(&self, supervisor: &Supervisor) {
        let workers = Workers { snapshots: supervisor.snapshots(), heartbeat: supervisor.heartbeat() };
        self.view.send_modify(|view| view.workers = Some(workers));
    }

    /// Takes no more connections, and waits a few seconds for the answers that are under way.
    pub async fn stop(self) {
        self.stop.request();
        let _ = tokio::time::timeout(DRAIN_TIME + Duration::from_secs(1), self.ended).await;
    }
}

fn serve(listener: Listener, desk: Desk, limits: Limits, stop: Shutdown) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let desk = Arc::new(desk);
        connections::accept(listener.into_async()?, Arc::clone(&desk), limits, stop).await;
        desk.close().await;
        Ok(())
    })
}
