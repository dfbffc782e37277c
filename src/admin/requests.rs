//! One request: reads it, checks its permission, does what it asks for, and answers it.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tracing::info;

use super::access::{self, Access, Permission};
use super::answer::{self, Answer, ApiError};
use super::body::read_body;
use super::changes::Change;
use super::dead_letters::{self, Listing};
use super::deadline::Deadline;
use super::doctor::Doctor;
use super::emissions;
use super::events::{self, Admission, Streams};
use super::listener::Peer;
use super::route::Route;
use super::waiting::{self, Waiters, Wanted};
use super::{View, Workers, exposition, health, metrics};
use crate::config::Config;
use crate::event::Position;
use crate::operations::backlog::Backlog;
use crate::operations::databases::Databases;
use crate::operations::databases::usable::Unusable;
use crate::operations::databases::ways::Through;
use crate::operations::lock_watch::{describe_end, observe};
use crate::operations::operator::{Operator, OperatorError};
use crate::operations::status::ProcessorStatus;
use crate::postgres::error::chain;
use crate::postgres::sqlstate::is_lock_timeout;
use crate::shutdown::Shutdown;

/// How long the answer to an unknown token is delayed, so that tokens cannot be guessed quickly.
const UNAUTHORIZED_DELAY: Duration = Duration::from_millis(100);

/// Connections to each database.
const CONNECTIONS: u32 = 2;

/// How long a request waits for one of them.
const CONNECTION_TIME: Duration = Duration::from_secs(2);

/// The `application_name` of the sessions.
const PROGRAM: &str = "espd admin";

/// A session that looks begins with this: who waits longer for a lock has no answer in time.
const LOOK_BRIEFLY: &str = "-- look_briefly\nset lock_timeout = '2500ms'";

/// How long the metrics of processors may take. Without them, the others are answered.
const METRICS_TIME: Duration = Duration::from_secs(6);

/// Answers requests, with what they share.
#[derive(Debug)]
pub(super) struct RequestHandler {
    view: watch::Receiver<View>,
    request_time: Duration,
    /// What was made of the configuration that names the databases.
    reached: Mutex<Option<Reached>>,
    /// Held while a request works on the databases: one at a time needs no more than [`CONNECTIONS`].
    turn: Mutex<()>,
    doctor: Doctor,
    streams: Streams,
    waiters: Waiters,
}

/// The databases of a configuration.
#[derive(Debug, Clone)]
struct Reached {
    config: Arc<Config>,
    /// For whoever looks: a lock is waited for as long as an answer leaves time for.
    looking: Arc<Databases>,
    /// For changes, which wait for their turn behind a batch.
    changing: Arc<Databases>,
    /// The ways that batches go.
    through: Arc<Through>,
}

impl Reached {
    fn new(config: Arc<Config>) -> anyhow::Result<Self> {
        let connect =
            |statement| Databases::connect_lazily(&config, PROGRAM, CONNECTIONS, CONNECTION_TIME, statement);
        let (looking, changing) = (connect(LOOK_BRIEFLY)?, connect("")?);
        let through = Through::of(&config, PROGRAM)?;
        let (looking, changing) = (Arc::new(looking), Arc::new(changing));
        Ok(Self { config, looking, changing, through: Arc::new(through) })
    }

    async fn close(self) {
        for databases in [self.looking, self.changing] {
            databases.events.close().await;
            databases.projections.close().await;
        }
    }
}

