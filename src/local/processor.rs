//! One processor, batch by batch.

use super::clock::Clock;
use super::error::LocalError;
use super::ledger::{Commit, DeadLetter, Standing, WorkflowChanges};
use super::transaction::LocalTransaction;
use super::{LocalEvents, LocalStore};
use crate::event::{Event, Position};
use crate::handlers::native::{CarriedOut, NativeHandler, Unreadable};
use crate::processing::declaration::{ProcessorDeclaration, Start};
use crate::processing::emission::SourceEvent;
use crate::processing::failure::{FailedEvent, Failure};
use crate::processing::processor::{Delivery, ProcessorError};
use crate::processing::runner::{Attempt, Bisection, Decision, decide, decide_failure};
use crate::processing::tracker::ProcessorKey;
use crate::retry::{OnFailure, Retry};
use crate::store::upcast::{Upcast, read_through, stored_types};

pub(super) struct LocalProcessor {
    pub(super) key: ProcessorKey,
    declaration: ProcessorDeclaration,
    handler: NativeHandler,
    retry: Retry<Option<Position>>,
    bisection: Bisection,
    /// Whether a step has begun and not come to its end: whoever waits for a drain may give it up.
    is_at_work: bool,
}

/// What came of a step.
pub(super) enum Step {
    /// There is nothing to do.
    Idle,
    /// So many events were handled, and these were set aside. There may be more to do.
    Went { handled: usize, set_aside: Vec<DeadLetter> },
}

impl Step {
    const AGAIN: Self = Self::Went { handled: 0, set_aside: Vec::new() };
}

/// The events of a batch.
struct Page {
    deliveries: Vec<Delivery>,
    unreadable: Option<Unreadable>,
    /// Events that wait behind a dead letter of their aggregate.
    waiting: Vec<DeadLetter>,
    /// The last position that was looked at.
    upto: Position,
}

impl LocalProcessor {
    pub(super) fn new(declaration: ProcessorDeclaration, handler: NativeHandler) -> Self {
        Self {
            key: ProcessorKey::new(&declaration.name, declaration.version),
            retry: Retry::new(declaration.retry),
            bisection: Bisection::new(declaration.batch.size),
            is_at_work: false,
            declaration,
            handler,
        }
    }

    /// Has the processor begin where it is declared to, if it has never run.
    pub(super) async fn register(&self, store: &LocalStore) -> Result<(), LocalError> {
        let events = &store.events;
        let start = match self.declaration.start() {
            Start::Beginning => Position::START,
            Start::Position(position) => position,
            Start::Now => events.latest_id(None).await?,
            Start::Time(time) => first_since(events.as_ref(), time).await?,
        };
        Ok(store.ledger.register(&self.key, start).await?)
    }

    /// Carries out what is to be done after commits, or handles the next batch of the events up to one.
    pub(super) async fn step(
        &mut self,
        store: &LocalStore,
        upto: Position,
        upcasts: &[Upcast],
        clock: Clock,
    ) -> Result<Step, LocalError> {
        if std::mem::replace(&mut self.is_at_work, true) {
            // It may remember what was not committed.
            self.handler.forget();
        }
        let step = self.go_on(store, upto, upcasts, clock).await;
        self.is_at_work = false;
        step
    }

    async fn go_on(
        &mut self,
        store: &LocalStore,
        upto: Position,
        upcasts: &[Upcast],
        clock: Clock,
    ) -> Result<Step, LocalError> {
        if self.handler.abilities.acts_after_commit
            && store.ledger.has_effects(&self.key.name).await?
            && let Some(step) = self.carry_out(store).await?
        {
            return Ok(step);
        }
        let Standing { position, parked } = store.ledger.standing(&self.key).await?;
        let Some(from) = position else {
            // Somebody has removed it, to have the processor begin anew.
            self.handler.forget();
            self.register(store).await?;
            return Ok(Step::AGAIN);
        };
        let head = store.events.latest_id(None).await?.min(upto);
        if from >= head {
            return Ok(Step::Idle);
        }
        // A command is stored at once, so that what the next event leads to relies on it.
        let is_alone = self.handler.abilities.needs_each_stored();
        let size = if is_alone { 1 } else { self.bisection.size() };
        let mut page = self.read(store.events.as_ref(), from, head, size, upcasts).await?;
        page.set_aside_behind(&parked);
        match self.handle(store, from, page, upcasts, clock).await {
            Ok((step, None)) => {
                self.retry.succeeded();
                Ok(step)
            }
            Ok((step, Some(failure))) => {
                let decision = decide_failure(failure, &self.retry);
                self.act(store, decision, step).await
            }
            Err(error) => {
                self.handler.forget();
                if matches!(error, ProcessorError::Unattributed(_)) {
                    self.bisection.halve();
                }
                let decision = decide(error, Attempt::Batch { size, retry: &self.retry });
                self.act(store, decision, Step::AGAIN).await
            }
        }
    }

