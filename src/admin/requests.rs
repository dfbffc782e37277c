//! One request: read it, see whether it may pass, do it, answer it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tracing::info;

use super::access::{self, Clearance};
use super::answer::{self, Answer, Refusal};
use super::body::{self, read_body};
use super::dead_letters::{self, Wanted};
use super::listener::Ends;
use super::route::{LetterVerb, Route, Verb};
use super::{View, Workers, exposition, health, metrics};
use crate::config::{AdminSettings, Config};
use crate::event::Position;
use crate::operations::databases::Databases;
use crate::operations::operator::Operator;
use crate::operations::status::ProcessorStatus;
use crate::postgres::error::chain;
use crate::processing::dead_letters::Selection;
use crate::processing::tracker::ReplayEffects;

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
            Route::Livez => Ok(health::livez(self.workers().map(|workers| workers.heartbeat.age()))),
            Route::Readyz => Ok(self.readyz(clearance).await),
            Route::Metrics => Ok(self.metrics().await),
            Route::Processors => Ok(answer::json(StatusCode::OK, &self.look(None).await?)),
            Route::Processor(name) => self.show(name).await,
            Route::DeadLetters => self.list_letters(dead_letters::of_query(head.uri.query())?).await,
            Route::DeadLettersOf(name) => {
                let mut wanted = dead_letters::of_query(head.uri.query())?;
                wanted.selection.processor = Some(name.to_owned());
                self.list_letters(wanted).await
            }
            Route::DeadLetter(name, event) => self.show_letter(name, event).await,
            Route::Change(name, verb) => {
                let reset = if verb == Verb::Reset {
                    parse_reset(&head.headers, &body)?
                } else {
                    ResetBody::default()
                };
                self.change(name, Change::Processor(verb, reset), ends).await
            }
            Route::ChangeDeadLetters(name, verb) => {
                let selection = dead_letters::of_body(&head.headers, &body)?;
                self.change(name, Change::DeadLetters(verb, selection), ends).await
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
        Ok(operator.statuses(name).await?)
    }

    async fn list_letters(&self, wanted: Wanted) -> Result<Answer, Refusal> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator = Operator { databases: &databases, declared: &config.processors, name: "" };
        let found = operator.dead_letters(&wanted.selection, wanted.limit).await?;
        if let (Some(name), true) = (&wanted.selection.processor, found.is_empty()) {
            operator.require_known(name).await?;
        }
        Ok(answer::json(StatusCode::OK, &found))
    }

    async fn show_letter(&self, name: &str, event_id: Position) -> Result<Answer, Refusal> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator = Operator { databases: &databases, declared: &config.processors, name: "" };
        Ok(answer::json(StatusCode::OK, &operator.examine(name, event_id).await?))
    }

    /// Makes a change. It goes on to its end, also when the client does not wait for that.
    async fn change(self: Arc<Self>, name: &str, change: Change, ends: &Ends) -> Result<Answer, Refusal> {
        let (name, who) = (name.to_owned(), format!("admin endpoint, {}", ends.client));
        let making = tokio::spawn(async move {
            let (config, databases) = self.databases().await?;
            let _turn = self.turn.lock().await;
            let operator = Operator { databases: &databases, declared: &config.processors, name: &who };
            let action = change.as_str();
            let done = change.carry_out(&operator, &name).await?;
            info!(processor = name, action, operator = who, "an operator has acted");
            Ok(answer::json(StatusCode::OK, &done))
        });
        making.await.map_err(|_| Refusal::unavailable("the change was given up"))?
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
            .map_err(|error| Refusal::unavailable(chain(&*error)))?;
        let databases = Arc::new(databases);
        *known = Some((Arc::clone(&config), Arc::clone(&databases)));
        Ok((config, databases))
    }
}

/// What an operator wants done to a processor.
enum Change {
    Processor(Verb, ResetBody),
    DeadLetters(LetterVerb, Selection),
}

impl Change {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Processor(verb, _) => verb.as_str(),
            Self::DeadLetters(verb, _) => verb.as_str(),
        }
    }

    async fn carry_out(self, operator: &Operator<'_>, name: &str) -> Result<Value, Refusal> {
        let (row, changed) = match self {
            Self::Processor(Verb::Pause, _) => operator.pause(name).await?,
            Self::Processor(Verb::Resume, _) => operator.resume(name).await?,
            Self::Processor(Verb::Retry, _) => operator.retry(name).await?,
            Self::Processor(Verb::Reset, reset) => return carry_out_reset(operator, name, reset).await,
            Self::DeadLetters(verb, selection) => {
                return carry_out_on_letters(operator, name, verb, &selection).await;
            }
        };
        Ok(json!({ "name": name, "changed": changed, "position": row.position }))
    }
}

async fn carry_out_reset(operator: &Operator<'_>, name: &str, reset: ResetBody) -> Result<Value, Refusal> {
    let row = operator.find(name).await?;
    let to = operator.destination(reset.to, reset.at).await?;
    let effects = if reset.repeat_effects { ReplayEffects::Repeat } else { ReplayEffects::Suppress };
    operator.reset(name, to, effects).await?;
    Ok(json!({ "name": name, "changed": true, "from": row.position, "position": to.position() }))
}

async fn carry_out_on_letters(
    operator: &Operator<'_>,
    name: &str,
    verb: LetterVerb,
    selection: &Selection,
) -> Result<Value, Refusal> {
    match verb {
        LetterVerb::Retry => {
            let (row, asked) = operator.retry_dead_letters(name, selection).await?;
            let requested = asked.events.len();
            Ok(json!({
                "name": name, "requested": requested, "left_out": asked.left_out, "requested_at": asked.at,
                "owned": row.owned,
            }))
        }
        LetterVerb::Discard => {
            let discarded = operator.discard_dead_letters(name, selection).await?;
            Ok(json!({
                "name": name, "discarded": discarded.letters, "left_behind": discarded.left_behind
            }))
        }
    }
}

fn parse_reset(headers: &HeaderMap, body: &[u8]) -> Result<ResetBody, Refusal> {
    if body.is_empty() {
        return Ok(ResetBody::default());
    }
    body::require_json(headers)?;
    let remedy = "send {}, {\"to\": POSITION} with a position from 0, or {\"at\": \"2026-01-31T12:00:00Z\"}";
    let refuse = |error: String| Refusal::new(StatusCode::BAD_REQUEST, error, remedy);
    let reset: ResetBody = serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))?;
    if reset.to.is_some() && reset.at.is_some() {
        return Err(refuse("there are both `to` and `at`".into()));
    }
    if reset.to.is_some_and(|to| to < Position::START) {
        return Err(refuse("the position is negative".into()));
    }
    Ok(reset)
}
