//! Operators remove and rename trackers through SQL functions, which also record who did it.

use sqlx::PgConnection;

use super::{ProcessorKey, Trackers};
use crate::postgres::quote::quote_literal;

impl Trackers {
    /// Removes a tracker with everything that refers to it. Returns whether there was one.
    ///
    /// # Errors
    /// A daemon runs the processor (55006), or the database does not answer.
    pub(crate) async fn remove(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        self.act(connection, "drop_processor", key, operator, "").await
    }

    /// Gives a tracker, and everything that refers to it, another name; ends every claim. Returns `false`, and does nothing,
    /// if the name is taken.
    ///
    /// # Errors
    /// As for [`Self::remove`].
    pub(crate) async fn rename(
        &self,
        connection: &mut PgConnection,
        key: &ProcessorKey,
        new: &str,
        operator: &str,
    ) -> Result<bool, sqlx::Error> {
        let new = format!(", new_name => {}", quote_literal(new));
        self.act(connection, "rename_processor", key, operator, &new).await
    }
}
