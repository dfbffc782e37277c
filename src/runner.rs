//! One processor's life: claim it, follow the store batch by batch, retry what fails, give it up.
//!
//! The loop in `Runner::serve` only chooses between *again now* and *wait*; `Runner::step` does one
//! thing and says which. Whatever the runner believes, the tracker row decides: every batch and every
//! renewal names the epoch of its claim, and an answer without a row sends the runner back to claiming.
//!
//! A runner does not know whether it lives in a process of its own or in a task.

use std::io;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tracing::{debug, info, warn};

use crate::declaration::BatchLimits;
use crate::event::Position;
use crate::failure::{Failure, TEXT_MAX, describe, is_infrastructure_error};
use crate::heartbeat::{self, Condition};
use crate::processor::{Processor, ProcessorError, Turn, Turned};
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::subscription::{Subscription, Woken};
use crate::tracker::{Claim, Owner, Standing, Trackers};

/// How a runner works.
#[derive(Debug, Clone)]
pub struct RunnerSettings {
    /// The database of the projections, which holds the tracker.
    pub database: PgConnectOptions,
    /// Schema of the trackers.
    pub schema: String,
    /// Whose runner it is.
    pub owner: Owner,
    /// Where a batch ends.
    pub limits: BatchLimits,
    /// How to go on after a failing event.
    pub retry: RetryPolicy,
    /// How long a claim lasts without a sign of life; renewed at a third of it.
    pub lease: Duration,
}

/// How long a claim lasts by default.
pub const LEASE: Duration = Duration::from_secs(5);

/// How long the database may take over a statement on a tracker row. Beyond it the connection is given up:
/// the server may have vanished without a word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Runs one processor.
pub struct Runner {
    settings: RunnerSettings,
    processor: Box<dyn Processor>,
    trackers: Trackers,
    subscription: Subscription,
    phase: Phase,
    retry: Retry<Option<Position>>,
    rate: Rate,
    /// When the tracker row was last heard of; a batch and a renewal both count.
    heard: Instant,
    /// When a failing event was last logged.
    warned: Option<Instant>,
    /// Events per batch: fewer while a batch fails without naming an event, until it is found.
    size: i64,
    /// The backend that the present connection leads to.
    backend_pid: i32,
}

/// What the runner is about.
#[derive(Debug)]
enum Phase {
    /// Without a claim; `announced` once it has been logged that another owner is waited for.
    Unclaimed { announced: bool },
    /// Handles events.
    Following(Claim),
    /// Waits for an operator to resume it.
    Paused(Claim),
    /// Waits until it is time to try a failing event again.
    Retrying(Claim, Instant),
    /// Waits for an operator to mend what it cannot.
    Failed(Claim),
}

/// What to do after a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Again,
    /// Until the horizon is beyond this position, an operator rings, or the time is over.
    Wait(Option<Position>, Duration),
}

impl Runner {
    /// A runner that has done nothing yet.
    pub fn new(settings: RunnerSettings, processor: Box<dyn Processor>, subscription: Subscription) -> Self {
        let trackers = Trackers::new(&settings.schema);
        let retry = Retry::new(settings.retry);
        let phase = Phase::Unclaimed { announced: false };
        let (rate, heard) = (Rate::new(), Instant::now());
        let size = settings.limits.size;
        Self {
            settings,
            processor,
            trackers,
            subscription,
            phase,
            retry,
            rate,
            heard,
            warned: None,
            size,
            backend_pid: 0,
        }
    }

    /// Lives until the stop is requested. Outages of the database are waited out.
    pub async fn run(mut self, mut stop: Shutdown) {
        let mut outage = Retry::new(RetryPolicy::infrastructure());
        while !stop.is_requested() {
            let begun = Instant::now();
            let Err(error) = self.serve(&mut stop).await else { break };
            if begun.elapsed() > self.settings.lease {
                outage.succeeded();
            }
            let delay = outage.failed(());
            let answered = matches!(error, sqlx::Error::Database(_));
            let what = if answered { "the database could not do it now" } else { "lost the database" };
            warn!(
                processor = self.processor.name(),
                error = describe(&error),
                retry_in_ms = delay.as_millis() as u64,
                "{what}"
            );
            self.phase = Phase::Unclaimed { announced: false };
            heartbeat::promise(delay);
            stop.run_until_requested(tokio::time::sleep(delay)).await;
        }
        info!(processor = self.processor.name(), "stopped");
    }

