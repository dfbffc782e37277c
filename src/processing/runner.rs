//! A runner lives one processor's life: it claims the processor, follows the store batch by batch, retries what fails,
//! and releases the claim when it is asked to stop.
//!
//! The loop in `Runner::serve` only steps and waits. `Runner::step` does one thing, which `Runner::next_action` chooses
//! from the `phase`. What follows from an error is chosen in `decision` and done in `failures`. Whatever the runner
//! believes, the tracker row decides: every batch and every renewal names the epoch of its claim, and an answer without a
//! row sends the runner back to claiming.
//!
//! A runner does not know whether it lives in a process of its own or in a task.

mod batch;
mod bisection;
mod caution;
mod claiming;
mod cut_off;
mod dead_letters;
mod decision;
mod ending;
mod failures;
mod growth;
mod handler_change;
mod history;
mod keepalive;
mod outage;
mod phase;
mod rate;
mod renewal;
mod session;
mod sessions;
mod steward;
mod together;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{debug, info};

use crate::event::Position;
use crate::postgres::connector::Connector;
use crate::process::report::Condition;
use crate::processing::dead_letters::DeadLetters;
use crate::processing::declaration::BatchLimits;
use crate::processing::heartbeat;
use crate::processing::processor::Processor;
use crate::processing::runner::caution::Caution;
use crate::processing::runner::cut_off::CutOff;
use crate::processing::runner::failures::FailureLog;
use crate::processing::runner::outage::{LeftAlone, OutageLog};
use crate::processing::runner::phase::{Following, Phase, Waiting};
use crate::processing::runner::rate::Rate;
use crate::processing::runner::sessions::Session;
use crate::processing::runner::together::Passes;
use crate::processing::tracker::{Owner, ProcessorKey, Trackers, renewal_interval};
use crate::retry::{Retry, RetryPolicy};
use crate::shutdown::Shutdown;
use crate::store::subscription::{Subscription, Woken};

pub(crate) use bisection::Bisection;
pub(crate) use decision::{Attempt, Decision, decide, decide_failure};
pub(crate) use sessions::SHARED_SESSIONS;
pub(crate) use steward::Steward;
pub(crate) use together::Shared;

/// What a runner needs beside the processor, and how it works.
#[derive(Debug, Clone)]
pub struct RunnerContext {
    /// The database of the projections, which holds the tracker.
    pub database: Connector,
    /// The way past the transaction pooler that `database` leads through, if there is one. Behind it, a session keeps
    /// nothing.
    pub direct: Option<Connector>,
    /// How standbys are told that a tracker is released.
    pub release_channel: ReleaseChannel,
    /// Schema of the trackers.
    pub schema: String,
    /// The owner that the runner claims for: its daemon.
    pub owner: Owner,
    /// Where a batch ends.
    pub limits: BatchLimits,
    /// When a failing event is tried again, and what happens when its attempts are used up.
    pub retry: RetryPolicy,
    /// How long a claim lasts without a renewal; renewed after a third of it.
    pub lease: Duration,
    /// Notified after each batch, because the relay has to move what the batch has emitted for another place or time.
    pub wake_relay: Arc<Notify>,
}

impl RunnerContext {
    /// Leads past the pooler if authors run statements of their own on the connection: those that their driver keeps
    /// prepared would be found by others, under names of their own statements.
    fn for_processor(self, processor: &dyn Processor) -> Self {
        if !processor.hands_out_connection() {
            return self;
        }
        let Self { database, direct, .. } = self;
        Self { database: direct.unwrap_or(database), direct: None, ..self }
    }
}

/// The channel on which standbys are told of a release: the one that watchers listen on.
#[derive(Debug, Clone)]
pub struct ReleaseChannel {
    /// The channel's name.
    pub channel: String,
    /// The database that the channel is in, if it is not the one of the tracker.
    pub elsewhere: Option<Connector>,
}

