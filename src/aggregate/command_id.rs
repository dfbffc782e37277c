//! The identity of a command, which makes repeating it harmless.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::event::Event;
use crate::store::{EventStore, PostgresEventStore, ReadError};

/// How many uuids are looked up at a time: few commands lead to more events.
const PAGE: usize = 16;

/// The identity of a command. What it leads to has identities that are made of it, so the second time finds the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandId(Uuid);

impl CommandId {
    pub(crate) fn new(id: Uuid) -> Self {
        Self(id)
    }

    pub(super) fn get(self) -> Uuid {
        self.0
    }

    /// The uuid of an event of the command, counted from 0.
    pub(crate) fn event_uuid(self, ordinal: u32) -> Uuid {
        Uuid::new_v5(&self.0, &ordinal.to_be_bytes())
    }

    /// An id that the decision has asked for, counted from 0. None of the events has it.
    pub(super) fn new_id(self, ordinal: u32) -> Uuid {
        let mut name = *b"id  0000";
        name[4..].copy_from_slice(&ordinal.to_be_bytes());
        Uuid::new_v5(&self.0, &name)
    }

    /// What the command has led to, in the order in which it was decided; nothing if it was never carried out.
    pub(super) async fn find_events(self, store: &impl EventStore) -> Result<Vec<Event>, ReadError> {
        let mut found = Vec::new();
        while found.len() % PAGE == 0 {
            let page = store.read_uuids(&self.page_after(found.len())).await?;
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        Ok(found)
    }

    /// The same, in a transaction.
    pub(super) async fn find_events_in(
        self,
        store: &PostgresEventStore,
        connection: &mut PgConnection,
    ) -> Result<Vec<Event>, ReadError> {
        let mut found = Vec::new();
        while found.len() % PAGE == 0 {
            let page = store.read_uuids_in(connection, &self.page_after(found.len())).await?;
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        Ok(found)
    }

    /// The uuids of the events after the first `count`.
    fn page_after(self, count: usize) -> Vec<Uuid> {
        let from = u32::try_from(count).unwrap_or(u32::MAX);
        (from..from.saturating_add(PAGE as u32)).map(|ordinal| self.event_uuid(ordinal)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identities_are_distinct_and_the_same_each_time() {
        let id = CommandId::new(Uuid::from_u128(7));
        let all: HashSet<Uuid> = (0..1_000).flat_map(|n| [id.event_uuid(n), id.new_id(n)]).collect();
        assert_eq!(all.len(), 2_000);
        assert_eq!(id.event_uuid(3), CommandId::new(Uuid::from_u128(7)).event_uuid(3));
    }
}
