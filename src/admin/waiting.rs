//! Waits for a processor on behalf of a client that reads what it has just written.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;
use url::form_urlencoded;

use super::answer::{self, Answer, ApiError, lacks_connection};
use super::dead_letters::{parse_or, refuse, refuse_nul};
use crate::config::{Config, parse_duration};
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::postgres::error::chain;
use crate::processors::{Processors, WaitError};

/// How long a request waits, unless the query says; and the longest, which is less than any request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most requests that wait at a time. Connections of others stay free, and a look every 50 ms by each is little.
const WAITING_MAX: usize = 16;

const REMEDY: &str = "use position=N and timeout=TIME, up to 5s: ?position=4711&timeout=2s";

/// What a client waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    position: Position,
    timeout: Duration,
}

/// Reads `?position=…&timeout=…`.
pub(super) fn of_query(query: Option<&str>) -> Result<Wanted, ApiError> {
    let (mut position, mut timeout) = (None, TIMEOUT);
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        refuse_nul(&key, &value)?;
        match &*key {
            "position" => position = Some(parse_or(REMEDY, &key, &value)?),
            "timeout" => {
                timeout = parse_duration(&value)
                    .ok()
                    .filter(|timeout| *timeout <= TIMEOUT)
                    .ok_or_else(|| refuse("`timeout` is not a time up to 5s".to_owned(), REMEDY))?;
            }
            _ => return Err(refuse(format!("unknown field `{key}`"), REMEDY)),
        }
    }
    let position = position.ok_or_else(|| refuse("there is no `position`".to_owned(), REMEDY))?;
    Ok(Wanted { position, timeout })
}

/// The requests that wait.
#[derive(Debug)]
pub(super) struct Waiters(Semaphore);

impl Default for Waiters {
    fn default() -> Self {
        Self(Semaphore::new(WAITING_MAX))
    }
}

impl Waiters {
    /// Answers when the processor is there, or when the time is over.
    pub(super) async fn wait(
        &self,
        name: &str,
        wanted: Wanted,
        config: &Config,
        databases: &Databases,
    ) -> Result<Answer, ApiError> {
        let _place = self.0.try_acquire().map_err(|_| {
            let error = format!("{WAITING_MAX} requests wait already");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again, or wait in SQL: espd.wait_for")
        })?;
        let processors = Processors::new(databases.projections.clone(), databases.layout.schema())
            .map_err(|error| ApiError::unavailable(error.to_string()))?
            .with_tracker_table(&databases.layout.names().tracker_table);
        let is_declared = config.processors.iter().any(|declaration| declaration.name == name);
        if !is_declared && processors.position(name).await.map_err(refusal)?.is_none() {
            let remedy = "GET /api/v1/processors lists all of them";
            return Err(ApiError::new(StatusCode::NOT_FOUND, format!("no processor {name}"), remedy));
        }
        let position = processors.wait_for(name, wanted.position, wanted.timeout).await.map_err(refusal)?;
        Ok(answer::json(StatusCode::OK, &json!({ "name": name, "reached": true, "position": position })))
    }
}

fn refusal(error: WaitError) -> ApiError {
    let said = chain(&error);
    match error {
        WaitError::TimedOut { .. } => {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, said, "ask again; the status says what it is doing")
        }
        WaitError::Blocked { .. } | WaitError::Diverged { .. } => {
            ApiError::new(StatusCode::CONFLICT, said, "the processor's status says what to do")
        }
        _ => ApiError { lacks_connection: lacks_connection(&error), ..ApiError::unavailable(said) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_a_position_and_a_bounded_time() {
        let of = |query| of_query(Some(query));
        assert_eq!(of("position=7"), Ok(Wanted { position: 7.into(), timeout: TIMEOUT }));
        let timeout = Duration::from_millis(200);
        assert_eq!(of("position=7&timeout=200ms"), Ok(Wanted { position: 7.into(), timeout }));
        for (query, words) in [
            ("", "no `position`"),
            ("position=x", "position"),
            ("position=7&timeout=6s", "up to 5s"),
            ("position=7&timeout=soon", "up to 5s"),
            ("position=7&name=a", "unknown field `name`"),
        ] {
            let error = of(query).unwrap_err();
            assert!(error.status == StatusCode::BAD_REQUEST && error.error.contains(words), "{error:?}");
            assert_eq!(error.remedy, REMEDY, "{query}");
        }
    }
}
