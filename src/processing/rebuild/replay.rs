//! Has the version beside the serving one handle events, by the code that handles those of every processor.

use std::time::{Duration, Instant};

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use thiserror::Error;

use super::Beside;
use crate::event::Position;
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::processing::dead_letters::{DeadLetters, NewDeadLetter};
use crate::processing::declaration::{
    BatchLimits, FoldedLimits, Handling, ProcessorDeclaration, ProcessorKind,
};
use crate::processing::failure::Failure;
use crate::processing::processor::{BatchRequest, Outcome, Processor, ProcessorError, Work, fingerprint};
use crate::processing::tracker::{Claim, Owner, ProcessorKey, Trackers};
use crate::retry::OnFailure;

/// How long a claim lasts without a batch. That nobody else builds the same version is kept by a lock of the session.
const LEASE: Duration = Duration::from_secs(10);

/// How large batches are: nobody waits for a row of theirs. The more events are folded at once, the fewer rows are written that a
/// later event of the batch replaces.
const LIMITS: BatchLimits = BatchLimits {
    size: 250_000,
    size_max: 250_000,
    bytes: 128 << 20,
    time: Duration::from_secs(1),
    span: i64::MAX,
    folded: FoldedLimits { size: 250_000, bytes: 128 << 20, span: i64::MAX },
};

/// No batch is made smaller than this many events, and shorter than this time, so that others wait less: a transaction has its cost.
const LEAST: (i64, Duration) = (1_000, Duration::from_millis(100));

/// The longest batch of statements for each event: a row that they change again and again leaves its former states behind until the
/// commit, which have to be looked through.
const STATEMENTS_TIME: Duration = Duration::from_millis(100);

/// As [`LIMITS`], where events leave the database: they are in memory while they are handled.
const LIMITS_OUTSIDE: BatchLimits = BatchLimits { size: 50_000, size_max: 50_000, bytes: 16 << 20, ..LIMITS };

/// The longest pause before a failing event is tried again: the whole build waits for it.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// How long a build waits for failing events in all. What fails afterwards is tried again at once, and not often.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often an event is tried where nobody waits.
const IMPATIENT_ATTEMPTS: u32 = 3;

/// Why events are not handled.
#[derive(Debug, Error)]
pub(crate) enum ReplayError {
    /// A handler has failed at an event.
    #[error("{0}")]
    Failed(Box<Failure>),
    /// Somebody else has taken over.
    #[error("somebody else works on this version now")]
    ClaimLost,
    /// The declaration does not fit what is in the database.
    #[error("{0}")]
    Blocked(String),
    /// The event store is not the one that was followed.
    #[error("the event store is not the one that this version has followed")]
    Diverged,
    /// The database could not do it.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<ProcessorError> for ReplayError {
    fn from(error: ProcessorError) -> Self {
        match error {
            ProcessorError::Blocked(message) | ProcessorError::Unavailable { message, .. } => {
                Self::Blocked(message)
            }
            // Its tracker is of the version that is declared.
            ProcessorError::ClaimLost | ProcessorError::AwaitsVersion { .. } => Self::ClaimLost,
            ProcessorError::OtherHandlers => {
                Self::Blocked("the program has changed while the version was built: begin again".to_owned())
            }
            ProcessorError::Diverged => Self::Diverged,
            ProcessorError::Unattributed(failure)
            | ProcessorError::NotReturned(failure)
            | ProcessorError::StaleSession(failure) => Self::Failed(failure),
            ProcessorError::Database(error) => Self::Database(error),
        }
    }
}

/// A version that handles events beside the one that serves.
pub(crate) struct Replay {
    processor: Box<dyn Processor>,
    trackers: Trackers,
    claim: Claim,
    limits: BatchLimits,
    /// Handlers and dead letters are told that events up to here were handled before.
    replaying_until: Position,
    /// How many events this run has handled.
    pub(crate) handled: i64,
    /// How many events this run has set aside.
    pub(crate) set_aside: i64,
    /// The failing event, and how often it was tried.
    failing: Option<(Position, u32)>,
    /// How long to wait before it is tried again.
    delay: Option<Duration>,
    /// How long it has waited in all.
    waited: Duration,
    /// Whether others stand still for it.
    is_hurried: bool,
    /// The version that serves: what it has set aside is set aside here as well, where it fails.
    serving: Option<ProcessorKey>,
}

