//! The events of the demo: a history to begin with, then new ones at a steady rate.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::daemon::todo_history::TodoHistory;
use crate::event::{NewEvent, Position};
use crate::shutdown::Shutdown;
use crate::store::{EventStore as _, PostgresEventStore};

/// Events of the history per append.
const CHUNK_EVENTS: usize = 1_000;

/// Appends the history that the processors catch up with. Returns how long it took.
pub(super) async fn append_history(
    events: u64,
    history: &mut TodoHistory,
    store: &PostgresEventStore,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut left = events as usize;
    while left > 0 {
        let count = left.min(CHUNK_EVENTS);
        let chunk: Vec<_> = history.take(count).collect();
        store.append(&chunk).await?;
        left -= count;
    }
    Ok(begun.elapsed())
}

/// Appends `rate` events per second, one by one, until the stop is requested.
pub(super) async fn append_at_rate(
    rate: u64,
    store: PostgresEventStore,
    mut history: TodoHistory,
    mut stop: Shutdown,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    while stop.run_until_requested(ticks.tick()).await.is_some() {
        let event: Vec<_> = history.by_ref().take(1).collect();
        store.append(&event).await?;
    }
    Ok(())
}

/// The day on which the to-do was done that no calendar has.
pub(super) const IMPOSSIBLE_DAY: &str = "2027-06-31";

/// Appends a to-do that was completed on a day that does not exist. Returns the id of its last event, which
/// `completed_todos` cannot handle.
pub(super) async fn append_impossible_day(store: &PostgresEventStore) -> anyhow::Result<Position> {
    let id = Uuid::new_v4();
    let body = |text: String| RawValue::from_string(text);
    let added = body(r#"{"title":"fix the calendar"}"#.to_owned())?;
    let completed = body(format!(r#"{{"completed_on":"{IMPOSSIBLE_DAY}"}}"#))?;
    let events = [NewEvent::new(id, "TodoAdded", added), NewEvent::new(id, "TodoCompleted", completed)];
    let positions = store.append(&events).await?;
    Ok(positions.last().map_or(Position::START, |event| event.id))
}
