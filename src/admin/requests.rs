//! One request: read it, see whether it may pass, do it, answer it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{HeaderMap, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tracing::info;

use super::access::{self, Clearance};
use super::answer::{self, Answer, Refusal};
use super::listener::Ends;
use super::route::{Route, Verb};
use super::{View, Workers, exposition, health, metrics};
use crate::config::{AdminSettings, Config};
use crate::database::Databases;
use crate::event::Position;
use crate::exit_code::chain;
use crate::operator::Operator;
use crate::status::ProcessorStatus;
use crate::tracker::Effects;

/// Bytes of a request's body.
const BODY_BYTES: usize = 16 * 1024;

/// What is read and thrown away of a body that is too large, so that its sender gets to read the answer.
const DISCARDED_BYTES: usize = 1024 * 1024;

/// From the headers to the end of the body.
const BODY_TIME: Duration = Duration::from_secs(3);

/// What whoever shows a wrong token waits for the answer.
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

/// Connections to each database.
const CONNECTIONS: u32 = 2;

/// How long a request waits for one of them.
const CONNECTION_TIME: Duration = Duration::from_secs(2);

/// Where requests are answered.
#[derive(Debug)]
pub(super) struct Desk {
    settings: AdminSettings,
    view: watch::Receiver<View>,
    request_time: Duration,
    /// The databases, and the configuration that names them.
    databases: Mutex<Option<(Arc<Config>, Arc<Databases>)>>,
    /// Held by whoever asks or changes something: one at a time needs no more than the two connections.
    turn: Mutex<()>,
}

/// What a reset may be told.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetBody {
    to: Option<Position>,
    at: Option<DateTime<Utc>>,
    #[serde(default)]
    repeat_effects: bool,
}

impl Desk {
    pub(super) fn new(settings: AdminSettings, view: watch::Receiver<View>, request_time: Duration) -> Self {
        Self { settings, view, request_time, databases: Mutex::default(), turn: Mutex::default() }
    }

    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>, ends: &Ends) -> Answer {
        let time = self.request_time;
        let late = || {
            Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                "this takes too long",
                "look at /readyz and at the status",
            )
        };
        let handled = timeout(time, self.handle(request, ends)).await;
        handled.unwrap_or_else(|_| Err(late())).unwrap_or_else(Into::into)
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>, ends: &Ends) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        let route = Route::find(&head.method, head.uri.path())?;
        let clearance = match access::admit(&self.settings, ends.local, &head.headers, &route) {
            Err(refusal) if refusal.status == StatusCode::UNAUTHORIZED => {
                tokio::time::sleep(REFUSAL_PAUSE).await;
                return Err(refusal);
            }
            admitted => admitted?,
        };
        // Bodies that nobody asked for are bounded as well.
        let body = read_body(&head.headers, body).await?;
        match route {
            Route::Livez => Ok(health::livez(self.workers().map(|workers| workers.pulse.age()))),
            Route::Readyz => Ok(self.readyz(clearance).await),
            Route::Metrics => Ok(self.metrics().await),
            Route::Processors => Ok(answer::json(StatusCode::OK, &self.look(None).await?)),
            Route::Processor(name) => self.show(name).await,
            Route::Change(name, verb) => {
                let reset = if verb == Verb::Reset {
                    parse_reset(&head.headers, &body)?
                } else {
                    ResetBody::default()
                };
                let (name, operator) = (name.to_owned(), format!("admin endpoint, {}", ends.client));
                // It goes on to its end, also when the client does not wait for that.
                let change = tokio::spawn(async move { self.change(&name, verb, reset, &operator).await });
                change.await.map_err(|_| Refusal::unavailable("the change was given up"))?
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Some((_, databases)) = self.databases.lock().await.take() {
            databases.events.close().await;
            databases.projections.close().await;
        }
    }

    fn workers(&self) -> Option<Workers> {
        self.view.borrow().workers.clone()
    }

    async fn readyz(&self, clearance: Clearance) -> Answer {
        let databases = self.databases().await.map(|(_, databases)| databases);
        health::readyz(databases, self.workers().as_ref(), clearance >= Clearance::Read).await
    }

    async fn metrics(&self) -> Answer {
        let statuses = self.look(None).await;
        let snapshots = self.workers().map(|workers| workers.snapshots.borrow().clone()).unwrap_or_default();
        let body = metrics::render(statuses.as_deref().ok(), &snapshots);
        answer::text(StatusCode::OK, exposition::CONTENT_TYPE, body)
    }

    async fn show(&self, name: &str) -> Result<Answer, Refusal> {
        let statuses = self.look(Some(name)).await?;
        let status = statuses.first().ok_or_else(|| {
            let remedy = "GET /api/v1/processors lists all of them";
            Refusal::new(StatusCode::NOT_FOUND, format!("no processor {name}"), remedy)
        })?;
        Ok(answer::json(StatusCode::OK, status))
    }

    async fn look(&self, name: Option<&str>) -> Result<Vec<ProcessorStatus>, Refusal> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator = Operator { databases: &databases, declared: &config.processors, name: "" };
        Ok(operator.look(name).await?)
    }

    async fn change(&self, name: &str, verb: Verb, reset: ResetBody, who: &str) -> Result<Answer, Refusal> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator = Operator { databases: &databases, declared: &config.processors, name: who };
        let done = carry_out(&operator, name, verb, reset).await?;
        info!(processor = name, action = verb.as_str(), operator = who, "an operator has acted");
        Ok(answer::json(StatusCode::OK, &done))
    }

    /// The databases of the present configuration. Nothing is connected before it is needed.
    async fn databases(&self) -> Result<(Arc<Config>, Arc<Databases>), Refusal> {
        let config = self.view.borrow().config.clone();
        let config = config.ok_or_else(|| Refusal::unavailable("the daemon is starting"))?;
        let mut known = self.databases.lock().await;
        if let Some((of, databases)) = known.as_ref()
            && of.event_store == config.event_store
            && of.projections == config.projections
        {
            return Ok((config, Arc::clone(databases)));
        }
        let databases = Databases::connect_lazily(&config, "espd admin", CONNECTIONS, CONNECTION_TIME)
            .map_err(|error| Refusal::unavailable(chain(&error)))?;
        let databases = Arc::new(databases);
        *known = Some((Arc::clone(&config), Arc::clone(&databases)));
        Ok((config, databases))
    }
}

