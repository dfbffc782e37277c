//! What the handlers of requests share.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::StatusCode;
use espd::prelude::sqlx::PgPool;
use espd::prelude::*;
use espd::{Config, Processors, Running, WaitError};

use crate::answer::Failure;

/// How long a query waits for a projector that has not come so far.
const PATIENCE: Duration = Duration::from_secs(5);

/// The store, its aggregates, and the tables.
#[derive(Clone)]
pub struct Service {
    pub repository: Repository<PostgresEventStore>,
    pub pool: PgPool,
    processors: Processors,
}

/// The program: the processors of `processors/` need no Rust.
pub fn program() -> Program {
    Program::new()
}

impl Service {
    /// Migrates the database, starts the processors as tasks of this process, and connects to the store. The configuration is the file
    /// that TODO_CONFIG names, or `espd.toml` in the current folder.
    pub async fn start(url: &str) -> Result<(Self, Running), Box<dyn std::error::Error>> {
        let file = PathBuf::from(std::env::var_os("TODO_CONFIG").unwrap_or("espd.toml".into()));
        let database = url.to_owned();
        let variable = move |name: &str| (name == "DATABASE_URL").then(|| database.clone());
        let config = Config::load_with(&file, &variable)?;
        Program::migrate(&config).await?;
        let running = program().start(&config).await?;
        let pool = PgPool::connect(url).await?;
        let repository = Repository::new(running.event_store().clone());
        let processors = Processors::new(pool.clone(), "espd")?;
        Ok((Self { repository, pool, processors }, running))
    }

    /// Waits until a projector has handled everything up to a position: who reads after that sees what was written there.
    pub async fn wait_for(&self, projector: &str, position: Option<i64>) -> Result<(), Failure> {
        let Some(position) = position else { return Ok(()) };
        match self.processors.wait_for(projector, position, PATIENCE).await {
            Ok(_) => Ok(()),
            Err(WaitError::TimedOut { .. }) => {
                let message = format!("position {position} is not shown yet: try again");
                Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, "not_yet", message))
            }
            Err(error) => Err(Failure::unavailable(&error)),
        }
    }
}