    /// Works on one connection until the stop is requested or the connection fails.
    async fn serve(&mut self, stop: &mut Shutdown) -> Result<(), sqlx::Error> {
        let Some(connected) = stop.run_until_requested(self.connect()).await else { return Ok(()) };
        let mut connection = connected?;
        while !stop.is_requested() {
            if let Next::Wait(position, time) = self.step(&mut connection).await? {
                heartbeat::promise(time);
                match self.subscription.wait(position, time, stop).await {
                    Woken::Stop => break,
                    Woken::Control => self.silence_is_over(),
                    Woken::Events | Woken::Timeout => {}
                }
            }
        }
        self.release(&mut connection).await?;
        in_time(connection.close()).await
    }

    async fn connect(&mut self) -> Result<PgConnection, sqlx::Error> {
        let name = self.processor.name();
        let options = self.settings.database.clone().application_name(&format!("espd: {name}"));
        let mut connection = in_time(options.disable_statement_logging().connect()).await?;
        // A batch has a time limit of its own; a shorter one of the server's would never let it end.
        let statement = "-- prepare_session\nset statement_timeout = 0";
        in_time(sqlx::query(statement).execute(&mut connection)).await?;
        let statement = "-- find_own_backend\nselect pg_backend_pid()";
        self.backend_pid = in_time(sqlx::query_scalar(statement).fetch_one(&mut connection)).await?;
        Ok(connection)
    }

    /// Does one thing and says what to do next. An error means that the connection is of no use any more.
    async fn step(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        heartbeat::turn(self.phase.condition());
        let upto = match &self.phase {
            Phase::Unclaimed { announced } => return self.claim(connection, *announced).await,
            Phase::Following(claim) => self.subscription.next_upto(claim.position, self.settings.limits.span),
            Phase::Paused(_) | Phase::Retrying(..) | Phase::Failed(_) => None,
        };
        match (upto, &self.phase) {
            (Some(upto), _) => self.turn(connection, upto).await,
            (None, Phase::Following(claim)) if self.until_renewal() > Duration::ZERO => {
                Ok(Next::Wait(Some(claim.position), self.until_renewal()))
            }
            (None, _) => self.renew(connection).await,
        }
    }

    /// Time until the lease has to be renewed, if nothing else is heard of the tracker row.
    fn until_renewal(&self) -> Duration {
        (self.settings.lease / 3).saturating_sub(self.heard.elapsed())
    }

    /// An operator has rung: the tracker row has to be read whatever time it is.
    fn silence_is_over(&mut self) {
        self.heard = self.heard.checked_sub(self.settings.lease).unwrap_or(self.heard);
    }

    async fn claim(&mut self, connection: &mut PgConnection, announced: bool) -> Result<Next, sqlx::Error> {
        let Self { processor, trackers, settings, .. } = self;
        let name = processor.name();
        // Each time: a row that is gone would look like one that somebody else owns.
        let (kind, version) = (processor.kind(), processor.version());
        in_time(trackers.register(&mut *connection, name, kind, version)).await?;
        let claiming = trackers.claim(&mut *connection, name, &settings.owner, settings.lease);
        let Some(claim) = in_time(claiming).await? else {
            if !announced {
                info!(processor = name, "standing by: another daemon owns the processor");
            }
            self.phase = Phase::Unclaimed { announced: true };
            return Ok(Next::Wait(None, settings.lease / 5));
        };
        info!(processor = name, position = claim.position, epoch = claim.epoch, "claimed");
        let preparing = self.processor.prepare(connection, &claim);
        match while_backend_lives(preparing, &self.settings.database, self.backend_pid).await {
            Ok(()) => {
                // What kept the last owner from preparing is mended, whether or not an operator said so.
                if claim.failed || (claim.attempts == 0 && claim.last_error.is_some()) {
                    in_time(self.trackers.forget_failure(connection, self.processor.name(), &claim)).await?;
                }
                self.phase = self.phase_after_claim(claim);
                Ok(Next::Again)
            }
            Err(ProcessorError::Blocked(message)) => self.block(connection, claim, message).await,
            Err(ProcessorError::Lost) => self.lost(),
            Err(ProcessorError::Database(error)) if is_infrastructure_error(&error) => Err(error),
            // A missing right, for example: trying again by itself would only hide it.
            Err(ProcessorError::Database(error)) => self.block(connection, claim, describe(&error)).await,
        }
    }

    /// A restarted process goes on where the last one was: paused, or waiting with the failing event.
    fn phase_after_claim(&mut self, claim: Claim) -> Phase {
        let failing = claim.last_error.as_ref().map(|error| error.event_id);
        let attempts = claim.attempts;
        match (failing, claim.retry_in_seconds) {
            _ if claim.paused => Phase::Paused(claim),
            (Some(failing), Some(seconds)) if attempts > 0 => {
                self.retry.resume(failing, attempts.unsigned_abs());
                let delay = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                Phase::Retrying(claim, Instant::now() + delay)
            }
            _ => Phase::Following(claim),
        }
    }