    /// Carries out what is to be done after commits; `None`: another program does.
    async fn carry_out(&mut self, store: &LocalStore) -> Result<Option<Step>, LocalError> {
        let name = self.key.name.clone();
        let mut queue = store.ledger.effects(&name);
        match self.handler.carry_out(queue.as_mut(), self.declaration.batch.time).await {
            Ok(CarriedOut { failure: None, count, .. }) => Ok((count > 0).then_some(Step::AGAIN)),
            Ok(CarriedOut { failure: Some(failure), .. }) => Err(LocalError::failed(&name, failure)),
            Err(ProcessorError::Database(error)) => Err(error.into()),
            Err(error) => Err(LocalError::failed(&name, Failure::of_processor(error.to_string()))),
        }
    }

    async fn read(
        &self,
        store: &dyn LocalEvents,
        after: Position,
        head: Position,
        size: i64,
        upcasts: &[Upcast],
    ) -> Result<Page, LocalError> {
        let types = self.declaration.event_types();
        let stored: Option<Vec<String>> = types.as_ref().map(|types| {
            stored_types(upcasts, types.iter().copied()).into_iter().map(str::to_owned).collect()
        });
        let mut events = store.read_after(after, Some(head), stored.as_deref(), size).await?;
        let is_full = events.len() as i64 >= size;
        let whole = events.len();
        events.truncate(within_bytes(&events, self.declaration.batch.bytes));
        let last = events.last().filter(|_| is_full || events.len() < whole);
        let mut page = Page {
            upto: last.map_or(head, |last| last.id),
            deliveries: Vec::new(),
            unreadable: None,
            waiting: Vec::new(),
        };
        page.fill(events, upcasts, |name| types.as_ref().is_none_or(|types| types.contains(name)));
        Ok(page)
    }

    /// Handles a page and moves the position over what was handled. Returns the failure of the event behind it, if that could
    /// not be.
    async fn handle(
        &mut self,
        store: &LocalStore,
        from: Position,
        mut page: Page,
        upcasts: &[Upcast],
        clock: Clock,
    ) -> Result<(Step, Option<Failure>), ProcessorError> {
        let unit = store.ledger.open_unit().await?;
        let (events, name) = (store.events.as_ref(), self.key.name.as_str());
        let ledger = store.ledger.as_ref();
        let workflow = WorkflowChanges::default();
        let mut transaction = LocalTransaction { unit, ledger, workflow, events, upcasts, clock, name };
        let time = self.declaration.batch.time;
        let handled =
            self.handler.handle(&mut transaction, &mut page.deliveries, page.unreadable, time).await?;
        let position = handled.position(&page.deliveries, from, page.upto);
        page.waiting.retain(|letter| letter.event.id <= position);
        let set_aside = page.waiting.clone();
        let (count, failure) = (handled.events, handled.failure);
        let commit = Commit {
            key: &self.key,
            from,
            position,
            effects: handled.effects,
            dead_letters: page.waiting,
            workflow: transaction.workflow,
        };
        if !transaction.unit.commit(commit).await? {
            self.handler.forget();
            return Ok((Step::AGAIN, None));
        }
        self.bisection.passed(count as i64);
        Ok((Step::Went { handled: count, set_aside }, failure.map(|failure| *failure)))
    }

    /// Does what was decided. Attempts follow one another at once: nobody waits for delays.
    async fn act(&mut self, store: &LocalStore, decision: Decision, step: Step) -> Result<Step, LocalError> {
        let name = &self.key.name;
        match decision {
            Decision::Bisect(_) | Decision::Reclaim => Ok(step),
            Decision::Reconnect(error) => Err(error.into()),
            Decision::Retry(failure) if failure.event.is_some() && self.attempts_end() => {
                self.retry.failed(failure.event_id());
                Ok(step)
            }
            Decision::SetAside { failure, blocks } => {
                self.retry.succeeded();
                self.set_aside(store, failure, blocks, step).await
            }
            Decision::Retry(failure)
            | Decision::Stop(failure)
            | Decision::RenewSession(failure)
            | Decision::KeepDeadLetter { failure, .. } => {
                let failed = LocalError::failed(name, failure);
                self.retry.succeeded();
                Err(failed)
            }
            Decision::Block { message } | Decision::WaitFor { message, .. } => {
                Err(LocalError::failed(name, Failure::of_processor(message)))
            }
            Decision::AwaitVersion { serves, declared } => {
                let message = format!("its tables are version {serves}, and version {declared} is declared");
                Err(LocalError::failed(name, Failure::of_processor(message)))
            }
            Decision::Diverge => {
                let message = "the event store is not the one that was followed";
                Err(LocalError::failed(name, Failure::of_processor(message)))
            }
        }
    }

