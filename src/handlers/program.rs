//! Processors whose events a program handles, in any language: a child process that reads events and writes answers,
//! line by line (`docs/worker-protocol.md`).
//!
//! The answers are carried out in the transaction that moves the position, so a program is exactly-once without access to
//! a database. It may keep what it has computed in memory, so it must never know more than is committed: a batch that is
//! not committed whole, and every new claim, ends the program, and another one is started.

mod actions;
mod batch_protocol;
mod batch_size;
mod check;
mod exchange;
mod lines;
mod log_limit;
mod process;
mod protocol;
mod session;
mod session_error;
mod stderr;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};
use tracing::{info, warn};

use crate::event::Position;
use crate::handlers::batch::{BatchTransaction, ReadAhead, RowTables};
use crate::postgres::server_mark;
use crate::postgres::sqlstate::TEXT_MAX;
use crate::processing::declaration::{BatchLimits, ProcessorKind, ProgramDeclaration};
use crate::processing::emission::{Emitter, SourceEvent};
use crate::processing::failure::Failure;
use crate::processing::processor::{
    BatchRequest, Delivery, Outcome, Processor, ProcessorBase, ProcessorError,
};
use crate::processing::progress::Progress;
use crate::processing::tracker::Claim;
use batch_size::BatchSize;
pub(crate) use check::check;
use exchange::{BatchOutcome, Exchange};
use protocol::Handshake;
use session::{ProgramSession, StartError};
use session_error::SessionError;

/// The server ends the transaction when it is idle for longer than an answer may take, plus this.
const IDLE_GRACE: Duration = Duration::from_secs(60);

/// Characters of the last line of standard error that are kept with a failure.
const STDERR_LINE_MAX: usize = 200;

/// A processor whose events a program handles.
#[derive(Debug)]
pub(crate) struct ProgramProcessor {
    base: ProcessorBase,
    program: ProgramDeclaration,
    emitter: Emitter,
    tables: RowTables,
    batch_size: BatchSize,
    /// The name that the program is told: that of the processor, also where this one is a version beside it.
    known_as: String,
    /// The number of the last batch.
    batch: u64,
    /// `None` while no program runs. A program kept here knows nothing that is not committed.
    session: Option<ProgramSession>,
    /// What was read while the program handled the last batch.
    ahead: Option<ReadAhead>,
    /// The fingerprint of the handlers that may handle events; `None`: whatever the program's files are when it is started.
    bound_to: Option<String>,
}

impl ProgramProcessor {
    pub(crate) fn new(base: ProcessorBase, program: ProgramDeclaration) -> Self {
        let emitter = Emitter::new(&base.declaration, &base.schema, &base.events);
        let (tables, batch_size) = (RowTables::default(), BatchSize::new());
        let known_as = base.name().to_owned();
        Self {
            base,
            program,
            emitter,
            tables,
            batch_size,
            known_as,
            batch: 0,
            session: None,
            ahead: None,
            bound_to: None,
        }
    }

    /// Tells the program another name than that of the tracker.
    #[must_use]
    pub(crate) fn known_as(self, name: &str) -> Self {
        Self { known_as: name.to_owned(), ..self }
    }
}

#[async_trait]
impl Processor for ProgramProcessor {
    fn base(&self) -> &ProcessorBase {
        &self.base
    }