impl RequestHandler {
    /// A handler whose streams end when the stop is requested.
    pub(super) fn new(view: watch::Receiver<View>, request_time: Duration, stop: Shutdown) -> Self {
        let (reached, turn, doctor) = (Mutex::default(), Mutex::default(), Doctor::default());
        let (streams, waiters) = (Streams::new(stop), Waiters::default());
        Self { view, request_time, reached, turn, doctor, streams, waiters }
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
        let handling = async {
            match Arc::clone(&self).handle(request, peer).await {
                Err(error) if error.lacks_connection => Err(self.explain(error).await),
                answered => answered,
            }
        };
        let handled = timeout(time, handling).await;
        handled.unwrap_or_else(|_| Err(late())).unwrap_or_else(Into::into)
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: &Peer) -> Result<Answer, ApiError> {
        let (head, body) = request.into_parts();
        let route = Route::find(&head.method, head.uri.path())?;
        let access = self.access();
        let permission = match access::admit(&access, peer.local, &head.headers, &route) {
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
                let admission = Admission { access, view: self.view.clone() };
                self.streams.open(self.config()?, wanted, deadline, admission).await
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

    /// The same error, with what keeps the pools from connecting.
    async fn explain(&self, error: ApiError) -> ApiError {
        let Ok(Reached { looking, .. }) = self.reach().await else { return error };
        let hindrance = looking.find_hindrance().await;
        hindrance.map_or(error, |Unusable { problem, .. }| ApiError::unavailable(problem))
    }

    pub(super) async fn close(&self) {
        if let Some(reached) = self.reached.lock().await.take() {
            reached.close().await;
        }
    }

    fn workers(&self) -> Option<Workers> {
        self.view.borrow().workers.clone()
    }

    async fn readyz(&self, permission: Permission) -> Answer {
        let reached = self.reach().await.map(|reached| (reached.looking, reached.through));
        health::readyz(reached, self.workers().as_ref(), permission >= Permission::Read).await
    }

    /// Answers in time with what can be known in time: a daemon that is not heard from is taken for dead.
    async fn metrics(&self) -> Answer {
        let read = async {
            let statuses = self.statuses(None).await.ok()?;
            Some((statuses, self.backlog().await.ok()))
        };
        let excluded = timeout(METRICS_TIME, Box::pin(self.is_excluded()));
        let (read, is_usable, is_excluded) =
            tokio::join!(timeout(METRICS_TIME, Box::pin(read)), Box::pin(self.is_usable()), excluded);
        let (statuses, backlog) = read.ok().flatten().unzip();
        let snapshots = self.workers().map(|workers| workers.snapshots.borrow().clone()).unwrap_or_default();
        let text =
            metrics::render(statuses, backlog.flatten(), is_usable, is_excluded.unwrap_or(false), &snapshots);
        answer::text(StatusCode::OK, exposition::CONTENT_TYPE, text)
    }

    /// Whether batches reach their databases, which let them write.
    async fn is_usable(&self) -> bool {
        let Ok(Reached { looking, through, .. }) = self.reach().await else { return false };
        let (is_usable, is_through) =
            tokio::join!(looking.require_usable(), through.require(&looking, health::THROUGH_TIME));
        is_usable.is_ok() && is_through.is_ok()
    }

    /// Whether a newer espd has declared the schema to be not for this program.
    async fn is_excluded(&self) -> bool {
        let Ok(Reached { looking, .. }) = self.reach().await else { return false };
        looking.is_for_newer_programs().await
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
        let (statuses, wait) = observe(&databases, |_| {}, operator.statuses(name)).await;
        statuses.map_err(|error| match error {
            OperatorError::Database(error) if is_lock_timeout(&error) => {
                ApiError::unavailable(describe_end(wait.as_ref()))
            }
            error => error.into(),
        })
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
            let Reached { config, changing, .. } = self.reach().await?;
            let _turn = self.turn.lock().await;
            let operator =
                Operator { databases: &changing, declared: &config.processors, name: &who, native: None };
            let action = change.as_str();
            let done = change.carry_out(&operator, &name).await?;
            info!(processor = name, action, operator = who, "an operator has acted");
            Ok(answer::json(StatusCode::OK, &done))
        });
        making.await.map_err(|_| ApiError::unavailable("the change was interrupted"))?
    }

    /// Who may do what at present.
    fn access(&self) -> Access {
        self.view.borrow().access.clone()
    }

    fn config(&self) -> Result<Arc<Config>, ApiError> {
        self.view.borrow().config.clone().ok_or_else(|| ApiError::unavailable("the daemon is starting"))
    }

    /// The databases of the present configuration, for whoever looks.
    async fn databases(&self) -> Result<(Arc<Config>, Arc<Databases>), ApiError> {
        self.reach().await.map(|reached| (reached.config, reached.looking))
    }

    /// The databases of the present configuration. They are connected when they are first needed.
    async fn reach(&self) -> Result<Reached, ApiError> {
        let config = self.config()?;
        let mut known = self.reached.lock().await;
        if let Some(reached) = known.as_mut()
            && reached.config.event_store == config.event_store
            && reached.config.projections == config.projections
        {
            reached.config = config;
            return Ok(reached.clone());
        }
        let reached = Reached::new(config).map_err(|error| ApiError::unavailable(chain(&*error)))?;
        Ok(known.insert(reached).clone())
    }
}
