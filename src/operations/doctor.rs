//! Everything that espd needs of its databases, looked at one by one, with what to do where it is missing.
//!
//! The daemon refuses to start only where going on would lose events (`preconditions`). The doctor also tells
//! what works badly, what will fail later, and what is fine, because at three in the morning that is news, too.

mod processing;
mod server;
mod session;
mod store;

use serde::Serialize;

use crate::config::Config;
use crate::operations::databases::Databases;
use crate::postgres::error::chain;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well or as safely as it could.
    Warning,
    /// Does not work, or loses events.
    Failure,
}

impl Level {
    /// The word that people see.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}

/// What was found of one thing. The field names are an interface: `espctl doctor --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at; stable, for programs.
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    /// What was found, in a sentence.
    pub(crate) message: String,
    /// What to do: a command, or advice.
    pub(crate) remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, message: message.into(), remedy: None }
    }

    fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, message: message.into(), remedy: Some(remedy.into()) }
    }

    fn failure(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Failure, message: message.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything. What cannot be looked at is a failure of its own; nothing is changed.
pub(crate) async fn examine(config: &Config) -> Vec<Finding> {
    let databases = match Databases::connect(config, "espctl doctor").await {
        Ok(databases) => databases,
        Err(error) => {
            let remedy = match config.event_store.url {
                None => "set DATABASE_URL, or name a configuration with --config",
                Some(_) => "start the server, or mend the URL, the network or pg_hba.conf",
            };
            return vec![Finding::failure("connection", chain(&*error), remedy)];
        }
    };
    let mut findings = Vec::new();
    collect(&mut findings, "server", server::examine(&databases.events, "the event store").await);
    if config.projections.url.is_some() {
        collect(&mut findings, "server", server::examine(&databases.projections, "the projections").await);
    }
    collect(&mut findings, "session", session::examine(&databases, config).await);
    collect(&mut findings, "store", store::examine(&databases).await);
    collect(&mut findings, "processing", processing::examine(&databases, config).await);
    databases.close().await;
    findings
}

/// Adds what was found, or that nothing could be found.
fn collect(findings: &mut Vec<Finding>, part: &'static str, found: anyhow::Result<Vec<Finding>>) {
    match found {
        Ok(found) => findings.extend(found),
        Err(error) => {
            let message = format!("could not be examined: {}", chain(&*error));
            findings.push(Finding::failure(part, message, "mend what stands above, then look again"));
        }
    }
}