    async fn turn(&mut self, connection: &mut PgConnection, upto: Position) -> Result<Next, sqlx::Error> {
        let Phase::Following(claim) = &mut self.phase else { return Ok(Next::Again) };
        let begun = Instant::now();
        let RunnerSettings { limits, lease, database, .. } = &self.settings;
        let limits = BatchLimits { size: self.size, ..*limits };
        let turn = Turn { claim, upto, limits: &limits, lease: *lease, rate: self.rate.per_second() };
        let turning = self.processor.turn(connection, turn);
        match while_backend_lives(turning, database, self.backend_pid).await {
            Ok(Turned::Lost) => self.lost(),
            Ok(Turned::Moved { position, handled, failure }) => {
                self.rate.count(position - claim.position);
                self.heard = Instant::now();
                debug!(
                    processor = self.processor.name(),
                    position,
                    handled,
                    duration_ms = begun.elapsed().as_millis() as u64,
                    "batch committed"
                );
                claim.position = position;
                match failure {
                    None => self.succeeded(),
                    Some(failure) => self.failed(connection, *failure).await,
                }
            }
            Err(ProcessorError::Lost) => self.lost(),
            Err(ProcessorError::Blocked(message)) => {
                let claim = claim.clone();
                self.block(connection, claim, message).await
            }
            Err(ProcessorError::Database(error)) if is_infrastructure_error(&error) => Err(error),
            // Raised where no event can be named, such as at commit: halve the batch until it is one event.
            Err(ProcessorError::Database(_)) if self.size > 1 => {
                self.size /= 2;
                Ok(Next::Again)
            }
            Err(ProcessorError::Database(error)) => self.failed(connection, unattributed(&error)).await,
        }
    }

    fn succeeded(&mut self) -> Result<Next, sqlx::Error> {
        if self.retry.attempts() > 0 {
            info!(processor = self.processor.name(), "going on: the failing event has been handled");
        }
        self.retry.succeeded();
        self.size = self.settings.limits.size.min(self.size.saturating_mul(2));
        Ok(Next::Again)
    }

    /// The batch ended before an event that could not be handled.
    async fn failed(&mut self, connection: &mut PgConnection, failure: Failure) -> Result<Next, sqlx::Error> {
        let Phase::Following(claim) = &self.phase else { return Ok(Next::Again) };
        let claim = claim.clone();
        let delay = self.retry.failed(failure.event_id);
        let attempts = self.retry.attempts();
        if self.is_worth_a_line() {
            self.warn_of(&failure, delay);
        }
        let name = self.processor.name();
        in_time(self.trackers.record_failure(connection, name, &claim, attempts, &failure, Some(delay)))
            .await?;
        self.phase = Phase::Retrying(claim, Instant::now() + delay);
        Ok(Next::Again)
    }

    /// A failing event gets a line at its first failure, then one every ten seconds at most.
    fn is_worth_a_line(&mut self) -> bool {
        const SILENCE: Duration = Duration::from_secs(10);
        let worth =
            self.retry.attempts() == 1 || self.warned.is_none_or(|warned| warned.elapsed() >= SILENCE);
        if worth {
            self.warned = Some(Instant::now());
        }
        worth
    }

    fn warn_of(&self, failure: &Failure, delay: Duration) {
        warn!(
            processor = self.processor.name(),
            event.id = failure.event_id,
            event.r#type = failure.event_type,
            attempt = self.retry.attempts(),
            retry_in_ms = delay.as_millis() as u64,
            error = %failure,
            "could not handle an event"
        );
    }

    /// Only an operator can help.
    async fn block(
        &mut self,
        connection: &mut PgConnection,
        claim: Claim,
        message: String,
    ) -> Result<Next, sqlx::Error> {
        let name = self.processor.name();
        warn!(processor = name, error = message, "cannot go on until an operator acts");
        let failure = Failure::of_processor(message);
        in_time(self.trackers.record_failure(connection, name, &claim, 0, &failure, None)).await?;
        self.phase = Phase::Failed(claim);
        Ok(Next::Again)
    }

    fn lost(&mut self) -> Result<Next, sqlx::Error> {
        debug!(processor = self.processor.name(), "the claim is no longer valid");
        self.phase = Phase::Unclaimed { announced: false };
        Ok(Next::Again)
    }

    /// Lets the lease run on, and hears what operators have done to the tracker meanwhile.
    async fn renew(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        let (name, lease) = (self.processor.name(), self.settings.lease);
        match in_time(self.trackers.renew(connection, name, claim, lease)).await? {
            None => self.lost(),
            Some(standing) => {
                self.heard = Instant::now();
                Ok(self.consider(standing))
            }
        }
    }

