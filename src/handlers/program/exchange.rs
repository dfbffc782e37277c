//! The exchange of one batch with a program: sends its events, receives the answers, and carries them out in the
//! transaction.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Row as _};

use super::batch_protocol::{BatchProtocol, Received};
use super::protocol::{OutgoingMessage, ProtocolViolation, READY_AGAIN, SentEvent};
use super::session::ProgramSession;
use super::session_error::SessionError;
use crate::event::Position;
use crate::handlers::batch::{BatchTransaction, EventEffects, ReadAhead, RowTables, Touched};
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::emission::{Emitter, SourceEvent};
use crate::processing::failure::Failure;
use crate::processing::processor::{Delivery, ProcessorError};

/// Bytes of answers that are kept before they are carried out. A single answer may be larger.
const PENDING_BYTES_MAX: usize = 8 << 20;

/// Answers that are carried out together. In a larger batch the database is at work while the program is.
const PENDING_EVENTS_MAX: usize = 1_000;

/// How long the transaction may stay without a statement while answers arrive. The server ends one that is idle for too
/// long.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// What was done of a batch.
#[derive(Debug)]
pub(super) struct BatchOutcome {
    /// The number of events, counted from the first, whose answers have been carried out in the transaction. It contains
    /// nothing of later events.
    pub(super) handled: usize,
    /// Why the batch ended early, or did not end as it should.
    pub(super) error: Option<SessionError>,
    /// What was read while the program worked.
    pub(super) ahead: Option<ReadAhead>,
}

/// The exchange of one batch.
pub(super) struct Exchange<'x, 't> {
    session: &'x mut ProgramSession,
    transaction: &'x mut BatchTransaction<'t>,
    tables: &'x RowTables,
    emitter: &'x Emitter,
    /// How long the program may take for an answer.
    answer_timeout: Duration,
    /// Answers that have not been carried out, and the length of their lines.
    pending: Vec<EventEffects>,
    pending_bytes: usize,
    /// The rows that the first `examined` of the pending answers change.
    touched: Touched,
    examined: usize,
    /// The number of events whose answers have been carried out.
    applied: usize,
    /// When the last statement of the transaction ended.
    last_statement: Instant,
}

/// Why an exchange ends early.
enum Interruption {
    Session(SessionError),
    Processor(ProcessorError),
}

impl From<SessionError> for Interruption {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<ProtocolViolation> for Interruption {
    fn from(violation: ProtocolViolation) -> Self {
        Self::Session(SessionError::Violation(violation.0))
    }
}

impl From<ProcessorError> for Interruption {
    fn from(error: ProcessorError) -> Self {
        Self::Processor(error)
    }
}

impl From<sqlx::Error> for Interruption {
    fn from(error: sqlx::Error) -> Self {
        Self::Processor(error.into())
    }
}

impl<'x, 't> Exchange<'x, 't> {
    pub(super) fn new(
        session: &'x mut ProgramSession,
        transaction: &'x mut BatchTransaction<'t>,
        tables: &'x RowTables,
        emitter: &'x Emitter,
        answer_timeout: Duration,
    ) -> Self {
        Self {
            session,
            transaction,
            tables,
            emitter,
            answer_timeout,
            pending: Vec::new(),
            pending_bytes: 0,
            touched: Touched::default(),
            examined: 0,
            applied: 0,
            last_statement: Instant::now(),
        }
    }

    /// Has the program handle the events, which end at `upto`, and carries out its answers.
    ///
    /// # Errors
    /// The database could not carry them out, for a reason that lies in no event.
    pub(super) async fn run_batch(
        mut self,
        batch: u64,
        deliveries: &[Delivery],
        upto: Position,
    ) -> Result<BatchOutcome, ProcessorError> {
        let events =
            deliveries.iter().map(|Delivery { event, replaying }| SentEvent { event, replaying: *replaying });
        self.session.send(&OutgoingMessage::Batch { batch, events: events.collect() });
        let ahead = self.session.beside(self.transaction.read_ahead(upto)).await?;
        let received = self.receive_answers(batch, deliveries).await;
        let ended = match received {
            // What was refused has been undone, so nothing behind it may be carried out.
            Err(Interruption::Session(SessionError::Refused(_)) | Interruption::Processor(_)) => received,
            // Answers that arrived before the program failed are carried out all the same.
            _ => self.apply_pending().await.and(received),
        };
        match ended {
            Ok(()) => Ok(BatchOutcome { handled: self.applied, error: None, ahead }),
            Err(Interruption::Session(error)) => {
                Ok(BatchOutcome { handled: self.applied, error: Some(error), ahead: None })
            }
            Err(Interruption::Processor(error)) => Err(error),
        }
    }

