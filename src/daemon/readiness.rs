//! Waiting for a database that is down, and checking the one that is there.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use crate::config::Config;
use crate::operations::databases::Databases;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::process::service_manager::ServiceManager;
use crate::process::signal::Request;
use crate::retry::{Retry, RetryPolicy};

/// How long a service manager is asked to wait each time that the database has not answered. Longer than one
/// try and the delay after it.
const START_EXTENSION: Duration = Duration::from_secs(60);

/// Waits until the database answers, then checks that it is fit. Returns the request that came meanwhile.
///
/// A database that is down may come up; one that is not fit needs an operator, so that is an error.
pub(super) async fn wait_until_fit(
    config: &Config,
    private: bool,
    requests: &mut mpsc::Receiver<Request>,
    manager: &ServiceManager,
) -> anyhow::Result<Option<Request>> {
    let mut outage = Retry::new(RetryPolicy::infrastructure());
    loop {
        // A server that says nothing is given seconds by the driver.
        let error = tokio::select! {
            request = requests.recv() => return Ok(request.or(Some(Request::Stop))),
            examined = examine(config, private) => match examined {
                Ok(Err(error)) if is_outage(&error) => error,
                Ok(checked) => return checked.map(|()| None),
                Err(error) => error,
            },
        };
        let delay: Duration = outage.failed(());
        warn!(error = chain(&*error), retry_in_ms = delay.as_millis() as u64, "the database does not answer");
        manager.starting(START_EXTENSION, "waiting for the database");
        tokio::select! {
            request = requests.recv() => return Ok(request.or(Some(Request::Stop))),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// Checks a database that can be reached; it may go down again meanwhile.
async fn examine(config: &Config, private: bool) -> Result<anyhow::Result<()>, anyhow::Error> {
    let databases = Databases::connect(config, "espd").await?;
    let checked = check(&databases, private).await;
    databases.close().await;
    Ok(checked)
}

async fn check(databases: &Databases, private: bool) -> anyhow::Result<()> {
    if private {
        databases.migrate().await?;
    }
    databases.check_schema().await?;
    databases.check_store().await
}

/// Whether this says nothing about the database but that it cannot be asked now.
fn is_outage(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>());
    causes.any(is_infrastructure_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::exit_code::Exit;
    use crate::schema::SchemaError;

    #[test]
    fn an_outage_while_looking_is_told_from_an_unfit_database() {
        let broken_pipe = || sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
        assert!(is_outage(&SchemaError::Database(broken_pipe()).into()));
        assert!(is_outage(&anyhow::Error::from(broken_pipe()).context("the event store")));
        let (set, schema) = ("event store", "espd".to_owned());
        assert!(!is_outage(&SchemaError::NotMigrated { set, schema, found: 0, needed: 3 }.into()));
        assert!(!is_outage(&Exit::configuration("the sequence is cached").into()));
    }
}
