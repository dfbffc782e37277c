//! The daemon's configuration, and reading it again.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use sqlx::postgres::PgConnectOptions;
use tracing::{info, warn};

use super::program::add_registered;
use super::requests::Reloaded;
use super::worker_table::WorkerTablePlace;
use crate::config::{Config, DatabaseUrl};
use crate::diagnostic::Diagnostic;
use crate::handlers::native::Registry;
use crate::process::executable::Executable;
use crate::process::exit_code::Exit;

/// What a daemon is configured to do, and the file that says so.
pub(super) struct Configured {
    pub(super) file: PathBuf,
    pub(super) config: Config,
    /// The database of the private PostgreSQL; `None` if the configuration names a database.
    pub(super) private: Option<DatabaseUrl>,
    /// The processors that this program has registered.
    pub(super) registry: Arc<Registry>,
    /// The program that runs, if it is known.
    pub(super) executable: Option<Executable>,
}

impl Configured {
    /// Whether the program, which was replaced by another one, is to be started again: it has handlers, and the configuration
    /// is sound.
    pub(super) fn can_start_again(&self) -> bool {
        if self.registry.is_empty() {
            info!("the program has changed: the new one runs after a restart");
            return false;
        }
        let faults = self.read().err().unwrap_or_default();
        if faults.is_empty() {
            info!("the program has changed, and the handlers in it may have: starting again");
        }
        faults.is_empty()
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    fn read(&self) -> Result<Config, Vec<String>> {
        match Config::load(&self.file) {
            Ok(config) => self.accept(config),
            Err(invalid) => Err(invalid.diagnostics().iter().map(Diagnostic::render).collect()),
        }
    }

    /// Reads the configuration again. With any fault in the files, the daemon keeps what it has.
    pub(super) fn reload(&mut self) -> Reloaded {
        match self.read() {
            Ok(config) if config == self.config => {
                info!("the configuration was read again: nothing has changed");
                Reloaded::Unchanged
            }
            Ok(config) => Reloaded::Changed(self.replace(config)),
            Err(faults) => {
                for fault in &faults {
                    warn!(fault, "the configuration was read again and is wrong, keeping the old one");
                }
                Reloaded::Refused(faults)
            }
        }
    }

    /// Follows another configuration. Returns what is to be said about it.
    fn replace(&mut self, config: Config) -> Vec<String> {
        let processors = config.processors.len();
        info!(processors, "the configuration was read again and has changed");
        let mut report = vec![format!("processors: {processors}")];
        if config.log != self.config.log {
            let later = "the daemon's own log is as configured at its next start";
            info!("{later}");
            report.push(later.to_owned());
        }
        self.config = config;
        report
    }

    /// Completes a new configuration with what only this daemon knows.
    ///
    /// # Errors
    /// Why the configuration cannot be used.
    fn accept(&self, mut config: Config) -> Result<Config, Vec<String>> {
        let mut faults = add_registered(&mut config, &self.registry).err().unwrap_or_default();
        if config.processors.is_empty() {
            faults.push(NO_PROCESSOR.to_owned());
        }
        if config.event_store.url.is_none() {
            config.event_store.url = self.private.clone();
        }
        if config.event_store.url.is_none() {
            faults.push("a private PostgreSQL is started with the daemon only: restart espd".to_owned());
        }
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// Where this daemon writes the states of its workers.
    pub(super) fn worker_table_place(&self) -> anyhow::Result<WorkerTablePlace> {
        let url = self.config.direct_projections_url().or(self.config.direct_event_store_url());
        let url = url.context("the database is known by now")?;
        let database = PgConnectOptions::from_str(url.expose())?;
        let processors = self.config.processors.iter().map(|processor| processor.name.clone()).collect();
        Ok(WorkerTablePlace { database, schema: self.config.event_store.schema.clone(), processors })
    }

    /// Fails if there is nothing to run.
    pub(super) fn require_processors(&self) -> Result<(), Exit> {
        if self.config.processors.is_empty() { Err(Exit::configuration(NO_PROCESSOR)) } else { Ok(()) }
    }
}

const NO_PROCESSOR: &str = "no processor is declared: see `espctl config example`";
