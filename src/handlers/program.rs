//! Processors whose events a program handles, in any language: a child process that reads events and writes answers,
//! line by line (`docs/worker-protocol.md`).
//!
//! What it wants done is carried out here, in the transaction that moves the position, so that it needs no database to
//! be exactly-once. A worker lives for as long as the database agrees with all that it knows: whatever is not committed
//! whole, and every new claim, ends it, and another one is started.

mod actions;
mod check;
mod conversation;
mod exchange;
mod lines;
mod pace;
mod process;
mod protocol;
mod session;
mod stderr;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};
use tracing::warn;

use crate::event::Position;
use crate::handlers::batch::{BatchTransaction, RowTables, TableShape};
use crate::postgres::sqlstate::TEXT_MAX;
use crate::processing::declaration::{BatchLimits, ProcessorDeclaration, ProgramDeclaration};
use crate::processing::emission::{Emitter, Source};
use crate::processing::failure::Failure;
use crate::processing::processor::{
    BatchRequest, Delivery, Outcome, Processor, ProcessorBase, ProcessorError,
};
use crate::processing::tracker::{Claim, Progress};
pub(crate) use check::check;
use exchange::{Exchange, Trouble};
use pace::Pace;
use protocol::{Hello, Table, VERSION};
use session::{StartError, Worker};

/// How long a worker may take to end in order.
const DISMISSAL_GRACE: Duration = Duration::from_secs(2);

/// How much longer than for an answer the server waits for a word of the transaction.
const IDLE_GRACE: Duration = Duration::from_secs(60);

/// A processor whose events a program handles.
#[derive(Debug)]
pub(crate) struct ProgramProcessor {
    base: ProcessorBase,
    program: ProgramDeclaration,
    emitter: Emitter,
    tables: RowTables,
    pace: Pace,
    /// The number of the last batch.
    batch: u64,
    /// It knows nothing that is not committed.
    worker: Option<Worker>,
}

impl ProgramProcessor {
    pub(crate) fn new(base: ProcessorBase, program: ProgramDeclaration) -> Self {
        let emitter = Emitter::new(&base.declaration, &base.schema, &base.events);
        let (tables, pace) = (RowTables::default(), Pace::new());
        Self { base, program, emitter, tables, pace, batch: 0, worker: None }
    }
}

#[async_trait]
impl Processor for ProgramProcessor {
    fn base(&self) -> &ProcessorBase {
        &self.base
    }

    async fn prepare(&mut self, connection: &mut PgConnection, claim: &Claim) -> Result<(), ProcessorError> {
        // Somebody else may have handled events, or an operator may have reset the tables, since it was started.
        self.close().await;
        let mut transaction = connection.begin().await?;
        self.base.prepare(&mut transaction, claim).await?;
        let names = self.base.declaration.table_names();
        self.tables = RowTables::read(&mut transaction, &self.base.projections_schema, &names).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn process(
        &mut self,
        connection: &mut PgConnection,
        request: BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        self.ensure_worker().await?;
        let limits = BatchLimits { size: self.pace.size().min(request.limits.size), ..*request.limits };
        let request = BatchRequest { limits: &limits, ..request };
        let begun = Instant::now();
        let idle_max = self.program.timeout.saturating_add(IDLE_GRACE);
        let Some(mut transaction) =
            BatchTransaction::open(connection, &self.base, &request, idle_max).await?
        else {
            return Ok(Outcome::ClaimLost);
        };
        let (deliveries, upto) = transaction.read().await?;
        if deliveries.is_empty() {
            return finish(transaction, upto, 0, None).await;
        }
        // From here on the worker knows what the database does not; it comes back when that is committed whole.
        let Some(mut worker) = self.worker.take() else { return Ok(Outcome::ClaimLost) };
        self.batch += 1;
        let (tables, emitter, patience) = (&self.tables, &self.emitter, self.program.timeout);
        let exchange = Exchange::new(&mut worker, &mut transaction, tables, emitter, patience);
        let held = exchange.hold(self.batch, &deliveries).await?;
        if let Some(trouble) = held.trouble {
            let rest = Rest::of(&trouble, held.handled, &deliveries);
            let failure = Box::new(Source::of(rest.next).blame(part(worker, trouble).await));
            self.pace.broken_off();
            if !rest.is_blamed {
                warn!(processor = self.base.name(), error = %failure, "the program has broken off a batch");
            }
            return rest.settle(failure, transaction, &request).await;
        }
        let outcome = finish(transaction, upto, held.handled, None).await?;
        self.pace.answered(held.handled, begun.elapsed(), limits.time);
        self.worker = Some(worker);
        Ok(outcome)
    }

    async fn close(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.dismiss(DISMISSAL_GRACE).await;
        }
    }
}

impl ProgramProcessor {
    /// Starts a worker where there is none.
    async fn ensure_worker(&mut self) -> Result<(), ProcessorError> {
        if self.worker.as_mut().is_some_and(Worker::is_alive) {
            return Ok(());
        }
        self.worker = None;
        let hello = hello(&self.base.declaration, &self.tables);
        let started = Worker::start(&self.program, &hello).await;
        let unavailable =
            |error: StartError| ProcessorError::Unavailable { message: error.to_string(), wait: None };
        self.worker = Some(started.map_err(unavailable)?);
        Ok(())
    }
}