/// Runs one processor.
pub struct Runner {
    /// The tracker of the processor as it is declared.
    key: ProcessorKey,
    name: String,
    context: RunnerContext,
    processor: Box<dyn Processor>,
    trackers: Trackers,
    dead_letters: DeadLetters,
    subscription: Subscription,
    phase: Phase,
    /// When the lease was last renewed, which also reads what operators want. A batch extends the lease, but reads nothing: in
    /// a stream of events that never ends, operators would be ignored.
    renewed_at: Instant,
    /// When the lease was last asked for, by a claim or a renewal that was granted. Whoever is frozen before the answer is read is not
    /// deceived by it.
    leased_at: Instant,
    /// When a batch was last handled, or the tracker claimed.
    batch_at: Instant,
    /// Set by an operator's retry or resume. The next step restarts the handler, so that it runs the current code.
    restart_handler: bool,
    /// Counts the failures of the event that fails.
    retry: Retry<Option<Position>>,
    failure_log: FailureLog,
    outage: OutageLog,
    /// How long the receiver of a webhook has asked to be left alone; `None`: it has not.
    left_alone: Option<LeftAlone>,
    /// When the batch began that the present step handles.
    batch_began: Option<Instant>,
    rate: Rate,
    /// Whether the session was opened because the one before may have been to blame for a failure, and nothing has been
    /// handled on it yet.
    session_is_renewed: bool,
    /// Whether events are handled one by one, because one may end the worker.
    caution: Caution,
    /// How batches are kept within the server's `transaction_timeout`.
    cut_off: CutOff,
    /// What is shared with the other runners of the worker; `None`: nothing is.
    shared: Option<Shared>,
    /// The session that the claim names.
    recorded: Option<u64>,
    /// Whether the session that was taken last keeps what is set on it.
    keeps_session: bool,
    passes: Passes,
}

/// The one thing that a step does.
#[derive(Debug)]
enum Action {
    /// Try to claim the processor, or look again who owns it.
    Claim(Waiting),
    /// Handle the events up to this position.
    HandleBatch(Position),
    /// Handle a dead letter again, because an operator wants it.
    HandleDeadLetter,
    /// Renew the lease, which also tells what operators have done.
    Renew,
    /// Do nothing until something happens.
    Wait(Next),
}

/// What to do after a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Step again at once.
    Again,
    /// Step again on a new session.
    Reconnect,
    /// Wait until the horizon is beyond this position, an operator notifies, or the time is over.
    Wait(Option<Position>, Duration),
}

/// Why the runner has left a connection that works.
#[derive(Debug)]
enum Served {
    /// The stop was requested.
    ToTheEnd,
    /// The session may be to blame for a failure.
    OldSession,
}

impl Runner {
    /// Creates a runner, which does nothing before [`Self::run`].
    pub fn new(
        context: RunnerContext,
        key: ProcessorKey,
        processor: Box<dyn Processor>,
        subscription: Subscription,
    ) -> Self {
        let context = context.for_processor(processor.as_ref());
        let trackers = processor.base().trackers();
        let passes = Passes::new(processor.passes_over());
        Self {
            name: key.name.clone(),
            key,
            dead_letters: DeadLetters::new(&trackers),
            trackers,
            retry: Retry::new(context.retry),
            context,
            processor,
            subscription,
            phase: Phase::default(),
            renewed_at: Instant::now(),
            leased_at: Instant::now(),
            batch_at: Instant::now(),
            restart_handler: false,
            failure_log: FailureLog::default(),
            outage: OutageLog::default(),
            left_alone: None,
            batch_began: None,
            rate: Rate::new(Instant::now()),
            session_is_renewed: false,
            caution: Caution::default(),
            cut_off: CutOff::default(),
            shared: None,
            recorded: None,
            keeps_session: false,
            passes,
        }
    }

    /// Runs the processor until the stop is requested. Outages of the database are waited out.
    pub async fn run(mut self, mut stop: Shutdown) {
        while !stop.is_requested() {
            let mut session = None;
            match Box::pin(self.serve(&mut session, &mut stop)).await {
                Ok(Served::ToTheEnd) => break,
                Ok(Served::OldSession) => self.phase = Phase::default(),
                Err(error) => {
                    let delay = self.database_failed(&error, session.as_mut()).await;
                    self.phase = Phase::default();
                    heartbeat::expect_within(delay);
                    stop.run_until_requested(tokio::time::sleep(delay)).await;
                }
            }
        }
        self.processor.close().await;
        info!(processor = self.name, "stopped");
    }

    /// Works, on a session that it leaves behind, until the stop is requested, the session fails, or it is given up.
    async fn serve(
        &mut self,
        session: &mut Option<Session>,
        stop: &mut Shutdown,
    ) -> Result<Served, sqlx::Error> {
        while !stop.is_requested() {
            match self.step(session, stop).await? {
                None => break,
                Some(Next::Again) => self.end_turn(session),
                Some(Next::Reconnect) => return Ok(Served::OldSession),
                Some(Next::Wait(position, time)) => {
                    self.give_back(session);
                    heartbeat::expect_within(time);
                    match self.subscription.wait(position, time, stop).await {
                        Woken::Stop => break,
                        Woken::Control => self.expect_news(),
                        Woken::Events | Woken::Timeout => {}
                    }
                }
            }
        }
        self.end(session, stop).await?;
        Ok(Served::ToTheEnd)
    }

