//! One request: reads it, checks its permission, does what it asks for, and answers it.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tracing::info;

use super::access::{self, Permission};
use super::answer::{self, Answer, ApiError};
use super::body::read_body;
use super::changes::Change;
use super::dead_letters::{self, Listing};
use super::deadline::Deadline;
use super::doctor::Doctor;
use super::emissions;
use super::events::{self, Streams};
use super::listener::Peer;
use super::route::Route;
use super::waiting::{self, Waiters, Wanted};
use super::{View, Workers, exposition, health, metrics};
use crate::config::{AdminSettings, Config};
use crate::event::Position;
use crate::operations::backlog::Backlog;
use crate::operations::databases::Databases;
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::status::ProcessorStatus;
use crate::postgres::error::chain;
use crate::shutdown::Shutdown;

/// How long the answer to an unknown token is delayed, so that tokens cannot be guessed quickly.
const UNAUTHORIZED_DELAY: Duration = Duration::from_millis(100);

/// Connections to each database.
const CONNECTIONS: u32 = 2;

/// How long a request waits for one of them.
const CONNECTION_TIME: Duration = Duration::from_secs(2);

/// Answers requests, with what they share.
#[derive(Debug)]
pub(super) struct RequestHandler {
    started_with: AdminSettings,
    view: watch::Receiver<View>,
    request_time: Duration,
    /// The databases, and the configuration that names them.
    databases: Mutex<Option<(Arc<Config>, Arc<Databases>)>>,
    /// Held while a request works on the databases: one at a time needs no more than [`CONNECTIONS`].
    turn: Mutex<()>,
    doctor: Doctor,
    streams: Streams,
    waiters: Waiters,
}

