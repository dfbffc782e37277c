//! One processor's life: claim it, follow the store batch by batch, retry what fails, give it up.
//!
//! The loop in `Runner::serve` only chooses between *again now* and *wait*; `Runner::step` does one
//! thing and says which. Whatever the runner believes, the tracker row decides: every batch and every
//! renewal names the epoch of its claim, and an answer without a row sends the runner back to claiming.
//!
//! A runner does not know whether it lives in a process of its own or in a task.

mod bisection;
mod claiming;
mod dead_letters;
mod failures;
mod keepalive;
mod outage;
mod rate;
mod session;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::event::Position;
use crate::postgres::sqlstate::describe;
use crate::process::report::Condition;
use crate::processing::dead_letters::DeadLetters;
use crate::processing::declaration::BatchLimits;
use crate::processing::heartbeat;
use crate::processing::processor::{BatchRequest, Outcome, Processor, Work};
use crate::processing::runner::bisection::Bisection;
use crate::processing::runner::claiming::Waiting;
use crate::processing::runner::keepalive::KeepAlive;
use crate::processing::runner::outage::OutageLog;
use crate::processing::runner::rate::Rate;
use crate::processing::runner::session::in_time;
use crate::processing::tracker::{Claim, Owner, ProcessorKey, Standing, Trackers};
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::store::subscription::{Subscription, Woken};

/// How a runner works.
#[derive(Debug, Clone)]
pub struct RunnerContext {
    /// The database of the projections, which holds the tracker.
    pub database: PgConnectOptions,
    /// Whether that leads through a transaction pooler, where a session keeps nothing.
    pub pooled: bool,
    /// How those who stand by hear of a release.
    pub release_channel: ReleaseChannel,
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
    /// Notified after each batch: what it has emitted for another place or time has to be moved there.
    pub wake_relay: Arc<Notify>,
}

/// The channel that watchers listen on.
#[derive(Debug, Clone)]
pub struct ReleaseChannel {
    /// Its name.
    pub channel: String,
    /// The database that it is in, if not the one of the tracker.
    pub elsewhere: Option<PgConnectOptions>,
}

/// How long a claim lasts by default.
pub const LEASE: Duration = Duration::from_secs(5);

/// Runs one processor.
pub struct Runner {
    /// The tracker of the processor as it is declared.
    key: ProcessorKey,
    name: String,
    settings: RunnerContext,
    processor: Box<dyn Processor>,
    trackers: Trackers,
    letters: DeadLetters,
    subscription: Subscription,
    phase: Phase,
    /// How far the processor has looked, where that is beyond its position.
    seen: Position,
    /// When an event is due that the processor tries again while others go on.
    due: Option<Instant>,
    /// Whether the processor wants another turn in any case.
    under_way: bool,
    /// Whether an operator wants dead letters handled again.
    letters_requested: bool,
    /// Whether an operator has reason to expect the handlers of now: what was started before is let go of.
    handlers_outdated: bool,
    retry: Retry<Option<Position>>,
    outage: OutageLog,
    rate: Rate,
    /// When the tracker row was last heard of; a batch and a renewal both count.
    heard: Instant,
    /// When a failing event was last logged.
    warned: Option<Instant>,
    /// The event that is put off, and how often it had been tried, as far as that was logged.
    put_off_told: Option<(Option<Position>, u32)>,
    /// Events per batch: fewer while a batch fails without naming an event, until it is found.
    bisection: Bisection,
}

/// What the runner is about.
#[derive(Debug)]
enum Phase {
    /// Without a claim.
    Unclaimed(Waiting),
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
    pub fn new(
        settings: RunnerContext,
        key: ProcessorKey,
        processor: Box<dyn Processor>,
        subscription: Subscription,
    ) -> Self {
        let trackers = Trackers::new(&settings.schema);
        let letters = DeadLetters::new(&settings.schema);
        let retry = Retry::new(settings.retry);
        let phase = Phase::Unclaimed(Waiting::default());
        let (rate, heard) = (Rate::new(), Instant::now());
        let bisection = Bisection::new(settings.limits.size);
        Self {
            name: key.name.clone(),
            key,
            settings,
            processor,
            trackers,
            letters,
            subscription,
            phase,
            seen: Position::START,
            due: None,
            under_way: false,
            letters_requested: false,
            handlers_outdated: false,
            retry,
            outage: OutageLog::default(),
            rate,
            heard,
            warned: None,
            put_off_told: None,
            bisection,
        }
    }

