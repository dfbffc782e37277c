//! This module says of trackers whether their events are handled when they are inserted.

use sqlx::PgConnection;

use super::{Claim, ProcessorKey, Trackers};
use crate::postgres::literal::{fetch_optional, simple};
use crate::processing::declaration::Synchronous;

impl Trackers {
    /// Whether the events of a processor are handled when they are inserted.
    pub(crate) async fn is_synchronous(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
    ) -> Result<bool, sqlx::Error> {
        let statement =
            format!("-- is_synchronous\nselect {}.is_synchronous({})", self.schema, key.arguments());
        let row: Option<(bool,)> = fetch_optional(connection, statement).await?;
        Ok(row.is_some_and(|(is,)| is))
    }

    /// Makes a processor one that handles events in batches, unless it is synchronous in the order that is `wanted`. Its position
    /// moves to the last event, all of which are handled, and its claim ends.
    pub(crate) async fn end_synchronous(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        wanted: Option<Synchronous>,
    ) -> Result<(), sqlx::Error> {
        let wanted = wanted.map_or("null".to_owned(), |wanted| format!("'{wanted}'"));
        let statement = format!(
            "-- end_synchronous
             update {} set synchronous = null where {} and synchronous is distinct from {wanted}",
            self.table,
            key.is_tracker()
        );
        simple(statement).execute(connection).await.map(drop)
    }

    /// Records the triggers that handle the events of a processor, as they are, if the claim is still valid.
    pub(crate) async fn note_triggers(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
    ) -> Result<(), sqlx::Error> {
        let statement = format!(
            "-- note_triggers
             update {} set synchronous_triggers = {}.triggers_to_remember(name, version) where {}",
            self.table,
            self.schema,
            super::is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }
}
