//! Which handlers the owners of a processor have had.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;

use super::{Claim, Trackers, is_claimed};
use crate::event::Position;
use crate::postgres::literal::simple;
use crate::postgres::quote::quote_literal;
use crate::processing::declaration::are_comparable;

/// An owner came whose handlers were not those of the last one. The field names are an interface: `espctl status --json`
/// prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerChange {
    /// When it came.
    pub at: DateTime<Utc>,
    /// The position then: the rows of events up to it were made by other handlers.
    pub position: Position,
    /// Host and process id of its daemon.
    pub owner: Option<String>,
    /// Fingerprint of the handlers before.
    pub before: String,
    /// Fingerprint of the handlers from then on.
    pub after: String,
}

impl Claim {
    /// Whether the last owner had other handlers than the `present` ones, and they have handled events.
    pub(crate) fn was_handled_by_other(&self, present: &str) -> bool {
        self.declaration.is_some() && have_changed(self.handlers.as_deref(), present, self.position)
    }
}

/// Whether there were other handlers `last` than the `present` ones, and they have handled events.
pub(super) fn have_changed(last: Option<&str>, present: &str, position: Position) -> bool {
    position > Position::START && last.is_some_and(|last| last != present && are_comparable(last, present))
}

impl Trackers {
    /// Records the handlers of the owner, and with `is_change` that they are others than those of the last one.
    pub(crate) async fn note_handlers(
        &self,
        connection: impl PgExecutor<'_>,
        claim: &Claim,
        fingerprint: &str,
        is_change: bool,
    ) -> Result<(), sqlx::Error> {
        let fingerprint = quote_literal(fingerprint);
        let change = if is_change {
            format!(
                "jsonb_build_object('at', clock_timestamp(), 'position', position, 'owner', owner_label,
                                    'before', handlers, 'after', {fingerprint})"
            )
        } else {
            "handler_change".to_owned()
        };
        let statement = format!(
            "-- note_handlers
             update {} set handlers = {fingerprint}, handler_change = {change} where {}",
            self.table,
            is_claimed(claim)
        );
        simple(statement).execute(connection).await.map(drop)
    }
}
