//! Draining: waiting until there is nothing left to do.

use std::time::Duration;

use super::blocked::stopped;
use super::{Clock, Patience, Waiting};
use crate::event::Position;
use crate::processing::dead_letters::DeadLetters;
use crate::processing::effects::Effects;
use crate::processing::emission::{EmissionSelection, EmissionState, LaterEmission, PendingEmissions};
use crate::processing::tracker::{TrackerRow, Trackers};
use crate::processors::WaitError;
use crate::store::scheduled::{ScheduledEvents, ScheduledSummary};
use crate::store::{EventStore as _, PostgresEventStore};

/// Processors that have nothing to do: all events are handled, and what was emitted is in the event store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Idle {
    /// The last event of the store, which every processor has reached.
    pub position: Position,
    /// What reactors have emitted for a later time, the next ones first, a hundred for each reactor at most. It is not
    /// waited for.
    pub later: Vec<LaterEmission>,
    /// How many events are set aside for these processors as dead letters, and are not handled.
    pub dead_letters: i64,
}

/// What there is to see of the processors, one look after the other.
struct Seen<'s> {
    rows: &'s [TrackerRow],
    /// Whose handlers have something to do after their commits.
    effects: Vec<String>,
    /// Whose dead letters are to be handled again.
    requested: Vec<String>,
    head: Position,
}

/// The most emissions that are listed of a reactor.
const LISTED_MAX: i64 = 100;

