//! Which event of an aggregate cannot be read: where an upcast in SQL fails, or `jsonb` cannot hold a body, the database says why and
//! not of which event.

use uuid::Uuid;

use super::PostgresEventStore;
use crate::event::{AggregateId, Event, Position, Version};
use crate::store::{EventStore as _, ReadError};

impl PostgresEventStore {
    /// The same error with the event of the aggregate that it is about, if it is about one.
    pub(super) async fn name_in_aggregate(
        &self,
        error: ReadError,
        aggregate_id: AggregateId,
        versions: (Version, Version),
    ) -> Result<Event, ReadError> {
        if !error.is_of_an_event() {
            return Err(error);
        }
        let ReadError::Database(source) = error else { return Err(error) };
        Err(match self.find_unreadable(&aggregate_id, versions).await {
            Ok(Some(position)) => ReadError::Unreadable { position, source },
            Ok(None) | Err(_) => ReadError::Database(source),
        })
    }

    /// The first of the events that cannot be read, by halving.
    async fn find_unreadable(
        &self,
        aggregate_id: &AggregateId,
        (from, to): (Version, Version),
    ) -> Result<Option<Position>, ReadError> {
        let query = sqlx::query_as(self.statements.list_aggregate.clone());
        let events: Vec<(Position, Uuid)> =
            query.bind(aggregate_id.as_uuid()).bind(from).bind(to).fetch_all(self.pool()).await?;
        // All before `good` can be read, and not all before `bad`.
        let (mut good, mut bad) = (0, events.len());
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            if self.can_read(&events[good..middle]).await? { good = middle } else { bad = middle }
        }
        let found = &events[good..bad];
        let is_found = !found.is_empty() && !self.can_read(found).await?;
        Ok(found.first().filter(|_| is_found).map(|(position, _)| *position))
    }

    async fn can_read(&self, events: &[(Position, Uuid)]) -> Result<bool, ReadError> {
        let uuids: Vec<Uuid> = events.iter().map(|(_, uuid)| *uuid).collect();
        match self.read_uuids(&uuids).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_of_an_event() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