    fn bind_handlers(&mut self, fingerprint: Option<&str>) {
        self.bound_to = fingerprint.map(str::to_owned);
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        let mut transaction = connection.begin_with(server_mark::begin(None)).await?;
        self.base.prepare(&mut transaction, claim).await?;
        let names = self.base.declaration.table_names();
        if self.kind() == ProcessorKind::Projector {
            // Another version finds out by it what `ddl` has made.
            self.base.tables().note_declared(&mut transaction, self.base.events.layout().upcasts()).await?;
        }
        self.tables = RowTables::read(&mut transaction, &self.base.scope.schema, &names).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        let ahead = self.ahead.take();
        self.ensure_session().await?;
        let limits =
            BatchLimits { size: self.batch_size.events().min(request.limits.size), ..*request.limits };
        let request = BatchRequest { limits: &limits, ..request };
        let begun = Instant::now();
        let idle_max = self.program.timeout.saturating_add(IDLE_GRACE);
        let Some(mut transaction) =
            BatchTransaction::open(connection, &self.base, &request, idle_max).await?
        else {
            return Ok(Outcome::ClaimLost);
        };
        let (deliveries, upto) = transaction.read_with(ahead).await?;
        if deliveries.is_empty() {
            return finish(transaction, upto, 0, None).await;
        }
        // From here on the program knows more than the database. It is kept only if the batch is committed whole.
        let Some(mut session) = self.session.take() else { return Ok(Outcome::ClaimLost) };
        self.batch += 1;
        let (tables, emitter, answer_timeout) = (&self.tables, &self.emitter, self.program.timeout);
        let exchange = Exchange::new(&mut session, &mut transaction, tables, emitter, answer_timeout);
        let BatchOutcome { handled, error, ahead } =
            exchange.run_batch(self.batch, &deliveries, upto).await?;
        if let Some(error) = error {
            let rest = Remainder::after(&error, handled, &deliveries);
            let failure = Box::new(SourceEvent::of(rest.next).attribute(end_session(session, error).await));
            self.batch_size.record_failure();
            if !rest.is_attributed {
                warn!(processor = self.base.name(), error = %failure, "the program has not finished a batch");
            }
            return rest.commit(failure, transaction, &request).await;
        }
        let outcome = finish(transaction, upto, handled, None).await?;
        session.is_new = false;
        self.batch_size.record_answered(handled, begun.elapsed(), limits.time);
        (self.session, self.ahead) = (Some(session), ahead);
        Ok(outcome)
    }

    async fn close(&mut self) {
        self.ahead = None;
        if let Some(session) = self.session.take() {
            drop(session.stop().await);
        }
    }
}

impl ProgramProcessor {
    /// Starts the program if none is running.
    async fn ensure_session(&mut self) -> Result<(), ProcessorError> {
        if self.session.as_mut().is_some_and(ProgramSession::is_alive) {
            return Ok(());
        }
        self.session = None;
        self.refuse_other_files()?;
        let handshake = Handshake::new(&self.base.declaration, &self.known_as, &self.tables);
        let started = ProgramSession::start(&self.program, &handshake).await;
        let unavailable =
            |error: StartError| ProcessorError::Unavailable { message: error.to_string(), wait: None };
        let session = started.map_err(unavailable)?;
        // The program has read its files by now, which may have changed since they were looked at.
        if let Err(others) = self.refuse_other_files() {
            drop(session.stop().await);
            return Err(others);
        }
        self.session = Some(session);
        Ok(())
    }

    /// Refuses to start other files than those that were compared with what has handled events: what follows from a change is
    /// decided under a new claim.
    fn refuse_other_files(&self) -> Result<(), ProcessorError> {
        if self.bound_to.is_none() || self.bound_to == self.base.handler_fingerprint() {
            return Ok(());
        }
        info!(processor = self.base.name(), "the program has changed since it was started last");
        Err(ProcessorError::OtherHandlers)
    }
}

/// What to do with a batch that was not handled whole.
#[derive(Debug)]
struct Remainder<'d> {
    /// The number of events, counted from the first, that may be committed.
    committable: usize,
    /// The event behind those.
    next: &'d Delivery,
    /// Whether `next` is known to be the reason.
    is_attributed: bool,
}

impl<'d> Remainder<'d> {
    /// The remainder of a batch that ended with `error` after `handled` of its events.
    fn after(error: &SessionError, handled: usize, deliveries: &'d [Delivery]) -> Self {
        // A program that violates the protocol after its last answer makes all of its answers doubtful.
        let committable = if handled == deliveries.len() { 0 } else { handled };
        let alone = deliveries.len() == 1;
        let is_attributed = alone || committable == handled && !matches!(error, SessionError::Broken(_));
        Self { committable, next: &deliveries[committable], is_attributed }
    }

    /// Commits what may be committed. `failure` names the next event, and counts against it only if that is to blame.
    async fn commit(
        self,
        failure: Box<Failure>,
        transaction: BatchTransaction<'_>,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        match (self.committable, self.is_attributed) {
            (0, true) => Ok(Outcome::Committed {
                position: request.claim.position,
                handled: 0,
                failure: Some(failure),
            }),
            (0, false) => Err(ProcessorError::Unattributed(failure)),
            (committable, is_attributed) => {
                finish(
                    transaction,
                    self.next.event.id.previous(),
                    committable,
                    is_attributed.then_some(failure),
                )
                .await
            }
        }
    }
}

