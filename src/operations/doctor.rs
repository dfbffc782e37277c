//! Examines everything that espd needs from its databases, and says how to fix what is missing.
//!
//! The daemon refuses to start only if it would lose events (`preconditions`). The doctor also reports what works badly,
//! what will fail later, and what is fine, because in an incident that is news, too.

mod hosts;
mod processing;
mod running;
mod server;
mod session;
mod store;

use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::operations::databases::{Databases, ways};
use crate::operations::lock_watch::say_who_locks;
use crate::own_name::in_own_name;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::TOO_MANY_CONNECTIONS;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// All is well.
    Ok,
    /// It works, but not as well or as safely as it could.
    Warning,
    /// It does not work, or loses events.
    Failure,
}

impl Level {
    /// The level in one word, for people.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}

/// The result of one check. The field names are an interface: `espctl doctor --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was examined: a stable word for programs.
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
        Self { level: Level::Warning, ..Self::failure(check, message, remedy) }
    }

    fn failure(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (message, remedy) = (message.into(), remedy.into());
        let remedy = Some(in_own_name(&remedy).into_owned());
        Self { check, level: Level::Failure, message: in_own_name(&message).into_owned(), remedy }
    }
}

/// Examines everything and changes nothing. What cannot be examined is a finding of its own. `program` is the
/// `application_name` of the sessions, `connect_limit` how long each connection may take.
pub(crate) async fn examine(config: &Config, program: &str, connect_limit: Duration) -> Vec<Finding> {
    let mut findings = examine_ways(config, program, connect_limit).await;
    let databases = match Databases::connect_directly_to_look(config, program, connect_limit).await {
        Ok(databases) => databases,
        Err(error) => {
            let remedy = match config.event_store.url {
                None => "set DATABASE_URL, or name a configuration with --config",
                Some(_) if is_full(&error) => {
                    "end sessions that nobody needs, or raise max_connections or the limit of the role or database (`alter role … \
                     connection limit`)"
                }
                Some(_) => "start the server, or fix the URL, the network or pg_hba.conf",
            };
            findings.push(Finding::failure("connection", chain(&*error), remedy));
            return findings;
        }
    };
    let mut parts: Vec<(&'static str, Part<'_>)> =
        vec![("server", Box::pin(server::examine(&databases.events, "the event store")))];
    if config.projections.url.is_some() {
        parts.push(("server", Box::pin(server::examine(&databases.projections, "the projections"))));
        parts.push(("writes", Box::pin(server::examine_events_beside(&databases.events))));
    }
    parts.push(("hosts", Box::pin(hosts::examine(config, program))));
    parts.push(("writes", Box::pin(server::examine_writes(&databases.projections))));
    parts.push(("connections", Box::pin(server::examine_connections(config, &databases))));
    parts.push(("session", Box::pin(session::examine(&databases, config))));
    parts.push(("store", Box::pin(store::examine(&databases))));
    parts.push(("processing", Box::pin(processing::examine(&databases, config))));
    parts.push(("running", Box::pin(running::examine(&databases, config))));
    for (name, part) in parts {
        collect(&mut findings, name, say_who_locks(&databases, |_| {}, part).await);
    }
    databases.close().await;
    findings
}

/// Whether the server, the role or the database has no connection left.
fn is_full(error: &anyhow::Error) -> bool {
    let answers = error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>());
    let mut codes = answers.filter_map(|answer| answer.as_database_error()?.code());
    codes.any(|code| code == TOO_MANY_CONNECTIONS)
}

/// What a part has found, or why it could not be examined.
type Part<'e> = Pin<Box<dyn Future<Output = anyhow::Result<Vec<Finding>>> + Send + 'e>>;

/// Tries every URL. A database without a second way has a finding of its own where it cannot be connected to.
async fn examine_ways(config: &Config, program: &str, limit: Duration) -> Vec<Finding> {
    let ways = ways::examine(config, program, limit).await;
    let findings = ways.iter().map(|way| match &way.fault {
        None => Finding::ok("ways", way.describe()),
        Some(_) => {
            let remedy =
                "correct the URL or the pooler; docs/configuration.md says what espd needs of a pooler";
            Finding::failure("ways", way.describe(), remedy)
        }
    });
    findings.collect()
}

/// Adds the findings of a part, or a finding that says why it could not be examined.
fn collect(findings: &mut Vec<Finding>, part: &'static str, found: anyhow::Result<Vec<Finding>>) {
    match found {
        Ok(found) => findings.extend(found),
        Err(error) => {
            let message = format!("this could not be examined: {}", chain(&*error));
            findings.push(Finding::failure(
                part,
                message,
                "fix what the findings above say, then run the doctor again",
            ));
        }
    }
}
