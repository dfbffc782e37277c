//! The event store that a configuration describes, for the side that writes: with the layout, the names and the upcasts that the
//! processors have.

use anyhow::Context as _;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use super::{Config, Diagnostic, InvalidConfig};
use crate::store::PostgresEventStore;
use crate::store::layout::Layout;

impl PostgresEventStore {
    /// The event store of a configuration: its database, past a pooler if there is one, its layout, and its `[[upcast]]`s, so that
    /// old events are read here as processors read them. It connects when it is first used, with up to ten connections.
    ///
    /// Upcasts that a program declares are in `Program::event_store`.
    ///
    /// # Errors
    /// The configuration names no database.
    pub fn from_config(config: &Config) -> Result<Self, InvalidConfig> {
        let pool = connect(config).map_err(|error| refuse(&format!("{error:#}")))?;
        Self::from_config_on(pool, config)
    }

    /// As [`Self::from_config`], on connections of the caller.
    ///
    /// # Errors
    /// The configuration has a name that no schema can have.
    pub fn from_config_on(pool: PgPool, config: &Config) -> Result<Self, InvalidConfig> {
        let layout = Layout::new(&config.event_store.layout, &config.event_store.schema)
            .map_err(|error| refuse(&error.to_string()))?;
        Ok(Self::new(pool, layout.with_upcasts(&config.upcasts)))
    }
}

fn connect(config: &Config) -> anyhow::Result<PgPool> {
    let url = config.direct_event_store_url();
    let url = url.context("no database is named: write url under [event_store], or set DATABASE_URL")?;
    Ok(url.connector()?.keeping_isolation().searching_pool(PgPoolOptions::new()))
}

fn refuse(message: &str) -> InvalidConfig {
    InvalidConfig::one(Diagnostic::of_file("[event_store]", message))
}
