//! One batch with a worker: events out, answers in, and what the answers want into the transaction.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Row as _};

use super::conversation::{Conversation, Heard};
use super::protocol::{Order, SentEvent};
use super::session::Worker;
use crate::event::Position;
use crate::handlers::batch::{BatchTransaction, EventEffects, RowTables, Touched};
use crate::postgres::sqlstate::is_infrastructure_error;
use crate::processing::emission::{Emitter, Source};
use crate::processing::failure::Failure;
use crate::processing::processor::{Delivery, ProcessorError};

/// Bytes of answers that are kept before they are carried out. A single answer may be larger.
const PENDING_MAX: usize = 8 << 20;

/// How long the transaction may be left alone while answers come; the server ends one that is silent for too long.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What a batch has come to.
#[derive(Debug)]
pub(super) struct Held {
    /// So many events, from the first on, are handled, and what they want is in the transaction. Nothing else is.
    pub(super) handled: usize,
    /// Why it went no further, or did not end as it should.
    pub(super) trouble: Option<Trouble>,
}

/// Why a batch was not handled whole.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The worker says that it cannot handle the next event.
    GaveUp { error: String, detail: Option<String> },
    /// What the next event is to lead to cannot be carried out.
    Refused(Box<Failure>),
    /// The worker does not keep to the protocol, and the next event is where that shows.
    Wrong(String),
    /// The worker has ended, or is silent. It may have kept back answers to events before the one that it was about.
    Broken(String),
}

/// A batch under way.
pub(super) struct Exchange<'x, 't> {
    pub(super) worker: &'x mut Worker,
    pub(super) transaction: &'x mut BatchTransaction<'t>,
    pub(super) tables: &'x RowTables,
    pub(super) emitter: &'x Emitter,
    /// How long an answer may take.
    pub(super) patience: Duration,
    /// Answers that are not carried out yet, and their length.
    pending: Vec<EventEffects>,
    pending_bytes: usize,
    /// The rows that the first so many of them are about.
    touched: Touched,
    examined: usize,
    /// Events whose answers are.
    applied: usize,
    /// When the transaction was last heard of.
    heard: Instant,
}

impl<'x, 't> Exchange<'x, 't> {
    pub(super) fn new(
        worker: &'x mut Worker,
        transaction: &'x mut BatchTransaction<'t>,
        tables: &'x RowTables,
        emitter: &'x Emitter,
        patience: Duration,
    ) -> Self {
        Self {
            worker,
            transaction,
            tables,
            emitter,
            patience,
            pending: Vec::new(),
            pending_bytes: 0,
            touched: Touched::default(),
            examined: 0,
            applied: 0,
            heard: Instant::now(),
        }
    }

    /// Has the worker handle the events, and carries out what it wants.
    pub(super) async fn hold(mut self, batch: u64, deliveries: &[Delivery]) -> Result<Held, ProcessorError> {
        let events =
            deliveries.iter().map(|Delivery { event, replaying }| SentEvent { event, replaying: *replaying });
        self.worker.tell(&Order::Batch { batch, events: events.collect() });
        let trouble = self.converse(batch, deliveries).await?;
        let trouble = match trouble {
            Some(Trouble::Refused(_)) => trouble,
            _ => self.apply().await?.or(trouble),
        };
        Ok(Held { handled: self.applied, trouble })
    }

    /// Hears the worker out.
    async fn converse(
        &mut self,
        batch: u64,
        deliveries: &[Delivery],
    ) -> Result<Option<Trouble>, ProcessorError> {
        let ids: Vec<Position> = deliveries.iter().map(|delivery| delivery.event.id).collect();
        let mut conversation = Conversation::new(batch, &ids);
        // What does not bring the batch forward does not count as a sign of life.
        let mut since = Instant::now();
        loop {
            let line = match self.worker.hear(since, self.patience).await {
                Ok(line) => line,
                Err(broken) => return Ok(Some(broken.into())),
            };
            let length = line.len();
            match conversation.hear(line) {
                Ok(Heard::Log { message, level }) => {
                    self.worker.log(&message, level);
                    continue;
                }
                Ok(Heard::Done(actions)) => {
                    let source = Source::of(&deliveries[conversation.answered() - 1]);
                    self.pending.push(EventEffects { source, actions });
                    self.pending_bytes += length;
                }
                Ok(Heard::Read { table, key }) => {
                    let (table, key) = (table, key.to_owned());
                    if let Some(trouble) = self.answer_read(&table, &key).await? {
                        return Ok(Some(trouble));
                    }
                }
                Ok(Heard::Failed { error, detail }) => return Ok(Some(Trouble::GaveUp { error, detail })),
                Ok(Heard::End) => return Ok(None),
                Err(wrong) => return Ok(Some(Trouble::Wrong(wrong.0))),
            }
            if let Some(trouble) = self.relieve().await? {
                return Ok(Some(trouble));
            }
            since = Instant::now();
        }
    }

    /// Carries out what is too much to keep, and keeps the transaction alive.
    async fn relieve(&mut self) -> Result<Option<Trouble>, ProcessorError> {
        if self.pending_bytes > PENDING_MAX {
            return self.apply().await;
        }
        if self.heard.elapsed() > SILENCE_MAX {
            sqlx::raw_sql("-- show_life\nselect").execute(self.transaction.connection()).await?;
            self.heard = Instant::now();
        }
        Ok(None)
    }

    /// Carries out what is pending.
    async fn apply(&mut self) -> Result<Option<Trouble>, ProcessorError> {
        if self.pending.is_empty() {
            return Ok(None);
        }
        let effects = std::mem::take(&mut self.pending);
        (self.pending_bytes, self.examined, self.touched) = (0, 0, Touched::default());
        let applied = self.transaction.apply(self.tables, self.emitter, &effects).await?;
        self.heard = Instant::now();
        self.applied += applied.events;
        Ok(applied.failure.map(Trouble::Refused))
    }

    /// Tells the worker a row, as earlier answers have left it.
    async fn answer_read(&mut self, table: &str, key: &RawValue) -> Result<Option<Trouble>, ProcessorError> {
        if self.worker.is_behind() {
            let wrong = "asked for a row before it had read what it was told before";
            return Ok(Some(Trouble::Wrong(wrong.to_owned())));
        }
        let (statement, parameter) = match self.tables.find_row(table, key) {
            Ok(found) => found,
            Err(why) => {
                return Ok(Some(Trouble::Wrong(format!("asked for a row that it cannot have: {why}"))));
            }
        };
        if !self.is_up_to_date(table, key)
            && let Some(trouble) = self.apply().await?
        {
            return Ok(Some(trouble));
        }
        self.transaction.savepoint().await?;
        match self.read_row(statement, parameter).await {
            Ok(row) => {
                self.transaction.release_savepoint().await?;
                self.worker.tell(&Order::Row { row: row.as_deref() });
                Ok(None)
            }
            Err(error) if is_infrastructure_error(&error) => Err(error.into()),
            Err(error) => {
                self.transaction.rollback_to_savepoint().await?;
                let failure = Failure::of_database(&error);
                let message = format!("asked for a row that it cannot have: {}", failure.message);
                Ok(Some(Trouble::Wrong(message)))
            }
        }
    }

    /// Whether the row in the database is as the answers so far have left it.
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
        self.heard = Instant::now();
        let text: Option<String> = found.map(|row| row.try_get(0)).transpose()?;
        text.map(RawValue::from_string).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
    }
}
