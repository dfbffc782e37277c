//! Waits for a database that is down, and checks whether the database is ready for espd.

use std::time::Duration;

use anyhow::bail;
use tokio::sync::mpsc;
use tracing::warn;

use super::waiting_rows::WaitingRows;
use crate::config::Config;
use crate::diagnostic::render_all;
use crate::operations::check::scope;
use crate::operations::databases::ways::{self, WayFault};
use crate::operations::databases::{CONNECT_TIMEOUT, Databases};
use crate::operations::declared_events::{apply_after_migration, compare, note_differences};
use crate::postgres::error::chain;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::process::exit_code::Exit;
use crate::process::signal::Request;
use crate::process::systemd::Systemd;
use crate::retry::{Retry, RetryPolicy};

/// How long systemd is asked to wait each time that the database has not answered. Longer than one try and the delay
/// after it.
const START_EXTENSION: Duration = Duration::from_secs(60);

/// Waits until the database answers, then checks it. Returns the request that came meanwhile, or `None` if the database
/// is ready.
///
/// # Errors
/// The database answers, but an operator has to do something before espd can use it. A database that does not answer is
/// no error: it may come up.
pub(super) async fn wait_until_ready(
    config: &Config,
    private: bool,
    requests: &mut mpsc::Receiver<Request>,
    systemd: &Systemd,
) -> anyhow::Result<Option<Request>> {
    let mut waiting = WaitingRows::new();
    let outcome = wait(config, private, requests, systemd, &mut waiting).await;
    waiting.remove().await;
    outcome
}

async fn wait(
    config: &Config,
    private: bool,
    requests: &mut mpsc::Receiver<Request>,
    systemd: &Systemd,
    waiting: &mut WaitingRows,
) -> anyhow::Result<Option<Request>> {
    let mut outage = Retry::new(RetryPolicy::infrastructure());
    loop {
        // The driver gives up on a silent server after seconds, so this does not take for ever.
        let error = tokio::select! {
            request = requests.recv() => return Ok(request.or(Some(Request::Stop))),
            examined = examine(config, private) => match examined {
                Ok(Err(error)) if is_outage(&error) => error,
                Ok(checked) => return checked.map(|()| None),
                Err(error) => error,
            },
        };
        let delay: Duration = outage.failed(());
        let error = chain(&*error);
        warn!(error, retry_in_ms = delay.as_millis() as u64, "the database does not answer");
        systemd.starting(START_EXTENSION, "waiting for the database");
        tokio::select! {
            request = requests.recv() => return Ok(request.or(Some(Request::Stop))),
            () = async { tokio::join!(waiting.show(config, &error), tokio::time::sleep(delay)); } => {}
        }
    }
}

/// Checks the database. The outer error says that it cannot be reached, the inner one what is wrong with it; it may go
/// down during the check as well.
async fn examine(config: &Config, private: bool) -> Result<anyhow::Result<()>, anyhow::Error> {
    try_ways(config).await?;
    let databases = Databases::connect_directly(config, "espd", CONNECT_TIMEOUT).await?;
    let checked = check(config, &databases, private).await;
    databases.close().await;
    Ok(checked)
}

/// Tries every way to the databases. One through a pooler that should be direct is a worse way, and no hindrance.
async fn try_ways(config: &Config) -> anyhow::Result<()> {
    let ways = ways::examine(config, "espd", CONNECT_TIMEOUT).await;
    for way in &ways {
        match &way.fault {
            None => {}
            Some(WayFault::Pooled(_)) => warn!(way = way.describe(), "a pooler is where no pooler should be"),
            Some(_) => bail!("{}", way.describe()),
        }
    }
    Ok(())
}

async fn check(config: &Config, databases: &Databases, private: bool) -> anyhow::Result<()> {
    if private {
        databases.migrate().await?;
        apply_after_migration(databases, &config.events).await?;
    }
    databases.check_schema().await?;
    databases.check_store().await?;
    let differences = compare(&databases.events, &databases.layout, &config.events).await?;
    if let Some(note) = note_differences(&differences) {
        warn!("{note}");
    }
    let unknown = scope::find_unknown(&databases.projections, &databases.scope, &config.main_file()).await?;
    if unknown.is_empty() { Ok(()) } else { Err(Exit::configuration(render_all(&unknown)).into()) }
}

/// Whether an error only says that the database does not answer now.
fn is_outage(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>());
    causes.any(is_infrastructure_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SchemaError;

    #[test]
    fn an_outage_during_the_check_is_distinguished_from_a_database_that_is_not_ready() {
        let broken_pipe = || sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
        assert!(is_outage(&SchemaError::Database(broken_pipe()).into()));
        assert!(is_outage(&anyhow::Error::from(broken_pipe()).context("the event store")));
        let (set, schema) = ("event store", "espd".to_owned());
        assert!(!is_outage(&SchemaError::NotMigrated { set, schema, found: 0, needed: 3 }.into()));
        assert!(!is_outage(&Exit::configuration("the sequence is cached").into()));
    }
}