impl Waiting<'_> {
    /// Waits until the processors have handled all events, also those that they emit, and nothing that is due is pending.
    /// What handlers do after their commits is done as well. Emissions for a later time are listed.
    ///
    /// # Errors
    /// See [`WaitError`].
    pub(crate) async fn until_idle(&self, timeout: Duration) -> Result<Idle, WaitError> {
        let mut clock = Clock::of(timeout);
        loop {
            match clock.look(Box::pin(self.look_whether_idle(&clock))).await {
                Ok(Some(idle)) => return Ok(idle),
                Ok(None) => {}
                Err(error) => self.endure(error, &self.names, &clock)?,
            }
            clock.pause().await;
        }
    }

    /// Looks once; `None`: there is something left to do, and time.
    async fn look_whether_idle(&self, clock: &Clock) -> Result<Option<Idle>, WaitError> {
        // First: an event that is appended meanwhile is in the store when the head is looked at.
        let scheduled = self.due_scheduled().await?;
        // This order: what is emitted between two of the looks is seen by a later one.
        let rows = self.rows(&self.names).await?;
        let seen = Seen {
            effects: self.pending_effects().await?,
            requested: self.requested_dead_letters().await?,
            head: self.head().await?,
            rows: &rows,
        };
        let head = seen.head;
        self.refuse_blocked(&rows, head).await?;
        self.refuse_refused(&rows)?;
        let is_scheduled = scheduled.due + scheduled.refused > 0;
        self.refuse_undone(&seen)?;
        let work = |name: &String| self.work_of(name, &seen);
        let left: Vec<String> = self.names.iter().filter(|name| work(name).is_some()).cloned().collect();
        if left.is_empty() && !is_scheduled {
            let dead_letters = rows.iter().map(|row| row.dead_letters).sum();
            return Ok(Some(Idle { position: head, later: self.later(&rows).await?, dead_letters }));
        }
        let is_vain = scheduled.refused > 0 && self.patience == Patience::Impatient;
        if (clock.is_over() || is_vain) && left.is_empty() {
            return Err(WaitError::TimedOut {
                processors: Vec::new(),
                message: describe_scheduled(&scheduled),
            });
        }
        if clock.is_over() {
            let says = |name: &String, why: String| {
                let work = work(name).unwrap_or_default();
                format!("{name} is not idle in time: {work}; {why}")
            };
            return Err(self.timed_out(&left, &rows, says).await?);
        }
        Ok(None)
    }

    /// What a processor still has to do; `None`: nothing.
    fn work_of(&self, name: &str, seen: &Seen<'_>) -> Option<String> {
        let Seen { rows, head, requested, effects } = seen;
        let slowest = self.slowest(name, rows);
        if slowest.is_none_or(|row| row.position < *head) {
            return Some(format!("it has not handled the events up to {head}"));
        }
        if effects.iter().any(|one| one == name) {
            return Some("what its handler does after its commits is not done yet".to_owned());
        }
        if requested.iter().any(|one| one == name) {
            return Some("dead letters are to be handled again".to_owned());
        }
        let mut own = rows.iter().filter(|row| row.name == name);
        let pending = own.find(|row| row.emissions_overdue_since.is_some() || row.refused_emissions > 0)?;
        let why = pending.emission_error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        Some(match pending.refused_emissions {
            0 => format!("what it has emitted is not in the event store yet{why}"),
            count => format!("the event store has refused {count} of its emissions{why}"),
        })
    }

    /// Ends an impatient wait where the event store refuses what a reactor has emitted.
    fn refuse_refused(&self, rows: &[TrackerRow]) -> Result<(), WaitError> {
        let refused = rows.iter().find(|row| row.refused_emissions > 0);
        let Some(row) = refused.filter(|_| self.patience == Patience::Impatient) else { return Ok(()) };
        let why = row.emission_error.as_deref().unwrap_or("it does not say why");
        let reason = format!("the event store refuses what it has emitted: {why}");
        Err(WaitError::Blocked { processor: row.name.clone(), reason, event_id: None })
    }

    /// Ends an impatient wait where something keeps a processor from what it does after its commits.
    fn refuse_undone(&self, seen: &Seen<'_>) -> Result<(), WaitError> {
        let is_undone = |row: &&TrackerRow| seen.effects.contains(&row.name);
        let mut undone = seen.rows.iter().filter(is_undone).filter(|_| self.patience == Patience::Impatient);
        undone.find_map(stopped).map_or(Ok(()), Err)
    }

    /// The processors whose handlers have something to do after their commits.
    async fn pending_effects(&self) -> Result<Vec<String>, WaitError> {
        let databases = self.operator.databases;
        let pending = Effects::new(databases.layout.schema()).summarise(&databases.projections).await?;
        Ok(pending.into_iter().map(|effects| effects.processor).collect())
    }

    /// What applications have scheduled.
    async fn due_scheduled(&self) -> Result<ScheduledSummary, WaitError> {
        let databases = self.operator.databases;
        match ScheduledEvents::of(&databases.layout) {
            Some(events) => Ok(events.summarise(&databases.events).await?),
            None => Ok(ScheduledSummary::default()),
        }
    }

    async fn requested_dead_letters(&self) -> Result<Vec<String>, WaitError> {
        let databases = self.operator.databases;
        let table = DeadLetters::new(&Trackers::of(&databases.layout));
        Ok(table.processors_with_requests(&databases.projections).await?)
    }

    async fn head(&self) -> Result<Position, WaitError> {
        let databases = self.operator.databases;
        let store = PostgresEventStore::new(databases.events.clone(), databases.layout.clone());
        store.latest_id(None).await.map_err(|error| WaitError::Database(error.into()))
    }

    /// What is emitted for later.
    async fn later(&self, rows: &[TrackerRow]) -> Result<Vec<LaterEmission>, WaitError> {
        let databases = self.operator.databases;
        let table = PendingEmissions::of(&databases.layout);
        let mut later = Vec::new();
        for row in rows.iter().filter(|row| row.pending_emissions > 0) {
            let selection =
                EmissionSelection { reactor: Some(row.name.clone()), ..EmissionSelection::default() };
            let pending = table.list(&databases.projections, &selection, LISTED_MAX).await?;
            let still_later = pending.into_iter().filter(|emission| emission.state != EmissionState::Refused);
            later.extend(still_later.map(|emission| LaterEmission {
                reactor: emission.reactor,
                event_type: emission.event_type,
                aggregate_id: emission.aggregate_id,
                key: emission.key,
                due_at: emission.due_at,
            }));
        }
        Ok(later)
    }
}

/// Why scheduled events that are due are not in the event store.
fn describe_scheduled(scheduled: &ScheduledSummary) -> String {
    if scheduled.refused == 0 {
        return format!(
            "{} scheduled events are due and not appended: no daemon does that, or the next ones say why: \
             `espctl emissions list -`",
            scheduled.due
        );
    }
    let why = scheduled.refusal.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
    let events = if scheduled.refused == 1 { "event that is due" } else { "events that are due" };
    format!(
        "the event store has refused {} scheduled {events}{why}: `espctl emissions list - --refused`",
        scheduled.refused
    )
}