    /// Lives until the stop is requested. Outages of the database are waited out.
    pub async fn run(mut self, mut stop: Shutdown) {
        while !stop.is_requested() {
            let mut connection = None;
            let Err(error) = self.serve(&mut connection, &mut stop).await else { break };
            let delay = self.outage.failed(&error);
            let answered = matches!(error, sqlx::Error::Database(_));
            let what = if answered { "the database could not do it now" } else { "lost the database" };
            warn!(
                processor = self.name,
                error = describe(&error),
                retry_in_ms = delay.as_millis() as u64,
                "{what}"
            );
            if let (true, Some(connection)) = (answered, &mut connection) {
                self.tell_outage(connection).await;
            }
            self.phase = Phase::Unclaimed(Waiting::default());
            heartbeat::expect_within(delay);
            stop.run_until_requested(tokio::time::sleep(delay)).await;
        }
        self.processor.close().await;
        info!(processor = self.name, "stopped");
    }

    /// Works on one connection, which it leaves behind, until the stop is requested or the connection fails.
    async fn serve(
        &mut self,
        connection: &mut Option<PgConnection>,
        stop: &mut Shutdown,
    ) -> Result<(), sqlx::Error> {
        let connecting = session::connect(&self.settings, &self.name);
        let Some(connected) = stop.run_until_requested(connecting).await else { return Ok(()) };
        let connected = connection.insert(connected?);
        while !stop.is_requested() {
            if let Next::Wait(position, time) = self.step(connected).await? {
                heartbeat::expect_within(time);
                match self.subscription.wait(position, time, stop).await {
                    Woken::Stop => break,
                    Woken::Control => self.silence_is_over(),
                    Woken::Events | Woken::Timeout => {}
                }
            }
        }
        self.wind_down(connected).await?;
        self.release(connected).await?;
        match connection.take() {
            Some(connection) => in_time(connection.close()).await,
            None => Ok(()),
        }
    }

    /// Lets end what the processor has under way.
    async fn wind_down(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if let Some(ahead) = self.processor.runs_ahead() {
            ahead.stop_sending();
        }
        while self.under_way && matches!(self.phase, Phase::Following(_)) {
            self.step(connection).await?;
        }
        Ok(())
    }

    /// Does one thing and says what to do next. An error means that the connection is of no use any more.
    async fn step(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        heartbeat::record_condition(self.condition());
        if std::mem::take(&mut self.handlers_outdated) {
            self.processor.close().await;
        }
        let upto = match &self.phase {
            Phase::Unclaimed(waiting) => return self.claim(connection, *waiting).await,
            Phase::Following(claim) => self.next_upto(claim.position),
            Phase::Paused(_) | Phase::Retrying(..) | Phase::Failed(_) => None,
        };
        if self.letters_have_a_turn() {
            return self.handle_letter(connection).await;
        }
        match (upto, &self.phase) {
            (Some(upto), _) => self.handle_batch(connection, upto).await,
            (None, Phase::Following(claim)) if self.until_renewal() > Duration::ZERO => {
                let seen = self.seen.max(claim.position);
                Ok(Next::Wait(Some(seen), self.until_renewal().min(self.until_due())))
            }
            (None, _) => self.renew(connection).await,
        }
    }

    /// How far the next batch may go; `None`: there is nothing to do now.
    fn next_upto(&self, position: Position) -> Option<Position> {
        let seen = self.seen.max(position);
        let new = self.subscription.next_upto(seen, self.settings.limits.span);
        new.or_else(|| (self.under_way || self.until_due().is_zero()).then_some(seen))
    }

