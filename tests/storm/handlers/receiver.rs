//! The receiver of the webhook: it refuses cursed aggregates, is slow at times, and notes what it has accepted.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use espd::event::Position;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::http_receiver::{Received, Receiver, Reply};

/// A request that was answered well, or would have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    pub event_id: Position,
    pub event_uuid: Uuid,
    pub aggregate_id: Uuid,
}

/// Whether the receiver refuses every event of an aggregate.
pub fn is_cursed(aggregate: Uuid) -> bool {
    aggregate.as_bytes()[0].is_multiple_of(16)
}

/// What came of the events of the webhook reactor.
#[derive(Debug, Clone, Default)]
pub struct Notified {
    /// In the order in which the requests came.
    pub delivered: Vec<Delivered>,
    /// The uuids of the events that were set aside.
    pub set_aside: HashSet<Uuid>,
}

impl Notified {
    /// Reads which events were set aside for the reactor.
    pub async fn read_dead_letters(
        connection: &mut PgConnection,
        reactor: &str,
    ) -> Result<HashSet<Uuid>, sqlx::Error> {
        let statement = "-- read_dead_letters\nselect event_uuid from espd.dead_letters where processor = $1";
        let uuids: Vec<Uuid> = sqlx::query_scalar(statement).bind(reactor).fetch_all(connection).await?;
        Ok(uuids.into_iter().collect())
    }
}

/// What the receiver has accepted so far.
pub type Accepted = Arc<Mutex<Vec<Delivered>>>;

/// Starts the receiver.
pub async fn start() -> (Receiver, Accepted) {
    let accepted = Accepted::default();
    let notes = Arc::clone(&accepted);
    let receiver = Receiver::start(move |received| answer(received, &notes)).await;
    (receiver, accepted)
}

fn answer(received: &Received, accepted: &Accepted) -> Reply {
    let Some(delivered) = read(received) else { return Reply::Status(422) };
    if is_cursed(delivered.aggregate_id) {
        return Reply::Status(500);
    }
    let slow = delivered.event_id.get() % 50 == 0;
    if let Ok(mut accepted) = accepted.lock() {
        accepted.push(delivered);
    }
    if slow {
        Reply::After(Duration::from_millis(300), Box::new(Reply::Status(204)))
    } else {
        Reply::Status(204)
    }
}

fn read(received: &Received) -> Option<Delivered> {
    let header = |name: &str| received.headers.get(name)?.to_str().ok();
    Some(Delivered {
        event_id: header("ce-position")?.parse::<i64>().ok()?.into(),
        event_uuid: header("ce-id")?.parse().ok()?,
        aggregate_id: header("ce-subject")?.parse().ok()?,
    })
}
