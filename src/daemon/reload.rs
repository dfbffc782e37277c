//! The configuration as it is now, and reading it again.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use sqlx::postgres::PgConnectOptions;
use tracing::{info, warn};

use super::program::add_registered;
use crate::config::{Config, DatabaseUrl};
use crate::daemon::roster::RosterPlace;
use crate::diagnostic::Diagnostic;
use crate::handlers::native::Registry;
use crate::process::exit_code::Exit;

/// What a daemon is configured to do, and where that stands.
pub(super) struct Configured {
    pub(super) file: PathBuf,
    pub(super) config: Config,
    /// The database of the private PostgreSQL, where one was started.
    pub(super) private: Option<DatabaseUrl>,
    /// The processors that this program has registered.
    pub(super) registry: Arc<Registry>,
}

impl Configured {
    /// Reads the configuration again. With any fault in it, everything stays as it is. Returns whether the new
    /// one is in force.
    pub(super) fn reload(&mut self) -> bool {
        let read = match Config::load(&self.file) {
            Ok(config) => self.accept(config),
            Err(invalid) => Err(invalid.diagnostics().iter().map(Diagnostic::render).collect()),
        };
        match read {
            Ok(config) if config == self.config => {
                info!("the configuration was read again: nothing has changed");
                false
            }
            Ok(config) => {
                info!(
                    processors = config.processors.len(),
                    "the configuration was read again and has changed"
                );
                if config.log != self.config.log {
                    info!("the daemon's own log is as configured at its next start");
                }
                self.config = config;
                true
            }
            Err(faults) => {
                for fault in faults {
                    warn!(fault, "the configuration was read again and is wrong, keeping the old one");
                }
                false
            }
        }
    }

    /// The new configuration with what only this daemon knows, or why it cannot be used.
    fn accept(&self, mut config: Config) -> Result<Config, Vec<String>> {
        let mut faults = add_registered(&mut config, &self.registry).err().unwrap_or_default();
        if config.processors.is_empty() {
            faults.push(NO_PROCESSOR.to_owned());
        }
        if config.event_store.url.is_none() {
            config.event_store.url = self.private.clone();
        }
        if config.event_store.url.is_none() {
            faults.push("a private PostgreSQL is started with the daemon only: start espd anew".to_owned());
        }
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// Where the roster is.
    pub(super) fn roster_place(&self) -> anyhow::Result<RosterPlace> {
        let url = self.config.direct_projections_url().or(self.config.direct_event_store_url());
        let url = url.context("the database is known by now")?;
        let database = PgConnectOptions::from_str(url.expose())?;
        Ok(RosterPlace { database, schema: self.config.event_store.schema.clone() })
    }

    /// Whether there is anything to run.
    pub(super) fn require_processors(&self) -> Result<(), Exit> {
        if self.config.processors.is_empty() { Err(Exit::configuration(NO_PROCESSOR)) } else { Ok(()) }
    }
}

const NO_PROCESSOR: &str = "no processor is declared: see `espctl config example`";