impl Replay {
    /// Takes the tracker of the version, from whoever had it, or makes one at `start`; and makes the tables if there are none.
    pub(crate) async fn begin(
        mut processor: Box<dyn Processor>,
        connection: &mut PgConnection,
        start: Position,
    ) -> Result<Self, ReplayError> {
        let key = ProcessorKey::new(processor.name(), processor.version());
        let trackers = processor.base().trackers();
        trackers.register(&mut *connection, &key, ProcessorKind::Projector, start).await?;
        let claim = take(&mut *connection, &trackers, &key).await?;
        processor.prepare(connection, &claim).await?;
        let handlers = processor.base().handler_fingerprint();
        if let Some(handlers) = &handlers {
            // A version that has served before may be continued by others.
            let is_change = claim.was_handled_by_other(handlers);
            trackers.note_handlers(&mut *connection, &claim, handlers, is_change).await?;
        }
        processor.bind_handlers(handlers.as_deref());
        Ok(Self::new(processor, trackers, claim))
    }

    fn new(processor: Box<dyn Processor>, trackers: Trackers, claim: Claim) -> Self {
        let limits = limits_of(&processor.base().declaration);
        Self {
            processor,
            trackers,
            claim,
            limits,
            replaying_until: Position::START,
            handled: 0,
            set_aside: 0,
            failing: None,
            delay: None,
            waited: Duration::ZERO,
            is_hurried: false,
            serving: None,
        }
    }

    /// Sets an event aside that fails, if the version that serves has set it aside: an operator has decided so, or no handler could
    /// handle it.
    #[must_use]
    pub(crate) fn beside(self, serving: &ProcessorKey) -> Self {
        Self { serving: Some(serving.clone()), ..self }
    }

    /// Takes the tracker of one share, which is this partition, from whoever had it. The tables have been made, and so has the function
    /// of a processor in SQL.
    pub(crate) async fn begin_share(
        mut processor: Box<dyn Processor>,
        connection: &mut PgConnection,
        partition: i32,
    ) -> Result<Self, ReplayError> {
        let whole = ProcessorKey::new(processor.name(), processor.version());
        let trackers = processor.base().trackers();
        let claim = take(&mut *connection, &trackers, &ProcessorKey { partition, ..whole }).await?;
        if !matches!(processor.base().declaration.handling, Handling::Sql(_)) {
            processor.prepare(connection, &claim).await?;
            let handlers = processor.base().handler_fingerprint();
            processor.bind_handlers(handlers.as_deref());
        }
        Ok(Self::new(processor, trackers, claim))
    }

    /// Notes what the shares have done, which have become one at this position.
    pub(crate) fn take_over(&mut self, position: Position, handled: i64, set_aside: i64) {
        self.claim.position = position;
        self.handled += handled;
        self.set_aside += set_aside;
    }

    /// Prepares the processor anew, where its tables are others than when it was prepared last.
    pub(crate) async fn prepare(&mut self, connection: &mut PgConnection) -> Result<(), ReplayError> {
        self.claim.declaration = Some(fingerprint(&self.processor.base().declaration));
        Ok(self.processor.prepare(connection, &self.claim).await?)
    }

    /// Every event at or below it is handled.
    pub(crate) fn position(&self) -> Position {
        self.claim.position
    }