    /// The next phase and what to wait for in it.
    fn consider(&mut self, standing: Standing) -> Next {
        let name = self.processor.name();
        let renewal = self.settings.lease / 3;
        let phase = std::mem::replace(&mut self.phase, Phase::Unclaimed { announced: false });
        let (phase, next) = match phase {
            Phase::Following(claim) | Phase::Retrying(claim, _) if standing.paused => {
                info!(processor = name, position = standing.position, "paused");
                (Phase::Paused(claim), Next::Wait(None, renewal))
            }
            Phase::Paused(claim) if !standing.paused => {
                info!(processor = name, position = standing.position, "resumed");
                (Phase::Following(claim), Next::Again)
            }
            Phase::Retrying(claim, until) if standing.retry_now || until <= Instant::now() => {
                (Phase::Following(claim), Next::Again)
            }
            Phase::Retrying(claim, until) => {
                let left = until.saturating_duration_since(Instant::now());
                (Phase::Retrying(claim, until), Next::Wait(None, renewal.min(left)))
            }
            Phase::Following(claim) => {
                let position = claim.position;
                (Phase::Following(claim), Next::Wait(Some(position), renewal))
            }
            resting => (resting, Next::Wait(None, renewal)),
        };
        self.phase = phase;
        next
    }

    async fn release(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        match self.phase.claim() {
            Some(claim) => in_time(self.trackers.release(connection, self.processor.name(), claim)).await,
            None => Ok(()),
        }
    }
}

impl Phase {
    fn condition(&self) -> Condition {
        match self {
            Self::Unclaimed { announced: false } => Condition::Starting,
            Self::Unclaimed { announced: true } => Condition::StandingBy,
            Self::Following(_) => Condition::Following,
            Self::Paused(_) => Condition::Paused,
            Self::Retrying(..) => Condition::Retrying,
            Self::Failed(_) => Condition::Failed,
        }
    }

    fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Unclaimed { .. } => None,
            Self::Following(claim) | Self::Paused(claim) | Self::Retrying(claim, _) | Self::Failed(claim) => {
                Some(claim)
            }
        }
    }
}

/// Lets a batch take its time, but not when its backend has vanished without a word.
async fn while_backend_lives<T>(
    turning: impl Future<Output = Result<T, ProcessorError>>,
    database: &PgConnectOptions,
    backend_pid: i32,
) -> Result<T, ProcessorError> {
    tokio::pin!(turning);
    loop {
        heartbeat::promise(ANSWER_TIMEOUT);
        tokio::select! {
            turned = &mut turning => return turned,
            () = tokio::time::sleep(ANSWER_TIMEOUT) => in_time(find_active_backend(database, backend_pid)).await?,
        }
    }
}

/// Confirms on another connection that a backend is at work. Through a pooler, its id may be another's: then
/// there is nothing to be learned, which counts as alive.
async fn find_active_backend(database: &PgConnectOptions, backend_pid: i32) -> Result<(), sqlx::Error> {
    let mut connection = database.clone().disable_statement_logging().connect().await?;
    let statement = "-- find_active_backend\nselect exists (select from pg_stat_activity where pid = $1)";
    let alive: bool = sqlx::query_scalar(statement).bind(backend_pid).fetch_one(&mut connection).await?;
    connection.close().await?;
    if alive { Ok(()) } else { Err(timed_out()) }
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database does not answer"))
}

/// The answer, or an error if it does not come in time.
async fn in_time<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    heartbeat::promise(ANSWER_TIMEOUT);
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(timed_out()),
    }
}

/// A failure of a whole batch, raised where no event can be named: when it was to be committed.
fn unattributed(error: &sqlx::Error) -> Failure {
    let mut failure = Failure::of_processor(describe(error).chars().take(TEXT_MAX).collect::<String>());
    failure.sqlstate =
        error.as_database_error().and_then(|answer| answer.code()).map(|code| code.into_owned());
    failure
}

/// Ids passed per second, over the last second or more.
#[derive(Debug)]
struct Rate {
    since: Instant,
    passed: i64,
    per_second: f32,
}

impl Rate {
    fn new() -> Self {
        Self { since: Instant::now(), passed: 0, per_second: 0.0 }
    }

    fn count(&mut self, passed: i64) {
        self.passed += passed;
        let elapsed = self.since.elapsed().as_secs_f32();
        if elapsed >= 1.0 {
            *self = Self { since: Instant::now(), passed: 0, per_second: self.passed as f32 / elapsed };
        }
    }

    /// Of the last full second; before there is one, of the time so far.
    fn per_second(&self) -> f32 {
        if self.per_second > 0.0 {
            return self.per_second;
        }
        self.passed as f32 / self.since.elapsed().as_secs_f32().max(0.01)
    }
}