impl RequestHandler {
    /// A handler whose streams end when the stop is requested.
    pub(super) fn new(
        started_with: AdminSettings,
        view: watch::Receiver<View>,
        request_time: Duration,
        stop: Shutdown,
    ) -> Self {
        let (databases, turn, doctor) = (Mutex::default(), Mutex::default(), Doctor::default());
        let (streams, waiters) = (Streams::new(stop), Waiters::default());
        Self { started_with, view, request_time, databases, turn, doctor, streams, waiters }
    }

    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: &Peer) -> Answer {
        let time = self.request_time;
        let late = || {
            ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                format!("the answer took longer than {time:?}"),
                "look at /readyz and at the status",
            )
        };
        let handled = timeout(time, self.handle(request, peer)).await;
        handled.unwrap_or_else(|_| Err(late())).unwrap_or_else(Into::into)
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: &Peer) -> Result<Answer, ApiError> {
        let (head, body) = request.into_parts();
        let route = Route::find(&head.method, head.uri.path())?;
        let permission = match access::admit(&self.settings(), peer.local, &head.headers, &route) {
            Err(error) if error.status == StatusCode::UNAUTHORIZED => {
                tokio::time::sleep(UNAUTHORIZED_DELAY).await;
                return Err(error);
            }
            admitted => admitted?,
        };
        // Every body is read, also where none is expected, so that its size and time are bounded.
        let body = read_body(&head.headers, body).await?;
        match route {
            Route::Livez => Ok(health::livez(self.workers().map(|workers| workers.heartbeat.age()))),
            Route::Readyz => Ok(self.readyz(permission).await),
            Route::Metrics => Ok(self.metrics().await),
            Route::Doctor => self.examine().await,
            Route::Processors => Ok(answer::json(StatusCode::OK, &self.statuses(None).await?)),
            Route::Processor(name) => self.show(name).await,
            Route::Wait(name) => self.wait(name, waiting::of_query(head.uri.query())?).await,
            Route::DeadLetters => self.list_dead_letters(dead_letters::of_query(head.uri.query())?).await,
            Route::DeadLettersOf(name) => {
                let mut listing = dead_letters::of_query(head.uri.query())?;
                listing.selection.processor = Some(name.to_owned());
                self.list_dead_letters(listing).await
            }
            Route::Events => {
                let wanted = events::of_request(head.uri.query(), &head.headers)?;
                let deadline = head.extensions.get::<Deadline>().cloned();
                let deadline = deadline.unwrap_or_else(|| Deadline::after(self.request_time));
                self.streams.open(self.config()?, wanted, deadline).await
            }
            Route::Emissions => self.list_emissions(emissions::of_query(head.uri.query())?).await,
            Route::EmissionsOf(name) => {
                let mut listing = emissions::of_query(head.uri.query())?;
                listing.selection.reactor = Some(name.to_owned());
                self.list_emissions(listing).await
            }
            Route::ChangeEmissions(name, action) => {
                let selection = emissions::of_body(&head.headers, &body)?;
                self.change(name, Change::Emissions(action, selection), peer).await
            }
            Route::DeadLetter(name, event) => self.show_dead_letter(name, event).await,
            Route::Change(name, action) => {
                self.change(name, Change::of_processor(action, &head.headers, &body)?, peer).await
            }
            Route::ChangeDeadLetters(name, action) => {
                let change = Change::of_dead_letters(action, &head.headers, &body)?;
                self.change(name, change, peer).await
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

    async fn readyz(&self, permission: Permission) -> Answer {
        let databases = self.databases().await.map(|(_, databases)| databases);
        health::readyz(databases, self.workers().as_ref(), permission >= Permission::Read).await
    }

    async fn metrics(&self) -> Answer {
        let statuses = self.statuses(None).await;
        let snapshots = self.workers().map(|workers| workers.snapshots.borrow().clone()).unwrap_or_default();
        let backlog = self.backlog().await.ok();
        let text = metrics::render(statuses.ok(), backlog, &snapshots);
        answer::text(StatusCode::OK, exposition::CONTENT_TYPE, text)
    }

    async fn examine(&self) -> Result<Answer, ApiError> {
        Ok(answer::json(StatusCode::OK, &self.doctor.examine(self.config()?).await?))
    }

    async fn show(&self, name: &str) -> Result<Answer, ApiError> {
        match &self.statuses(Some(name)).await?[..] {
            [] => {
                let remedy = "GET /api/v1/processors lists all of them";
                Err(ApiError::new(StatusCode::NOT_FOUND, format!("no processor {name}"), remedy))
            }
            [status] => Ok(answer::json(StatusCode::OK, status)),
            several => {
                let trackers = several.iter().map(ProcessorStatus::key).collect();
                Err(OperatorError::Several { name: name.to_owned(), trackers }.into())
            }
        }
    }

    /// Waits without the turn that others take: a wait is long, and needs a connection for a moment now and then.
    async fn wait(&self, name: &str, wanted: Wanted) -> Result<Answer, ApiError> {
        let (config, databases) = self.databases().await?;
        self.waiters.wait(name, wanted, &config, &databases).await
    }

    async fn statuses(&self, name: Option<&str>) -> Result<Vec<ProcessorStatus>, ApiError> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator =
            Operator { databases: &databases, declared: &config.processors, name: "", native: None };
        Ok(operator.statuses(name).await?)
    }

    async fn backlog(&self) -> Result<Backlog, ApiError> {
        let (_, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        Ok(Backlog::read(&databases).await.map_err(OperatorError::from)?)
    }

    async fn list_dead_letters(&self, listing: Listing) -> Result<Answer, ApiError> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator =
            Operator { databases: &databases, declared: &config.processors, name: "", native: None };
        let found = operator.dead_letters(&listing.selection, listing.limit).await?;
        if let (Some(name), true) = (&listing.selection.processor, found.is_empty()) {
            operator.require_known(name).await?;
        }
        Ok(answer::json(StatusCode::OK, &found))
    }

    async fn list_emissions(&self, listing: emissions::Listing) -> Result<Answer, ApiError> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator =
            Operator { databases: &databases, declared: &config.processors, name: "", native: None };
        let found = operator.emissions(&listing.selection, listing.limit).await?;
        Ok(answer::json(StatusCode::OK, &found))
    }

    async fn show_dead_letter(&self, name: &str, event_id: Position) -> Result<Answer, ApiError> {
        let (config, databases) = self.databases().await?;
        let _turn = self.turn.lock().await;
        let operator =
            Operator { databases: &databases, declared: &config.processors, name: "", native: None };
        Ok(answer::json(StatusCode::OK, &operator.examine(name, event_id).await?))
    }

    /// Makes a change. The change runs to its end even if the client stops waiting.
    async fn change(self: Arc<Self>, name: &str, change: Change, peer: &Peer) -> Result<Answer, ApiError> {
        let (name, who) = (name.to_owned(), format!("admin endpoint, {}", peer.client));
        let making = tokio::spawn(async move {
            let (config, databases) = self.databases().await?;
            let _turn = self.turn.lock().await;
            let operator =
                Operator { databases: &databases, declared: &config.processors, name: &who, native: None };
            let action = change.as_str();
            let done = change.carry_out(&operator, &name).await?;
            info!(processor = name, action, operator = who, "an operator has acted");
            Ok(answer::json(StatusCode::OK, &done))
        });
        making.await.map_err(|_| ApiError::unavailable("the change was interrupted"))?
    }

    /// Where the endpoint listens, and who may do what according to the present configuration.
    fn settings(&self) -> AdminSettings {
        let present = self.view.borrow().config.clone();
        let present = present.and_then(|config| config.admin.clone());
        let listen = self.started_with.listen.clone();
        present.map_or_else(|| self.started_with.clone(), |present| AdminSettings { listen, ..present })
    }

    fn config(&self) -> Result<Arc<Config>, ApiError> {
        self.view.borrow().config.clone().ok_or_else(|| ApiError::unavailable("the daemon is starting"))
    }

    /// The databases of the present configuration. They are connected when they are first needed.
    async fn databases(&self) -> Result<(Arc<Config>, Arc<Databases>), ApiError> {
        let config = self.config()?;
        let mut known = self.databases.lock().await;
        if let Some((of, databases)) = known.as_ref()
            && of.event_store == config.event_store
            && of.projections == config.projections
        {
            return Ok((config, Arc::clone(databases)));
        }
        let databases = Databases::connect_lazily(&config, "espd admin", CONNECTIONS, CONNECTION_TIME)
            .map_err(|error| ApiError::unavailable(chain(&*error)))?;
        let databases = Arc::new(databases);
        *known = Some((Arc::clone(&config), Arc::clone(&databases)));
        Ok((config, databases))
    }
}