/// Ends the session after a batch that was not handled whole, and describes the failure, without what is not shown.
async fn end_session(session: ProgramSession, error: SessionError) -> Failure {
    let hidden = session.hidden.clone();
    let (message, detail, tail) = match error {
        SessionError::Violation(what) | SessionError::Broken(what) => {
            let tail = session.kill().await;
            (format!("the program {what}"), tail.clone(), tail)
        }
        SessionError::GaveUp { error, detail } => {
            let said = Some(error).filter(|error| !error.trim().is_empty());
            let error = said.unwrap_or_else(|| "the program has failed and gives no reason".to_owned());
            (error, detail, session.stop().await)
        }
        SessionError::Refused(failure) => {
            return Failure {
                message: hidden.conceal(&failure.message),
                detail: failure.detail.as_deref().map(|detail| hidden.conceal(detail)),
                stderr: session.stop().await.as_deref().and_then(last_words),
                ..*failure
            };
        }
    };
    // It is cut last: half a secret is not recognized.
    let short = |text: String| hidden.conceal_excerpt(&text).chars().take(TEXT_MAX).collect::<String>();
    let stderr = tail.as_deref().and_then(last_words);
    Failure { detail: detail.map(short), stderr, ..Failure::of_processor(short(message)) }
}

/// What a program has written last to its standard error of what is wrong, in one line, without control characters.
fn last_words(tail: &str) -> Option<String> {
    let line = stderr::find_telling(tail)?;
    Some(line.chars().filter(|character| !character.is_control()).take(STDERR_LINE_MAX).collect())
}

/// Moves the position and commits the transaction.
async fn finish(
    transaction: BatchTransaction<'_>,
    position: Position,
    handled: usize,
    failure: Option<Box<Failure>>,
) -> Result<Outcome, ProcessorError> {
    let handled = i32::try_from(handled).unwrap_or(i32::MAX);
    transaction
        .finish(Progress { position, handled, failing: failure.is_some(), pending_retry: None })
        .await?;
    Ok(Outcome::Committed { position, handled, failure })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::*;
    use crate::event::Event;

    fn deliveries(events: i64) -> Vec<Delivery> {
        let event = |id| Event {
            id,
            uuid: Uuid::nil(),
            aggregate_id: Uuid::nil().into(),
            event_type: "A".into(),
            version: 1.into(),
            body: RawValue::NULL.to_owned(),
            metadata: RawValue::NULL.to_owned(),
            correlation_id: None,
            causation_id: None,
            created_at: DateTime::UNIX_EPOCH.into(),
        };
        (1..=events).map(|id| Delivery { event: event(id.into()), replaying: false }).collect()
    }

    #[test]
    fn an_event_is_attributed_only_if_it_must_be_the_reason() {
        let violation = || SessionError::Violation("x".into());
        let broken = || SessionError::Broken("x".into());
        let gave_up = || SessionError::GaveUp { error: "x".into(), detail: None };
        // The error, events in the batch, events handled; and then: how many may be committed, and whether the next is blamed.
        let cases = [
            (gave_up(), 9, 4, 4, true),
            (gave_up(), 9, 0, 0, true),
            (violation(), 9, 4, 4, true),
            (broken(), 9, 4, 4, false),
            (broken(), 9, 0, 0, false),
            (broken(), 1, 0, 0, true),
            // After the last answer.
            (violation(), 9, 9, 0, false),
            (broken(), 9, 9, 0, false),
            (violation(), 1, 1, 0, true),
        ];
        for (error, events, handled, committable, is_attributed) in cases {
            let deliveries = deliveries(events);
            let rest = Remainder::after(&error, handled, &deliveries);
            let case = format!("{error:?} after {handled} of {events}");
            assert_eq!((rest.committable, rest.is_attributed), (committable, is_attributed), "{case}");
            assert_eq!(rest.next.event.id, committable as i64 + 1, "{case}");
        }
    }
}