    /// Reads the program's messages until it has ended the batch.
    async fn receive_answers(&mut self, batch: u64, deliveries: &[Delivery]) -> Result<(), Interruption> {
        let ids: Vec<Position> = deliveries.iter().map(|delivery| delivery.event.id).collect();
        let mut protocol = BatchProtocol::new(batch, &ids);
        let mut since = Instant::now();
        loop {
            let line = self.session.read_line(since, self.answer_timeout).await;
            let line = line.map_err(SessionError::from)?;
            let length = line.len();
            match protocol.receive(line)? {
                Received::Log { message, level } => {
                    // A program that only logs makes no progress, so its answer is not due any later.
                    self.session.log(&message, level);
                    continue;
                }
                Received::Done(actions) => {
                    let source = SourceEvent::of(&deliveries[protocol.answered() - 1]);
                    self.pending.push(EventEffects { source, actions });
                    self.pending_bytes += length;
                }
                Received::Read { table, key } => {
                    let (table, key) = (table, key.to_owned());
                    self.answer_read(&table, &key).await?;
                }
                Received::Failed { error, detail } => {
                    return Err(SessionError::GaveUp { error, detail }.into());
                }
                Received::ReadyAgain => return Err(self.explain_second_ready()),
                Received::End => return Ok(()),
            }
            self.keep_within_bounds().await?;
            since = Instant::now();
        }
    }

    /// A program that says `ready` twice does so whatever it is sent, so no event is to blame, unless it has handled some.
    fn explain_second_ready(&self) -> Interruption {
        let violation = ProtocolViolation::new(READY_AGAIN);
        if !self.session.is_new {
            return violation.into();
        }
        let message = format!("the program {violation} before it answered an event");
        ProcessorError::Unavailable { message, wait: None }.into()
    }

    /// Carries out the pending answers if they are too many, and keeps the transaction from being idle for too long.
    async fn keep_within_bounds(&mut self) -> Result<(), Interruption> {
        if self.pending_bytes > PENDING_BYTES_MAX || self.pending.len() >= PENDING_EVENTS_MAX {
            return self.apply_pending().await;
        }
        if self.last_statement.elapsed() > IDLE_MAX {
            sqlx::raw_sql("-- keep_transaction_alive\nselect").execute(self.transaction.connection()).await?;
            self.last_statement = Instant::now();
        }
        Ok(())
    }

    /// Carries out the pending answers.
    async fn apply_pending(&mut self) -> Result<(), Interruption> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let effects = std::mem::take(&mut self.pending);
        (self.pending_bytes, self.examined, self.touched) = (0, 0, Touched::default());
        let applying = self.transaction.apply(self.tables, self.emitter, &effects);
        let applied = self.session.beside(applying).await?;
        self.last_statement = Instant::now();
        self.applied += applied.events;
        match applied.failure {
            None => Ok(()),
            Some(failure) => Err(SessionError::Refused(failure).into()),
        }
    }

    /// Sends a row to the program, as its earlier answers have left it.
    async fn answer_read(&mut self, table: &str, key: &RawValue) -> Result<(), Interruption> {
        if self.session.has_unread_input() {
            let violation = "asked for a row before it had read what it was told before";
            return Err(ProtocolViolation::new(violation).into());
        }
        let refused = |why: String| ProtocolViolation(format!("asked for a row that it cannot have: {why}"));
        let (statement, parameter) = self.tables.find_row(table, key).map_err(refused)?;
        if !self.is_up_to_date(table, key) {
            self.apply_pending().await?;
        }
        self.transaction.savepoint().await?;
        match self.read_row(statement, parameter).await {
            Ok(row) => {
                self.transaction.release_savepoint().await?;
                self.session.send(&OutgoingMessage::Row { row: row.as_deref() });
                Ok(())
            }
            Err(error) if is_infrastructure_error(&error) => Err(error.into()),
            Err(error) => {
                self.transaction.rollback_to_savepoint().await?;
                Err(refused(Failure::of_database(&error).message).into())
            }
        }
    }

    /// Whether no pending answer changes the row, so that the database has its current state.
    fn is_up_to_date(&mut self, table: &str, key: &RawValue) -> bool {
        for effects in &self.pending[self.examined..] {
            effects.actions.iter().for_each(|action| self.touched.note(self.tables, action));
        }
        self.examined = self.pending.len();
        self.touched.spares(self.tables, table, key)
    }

    async fn read_row(
        &mut self,
        statement: String,
        parameter: String,
    ) -> Result<Option<Box<RawValue>>, sqlx::Error> {
        let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(parameter);
        let found = query.fetch_optional(self.transaction.connection()).await?;
        self.last_statement = Instant::now();
        let text: Option<String> = found.map(|row| row.try_get(0)).transpose()?;
        text.map(RawValue::from_string).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
    }
}
