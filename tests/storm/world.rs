//! What the storm blows through: servers, daemons, and the folder that they live in.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use espd::schema::{migrate_event_store, migrate_processing};
use fastrand::Rng;
use sqlx::PgPool;
use tempfile::TempDir;

use crate::daemons::Daemon;
use crate::handlers::{Accepted, start_receiver};
use crate::http_receiver::Receiver;
use crate::operators::Operators;
use crate::processes::Process;
use crate::projectors::{VERSIONED, declare, write_config};
use crate::proxy::Proxy;
use crate::servers::Server;

/// Schema of espd's own tables.
pub const SCHEMA: &str = "espd";

/// Servers and daemons. Dropping it ends and removes everything.
pub struct World {
    // In the order in which they have to go.
    pub daemons: Vec<Daemon>,
    /// Those who do something with versions of projectors.
    pub operators: Operators,
    /// Which versions the daemons beside the events are told to run.
    pub declared: BTreeMap<&'static str, i32>,
    /// Events, and the projections of the daemons `here-1` and `here-2`.
    pub events: Server,
    /// The projections of the daemon `elsewhere`.
    pub projections: Server,
    /// What lies between the daemon `here-2` and the events.
    pub network: Proxy,
    /// Where the webhooks are sent to.
    _receiver: Receiver,
    /// What it has accepted.
    pub accepted: Accepted,
    folder: TempDir,
}

impl World {
    /// Starts the servers, makes espd's tables, configures the daemons.
    pub async fn create() -> anyhow::Result<Self> {
        // The servers may run as another user, who has to pass through.
        let passable = Permissions::from_mode(0o711);
        let folder = tempfile::Builder::new().prefix("espd-storm-").permissions(passable).tempdir()?;
        let events = Server::start(&folder.path().join("events")).await?;
        let projections = Server::start(&folder.path().join("projections")).await?;
        migrate(events.url(), true).await?;
        migrate(projections.url(), false).await?;
        let (receiver, accepted) = start_receiver().await;
        let hook = receiver.url();
        let here = write_config(folder.path(), ("here", "here"), events.url(), None, &hook)?;
        let elsewhere = write_config(
            folder.path(),
            ("elsewhere", "elsewhere"),
            events.url(),
            Some(projections.url()),
            &hook,
        )?;
        let network = Proxy::start(events.url()).await;
        let far = write_config(folder.path(), ("far", "here"), &network.url(), None, &hook)?;
        let daemon = |name, config| Daemon::new(name, folder.path(), config);
        // Two of a kind: each stands by for the other.
        let daemons = vec![daemon("here-1", here), daemon("here-2", far), daemon("elsewhere", elsewhere)];
        let operators = Operators::new(folder.path());
        let declared = VERSIONED.map(|(name, _)| (name, 1)).into();
        Ok(Self {
            daemons,
            operators,
            declared,
            events,
            projections,
            network,
            _receiver: receiver,
            accepted,
            folder,
        })
    }

    /// One of the servers, that of the events more often.
    pub fn server(&mut self, rng: &mut Rng) -> &mut Server {
        if rng.u8(..3) > 0 { &mut self.events } else { &mut self.projections }
    }

    /// The databases with projections, by a name for people.
    pub fn places(&self) -> [(&'static str, &Server); 2] {
        [("beside the events", &self.events), ("in another database", &self.projections)]
    }

    /// The daemons that project beside the events, and their workers.
    pub fn processes_here(&self) -> Vec<Process> {
        let here = self.daemons.iter().filter(|daemon| daemon.name.starts_with("here"));
        here.flat_map(Daemon::processes).collect()
    }

    /// Copies the server of the events as it is now. Returns where to.
    pub async fn copy_events(&mut self) -> anyhow::Result<PathBuf> {
        let copy = self.folder.path().join("copy");
        match std::fs::remove_dir_all(&copy) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.events.copy_data(&copy).await?;
        Ok(copy)
    }

    /// Puts a copy in the place of the server of the events.
    pub async fn replace_events(&mut self, copy: &Path, promote: bool) -> anyhow::Result<()> {
        self.events.replace_data(copy, promote).await
    }

    /// The configuration of the daemons in a place.
    pub fn config(&self, place: &str) -> PathBuf {
        self.folder.path().join(format!("{place}.toml"))
    }

    /// Declares a projector beside the events in the next version.
    pub fn raise_version(&mut self, name: &'static str) -> anyhow::Result<()> {
        let version = self.declared.entry(name).or_insert(1);
        *version += 1;
        declare(self.folder.path(), "here", name, *version)
    }

    /// Stops the servers. The daemons must have been stopped.
    pub async fn stop(&mut self) {
        self.events.stop().await;
        self.projections.stop().await;
    }

    /// Keeps the folder, with logs and data, so that a developer can find out what happened.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

async fn migrate(url: &str, with_events: bool) -> anyhow::Result<()> {
    let pool = PgPool::connect(url).await?;
    if with_events {
        migrate_event_store(&pool, SCHEMA).await?;
    }
    migrate_processing(&pool, SCHEMA).await?;
    pool.close().await;
    Ok(())
}