async fn carry_out(
    operator: &Operator<'_>,
    name: &str,
    verb: Verb,
    reset: ResetBody,
) -> Result<Value, Refusal> {
    let (row, changed) = match verb {
        Verb::Pause => operator.pause(name).await?,
        Verb::Resume => operator.resume(name).await?,
        Verb::Retry => operator.retry(name).await?,
        Verb::Reset => {
            let row = operator.find(name).await?;
            let to = operator.destination(reset.to, reset.at).await?;
            let effects = if reset.repeat_effects { Effects::Repeated } else { Effects::Silent };
            operator.reset(name, to, effects).await?;
            return Ok(
                json!({ "name": name, "changed": true, "from": row.position, "position": to.position() }),
            );
        }
    };
    Ok(json!({ "name": name, "changed": changed, "position": row.position }))
}

/// The whole body, if it is not too large and comes in time.
async fn read_body(headers: &HeaderMap, mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let too_large = announced.is_some_and(|length| length > BODY_BYTES as u64);
    let deadline = Instant::now() + BODY_TIME;
    let (mut read, mut kept) = (0, Vec::new());
    while !body.is_end_stream() && read <= DISCARDED_BYTES {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "the body breaks off", "send all of it"));
            }
            Err(_) => return Err(late_body()),
        };
        let bytes = frame.into_data().unwrap_or_else(|_| Bytes::new());
        read += bytes.len();
        if read <= BODY_BYTES {
            kept.extend_from_slice(&bytes);
        }
    }
    if too_large || read > BODY_BYTES {
        let error = format!("the body has more than {BODY_BYTES} bytes");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error, "send no more than `to` or `at`"));
    }
    Ok(kept)
}

fn late_body() -> Refusal {
    let error = format!("the body has not come within {BODY_TIME:?}");
    Refusal::new(StatusCode::REQUEST_TIMEOUT, error, "send it at once")
}

fn parse_reset(headers: &HeaderMap, body: &[u8]) -> Result<ResetBody, Refusal> {
    if body.is_empty() {
        return Ok(ResetBody::default());
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        let remedy = "send `Content-Type: application/json`";
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body is not announced as JSON",
            remedy,
        ));
    }
    let remedy = "send {}, {\"to\": POSITION} with a position from 0, or {\"at\": \"2026-01-31T12:00:00Z\"}";
    let refuse = |error: String| Refusal::new(StatusCode::BAD_REQUEST, error, remedy);
    let reset: ResetBody = serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))?;
    if reset.to.is_some() && reset.at.is_some() {
        return Err(refuse("there are both `to` and `at`".into()));
    }
    if reset.to.is_some_and(|to| to < 0) {
        return Err(refuse("the position is negative".into()));
    }
    Ok(reset)
}