/// What is left of a batch that was not handled whole.
#[derive(Debug)]
struct Rest<'d> {
    /// So many events may be committed.
    good: usize,
    /// The first one that may not.
    next: &'d Delivery,
    /// Whether that one is why.
    is_blamed: bool,
}

impl<'d> Rest<'d> {
    /// Of a batch of which `handled` events were handled.
    fn of(trouble: &Trouble, handled: usize, deliveries: &'d [Delivery]) -> Self {
        // A worker that is out of order after its last answer leaves open what all of them are worth.
        let good = if handled == deliveries.len() { 0 } else { handled };
        let alone = deliveries.len() == 1;
        let is_blamed = alone || good == handled && !matches!(trouble, Trouble::Broken(_));
        Self { good, next: &deliveries[good], is_blamed }
    }

    /// Commits what may be committed. A failure names the next event; it is its own only if that is to blame.
    async fn settle(
        self,
        failure: Box<Failure>,
        transaction: BatchTransaction<'_>,
        request: &BatchRequest<'_>,
    ) -> Result<Outcome, ProcessorError> {
        match (self.good, self.is_blamed) {
            (0, true) => Ok(Outcome::Committed {
                position: request.claim.position,
                handled: 0,
                failure: Some(failure),
            }),
            (0, false) => Err(ProcessorError::Unattributed(failure)),
            (good, is_blamed) => {
                finish(transaction, self.next.event.id - 1, good, is_blamed.then_some(failure)).await
            }
        }
    }
}

/// Ends a worker that did not handle a batch, and says why that was.
async fn part(worker: Worker, trouble: Trouble) -> Failure {
    let (message, detail) = match trouble {
        Trouble::Wrong(what) | Trouble::Broken(what) => (format!("the program {what}"), worker.end().await),
        Trouble::GaveUp { error, detail } => {
            worker.dismiss(DISMISSAL_GRACE).await;
            (error, detail)
        }
        Trouble::Refused(failure) => {
            worker.dismiss(DISMISSAL_GRACE).await;
            return *failure;
        }
    };
    let short = |text: String| text.chars().take(TEXT_MAX).collect::<String>();
    Failure { detail: detail.map(short), ..Failure::of_processor(short(message)) }
}

/// Commits what is in the transaction, and the position with it.
async fn finish(
    transaction: BatchTransaction<'_>,
    position: Position,
    handled: usize,
    failure: Option<Box<Failure>>,
) -> Result<Outcome, ProcessorError> {
    let handled = i32::try_from(handled).unwrap_or(i32::MAX);
    transaction.finish(Progress { position, handled, failing: failure.is_some(), put_off: None }).await?;
    Ok(Outcome::Committed { position, handled, failure })
}

/// What a worker is told first.
fn hello<'h>(declaration: &'h ProcessorDeclaration, tables: &'h RowTables) -> Hello<'h> {
    let emits = declaration.reaction.as_ref().map_or(&[][..], |reaction| &reaction.emits);
    let table =
        |shape: &'h TableShape| (shape.name.as_str(), Table { key: &shape.key, columns: &shape.columns });
    Hello {
        protocol: VERSION,
        processor: &declaration.name,
        kind: declaration.kind(),
        version: declaration.version,
        emits,
        tables: tables.shapes().iter().map(table).collect(),
    }
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
            aggregate_id: Uuid::nil(),
            event_type: "A".into(),
            version: 1,
            body: RawValue::NULL.to_owned(),
            metadata: RawValue::NULL.to_owned(),
            correlation_id: None,
            causation_id: None,
            created_at: DateTime::UNIX_EPOCH,
        };
        (1..=events).map(|id| Delivery { event: event(id), replaying: false }).collect()
    }

    #[test]
    fn an_event_is_blamed_only_where_it_must_have_been_the_one() {
        let wrong = || Trouble::Wrong("x".into());
        let broken = || Trouble::Broken("x".into());
        let gave_up = || Trouble::GaveUp { error: "x".into(), detail: None };
        // The trouble, events in the batch, handled, and then: what may be committed, and whether the next is to blame.
        let cases = [
            (gave_up(), 9, 4, 4, true),
            (gave_up(), 9, 0, 0, true),
            (wrong(), 9, 4, 4, true),
            (broken(), 9, 4, 4, false),
            (broken(), 9, 0, 0, false),
            (broken(), 1, 0, 0, true),
            // After the last answer.
            (wrong(), 9, 9, 0, false),
            (broken(), 9, 9, 0, false),
            (wrong(), 1, 1, 0, true),
        ];
        for (trouble, events, handled, good, is_blamed) in cases {
            let deliveries = deliveries(events);
            let rest = Rest::of(&trouble, handled, &deliveries);
            let words = format!("{trouble:?} after {handled} of {events}");
            assert_eq!((rest.good, rest.is_blamed), (good, is_blamed), "{words}");
            assert_eq!(rest.next.event.id, good as i64 + 1, "{words}");
        }
    }
}