    /// Whether the policy gives an event up at some time.
    fn attempts_end(&self) -> bool {
        let policy = &self.declaration.retry;
        policy.on_failure != OnFailure::Retry && policy.max_attempts.is_some()
    }

    /// Sets aside the event that has used up its attempts, and moves the position over it.
    async fn set_aside(
        &mut self,
        store: &LocalStore,
        failure: Failure,
        blocks: bool,
        step: Step,
    ) -> Result<Step, LocalError> {
        let Failure { event: Some(event), message, .. } = failure else { return Ok(step) };
        let letter = DeadLetter { event, reason: message, blocks };
        let Standing { position, .. } = store.ledger.standing(&self.key).await?;
        let commit = Commit {
            key: &self.key,
            from: position.unwrap_or_default(),
            position: letter.event.id,
            effects: Vec::new(),
            dead_letters: vec![letter.clone()],
            workflow: WorkflowChanges::default(),
        };
        store.ledger.open_unit().await?.commit(commit).await?;
        let Step::Went { handled, mut set_aside } = step else { return Ok(step) };
        set_aside.push(letter);
        Ok(Step::Went { handled, set_aside })
    }
}

/// The position just before the first event of this time or later.
async fn first_since(
    events: &dyn LocalEvents,
    time: chrono::DateTime<chrono::Utc>,
) -> Result<Position, LocalError> {
    use futures_util::TryStreamExt as _;
    let mut all = events.read_range(Position::START, Position::MAX, None);
    let mut last = Position::START;
    while let Some(event) = all.try_next().await? {
        if event.created_at >= time {
            return Ok(event.id.previous());
        }
        last = event.id;
    }
    Ok(last)
}

/// How many of the events a batch may have: one at least.
fn within_bytes(events: &[Event], most: i64) -> usize {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        let fits = bytes < most;
        bytes += (event.body.get().len() + event.metadata.get().len()) as i64;
        fits
    };
    events.iter().take_while(fits).count()
}

impl Page {
    /// Takes in events as they are read through upcasts, up to the first that cannot be.
    fn fill(&mut self, events: Vec<Event>, upcasts: &[Upcast], is_handled: impl Fn(&str) -> bool) {
        for event in events {
            let stored = event.clone();
            match read_through(event, upcasts) {
                Ok(event) if is_handled(&event.event_type) => self.deliver(event),
                Ok(_) => {}
                Err(error) => {
                    self.unreadable = Some((self.deliveries.len(), Failure::of_database(&error)));
                    self.deliver(stored);
                    return;
                }
            }
        }
    }

    fn deliver(&mut self, event: Event) {
        self.deliveries.push(Delivery { event, replaying: false });
    }

    /// Takes out the events that wait behind a dead letter of their aggregate.
    fn set_aside_behind(&mut self, parked: &std::collections::HashSet<crate::event::AggregateId>) {
        let unreadable = self.unreadable.as_ref().map(|(place, _)| *place);
        let mut kept = Vec::new();
        for (place, delivery) in std::mem::take(&mut self.deliveries).into_iter().enumerate() {
            if !parked.contains(&delivery.event.aggregate_id) {
                kept.push(delivery);
                continue;
            }
            let event = failed_event(&delivery);
            let reason = "it waits behind a dead letter of its aggregate".to_owned();
            self.waiting.push(DeadLetter { event, reason, blocks: true });
            if unreadable == Some(place) {
                self.unreadable = None;
            }
        }
        if let Some((place, _)) = &mut self.unreadable {
            *place = kept.len().saturating_sub(1);
        }
        self.deliveries = kept;
    }
}

fn failed_event(delivery: &Delivery) -> FailedEvent {
    let SourceEvent { id, uuid, event_type, aggregate_id, .. } = SourceEvent::of(delivery);
    FailedEvent { id, uuid, event_type, aggregate_id }
}