    /// Does one thing and says what to do next; `None`: the stop was requested before it could. An error means that the session is
    /// of no use any more.
    async fn step(
        &mut self,
        session: &mut Option<Session>,
        stop: &mut Shutdown,
    ) -> Result<Option<Next>, sqlx::Error> {
        heartbeat::record_condition(self.condition());
        self.batch_began = None;
        if std::mem::take(&mut self.restart_handler) {
            self.processor.close().await;
        }
        let action = match self.next_action() {
            Action::Wait(next) => return Ok(Some(next)),
            action => action,
        };
        if let Some(next) = Box::pin(self.act_together(&action)).await {
            return Ok(Some(next));
        }
        let Some(Session { connection, id, .. }) = Box::pin(self.hold(session, Some(stop))).await? else {
            return Ok(None);
        };
        // What is large is on the heap, or each of the callers had room for the largest of them on its stack.
        match action {
            Action::Claim(waiting) => {
                self.recorded = Some(*id);
                let next = Box::pin(self.claim(connection, waiting)).await;
                self.note_arrival();
                next
            }
            Action::HandleBatch(upto) => Box::pin(self.handle_batch(connection, upto)).await,
            Action::HandleDeadLetter => Box::pin(self.handle_dead_letter(connection)).await,
            Action::Renew => Box::pin(self.renew(connection)).await,
            Action::Wait(next) => Ok(next),
        }
        .map(Some)
    }

    /// The condition that the supervisor is told.
    fn condition(&self) -> Condition {
        match self.phase {
            Phase::Retrying(..) if self.outage.is_external() => Condition::Waiting,
            // To try again may take long.
            Phase::Following(_) if self.outage.is_external() && self.has_work() => Condition::Waiting,
            _ => self.phase.condition(),
        }
    }

    /// What the next step does. A renewal that is due comes before everything, so that neither a long retry nor a stream of
    /// events that never ends keeps operators waiting. A dead letter comes before a batch, unless the last one was long ago.
    fn next_action(&self) -> Action {
        match &self.phase {
            Phase::Unclaimed(waiting) => Action::Claim(*waiting),
            Phase::Following(_) if self.until_renewal().is_zero() => Action::Renew,
            Phase::Following(following) => match self.next_upto(following) {
                Some(upto) if !following.dead_letters_requested || self.is_batch_overdue() => {
                    Action::HandleBatch(upto)
                }
                _ if following.dead_letters_requested => Action::HandleDeadLetter,
                _ => self.wait_or_renew(Some(following.seen()), following.until_due()),
            },
            // While the handlers need something that is not there, a dead letter waits for it as well.
            Phase::Retrying(following, _)
                if following.dead_letters_requested
                    && !self.outage.is_external()
                    && !self.until_renewal().is_zero() =>
            {
                Action::HandleDeadLetter
            }
            Phase::Retrying(_, until) | Phase::Lacking(_, until) => {
                self.wait_or_renew(None, until.saturating_duration_since(Instant::now()))
            }
            Phase::Paused(_) | Phase::Failed(_) | Phase::Awaiting(_) | Phase::Diverged(_) => {
                self.wait_or_renew(None, Duration::MAX)
            }
        }
    }

    /// Whether events have waited for dead letters long enough.
    fn is_batch_overdue(&self) -> bool {
        self.batch_at.elapsed() >= self.context.lease / 3
    }

    /// Whether there is something to handle that has not been tried, or is tried again.
    fn has_work(&self) -> bool {
        matches!(&self.phase, Phase::Following(following) if self.next_upto(following).is_some())
    }

    /// How far the next batch may go; `None`: there is nothing to do now.
    fn next_upto(&self, following: &Following) -> Option<Position> {
        let seen = following.seen();
        let new = self.subscription.next_upto(seen, self.limits(following).span);
        new.or_else(|| (following.under_way || following.until_due().is_zero()).then_some(seen))
    }

    /// Waits for an event beyond `position`, but no longer than `time`, and not beyond the next renewal.
    fn wait_or_renew(&self, position: Option<Position>, time: Duration) -> Action {
        let time = time.min(self.until_renewal());
        if time.is_zero() { Action::Renew } else { Action::Wait(Next::Wait(position, time)) }
    }

    /// Time until the lease has to be renewed.
    fn until_renewal(&self) -> Duration {
        renewal_interval(self.context.lease).saturating_sub(self.renewed_at.elapsed())
    }

    /// Makes the next step read the tracker row, because an operator has changed something.
    fn expect_news(&mut self) {
        self.renewed_at = self.renewed_at.checked_sub(self.context.lease).unwrap_or(self.renewed_at);
    }

    /// Goes back to claiming.
    fn claim_lost(&mut self) -> Next {
        debug!(processor = self.name, "the claim is no longer valid");
        self.phase = Phase::default();
        Next::Again
    }
}