    /// Time until an event is due that waits for another try while others go on.
    fn until_due(&self) -> Duration {
        self.due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()))
    }

    fn condition(&self) -> Condition {
        match self.phase.condition() {
            Condition::Following if self.due.is_some() => Condition::Retrying,
            condition => condition,
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

    async fn handle_batch(
        &mut self,
        connection: &mut PgConnection,
        upto: Position,
    ) -> Result<Next, sqlx::Error> {
        let Phase::Following(claim) = &self.phase else { return Ok(Next::Again) };
        let begun = Instant::now();
        let RunnerContext { limits, lease, .. } = &self.settings;
        let limits = BatchLimits { size: self.bisection.size(), ..*limits };
        let request = BatchRequest {
            claim,
            work: Work::Batch { upto, rate: self.rate.per_second() },
            limits: &limits,
            lease: *lease,
        };
        let keep_alive = KeepAlive { settings: &self.settings, trackers: &self.trackers, claim };
        match keep_alive.run_beside(self.processor.process(connection, request)).await {
            Ok(Outcome::ClaimLost) => self.lost(),
            Ok(Outcome::Committed { position, handled, failure }) => {
                self.moved(position, position, handled, begun);
                match failure {
                    None => self.succeeded(),
                    Some(failure) => self.failed(connection, *failure).await,
                }
            }
            Ok(Outcome::Ahead { position, seen, handled, under_way, put_off }) => {
                self.moved(position, seen, handled, begun);
                self.under_way = under_way;
                self.wait_for(connection, put_off.map(|put_off| *put_off)).await
            }
            Err(error) => self.went_wrong(connection, error).await,
        }
    }

    /// Takes note of a batch that was committed, and says so.
    fn moved(&mut self, position: Position, seen: Position, handled: i32, begun: Instant) {
        let Phase::Following(claim) = &mut self.phase else { return };
        self.rate.count(self.seen.max(claim.position).distance_to(seen));
        (claim.position, self.seen) = (position, seen);
        self.heard = Instant::now();
        self.outage.over();
        self.bisection.passed(handled.into());
        if handled > 0 || seen == position {
            let duration_ms = begun.elapsed().as_millis() as u64;
            debug!(processor = self.name, position = position.get(), handled, duration_ms, "batch committed");
        }
        if handled > 0 {
            self.settings.wake_relay.notify_one();
        }
    }

    fn lost(&mut self) -> Result<Next, sqlx::Error> {
        debug!(processor = self.name, "the claim is no longer valid");
        self.phase = Phase::Unclaimed(Waiting::default());
        Ok(Next::Again)
    }

    /// Lets the lease run on, and hears what operators have done to the tracker meanwhile.
    async fn renew(&mut self, connection: &mut PgConnection) -> Result<Next, sqlx::Error> {
        let Some(claim) = self.phase.claim() else { return Ok(Next::Again) };
        let outage_over = !self.outage.is_external();
        let renewing = self.trackers.renew(connection, claim, self.settings.lease, outage_over);
        match in_time(renewing).await? {
            None => self.lost(),
            Some(standing) => {
                self.heard = Instant::now();
                self.handlers_outdated |= standing.letters && !self.letters_requested;
                self.letters_requested = standing.letters;
                if outage_over {
                    self.outage.over();
                }
                Ok(self.consider(standing))
            }
        }
    }

    /// The next phase and what to wait for in it.
    fn consider(&mut self, standing: Standing) -> Next {
        let name = &self.name;
        let renewal = self.settings.lease / 3;
        let phase = std::mem::replace(&mut self.phase, Phase::Unclaimed(Waiting::default()));
        let (phase, next) = match phase {
            Phase::Following(claim) | Phase::Retrying(claim, _) if standing.paused => {
                info!(processor = name, position = standing.position.get(), "paused");
                (Phase::Paused(claim), Next::Wait(None, renewal))
            }
            Phase::Paused(claim) if !standing.paused => {
                info!(processor = name, position = standing.position.get(), "resumed");
                self.handlers_outdated = true;
                (Phase::Following(claim), Next::Again)
            }
            Phase::Retrying(claim, until) if standing.retry_now || until <= Instant::now() => {
                (Phase::Following(claim), Next::Again)
            }
            Phase::Retrying(claim, until) if standing.letters && !self.outage.is_external() => {
                (Phase::Retrying(claim, until), Next::Again)
            }
            Phase::Retrying(claim, until) => {
                let left = until.saturating_duration_since(Instant::now());
                (Phase::Retrying(claim, until), Next::Wait(None, renewal.min(left)))
            }
            Phase::Following(claim) if standing.letters => (Phase::Following(claim), Next::Again),
            Phase::Following(claim) => {
                if standing.retry_now && self.due.is_some() {
                    self.due = Some(Instant::now());
                    if let Some(ahead) = self.processor.runs_ahead() {
                        ahead.retry_now();
                    }
                }
                let seen = self.seen.max(claim.position);
                (Phase::Following(claim), Next::Wait(Some(seen), renewal.min(self.until_due())))
            }
            resting => (resting, Next::Wait(None, renewal)),
        };
        self.phase = phase;
        next
    }
}

impl Phase {
    fn condition(&self) -> Condition {
        match self {
            Self::Unclaimed(waiting) if waiting.stands_by() => Condition::StandingBy,
            Self::Unclaimed(_) => Condition::Starting,
            Self::Following(_) => Condition::Following,
            Self::Paused(_) => Condition::Paused,
            Self::Retrying(..) => Condition::Retrying,
            Self::Failed(_) => Condition::Failed,
        }
    }

    fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Unclaimed(_) => None,
            Self::Following(claim) | Self::Paused(claim) | Self::Retrying(claim, _) | Self::Failed(claim) => {
                Some(claim)
            }
        }
    }
}