    /// The right to change the tracker.
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Handles one batch of the events up to a position, which is at or below the settled horizon. `fraction`: how large it may be,
    /// beside the largest, above 0 and up to 1.
    pub(crate) async fn advance(
        &mut self,
        connection: &mut PgConnection,
        upto: Position,
        fraction: f64,
    ) -> Result<(), ReplayError> {
        if upto > self.replaying_until {
            self.note_replaying(connection, upto).await?;
            self.replaying_until = upto;
        }
        let work = Work::Batch { upto, rate: 0.0 };
        let mut limits = limit_to(&self.limits, fraction);
        if !self.processor.folds() && matches!(self.processor.base().declaration.handling, Handling::Sql(_)) {
            limits.time = limits.time.min(STATEMENTS_TIME);
        }
        let request = BatchRequest {
            claim: &self.claim,
            work,
            limits: &limits,
            lease: LEASE,
            leased_at: Instant::now(),
            mark: None,
            keeps_session: false,
        };
        match self.processor.process(connection, request).await {
            Ok(Outcome::Committed { position, handled, failure }) => {
                self.claim.position = position;
                self.handled += i64::from(handled);
                // What has failed is behind it.
                self.limits.size = (self.limits.size * 2).min(self.limits.size_max);
                match failure {
                    None => self.failing = None,
                    Some(failure) => self.meet_failure(connection, *failure).await?,
                }
                Ok(())
            }
            Ok(Outcome::ClaimLost) => Err(ReplayError::ClaimLost),
            Ok(_) => {
                Err(ReplayError::Blocked("what acts outside of the database is not built beside".to_owned()))
            }
            Err(ProcessorError::Unattributed(failure)) if failure.is_unreadable => {
                self.meet_failure(connection, *failure).await
            }
            // Which event it was, smaller batches show.
            Err(ProcessorError::Unattributed(_)) if self.limits.size > 1 => {
                self.limits.size = (self.limits.size / 8).max(1);
                Ok(())
            }
            Err(ProcessorError::Unattributed(failure)) => self.meet_failure(connection, *failure).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Records that the version which serves has handled all events up to a position: what a handler does about them outside of the
    /// database was done, also where one is a dead letter here and handled again later. Not so for dead letters of the version that
    /// serves: a program does that now, if its rows are to serve.
    async fn note_replaying(&self, connection: &mut PgConnection, upto: Position) -> Result<(), sqlx::Error> {
        let (key, schema) = (&self.claim.key, self.trackers.schema());
        let acts = matches!(self.processor.base().declaration.handling, Handling::Program(_));
        let never_handled = match serving_name(&key.name).filter(|_| acts) {
            None => "null".to_owned(),
            Some(serving) => format!(
                "nullif(array(select d.event_id from {schema}.dead_letters as d
                   where d.processor = {} and not d.replaying and d.event_id between position + 1 and {upto} order by 1), '{{}}')",
                quote_literal(serving)
            ),
        };
        let statement = format!(
            "-- note_replaying
             update {} set silent_until = greatest(silent_until, {upto}), never_handled = {never_handled} where {}",
            self.trackers.table(),
            key.is_tracker()
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Waits until a failing event is tried again, if one is. The time is not that of a batch.
    pub(crate) async fn await_retry(&mut self) {
        if let Some(delay) = self.delay.take() {
            self.waited += delay;
            tokio::time::sleep(delay).await;
        }
    }

    /// Has a failing event tried again, as the declaration says, or sets it aside, where the declaration wants that in the end.
    async fn meet_failure(
        &mut self,
        connection: &mut PgConnection,
        failure: Failure,
    ) -> Result<(), ReplayError> {
        let retry = self.processor.base().declaration.retry;
        let there = self.find_set_aside_there(connection, &failure).await?;
        let blocks = match retry.on_failure {
            OnFailure::Park => Some(true),
            OnFailure::Skip => Some(false),
            _ => there,
        };
        let (Some(event_id), Some(blocks)) = (failure.event_id(), blocks) else {
            return Err(ReplayError::Failed(Box::new(failure)));
        };
        let before = self.failing.filter(|(event, _)| *event == event_id);
        let attempts = before.map_or(1, |(_, attempts)| attempts + 1);
        self.failing = Some((event_id, attempts));
        let most = retry.max_attempts.unwrap_or(1);
        let is_patient = !self.is_hurried && self.waited < PATIENCE;
        let is_last = attempts >= most || !is_patient && attempts >= IMPATIENT_ATTEMPTS;
        if !is_last && there.is_none() {
            self.delay = is_patient.then(|| retry.delay_after(attempts).min(LONGEST_DELAY));
            return Ok(());
        }
        self.set_aside(connection, event_id, NewDeadLetter { failure, attempts, blocks }).await
    }

    /// Whether later events of the aggregate wait behind a failing event where the version that serves has set it aside: one that has
    /// used up its attempts there needs no others here, and neither does one that waits behind such an event. `None`: it has not.
    async fn find_set_aside_there(
        &self,
        connection: &mut PgConnection,
        failure: &Failure,
    ) -> Result<Option<bool>, sqlx::Error> {
        let (Some(serving), Some(event_id)) = (&self.serving, failure.event_id()) else { return Ok(None) };
        let letters = DeadLetters::new(&self.trackers);
        letters.find_blocking(&mut *connection, serving, event_id).await
    }

    /// Sets an event aside: it is a dead letter like any other, and can be handled again once the version is live.
    async fn set_aside(
        &mut self,
        connection: &mut PgConnection,
        event_id: Position,
        dead_letter: NewDeadLetter,
    ) -> Result<(), ReplayError> {
        let letters = DeadLetters::new(&self.trackers);
        if !letters.pass_over(&mut *connection, &self.claim, &dead_letter, LEASE).await? {
            return Err(ReplayError::ClaimLost);
        }
        self.failing = None;
        self.claim.position = event_id;
        self.set_aside += 1;
        Ok(())
    }

    /// Has each batch be one event.
    pub(crate) fn one_by_one(&mut self) {
        self.limits.size = 1;
        self.limits.size_max = 1;
    }

    /// Handles everything up to a position.
    pub(crate) async fn reach(
        &mut self,
        connection: &mut PgConnection,
        upto: Position,
    ) -> Result<(), ReplayError> {
        while self.position() < upto {
            self.await_retry().await;
            self.advance(connection, upto, 1.0).await?;
        }
        Ok(())
    }

    /// As [`Self::reach`], while others stand still for it: nothing is waited for.
    pub(crate) async fn reach_at_once(
        &mut self,
        connection: &mut PgConnection,
        upto: Position,
    ) -> Result<(), ReplayError> {
        self.is_hurried = true;
        let mut reached = Ok(());
        while reached.is_ok() && self.position() < upto {
            reached = self.advance(connection, upto, 1.0).await;
        }
        self.is_hurried = false;
        reached
    }

    /// The trackers that its own is among.
    pub(crate) fn trackers(&self) -> &Trackers {
        &self.trackers
    }
}

/// The name of the processor that serves, by that of a version which is to take its place; `None`: it is only looked at.
fn serving_name(name: &str) -> Option<&str> {
    let (serving, suffix) = name.split_once('$')?;
    let is_former = suffix.parse::<i32>().is_ok();
    (is_former || Beside::Next.name(serving) == name).then_some(serving)
}

/// How large the batches of a version are. Whoever writes handlers in Rust is handed a whole batch at once, and has said how large it
/// may be.
fn limits_of(declaration: &ProcessorDeclaration) -> BatchLimits {
    let declared = declaration.batch;
    match declaration.handling {
        Handling::Sql(_) => LIMITS,
        Handling::Native(_) => BatchLimits {
            size: declared.size.max(declared.size_max),
            size_max: declared.size.max(declared.size_max),
            bytes: declared.bytes.min(LIMITS_OUTSIDE.bytes),
            ..LIMITS_OUTSIDE
        },
        Handling::Program(_) | Handling::Webhook(_) => LIMITS_OUTSIDE,
    }
}

/// A fraction of what batches may be, but no less than what makes others wait hardly less.
fn limit_to(limits: &BatchLimits, fraction: f64) -> BatchLimits {
    let (size, time) = LEAST;
    BatchLimits {
        size: ((limits.size as f64 * fraction) as i64).max(size).min(limits.size),
        time: limits.time.mul_f64(fraction).max(time).min(limits.time),
        ..*limits
    }
}

/// Claims a tracker, whoever has claimed it before.
async fn take(
    connection: &mut PgConnection,
    trackers: &Trackers,
    key: &ProcessorKey,
) -> Result<Claim, ReplayError> {
    end_claims(&mut *connection, trackers, key).await?;
    let claim = trackers.claim(&mut *connection, key, &Owner::generate(), LEASE).await?;
    claim.ok_or(ReplayError::ClaimLost)
}

/// Ends every claim of a tracker: whoever had one was killed, or has lost the lock of the session.
async fn end_claims(
    connection: &mut PgConnection,
    trackers: &Trackers,
    key: &ProcessorKey,
) -> Result<(), sqlx::Error> {
    let statement = format!(
        // A version that was paused when another one took its place is not paused for whoever goes back to it.
        "-- end_claims
         update {} set owner = null, lease_until = null, epoch = epoch + 1, paused_at = null, paused_by = null where {}",
        trackers.table(),
        key.is_tracker()
    );
    simple(statement).execute(connection).await.map(drop)
}

/// The declaration of a version, as it was recorded when it ran.
pub(crate) async fn find_declared(
    connection: &mut PgConnection,
    schema: &str,
    name: &str,
    version: i32,
) -> Result<Option<ProcessorDeclaration>, sqlx::Error> {
    let statement = format!(
        "-- find_declared
         select declared from {schema}.declarations where processor = $1 and version = $2 and declared is not null"
    );
    let found: Option<Json<serde_json::Value>> = sqlx::query_scalar(AssertSqlSafe(statement))
        .persistent(false)
        .bind(name)
        .bind(version)
        .fetch_optional(connection)
        .await?;
    Ok(found.and_then(|Json(value)| serde_json::from_value(value).ok()))
}
